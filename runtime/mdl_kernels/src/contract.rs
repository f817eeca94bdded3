//! Contractions: packed, cache-blocked and register-tiled matrix products in every transposition.
//!
//! # What it computes
//!
//! c[batch, m, n] = epilogue(Σ_k prologue(a[batch, m, k]) · b[batch, k, n]): 2·batch·m·n·k
//! operations; it reads a once per `block_columns` columns and b once, and writes c once per
//! `block_depth` steps of k. The order of summation is k within a block, then block by block.

use crate::contract_pack::{Block, pack_a, pack_b};
use crate::contract_plan::{LayoutA, Plan, offset_of};
use crate::contract_tile::{Finish, finish_tile, multiply, store_tile};
use crate::device::{Device, Slice};
use cubecl::prelude::*;
use mdl_ir::kernel::ContractSpec;

/// Where a unit keeps its things in the workspace, and what it works on.
#[derive(CubeType, Clone, Copy)]
struct Place {
    unit: usize,
    packed_b: usize,
    partial: usize,
    packed_a: usize,
    tile: usize,
    batch: usize,
    base_a: usize,
}

#[cube(launch_unchecked)]
fn contract<N: Size, M: Size>(
    a: &[f32],
    b: &[f32],
    prologue_inputs: &Sequence<Box<[f32]>>,
    epilogue_inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    workspace: &mut [f32],
    _unaligned: &[f32],
    #[comptime] plan: Plan,
) {
    let unit = UNIT_POS as usize;
    let units = comptime!(plan.units);
    let split = comptime!(plan.split_batch);
    let batches = comptime!(plan.batches);
    let shared = comptime!(plan.packed_b_elements + plan.partial_elements);
    let own = comptime!(plan.packed_a_elements + plan.tile_elements);
    let copies = comptime!(if split { units } else { 1 });
    let mut packed_b = 0usize.runtime();
    let mut first = 0usize.runtime();
    let mut end = batches.runtime();
    if comptime!(split) {
        packed_b = unit * shared;
        first = batches * unit / units;
        end = batches * (unit + 1) / units;
    }
    let packed_a = copies * shared + unit * own;
    for batch in first..end {
        let place = Place {
            unit,
            packed_b,
            partial: packed_b + comptime!(plan.packed_b_elements),
            packed_a,
            tile: packed_a + comptime!(plan.packed_a_elements),
            batch,
            base_a: offset_of(batch, comptime!(plan.batch.clone()), false),
        };
        let base_b = offset_of(batch, comptime!(plan.batch.clone()), true);
        for jc in 0..comptime!(plan.columns.div_ceil(plan.block_columns)) {
            for pc in 0..comptime!(plan.depth.div_ceil(plan.block_depth)) {
                let column = jc * comptime!(plan.block_columns);
                let k = pc * comptime!(plan.block_depth);
                let block = Block {
                    k,
                    depth: min(comptime!(plan.block_depth), comptime!(plan.depth) - k),
                    column,
                    columns: min(comptime!(plan.block_columns), comptime!(plan.columns) - column),
                };
                let plan_b = comptime!(plan.clone());
                if comptime!(split) {
                    pack_b::<N>(b, base_b, workspace, packed_b, &block, 0, 1, plan_b);
                } else {
                    sync_cube();
                    pack_b::<N>(b, base_b, workspace, packed_b, &block, unit, units, plan_b);
                    sync_cube();
                }
                multiply_block::<N, M>(
                    a,
                    prologue_inputs,
                    epilogue_inputs,
                    outputs,
                    workspace,
                    &place,
                    &block,
                    comptime!(plan.clone()),
                );
            }
        }
    }
}

/// A unit's share of one block: its rows, in groups that stay in its cache, times its columns.
#[cube]
fn multiply_block<N: Size, M: Size>(
    a: &[f32],
    prologue_inputs: &Sequence<Box<[f32]>>,
    epilogue_inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    workspace: &mut [f32],
    place: &Place,
    block: &Block,
    #[comptime] plan: Plan,
) {
    let height = comptime!(plan.tile_rows);
    let width = comptime!(plan.tile_vectors * plan.width);
    let panels_m = comptime!(plan.rows.div_ceil(plan.tile_rows));
    let panels_n = block.columns.div_ceil(width);
    let mut first_m = 0usize.runtime();
    let mut end_m = panels_m.runtime();
    let mut first_n = 0usize.runtime();
    let mut end_n = panels_n;
    if comptime!(!plan.split_batch) {
        let units_m = comptime!(plan.units_m);
        let units_n = comptime!(plan.units_n);
        first_m = panels_m * (place.unit / units_n) / units_m;
        end_m = panels_m * (place.unit / units_n + 1) / units_m;
        first_n = panels_n * (place.unit % units_n) / units_n;
        end_n = panels_n * (place.unit % units_n + 1) / units_n;
    }
    let group = comptime!(plan.block_rows / plan.tile_rows);
    for g in 0..(end_m - first_m).div_ceil(group) {
        let group_m = first_m + g * group;
        let group_end = min(group_m + group, end_m);
        pack_a::<N, M>(
            a,
            place.base_a,
            prologue_inputs,
            workspace,
            place.packed_a,
            group_m * height,
            (group_end - group_m) * height,
            block,
            comptime!(plan.clone()),
        );
        for panel_n in first_n..end_n {
            for panel_m in group_m..group_end {
                multiply_tile::<N>(
                    a,
                    epilogue_inputs,
                    outputs,
                    workspace,
                    place,
                    block,
                    panel_m,
                    panel_m - group_m,
                    panel_n,
                    comptime!(plan.clone()),
                );
            }
        }
    }
}

#[cube]
fn multiply_tile<N: Size>(
    a: &[f32],
    epilogue_inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    workspace: &mut [f32],
    place: &Place,
    block: &Block,
    panel_m: usize,
    packed_panel: usize,
    panel_n: usize,
    #[comptime] plan: Plan,
) {
    let height = comptime!(plan.tile_rows);
    let width = comptime!(plan.tile_vectors * plan.width);
    let row = panel_m * height;
    let column = panel_n * width;
    let rows = min(height, comptime!(plan.rows) - row);
    let columns = min(width, block.columns - column);
    let first = block.k == 0 && comptime!(!plan.accumulate);
    let last = block.k + block.depth == comptime!(plan.depth);
    let offsets = row_offsets(place, block, row, packed_panel, comptime!(plan.clone()));
    let packed_b = place.packed_b + panel_n * width * block.depth;
    let out_row = place.batch * comptime!(plan.rows) + row;
    let mut stored = false.runtime();
    #[unroll]
    for narrow in 0..comptime!(plan.tile_vectors) {
        let vectors = comptime!(narrow + 1);
        let here = columns.div_ceil(N::value()) == vectors;
        if here {
            let mut sums = Array::<Vector<f32, N>>::new(comptime!(plan.tile_rows * vectors));
            let step = comptime!(match plan.layout_a {
                LayoutA::Direct | LayoutA::Rows => 1,
                LayoutA::Columns | LayoutA::Gathered => plan.tile_rows,
            });
            if comptime!(plan.layout_a == LayoutA::Direct) {
                multiply::<N>(
                    a, &offsets, &*workspace, packed_b, block.depth, &mut sums, step, height, vectors, width,
                );
            } else {
                multiply::<N>(
                    &*workspace, &offsets, &*workspace, packed_b, block.depth, &mut sums, step, height, vectors,
                    width,
                );
            }
            let whole = rows == height && columns == vectors * N::value();
            if comptime!(plan.direct) && whole {
                let at = out_row * comptime!(plan.columns) + block.column + column;
                let stride = comptime!(plan.columns);
                store_tile::<N>(
                    outputs.index_mut(0usize), at, &sums, !first, height, vectors, stride,
                );
                stored = true;
            } else {
                store_tile::<N>(workspace, place.tile, &sums, false, height, vectors, width);
            }
        }
    }
    if !stored {
        let finish = Finish {
            tile: place.tile,
            row: out_row,
            column: block.column + column,
            rows,
            columns,
            partial: place.partial + row * comptime!(plan.block_columns) + column,
            first,
            last,
        };
        finish_tile::<N>(workspace, epilogue_inputs, outputs, &finish, width, plan);
    }
}

/// Where each row of a tile starts in a or in the packed block.
#[cube]
fn row_offsets(
    place: &Place,
    block: &Block,
    row: usize,
    packed_panel: usize,
    #[comptime] plan: Plan,
) -> Array<usize> {
    let height = comptime!(plan.tile_rows);
    let mut offsets = Array::<usize>::new(height);
    #[unroll]
    for r in 0..height {
        if comptime!(plan.layout_a == LayoutA::Direct) {
            let m = min(row + r, comptime!(plan.rows - 1));
            offsets[r] = place.base_a + offset_of(m, comptime!(plan.m.clone()), false) + block.k;
        } else if comptime!(plan.layout_a == LayoutA::Rows) {
            let stride = comptime!(plan.block_depth + 16);
            offsets[r] = place.packed_a + (packed_panel * height + r) * stride;
        } else {
            let panel = comptime!(plan.tile_rows * plan.block_depth);
            offsets[r] = place.packed_a + packed_panel * panel + r;
        }
    }
    offsets
}

pub(crate) fn launch(device: &Device, spec: &ContractSpec, args: &[Slice]) {
    launch_plan(device, Plan::of(spec, device), args);
}

/// A contraction without an epilogue, added to what the output holds.
pub(crate) fn launch_accumulate(device: &Device, spec: &ContractSpec, args: &[Slice]) {
    assert!(spec.epilogue.is_empty(), "sums go to the output as they are");
    let plan = Plan { accumulate: true, skinny: false, ..Plan::of(spec, device) };
    launch_plan(device, plan, args);
}

fn launch_plan(device: &Device, plan: Plan, args: &[Slice]) {
    if plan.rows * plan.columns * plan.batches == 0 {
        return;
    }
    let (prologues, epilogues) = (plan.prologue_views.len(), plan.epilogue_views.len());
    assert!(args.len() >= 4 + prologues + epilogues, "one slice per buffer of the spec");
    let buffers = |slices: &[Slice]| -> SequenceArg<Box<[f32]>> {
        slices.iter().map(|slice| device.buffer(slice)).collect()
    };
    if plan.skinny {
        return crate::contract_skinny::launch(device, plan, args);
    }
    let (inputs, rest) = args[2..].split_at(prologues);
    let (extra, rest) = rest.split_at(epilogues);
    let (workspace, outputs) = rest.split_last().expect("invariant: the workspace comes last");
    // SAFETY: the plan's sizes and strides are those of the buffers, as the spec promises.
    unsafe {
        contract::launch_unchecked(
            device.client(),
            CubeCount::new_single(),
            device.cube_dim(),
            plan.width,
            plan.tile_rows,
            device.buffer(&args[0]),
            device.buffer(&args[1]),
            buffers(inputs),
            buffers(extra),
            buffers(outputs),
            device.buffer(workspace),
            device.unaligned(&args[0]),
            plan,
        );
    }
    device.launched();
}
