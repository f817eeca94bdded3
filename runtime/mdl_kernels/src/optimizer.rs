//! AdamW's step and the sum of squares that clips gradients: one pass over memory each.
//!
//! What they compute:
//! - sum of squares: out = Σ g²; 2·len flops, len elements read. Chunks of a fixed length are
//!   summed each in the same order, then the chunks in theirs, so the bits depend on `len` alone.
//! - AdamW: g' = g·scale; m = β1·m + (1−β1)·g'; v = β2·v + (1−β2)·g'²;
//!   p −= lr·(decay·p + (m/correct1)/(√(v/correct2) + eps)); 28·len bytes in f32.
//!
//! Divisions and roots are the correctly rounded ones; nothing is approximated. What is stored as
//! bf16 is the nearest, or one of the two neighbours by a hash of the value and the step's seed.

// The kernel language indexes: it has no iterators over slices.
#![allow(clippy::needless_range_loop)]

use crate::device::{Device, Slice};
use crate::embedding::share;
use crate::vector_io::{load_as, load_one, store_as, store_bits};
use cubecl::prelude::*;
use mdl_ir::kernel::{AdamWSpec, Elem, SUM_CHUNK, SumOfSquaresSpec};
use mdl_ir::rounding::{EXPONENT, MIX, QUIET, STREAM};

const CHUNK: usize = SUM_CHUNK as usize;
/// Independent accumulators, so that additions need not wait for each other.
const ACCUMULATORS: usize = 8;

/// Σ g² over `first..end`, in an order that depends on the two alone.
#[cube]
fn chunk_sum<N: Size>(g: &[f32], first: usize, end: usize, #[comptime] elem: Elem) -> f32 {
    let lanes = N::value();
    let step = comptime!(lanes * ACCUMULATORS);
    let mut sums = Array::<Vector<f32, N>>::new(ACCUMULATORS);
    let tail = first + (end - first) / step * step;
    for at in range_stepped(first, tail, step) {
        #[unroll]
        for i in 0..ACCUMULATORS {
            let x = load_as::<N>(g, at + i * N::value(), elem);
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
        let x = load_one(g, at, elem);
        sum = fma(x, x, sum);
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
    #[comptime] elem: Elem,
    #[comptime] more: bool,
) {
    let chunks = len.div_ceil(CHUNK);
    let first = share(chunks, UNIT_POS as usize);
    let end = share(chunks, UNIT_POS as usize + 1);
    for chunk in first..end {
        partials[chunk] = chunk_sum::<N>(g, chunk * CHUNK, min((chunk + 1) * CHUNK, len), elem);
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
pub(crate) struct Step {
    scale: f32,
    lr: f32,
    correct1: f32,
    correct2: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    decay: f32,
    seed: u32,
}

/// What the state lies in, and how results go there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    params: Elem,
    grads: Elem,
    moments: Elem,
    master: bool,
    pub stochastic: bool,
}

#[cube]
pub(crate) fn step_at<N: Size>(
    g: &[f32],
    p: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    master: &mut [f32],
    step: &Step,
    at: usize,
    #[comptime] form: Form,
) {
    let one = Vector::<f32, N>::new(1.0);
    let beta1 = Vector::new(step.beta1);
    let beta2 = Vector::new(step.beta2);
    let grad = load_as::<N>(g, at, form.grads) * Vector::new(step.scale);
    let first = beta1 * load_as::<N>(&*m, at, form.moments) + (one - beta1) * grad;
    let second = beta2 * load_as::<N>(&*v, at, form.moments) + (one - beta2) * (grad * grad);
    let chance = form.stochastic;
    put::<N>(m, at, first, step.seed, 1u32, form.moments, chance);
    put::<N>(v, at, second, step.seed, 2u32, form.moments, chance);
    let spread = (second / Vector::new(step.correct2)).sqrt() + Vector::new(step.eps);
    let direction = first / Vector::new(step.correct1) / spread;
    if comptime!(form.master) {
        let weight = load_as::<N>(&*master, at, Elem::F32);
        let change = Vector::new(step.decay) * weight + direction;
        let result = weight - Vector::new(step.lr) * change;
        store_as::<N>(master, at, result, Elem::F32);
        store_as::<N>(p, at, result, form.params);
    } else {
        let weight = load_as::<N>(&*p, at, form.params);
        let change = Vector::new(step.decay) * weight + direction;
        let result = weight - Vector::new(step.lr) * change;
        put::<N>(p, at, result, step.seed, 0u32, form.params, chance);
    }
}

/// Stores the nearest, or by `chance` one of the neighbours.
#[cube]
fn put<N: Size>(
    out: &mut [f32],
    at: usize,
    value: Vector<f32, N>,
    seed: u32,
    #[comptime] stream: u32,
    #[comptime] elem: Elem,
    #[comptime] chance: bool,
) {
    if comptime!(chance) {
        store_bits::<N>(out, at, stochastic_bits::<N>(value, seed, stream));
    } else {
        store_as::<N>(out, at, value, elem);
    }
}

/// `rounding::stochastic_round`.
#[cube]
fn stochastic_bits<N: Size>(
    value: Vector<f32, N>,
    seed: u32,
    #[comptime] stream: u32,
) -> Vector<u32, N> {
    let bits = Vector::<u32, N>::reinterpret(value);
    let key = Vector::new(seed ^ comptime!(stream.wrapping_mul(STREAM)));
    let random = mix::<N>(bits ^ mix::<N>(key)) & Vector::new(0xffffu32);
    let exponent = Vector::new(EXPONENT);
    let drawn = select_many((bits & exponent).equal(&exponent), bits, bits + random);
    let quiet = bits | Vector::new(QUIET);
    select_many(value.equal(&value), drawn, quiet) >> Vector::new(16u32)
}

/// `rounding::mix`.
#[cube]
fn mix<N: Size>(x: Vector<u32, N>) -> Vector<u32, N> {
    let x = (x ^ (x >> Vector::new(16u32))) * Vector::new(MIX[0]);
    let x = (x ^ (x >> Vector::new(13u32))) * Vector::new(MIX[1]);
    x ^ (x >> Vector::new(16u32))
}

#[cube]
pub(crate) fn step_of(
    scale: &[f32],
    lr: &[f32],
    correct1: &[f32],
    correct2: &[f32],
    seed: &[u32],
    beta1: f32,
    beta2: f32,
    eps: f32,
    decay: f32,
    #[comptime] stochastic: bool,
) -> Step {
    let mut chosen = 0u32;
    if comptime!(stochastic) {
        chosen = seed[0];
    }
    Step {
        scale: scale[0],
        lr: lr[0],
        correct1: correct1[0],
        correct2: correct2[0],
        beta1,
        beta2,
        eps,
        decay,
        seed: chosen,
    }
}

#[cube(launch_unchecked, address_type = "u64")]
fn adam_w<N: Size>(
    g: &[f32],
    scale: &[f32],
    lr: &[f32],
    correct1: &[f32],
    correct2: &[f32],
    seed: &[u32],
    p: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    master: &mut [f32],
    beta1: f32,
    beta2: f32,
    eps: f32,
    decay: f32,
    len: usize,
    _unaligned: &[f32],
    #[comptime] form: Form,
) {
    let step =
        step_of(scale, lr, correct1, correct2, seed, beta1, beta2, eps, decay, form.stochastic);
    let vectors = len / N::value();
    let first = share(vectors, UNIT_POS as usize);
    let end = share(vectors, UNIT_POS as usize + 1);
    for i in first..end {
        step_at::<N>(g, p, m, v, master, &step, i * N::value(), form);
    }
    if UNIT_POS == CUBE_DIM - 1 {
        for at in vectors * N::value()..len {
            step_at::<Const<1>>(g, p, m, v, master, &step, at, form);
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
            device.unaligned(&args[0], [spec.elem]),
            spec.elem,
            more,
        );
    }
    device.launched();
}

/// The optional buffers of a spec. What a form does not use is any buffer at all.
pub(crate) struct AdamWArgs<'a> {
    pub form: Form,
    pub seed: &'a Slice<'a>,
    /// p, m and v.
    pub state: &'a [Slice<'a>],
    pub master: &'a Slice<'a>,
}

impl<'a> AdamWArgs<'a> {
    pub(crate) fn of(spec: &AdamWSpec, args: &'a [Slice<'a>]) -> AdamWArgs<'a> {
        let (params, grads, moments) = (spec.params, spec.grads, spec.moments);
        let by_chance = params == Elem::Bf16 && moments == Elem::Bf16 && !spec.master;
        assert!(by_chance || !spec.stochastic, "chance is for a state that is all bf16");
        let (master, stochastic) = (spec.master, spec.stochastic);
        let state = &args[5 + usize::from(stochastic)..];
        AdamWArgs {
            form: Form { params, grads, moments, master, stochastic },
            seed: &args[if stochastic { 5 } else { 1 }],
            state,
            master: &state[if master { 3 } else { 0 }],
        }
    }
}

/// Buffers: as `AdamWSpec` lists them.
pub(crate) fn launch_adam_w(device: &Device, spec: &AdamWSpec, args: &[Slice]) {
    let AdamWArgs { form, seed, state, master } = AdamWArgs::of(spec, args);
    // SAFETY: indices stay below `len`, the length of g, p, m, v and the master copy.
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
            device.buffer(seed),
            device.buffer(&state[0]),
            device.buffer(&state[1]),
            device.buffer(&state[2]),
            device.buffer(master),
            spec.beta1,
            spec.beta2,
            spec.eps,
            spec.decay,
            spec.len as usize,
            device.unaligned(&args[0], [spec.params, spec.grads, spec.moments]),
            form,
        );
    }
    device.launched();
}

#[cfg(test)]
mod tests;
