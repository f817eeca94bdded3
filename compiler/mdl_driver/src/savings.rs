//! What a compilation decided about each value that a layer saves for its gradient: read off the
//! graphs before and after the passes that decide.

use crate::pipeline::Trace;
use mdl_ir::graph::{Body, Graph, Node};
use mdl_ir::op::{Memory, Op};
use mdl_ir::place::Place;
use mdl_passes::recompute::residuals;
use mdl_passes::saving::Way;

/// A value that the gradients of all layers read.
#[derive(Clone, Debug, PartialEq)]
pub struct Saving {
    pub name: String,
    /// Where the model file says what it is.
    pub place: Place,
    /// All slices together.
    pub bytes: u64,
    pub way: Way,
}

/// All of them, region by region: those that are saved, then those that are computed again.
pub fn savings(trace: &Trace) -> Vec<Saving> {
    let named = |pass: &str| trace.stages.iter().position(|(name, _, _)| *name == pass);
    let (Some(chosen), Some(moved)) = (named("recompute"), named("offload")) else {
        return Vec::new();
    };
    let (before, after) = (&trace.stages[chosen - 1].1, &trace.stages[moved].1);
    let regions = forward(before).zip(forward(after));
    regions.flat_map(|(old, new)| [saved(after, new), made(before, old, new)].concat()).collect()
}

fn forward(graph: &Graph) -> impl Iterator<Item = (usize, &Node)> {
    let nodes = graph.body.nodes.iter().enumerate();
    nodes.filter(|(_, n)| matches!(n.op, Op::Repeat { reverse: false, .. }))
}

fn saved(graph: &Graph, (i, node): (usize, &Node)) -> Vec<Saving> {
    let Op::Repeat { carries, body, .. } = &node.op else { return Vec::new() };
    let users = graph.body.users();
    let reversed = |u: &usize| matches!(graph.body.nodes[*u].op, Op::Repeat { reverse: true, .. });
    let for_gradient = |k: &usize| users[node.results[*k].index()].iter().any(reversed);
    let results = (*carries..node.results.len()).filter(for_gradient);
    let one = |k: usize| {
        let producer = producer(body, k);
        let moved = producer.is_some_and(|n| n.op == Op::Transfer { to: Memory::Host });
        let way = if moved { Way::Away } else { Way::Kept };
        saving(&graph.body, (i, k), way)
    };
    results.map(one).collect()
}

/// Residuals of the region that its later form does not emit. Results keep their order and names.
fn made(graph: &Graph, (i, _): (usize, &Node), (_, new): (usize, &Node)) -> Vec<Saving> {
    let Op::Repeat { body, carries, .. } = &new.op else { return Vec::new() };
    let mut left: Vec<&str> =
        body.outputs[*carries..].iter().map(|o| body.name(*o).as_str()).collect();
    let mut found = Vec::new();
    for residual in residuals(graph).into_iter().filter(|r| r.node == i) {
        let Op::Repeat { body: old, .. } = &graph.body.nodes[i].op else { continue };
        let name = old.name(old.outputs[residual.result]);
        let is_it = |n: &&str| name == *n || n.strip_suffix(".host") == Some(&name);
        match left.iter().position(is_it) {
            Some(at) => drop(left.remove(at)),
            None => found.push(saving(&graph.body, (i, residual.result), Way::Made)),
        }
    }
    found
}

fn producer(body: &Body, output: usize) -> Option<&Node> {
    body.nodes.iter().find(|n| n.results.contains(&body.outputs[output]))
}

fn saving(outer: &Body, (i, k): (usize, usize), way: Way) -> Saving {
    let node = &outer.nodes[i];
    let place = match &node.op {
        Op::Repeat { body, .. } => producer(body, k).map_or(node.span, |n| n.span),
        _ => node.span,
    };
    let (name, ty) = (outer.name(node.results[k]).to_string(), outer.ty(node.results[k]));
    Saving { name, place, bytes: ty.bytes(), way }
}
