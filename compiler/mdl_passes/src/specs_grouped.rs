//! Specs of grouped contractions from the types of their operands.
//!
//! `Builder` lays the operands out: rows first, and the table with the groups outermost.

use crate::region::elem;
use mdl_ir::graph::{Body, Node};
use mdl_ir::kernel::grouped::{GroupedContractSpec, GroupedOuterSpec};
use mdl_ir::op::Op;

pub fn contract(body: &Body, node: &Node, axis: &str) -> GroupedContractSpec {
    let ty = |i: usize| body.ty(node.args[i]);
    let (a, table, ids) = (ty(0), ty(1), ty(2));
    let out = body.ty(node.results[0]);
    let rows = ids.elements();
    let n = out.elements() / rows;
    let groups = table.axis(axis).map_or(1, |x| x.size);
    let k = table.elements() / groups / n;
    let Op::GroupedContract { axes, .. } = &node.op else { unreachable!("a grouped contraction") };
    GroupedContractSpec {
        rows: rows as u32,
        share: (rows * k / a.elements()) as u32,
        groups: groups as u32,
        n: n as u32,
        k: k as u32,
        transposed: table.axes.get(1).is_some_and(|x| axes.contains(&x.name)),
        elem: elem(a.dtype),
    }
}

pub fn outer(body: &Body, node: &Node) -> GroupedOuterSpec {
    let ty = |i: usize| body.ty(node.args[i]);
    let (a, b, ids) = (ty(0), ty(1), ty(2));
    let rows = ids.elements();
    let own = |t: &mdl_ir::tensor_type::Type| -> u64 {
        t.axes.iter().filter(|x| !ids.has(&x.name)).map(|x| x.size).product()
    };
    let (m, n) = (own(a), own(b));
    let share = |elements: u64, own: u64| (rows * own / elements) as u32;
    GroupedOuterSpec {
        rows: rows as u32,
        share_a: share(a.elements(), m),
        share_b: share(b.elements(), n),
        groups: body.ty(node.results[0]).axes[0].size as u32,
        m: m as u32,
        n: n as u32,
        elem: elem(a.dtype),
        out: elem(body.ty(node.results[0]).dtype),
    }
}
