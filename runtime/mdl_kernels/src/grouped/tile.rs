//! One tile of a group's result, whose rows lie anywhere.

use crate::contract::sum_tile;
use crate::contract_plan::Plan;
use crate::contract_tile::{dense_rows, store_tile};
use crate::vector_io::{load, store};
use cubecl::prelude::*;

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
    /// This is the first block of k.
    pub first: bool,
}

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
            sum_tile::<N>(a, &*workspace, from, packed, tile.depth, &mut sums, vectors, plan);
            if tile.rows == height && tile.columns == vectors * N::value() {
                store_tile::<N>(out, to, &sums, !tile.first, height, vectors);
            } else {
                let rows = dense_rows(tile.buffer, height, width);
                store_tile::<N>(workspace, &rows, &sums, false, height, vectors);
                let keep = !tile.first;
                let (at, rows, columns) = (tile.buffer, tile.rows, tile.columns);
                copy_rows::<N>(&*workspace, at, out, to, rows, columns, keep, width);
            }
        }
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
) {
    let whole = columns / N::value() * N::value();
    for r in 0..rows {
        let from = at + r * width;
        for v in 0..columns / N::value() {
            let c = v * N::value();
            put::<N>(load::<f32, N>(buffered, from + c), out, to[r] + c, keep);
        }
        for c in whole..columns {
            put::<Const<1>>(load::<f32, Const<1>>(buffered, from + c), out, to[r] + c, keep);
        }
    }
}

/// Stores a vector, or adds it to what is there.
#[cube]
fn put<N: Size>(value: Vector<f32, N>, out: &mut [f32], to: usize, keep: bool) {
    let mut sum = value;
    if keep {
        sum += load::<f32, N>(&*out, to);
    }
    store::<f32, N>(out, to, sum);
}

/// Zeros elements `to..to + count`.
#[cube]
pub(crate) fn clear<N: Size>(out: &mut [f32], to: usize, count: usize) {
    for v in 0..count / N::value() {
        store::<f32, N>(out, to + v * N::value(), Vector::new(0.0));
    }
    for i in count / N::value() * N::value()..count {
        out[to + i] = 0.0;
    }
}
