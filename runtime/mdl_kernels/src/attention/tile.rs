//! The two inner products of attention, as register tiles whose lanes are queries.
//!
//! With queries along the lanes, maxima, sums and masks over keys never cross lanes, keys and
//! values are read where they lie, one scalar at a time, and any head size works unpadded.

use crate::vector_io::{load, load_one, load_strided, store, store_as};
use cubecl::prelude::*;
use mdl_ir::kernel::{AttentionSpec, Elem};

/// What attention kernels are specialised by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    /// Of queries, keys, values and what is as large as they are.
    pub elem: Elem,
    pub batch: usize,
    pub t: usize,
    pub s: usize,
    pub kv_heads: usize,
    pub group: usize,
    pub head: usize,
    pub scale_bits: u32,
    pub causal: bool,
    pub window: Option<usize>,
    pub documents: bool,
    pub start: bool,
    /// Vectors of queries in a tile.
    pub vectors: usize,
    /// Queries in a tile.
    pub queries: usize,
    /// Blocks of queries that keys pass together.
    pub together: usize,
    /// Keys in a tile, a multiple of `rows`.
    pub keys: usize,
    /// Keys, or components of the head, in a register tile.
    pub rows: usize,
    /// Keys are visited in multiples of this; those that no query sees are masked.
    pub step: usize,
}

impl Shape {
    pub(crate) fn new(spec: &AttentionSpec, lanes: usize, registers: usize) -> Shape {
        // Two multiply-adds a cycle that take five need ten sums, which few queries do not give;
        // beside them there are registers for the queries and a broadcast.
        let vectors = if spec.t as usize <= 2 * lanes { 1 } else { 2 };
        let rows = ((registers - 4) / vectors).min(8);
        Shape {
            elem: spec.elem,
            batch: spec.batch as usize,
            t: spec.t as usize,
            s: spec.s as usize,
            kv_heads: spec.kv_heads as usize,
            group: spec.group as usize,
            head: spec.head as usize,
            scale_bits: spec.scale.to_bits(),
            causal: spec.mask.causal,
            window: spec.mask.window.map(|window| window as usize),
            documents: spec.mask.documents,
            start: spec.mask.start,
            vectors,
            queries: vectors * lanes,
            together: 1,
            keys: if 64usize.is_multiple_of(rows) { 64 } else { 48 },
            rows,
            step: rows,
        }
    }

    pub(crate) fn scale(&self) -> f32 {
        f32::from_bits(self.scale_bits)
    }

    pub(crate) fn query_blocks(&self) -> usize {
        self.t.div_ceil(self.queries)
    }

    /// The widest vector, of at most `lanes`, that the head has room for.
    pub(crate) fn head_lanes(&self, lanes: usize) -> usize {
        lanes.min(1 << self.head.max(1).ilog2())
    }

    /// Elements between one key and the next.
    pub(crate) fn key_stride(&self) -> usize {
        self.kv_heads * self.head
    }

    /// Elements between one query and the next.
    pub(crate) fn query_stride(&self) -> usize {
        self.kv_heads * self.group * self.head
    }

    /// Whether a register tile of keys may reach past the last one.
    pub(crate) fn ragged_keys(&self) -> bool {
        !self.s.is_multiple_of(self.step)
    }
}

/// sums[i, :] = Σ_d rows[at + i·stride + d] · x[d, :], `i` over the tile's rows, `:` over queries.
/// Rows past `last` read that one.
#[cube]
pub(crate) fn dot_rows<N: Size>(
    rows: &[f32],
    at: usize,
    last: usize,
    workspace: &[f32],
    x: usize,
    sums: &mut Array<Vector<f32, N>>,
    #[comptime] shape: Shape,
) {
    let vectors = comptime!(shape.vectors);
    let mut places = Array::<usize>::new(shape.rows);
    #[unroll]
    for i in 0..shape.rows {
        let place = at + comptime!(i * shape.key_stride());
        if comptime!(shape.ragged_keys()) {
            places[i] = min(place, last);
        } else {
            places[i] = place;
        }
        #[unroll]
        for j in 0..vectors {
            sums[i * vectors + j] = Vector::new(0.0);
        }
    }
    for d in 0..shape.head {
        let mut queries = Array::<Vector<f32, N>>::new(vectors);
        #[unroll]
        for j in 0..vectors {
            queries[j] = load::<f32, N>(workspace, x + d * shape.queries + j * N::value());
        }
        #[unroll]
        for i in 0..shape.rows {
            let row = Vector::<f32, N>::new(load_one(rows, places[i] + d, shape.elem));
            #[unroll]
            for j in 0..vectors {
                sums[i * vectors + j] = fma(row, queries[j], sums[i * vectors + j]);
            }
        }
    }
}

/// out[d, :] = out[d, :] · factor[:] + Σ_s rows[at + s·stride + d] · x[s, :] for all d of the head.
#[cube]
pub(crate) fn add_rows<N: Size>(
    rows: &[f32],
    at: usize,
    count: usize,
    workspace: &mut [f32],
    x: usize,
    factor: usize,
    out: usize,
    #[comptime] scaled: bool,
    #[comptime] shape: Shape,
) {
    let whole = comptime!(shape.head / shape.rows * shape.rows);
    let rest = comptime!(shape.head - whole);
    for d in range_stepped(0, whole, shape.rows) {
        let place = out + d * shape.queries;
        add_rows_at::<N>(
            rows,
            at + d,
            count,
            workspace,
            x,
            factor,
            place,
            scaled,
            shape.rows,
            shape,
        );
    }
    if comptime!(rest > 0) {
        let place = out + whole * shape.queries;
        add_rows_at::<N>(rows, at + whole, count, workspace, x, factor, place, scaled, rest, shape);
    }
}

#[cube]
fn add_rows_at<N: Size>(
    rows: &[f32],
    at: usize,
    count: usize,
    workspace: &mut [f32],
    x: usize,
    factor: usize,
    out: usize,
    #[comptime] scaled: bool,
    #[comptime] height: usize,
    #[comptime] shape: Shape,
) {
    let vectors = comptime!(shape.vectors);
    let mut sums = Array::<Vector<f32, N>>::new(comptime!(height * vectors));
    #[unroll]
    for j in 0..vectors {
        let by = load::<f32, N>(&*workspace, factor + j * N::value());
        #[unroll]
        for i in 0..height {
            let old = load::<f32, N>(&*workspace, out + i * shape.queries + j * N::value());
            if comptime!(scaled) {
                sums[i * vectors + j] = old * by;
            } else {
                sums[i * vectors + j] = old;
            }
        }
    }
    for s in 0..count {
        let mut weights = Array::<Vector<f32, N>>::new(vectors);
        #[unroll]
        for j in 0..vectors {
            weights[j] = load::<f32, N>(&*workspace, x + s * shape.queries + j * N::value());
        }
        #[unroll]
        for i in 0..height {
            let place = at + s * comptime!(shape.key_stride()) + i;
            let row = Vector::<f32, N>::new(load_one(rows, place, shape.elem));
            #[unroll]
            for j in 0..vectors {
                sums[i * vectors + j] = fma(row, weights[j], sums[i * vectors + j]);
            }
        }
    }
    #[unroll]
    for i in 0..height {
        #[unroll]
        for j in 0..vectors {
            let place = out + i * shape.queries + j * N::value();
            store::<f32, N>(workspace, place, sums[i * vectors + j]);
        }
    }
}

/// out[d, t] = x[t, d] · scale for `count` queries; 0 behind them.
#[cube]
pub(crate) fn pack_queries<N: Size>(
    x: &[f32],
    at: usize,
    count: usize,
    scale: f32,
    workspace: &mut [f32],
    out: usize,
    #[comptime] shape: Shape,
) {
    let stride = comptime!(shape.query_stride());
    let whole = count / N::value() * N::value();
    for t in range_stepped(0, whole, N::value()) {
        for d in 0..shape.head {
            let row = load_strided::<N>(x, at + t * stride + d, stride, shape.elem);
            let place = out + d * shape.queries + t;
            store::<f32, N>(workspace, place, row * Vector::new(scale));
        }
    }
    for t in whole..shape.queries {
        // Behind the last query any finite number will do; its own is at hand.
        let from = at + min(t, count - 1) * stride;
        for d in 0..shape.head {
            workspace[out + d * shape.queries + t] = load_one(x, from + d, shape.elem) * scale;
        }
    }
}

/// y[t, d] = x[d, t] · factor[t] for `count` queries, where N is at most the head.
#[cube]
pub(crate) fn unpack_queries<N: Size>(
    y: &mut [f32],
    at: usize,
    count: usize,
    workspace: &[f32],
    x: usize,
    factor: usize,
    #[comptime] shape: Shape,
) {
    let lanes = N::value();
    let last = comptime!(shape.head - lanes);
    let blocks = comptime!(shape.head.div_ceil(lanes));
    for t in 0..count {
        let by = Vector::<f32, N>::new(workspace[factor + t]);
        for i in 0..blocks {
            // The last vector begins early rather than reach past the head.
            let d = min(i * lanes, last);
            let from = x + d * shape.queries + t;
            let row = load_strided::<N>(workspace, from, shape.queries, Elem::F32);
            let place = at + t * comptime!(shape.query_stride()) + d;
            store_as::<N>(y, place, row * by, shape.elem);
        }
    }
}
