//! Updates each parameter as soon as its gradient is made, so that no gradient is ever stored.
//!
//! Without clipping nothing waits for the norm of all gradients. A reversed region that emits the
//! gradients of a parameter's slices takes the slices of its moments as well, and emits the new
//! slices in place of the gradients; what belongs to no region is updated when its gradient is
//! there. Old and new values are the same memory, so an update comes after everything that may
//! read the old one: last in its region, and behind every region that has the parameter.
//!
//! The norm is still reported: each gradient is squared and summed where it is used, and the sums
//! are added up at the end.

use crate::optimise::{Formulas, NEW, SCALARS, SEED, UPDATED, decays};
use mdl_ir::build::Builder;
use mdl_ir::graph::{Body, Graph, InputRole, Node, OutputRole, Value, ValueId};
use mdl_ir::op::{Binary, Op, Unary};
use mdl_ir::place::Place;
use mdl_ir::tensor_type::{Axis, DType, Type};
use mdl_symbol::Symbol;
use std::collections::BTreeMap;

/// The graph with gradients, and in place of them the updated parameters and moments.
pub(crate) fn settle(graph: &Graph, formulas: &mut Formulas<'_>) -> Result<Graph, String> {
    let mut settling = Settling::of(graph, formulas)?;
    for p in 0..graph.params.len() {
        let decayed = decays(graph, p, formulas.optimizer);
        match settling.region_of(p) {
            Some(place) => settling.inside(p, place, decayed, formulas)?,
            None => settling.behind(p, decayed, formulas)?,
        }
    }
    settling.finish()
}

/// A parameter with its gradient, and what became of it.
#[derive(Debug)]
struct State {
    name: String,
    param: ValueId,
    grad: ValueId,
    /// Moments and a master copy, with what a slice of each is called and its type.
    kept: Vec<(ValueId, Value)>,
    /// The parameter and all of these after the update.
    new: Vec<ValueId>,
    /// The sum of the gradient's squares, or that of each of its slices.
    squares: Option<ValueId>,
}

struct Settling<'a> {
    graph: &'a Graph,
    body: Body,
    inputs: Vec<InputRole>,
    states: Vec<State>,
    /// The scale of gradients, which is one, the numbers of `SCALARS` behind the limit, and what a
    /// step rounds by.
    numbers: Vec<ValueId>,
    /// Nodes that come behind one of the graph's.
    behind: BTreeMap<usize, Vec<Node>>,
    /// What makes the scale, before everything else.
    first: Vec<Node>,
}

impl Settling<'_> {
    fn of<'a>(graph: &'a Graph, formulas: &Formulas<'_>) -> Result<Settling<'a>, String> {
        let mut b = Builder::resume(graph.body.clone());
        let mut inputs = graph.inputs.clone();
        let mut states = Vec::new();
        for (p, param) in graph.params.iter().enumerate() {
            let (name, slice) = (&param.name, param.slice_type());
            let at = graph.inputs.iter().position(|r| *r == InputRole::Param(p));
            let grad =
                graph.output(&OutputRole::Grad(p)).ok_or("every parameter has a gradient")?;
            let mut kept = Vec::new();
            for (prefix, role, dtype) in formulas.types.kept() {
                let name = format!("{prefix}.{name}");
                inputs.push(role(p));
                kept.push((
                    b.input(&name, param.ty.of(dtype)),
                    Value { name: name.into(), ty: slice.of(dtype) },
                ));
            }
            states.push(State {
                name: name.clone(),
                param: graph.body.inputs[at.ok_or("every parameter is used")?],
                grad: graph.body.outputs[grad],
                kept,
                new: Vec::new(),
                squares: None,
            });
        }
        let mut numbers = Vec::new();
        let seed = formulas.types.stochastic().then_some((SEED, DType::I32));
        for (name, dtype) in SCALARS[1..].iter().map(|s| (*s, DType::F32)).chain(seed) {
            numbers.push(b.input(name, Type::scalar(dtype)));
            inputs.push(InputRole::Scalar(name.to_string()));
        }
        let behind = BTreeMap::new();
        let (body, first) = (b.body, Vec::new());
        let mut settling = Settling { graph, body, inputs, states, numbers, behind, first };
        let (one, first) = settling.written(|b| Ok(b.number(1.0, Place::default())))?;
        settling.numbers.insert(0, one);
        Ok(Settling { first, ..settling })
    }

    /// Values that are made of those of the body, with the nodes that make them.
    fn written<T>(
        &mut self,
        write: impl FnOnce(&mut Builder) -> Result<T, String>,
    ) -> Result<(T, Vec<Node>), String> {
        let mut b = Builder::resume(std::mem::take(&mut self.body));
        let there = b.body.nodes.len();
        let made = write(&mut b)?;
        self.body = b.body;
        Ok((made, self.body.nodes.split_off(there)))
    }

    /// Nodes of the graph that read a value.
    fn readers(&self, value: ValueId) -> impl Iterator<Item = (usize, &Node)> {
        let nodes = self.graph.body.nodes.iter().enumerate();
        nodes.filter(move |(_, n)| n.args.contains(&value))
    }

    /// The reversed region that emits the gradient of a parameter's slices and is the last to read
    /// them, with the number of the result.
    fn region_of(&self, p: usize) -> Option<(usize, usize)> {
        let (param, grad) = (self.states[p].param, self.states[p].grad);
        self.graph.params[p].repeats?;
        let nodes = self.graph.body.nodes.iter();
        let (i, node) = nodes.enumerate().find(|(_, n)| n.results.contains(&grad))?;
        let Op::Repeat { reverse: true, carries, consts, .. } = node.op else { return None };
        let k = node.results.iter().position(|r| *r == grad)?;
        let outputs = self.graph.body.outputs.iter().filter(|o| **o == grad).count();
        let alone = outputs == 1 && self.readers(grad).next().is_none();
        let last = self.readers(param).all(|(reader, _)| reader <= i);
        let whole = node.args[..carries + consts].contains(&param);
        (k >= carries && alone && last && !whole).then_some((i, k))
    }

    /// The update of each slice, last in its region.
    fn inside(
        &mut self,
        p: usize,
        (i, k): (usize, usize),
        decayed: bool,
        formulas: &mut Formulas<'_>,
    ) -> Result<(), String> {
        let State { name, param, kept, .. } = &self.states[p];
        let mut region = Region::of(self.body.nodes[i].clone())?;
        let mut args = Vec::new();
        for number in &self.numbers {
            args.push(region.constant(*number, &self.body.values[number.index()]));
        }
        let (slice, grad) = (self.graph.params[p].slice_type(), region.body.outputs[k]);
        args.push(region.slice(*param, &Value { name: name.as_str().into(), ty: slice }));
        args.push(grad);
        for (value, inner) in kept {
            args.push(region.slice(*value, inner));
        }
        let mut b = Builder::resume(region.body);
        let squares = formulas.squares(&mut b, &[grad])?;
        let new = formulas.adamw(&mut b, &[name], args, decayed)?;
        region.body = b.body;
        region.body.outputs[k] = new[0];
        region.body.outputs.extend(new[1..].iter().chain([&squares]));
        let axis = Axis::new(region.axis, region.count);
        let first = region.node.results[k];
        self.body.values[first.index()].name = format!("new.{name}").into();
        let stacked = |what: &str, id: &ValueId| Value {
            name: format!("{what}.{name}").into(),
            ty: region.body.ty(*id).stacked(axis),
        };
        let mut results: Vec<Value> =
            NEW[1..].iter().zip(&new[1..]).map(|(what, id)| stacked(what, id)).collect();
        results.push(stacked("squares", &squares));
        let mut written = vec![first];
        for value in results {
            written.push(ValueId(self.body.values.len() as u32));
            self.body.values.push(value);
        }
        region.node.results.extend(&written[1..]);
        self.body.nodes[i] = region.done();
        self.states[p].squares = written.pop();
        self.states[p].new = written;
        Ok(())
    }

    /// The update of all of a parameter, when its gradient is there and nobody reads it any more.
    fn behind(
        &mut self,
        p: usize,
        decayed: bool,
        formulas: &mut Formulas<'_>,
    ) -> Result<(), String> {
        let State { name, param, grad, kept, .. } = &self.states[p];
        let (name, grad, numbers) = (name.clone(), *grad, self.numbers.clone());
        let kept = kept.iter().map(|(value, _)| *value);
        let args: Vec<ValueId> = numbers.into_iter().chain([*param, grad]).chain(kept).collect();
        let place = self.last_need(*param, grad);
        let ((squares, new), nodes) = self.written(|b| {
            let squares = formulas.squares(b, &[grad])?;
            Ok((squares, formulas.adamw(b, &[&name], args, decayed)?))
        })?;
        self.behind.entry(place).or_default().extend(nodes);
        (self.states[p].new, self.states[p].squares) = (new, Some(squares));
        Ok(())
    }

    /// The last node that reads the parameter, could come to read it to compute something again, or
    /// makes the gradient.
    fn last_need(&self, param: ValueId, grad: ValueId) -> usize {
        let nodes = || self.graph.body.nodes.iter().enumerate();
        let made = nodes().find(|(_, n)| n.results.contains(&grad)).map_or(0, |(i, _)| i);
        let readers: Vec<(usize, &Node)> = self.readers(param).collect();
        let region = |n: &Node| matches!(n.op, Op::Repeat { .. });
        let regions = readers.iter().any(|(_, n)| region(n));
        let last_region = nodes().filter(|(_, n)| regions && region(n)).map(|(i, _)| i).max();
        let last = readers.iter().map(|(i, _)| *i).max();
        [Some(made), last, last_region].into_iter().flatten().max().unwrap_or(0)
    }

    fn finish(mut self) -> Result<Graph, String> {
        let mut nodes = std::mem::take(&mut self.first);
        for (i, node) in std::mem::take(&mut self.body.nodes).into_iter().enumerate() {
            nodes.push(node);
            nodes.extend(self.behind.remove(&i).into_iter().flatten());
        }
        self.body.nodes = nodes;
        let kept = self.graph.outputs.iter().zip(&self.graph.body.outputs);
        let kept = kept.filter(|(role, _)| !matches!(role, OutputRole::Grad(_)));
        let (mut roles, mut outputs): (Vec<OutputRole>, Vec<ValueId>) =
            kept.map(|(role, id)| (role.clone(), *id)).unzip();
        let mut b = Builder::resume(self.body);
        roles.push(OutputRole::Value("grad_norm".into()));
        outputs.push(norm(&mut b, &self.states)?);
        for (p, state) in self.states.iter().enumerate() {
            roles.extend(UPDATED[..state.new.len()].iter().map(|role| role(p)));
            outputs.extend(&state.new);
        }
        let body = b.finish(outputs);
        Ok(Graph { inputs: self.inputs, outputs: roles, body, ..self.graph.clone() })
    }
}

/// The norm of all gradients.
fn norm(b: &mut Builder, states: &[State]) -> Result<ValueId, String> {
    let at = Place::default();
    let mut total = b.number(0.0, at);
    for squares in states.iter().filter_map(|s| s.squares) {
        let axes: Vec<Symbol> = b.ty(squares).axes.iter().map(|a| a.name).collect();
        let one = b.sum(squares, &axes, at)?;
        total = b.binary(Binary::Add, total, one, at)?;
    }
    b.unary(Unary::Sqrt, total, at)
}

/// A reversed region that is being added to.
struct Region {
    node: Node,
    body: Body,
    axis: Symbol,
    count: u64,
    carries: usize,
    consts: usize,
}

impl Region {
    fn of(node: Node) -> Result<Region, String> {
        let Op::Repeat { axis, count, carries, consts, body, .. } = &node.op else {
            return Err("a repeated region".into());
        };
        let (axis, body) = (*axis, (**body).clone());
        Ok(Region { axis, count: *count, carries: *carries, consts: *consts, body, node })
    }

    /// What an outer value is inside, as input number `at` if it does not come in yet.
    fn input(&mut self, value: ValueId, inner: Value, at: usize) -> ValueId {
        let id = ValueId(self.body.values.len() as u32);
        self.body.values.push(inner);
        self.body.inputs.insert(at, id);
        self.node.args.insert(at, value);
        id
    }

    fn constant(&mut self, value: ValueId, like: &Value) -> ValueId {
        let (from, to) = (self.carries, self.carries + self.consts);
        if let Some(n) = (from..to).find(|n| self.node.args[*n] == value) {
            return self.body.inputs[n];
        }
        self.consts += 1;
        self.input(value, like.clone(), to)
    }

    fn slice(&mut self, value: ValueId, like: &Value) -> ValueId {
        let (from, to) = (self.carries + self.consts, self.node.args.len());
        if let Some(n) = (from..to).find(|n| self.node.args[*n] == value) {
            return self.body.inputs[n];
        }
        self.input(value, like.clone(), to)
    }

    fn done(mut self) -> Node {
        if let Op::Repeat { body, consts, .. } = &mut self.node.op {
            (**body, *consts) = (self.body, self.consts);
        }
        self.node
    }
}
