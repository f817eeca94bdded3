//! Divides the state among ranks: parameters are gathered where they are used, gradients are
//! reduced where they are made (see `movement`), and the norm is a sum over ranks.
//!
//! What is gathered has a slot that the next layer takes again, so a rank has its pieces of the
//! state and about two layers of all of it. The pass comes after fusion, so that no kernel depends
//! on it; the sums over ranks are the only ones that it adds.

use crate::movement::{Ways, with_movement};
use crate::offload::{moved, replace};
use crate::request::Division;
use mdl_ir::graph::Graph;
use mdl_ir::op::{Collective, Kernel, Op};

/// A fused graph of what one rank does.
pub fn shard(graph: &Graph, division: Division) -> Graph {
    let (within, across) = (division.within(), division.across());
    let several = |group| Some(group).filter(|g: &mdl_ir::op::Group| g.ranks > 1);
    let of = |kind| move |group| Op::Collective { kind, group };
    let reduced = several(within).map(of(Collective::ReduceScatter));
    let summed = several(across).map(of(Collective::AllReduce));
    let ways = Ways {
        comes: several(within).map(of(Collective::AllGather)),
        leaves: reduced.into_iter().chain(summed).collect(),
    };
    let mut sharded = with_movement(graph, &ways);
    if let Some(group) = several(within) {
        sum_of_norms(&mut sharded, &Op::Collective { kind: Collective::AllReduce, group });
    }
    sharded
}

/// The squares of a rank's pieces are a part of the sum.
fn sum_of_norms(graph: &mut Graph, sum: &Op) {
    let body = &mut graph.body;
    let squares = |op: &Op| matches!(op, Op::Call { kernel: Kernel::SumOfSquares, .. });
    let Some(at) = body.nodes.iter().position(|n| squares(&n.op)) else { return };
    let own = body.nodes[at].results[0];
    let (node, all) = moved(body, own, sum, body.nodes[at].span);
    replace(body, own, all);
    body.nodes.insert(at + 1, node);
}
