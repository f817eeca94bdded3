//! The parts of `linear_cross_entropy` that are no contractions, on a GPU: a cube for each row of
//! logits, and one cube for sums over rows.

use super::math::{exp_of, ln_of};
use super::reduce::across_units;
use super::{UNITS, cube_pos, cubes};
use crate::device::{Device, Slice};
use crate::region::plan::Reduction;
use crate::vector_io::store_one;
use cubecl::prelude::*;
use mdl_ir::kernel::{Elem, LinearCrossEntropySpec};

const EACH: usize = UNITS as usize;

/// scale = 1 / max(number of valid targets, 1)
#[cube(launch_unchecked)]
fn count_valid(targets: &[i32], scale: &mut [f32]) {
    let mut scratch = Shared::<[f32]>::new_slice(EACH);
    // Counts below 2^24 are whole numbers in f32.
    let mut valid = 0.0f32;
    for i in range_stepped(UNIT_POS as usize, targets.len(), EACH) {
        if targets[i] >= 0 {
            valid += 1.0;
        }
    }
    let all = across_units(valid, &mut scratch, EACH, 1usize, Reduction::Sum);
    if UNIT_POS == 0 {
        scale[0] = 1.0 / max(all, 1.0);
    }
}

/// For each row of a block: its loss, and with `grad` the logits become their gradients.
#[cube(launch_unchecked, address_type = "dynamic")]
fn softmax_rows(
    logits: &mut [f32],
    targets: &[i32],
    scale: &[f32],
    losses: &mut [f32],
    #[comptime] vocab: usize,
    #[comptime] elem: Elem,
    #[comptime] grad: bool,
) {
    let mut scratch = Shared::<[f32]>::new_slice(EACH);
    let row = cube_pos();
    if row < targets.len() {
        let at = row * vocab;
        let unit = UNIT_POS as usize;
        let mut top = f32::min_value();
        for v in range_stepped(unit, vocab, EACH) {
            top = max(top, logits[at + v]);
        }
        let top = across_units(top, &mut scratch, EACH, 1usize, Reduction::Max);
        let mut sum = 0.0f32;
        for v in range_stepped(unit, vocab, EACH) {
            sum += exp_of(logits[at + v] - top);
        }
        let sum = across_units(sum, &mut scratch, EACH, 1usize, Reduction::Sum);
        let target = targets[row];
        if unit == 0 {
            losses[row] = 0.0;
            if target >= 0 {
                losses[row] = (top - logits[at + target as usize]) + ln_of(sum);
            }
        }
        // The target's logit has been read before it changes.
        sync_cube();
        if comptime!(grad) {
            let mut factor = 0.0f32;
            let mut own = 0.0f32;
            if target >= 0 {
                factor = scale[0] / sum;
                own = scale[0];
            }
            let to = at * comptime!((Elem::F32.bytes() / elem.bytes()) as usize);
            for step in 0..comptime!(vocab.div_ceil(EACH)) {
                let v = step * EACH + unit;
                let mut value = 0.0f32;
                if v < vocab {
                    value = exp_of(logits[at + v] - top) * factor;
                    if v as i32 == target {
                        value -= own;
                    }
                }
                if comptime!(elem != Elem::F32) {
                    // Halves go over logits of this step and of those before it.
                    sync_cube();
                }
                if v < vocab {
                    store_one(logits, to + v, value, elem);
                }
            }
        }
    }
}

/// loss = scale · Σ losses
#[cube(launch_unchecked)]
fn sum_losses(losses: &[f32], scale: &[f32], loss: &mut [f32]) {
    let mut scratch = Shared::<[f32]>::new_slice(EACH);
    let mut sum = 0.0f32;
    for i in range_stepped(UNIT_POS as usize, losses.len(), EACH) {
        sum += losses[i];
    }
    let all = across_units(sum, &mut scratch, EACH, 1usize, Reduction::Sum);
    if UNIT_POS == 0 {
        loss[0] = all * scale[0];
    }
}

pub(crate) fn count(device: &Device, targets: &Slice, scale: &Slice) {
    // SAFETY: `scale` has one element.
    unsafe {
        count_valid::launch_unchecked(
            device.client(),
            CubeCount::new_single(),
            CubeDim::new_1d(UNITS),
            device.buffer(targets),
            device.buffer(scale),
        );
    }
    device.launched();
}

/// Buffers: logits, targets, scale, losses.
pub(crate) fn softmax(device: &Device, buffers: &[Slice; 4], spec: &LinearCrossEntropySpec) {
    let [logits, targets, scale, losses] = buffers;
    // SAFETY: targets below the vocabulary are the caller's promise; rows come from the slices.
    unsafe {
        softmax_rows::launch_unchecked(
            device.client(),
            cubes(targets.bytes / 4),
            CubeDim::new_1d(UNITS),
            device.address_type(logits.bytes),
            device.buffer(logits),
            device.buffer(targets),
            device.buffer(scale),
            device.buffer(losses),
            spec.vocab as usize,
            spec.elem,
            spec.grad,
        );
    }
    device.launched();
}

pub(crate) fn total(device: &Device, losses: &Slice, scale: &Slice, loss: &Slice) {
    // SAFETY: `loss` and `scale` have one element.
    unsafe {
        sum_losses::launch_unchecked(
            device.client(),
            CubeCount::new_single(),
            CubeDim::new_1d(UNITS),
            device.buffer(losses),
            device.buffer(scale),
            device.buffer(loss),
        );
    }
    device.launched();
}
