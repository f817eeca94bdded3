//! The tile on tensor cores: planes have fragments of 16 by 16 sums each.

use super::stage::{Side, fetch, put};
use super::{Place, Plan, finish, place_of};
use crate::gpu::cube_pos;
use cubecl::cmma::{self, Matrix, MatrixIdent, MatrixLayout};
use cubecl::prelude::*;

/// Rows and columns of a fragment.
const FRAGMENT: usize = 16;
/// Units of a plane on every device that has tensor cores.
const PLANE: usize = 32;

/// Steps of k of one instruction.
fn step_of(plan: &Plan) -> usize {
    if plan.a.parts == 1 { 16 } else { 8 }
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
        let place = place_of(cube, order, comptime!(plan.clone()));
        let mut stage_a =
            Shared::<[S]>::new_aligned_slice(comptime!(plan.a.stage() * plan.a.parts), 128usize);
        let mut stage_b =
            Shared::<[S]>::new_aligned_slice(comptime!(plan.b.stage() * plan.b.parts), 128usize);
        let side_a = comptime!(plan.a.clone());
        let side_b = comptime!(plan.b.clone());
        let mut held_a = Array::<Vector<f32, NA>>::new(comptime!(plan.a.held()));
        let mut held_b = Array::<Vector<f32, NB>>::new(comptime!(plan.b.held()));
        let mut sums = Sequence::<Matrix<f32>>::new();
        #[unroll]
        for _ in 0..comptime!(fragments(&plan).0 * fragments(&plan).1) {
            sums.push(Matrix::<f32>::from_value(
                MatrixIdent::Accumulator,
                FRAGMENT,
                FRAGMENT,
                comptime!(step_of(&plan)),
                MatrixLayout::Undefined,
                0.0f32,
            ));
        }
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
            multiply::<S>(&stage_a, &stage_b, &sums, comptime!(plan.clone()));
        }
        finish_fragments(&sums, epilogue_inputs, outputs, order, &place, plan);
    }
}

/// Fragments of a plane along rows and columns.
fn fragments(plan: &Plan) -> (usize, usize) {
    let (m, n) = plan.tile.planes;
    (plan.tile.rows / m / FRAGMENT, plan.tile.columns / n / FRAGMENT)
}

/// Where this plane's part of the tile begins.
#[cube]
fn origin(#[comptime] plan: Plan) -> (usize, usize) {
    let plane = UNIT_POS as usize / PLANE;
    let (planes_m, planes_n) = comptime!(plan.tile.planes);
    let height = comptime!(plan.tile.rows / planes_m);
    let width = comptime!(plan.tile.columns / planes_n);
    (plane / planes_n * height, plane % planes_n * width)
}

/// One stage's products for the fragments of a plane.
#[cube]
fn multiply<S: Float>(
    stage_a: &[S],
    stage_b: &[S],
    sums: &Sequence<Matrix<f32>>,
    #[comptime] plan: Plan,
) {
    let (row, column) = origin(comptime!(plan.clone()));
    let (high, wide) = comptime!(fragments(&plan));
    let step = comptime!(step_of(&plan));
    let parts = comptime!(plan.a.parts);
    #[unroll]
    for i in 0..comptime!(plan.tile.depth / step) {
        let k = comptime!(i * step);
        let mut from_a = Sequence::<Matrix<S>>::new();
        let mut from_b = Sequence::<Matrix<S>>::new();
        #[unroll]
        for part in 0..parts {
            #[unroll]
            for r in 0..high {
                let at = row + comptime!(r * FRAGMENT);
                let side = comptime!(plan.a.clone());
                from_a.push(fragment::<S>(stage_a, at, k, step, part, MatrixIdent::A, side));
            }
            #[unroll]
            for c in 0..wide {
                let at = column + comptime!(c * FRAGMENT);
                let side = comptime!(plan.b.clone());
                from_b.push(fragment::<S>(stage_b, at, k, step, part, MatrixIdent::B, side));
            }
        }
        #[unroll]
        for r in 0..high {
            #[unroll]
            for c in 0..wide {
                let sum = sums.index(comptime!(r * wide + c));
                if comptime!(parts == 2) {
                    // The small products first: they would be lost beside a large sum.
                    cmma::execute(from_a.index(comptime!(high + r)), from_b.index(c), sum, sum);
                    cmma::execute(from_a.index(r), from_b.index(comptime!(wide + c)), sum, sum);
                }
                cmma::execute(from_a.index(r), from_b.index(c), sum, sum);
            }
        }
    }
}

/// The fragment whose rows begin at `row` of the stage, and its steps at `k`.
#[cube]
fn fragment<S: Float>(
    stage: &[S],
    row: usize,
    #[comptime] k: usize,
    #[comptime] step: usize,
    #[comptime] part: usize,
    #[comptime] ident: MatrixIdent,
    #[comptime] side: Side,
) -> Matrix<S> {
    let line = comptime!(side.line());
    let first = comptime!(part * side.stage());
    let mut at = first + k * line + row;
    if comptime!(side.along_k) {
        at = first + row * line + k;
    }
    // a is [row, k], and b is [k, row].
    let by_rows = comptime!(side.along_k == (ident == MatrixIdent::A));
    let layout = comptime!(if by_rows { MatrixLayout::RowMajor } else { MatrixLayout::ColMajor });
    let end = comptime!(side.stage() * side.parts);
    Matrix::<S>::from_slice(ident, FRAGMENT, FRAGMENT, step, layout, &stage[at..end], line as u32)
}

/// Fragments are opaque: they go through shared memory to the epilogue.
#[cube]
fn finish_fragments(
    sums: &Sequence<Matrix<f32>>,
    inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    order: &[u32],
    place: &Place,
    #[comptime] plan: Plan,
) {
    let (row, column) = origin(comptime!(plan.clone()));
    let (high, wide) = comptime!(fragments(&plan));
    let size = comptime!(FRAGMENT * FRAGMENT);
    let planes = comptime!(plan.tile.units / PLANE);
    let mut scratch = Shared::<[f32]>::new_aligned_slice(comptime!(size * planes), 128usize);
    let lane = UNIT_POS as usize % PLANE;
    let own = UNIT_POS as usize / PLANE * size;
    #[unroll]
    for r in 0..high {
        #[unroll]
        for c in 0..wide {
            let sum = sums.index(comptime!(r * wide + c));
            let line = FRAGMENT as u32;
            cmma::store(&mut scratch[own..own + size], sum, line, MatrixLayout::RowMajor);
            sync_plane();
            #[unroll]
            for i in 0..comptime!(size / PLANE) {
                let at = lane + comptime!(i * PLANE);
                finish(
                    inputs,
                    outputs,
                    order,
                    place,
                    row + comptime!(r * FRAGMENT) + at / FRAGMENT,
                    column + comptime!(c * FRAGMENT) + at % FRAGMENT,
                    scratch[own + at],
                    comptime!(plan.clone()),
                );
            }
            sync_plane();
        }
    }
}
