//! Computes values of a layer again for its gradient, instead of saving them.
//!
//! A forward region emits what its reversed region needs, one slice for each iteration. A value
//! that is not saved is made again inside the reversed region, just before it is used, from what
//! is saved: the carry that the iteration was given, constants, parameters, and other saved
//! values. The operations are the same on the same operands, so not a bit of a result changes.

use mdl_ir::build::Builder;
use mdl_ir::graph::{Body, Graph, Node, ValueId};
use mdl_ir::op::Op;
use mdl_ir::tensor_type::Axis;
use std::collections::{HashMap, HashSet};

/// A value that a forward region saves for its gradient and could compute again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Residual {
    pub name: String,
    /// All slices together.
    pub bytes: u64,
    /// The node of the forward region, and which of its results.
    pub node: usize,
    pub result: usize,
}

/// All residuals of a graph, in the order of the regions and their results.
pub fn residuals(graph: &Graph) -> Vec<Residual> {
    let body = &graph.body;
    let users = body.users();
    let mut found = Vec::new();
    for (node, n) in body.nodes.iter().enumerate() {
        let Op::Repeat { carries, reverse: false, body: inner, .. } = &n.op else { continue };
        for (result, id) in n.results.iter().enumerate().skip(*carries) {
            let given = inner.inputs.contains(&inner.outputs[result]);
            let reversed =
                |u: &usize| matches!(body.nodes[*u].op, Op::Repeat { reverse: true, .. });
            let saved = users[id.index()].len() == 1 && users[id.index()].iter().all(reversed);
            if saved && !given && !body.outputs.contains(id) {
                let (name, bytes) = (body.name(*id), body.ty(*id).bytes());
                found.push(Residual { name: name.to_string(), bytes, node, result });
            }
        }
    }
    found
}

/// The graph in which these residuals are not saved.
pub fn recompute(graph: &Graph, dropped: &[Residual]) -> Result<Graph, String> {
    if dropped.is_empty() {
        return Ok(graph.clone());
    }
    let body = &graph.body;
    let mut out = Outer { body, dropped, b: Builder::default(), map: HashMap::new() };
    for input in &body.inputs {
        let id = out.b.input(body.name(*input), body.ty(*input).clone());
        out.map.insert(*input, id);
    }
    for (i, node) in body.nodes.iter().enumerate() {
        let saves = dropped.iter().any(|d| d.node == i);
        let lacks = dropped.iter().any(|d| node.args.contains(&out.value(d)));
        match (saves, lacks) {
            (true, _) => out.forward(i)?,
            (_, true) => out.reversed(node)?,
            _ => out.b.copy_node(body, node, &mut out.map)?,
        }
    }
    let outputs = body.outputs.iter().map(|o| out.map[o]).collect();
    Ok(Graph { body: out.b.finish(outputs), ..graph.clone() })
}

struct Outer<'a> {
    body: &'a Body,
    dropped: &'a [Residual],
    b: Builder,
    map: HashMap<ValueId, ValueId>,
}

impl Outer<'_> {
    fn value(&self, residual: &Residual) -> ValueId {
        self.body.nodes[residual.node].results[residual.result]
    }

    /// The forward region without what is dropped, and with the history of its carries.
    fn forward(&mut self, i: usize) -> Result<(), String> {
        let node = &self.body.nodes[i];
        let Op::Repeat { axis, count, carries, body, .. } = &node.op else {
            return Err("a repeated region".into());
        };
        let mut inner = (**body).clone();
        let (mut outputs, mut kept, mut results) = (Vec::new(), Vec::new(), Vec::new());
        for (k, (result, output)) in node.results.iter().zip(&body.outputs).enumerate() {
            if self.dropped.iter().any(|d| (d.node, d.result) == (i, k)) {
                continue;
            }
            outputs.push(*output);
            kept.push(Some(*result));
            let value = &self.body.values[result.index()];
            results.push((value.name, value.ty.clone()));
        }
        for (k, carry) in body.inputs.iter().take(*carries).enumerate() {
            if !outputs[*carries..].contains(carry) {
                outputs.push(*carry);
                kept.push(None);
                let ty = body.ty(*carry).stacked(Axis::new(axis, *count));
                results.push((format!("{}.given", self.body.name(node.results[k])).into(), ty));
            }
        }
        inner.outputs = outputs;
        let mut op = node.op.clone();
        if let Op::Repeat { body, .. } = &mut op {
            **body = inner;
        }
        let args = node.args.iter().map(|a| self.map[a]).collect();
        let ids = self.b.node(op, args, results, node.span);
        self.map.extend(kept.into_iter().zip(ids).filter_map(|(old, id)| Some((old?, id))));
        Ok(())
    }

    /// The reversed region, which makes what is missing.
    fn reversed(&mut self, node: &Node) -> Result<(), String> {
        let Op::Repeat { carries, consts, body, .. } = &node.op else {
            return Err("a repeated region".into());
        };
        let missing: HashMap<ValueId, &Residual> = body
            .inputs
            .iter()
            .zip(&node.args)
            .filter_map(|(input, a)| {
                Some((*input, self.dropped.iter().find(|d| self.value(d) == *a)?))
            })
            .collect();
        let mut region = Region::default();
        for (n, (input, arg)) in body.inputs.iter().zip(&node.args).enumerate() {
            if missing.contains_key(input) {
                continue;
            }
            let id = region.b.input(body.name(*input), body.ty(*input).clone());
            region.map.insert(*input, id);
            let list = match n {
                n if n < *carries => &mut region.carried,
                n if n < carries + consts => &mut region.consts,
                _ => &mut region.stacked,
            };
            list.push((self.map[arg], id));
        }
        for inner in &body.nodes {
            for a in &inner.args {
                if let Some(residual) = missing.get(a)
                    && !region.map.contains_key(a)
                {
                    let id = self.again(residual, &mut region)?;
                    region.map.insert(*a, id);
                }
            }
            region.b.copy_node(body, inner, &mut region.map)?;
        }
        self.close(node, body, region)
    }

    fn close(&mut self, node: &Node, old: &Body, mut region: Region) -> Result<(), String> {
        let mut op = node.op.clone();
        let Op::Repeat { consts, body, .. } = &mut op else {
            return Err("a repeated region".into());
        };
        let lists = [&region.carried, &region.consts, &region.stacked];
        let (args, inputs): (Vec<_>, Vec<_>) = lists.into_iter().flatten().copied().unzip();
        region.b.body.inputs = inputs;
        let outputs = old.outputs.iter().map(|o| region.map[o]).collect();
        *consts = region.consts.len();
        **body = region.b.finish(outputs);
        let results = node.results.iter().map(|r| self.body.values[r.index()].clone());
        let ids = self.b.node(op, args, results.map(|v| (v.name, v.ty)).collect(), node.span);
        self.map.extend(node.results.iter().copied().zip(ids));
        Ok(())
    }

    /// A dropped value inside the reversed region.
    fn again(&self, residual: &Residual, region: &mut Region) -> Result<ValueId, String> {
        let forward = &self.body.nodes[residual.node];
        let Op::Repeat { body, .. } = &forward.op else {
            return Err("a repeated region".into());
        };
        let producers = body.producers();
        let wanted = body.outputs[residual.result];
        let mut stack = vec![wanted];
        let mut order: Vec<usize> = Vec::new();
        let mut seen: HashSet<ValueId> = HashSet::new();
        while let Some(v) = stack.pop() {
            if region.made.contains_key(&(residual.node, v)) || !seen.insert(v) {
                continue;
            }
            if let Some(id) = self.given(residual.node, v, region)? {
                region.made.insert((residual.node, v), id);
                continue;
            }
            let made = producers[v.index()].ok_or("every value is given or made")?;
            order.push(made);
            stack.extend(&body.nodes[made].args);
        }
        order.sort_unstable();
        order.dedup();
        for n in order {
            let node = &body.nodes[n];
            let mut map: HashMap<ValueId, ValueId> =
                node.args.iter().map(|a| (*a, region.made[&(residual.node, *a)])).collect();
            region.b.copy_node(body, node, &mut map)?;
            for r in &node.results {
                region.made.entry((residual.node, *r)).or_insert(map[r]);
            }
        }
        Ok(region.made[&(residual.node, wanted)])
    }

    /// A value of a forward region that the reversed one can have without computing it: an input,
    /// or what is saved.
    fn given(
        &self,
        forward: usize,
        value: ValueId,
        region: &mut Region,
    ) -> Result<Option<ValueId>, String> {
        let node = &self.body.nodes[forward];
        let Op::Repeat { carries, consts, body, .. } = &node.op else {
            return Err("a repeated region".into());
        };
        let ty = body.ty(value).clone();
        let name = body.name(value);
        let input = body.inputs.iter().position(|i| *i == value);
        if let Some(n) = input.filter(|n| *n >= *carries) {
            let arg = self.map[&node.args[n]];
            let constant = n < carries + consts;
            return Ok(Some(region.take(arg, &name, ty, constant)));
        }
        let saved = (*carries..node.results.len()).find(|k| {
            let kept = self.map.contains_key(&node.results[*k]);
            body.outputs[*k] == value && kept
        });
        if let Some(k) = saved {
            let arg = self.map[&node.results[k]];
            return Ok(Some(region.take(arg, &name, ty, false)));
        }
        let Some(carry) = input else { return Ok(None) };
        let arg = self.history(node, carry).ok_or("a forward region saves its carries")?;
        Ok(Some(region.take(arg, &name, ty, false)))
    }

    /// What a forward region that was written here was given as this carry, in every iteration.
    fn history(&self, node: &Node, carry: usize) -> Option<ValueId> {
        let made = self.b.op(self.map[&node.results[0]])?;
        let Op::Repeat { carries, body, .. } = &made.op else { return None };
        let k = (*carries..body.outputs.len()).find(|k| body.outputs[*k] == body.inputs[carry])?;
        Some(made.results[k])
    }
}

/// A reversed region that is being written.
#[derive(Default)]
struct Region {
    b: Builder,
    /// Values of the old reversed region.
    map: HashMap<ValueId, ValueId>,
    /// Values of forward regions, by the region's node.
    made: HashMap<(usize, ValueId), ValueId>,
    /// Arguments and inputs.
    carried: Vec<(ValueId, ValueId)>,
    consts: Vec<(ValueId, ValueId)>,
    stacked: Vec<(ValueId, ValueId)>,
}

impl Region {
    /// The input for an outer value, made if it is not there yet.
    fn take(
        &mut self,
        arg: ValueId,
        name: &str,
        ty: mdl_ir::tensor_type::Type,
        constant: bool,
    ) -> ValueId {
        let list = if constant { &mut self.consts } else { &mut self.stacked };
        if let Some((_, id)) = list.iter().find(|(a, _)| *a == arg) {
            return *id;
        }
        let id = self.b.input(name, ty);
        list.push((arg, id));
        id
    }
}
