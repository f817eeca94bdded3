//! Contractions by groups of rows, on a GPU: the rows are put in an order of their groups, and then
//! it is `contract` with rows, or with steps of k, that the order names.

use super::contract::{Grouping, Plan, launch_plan};
use super::reduce::across_units;
use super::{UNITS, cube_pos, cubes};
use crate::device::{Device, Slice};
use crate::region::plan::Reduction;
use cubecl::prelude::*;
use mdl_ir::kernel::grouped::{GroupedContractSpec, GroupedOuterSpec};

const EACH: usize = UNITS as usize;

/// A stable sort by counting: the place of a row is the number of rows of earlier groups, and of
/// earlier rows of its own. Behind the order it puts where each group begins: those of ids out of
/// range come last, and then the end.
#[cube(launch_unchecked)]
fn sort_rows(ids: &[i32], order: &mut [u32], #[comptime] rows: usize, #[comptime] groups: usize) {
    let mut scratch = Shared::<[f32]>::new_slice(EACH);
    let cube = cube_pos();
    if cube < comptime!(rows + groups + 2) {
        let is_row = cube < rows;
        let mut group = cube - rows;
        if is_row {
            group = group_of(ids[cube], groups);
        }
        // Counts below 2^24 are whole numbers in f32.
        let mut before = 0.0f32;
        for other in range_stepped(UNIT_POS as usize, rows, EACH) {
            let theirs = group_of(ids[other], groups);
            if theirs < group || is_row && theirs == group && other < cube {
                before += 1.0;
            }
        }
        let all = across_units(before, &mut scratch, EACH, 1usize, Reduction::Sum);
        if UNIT_POS == 0 {
            if is_row {
                order[all as usize] = cube as u32;
            } else {
                order[cube] = all as u32;
            }
        }
    }
}

/// The group of an id; `groups` for an id that names none.
#[cube]
fn group_of(id: i32, #[comptime] groups: usize) -> usize {
    let mut group = comptime!(groups).runtime();
    if id >= 0 && id < comptime!(groups as i32) {
        group = id as usize;
    }
    group
}

fn sort(device: &Device, rows: u32, groups: u32, ids: &Slice, order: &Slice) {
    // SAFETY: the order has room for all rows, and for a start of each group and two more.
    unsafe {
        sort_rows::launch_unchecked(
            device.client(),
            cubes(u64::from(rows) + u64::from(groups) + 2),
            CubeDim::new_1d(UNITS),
            device.buffer(ids),
            device.buffer(order),
            rows as usize,
            groups as usize,
        );
    }
    device.launched();
}

/// Buffers: a, w, ids, out, workspace.
pub(crate) fn launch_contract(device: &Device, spec: &GroupedContractSpec, args: &[Slice]) {
    if [spec.rows, spec.n].contains(&0) {
        return;
    }
    sort(device, spec.rows, spec.groups, &args[2], &args[4]);
    let plan = Plan::of(&spec.of_one_group(), false, device);
    let plan = plan.grouped(Grouping::Rows, spec.groups, [spec.share, 1]);
    launch_plan(device, plan, &args[..2], (&[], &[]), &args[3..4], &args[4]);
}

/// Buffers: a, b, ids, out, workspace.
pub(crate) fn launch_outer(device: &Device, spec: &GroupedOuterSpec, args: &[Slice]) {
    if [spec.groups, spec.m, spec.n].contains(&0) {
        return;
    }
    sort(device, spec.rows, spec.groups, &args[2], &args[4]);
    let plan = Plan::of(&spec.of_one_group(), false, device);
    let plan = plan.grouped(Grouping::Steps, spec.groups, [spec.share_a, spec.share_b]);
    launch_plan(device, plan, &args[..2], (&[], &[]), &args[3..4], &args[4]);
}
