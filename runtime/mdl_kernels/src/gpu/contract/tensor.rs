//! The tile on tensor cores: planes have fragments of 16 by 16 sums each.
//!
//! Tensor cores cut off where they add, so that an error would grow with k. Long sums are therefore
//! made of those of each stage, which are added to the total by rounded additions. A fragment is
//! finished before the next one begins, so that this takes the registers of one fragment and not as
//! many again as the tile has.

use super::fragments::{self, Fragment, SIDE as FRAGMENT};
use super::stage::{fetch, put};
use super::{Place, Plan, SMALL, finish, finish_pair, place_of};
use crate::contract_rotary::first_of;
use crate::gpu::cube_pos;
use crate::gpu::together::hold_together;
use cubecl::cmma::{MatrixIdent, MatrixLayout};
use cubecl::prelude::*;

/// Steps of k from which on a sum is long: units add so many in one run, too.
const LONG: usize = 512;
/// Units of a plane on every device that has tensor cores.
const PLANE: usize = 32;

/// Steps of k of one instruction.
fn step_of(plan: &Plan) -> usize {
    if plan.a.parts == 1 { 16 } else { 8 }
}

/// Cubes that a multiprocessor has registers for at least: 168 of a unit of a small tile, and as
/// many of a large one as there can be, 255. None of either needs more.
fn together(plan: &Plan) -> usize {
    if plan.tile.units > SMALL.units { 1 } else { 3 }
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn contract_tensor<S: Float, NA: Size, NB: Size>(
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
        hold_together(comptime!(together(&plan)));
        let place = place_of(cube, order, comptime!(plan.clone()));
        let mut stage_a =
            Shared::<[S]>::new_aligned_slice(comptime!(plan.a.stage() * plan.a.parts), 128usize);
        let mut stage_b =
            Shared::<[S]>::new_aligned_slice(comptime!(plan.b.stage() * plan.b.parts), 128usize);
        let side_a = comptime!(plan.a.clone());
        let side_b = comptime!(plan.b.clone());
        let mut held_a = Array::<Vector<f32, NA>>::new(comptime!(plan.a.held()));
        let mut held_b = Array::<Vector<f32, NB>>::new(comptime!(plan.b.held()));
        let mut sums = Sequence::<Fragment>::new();
        #[unroll]
        for _ in 0..comptime!(fragments(&plan).0 * fragments(&plan).1) {
            sums.push(fragments::zeros(comptime!(step_of(&plan))));
        }
        let origin = origin(comptime!(plan.clone()));
        let extra = prologue_inputs;
        fetch::<NA>(a, extra, order, &place, &mut held_a, 0, comptime!(side_a.clone()));
        fetch::<NB>(b, extra, order, &place, &mut held_b, 0, comptime!(side_b.clone()));
        for k in range_stepped(0, place.depth, comptime!(plan.tile.depth)) {
            sync_cube();
            put::<S, NA>(&held_a, &mut stage_a, comptime!(side_a.clone()));
            put::<S, NB>(&held_b, &mut stage_b, comptime!(side_b.clone()));
            sync_cube();
            let next = k + comptime!(plan.tile.depth);
            if next < place.depth {
                // Under way while the products of this stage are computed.
                let (side_a, side_b) = comptime!((side_a.clone(), side_b.clone()));
                fetch::<NA>(a, extra, order, &place, &mut held_a, next, side_a);
                fetch::<NB>(b, extra, order, &place, &mut held_b, next, side_b);
            }
            multiply::<S>(&stage_a, &stage_b, &sums, origin, comptime!(plan.clone()));
        }
        finish_fragments(&sums, epilogue_inputs, outputs, order, &place, origin, plan);
    }
}

/// Fragments of a plane along rows and columns.
fn fragments(plan: &Plan) -> (usize, usize) {
    let (m, n) = plan.tile.planes;
    (plan.tile.rows / m / FRAGMENT, plan.tile.columns / n / FRAGMENT)
}

/// Where the plane's part of the tile begins. The assembler keeps what it knows to be the same for
/// all units of a plane once for the plane, and that it knows of what they were told.
#[cube]
fn origin(#[comptime] plan: Plan) -> (usize, usize) {
    let plane = plane_broadcast(UNIT_POS / PLANE as u32, 0u32) as usize;
    let (planes_m, planes_n) = comptime!(plan.tile.planes);
    let height = comptime!(plan.tile.rows / planes_m);
    let width = comptime!(plan.tile.columns / planes_n);
    (plane / planes_n * height, plane % planes_n * width)
}

/// One stage's products for the fragments of a plane: all of its b, and a row of a at a time.
#[cube]
fn multiply<S: Float>(
    stage_a: &[S],
    stage_b: &[S],
    sums: &Sequence<Fragment>,
    origin: (usize, usize),
    #[comptime] plan: Plan,
) {
    let (row, column) = origin;
    let (high, wide) = comptime!(fragments(&plan));
    let steps = comptime!(plan.tile.depth / step_of(&plan));
    let parts = comptime!(plan.a.parts);
    let mut from_b = Sequence::<Fragment>::new();
    #[unroll]
    for c in 0..wide {
        #[unroll]
        for i in 0..comptime!(steps * parts) {
            let at = column + comptime!(c * FRAGMENT);
            from_b.push(fragment::<S>(stage_b, at, i, MatrixIdent::B, comptime!(plan.clone())));
        }
    }
    #[unroll]
    for r in 0..high {
        let mut from_a = Sequence::<Fragment>::new();
        #[unroll]
        for i in 0..comptime!(steps * parts) {
            let at = row + comptime!(r * FRAGMENT);
            from_a.push(fragment::<S>(stage_a, at, i, MatrixIdent::A, comptime!(plan.clone())));
        }
        #[unroll]
        for c in 0..wide {
            let total = sums.index(comptime!(r * wide + c));
            let first = comptime!(c * steps * parts);
            if comptime!(plan.depth > LONG) {
                let sum = fragments::zeros(comptime!(step_of(&plan)));
                products(&from_a, &from_b, first, &sum, steps, parts);
                fragments::add(total, &sum);
            } else {
                products(&from_a, &from_b, first, total, steps, parts);
            }
        }
    }
}

/// Adds the products of all steps of a stage to one sum.
#[cube]
fn products(
    from_a: &Sequence<Fragment>,
    from_b: &Sequence<Fragment>,
    #[comptime] first: usize,
    sum: &Fragment,
    #[comptime] steps: usize,
    #[comptime] parts: usize,
) {
    #[unroll]
    for i in 0..steps {
        let (a, b) = comptime!((i * parts, first + i * parts));
        if comptime!(parts == 2) {
            // The small products first: they would be lost beside a large sum.
            fragments::multiply(from_a.index(comptime!(a + 1)), from_b.index(b), sum);
            fragments::multiply(from_a.index(a), from_b.index(comptime!(b + 1)), sum);
        }
        fragments::multiply(from_a.index(a), from_b.index(b), sum);
    }
}

/// Number `i` of the fragments whose rows begin at `row` of the stage: the parts of each step.
#[cube]
fn fragment<S: Float>(
    stage: &[S],
    row: usize,
    #[comptime] i: usize,
    #[comptime] ident: MatrixIdent,
    #[comptime] plan: Plan,
) -> Fragment {
    let side = comptime!(if ident == MatrixIdent::A { plan.a.clone() } else { plan.b.clone() });
    let (line, along_k) = comptime!((side.line(), side.along_k));
    let step = comptime!(step_of(&plan));
    let first = comptime!(i % side.parts * side.stage());
    let k = comptime!(i / side.parts * step);
    let mut at = row + comptime!(first + k * line);
    if comptime!(along_k) {
        at = row * line + comptime!(first + k);
    }
    // a is [row, k], and b is [k, row].
    let by_rows = comptime!(along_k == (ident == MatrixIdent::A));
    let layout = comptime!(if by_rows { MatrixLayout::RowMajor } else { MatrixLayout::ColMajor });
    fragments::load::<S>(stage, at, line, ident, step, layout)
}

/// Fragments are opaque: they go through shared memory to the epilogue.
#[cube]
fn finish_fragments(
    sums: &Sequence<Fragment>,
    inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    order: &[u32],
    place: &Place,
    origin: (usize, usize),
    #[comptime] plan: Plan,
) {
    let (row, column) = origin;
    let (high, wide) = comptime!(fragments(&plan));
    let size = comptime!(FRAGMENT * FRAGMENT);
    let planes = comptime!(plan.tile.units / PLANE);
    let mut scratch = Shared::<[f32]>::new_aligned_slice(comptime!(size * planes), 128usize);
    let own = UNIT_POS as usize / PLANE * size;
    #[unroll]
    for r in 0..high {
        #[unroll]
        for c in 0..wide {
            let sum = sums.index(comptime!(r * wide + c));
            fragments::store(sum, &mut scratch, own);
            sync_plane();
            let place_r = row + comptime!(r * FRAGMENT);
            let place_c = column + comptime!(c * FRAGMENT);
            let (scratch, plan) = (&scratch, comptime!(plan.clone()));
            finish_fragment(scratch, own, inputs, outputs, order, place, place_r, place_c, plan);
            sync_plane();
        }
    }
}

/// Hands the sums of one fragment on, one by one or in pairs.
#[cube]
fn finish_fragment(
    scratch: &[f32],
    own: usize,
    inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    order: &[u32],
    place: &Place,
    row: usize,
    column: usize,
    #[comptime] plan: Plan,
) {
    let lane = UNIT_POS as usize % PLANE;
    let size = comptime!(FRAGMENT * FRAGMENT);
    let rotary = comptime!(plan.rotary.clone());
    #[comptime]
    match rotary {
        None =>
        {
            #[unroll]
            for i in 0..comptime!(size / PLANE) {
                let at = lane + comptime!(i * PLANE);
                let (r, c) = (row + at / FRAGMENT, column + at % FRAGMENT);
                let plan = comptime!(plan.clone());
                finish(inputs, outputs, order, place, r, c, scratch[own + at], plan);
            }
        }
        Some(rotary) => {
            let half = comptime!(FRAGMENT / 2);
            #[unroll]
            for i in 0..comptime!(size / 2 / PLANE) {
                let at = lane + comptime!(i * PLANE);
                let (r, c) = (at / half, first_of(at % half, comptime!(rotary.run)));
                let from = own + r * FRAGMENT + c;
                let (first, second) = (scratch[from], scratch[from + comptime!(rotary.run)]);
                let (rotary, plan) = comptime!((rotary.clone(), plan.clone()));
                let (r, c) = (row + r, column + c);
                finish_pair(inputs, outputs, place, r, c, first, second, rotary, plan);
            }
        }
    }
}
