//! Groups elementwise work, reductions and contractions into kernel-sized regions.
//!
//! A region has a space (the axes of its largest values) and rows (the space without the axes that
//! are walked). Values of the whole space and of its rows live in registers; only what leaves the
//! region is stored. A contraction takes elementwise work on its result as an epilogue: where its
//! result has that one use, and where a whole elementwise region is the only reader of the result.
//! What it does to an operand on its way in is its prologue, and a rotation of its result is an
//! epilogue on pairs of sums.
//! Sums over outer axes walk columns; they compute their elementwise input again instead of storing
//! it.
//!
//! Groups never make a cycle: a node joins a group only if none of its other inputs depends on the
//! group.

use crate::group::{Group, Groups, Kind};
use crate::offload::{around, between};
use crate::prologue::own_operands;
use mdl_ir::build::{Builder, axis_names};
use mdl_ir::graph::{Body, Graph, Node, Stage, ValueId};
use mdl_ir::op::{Class, Kernel, Op};
use mdl_symbol::Symbol;
use std::collections::{HashMap, HashSet};

pub fn fuse(graph: &Graph) -> Result<Graph, String> {
    let body = fuse_body(&graph.body)?;
    Ok(Graph { body, stage: Stage::Fused, ..graph.clone() })
}

fn fuse_body(body: &Body) -> Result<Body, String> {
    let body = own_operands(&own_columns(body)?)?;
    let groups = Groups::of(&body);
    let mut b = Builder::default();
    let mut map: HashMap<ValueId, ValueId> = HashMap::new();
    for input in &body.inputs {
        map.insert(*input, b.input(body.name(*input), body.ty(*input).clone()));
    }
    for unit in groups.order(&body) {
        match unit {
            Unit::Node(i) => emit_node(&mut b, &body, &body.nodes[i], &mut map)?,
            Unit::Group(g) => emit_group(&mut b, &body, g, &mut map)?,
        }
    }
    let outputs = body.outputs.iter().map(|o| map[o]).collect();
    Ok(b.finish(outputs))
}

/// One thing of the fused body: a node that stays as it is, or a group that becomes a call.
#[derive(Clone, Copy, Debug)]
pub enum Unit<'g> {
    Node(usize),
    Group(&'g Group),
}

fn emit_node(
    b: &mut Builder,
    body: &Body,
    node: &Node,
    map: &mut HashMap<ValueId, ValueId>,
) -> Result<(), String> {
    match &node.op {
        Op::Repeat { body: inner, .. } => {
            let (inner, arrive, leave) = between(inner);
            let fused = around(fuse_body(&inner)?, &arrive, &leave);
            b.copy_region(body, node, fused, map)
        }
        _ => b.copy_node(body, node, map),
    }
}

/// Writes a group as a call whose body holds its nodes, with the sources that they use.
fn emit_group(
    b: &mut Builder,
    body: &Body,
    group: &Group,
    map: &mut HashMap<ValueId, ValueId>,
) -> Result<(), String> {
    let members: HashSet<usize> = group.nodes.iter().copied().collect();
    let producers = body.producers();
    let users = body.users();
    let mut inner = Builder::default();
    let mut inside: HashMap<ValueId, ValueId> = HashMap::new();
    let mut args = Vec::new();
    for n in &group.nodes {
        for a in &body.nodes[*n].args {
            if inside.contains_key(a) || producers[a.index()].is_some_and(|p| members.contains(&p))
            {
                continue;
            }
            let source = producers[a.index()]
                .map(|p| &body.nodes[p])
                .filter(|node| node.op.class() == Class::Source && made_inside(&node.op, group));
            match source {
                Some(node) => inner.copy_node(body, node, &mut inside)?,
                None => {
                    inside.insert(*a, inner.input(body.name(*a), body.ty(*a).clone()));
                    args.push(map[a]);
                }
            }
        }
        inner.copy_node(body, &body.nodes[*n], &mut inside)?;
    }
    let leaves = |r: &ValueId| {
        users[r.index()].iter().any(|u| !members.contains(u)) || body.outputs.contains(r)
    };
    let made = group.nodes.iter().flat_map(|n| &body.nodes[*n].results);
    let leaving: Vec<ValueId> = made.filter(|r| leaves(r)).copied().collect();
    // Values that turn out to be the same inside leave once.
    let mut out: Vec<ValueId> = Vec::new();
    for r in &leaving {
        if out.iter().all(|o| inside[o] != inside[r]) {
            out.push(*r);
        }
    }
    let results = out.iter().map(|r| (body.name(*r), body.ty(*r).clone())).collect();
    let call = Op::Call {
        kernel: match group.kind {
            Kind::Contraction | Kind::Rotary => Kernel::Contraction,
            Kind::Elementwise | Kind::Rows | Kind::Columns => Kernel::Region,
        },
        axes: group.walked.clone(),
        body: Box::new(inner.finish(out.iter().map(|r| inside[r]).collect())),
    };
    let span = body.nodes[group.nodes[0]].span;
    let ids = b.node(call, args, results, span);
    for r in &leaving {
        let same = out.iter().position(|o| inside[o] == inside[r]);
        map.insert(*r, ids[same.ok_or("every value that leaves is a result")?]);
    }
    Ok(())
}

/// Can the group's kernel make this source itself? An epilogue knows no index, and axes that are
/// walked as one have none of their own: there a position is read from memory.
fn made_inside(source: &Op, group: &Group) -> bool {
    match source {
        Op::Position(axis) => match group.kind {
            Kind::Contraction | Kind::Rotary => false,
            Kind::Rows => group.walked.len() < 2 || !group.walked.contains(&axis.name),
            Kind::Elementwise | Kind::Columns => true,
        },
        _ => true,
    }
}

/// Gives every sum over outer axes an elementwise input of its own, so that it is a group by
/// itself.
fn own_columns(body: &Body) -> Result<Body, String> {
    let producers = body.producers();
    let mut b = Builder::default();
    let mut map: HashMap<ValueId, ValueId> = HashMap::new();
    for input in &body.inputs {
        map.insert(*input, b.input(body.name(*input), body.ty(*input).clone()));
    }
    for node in &body.nodes {
        if let Op::Reduce { kind, axes } = &node.op {
            let ty = body.ty(node.args[0]).clone();
            let (inner, outer) = split_reduction(&ty, axes);
            if !outer.is_empty() {
                let mut copies = HashMap::new();
                let mut x = copy_tree(&mut b, body, &producers, node.args[0], &map, &mut copies);
                for axes in [inner, outer].into_iter().filter(|a| !a.is_empty()) {
                    let result = b.ty(x).without(&axes);
                    let result = result.of(result.dtype.computed());
                    let name = body.name(node.results[0]);
                    let op = Op::Reduce { kind: *kind, axes };
                    x = b.node(op, vec![x], vec![(name, result)], node.span)[0];
                }
                map.insert(node.results[0], x);
                continue;
            }
        }
        b.copy_node(body, node, &mut map)?;
    }
    let outputs = body.outputs.iter().map(|o| map[o]).collect();
    Ok(b.finish(outputs))
}

/// The reduced axes at the end of memory, and the others.
fn split_reduction(ty: &mdl_ir::tensor_type::Type, axes: &[Symbol]) -> (Vec<Symbol>, Vec<Symbol>) {
    let tail = ty.axes.iter().rev().take_while(|a| axes.contains(&a.name)).count();
    let inner = axis_names(&ty.axes[ty.axes.len() - tail..]);
    let outer = axes.iter().filter(|a| !inner.contains(a)).copied().collect();
    (inner, outer)
}

/// A value with the elementwise work that makes it, written again.
fn copy_tree(
    b: &mut Builder,
    body: &Body,
    producers: &[Option<usize>],
    id: ValueId,
    map: &HashMap<ValueId, ValueId>,
    copies: &mut HashMap<ValueId, ValueId>,
) -> ValueId {
    if let Some(copy) = copies.get(&id) {
        return *copy;
    }
    let node = producers[id.index()].map(|p| &body.nodes[p]);
    let copy = match node {
        Some(node) if node.op.class() == Class::Elementwise => {
            let args =
                node.args.iter().map(|a| copy_tree(b, body, producers, *a, map, copies)).collect();
            let value = &body.values[id.index()];
            let result = vec![(value.name, value.ty.clone())];
            b.node(node.op.clone(), args, result, node.span)[0]
        }
        _ => map[&id],
    };
    copies.insert(id, copy);
    copy
}
