//! Moves what layers save for their gradients to the host's memory.
//!
//! A forward region emits what its reversed region needs, one slice for each iteration. What is
//! moved leaves at the end of its iteration, and comes back for the reversed one: both are nodes of
//! their own, so that the plan has their memory and their time. Values stay what they are, to the
//! bit. The pass comes after recomputation: what is made again need not wait anywhere.

use crate::layout::{slice_bytes, slice_type};
use crate::lower_transfer::SLOTS;
use mdl_ir::graph::{Body, Graph, Node, Value, ValueId};
use mdl_ir::op::{Memory, Op};
use mdl_ir::place::Place;

/// What moves in and out of the device's memory.
pub(crate) const COMES: Op = Op::Transfer { to: Memory::Device };
pub(crate) const LEAVES: Op = Op::Transfer { to: Memory::Host };

/// What a forward region saves for its gradient alone, and could keep in the host's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    pub name: String,
    /// All slices together, each in a place that is aligned.
    pub bytes: u64,
    /// One slice.
    pub slice: u64,
    /// The node of the forward region, and which of its results.
    pub node: usize,
    pub result: usize,
}

/// All of that, in the order of the regions and their results. A region with fewer iterations than
/// slots through which slices go has nothing to win.
pub fn saved(graph: &Graph) -> Vec<Saved> {
    let body = &graph.body;
    let users = body.users();
    let mut found = Vec::new();
    for (node, n) in body.nodes.iter().enumerate() {
        let Op::Repeat { carries, count, reverse: false, .. } = &n.op else { continue };
        for (result, id) in n.results.iter().enumerate().skip(*carries) {
            let users = &users[id.index()];
            let for_gradient = users.iter().all(|u| by_slices(&body.nodes[*u], *id));
            if *count < SLOTS || users.is_empty() || !for_gradient || body.outputs.contains(id) {
                continue;
            }
            let ty = body.ty(*id);
            let slice = slice_bytes(1, &slice_type(ty));
            let name = body.name(*id);
            found.push(Saved { name: name.to_string(), bytes: count * slice, slice, node, result });
        }
    }
    found
}

/// Is this a reversed region that sees the value by its slices alone?
fn by_slices(node: &Node, value: ValueId) -> bool {
    let Op::Repeat { reverse: true, carries, consts, .. } = node.op else { return false };
    !node.args[..carries + consts].contains(&value)
}

/// The graph in which these values wait in the host's memory.
pub fn offload(graph: &Graph, moved: &[Saved]) -> Graph {
    let mut out = graph.clone();
    let values: Vec<ValueId> =
        moved.iter().map(|m| graph.body.nodes[m.node].results[m.result]).collect();
    for (i, node) in out.body.nodes.iter_mut().enumerate() {
        let Op::Repeat { body, reverse, .. } = &mut node.op else { continue };
        if *reverse {
            let back = node.args.iter().zip(body.inputs.clone());
            let back = back.filter(|(a, _)| values.contains(a)).map(|(_, input)| input).collect();
            bring(body, back, &COMES, node.span);
        }
        for m in moved.iter().filter(|m| m.node == i) {
            send(body, m.result, &LEAVES, node.span);
        }
    }
    out
}

/// A region's body between its transfers, with the inputs that arrive and the outputs that leave,
/// by number. Fusion works on it: groups, and with them the order of sums, are those of the body
/// that moves nothing.
pub(crate) fn between(body: &Body) -> (Body, Vec<usize>, Vec<usize>) {
    let (mut inner, mut arrive, mut leave) = (body.clone(), Vec::new(), Vec::new());
    for node in &body.nodes {
        let Op::Transfer { to } = node.op else { continue };
        let (from, made) = (node.args[0], node.results[0]);
        match to {
            Memory::Device => arrive.extend(body.inputs.iter().position(|i| *i == from)),
            Memory::Host => leave.extend(body.outputs.iter().position(|o| *o == made)),
        }
        replace(&mut inner, made, from);
    }
    inner.nodes.retain(|n| !matches!(n.op, Op::Transfer { .. }));
    (inner, arrive, leave)
}

/// The body with its transfers again.
pub(crate) fn around(mut body: Body, arrive: &[usize], leave: &[usize]) -> Body {
    let inputs = arrive.iter().map(|n| body.inputs[*n]).collect();
    bring(&mut body, inputs, &COMES, Place::default());
    leave.iter().for_each(|n| send(&mut body, *n, &LEAVES, Place::default()));
    body
}

/// One value in place of another, wherever it is used.
pub(crate) fn replace(body: &mut Body, old: ValueId, new: ValueId) {
    let used = body.nodes.iter_mut().flat_map(|n| &mut n.args).chain(&mut body.outputs);
    used.filter(|a| **a == old).for_each(|a| *a = new);
}

/// A node that moves a value, with what is then in another place.
pub(crate) fn moved(body: &mut Body, value: ValueId, op: &Op, at: Place) -> (Node, ValueId) {
    let Value { name, ty } = body.values[value.index()].clone();
    let id = ValueId(body.values.len() as u32);
    let how = match op {
        Op::Transfer { to } => to.name(),
        op => op.name(),
    };
    body.values.push(Value { name: format!("{name}.{how}").into(), ty });
    (Node { op: op.clone(), args: vec![value], results: vec![id], span: at }, id)
}

/// A region emits a value where it is after this operation.
pub(crate) fn send(body: &mut Body, result: usize, op: &Op, at: Place) {
    let (node, id) = moved(body, body.outputs[result], op, at);
    body.nodes.push(node);
    body.outputs[result] = id;
}

/// A region begins with this operation on these inputs.
pub(crate) fn bring(body: &mut Body, inputs: Vec<ValueId>, op: &Op, at: Place) {
    let mut first = Vec::new();
    for input in inputs {
        let (node, id) = moved(body, input, op, at);
        replace(body, input, id);
        first.push(node);
    }
    body.nodes.splice(0..0, first);
}
