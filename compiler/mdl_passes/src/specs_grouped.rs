//! Specs of grouped contractions from the types of their operands.
//!
//! `Builder` lays the operands out: rows first, and the table with the groups outermost.

use crate::layout::word;
use crate::region::elem;
use mdl_ir::graph::{Body, Node};
use mdl_ir::kernel::grouped::{GroupedContractSpec, GroupedOuterSpec};
use mdl_ir::op::Op;
use mdl_symbol::Symbol;

pub fn contract(body: &Body, node: &Node, axis: Symbol) -> Result<GroupedContractSpec, String> {
    let ty = |i: usize| body.ty(node.args[i]);
    let (a, table, ids) = (ty(0), ty(1), ty(2));
    let out = body.ty(node.results[0]);
    let rows = ids.elements();
    let n = out.elements() / rows;
    let groups = table.axis(axis).map_or(1, |x| x.size);
    let k = table.elements() / groups / n;
    let Op::GroupedContract { axes, .. } = &node.op else { unreachable!("a grouped contraction") };
    Ok(GroupedContractSpec {
        rows: word(rows)?,
        share: word(rows * k / a.elements())?,
        groups: word(groups)?,
        n: word(n)?,
        k: word(k)?,
        transposed: table.axes.get(1).is_some_and(|x| axes.contains(&x.name)),
        elem: elem(a.dtype),
    })
}

pub fn outer(body: &Body, node: &Node) -> Result<GroupedOuterSpec, String> {
    let ty = |i: usize| body.ty(node.args[i]);
    let (a, b, ids) = (ty(0), ty(1), ty(2));
    let rows = ids.elements();
    let own = |t: &mdl_ir::tensor_type::Type| -> u64 {
        t.axes.iter().filter(|x| !ids.has(x.name)).map(|x| x.size).product()
    };
    let (m, n) = (own(a), own(b));
    let share = |elements: u64, own: u64| word(rows * own / elements);
    Ok(GroupedOuterSpec {
        rows: word(rows)?,
        share_a: share(a.elements(), m)?,
        share_b: share(b.elements(), n)?,
        groups: word(body.ty(node.results[0]).axes[0].size)?,
        m: word(m)?,
        n: word(n)?,
        elem: elem(a.dtype),
        out: elem(body.ty(node.results[0]).dtype),
    })
}
