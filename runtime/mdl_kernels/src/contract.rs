//! Contractions: packed, cache-blocked and register-tiled matrix products in every transposition.
//!
//! # What it computes
//!
//! c[batch, m, n] = epilogue(Σ_k a[batch, m, k] · b[batch, k, n]), with a prologue on a or b:
//! 2·batch·m·n·k operations; it reads a once per `block_columns` columns and b once, and writes c
//! once per `block_depth` steps of k. The order of summation is k within a block, then block by
//! block.

use crate::contract_pack::{Block, pack_a, pack_b, pack_b_pieces};
use crate::contract_pairs::words;
use crate::contract_plan::{LayoutA, Plan, offset_of};
use crate::contract_tile::{
    Finish, Place, dense_rows, expect_tile, finish_rounded, finish_tile, multiply, multiply_tiles,
    row_offsets, store_tile,
};
use crate::device::{Device, Slice};
use crate::products::Products;
use crate::tiles::{self, SIDE};
use cubecl::prelude::*;
use mdl_ir::kernel::{ContractBlocks, ContractSpec};

/// The counters by which units take work, each in a cache line of its own.
const COUNTERS: u64 = ContractBlocks::COUNTERS;
const PACKED: usize = 0;
const MULTIPLIED: usize = 16;
const BATCHES: usize = 32;

#[cube(launch_unchecked, address_type = "u64")]
fn contract<N: Size, M: Size>(
    a: &[f32],
    b: &[f32],
    prologue_inputs: &Sequence<Box<[f32]>>,
    epilogue_inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    counters: &[Atomic<u32>],
    workspace: &mut [f32],
    _unaligned: &[f32],
    #[comptime] plan: Plan,
) {
    let unit = UNIT_POS as usize;
    let shared = comptime!(plan.packed_b_elements + plan.partial_elements);
    let own = comptime!(plan.packed_a_elements + plan.tile_elements);
    let copies = comptime!(if plan.split_batch { plan.units } else { 1 });
    let packed_a = copies * shared + unit * own;
    if UNIT_POS == 0 {
        counters[PACKED].store(0);
        counters[BATCHES].store(0);
    }
    if comptime!(plan.products == Products::Tiles) {
        tiles::configure(workspace, packed_a);
    }
    sync_cube();
    let mut batch = 0usize.runtime();
    let mut packed_b = 0usize.runtime();
    if comptime!(plan.split_batch) {
        batch = take(counters, BATCHES);
        packed_b = unit * shared;
    }
    while batch < comptime!(plan.batches) {
        let place = Place {
            packed_b,
            partial: packed_b + comptime!(plan.packed_b_elements),
            packed_a,
            tile: packed_a + comptime!(plan.packed_a_elements),
            batch,
            base_a: offset_of(batch, comptime!(plan.batch.clone()), false),
            base_b: offset_of(batch, comptime!(plan.batch.clone()), true),
        };
        contract_batch::<N, M>(
            a,
            b,
            prologue_inputs,
            epilogue_inputs,
            outputs,
            counters,
            workspace,
            &place,
            comptime!(plan.clone()),
        );
        if comptime!(plan.split_batch) {
            batch = take(counters, BATCHES);
        } else {
            batch += 1;
        }
    }
    if comptime!(plan.products == Products::Tiles) {
        tiles::release();
    }
}

/// One batch, block by block of columns and of k.
#[cube]
fn contract_batch<N: Size, M: Size>(
    a: &[f32],
    b: &[f32],
    prologue_inputs: &Sequence<Box<[f32]>>,
    epilogue_inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    counters: &[Atomic<u32>],
    workspace: &mut [f32],
    place: &Place,
    #[comptime] plan: Plan,
) {
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
            pack_block::<N>(b, prologue_inputs, counters, workspace, place, &block, plan_b);
            multiply_block::<N, M>(
                a,
                prologue_inputs,
                epilogue_inputs,
                outputs,
                counters,
                workspace,
                place,
                &block,
                comptime!(plan.clone()),
            );
        }
    }
}

/// The next number of a counter: who takes which piece differs from run to run, but what a piece
/// computes does not.
#[cube]
pub(crate) fn take(counters: &[Atomic<u32>], #[comptime] which: usize) -> usize {
    usize::cast_from(counters[which].fetch_add(1))
}

/// All units pack a block of b together, or a unit packs its own.
#[cube]
fn pack_block<N: Size>(
    b: &[f32],
    inputs: &Sequence<Box<[f32]>>,
    counters: &[Atomic<u32>],
    workspace: &mut [f32],
    place: &Place,
    block: &Block,
    #[comptime] plan: Plan,
) {
    let pieces = pack_b_pieces(block, comptime!(plan.clone()));
    if comptime!(plan.split_batch) {
        for piece in 0..pieces {
            let plan = comptime!(plan.clone());
            pack_b::<N>(b, place.base_b, inputs, workspace, place.packed_b, block, piece, plan);
        }
    } else {
        // No unit may still read the block before, or take from the counter that is reset here.
        sync_cube();
        if UNIT_POS == 0 {
            counters[MULTIPLIED].store(0);
        }
        let mut piece = take(counters, PACKED);
        while piece < pieces {
            let plan = comptime!(plan.clone());
            pack_b::<N>(b, place.base_b, inputs, workspace, place.packed_b, block, piece, plan);
            piece = take(counters, PACKED);
        }
        sync_cube();
        if UNIT_POS == 0 {
            counters[PACKED].store(0);
        }
    }
}

/// The pieces of one block that this unit takes.
#[cube]
fn multiply_block<N: Size, M: Size>(
    a: &[f32],
    prologue_inputs: &Sequence<Box<[f32]>>,
    epilogue_inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    counters: &[Atomic<u32>],
    workspace: &mut [f32],
    place: &Place,
    block: &Block,
    #[comptime] plan: Plan,
) {
    let height = comptime!(plan.tile_rows);
    let panels_m = comptime!(plan.rows.div_ceil(plan.tile_rows));
    let panels_n = block.columns.div_ceil(comptime!(plan.tile_vectors * plan.width));
    let groups = comptime!(panels_m.div_ceil(plan.piece_panels));
    let parts = comptime!(plan.column_pieces);
    let mut piece = 0usize.runtime();
    if comptime!(!plan.split_batch) {
        piece = take(counters, MULTIPLIED);
    }
    while piece < comptime!(groups * parts) {
        let group_m = piece / parts * comptime!(plan.piece_panels);
        let group_end = min(group_m + comptime!(plan.piece_panels), panels_m);
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
        for panel_n in panels_n * (piece % parts) / parts..panels_n * (piece % parts + 1) / parts {
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
        if comptime!(plan.split_batch) {
            piece += 1;
        } else {
            piece = take(counters, MULTIPLIED);
        }
    }
}

/// The sums of a tile of `vectors` vectors over `depth` words; a is where its layout puts it.
#[cube]
pub(crate) fn sum_tile<N: Size>(
    a: &[f32],
    workspace: &[f32],
    offsets: &Array<usize>,
    packed_b: usize,
    depth: usize,
    sums: &mut Array<Vector<f32, N>>,
    #[comptime] vectors: usize,
    #[comptime] plan: Plan,
) {
    let rows = comptime!(plan.tile_rows);
    let width = comptime!(plan.tile_vectors * plan.width);
    let step = comptime!(match plan.layout_a {
        LayoutA::Direct | LayoutA::Rows => 1,
        LayoutA::Columns | LayoutA::Gathered => plan.tile_rows,
    });
    let b = workspace;
    let products = comptime!(plan.products);
    if comptime!(plan.layout_a == LayoutA::Direct) {
        multiply::<N>(a, offsets, b, packed_b, depth, sums, step, rows, vectors, width, products);
    } else {
        multiply::<N>(b, offsets, b, packed_b, depth, sums, step, rows, vectors, width, products);
    }
}

/// Multiplies one tile for one block of k and hands its sums on.
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
    let out_row = place.batch * comptime!(plan.rows) + row;
    let at = Finish {
        tile: place.tile,
        row: out_row,
        column: block.column + column,
        rows: min(height, comptime!(plan.rows) - row),
        columns: min(width, block.columns - column),
        partial: place.partial + row * comptime!(plan.block_columns) + column,
        first: block.k == 0 && comptime!(!plan.accumulate),
        last: block.k + block.depth == comptime!(plan.depth),
    };
    let depth = words(block.depth, comptime!(plan.products));
    let packed_b = place.packed_b + panel_n * width * depth;
    let stored = if comptime!(plan.products == Products::Tiles) {
        let plan = comptime!(plan.clone());
        let mut from_a = place.packed_a + packed_panel * height * depth;
        if comptime!(plan.layout_a == LayoutA::Direct) {
            let m = offset_of(row, comptime!(plan.m.clone()), false);
            from_a = (place.base_a + m + block.k) / 2;
        }
        sum_in_tiles(a, outputs, workspace, &at, from_a, packed_b, depth, plan)
    } else {
        let offsets = row_offsets(place, block, row, packed_panel, comptime!(plan.clone()));
        let plan = comptime!(plan.clone());
        sum_in_vectors::<N>(a, outputs, workspace, &at, &offsets, packed_b, depth, plan)
    };
    if comptime!(plan.only_rounds()) && at.rows == height && at.columns == width {
        finish_rounded::<N>(workspace, outputs, &at, comptime!(plan.clone()));
    } else if comptime!(!plan.all_whole()) && !stored {
        finish_tile::<N>(workspace, epilogue_inputs, outputs, &at, width, plan);
    }
}

/// The sums of a tile in tile registers; whether they went to the output, not to the tile's buffer.
#[cube]
fn sum_in_tiles(
    a: &[f32],
    outputs: &mut Sequence<Box<[f32]>>,
    workspace: &mut [f32],
    at: &Finish,
    from_a: usize,
    packed_b: usize,
    depth: usize,
    #[comptime] plan: Plan,
) -> bool {
    let height = comptime!(plan.tile_rows);
    let width = comptime!(plan.tile_vectors * plan.width);
    let out = outputs.index_mut(0usize);
    let to = at.row * comptime!(plan.columns) + at.column;
    let direct = comptime!(plan.direct) && at.rows == height && at.columns == width;
    if direct && !at.first {
        tiles::load_sums(&*out, to, comptime!(plan.columns).runtime());
    } else {
        tiles::zero();
    }
    if comptime!(plan.layout_a == LayoutA::Direct) {
        let row = comptime!(plan.m.first().map_or(0, |axis| axis.stride / 2));
        let lower = comptime!(SIDE * row).runtime();
        multiply_tiles(a, from_a, &*workspace, packed_b, depth, lower, SIDE, row);
    } else {
        let lower = SIDE * depth;
        let tile = comptime!(SIDE * SIDE);
        multiply_tiles(&*workspace, from_a, &*workspace, packed_b, depth, lower, tile, SIDE);
    }
    if direct {
        tiles::store_sums(out, to, comptime!(plan.columns).runtime());
    } else {
        tiles::store_sums(workspace, at.tile, width.runtime());
    }
    direct
}

/// The same in vectors.
#[cube]
fn sum_in_vectors<N: Size>(
    a: &[f32],
    outputs: &mut Sequence<Box<[f32]>>,
    workspace: &mut [f32],
    at: &Finish,
    offsets: &Array<usize>,
    packed_b: usize,
    depth: usize,
    #[comptime] plan: Plan,
) -> bool {
    let height = comptime!(plan.tile_rows);
    let width = comptime!(plan.tile_vectors * plan.width);
    let mut stored = false.runtime();
    #[unroll]
    for narrow in 0..comptime!(plan.tile_vectors) {
        let vectors = comptime!(narrow + 1);
        if comptime!(plan.has_tiles_of(vectors)) && at.columns.div_ceil(N::value()) == vectors {
            let mut sums = Array::<Vector<f32, N>>::new(comptime!(plan.tile_rows * vectors));
            let plan_a = comptime!(plan.clone());
            let whole = comptime!(plan.all_whole())
                || at.rows == height && at.columns == vectors * N::value();
            if comptime!(plan.direct && plan.revisits()) && whole {
                let to = at.row * comptime!(plan.columns) + at.column;
                let out = outputs.index_mut(0usize);
                expect_tile::<N>(&*out, to, height, vectors, comptime!(plan.columns));
            } else if comptime!(!plan.direct && plan.revisits()) && whole {
                let stride = comptime!(plan.block_columns);
                expect_tile::<N>(&*workspace, at.partial, height, vectors, stride);
            }
            sum_tile::<N>(a, &*workspace, offsets, packed_b, depth, &mut sums, vectors, plan_a);
            if comptime!(plan.direct) && whole {
                let out = at.row * comptime!(plan.columns) + at.column;
                let to = dense_rows(out, height, comptime!(plan.columns));
                let keep = !at.first;
                store_tile::<N>(outputs.index_mut(0usize), &to, &sums, keep, height, vectors);
                stored = true;
            } else {
                let to = dense_rows(at.tile, height, width);
                store_tile::<N>(workspace, &to, &sums, false, height, vectors);
            }
        }
    }
    stored
}

pub(crate) fn launch(device: &Device, spec: &ContractSpec, args: &[Slice]) {
    launch_plan(device, Plan::fastest(spec, device), args);
}

/// A contraction without an epilogue, added to what the output holds.
pub(crate) fn launch_accumulate(device: &Device, spec: &ContractSpec, args: &[Slice]) {
    assert!(spec.is_plain_sum(), "sums go to the output as they are");
    let plan = Plan { accumulate: true, skinny: false, ..Plan::fastest(spec, device) };
    launch_plan(device, plan, args);
}

fn launch_plan(device: &Device, plan: Plan, args: &[Slice]) {
    if plan.rows * plan.columns * plan.batches == 0 {
        return;
    }
    let (prologues, epilogues) = (plan.prologue_inputs(), plan.epilogue_inputs());
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
            device.buffer(&workspace.part(0, COUNTERS * 4)),
            device.buffer(&workspace.part(COUNTERS * 4, workspace.bytes - COUNTERS * 4)),
            device.unaligned(&args[0], plan.elems()),
            plan,
        );
    }
    device.launched();
}
