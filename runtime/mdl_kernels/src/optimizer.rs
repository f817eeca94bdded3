//! AdamW's step and the sum of squares that clips gradients: one pass over memory each.
//!
//! What they compute:
//! - sum of squares: out = Σ g²; 2·len flops, 4·len bytes. Chunks of a fixed length are summed
//!   each in the same order, then the chunks in theirs, so the bits depend on `len` alone.
//! - AdamW: g' = g·scale; m = β1·m + (1−β1)·g'; v = β2·v + (1−β2)·g'²;
//!   p −= lr·(decay·p + (m/correct1)/(√(v/correct2) + eps)); 28·len bytes.
//!
//! Divisions and roots are the correctly rounded ones; nothing is approximated.

// The kernel language indexes: it has no iterators over slices.
#![allow(clippy::needless_range_loop)]

use crate::device::{Device, Slice};
use crate::embedding::share;
use crate::vector_io::{load, store};
use cubecl::prelude::*;
use mdl_ir::kernel::{AdamWSpec, SUM_CHUNK, SumOfSquaresSpec};

const CHUNK: usize = SUM_CHUNK as usize;
/// Independent accumulators, so that additions need not wait for each other.
const ACCUMULATORS: usize = 8;

/// Σ g² over `first..end`, in an order that depends on the two alone.
#[cube]
fn chunk_sum<N: Size>(g: &[f32], first: usize, end: usize) -> f32 {
    let lanes = N::value();
    let step = comptime!(lanes * ACCUMULATORS);
    let mut sums = Array::<Vector<f32, N>>::new(ACCUMULATORS);
    let tail = first + (end - first) / step * step;
    for at in range_stepped(first, tail, step) {
        #[unroll]
        for i in 0..ACCUMULATORS {
            let x = load::<f32, N>(g, at + i * N::value());
            sums[i] = fma(x, x, sums[i]);
        }
    }
    let mut total = Vector::<f32, N>::new(0.0);
    #[unroll]
    for i in 0..ACCUMULATORS {
        total += sums[i];
    }
    let mut sum = 0.0f32;
    #[unroll]
    for lane in 0..N::value() {
        sum += total.extract(lane);
    }
    for at in tail..end {
        sum = fma(g[at], g[at], sum);
    }
    sum
}

#[cube(launch_unchecked, address_type = "u64")]
fn sum_of_squares<N: Size>(
    g: &[f32],
    out: &mut [f32],
    partials: &mut [f32],
    len: usize,
    _unaligned: &[f32],
    #[comptime] more: bool,
) {
    let chunks = len.div_ceil(CHUNK);
    let first = share(chunks, UNIT_POS as usize);
    let end = share(chunks, UNIT_POS as usize + 1);
    for chunk in first..end {
        partials[chunk] = chunk_sum::<N>(g, chunk * CHUNK, min((chunk + 1) * CHUNK, len));
    }
    sync_cube();
    if UNIT_POS == 0 {
        // Compensated: there may be millions of chunks.
        let mut sum = 0.0f32;
        let mut lost = 0.0f32;
        if comptime!(more) {
            sum = out[0];
            lost = out[1];
        }
        for chunk in 0..chunks {
            let term = partials[chunk] - lost;
            let next = sum + term;
            lost = (next - sum) - term;
            sum = next;
        }
        out[0] = sum;
        if comptime!(more) {
            out[1] = lost;
        }
    }
}

/// The scalars of a step, read once.
#[derive(CubeType, Clone, Copy)]
struct Step {
    scale: f32,
    lr: f32,
    correct1: f32,
    correct2: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    decay: f32,
}

#[cube]
fn step_at<N: Size>(
    g: &[f32],
    p: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    step: &Step,
    at: usize,
) {
    let one = Vector::<f32, N>::new(1.0);
    let beta1 = Vector::new(step.beta1);
    let beta2 = Vector::new(step.beta2);
    let grad = load::<f32, N>(g, at) * Vector::new(step.scale);
    let first = beta1 * load::<f32, N>(&*m, at) + (one - beta1) * grad;
    let second = beta2 * load::<f32, N>(&*v, at) + (one - beta2) * (grad * grad);
    store::<f32, N>(m, at, first);
    store::<f32, N>(v, at, second);
    let spread = (second / Vector::new(step.correct2)).sqrt() + Vector::new(step.eps);
    let direction = first / Vector::new(step.correct1) / spread;
    let weight = load::<f32, N>(&*p, at);
    let change = Vector::new(step.decay) * weight + direction;
    store::<f32, N>(p, at, weight - Vector::new(step.lr) * change);
}

#[cube(launch_unchecked, address_type = "u64")]
fn adam_w<N: Size>(
    g: &[f32],
    scale: &[f32],
    lr: &[f32],
    correct1: &[f32],
    correct2: &[f32],
    p: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    beta1: f32,
    beta2: f32,
    eps: f32,
    decay: f32,
    len: usize,
    _unaligned: &[f32],
) {
    let step = Step {
        scale: scale[0],
        lr: lr[0],
        correct1: correct1[0],
        correct2: correct2[0],
        beta1,
        beta2,
        eps,
        decay,
    };
    let vectors = len / N::value();
    let first = share(vectors, UNIT_POS as usize);
    let end = share(vectors, UNIT_POS as usize + 1);
    for i in first..end {
        step_at::<N>(g, p, m, v, &step, i * N::value());
    }
    if UNIT_POS == CUBE_DIM - 1 {
        for at in vectors * N::value()..len {
            step_at::<Const<1>>(g, p, m, v, &step, at);
        }
    }
}

// ---- Launches: one cube; chunks or vectors are shared by its units.

/// Buffers: g, out, workspace of one f32 per chunk. With `more`, `out` has the sum of what came
/// before, which is gone on with.
pub(crate) fn launch_sum_of_squares(
    device: &Device,
    spec: &SumOfSquaresSpec,
    more: bool,
    args: &[Slice],
) {
    // SAFETY: indices stay below `len` and the number of chunks.
    unsafe {
        sum_of_squares::launch_unchecked(
            device.client(),
            CubeCount::new_single(),
            device.cube_dim(),
            device.vector_width(),
            device.buffer(&args[0]),
            device.buffer(&args[1]),
            device.buffer(&args[2]),
            spec.len as usize,
            device.unaligned(&args[0]),
            more,
        );
    }
    device.launched();
}

/// Buffers: g, scale, lr, correct1, correct2, p, m, v.
pub(crate) fn launch_adam_w(device: &Device, spec: &AdamWSpec, args: &[Slice]) {
    // SAFETY: indices stay below `len`, the length of g, p, m and v.
    unsafe {
        adam_w::launch_unchecked(
            device.client(),
            CubeCount::new_single(),
            device.cube_dim(),
            device.vector_width(),
            device.buffer(&args[0]),
            device.buffer(&args[1]),
            device.buffer(&args[2]),
            device.buffer(&args[3]),
            device.buffer(&args[4]),
            device.buffer(&args[5]),
            device.buffer(&args[6]),
            device.buffer(&args[7]),
            spec.beta1,
            spec.beta2,
            spec.eps,
            spec.decay,
            spec.len as usize,
            device.unaligned(&args[0]),
        );
    }
    device.launched();
}

#[cfg(test)]
mod tests;
