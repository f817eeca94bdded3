//! Floating-point operations of a body: two for each multiply-add of a contraction, one for each
//! elementwise result.

use crate::graph::{Body, Node};
use crate::op::{Class, Op};
use crate::tensor_type::DType;

/// FLOPs of one run of the body. Masked work is not subtracted.
pub fn flops(body: &Body) -> u64 {
    body.nodes.iter().map(|n| node_flops(body, n)).sum()
}

/// FLOPs of one node.
pub fn node_flops(body: &Body, node: &Node) -> u64 {
    let out: u64 = node.results.iter().map(|r| body.ty(*r).elements()).sum();
    match &node.op {
        Op::Contract { axes } => {
            let a = body.ty(node.args[0]);
            let k: u64 = axes.iter().filter_map(|x| a.axis(*x)).map(|x| x.size).product();
            2 * out * k
        }
        Op::GroupedContract { axes, .. } => {
            let a = body.ty(node.args[0]);
            let k: u64 = axes.iter().filter_map(|x| a.axis(*x)).map(|x| x.size).product();
            2 * out * k
        }
        // Every row is in one group: the result's size without the groups, once for each row.
        Op::GroupedOuter { axis } => 2 * out / axis.size * body.ty(node.args[2]).elements(),
        Op::Reduce { .. } => body.ty(node.args[0]).elements(),
        Op::Repeat { count, body, .. } => count * flops(body),
        Op::Call { body, .. } => flops(body),
        Op::ScatterAdd { .. } => body.ty(node.args[1]).elements(),
        // Rounding is how a value is stored.
        Op::Cast(DType::Bf16) | Op::StochasticRound { .. } => 0,
        op if op.class() == Class::Elementwise => out,
        _ => 0,
    }
}
