//! Few rows a group, as in decoding: the matrices of the groups that have rows are read in place.
//!
//! 2·rows·n·k operations on n·k elements of each such group, so the memory's speed is the limit.
//! A matrix is read once for every eight rows, from the cache after the first time. A sum does not
//! depend on which rows it is computed with.

use super::GroupedPlan;
use super::contract::clear_strays;
use super::sort::{sort_rows, start_of};
use super::tile::copy_rows;
use crate::contract::take;
use crate::contract_plan::{LayoutB, Plan};
use crate::contract_skinny::multiply_columns;
use cubecl::prelude::*;

/// Rows at once, at most; then halves of it.
const ROWS: usize = 8;
/// A multiple of every number of columns that are summed at once.
const CHUNK: usize = 48;

/// Columns of a piece: few where k is contiguous, and otherwise as many as a tile takes and leave a
/// group something for every unit, because a matrix is then read in runs of this length.
pub(crate) fn chunk_columns(plan: &GroupedPlan) -> usize {
    let most = plan.one.tile_elements / ROWS / CHUNK * CHUNK;
    match plan.one.layout_b {
        LayoutB::Rows => CHUNK,
        _ => plan.one.columns.div_ceil(plan.one.units * 2).next_multiple_of(CHUNK).min(most),
    }
}

#[cube(launch_unchecked, address_type = "u64")]
pub(crate) fn grouped_in_place<N: Size>(
    a: &[f32],
    w: &[f32],
    ids: &[i32],
    out: &mut [f32],
    counters: &[Atomic<u32>],
    sorted: &mut [u32],
    workspace: &mut [f32],
    _unaligned: &[f32],
    #[comptime] plan: GroupedPlan,
    #[comptime] chunk: usize,
) {
    let rows = comptime!(plan.rows);
    if UNIT_POS == 0 {
        counters[0].store(0);
        sort_rows(ids, sorted, rows, comptime!(plan.groups));
    }
    sync_cube();
    clear_strays::<N>(out, &*sorted, comptime!(plan.clone()));
    let chunks = comptime!(plan.one.columns.div_ceil(chunk));
    let mut piece = take(counters, 0usize);
    let mut group = 0usize.runtime();
    let mut passed = 0usize.runtime();
    while group < comptime!(plan.groups) {
        let start = start_of(&*sorted, group, rows);
        let count = start_of(&*sorted, group + 1, rows) - start;
        let pieces = min(count, 1) * chunks;
        if piece < passed + pieces {
            let column = (piece - passed) * chunk;
            let here = Piece { group, start, column };
            let plan = comptime!(plan.clone());
            chunk_of_group::<N>(a, w, out, &*sorted, workspace, &here, count, chunk, plan);
            piece = take(counters, 0usize);
        } else {
            passed += pieces;
            group += 1;
        }
    }
}

/// Rows of the order from `start`, all of one group, by the columns from `column`.
#[derive(CubeType, Clone, Copy)]
struct Piece {
    group: usize,
    start: usize,
    column: usize,
}

/// All rows of a group: eight by eight, then four, two and one.
#[cube]
fn chunk_of_group<N: Size>(
    a: &[f32],
    w: &[f32],
    out: &mut [f32],
    sorted: &[u32],
    workspace: &mut [f32],
    piece: &Piece,
    count: usize,
    #[comptime] chunk: usize,
    #[comptime] plan: GroupedPlan,
) {
    let mut row = 0usize.runtime();
    #[unroll]
    for halves in 0..comptime!(ROWS.ilog2() as usize + 1) {
        let height = comptime!(ROWS >> halves);
        while count - row >= height {
            let (group, start) = (piece.group, piece.start + row);
            let here = Piece { group, start, column: piece.column };
            let plan = comptime!(plan.clone());
            rows_in_place::<N>(a, w, out, sorted, workspace, &here, height, chunk, plan);
            row += height;
        }
    }
}

#[cube]
fn rows_in_place<N: Size>(
    a: &[f32],
    w: &[f32],
    out: &mut [f32],
    sorted: &[u32],
    workspace: &mut [f32],
    piece: &Piece,
    #[comptime] height: usize,
    #[comptime] chunk: usize,
    #[comptime] plan: GroupedPlan,
) {
    let mut from = Array::<usize>::new(height);
    let mut to = Array::<usize>::new(height);
    #[unroll]
    for r in 0..height {
        let number = usize::cast_from(sorted[piece.start + r]);
        from[r] = number / comptime!(plan.share_a) * comptime!(plan.one.depth);
        to[r] = number * comptime!(plan.one.columns) + piece.column;
    }
    let tile = UNIT_POS as usize * comptime!(plan.own);
    let base = piece.group * comptime!(plan.one.columns * plan.one.depth);
    let columns = min(chunk, comptime!(plan.one.columns) - piece.column);
    let one = comptime!(Plan { rows: height, ..plan.one.clone() });
    let column = piece.column;
    let elem = comptime!(plan.one.outputs[0]);
    multiply_columns::<N>(
        a,
        comptime!(plan.one.a),
        &from,
        w,
        base,
        workspace,
        tile,
        column,
        columns,
        chunk,
        one,
    );
    copy_rows::<N>(
        &*workspace,
        tile,
        out,
        &to,
        height.runtime(),
        columns,
        false.runtime(),
        chunk,
        elem,
    );
}
