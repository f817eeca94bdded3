//! Grouped contractions: each row with the matrix of its group, and the gradient of those matrices.
//!
//! # What they compute
//!
//! - contract: out[r, :] = w[ids[r]] · a[r / share], 2·rows·n·k operations; reads the matrices of
//!   the groups that have rows, once per `piece_rows` rows, and no other.
//! - outer: out[e] = Σ_{r in e} a[r / share_a] ⊗ b[r / share_b], 2·rows·m·n operations; writes
//!   groups·m·n elements.
//!
//! One unit sorts the numbers of the rows by group, stably. Then units take pieces: of a group,
//! some rows and columns of its result. Rows are read through the order, f32 in place, and results
//! go to their own rows. A sum runs over k within a block, then block by block, whoever computes
//! it; rows whose ids name no group, the strays, come last in the order.

mod contract;
mod in_place;
mod outer;
pub(crate) mod sort;
#[cfg(test)]
mod tests;
mod tile;

use crate::contract_plan::{LayoutA, Plan};
use crate::device::{Device, Slice};
use cubecl::prelude::*;
use mdl_ir::kernel::ContractSpec;
use mdl_ir::kernel::grouped::{GroupedContractSpec, GroupedOuterSpec, GroupedParts};

/// A grouped contraction in a kernel's identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GroupedPlan {
    /// The contraction of one group that has all rows.
    pub one: Plan,
    pub rows: usize,
    pub groups: usize,
    pub share_a: usize,
    pub share_b: usize,
    /// Elements of one unit's part of the workspace.
    pub own: usize,
    /// Rows and columns of the result in a piece.
    pub piece_rows: usize,
    pub piece_columns: usize,
}

/// Pieces each unit should find, so that the last to end is not long behind the others.
const PIECES_PER_UNIT: usize = 4;

impl GroupedPlan {
    fn new(rows: u32, groups: u32, shares: [u32; 2], one: &ContractSpec, device: &Device) -> Self {
        let parts = GroupedParts::of(rows, groups, one, device.units());
        let plan = Plan {
            block_depth: parts.depth as usize,
            packed_b_elements: parts.packed_b as usize,
            packed_a_elements: parts.packed_a as usize,
            tile_elements: parts.tile as usize,
            partial_elements: parts.partial as usize,
            ..Plan::untuned(one, device)
        };
        let wanted = device.units() as usize * PIECES_PER_UNIT;
        // The narrowest are whole tiles on every device, and half of the next ones.
        let columns = GroupedParts::COLUMNS as usize;
        let enough = |c: &usize| groups as usize * plan.columns.div_ceil(*c) >= wanted;
        let piece_columns = [columns, columns / 2].into_iter().find(enough).unwrap_or(columns / 4);
        GroupedPlan {
            rows: rows as usize,
            groups: groups as usize,
            share_a: shares[0] as usize,
            share_b: shares[1] as usize,
            own: parts.own() as usize,
            piece_rows: GroupedParts::PIECE_ROWS as usize,
            piece_columns,
            one: plan,
        }
    }
}

/// The workspace's parts: counters, sorted rows, and what units have for themselves.
fn split<'a>(parts: GroupedParts, workspace: &Slice<'a>) -> [Slice<'a>; 3] {
    let (counters, sorted) = (parts.counters * 4, parts.sorted * 4);
    let rest = workspace.bytes - counters - sorted;
    [
        workspace.part(0, counters),
        workspace.part(counters, sorted),
        workspace.part(counters + sorted, rest),
    ]
}

/// Buffers: a, w, ids, out, workspace.
pub(crate) fn launch_contract(device: &Device, spec: &GroupedContractSpec, args: &[Slice]) {
    let one = spec.of_one_group();
    if spec.rows == 0 || spec.n == 0 {
        return;
    }
    let plan = GroupedPlan::new(spec.rows, spec.groups, [spec.share, 1], &one, device);
    let parts = GroupedParts::of(spec.rows, spec.groups, &one, device.units());
    let [counters, sorted, rest] = split(parts, &args[4]);
    if spec.in_place() {
        let chunk = in_place::chunk_columns(&plan);
        // SAFETY: the plan's sizes are those of the buffers, as the spec promises, and no id that
        // is out of range leads to an access.
        unsafe {
            in_place::grouped_in_place::launch_unchecked(
                device.client(),
                CubeCount::new_single(),
                device.cube_dim(),
                device.vector_width(),
                device.buffer(&args[0]),
                device.buffer(&args[1]),
                device.buffer(&args[2]),
                device.buffer(&args[3]),
                device.buffer(&counters),
                device.buffer(&sorted),
                device.buffer(&rest),
                device.unaligned(&args[0], plan.one.elems()),
                plan,
                chunk,
            );
        }
    } else {
        // SAFETY: as above.
        unsafe {
            contract::grouped_contract::launch_unchecked(
                device.client(),
                CubeCount::new_single(),
                device.cube_dim(),
                device.vector_width(),
                device.buffer(&args[0]),
                device.buffer(&args[1]),
                device.buffer(&args[2]),
                device.buffer(&args[3]),
                device.buffer(&counters),
                device.buffer(&sorted),
                device.buffer(&rest),
                device.unaligned(&args[0], plan.one.elems()),
                plan,
            );
        }
    }
    device.launched();
}

/// Buffers: a, b, ids, out, workspace.
pub(crate) fn launch_outer(device: &Device, spec: &GroupedOuterSpec, args: &[Slice]) {
    let one = spec.of_one_group();
    if [spec.groups, spec.m, spec.n].contains(&0) {
        return;
    }
    let shares = [spec.share_a, spec.share_b];
    let mut plan = GroupedPlan::new(spec.rows, spec.groups, shares, &one, device);
    // Whatever its sizes, a is packed: its rows are those of the order.
    plan.one.layout_a = LayoutA::Columns;
    let parts = GroupedParts::of(spec.rows, spec.groups, &one, device.units());
    let [counters, sorted, rest] = split(parts, &args[4]);
    // SAFETY: as in `launch_contract`.
    unsafe {
        outer::grouped_outer::launch_unchecked(
            device.client(),
            CubeCount::new_single(),
            device.cube_dim(),
            device.vector_width(),
            plan.one.tile_rows,
            device.buffer(&args[0]),
            device.buffer(&args[1]),
            device.buffer(&args[2]),
            device.buffer(&args[3]),
            device.buffer(&counters),
            device.buffer(&sorted),
            device.buffer(&rest),
            device.unaligned(&args[0], plan.one.elems()),
            plan,
        );
    }
    device.launched();
}
