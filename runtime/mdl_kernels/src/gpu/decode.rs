//! Attention of a few queries a sequence on a GPU: costs the keys that are seen, not the cache's
//! capacity.
//!
//! A cube takes one query of one head and a part of its keys of a fixed length; what the parts give
//! is combined in order, so results depend on the spec alone. Units share keys for the scores, and
//! components of the head, then keys, for the sums of values.

use super::attention::mask::{Passing, start_of};
use super::attention::math::{NOTHING, exp2, log_sum};
use super::attention::shape::Shape;
use super::reduce::across_units;
use super::{UNITS, address_type, cube_pos, cubes, cubes_for, unit_pos};
use crate::attention::MaskArgs;
use crate::device::{Device, Slice};
use crate::region::plan::Reduction;
use crate::vector_io::{load, load_as, load_one, store, store_one};
use cubecl::prelude::*;
use mdl_ir::kernel::{AttentionBlocks, Elem};

const PART: usize = AttentionBlocks::DECODE_KEYS as usize;
const SHARERS: usize = 128;

/// How a cube walks through keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Walk {
    shape: Shape,
    parts: usize,
    /// Elements that a unit reads at a time, and how many such make a head.
    lanes: usize,
    across: usize,
    /// Units side by side on a head, and how many such groups share the keys.
    abreast: usize,
    groups: usize,
}

impl Walk {
    fn new(shape: Shape) -> Walk {
        let lanes = match (shape.wide, shape.elem) {
            (false, _) => 1,
            (true, Elem::Bf16) => 8,
            (true, _) => 4,
        };
        let across = shape.head / lanes;
        let abreast = across.min(SHARERS);
        let parts = shape.s.div_ceil(PART);
        Walk { shape, parts, lanes, across, abreast, groups: SHARERS / abreast }
    }

    fn rows(&self) -> usize {
        self.shape.batch * self.shape.t * self.shape.heads()
    }

    /// Elements that a part of a row leaves: the largest score, the sum, and Σ p · v.
    fn size(&self) -> usize {
        self.shape.head + 2
    }
}

/// The keys that one query sees.
#[cube]
fn keys_of_one(position: usize, #[comptime] shape: Shape) -> Passing {
    let mut first = 0usize.runtime();
    if comptime!(shape.window.is_some()) {
        let window = comptime!(shape.window.unwrap_or(0));
        first = max(position + 1, window.runtime()) - window;
    }
    let mut end = shape.s.runtime();
    if comptime!(shape.causal) {
        end = min(end, position + 1);
    }
    Passing { first: min(first, end), end }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn attention_decode<N: Size>(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    documents_t: &[i32],
    documents_s: &[i32],
    start: &[i32],
    partials: &mut [f32],
    #[comptime] walk: Walk,
) {
    let shape = comptime!(walk.shape);
    let rows = comptime!(walk.rows());
    let cube = cube_pos();
    let row = cube % rows;
    if cube < comptime!(rows * walk.parts) {
        let batch = row / comptime!(shape.t * shape.heads());
        let t = row / shape.heads() % shape.t;
        let passing = keys_of_one(start_of(start, shape) + t, shape);
        let part = cube / rows;
        let first = max(passing.first, part * PART);
        let end = min(passing.end, (part + 1) * PART);
        let out = (row * walk.parts + part) * comptime!(walk.size());
        if first < end {
            let mut query = Shared::<[f32]>::new_aligned_slice(shape.head, 32usize);
            for d in range_stepped(UNIT_POS as usize, shape.head, SHARERS) {
                query[d] = load_one(q, row * shape.head + d, shape.elem) * shape.scale_log2();
            }
            sync_cube();
            let head = row % shape.heads() / shape.group;
            let base = batch * comptime!(shape.s * shape.key_stride()) + head * shape.head;
            let mut powers = Shared::<[f32]>::new_slice(PART);
            let largest = scores_of::<N>(
                k,
                documents_t,
                documents_s,
                &query,
                &mut powers,
                base,
                batch,
                t,
                first,
                end,
                walk,
            );
            sum_values::<N>(v, base, first, end, largest, &mut powers, partials, out, walk);
        } else if UNIT_POS == 0 {
            partials[out] = NOTHING;
            partials[out + 1] = 0.0;
        }
    }
}

/// Scores of the keys `first..end`, as powers of two, and the largest of them.
#[cube]
fn scores_of<N: Size>(
    k: &[f32],
    documents_t: &[i32],
    documents_s: &[i32],
    query: &[f32],
    powers: &mut [f32],
    base: usize,
    batch: usize,
    t: usize,
    first: usize,
    end: usize,
    #[comptime] walk: Walk,
) -> f32 {
    let shape = comptime!(walk.shape);
    let mut scratch = Shared::<[f32]>::new_slice(SHARERS);
    let mut largest = NOTHING.runtime();
    for key in range_stepped(first + UNIT_POS as usize, end, SHARERS) {
        let at = base + key * comptime!(shape.key_stride());
        let mut score = dot::<N>(k, at, query, walk);
        if comptime!(shape.documents) {
            let theirs = documents_s[batch * shape.s + key];
            let same = documents_t[batch * shape.t + t] == theirs;
            score = select(same, score, NOTHING);
        }
        powers[key - first] = score;
        largest = max(largest, score);
    }
    across_units(largest, &mut scratch, SHARERS, 1usize, Reduction::Max)
}

/// What a part leaves: the largest score, the sum of powers relative to it, and Σ p · v.
#[cube]
fn sum_values<N: Size>(
    v: &[f32],
    base: usize,
    first: usize,
    end: usize,
    largest: f32,
    powers: &mut [f32],
    partials: &mut [f32],
    out: usize,
    #[comptime] walk: Walk,
) {
    let shape = comptime!(walk.shape);
    let mut scratch = Shared::<[f32]>::new_slice(SHARERS);
    let mut sums = Shared::<[f32]>::new_aligned_slice(comptime!(walk.groups * shape.head), 32usize);
    let unit = UNIT_POS as usize;
    let by = select(largest == NOTHING, 0.0, largest);
    let mut sum = 0.0f32;
    for key in range_stepped(unit, end - first, SHARERS) {
        let power = exp2(powers[key] - by, shape.product);
        powers[key] = power;
        sum += power;
    }
    sum = across_units(sum, &mut scratch, SHARERS, 1usize, Reduction::Sum);
    add_values::<N>(v, base, first, end - first, &*powers, &mut sums, walk);
    sync_cube();
    for d in range_stepped(unit, shape.head, SHARERS) {
        let mut total = 0.0f32;
        #[unroll]
        for group in 0..walk.groups {
            total += sums[group * shape.head + d];
        }
        partials[out + 2 + d] = total;
    }
    if unit == 0 {
        partials[out] = largest;
        partials[out + 1] = sum;
    }
}

/// The score of one key.
#[cube]
fn dot<N: Size>(k: &[f32], at: usize, query: &[f32], #[comptime] walk: Walk) -> f32 {
    let lanes = N::value();
    let mut sums = Vector::<f32, N>::new(0.0);
    for i in 0..walk.across {
        let x = load_as::<N>(k, at + i * lanes, walk.shape.elem);
        sums = fma(x, load::<f32, N>(query, i * lanes), sums);
    }
    let mut sum = sums.extract(0usize);
    #[unroll]
    for lane in 1..lanes {
        sum += sums.extract(lane);
    }
    sum
}

/// Σ p · v of each group of units.
#[cube]
fn add_values<N: Size>(
    v: &[f32],
    base: usize,
    first: usize,
    count: usize,
    powers: &[f32],
    sums: &mut [f32],
    #[comptime] walk: Walk,
) {
    let lanes = N::value();
    let shape = comptime!(walk.shape);
    let unit = UNIT_POS as usize;
    let group = unit / walk.abreast;
    if group < walk.groups {
        for i in range_stepped(unit % walk.abreast, walk.across, walk.abreast) {
            let mut sum = Vector::<f32, N>::new(0.0);
            for key in range_stepped(group, count, walk.groups) {
                let at = base + (first + key) * comptime!(shape.key_stride()) + i * lanes;
                sum = fma(Vector::new(powers[key]), load_as::<N>(v, at, shape.elem), sum);
            }
            store::<f32, N>(sums, group * shape.head + i * lanes, sum);
        }
    }
}

/// Adds up the parts of a row in their order, a unit for each component of the head.
#[cube(launch_unchecked, address_type = "dynamic")]
fn attention_combine(partials: &[f32], y: &mut [f32], lse: &mut [f32], #[comptime] walk: Walk) {
    let shape = comptime!(walk.shape);
    let item = unit_pos();
    if item < comptime!(walk.rows() * shape.head) {
        let row = item / shape.head;
        let d = item % shape.head;
        let base = row * comptime!(walk.parts * walk.size());
        let mut largest = NOTHING.runtime();
        for part in 0..walk.parts {
            largest = max(largest, partials[base + part * walk.size()]);
        }
        let by = select(largest == NOTHING, 0.0, largest);
        let mut total = 0.0f32;
        let mut sum = 0.0f32;
        for part in 0..walk.parts {
            let at = base + part * walk.size();
            // A part that nothing was seen of has no sums.
            if partials[at + 1] > 0.0 {
                let factor = exp2(partials[at] - by, shape.product);
                sum = fma(partials[at + 1], factor, sum);
                total = fma(partials[at + 2 + d], factor, total);
            }
        }
        if d == 0 {
            lse[row] = log_sum(largest, sum);
        }
        store_one(y, item, select(sum > 0.0, total / sum, 0.0), shape.elem);
    }
}

pub(super) fn launch(device: &Device, shape: Shape, mask: &MaskArgs, args: &[Slice]) {
    let walk = Walk::new(shape);
    let address = address_type(device, args);
    // SAFETY: every index lies inside its buffer by the sizes of the spec.
    unsafe {
        attention_decode::launch_unchecked(
            device.client(),
            cubes((walk.rows() * walk.parts) as u64),
            CubeDim::new_1d(SHARERS as u32),
            address,
            walk.lanes,
            device.buffer(&args[0]),
            device.buffer(&args[1]),
            device.buffer(&args[2]),
            device.buffer(&mask.documents_t),
            device.buffer(&mask.documents_s),
            device.buffer(&mask.start),
            device.buffer(&mask.rest[2]),
            walk,
        );
        device.launched();
        attention_combine::launch_unchecked(
            device.client(),
            cubes_for((walk.rows() * shape.head) as u64),
            CubeDim::new_1d(UNITS),
            address,
            device.buffer(&mask.rest[2]),
            device.buffer(&mask.rest[0]),
            device.buffer(&mask.rest[1]),
            walk,
        );
        device.launched();
    }
}
