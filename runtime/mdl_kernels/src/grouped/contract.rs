//! Rows with the matrices of their groups, packed block by block.

use super::GroupedPlan;
use super::sort::{sort_rows, start_of};
use super::tile::{Tile, clear, multiply_rows};
use crate::contract::take;
use crate::contract_pack::{Block, pack_b_panel};
use crate::contract_plan::{LayoutA, LayoutB, Plan};
use crate::embedding::share;
use crate::vector_io::{load_as, load_one, store};
use cubecl::prelude::*;
use mdl_ir::kernel::grouped::GroupedParts;

/// Rows that are multiplied with a packed block before the next ones, so that they stay in cache.
const ROWS: usize = GroupedParts::ROWS as usize;
const COLUMNS: usize = GroupedParts::COLUMNS as usize;
/// Rows of a matrix whose n is contiguous that are packed together: so many pages that addresses
/// are still known when the next columns are read.
const STEPS: usize = 32;

#[cube(launch_unchecked, address_type = "u64")]
pub(crate) fn grouped_contract<N: Size>(
    a: &[f32],
    w: &[f32],
    ids: &[i32],
    out: &mut [f32],
    counters: &[Atomic<u32>],
    sorted: &mut [u32],
    workspace: &mut [f32],
    _unaligned: &[f32],
    #[comptime] plan: GroupedPlan,
) {
    let rows = comptime!(plan.rows);
    if UNIT_POS == 0 {
        counters[0].store(0);
        sort_rows(ids, sorted, rows, comptime!(plan.groups));
    }
    sync_cube();
    clear_strays::<N>(out, &*sorted, comptime!(plan.clone()));
    let pieces_n = comptime!(plan.one.columns.div_ceil(plan.piece_columns));
    let mut piece = take(counters, 0usize);
    let mut group = 0usize.runtime();
    let mut passed = 0usize.runtime();
    while group < comptime!(plan.groups) {
        let start = start_of(&*sorted, group, rows);
        let count = start_of(&*sorted, group + 1, rows) - start;
        let pieces = count.div_ceil(comptime!(plan.piece_rows)) * pieces_n;
        if piece < passed + pieces {
            let row = (piece - passed) / pieces_n * comptime!(plan.piece_rows);
            let here = Piece {
                group,
                start: start + row,
                rows: min(count - row, comptime!(plan.piece_rows)),
                column: (piece - passed) % pieces_n * comptime!(plan.piece_columns),
            };
            contract_piece::<N>(a, w, out, &*sorted, workspace, &here, comptime!(plan.clone()));
            piece = take(counters, 0usize);
        } else {
            passed += pieces;
            group += 1;
        }
    }
}

/// Rows of the order, all of one group, by some columns.
#[derive(CubeType, Clone, Copy)]
struct Piece {
    group: usize,
    start: usize,
    rows: usize,
    column: usize,
}

/// Rows whose ids name no group are zero.
#[cube]
pub(crate) fn clear_strays<N: Size>(
    out: &mut [f32],
    sorted: &[u32],
    #[comptime] plan: GroupedPlan,
) {
    let columns = comptime!(plan.one.columns);
    let start = start_of(sorted, comptime!(plan.groups).runtime(), comptime!(plan.rows));
    let count = comptime!(plan.rows) - start;
    for i in share(count, UNIT_POS as usize)..share(count, UNIT_POS as usize + 1) {
        let row = usize::cast_from(sorted[start + i]);
        clear::<N>(out, row * columns, columns.runtime(), comptime!(plan.one.outputs[0]));
    }
}

#[cube]
fn contract_piece<N: Size>(
    a: &[f32],
    w: &[f32],
    out: &mut [f32],
    sorted: &[u32],
    workspace: &mut [f32],
    piece: &Piece,
    #[comptime] plan: GroupedPlan,
) {
    let columns = comptime!(plan.one.columns);
    let depth = comptime!(plan.one.depth);
    let own = UNIT_POS as usize * comptime!(plan.own);
    let base = piece.group * comptime!(plan.one.columns * plan.one.depth);
    for pc in 0..comptime!(plan.one.depth.div_ceil(plan.one.block_depth)) {
        let k = pc * comptime!(plan.one.block_depth);
        let block = Block {
            k,
            depth: min(comptime!(plan.one.block_depth), depth - k),
            column: piece.column,
            columns: min(comptime!(plan.piece_columns), columns - piece.column),
        };
        let plan_b = comptime!(plan.one.clone());
        pack_block::<N>(w, base, workspace, own, &block, plan_b);
        for rows in range_stepped(0, piece.rows, ROWS) {
            let here = Piece {
                group: piece.group,
                start: piece.start + rows,
                rows: min(piece.rows - rows, ROWS),
                column: piece.column,
            };
            let plan = comptime!(plan.clone());
            multiply_block::<N>(a, out, sorted, workspace, &here, rows, &block, plan);
        }
    }
}

/// Packs a block in the order that reads the longest runs of w.
#[cube]
fn pack_block<N: Size>(
    w: &[f32],
    base: usize,
    workspace: &mut [f32],
    to: usize,
    block: &Block,
    #[comptime] plan: Plan,
) {
    let panels = block.columns.div_ceil(comptime!(plan.tile_vectors * plan.width));
    let step = comptime!(match plan.layout_b {
        LayoutB::Columns => STEPS,
        LayoutB::Rows | LayoutB::Gathered => plan.block_depth,
    });
    // Operands of groups have no prologue.
    let nothing = Sequence::<Box<[f32]>>::new();
    for k0 in range_stepped(0, block.depth, step) {
        let k1 = min(k0 + step, block.depth);
        for panel in 0..panels {
            let plan = comptime!(plan.clone());
            pack_b_panel::<N>(w, base, &nothing, workspace, to, block, panel, k0, k1, plan);
        }
    }
}

/// Packs rows of the order, each along k.
#[cube]
fn pack_rows<N: Size>(
    a: &[f32],
    sorted: &[u32],
    workspace: &mut [f32],
    to: usize,
    piece: &Piece,
    block: &Block,
    #[comptime] plan: GroupedPlan,
) {
    let whole = block.depth / N::value() * N::value();
    for r in 0..piece.rows {
        let number = usize::cast_from(sorted[piece.start + r]);
        let from = number / comptime!(plan.share_a) * comptime!(plan.one.depth) + block.k;
        let out = to + r * comptime!(plan.one.block_depth);
        for k in range_stepped(0, whole, N::value()) {
            let lanes = load_as::<N>(a, from + k, comptime!(plan.one.a));
            store::<f32, N>(workspace, out + k, lanes);
        }
        for k in whole..block.depth {
            workspace[out + k] = load_one(a, from + k, comptime!(plan.one.a));
        }
    }
}

/// The rows of a piece behind its first `before` ones, with one packed block.
#[cube]
fn multiply_block<N: Size>(
    a: &[f32],
    out: &mut [f32],
    sorted: &[u32],
    workspace: &mut [f32],
    piece: &Piece,
    before: usize,
    block: &Block,
    #[comptime] plan: GroupedPlan,
) {
    let own = UNIT_POS as usize * comptime!(plan.own);
    let packed_a = own + comptime!(plan.one.packed_b_elements);
    let buffer = packed_a + comptime!(plan.one.packed_a_elements);
    let height = comptime!(plan.one.tile_rows);
    let width = comptime!(plan.one.tile_vectors * plan.one.width);
    if comptime!(plan.one.layout_a == LayoutA::Rows) {
        let plan = comptime!(plan.clone());
        pack_rows::<N>(a, sorted, workspace, packed_a, piece, block, plan);
    }
    for panel in 0..block.columns.div_ceil(width) {
        let column = panel * width;
        for row in range_stepped(0, piece.rows, height) {
            let mut from = Array::<usize>::new(height);
            let mut to = Array::<usize>::new(height);
            #[unroll]
            for r in 0..height {
                let here = min(row + r, piece.rows - 1);
                let number = usize::cast_from(sorted[piece.start + here]);
                if comptime!(plan.one.layout_a == LayoutA::Rows) {
                    from[r] = packed_a + here * comptime!(plan.one.block_depth);
                } else {
                    let place = number / comptime!(plan.share_a) * comptime!(plan.one.depth);
                    from[r] = place + block.k;
                }
                to[r] = number * comptime!(plan.one.columns) + block.column + column;
            }
            let tile = Tile {
                packed_b: own + column * block.depth,
                buffer,
                depth: block.depth,
                rows: min(piece.rows - row, height),
                columns: min(block.columns - column, width),
                partial: buffer
                    + comptime!(plan.one.tile_elements)
                    + (before + row) * COLUMNS
                    + column,
                first: block.k == 0,
                last: block.k + block.depth == comptime!(plan.one.depth),
            };
            let plan = comptime!(plan.one.clone());
            multiply_rows::<N>(a, workspace, out, &from, &to, &tile, plan);
        }
    }
}
