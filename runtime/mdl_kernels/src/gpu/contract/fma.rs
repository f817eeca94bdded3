//! The tile without tensor cores: units have four by four sums each, in registers.

use super::stage::{fetch, put};
use super::{Place, Plan, finish, finish_pair, place_of};
use crate::contract_rotary::{Rotary, first_of};
use crate::gpu::cube_pos;
use cubecl::prelude::*;

/// Units along each side of a tile, and sums of a unit along each side.
const ACROSS: usize = 16;
const SUMS: usize = 4;
/// Steps of k that are added up before they join the total, so that no rounding grows with k.
const BLOCK: usize = 512;
/// Steps of k without a branch. A Vulkan in software ends whatever loops a unit is in after 65,535
/// rounds of all of them together.
const AT_ONCE: usize = 4;

#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn contract_fma(
    a: &[f32],
    b: &[f32],
    prologue_inputs: &Sequence<Box<[f32]>>,
    epilogue_inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    order: &[u32],
    #[comptime] plan: Plan,
) {
    let cube = cube_pos();
    if cube < comptime!(plan.tiles().0 * plan.tiles().1 * plan.batches) {
        let place = place_of(cube, order, comptime!(plan.clone()));
        let mut stage_a = Shared::<[f32]>::new_slice(comptime!(plan.a.stage()));
        let mut stage_b = Shared::<[f32]>::new_slice(comptime!(plan.b.stage()));
        let side_a = comptime!(plan.a.clone());
        let side_b = comptime!(plan.b.clone());
        let mut held_a = Array::<Vector<f32, Const<1>>>::new(comptime!(plan.a.held()));
        let mut held_b = Array::<Vector<f32, Const<1>>>::new(comptime!(plan.b.held()));
        let mut totals = Array::<f32>::new(comptime!(SUMS * SUMS));
        #[unroll]
        for i in 0..comptime!(SUMS * SUMS) {
            totals[i] = 0.0f32;
        }
        let extra = prologue_inputs;
        for block in range_stepped(0, place.depth, BLOCK) {
            let mut sums = Array::<f32>::new(comptime!(SUMS * SUMS));
            #[unroll]
            for i in 0..comptime!(SUMS * SUMS) {
                sums[i] = 0.0f32;
            }
            let end = min(block + BLOCK, place.depth);
            for k in range_stepped(block, end, comptime!(plan.tile.depth)) {
                let (side_a, side_b) = comptime!((side_a.clone(), side_b.clone()));
                fetch::<Const<1>>(a, extra, order, &place, &mut held_a, k, side_a);
                fetch::<Const<1>>(b, extra, order, &place, &mut held_b, k, side_b);
                let (side_a, side_b) = comptime!((plan.a.clone(), plan.b.clone()));
                sync_cube();
                put::<f32, Const<1>>(&held_a, &mut stage_a, side_a);
                put::<f32, Const<1>>(&held_b, &mut stage_b, side_b);
                sync_cube();
                multiply(&stage_a, &stage_b, &mut sums, comptime!(plan.clone()));
            }
            #[unroll]
            for i in 0..comptime!(SUMS * SUMS) {
                totals[i] += sums[i];
            }
        }
        let rotary = comptime!(plan.rotary.clone());
        #[comptime]
        match rotary {
            None => finish_alone(&totals, epilogue_inputs, outputs, order, &place, plan),
            Some(rotary) => finish_pairs(&totals, epilogue_inputs, outputs, &place, rotary, plan),
        }
    }
}

#[cube]
fn finish_alone(
    totals: &Array<f32>,
    inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    order: &[u32],
    place: &Place,
    #[comptime] plan: Plan,
) {
    let (y, x) = (UNIT_POS as usize / ACROSS, UNIT_POS as usize % ACROSS);
    #[unroll]
    for i in 0..SUMS {
        #[unroll]
        for j in 0..SUMS {
            let (r, c) = (y + comptime!(i * ACROSS), x + comptime!(j * ACROSS));
            let sum = totals[comptime!(i * SUMS + j)];
            finish(inputs, outputs, order, place, r, c, sum, comptime!(plan.clone()));
        }
    }
}

/// The sums of a pair belong to two units: rows pass through shared memory, one for each `y` at a
/// time.
#[cube]
fn finish_pairs(
    totals: &Array<f32>,
    inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    place: &Place,
    #[comptime] rotary: Rotary,
    #[comptime] plan: Plan,
) {
    let (y, x) = (UNIT_POS as usize / ACROSS, UNIT_POS as usize % ACROSS);
    let width = comptime!(ACROSS * SUMS);
    let mut rows = Shared::<[f32]>::new_slice(comptime!(ACROSS * width));
    #[unroll]
    for i in 0..SUMS {
        sync_cube();
        #[unroll]
        for j in 0..SUMS {
            rows[y * width + x + comptime!(j * ACROSS)] = totals[comptime!(i * SUMS + j)];
        }
        sync_cube();
        #[unroll]
        for j in 0..comptime!(SUMS / 2) {
            let c = first_of(x + comptime!(j * ACROSS), comptime!(rotary.run));
            let from = y * width + c;
            let (first, second) = (rows[from], rows[from + comptime!(rotary.run)]);
            let (rotary, plan) = comptime!((rotary.clone(), plan.clone()));
            let r = y + comptime!(i * ACROSS);
            finish_pair(inputs, outputs, place, r, c, first, second, rotary, plan);
        }
    }
}

#[cube]
fn multiply(stage_a: &[f32], stage_b: &[f32], sums: &mut Array<f32>, #[comptime] plan: Plan) {
    let (y, x) = (UNIT_POS as usize / ACROSS, UNIT_POS as usize % ACROSS);
    let strides_a = comptime!(strides(plan.a.along_k, plan.a.line()));
    let strides_b = comptime!(strides(plan.b.along_k, plan.b.line()));
    for first in range_stepped(0, comptime!(plan.tile.depth), AT_ONCE) {
        #[unroll]
        for i in 0..AT_ONCE {
            let k = first + i;
            let mut from_b = Array::<f32>::new(SUMS);
            #[unroll]
            for j in 0..SUMS {
                let c = x + comptime!(j * ACROSS);
                from_b[j] = stage_b[c * comptime!(strides_b.0) + k * comptime!(strides_b.1)];
            }
            #[unroll]
            for i in 0..SUMS {
                let r = y + comptime!(i * ACROSS);
                let x = stage_a[r * comptime!(strides_a.0) + k * comptime!(strides_a.1)];
                #[unroll]
                for j in 0..SUMS {
                    let at = comptime!(i * SUMS + j);
                    sums[at] = fma(x, from_b[j], sums[at]);
                }
            }
        }
    }
}

/// Of a row and of a step of k in a stage.
fn strides(along_k: bool, line: usize) -> (usize, usize) {
    if along_k { (line, 1) } else { (1, line) }
}
