//! How far along a sequence axis the tables of a graph reach.
//!
//! A table that is gathered by position bounds the sequence. The graph does not say so in its
//! types, so whoever chooses the length asks here before anything runs.

use crate::graph::{Body, Graph, ValueId};
use crate::op::{Binary, Op};

/// A table that is gathered by position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Name of the table.
    pub table: String,
    /// Length of the longest sequence that stays within it.
    pub longest: u64,
}

/// The table that bounds sequences along `time` most.
pub fn reach(graph: &Graph, time: &str) -> Option<Reach> {
    let mut found = Vec::new();
    tables(&graph.body, time, &mut found);
    found.into_iter().min_by_key(|r| r.longest)
}

fn tables(body: &Body, time: &str, found: &mut Vec<Reach>) {
    let producers = body.producers();
    for node in &body.nodes {
        match &node.op {
            Op::Gather { axis } => {
                let Some(offset) = offset(body, &producers, node.args[1], time) else { continue };
                let rows = body.ty(node.args[0]).axis(*axis).map_or(0, |a| a.size);
                let longest = (rows as f64 - offset).max(0.0) as u64;
                found.push(Reach { table: body.name(node.args[0]).to_string(), longest });
            }
            Op::Repeat { body, .. } | Op::Call { body, .. } => tables(body, time, found),
            _ => {}
        }
    }
}

/// What is added to a position along `time` in this value, if that is all the value is.
fn offset(body: &Body, producers: &[Option<usize>], id: ValueId, time: &str) -> Option<f64> {
    let node = &body.nodes[producers[id.index()]?];
    let of = |i: usize| offset(body, producers, node.args[i], time);
    let constant = |i: usize| match body.nodes.get(producers[node.args[i].index()]?)?.op {
        Op::Const(c) => Some(c),
        _ => None,
    };
    match &node.op {
        Op::Position(axis) => (axis.name == time).then_some(0.0),
        Op::Cast(_) | Op::Broadcast { .. } | Op::Reorder { .. } => of(0),
        Op::Binary(Binary::Add) => match (of(0), of(1)) {
            (Some(x), None) => Some(x + constant(1)?),
            (None, Some(x)) => Some(x + constant(0)?),
            _ => None,
        },
        Op::Binary(Binary::Sub) => Some(of(0)? - constant(1)?),
        _ => None,
    }
}
