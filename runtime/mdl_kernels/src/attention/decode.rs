//! Attention of one query a sequence: costs the keys that it sees, not the cache's capacity.
//!
//! Lanes run along the head, so keys and values are read as whole vectors; scores of a vector of
//! keys are gathered in one register for the softmax. Keys come in parts of a fixed length that
//! units share; the parts of a row are combined in order, so results do not depend on units.

use super::mask::{Block, block_of};
use super::tile::Shape;
use super::{MaskArgs, fair_item, rounds_of};
use crate::device::{Device, Slice};
use crate::embedding::share;
use crate::region::environment::{max_lanes, sum_lanes};
use crate::vector_io::{load_as, load_one, store, store_one};
use cubecl::prelude::*;
use mdl_ir::kernel::{AttentionBlocks, Elem};

const PART: usize = AttentionBlocks::DECODE_KEYS as usize;

/// Σ_d a[at + d] · b[to + d] over the head.
#[cube]
pub(crate) fn dot<N: Size>(
    a: &[f32],
    at: usize,
    b: &[f32],
    to: usize,
    #[comptime] head: usize,
    #[comptime] elem: Elem,
) -> f32 {
    let lanes = N::value();
    let vectors = comptime!(head / lanes);
    let mut sums = Vector::<f32, N>::new(0.0);
    #[unroll]
    for i in 0..vectors {
        let x = load_as::<N>(a, at + i * lanes, elem);
        sums = fma(x, load_as::<N>(b, to + i * lanes, elem), sums);
    }
    let mut sum = sum_lanes::<N>(sums);
    #[unroll]
    for d in comptime!(vectors * lanes)..head {
        sum = fma(load_one(a, at + d, elem), load_one(b, to + d, elem), sum);
    }
    sum
}

#[cube(launch_unchecked, address_type = "u64")]
fn decode<N: Size>(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    documents_t: &[i32],
    documents_s: &[i32],
    start: &[i32],
    y: &mut [f32],
    lse: &mut [f32],
    partials: &mut [f32],
    #[comptime] shape: Shape,
    _unaligned: &[f32],
) {
    let parts = comptime!(shape.s.div_ceil(PART));
    let rows = comptime!(shape.batch * shape.kv_heads * shape.group);
    let items = comptime!(rows * parts);
    for round in 0..rounds_of(items) {
        let item = fair_item(round);
        if item < items {
            let row = item % rows;
            let batch = row / comptime!(shape.kv_heads * shape.group);
            let block = block_of(start, batch, 0, shape);
            let part = item / rows;
            let first = max(block.first_key, part * PART);
            let end = min(block.end_key, (part + 1) * PART);
            if first < end {
                let out = (row * parts + part) * comptime!(shape.head + 2);
                visit::<N>(
                    q,
                    k,
                    v,
                    documents_t,
                    documents_s,
                    partials,
                    out,
                    &block,
                    row,
                    first,
                    end,
                    shape,
                );
            }
        }
    }
    sync_cube();
    let last = share(rows, UNIT_POS as usize + 1);
    for row in share(rows, UNIT_POS as usize)..last {
        let batch = row / comptime!(shape.kv_heads * shape.group);
        let block = block_of(start, batch, 0, shape);
        combine(y, lse, partials, &block, row, shape);
    }
}

/// Maximum, sum and Σ p · v of the keys `first..end`.
#[cube]
fn visit<N: Size>(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    documents_t: &[i32],
    documents_s: &[i32],
    partials: &mut [f32],
    out: usize,
    block: &Block,
    row: usize,
    first: usize,
    end: usize,
    #[comptime] shape: Shape,
) {
    let lanes = N::value();
    let stride = comptime!(shape.key_stride());
    let vectors = comptime!(shape.head / lanes);
    let rest = comptime!(shape.head - vectors * lanes);
    let kv_head = row / shape.group % shape.kv_heads;
    let base = block.batch * shape.s * stride + kv_head * shape.head;
    let mut sums = Array::<Vector<f32, N>>::new(comptime!(vectors.max(1)));
    let mut rests = Array::<f32>::new(comptime!(rest.max(1)));
    let mut largest = f32::NEG_INFINITY.runtime();
    let mut sum = 0.0f32.runtime();
    for s in range_stepped(first, end, lanes) {
        let scores =
            score_keys::<N>(q, k, documents_t, documents_s, block, row, base, s, end, shape);
        let new = max(largest, max_lanes::<N>(scores));
        // Where nothing has been seen yet the maximum is −∞, and −∞ − −∞ is no number.
        let by = select(new == f32::NEG_INFINITY, 0.0, new);
        let factor = (largest - by).exp();
        let p = (scores - Vector::new(by)).exp();
        largest = new;
        sum = sum * factor + sum_lanes::<N>(p);
        #[unroll]
        for j in 0..vectors {
            sums[j] *= Vector::new(factor);
        }
        #[unroll]
        for j in 0..rest {
            rests[j] *= factor;
        }
        #[unroll]
        for i in 0..lanes {
            if s + i < end {
                let (at, weight) = (base + (s + i) * stride, p.extract(i));
                #[unroll]
                for j in 0..vectors {
                    let x = load_as::<N>(v, at + j * lanes, shape.elem);
                    sums[j] = fma(Vector::new(weight), x, sums[j]);
                }
                #[unroll]
                for j in 0..rest {
                    let x = load_one(v, at + vectors * lanes + j, shape.elem);
                    rests[j] = fma(weight, x, rests[j]);
                }
            }
        }
    }
    partials[out] = largest;
    partials[out + 1] = sum;
    #[unroll]
    for j in 0..vectors {
        store::<f32, N>(partials, out + 2 + j * lanes, sums[j]);
    }
    #[unroll]
    for j in 0..rest {
        partials[out + 2 + vectors * lanes + j] = rests[j];
    }
}

/// One vector of scores from key `s`; −∞ from `end` on.
#[cube]
fn score_keys<N: Size>(
    q: &[f32],
    k: &[f32],
    documents_t: &[i32],
    documents_s: &[i32],
    block: &Block,
    row: usize,
    base: usize,
    s: usize,
    end: usize,
    #[comptime] shape: Shape,
) -> Vector<f32, N> {
    let mut scores = Vector::<f32, N>::new(f32::NEG_INFINITY);
    #[unroll]
    for i in 0..N::value() {
        if s + i < end {
            let at = base + (s + i) * comptime!(shape.key_stride());
            let score = dot::<N>(q, row * shape.head, k, at, shape.head, shape.elem);
            let score = score * shape.scale();
            scores.insert(i, visible(score, documents_t, documents_s, block, s + i, shape));
        }
    }
    scores
}

/// The score, or −∞ where another document hides the key. Positions hide none of the keys that are
/// visited: those begin where the window does and end at the query.
#[cube]
fn visible(
    score: f32,
    documents_t: &[i32],
    documents_s: &[i32],
    block: &Block,
    key: usize,
    #[comptime] shape: Shape,
) -> f32 {
    let mut out = score;
    if comptime!(shape.documents) {
        let same = documents_t[block.batch] == documents_s[block.batch * shape.s + key];
        out = select(same, out, f32::NEG_INFINITY);
    }
    out
}

/// Adds up the parts of a row in their order.
#[cube]
fn combine(
    y: &mut [f32],
    lse: &mut [f32],
    partials: &mut [f32],
    block: &Block,
    row: usize,
    #[comptime] shape: Shape,
) {
    let size = comptime!(shape.head + 2);
    let parts = comptime!(shape.s.div_ceil(PART));
    let first = block.first_key / PART;
    let end = block.end_key.div_ceil(PART);
    let mut largest = f32::NEG_INFINITY.runtime();
    for part in first..end {
        largest = max(largest, partials[(row * parts + part) * size]);
    }
    let by = select(largest == f32::NEG_INFINITY, 0.0, largest);
    let mut sum = 0.0f32.runtime();
    for part in first..end {
        let at = (row * parts + part) * size;
        let factor = (partials[at] - by).exp();
        sum += partials[at + 1] * factor;
        // The maximum is not needed any more: its place takes the factor.
        partials[at] = factor;
    }
    let nothing = sum == 0.0;
    let inverse = select(nothing, 0.0, 1.0 / sum);
    lse[row] = select(nothing, f32::NEG_INFINITY, largest + sum.ln());
    for d in 0..shape.head {
        let mut total = 0.0f32.runtime();
        for part in first..end {
            let at = (row * parts + part) * size;
            total = fma(partials[at + 2 + d], partials[at], total);
        }
        store_one(y, row * shape.head + d, total * inverse, shape.elem);
    }
}

// ---- The launch: one cube; its units share (row, part of the keys), then rows.

pub(super) fn launch(device: &Device, shape: Shape, mask: &MaskArgs, args: &[Slice]) {
    let mut lanes = device.vector_width();
    while lanes > shape.head.max(1) {
        lanes /= 2;
    }
    // SAFETY: every index lies inside its buffer by the sizes of the spec.
    unsafe {
        decode::launch_unchecked(
            device.client(),
            CubeCount::new_single(),
            device.cube_dim(),
            lanes,
            device.buffer(&args[0]),
            device.buffer(&args[1]),
            device.buffer(&args[2]),
            device.buffer(&mask.documents_t),
            device.buffer(&mask.documents_s),
            device.buffer(&mask.start),
            device.buffer(&mask.rest[0]),
            device.buffer(&mask.rest[1]),
            device.buffer(&mask.rest[2]),
            shape,
            device.unaligned(&args[0], [shape.elem]),
        );
    }
    device.launched();
}
