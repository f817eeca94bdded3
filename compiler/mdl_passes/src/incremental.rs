//! Derives the step that extends a sequence by T positions from the graph of a whole sequence.
//!
//! Where a value is renamed along the sequence axis (`k[S = T]`), keys and values of earlier
//! positions must be there: the renamed value is written into a cache with a capacity, and what
//! follows reads the cache. Positions along T start at an input. Everything else must treat each
//! position alone; what mixes positions in another way has no incremental form, and says so.

use crate::mask::recognise;
use mdl_ir::build::Builder;
use mdl_ir::graph::{Body, Graph, InputRole, Node, OutputRole, ValueId};
use mdl_ir::kernel::MaskSpec;
use mdl_ir::op::{Binary, Kernel, Op};
use mdl_ir::tensor_type::{Axis, DType, Type};
use mdl_symbol::Symbol;
use std::collections::{HashMap, HashSet};

/// The name of the input that gives the position of the first new element.
pub const START: &str = "start";

/// The graph of an entry that goes on from `start`, with caches of `capacity` positions. `time` is
/// the sequence axis.
pub fn incremental(graph: &Graph, time: &str, capacity: u64) -> Result<Graph, String> {
    let mut rewrite = Rewrite { time: time.into(), capacity, renamed: HashSet::new() };
    let mut scope = Scope::default();
    let start = scope.b.input(START, Type::scalar(DType::I32));
    scope.start = Some(start);
    let mut inputs = vec![InputRole::Data(START.to_string())];
    for (id, role) in graph.body.inputs.iter().zip(&graph.inputs) {
        let name = graph.body.name(*id);
        let id2 = scope.b.input(name, graph.body.ty(*id).clone());
        scope.map.insert(*id, id2);
        inputs.push(role.clone());
    }
    rewrite.body(&graph.body, &mut scope)?;
    let mut outputs = graph.outputs.clone();
    let mut ids: Vec<ValueId> = graph.body.outputs.iter().map(|o| scope.map[o]).collect();
    for (i, (input, result)) in scope.caches.iter().enumerate() {
        let at = scope.b.body.inputs.iter().position(|x| x == input).unwrap_or(0);
        inputs.insert(at, InputRole::Cache(i));
        outputs.push(OutputRole::Cache(i));
        ids.push(*result);
    }
    let name = format!("{}.incremental", graph.name);
    Ok(Graph { name, inputs, outputs, body: scope.b.finish(ids), ..graph.clone() })
}

/// The same step for positions whose results nobody reads: it fills the caches, and what only the
/// other outputs needed is gone. Inputs stay, so that both steps share one state.
pub fn caches_only(mut graph: Graph) -> Graph {
    let kept = |(role, _): &(OutputRole, ValueId)| matches!(role, OutputRole::Cache(_));
    let outputs = graph.outputs.into_iter().zip(graph.body.outputs).filter(kept);
    (graph.outputs, graph.body.outputs) = outputs.unzip();
    let mut needed: HashSet<ValueId> = graph.body.outputs.iter().copied().collect();
    let mut nodes: Vec<Node> = Vec::new();
    for node in graph.body.nodes.into_iter().rev() {
        if node.results.iter().any(|r| needed.contains(r)) {
            needed.extend(&node.args);
            nodes.push(node);
        }
    }
    nodes.reverse();
    graph.body.nodes = nodes;
    graph.name = format!("{}.caches", graph.name);
    graph
}

/// Computed ids, held inside their table. Positions that are computed only to fill a chunk may lie
/// behind a table of learned positions, where there is nothing to read.
fn inside(
    axis: Symbol,
    table: ValueId,
    ids: ValueId,
    node: &Node,
    b: &mut Builder,
) -> Result<ValueId, String> {
    let rows = b.ty(table).axis(axis).ok_or("a table has its axis")?.size;
    let last = b.push(Op::Const(rows as f64 - 1.0), &[], node.span)?;
    let ids = b.push(Op::Cast(DType::F32), &[ids], node.span)?;
    let ids = b.binary(Binary::Min, ids, last, node.span)?;
    b.push(Op::Cast(DType::I32), &[ids], node.span)
}

/// A body that is being written, with the caches that came up in it: input and updated value.
#[derive(Debug, Default)]
struct Scope {
    b: Builder,
    map: HashMap<ValueId, ValueId>,
    start: Option<ValueId>,
    caches: Vec<(ValueId, ValueId)>,
}

struct Rewrite {
    time: Symbol,
    capacity: u64,
    /// Axes that were made from the sequence axis: they now reach over the whole cache.
    renamed: HashSet<Symbol>,
}

impl Rewrite {
    fn body(&mut self, body: &Body, scope: &mut Scope) -> Result<(), String> {
        for node in &body.nodes {
            self.node(body, node, scope)?;
        }
        Ok(())
    }

    fn node(&mut self, body: &Body, node: &Node, scope: &mut Scope) -> Result<(), String> {
        self.allowed(body, node)?;
        let at = node.span;
        let args: Vec<ValueId> = node.args.iter().map(|a| scope.map[a]).collect();
        let result = node.results[0];
        let made = match &node.op {
            Op::Rename { from, to } if *from == self.time => {
                self.renamed.insert(*to);
                let short = scope.b.push(node.op.clone(), &args, at)?;
                self.cache(&body.name(result), short, *to, scope)?
            }
            Op::Position(axis) if axis.name == self.time => {
                let position = scope.b.push(node.op.clone(), &[], at)?;
                let start = scope.start.ok_or("every scope knows the start")?;
                let start = scope.b.push(Op::Cast(DType::F32), &[start], at)?;
                scope.b.binary(Binary::Add, position, start, at)?
            }
            Op::Position(axis) => scope.b.push(Op::Position(self.grown(axis)), &[], at)?,
            Op::Broadcast { axes } => {
                let axes = axes.iter().map(|a| self.grown(a)).collect();
                scope.b.push(Op::Broadcast { axes }, &args, at)?
            }
            Op::Gather { axis } if !body.inputs.contains(&node.args[1]) => {
                let ids = inside(*axis, args[0], args[1], node, &mut scope.b)?;
                scope.b.push(node.op.clone(), &[args[0], ids], at)?
            }
            Op::Repeat { .. } => return self.repeat(body, node, scope),
            Op::Call { .. } => return self.call(body, node, scope),
            _ => return scope.b.copy_node(body, node, &mut scope.map),
        };
        scope.map.insert(result, made);
        Ok(())
    }

    fn grown(&self, axis: &Axis) -> Axis {
        let size = if self.renamed.contains(&axis.name) { self.capacity } else { axis.size };
        Axis::new(axis.name, size)
    }

    /// Refuses operations that mix positions along the sequence.
    fn allowed(&self, body: &Body, node: &Node) -> Result<(), String> {
        let mixes = match &node.op {
            Op::Reduce { axes, .. } | Op::Contract { axes } => axes.contains(&self.time),
            Op::Slice { axis, .. } | Op::Pad { axis, .. } | Op::Split { axis, .. } => {
                *axis == self.time
            }
            Op::Concat { axis, .. } | Op::Gather { axis } => *axis == self.time,
            Op::Merge { axes, .. } => axes.contains(&self.time),
            Op::GroupedContract { axes, .. } => axes.contains(&self.time),
            // What has no time in its result and had it in an argument summed over it.
            Op::GroupedOuter { .. } | Op::ScatterAdd { .. } => {
                node.args.iter().any(|a| body.ty(*a).has(self.time))
            }
            _ => false,
        };
        if !mixes {
            return Ok(());
        }
        let name = body.name(node.results[0]);
        Err(format!("`{name}` mixes positions along `{}` and has no incremental form", self.time))
    }

    fn cache(
        &mut self,
        name: &str,
        short: ValueId,
        axis: Symbol,
        scope: &mut Scope,
    ) -> Result<ValueId, String> {
        let mut ty = scope.b.ty(short).clone();
        for a in &mut ty.axes {
            if a.name == axis {
                a.size = self.capacity;
            }
        }
        let cache = scope.b.input(format!("cache.{name}"), ty);
        let start = scope.start.ok_or("every scope knows the start")?;
        let op = Op::CacheWrite { axis };
        let whole = scope.b.push(op, &[short, cache, start], Default::default())?;
        scope.caches.push((cache, whole));
        Ok(whole)
    }

    fn repeat(&mut self, outer: &Body, node: &Node, scope: &mut Scope) -> Result<(), String> {
        let Op::Repeat { axis, count, reverse, carries, consts, body } = &node.op else {
            return Err("a repeated region".into());
        };
        let mut inner = Scope::default();
        let mut args: Vec<ValueId> = node.args.iter().map(|a| scope.map[a]).collect();
        for (input, arg) in body.inputs.iter().zip(&args) {
            let mut ty = scope.b.ty(*arg).clone();
            if inner.map.len() >= carries + consts {
                ty.axes.remove(0);
            }
            let id = inner.b.input(body.name(*input), ty);
            inner.map.insert(*input, id);
        }
        // The start is one more constant, and caches are stacked: in by slices, out by slices.
        let start = inner.b.input(START, Type::scalar(DType::I32));
        inner.b.body.inputs.pop();
        inner.b.body.inputs.insert(carries + consts, start);
        args.insert(carries + consts, scope.start.ok_or("every scope knows the start")?);
        inner.start = Some(start);
        self.body(body, &mut inner)?;
        let mut outputs: Vec<ValueId> = body.outputs.iter().map(|o| inner.map[o]).collect();
        let mut results: Vec<(Symbol, Type)> =
            node.results.iter().map(|r| (outer.name(*r), outer.ty(*r).clone())).collect();
        let caches = std::mem::take(&mut inner.caches);
        let mut stacked = Vec::new();
        for (cache, whole) in &caches {
            let ty = inner.b.ty(*cache).stacked(Axis::new(axis, *count));
            let name = inner.b.body.name(*cache);
            let id = scope.b.input(name, ty.clone());
            args.push(id);
            stacked.push(id);
            outputs.push(*whole);
            results.push((name, ty));
        }
        let op = Op::Repeat {
            axis: *axis,
            count: *count,
            reverse: *reverse,
            carries: *carries,
            consts: consts + 1,
            body: Box::new(inner.b.finish(outputs)),
        };
        let ids = scope.b.node(op, args, results, node.span);
        scope.map.extend(node.results.iter().copied().zip(ids.iter().copied()));
        scope.caches.extend(stacked.into_iter().zip(ids[node.results.len()..].iter().copied()));
        Ok(())
    }

    /// A call sees whole caches; its body gets the start where it asks for positions.
    fn call(&mut self, outer: &Body, node: &Node, scope: &mut Scope) -> Result<(), String> {
        let Op::Call { kernel, axes, body } = &node.op else {
            return Err("a call".into());
        };
        let sees_later = |(_, mask): (f32, MaskSpec)| !mask.causal;
        if *kernel == Kernel::Attention && recognise(body, axes).is_some_and(sees_later) {
            let name = outer.name(node.results[0]);
            return Err(format!("`{name}` sees later positions and has no incremental form"));
        }
        let mut args: Vec<ValueId> = node.args.iter().map(|a| scope.map[a]).collect();
        let mut inner = Scope::default();
        for (input, arg) in body.inputs.iter().zip(&args) {
            let id = inner.b.input(body.name(*input), scope.b.ty(*arg).clone());
            inner.map.insert(*input, id);
        }
        let asks = |n: &Node| matches!(&n.op, Op::Position(axis) if axis.name == self.time);
        if body.nodes.iter().any(asks) {
            inner.start = Some(inner.b.input(START, Type::scalar(DType::I32)));
            args.push(scope.start.ok_or("every scope knows the start")?);
        }
        self.body(body, &mut inner)?;
        if !inner.caches.is_empty() {
            return Err("a kernel keeps nothing between steps".into());
        }
        let outputs: Vec<ValueId> = body.outputs.iter().map(|o| inner.map[o]).collect();
        let body = inner.b.finish(outputs);
        let results = node
            .results
            .iter()
            .zip(&body.outputs)
            .map(|(r, o)| (outer.name(*r), body.ty(*o).clone()))
            .collect();
        let op = Op::Call { kernel: *kernel, axes: axes.clone(), body: Box::new(body) };
        let ids = scope.b.node(op, args, results, node.span);
        scope.map.extend(node.results.iter().copied().zip(ids));
        Ok(())
    }
}
