//! How many of a model's parameters take part in the computation of one token.
//!
//! The graph says it: where every row is multiplied by the matrix of its group, a token has as many
//! rows as it has groups, so the share of the parameter that it uses is rows / (tokens · groups).

use crate::graph::{Body, Graph, InputRole, ValueId};
use crate::op::Op;

/// How a parameter is read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Reading {
    /// Rows and groups of the grouped contraction with the most rows.
    grouped: Option<(u64, u64)>,
    /// By an operation that uses all of it.
    whole: bool,
}

/// Parameters that one token uses, a tied weight once; all of them where nothing is grouped.
/// `graph` is an entry of the model in any stage before fusion, with its batch as data.
pub fn active_params(graph: &Graph) -> u64 {
    let roles = graph.body.inputs.iter().zip(&graph.inputs);
    let tokens = roles.clone().find_map(|(id, role)| match role {
        InputRole::Data(name) if name == "tokens" => Some(graph.body.ty(*id).elements()),
        _ => None,
    });
    let origins: Vec<Option<usize>> = roles
        .map(|(_, role)| match role {
            InputRole::Param(p) => Some(*p),
            _ => None,
        })
        .collect();
    let mut readings = vec![Reading::default(); graph.params.len()];
    read(&graph.body, &origins, &mut readings);
    let active = |(param, reading): (&crate::graph::Param, &Reading)| {
        let all = param.ty.elements();
        match (reading.grouped, tokens) {
            (Some((rows, groups)), Some(tokens)) if !reading.whole => {
                let used = rows.div_ceil(tokens.max(1)).min(groups);
                (u128::from(all) * u128::from(used) / u128::from(groups.max(1))) as u64
            }
            _ => all,
        }
    };
    graph.params.iter().zip(&readings).map(active).sum()
}

/// Enters how the body reads parameters; `origins` says which one each of its inputs is.
fn read(body: &Body, origins: &[Option<usize>], readings: &mut [Reading]) {
    let mut origin: Vec<Option<usize>> = vec![None; body.values.len()];
    for (id, from) in body.inputs.iter().zip(origins) {
        origin[id.index()] = *from;
    }
    for node in &body.nodes {
        let from = |id: &ValueId| origin[id.index()];
        match &node.op {
            // The same numbers under other names or in another order.
            Op::Reorder { .. } | Op::Rename { .. } | Op::Split { .. } | Op::Merge { .. } => {
                origin[node.results[0].index()] = from(&node.args[0]);
            }
            Op::Cast(_) => origin[node.results[0].index()] = from(&node.args[0]),
            Op::GroupedContract { axis, .. } => {
                let Some(p) = from(&node.args[1]) else { continue };
                let rows = body.ty(node.args[2]).elements();
                let groups = body.ty(node.args[1]).axis(*axis).map_or(1, |a| a.size);
                let most = readings[p].grouped.filter(|(r, _)| *r >= rows);
                readings[p].grouped = Some(most.unwrap_or((rows, groups)));
            }
            Op::Repeat { body: inner, .. } | Op::Call { body: inner, .. } => {
                let inside: Vec<_> = node.args.iter().map(from).collect();
                read(inner, &inside, readings);
            }
            _ => node.args.iter().filter_map(from).for_each(|p| readings[p].whole = true),
        }
    }
}
