//! Moves out of a repeated region what is the same in every iteration.
//!
//! Rotary tables depend on positions alone: inside a layer they would be computed once per layer
//! and pass. Values that depend on sources and constants of the region only are computed before it
//! and come in as constants. Sources themselves stay: kernels make them where they are used.

use mdl_ir::build::Builder;
use mdl_ir::graph::{Body, Graph, Node, ValueId};
use mdl_ir::op::{Class, Op};
use std::collections::{HashMap, HashSet};

pub fn hoist(graph: &Graph) -> Result<Graph, String> {
    let body = &graph.body;
    let mut b = Builder::default();
    let mut map = HashMap::new();
    for input in &body.inputs {
        map.insert(*input, b.input(body.name(*input), body.ty(*input).clone()));
    }
    for node in &body.nodes {
        match &node.op {
            Op::Repeat { .. } => hoist_region(&mut b, body, node, &mut map)?,
            _ => b.copy_node(body, node, &mut map)?,
        }
    }
    let outputs = body.outputs.iter().map(|o| map[o]).collect();
    Ok(Graph { body: b.finish(outputs), ..graph.clone() })
}

fn hoist_region(
    b: &mut Builder,
    outer: &Body,
    node: &Node,
    map: &mut HashMap<ValueId, ValueId>,
) -> Result<(), String> {
    let Op::Repeat { axis, count, reverse, carries, consts, body } = &node.op else {
        return Err("a repeated region".into());
    };
    let mut args: Vec<ValueId> = node.args.iter().map(|a| map[a]).collect();
    let (same, moved) = invariant(body, *carries, *consts);
    let mut outside: HashMap<ValueId, ValueId> = HashMap::new();
    for (i, input) in body.inputs.iter().enumerate().skip(*carries).take(*consts) {
        outside.insert(*input, args[i]);
    }
    let mut inner = Builder::default();
    let mut inside: HashMap<ValueId, ValueId> = HashMap::new();
    for input in &body.inputs {
        inside.insert(*input, inner.input(body.name(*input), body.ty(*input).clone()));
    }
    let stacked_from = carries + consts;
    let mut added = 0;
    for node in &body.nodes {
        if node.results.iter().all(|r| same.contains(r)) {
            b.copy_node(body, node, &mut outside)?;
        }
        if let [result] = node.results[..]
            && moved.contains(&result)
        {
            let id = inner.input(body.name(result), body.ty(result).clone());
            inner.body.inputs.pop();
            inner.body.inputs.insert(stacked_from + added, id);
            args.insert(stacked_from + added, outside[&result]);
            inside.insert(result, id);
            added += 1;
            continue;
        }
        inner.copy_node(body, node, &mut inside)?;
    }
    let outputs = body.outputs.iter().map(|o| inside[o]).collect();
    let op = Op::Repeat {
        axis: *axis,
        count: *count,
        reverse: *reverse,
        carries: *carries,
        consts: consts + added,
        body: Box::new(inner.finish(outputs)),
    };
    let results = node.results.iter().map(|r| outer.values[r.index()].clone());
    let ids = b.node(op, args, results.map(|v| (v.name, v.ty)).collect(), node.span);
    map.extend(node.results.iter().copied().zip(ids));
    Ok(())
}

/// Values that are the same in every iteration, and of those the ones that the rest of the region
/// uses.
fn invariant(body: &Body, carries: usize, consts: usize) -> (HashSet<ValueId>, HashSet<ValueId>) {
    let mut same: HashSet<ValueId> =
        body.inputs.iter().skip(carries).take(consts).copied().collect();
    let inputs = same.clone();
    let mut sources: HashSet<ValueId> = HashSet::new();
    for node in &body.nodes {
        let simple = matches!(node.op.class(), Class::Source | Class::Elementwise);
        if simple && node.args.iter().all(|a| same.contains(a)) {
            same.extend(&node.results);
            if node.op.class() == Class::Source {
                sources.extend(&node.results);
            }
        }
    }
    let mut moved: HashSet<ValueId> = HashSet::new();
    for node in &body.nodes {
        if !node.results.iter().all(|r| same.contains(r)) {
            moved.extend(node.args.iter().filter(|a| same.contains(a)).copied());
        }
    }
    moved.extend(body.outputs.iter().filter(|o| same.contains(o)).copied());
    moved.retain(|v| !inputs.contains(v) && !sources.contains(v));
    same.retain(|v| !inputs.contains(v));
    (same, moved)
}
