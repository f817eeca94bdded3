//! The sum of outer products of each group's rows.

use super::GroupedPlan;
use super::sort::{sort_rows, start_of};
use super::tile::{Tile, clear, multiply_rows};
use crate::contract::take;
use crate::vector_io::{load_as, load_one, store};
use cubecl::prelude::*;
use mdl_ir::kernel::Elem;
use mdl_ir::kernel::grouped::GroupedParts;

/// Rows of the result in a piece.
const ROWS: usize = GroupedParts::ROWS as usize;
const COLUMNS: usize = GroupedParts::COLUMNS as usize;

#[cube(launch_unchecked, address_type = "u64")]
pub(crate) fn grouped_outer<N: Size, M: Size>(
    a: &[f32],
    b: &[f32],
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
    let pieces_n = comptime!(plan.one.columns.div_ceil(plan.piece_columns));
    let pieces = comptime!(plan.one.rows.div_ceil(ROWS)) * pieces_n;
    let mut piece = take(counters, 0usize);
    while piece < comptime!(plan.groups) * pieces {
        let group = piece / pieces;
        let row = piece % pieces / pieces_n * ROWS;
        let column = piece % pieces_n * comptime!(plan.piece_columns);
        let start = start_of(&*sorted, group, rows);
        let here = Piece {
            group,
            start,
            count: start_of(&*sorted, group + 1, rows) - start,
            row,
            rows: min(comptime!(plan.one.rows) - row, ROWS),
            column,
            columns: min(comptime!(plan.one.columns) - column, comptime!(plan.piece_columns)),
        };
        outer_piece::<N, M>(a, b, out, &*sorted, workspace, &here, comptime!(plan.clone()));
        piece = take(counters, 0usize);
    }
}

/// Some rows and columns of one group's result, a sum over `count` rows of the order.
#[derive(CubeType, Clone, Copy)]
struct Piece {
    group: usize,
    start: usize,
    count: usize,
    row: usize,
    rows: usize,
    column: usize,
    columns: usize,
}

#[cube]
fn outer_piece<N: Size, M: Size>(
    a: &[f32],
    b: &[f32],
    out: &mut [f32],
    sorted: &[u32],
    workspace: &mut [f32],
    piece: &Piece,
    #[comptime] plan: GroupedPlan,
) {
    let columns = comptime!(plan.one.columns);
    if piece.count == 0 {
        for r in 0..piece.rows {
            let row = piece.group * comptime!(plan.one.rows) + piece.row + r;
            let elem = comptime!(plan.one.outputs[0]);
            clear::<N>(out, row * columns + piece.column, piece.columns, elem);
        }
    }
    let own = UNIT_POS as usize * comptime!(plan.own);
    let packed_a = own + comptime!(plan.one.packed_b_elements);
    let width = comptime!(plan.one.tile_vectors * plan.one.width);
    let height = comptime!(plan.one.tile_rows);
    for k in range_stepped(0, piece.count, comptime!(plan.one.block_depth)) {
        let depth = min(piece.count - k, comptime!(plan.one.block_depth));
        let at = piece.start + k;
        let limit = comptime!(plan.one.columns);
        let share = comptime!(plan.share_b);
        let (first, count) = (piece.column, piece.columns);
        let elem = comptime!(plan.one.b);
        pack_columns::<N>(
            b, sorted, at, depth, workspace, own, first, count, width, limit, share, elem,
        );
        let limit = comptime!(plan.one.rows);
        let share = comptime!(plan.share_a);
        let (first, count) = (piece.row, piece.rows);
        pack_columns::<M>(
            a, sorted, at, depth, workspace, packed_a, first, count, height, limit, share, elem,
        );
        let (begins, ends) = (k == 0, k + depth == piece.count);
        let plan = comptime!(plan.clone());
        multiply_block::<N>(a, out, workspace, piece, depth, begins, ends, plan);
    }
}

/// Packs `count` columns from `first` of `depth` rows of the order into panels of `width`, one row
/// after the other. Columns past the edge repeat the last one: their sums are never stored.
#[cube]
fn pack_columns<N: Size>(
    x: &[f32],
    sorted: &[u32],
    start: usize,
    depth: usize,
    workspace: &mut [f32],
    to: usize,
    first: usize,
    count: usize,
    #[comptime] width: usize,
    #[comptime] columns: usize,
    #[comptime] share: usize,
    #[comptime] elem: Elem,
) {
    let wide = N::value();
    for k in 0..depth {
        let from = usize::cast_from(sorted[start + k]) / share * columns;
        for panel in 0..count.div_ceil(width) {
            let column = first + panel * width;
            let out = to + (panel * depth + k) * width;
            if column + width <= columns {
                #[unroll]
                for v in 0..comptime!(width / wide) {
                    let lanes = load_as::<N>(x, from + column + v * N::value(), elem);
                    store::<f32, N>(workspace, out + v * N::value(), lanes);
                }
            } else {
                for c in 0..width {
                    let at = from + min(column + c, columns - 1);
                    workspace[out + c] = load_one(x, at, elem);
                }
            }
        }
    }
}

#[cube]
fn multiply_block<N: Size>(
    a: &[f32],
    out: &mut [f32],
    workspace: &mut [f32],
    piece: &Piece,
    depth: usize,
    first: bool,
    last: bool,
    #[comptime] plan: GroupedPlan,
) {
    let own = UNIT_POS as usize * comptime!(plan.own);
    let packed_a = own + comptime!(plan.one.packed_b_elements);
    let height = comptime!(plan.one.tile_rows);
    let width = comptime!(plan.one.tile_vectors * plan.one.width);
    for panel_n in 0..piece.columns.div_ceil(width) {
        let column = panel_n * width;
        for panel_m in 0..piece.rows.div_ceil(height) {
            let row = panel_m * height;
            let mut from = Array::<usize>::new(height);
            let mut to = Array::<usize>::new(height);
            #[unroll]
            for r in 0..height {
                from[r] = packed_a + row * depth + r;
                let here = piece.group * comptime!(plan.one.rows) + piece.row + row + r;
                to[r] = here * comptime!(plan.one.columns) + piece.column + column;
            }
            let buffer = packed_a + comptime!(plan.one.packed_a_elements);
            let tile = Tile {
                packed_b: own + column * depth,
                buffer,
                partial: buffer + comptime!(plan.one.tile_elements) + row * COLUMNS + column,
                depth,
                rows: min(piece.rows - row, height),
                columns: min(piece.columns - column, width),
                first,
                last,
            };
            let plan = comptime!(plan.one.clone());
            multiply_rows::<N>(a, workspace, out, &from, &to, &tile, plan);
        }
    }
}
