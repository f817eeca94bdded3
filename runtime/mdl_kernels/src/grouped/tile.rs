//! One tile of a group's result, whose rows lie anywhere.

use crate::contract::sum_tile;
use crate::contract_plan::Plan;
use crate::contract_tile::{dense_rows, store_tile};
use crate::vector_io::{load, load_as, store, store_as, store_one};
use cubecl::prelude::*;
use mdl_ir::kernel::Elem;
use mdl_ir::kernel::grouped::GroupedParts;

/// Which tile, for one block of k.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Tile {
    /// Elements of the workspace where the packed panel of b and the buffer of a ragged tile start.
    pub packed_b: usize,
    pub buffer: usize,
    pub depth: usize,
    /// Valid rows and columns.
    pub rows: usize,
    pub columns: usize,
    /// Element of the workspace where the tile's partial sums start, if they are kept there.
    pub partial: usize,
    /// This is the first block of k, or the last one.
    pub first: bool,
    pub last: bool,
}

/// Elements between the rows of a piece's partial sums.
const PARTIAL_ROW: usize = GroupedParts::COLUMNS as usize;

/// Multiplies the rows of a that start at `from` with a packed panel, into the rows of out that
/// start at `to`.
#[cube]
pub(crate) fn multiply_rows<N: Size>(
    a: &[f32],
    workspace: &mut [f32],
    out: &mut [f32],
    from: &Array<usize>,
    to: &Array<usize>,
    tile: &Tile,
    #[comptime] plan: Plan,
) {
    let height = comptime!(plan.tile_rows);
    #[unroll]
    for narrow in 0..comptime!(plan.tile_vectors) {
        let vectors = comptime!(narrow + 1);
        if comptime!(plan.has_tiles_of(vectors)) && tile.columns.div_ceil(N::value()) == vectors {
            let mut sums = Array::<Vector<f32, N>>::new(comptime!(height * vectors));
            let width = comptime!(vectors * plan.width);
            let plan = comptime!(plan.clone());
            let packed = tile.packed_b;
            let summed = comptime!(plan.clone());
            sum_tile::<N>(a, &*workspace, from, packed, tile.depth, &mut sums, vectors, summed);
            if comptime!(!plan.direct) {
                let rows = dense_rows(tile.buffer, height, width);
                store_tile::<N>(workspace, &rows, &sums, false, height, vectors);
                let elem = comptime!(plan.outputs[0]);
                finish_rows::<N>(workspace, out, to, tile, width, elem);
            } else if tile.rows == height && tile.columns == vectors * N::value() {
                store_tile::<N>(out, to, &sums, !tile.first, height, vectors);
            } else {
                let rows = dense_rows(tile.buffer, height, width);
                store_tile::<N>(workspace, &rows, &sums, false, height, vectors);
                let keep = !tile.first;
                let (at, rows, columns) = (tile.buffer, tile.rows, tile.columns);
                copy_rows::<N>(&*workspace, at, out, to, rows, columns, keep, width, Elem::F32);
            }
        }
    }
}

/// The valid part of a buffered tile goes to the partial sums, or with them to the output.
#[cube]
fn finish_rows<N: Size>(
    workspace: &mut [f32],
    out: &mut [f32],
    to: &Array<usize>,
    tile: &Tile,
    #[comptime] width: usize,
    #[comptime] elem: Elem,
) {
    let whole = tile.columns / N::value() * N::value();
    for r in 0..tile.rows {
        for c in range_stepped(0, whole, N::value()) {
            finish_lanes::<N>(workspace, out, to[r], tile, r, c, width, elem);
        }
        for c in whole..tile.columns {
            finish_lanes::<Const<1>>(workspace, out, to[r], tile, r, c, width, elem);
        }
    }
}

#[cube]
fn finish_lanes<N: Size>(
    workspace: &mut [f32],
    out: &mut [f32],
    to: usize,
    tile: &Tile,
    r: usize,
    c: usize,
    #[comptime] width: usize,
    #[comptime] elem: Elem,
) {
    let mut sum = load::<f32, N>(&*workspace, tile.buffer + r * width + c);
    let partial = tile.partial + r * PARTIAL_ROW + c;
    if !tile.first {
        sum += load::<f32, N>(&*workspace, partial);
    }
    if tile.last {
        store_as::<N>(out, to + c, sum, elem);
    } else {
        store::<f32, N>(workspace, partial, sum);
    }
}

/// The valid part of a tile that was buffered with rows `width` apart.
#[cube]
pub(crate) fn copy_rows<N: Size>(
    buffered: &[f32],
    at: usize,
    out: &mut [f32],
    to: &Array<usize>,
    rows: usize,
    columns: usize,
    keep: bool,
    #[comptime] width: usize,
    #[comptime] elem: Elem,
) {
    let whole = columns / N::value() * N::value();
    for r in 0..rows {
        let from = at + r * width;
        for v in 0..columns / N::value() {
            let c = v * N::value();
            put::<N>(load::<f32, N>(buffered, from + c), out, to[r] + c, keep, elem);
        }
        for c in whole..columns {
            let sum = load::<f32, Const<1>>(buffered, from + c);
            put::<Const<1>>(sum, out, to[r] + c, keep, elem);
        }
    }
}

/// Stores a vector, or adds it to what is there.
#[cube]
fn put<N: Size>(
    value: Vector<f32, N>,
    out: &mut [f32],
    to: usize,
    keep: bool,
    #[comptime] elem: Elem,
) {
    let mut sum = value;
    if keep {
        sum += load_as::<N>(&*out, to, elem);
    }
    store_as::<N>(out, to, sum, elem);
}

/// Zeros elements `to..to + count`.
#[cube]
pub(crate) fn clear<N: Size>(out: &mut [f32], to: usize, count: usize, #[comptime] elem: Elem) {
    for v in 0..count / N::value() {
        store_as::<N>(out, to + v * N::value(), Vector::new(0.0), elem);
    }
    for i in count / N::value() * N::value()..count {
        store_one(out, to + i, 0.0, elem);
    }
}
