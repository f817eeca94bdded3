//! Σ_t weights[s, t] · values[t, :], a register tile whose lanes are components of the head.

use crate::vector_io::{load, load_as, load_one, store};
use cubecl::prelude::*;
use mdl_ir::kernel::Elem;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct OuterShape {
    /// The head, padded to whole vectors.
    pub padded: usize,
    /// Vectors of the head, and keys, in a register tile.
    pub vectors: usize,
    pub rows: usize,
}

impl OuterShape {
    /// The tile with the most sums, beside which there are registers for values and a weight; of
    /// those the one that loads least.
    pub(crate) fn new(head: usize, lanes: usize, registers: usize, keys: usize) -> Self {
        let all = head.div_ceil(lanes);
        let rows = (1..=16).filter(|rows| keys.is_multiple_of(*rows));
        let vectors = (1..=4).filter(|vectors| all.is_multiple_of(*vectors));
        let tiles = rows.flat_map(|rows| vectors.clone().map(move |vectors| (rows, vectors)));
        let fit = tiles.filter(|(rows, vectors)| rows * vectors + vectors + 1 < registers);
        let best = fit.max_by_key(|(rows, vectors)| (rows * vectors, usize::MAX - rows - vectors));
        let (rows, vectors) = best.unwrap_or((1, 1));
        OuterShape { padded: all * lanes, vectors, rows }
    }
}

/// sums[s, :] += Σ_{t < count} weights[s, t] · values[t, :] for the keys `0..keys`, rounded up to
/// whole register tiles; all three lie in the workspace.
#[cube]
pub(crate) fn add_outer<N: Size>(
    workspace: &mut [f32],
    weights: usize,
    #[comptime] stride: usize,
    values: usize,
    sums: usize,
    keys: usize,
    count: usize,
    #[comptime] shape: OuterShape,
) {
    let wide = comptime!(shape.vectors);
    let step = N::value() * wide;
    for s in range_stepped(0, keys, shape.rows) {
        for d in range_stepped(0, shape.padded, step) {
            let mut tile = Array::<Vector<f32, N>>::new(comptime!(shape.rows * wide));
            let out = sums + s * shape.padded + d;
            #[unroll]
            for i in 0..shape.rows {
                #[unroll]
                for j in 0..wide {
                    tile[i * wide + j] =
                        load::<f32, N>(&*workspace, out + i * shape.padded + j * N::value());
                }
            }
            for t in 0..count {
                let mut row = Array::<Vector<f32, N>>::new(wide);
                #[unroll]
                for j in 0..wide {
                    let at = values + t * shape.padded + d + j * N::value();
                    row[j] = load::<f32, N>(&*workspace, at);
                }
                #[unroll]
                for i in 0..shape.rows {
                    let weight = workspace[weights + (s + i) * stride + t];
                    #[unroll]
                    for j in 0..wide {
                        let old = tile[i * wide + j];
                        tile[i * wide + j] = fma(Vector::new(weight), row[j], old);
                    }
                }
            }
            #[unroll]
            for i in 0..shape.rows {
                #[unroll]
                for j in 0..wide {
                    let at = out + i * shape.padded + j * N::value();
                    store::<f32, N>(workspace, at, tile[i * wide + j]);
                }
            }
        }
    }
}

/// out[t, :] = x[at + t·stride ..] · scale for `count` rows, padded with zeros.
#[cube]
pub(crate) fn pack_rows<N: Size>(
    x: &[f32],
    at: usize,
    count: usize,
    #[comptime] stride: usize,
    scale: f32,
    workspace: &mut [f32],
    out: usize,
    #[comptime] head: usize,
    #[comptime] elem: Elem,
    #[comptime] shape: OuterShape,
) {
    let lanes = N::value();
    let whole = comptime!(head / lanes);
    for t in 0..count {
        let from = at + t * stride;
        let to = out + t * shape.padded;
        #[unroll]
        for i in 0..whole {
            let row = load_as::<N>(x, from + i * lanes, elem) * Vector::new(scale);
            store::<f32, N>(workspace, to + i * lanes, row);
        }
        if comptime!(whole * lanes < shape.padded) {
            store::<f32, N>(workspace, to + whole * lanes, Vector::new(0.0));
            for d in comptime!(whole * lanes)..head {
                workspace[to + d] = load_one(x, from + d, elem) * scale;
            }
        }
    }
}
