//! AdamW and the sum of squares on a GPU: the CPU's formulas, an element or a chunk to each.

use super::reduce::across_units;
use super::{UNITS, cube_pos, cubes, cubes_for, unit_pos};
use crate::device::{Device, Slice};
use crate::optimizer::{AdamWArgs, Form, step_at, step_of};
use crate::region::plan::Reduction;
use crate::vector_io::load_one;
use cubecl::prelude::*;
use mdl_ir::kernel::{AdamWSpec, Elem, SUM_CHUNK, SumOfSquaresSpec};

const CHUNK: usize = SUM_CHUNK as usize;

#[cube(launch_unchecked, address_type = "dynamic")]
fn chunk_squares(g: &[f32], partials: &mut [f32], len: usize, #[comptime] elem: Elem) {
    let mut scratch = Shared::<[f32]>::new_slice(UNITS as usize);
    let chunk = cube_pos();
    if chunk * CHUNK < len {
        let end = min((chunk + 1) * CHUNK, len);
        let mut sum = 0.0f32;
        for at in range_stepped(chunk * CHUNK + UNIT_POS as usize, end, UNITS as usize) {
            let x = load_one(g, at, elem);
            sum = fma(x, x, sum);
        }
        let units = UNITS as usize;
        let whole = across_units(sum, &mut scratch, units, 1usize, Reduction::Sum);
        if UNIT_POS == 0 {
            partials[chunk] = whole;
        }
    }
}

/// Adds the chunks up in their order, compensated: there may be millions. By one unit; the loads
/// do not wait for each other.
#[cube(launch_unchecked)]
fn add_chunks(partials: &[f32], out: &mut [f32], chunks: usize, #[comptime] more: bool) {
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

/// Buffers: g, out, workspace of one f32 per chunk.
pub(crate) fn launch_squares(device: &Device, spec: &SumOfSquaresSpec, more: bool, args: &[Slice]) {
    let chunks = spec.len.div_ceil(SUM_CHUNK);
    // SAFETY: indices stay below `len` and the number of chunks.
    unsafe {
        chunk_squares::launch_unchecked(
            device.client(),
            cubes(chunks),
            CubeDim::new_1d(UNITS),
            device.address_type(args[0].bytes),
            device.buffer(&args[0]),
            device.buffer(&args[2]),
            spec.len as usize,
            spec.elem,
        );
        add_chunks::launch_unchecked(
            device.client(),
            CubeCount::new_single(),
            CubeDim::new_1d(1),
            device.buffer(&args[2]),
            device.buffer(&args[1]),
            chunks as usize,
            more,
        );
    }
    device.launched();
    device.launched();
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn adam_w(
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
    #[comptime] form: Form,
) {
    let at = unit_pos();
    if at < len {
        let step =
            step_of(scale, lr, correct1, correct2, seed, beta1, beta2, eps, decay, form.stochastic);
        step_at::<Const<1>>(g, p, m, v, master, &step, at, form);
    }
}

/// Buffers: as `AdamWSpec` lists them.
pub(crate) fn launch_adam_w(device: &Device, spec: &AdamWSpec, args: &[Slice]) {
    let AdamWArgs { form, seed, state, master } = AdamWArgs::of(spec, args);
    // SAFETY: indices stay below `len`, the length of g, p, m, v and the master copy.
    unsafe {
        adam_w::launch_unchecked(
            device.client(),
            cubes_for(spec.len),
            CubeDim::new_1d(UNITS),
            device.address_type(spec.len * 4),
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
            form,
        );
    }
    device.launched();
}
