//! Products of tiles, on tensor cores or by multiply-adds.
//!
//! Sums are held by the units of a plane the way the instructions `mma.m16n8` leave them: of a tile
//! of 16 rows and 8 columns, unit `4g + j` has columns `2j` and `2j + 1` of rows `g` and `g + 8`,
//! in this order. Operands are words, of which an instruction takes 8 along the sum; unit `4g + j`
//! gives words `j` and `j + 4` of rows `g` and `g + 8` of the left one, and of row `g` of the right
//! one. Multiply-adds do the same work with the same owners.

use super::shape::{DEPTH, PLANE, Product, ROWS, Shape, TILE};
use crate::vector_io::store;
use cubecl::cmma::MatrixShape;
use cubecl::intrinsic;
use cubecl::ir::dialect::matrix::MmaManualOp;
use cubecl::prelude::*;
use half::bf16;

/// The plane of this unit, and its place there: row `g` of eight, and column `j` of four.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Lane {
    pub plane: usize,
    pub g: usize,
    pub j: usize,
}

#[cube]
pub(crate) fn lane() -> Lane {
    let unit = UNIT_POS as usize;
    Lane { plane: unit / PLANE, g: unit % PLANE / 4, j: unit % 4 }
}

/// The row that this unit's numbers `half` (0 or 1) of a strip belong to, within the cube's.
#[cube]
pub(crate) fn own_row(
    lane: &Lane,
    #[comptime] strip: usize,
    #[comptime] half: usize,
    #[comptime] shape: Shape,
) -> usize {
    (lane.plane * shape.strips + strip) * ROWS + lane.g + comptime!(half * 8)
}

/// The column that number `i` (of 4) of a tile belongs to.
#[cube]
pub(crate) fn own_column(lane: &Lane, #[comptime] tile: usize, #[comptime] i: usize) -> usize {
    lane.j * 2 + comptime!(tile * TILE + i % 2)
}

/// out[row, column] = Σ_d own[row, d] · passing[column, d], for the plane's rows.
#[cube]
pub(crate) fn scores(own: &[f32], passing: &[f32], out: &mut Array<f32>, #[comptime] shape: Shape) {
    let lane = lane();
    let tiles = comptime!(shape.column_tiles());
    #[unroll]
    for i in 0..comptime!(shape.weights()) {
        out[i] = 0.0;
    }
    if comptime!(shape.product == Product::Loops) {
        scores_by_loops(own, passing, out, &lane, shape);
    } else {
        let row = own_row(&lane, 0usize, 0usize, shape) * shape.pitch() + lane.j;
        let column = lane.g * shape.pitch() + lane.j;
        #[unroll]
        for step in 0..comptime!(shape.words() / DEPTH) {
            let mut left = Array::<Vector<f32, Const<4>>>::new(shape.strips);
            #[unroll]
            for strip in 0..shape.strips {
                let at = row + comptime!(strip * ROWS * shape.pitch() + step * DEPTH);
                let below = at + comptime!(8 * shape.pitch());
                let mut words = Vector::<f32, Const<4>>::empty();
                words.insert(0usize, own[at]);
                words.insert(1usize, own[below]);
                words.insert(2usize, own[at + 4]);
                words.insert(3usize, own[below + 4]);
                left[strip] = words;
            }
            #[unroll]
            for tile in 0..tiles {
                let at = column + comptime!(tile * TILE * shape.pitch() + step * DEPTH);
                let mut right = Vector::<f32, Const<2>>::empty();
                right.insert(0usize, passing[at]);
                right.insert(1usize, passing[at + 4]);
                #[unroll]
                for strip in 0..shape.strips {
                    let sums = comptime!((strip * tiles + tile) * 4);
                    multiply(left[strip], right, out, sums, shape.product);
                }
            }
        }
    }
}

#[cube]
fn scores_by_loops(
    own: &[f32],
    passing: &[f32],
    out: &mut Array<f32>,
    lane: &Lane,
    #[comptime] shape: Shape,
) {
    let tiles = comptime!(shape.column_tiles());
    for word in 0..shape.words() {
        #[unroll]
        for strip in 0..shape.strips {
            #[unroll]
            for tile in 0..tiles {
                #[unroll]
                for i in 0..4 {
                    let row = own_row(lane, strip, comptime!(i / 2), shape);
                    let column = own_column(lane, tile, i);
                    let a = own[row * shape.pitch() + word];
                    let b = passing[column * shape.pitch() + word];
                    let sum = comptime!((strip * tiles + tile) * 4 + i);
                    out[sum] = fma(a, b, out[sum]);
                }
            }
        }
    }
}

/// out[row, d] += Σ_column weights[row, column] · passing[column, d], for the plane's rows. Weights
/// are held as sums are. `passing` is in the turned form where the shape has one.
#[cube]
pub(crate) fn add_weighted(
    weights: &Array<f32>,
    passing: &[f32],
    out: &mut Array<f32>,
    scratch: &mut [f32],
    #[comptime] shape: Shape,
) {
    let lane = lane();
    if comptime!(shape.product == Product::Loops) {
        add_by_loops(weights, passing, out, scratch, &lane, shape);
    } else if comptime!(shape.product == Product::Tf32) {
        let mut left = Array::<Vector<f32, Const<4>>>::new(comptime!(shape.steps()));
        #[unroll]
        for i in 0..comptime!(shape.steps()) {
            let mut words = Vector::<f32, Const<4>>::empty();
            words.insert(0usize, weights[comptime!(i * 4)]);
            words.insert(1usize, weights[comptime!(i * 4 + 2)]);
            words.insert(2usize, weights[comptime!(i * 4 + 1)]);
            words.insert(3usize, weights[comptime!(i * 4 + 3)]);
            left[i] = words;
        }
        // Words along the sum are columns: that of word j is 2j, and of word j + 4 it is 2j + 1,
        // which are the columns that unit j holds weights of.
        let first = lane.j * comptime!(2 * shape.pitch()) + lane.g;
        let pitch = comptime!(shape.pitch());
        add_steps(&left, passing, first, pitch, comptime!(TILE * pitch), out, shape);
    } else {
        let mut left = Array::<Vector<f32, Const<4>>>::new(comptime!(shape.steps()));
        #[unroll]
        for i in 0..comptime!(shape.steps()) {
            left[i] = narrowed(weights, comptime!(i * 8));
        }
        let first = lane.j * comptime!(shape.turned_pitch()) + lane.g;
        let pitch = comptime!(shape.turned_pitch());
        let (apart, stride) = comptime!((4 * pitch, DEPTH * pitch));
        add_steps(&left, passing, first, apart, stride, out, shape);
    }
}

/// Adds the products of all steps along the sum to each tile of the head. A step's right words are
/// at `base` and `apart` behind it, and those of the next step `stride` further. Tensor cores cut
/// off where they add, so each tile's products are summed by themselves and join the rest by a
/// rounded addition.
#[cube]
fn add_steps(
    left: &Array<Vector<f32, Const<4>>>,
    passing: &[f32],
    base: usize,
    #[comptime] apart: usize,
    #[comptime] stride: usize,
    out: &mut Array<f32>,
    #[comptime] shape: Shape,
) {
    let tiles = comptime!(shape.head_tiles());
    let steps = comptime!(shape.steps() / shape.strips);
    #[unroll]
    for tile in 0..tiles {
        let mut sums = Array::<f32>::new(comptime!(shape.strips * 4));
        #[unroll]
        for i in 0..comptime!(shape.strips * 4) {
            sums[i] = 0.0;
        }
        #[unroll]
        for step in 0..steps {
            let at = base + comptime!(tile * TILE + step * stride);
            let mut right = Vector::<f32, Const<2>>::empty();
            right.insert(0usize, passing[at]);
            right.insert(1usize, passing[at + apart]);
            #[unroll]
            for strip in 0..shape.strips {
                let words = left[comptime!(strip * steps + step)];
                multiply(words, right, &mut sums, comptime!(strip * 4), shape.product);
            }
        }
        #[unroll]
        for i in 0..comptime!(shape.strips * 4) {
            out[comptime!((i / 4 * tiles + tile) * 4 + i % 4)] += sums[i];
        }
    }
}

/// Eight weights as four words of two bf16, in their order: what an instruction leaves of two tiles
/// is what it takes of one.
#[cube]
fn narrowed(weights: &Array<f32>, #[comptime] at: usize) -> Vector<f32, Const<4>> {
    let mut wide = Vector::<f32, Const<8>>::empty();
    #[unroll]
    for i in 0..8 {
        wide.insert(i, weights[comptime!(at + i)]);
    }
    Vector::<f32, Const<4>>::reinterpret(Vector::<bf16, Const<8>>::cast_from(wide))
}

#[cube]
fn add_by_loops(
    weights: &Array<f32>,
    passing: &[f32],
    out: &mut Array<f32>,
    scratch: &mut [f32],
    lane: &Lane,
    #[comptime] shape: Shape,
) {
    let tiles = comptime!(shape.column_tiles());
    sync_cube();
    #[unroll]
    for at in 0..comptime!(shape.weights()) {
        let row = own_row(lane, comptime!(at / 4 / tiles), comptime!(at % 4 / 2), shape);
        let column = own_column(lane, comptime!(at / 4 % tiles), comptime!(at % 4));
        scratch[row * shape.scratch_pitch() + column] = weights[at];
    }
    sync_cube();
    for column in 0..shape.columns {
        #[unroll]
        for at in 0..comptime!(shape.sums()) {
            let strip = comptime!(at / 4 / shape.head_tiles());
            let row = own_row(lane, strip, comptime!(at % 4 / 2), shape);
            let d = own_column(lane, comptime!(at / 4 % shape.head_tiles()), comptime!(at % 4));
            let weight = scratch[row * shape.scratch_pitch() + column];
            out[at] = fma(weight, passing[column * shape.pitch() + d], out[at]);
        }
    }
}

/// sums[at..at + 4] += left · right, by one plane.
#[cube]
fn multiply(
    left: Vector<f32, Const<4>>,
    right: Vector<f32, Const<2>>,
    sums: &mut Array<f32>,
    #[comptime] at: usize,
    #[comptime] product: Product,
) {
    let mut four = Array::<f32>::new(4usize);
    #[unroll]
    for i in 0..4 {
        four[i] = sums[comptime!(at + i)];
    }
    if comptime!(product == Product::Bf16) {
        let left = Vector::<bf16, Const<8>>::reinterpret(left);
        let right = Vector::<bf16, Const<4>>::reinterpret(right);
        instruct::<bf16, Const<8>, Const<4>>(left, right, &mut four, 16usize);
    } else {
        let left_high = Vector::<tf32, Const<4>>::cast_from(left);
        let right_high = Vector::<tf32, Const<2>>::cast_from(right);
        let rest = left - Vector::cast_from(left_high);
        let left_low = Vector::<tf32, Const<4>>::cast_from(rest);
        let rest = right - Vector::cast_from(right_high);
        let right_low = Vector::<tf32, Const<2>>::cast_from(rest);
        instruct::<tf32, Const<4>, Const<2>>(left_low, right_high, &mut four, 8usize);
        instruct::<tf32, Const<4>, Const<2>>(left_high, right_low, &mut four, 8usize);
        instruct::<tf32, Const<4>, Const<2>>(left_high, right_high, &mut four, 8usize);
    }
    #[unroll]
    for i in 0..4 {
        sums[comptime!(at + i)] = four[i];
    }
}

/// The instruction `mma.m16n8` with so many numbers along the sum.
#[cube]
#[allow(unused_variables)]
fn instruct<E: Scalar, A: Size, B: Size>(
    left: Vector<E, A>,
    right: Vector<E, B>,
    sums: &mut Array<f32>,
    #[comptime] depth: usize,
) {
    let mut a = Array::<Vector<E, A>>::new(1usize);
    let mut b = Array::<Vector<E, B>>::new(1usize);
    a[0] = left;
    b[0] = right;
    intrinsic!(|scope| {
        let list = sums.__extract_list(scope);
        let (a, b) = (a.read_value(scope), b.read_value(scope));
        let old = sums.read_value(scope);
        let shape: MatrixShape = (16, 8, depth).into();
        scope.register(&MmaManualOp::new(scope.ctx_mut(), a, b, old, list, shape));
    });
}

/// The largest of four units' values, those with one `g`; each of them gets it.
#[cube]
pub(crate) fn max_of_row(value: f32, scratch: &mut [f32], #[comptime] shape: Shape) -> f32 {
    let mut out = value;
    if comptime!(shape.product == Product::Loops) {
        let unit = UNIT_POS as usize;
        sync_cube();
        scratch[unit] = value;
        sync_cube();
        #[unroll]
        for i in 0..4 {
            out = max(out, scratch[unit / 4 * 4 + i]);
        }
    } else {
        out = max(out, plane_shuffle_xor(out, 1u32));
        out = max(out, plane_shuffle_xor(out, 2u32));
    }
    out
}

/// The sum of the same four, the same for each of them.
#[cube]
pub(crate) fn sum_of_row(value: f32, scratch: &mut [f32], #[comptime] shape: Shape) -> f32 {
    let mut out = value;
    if comptime!(shape.product == Product::Loops) {
        let unit = UNIT_POS as usize;
        sync_cube();
        scratch[unit] = value;
        sync_cube();
        let four = unit / 4 * 4;
        out = (scratch[four] + scratch[four + 1]) + (scratch[four + 2] + scratch[four + 3]);
    } else {
        out += plane_shuffle_xor(out, 1u32);
        out += plane_shuffle_xor(out, 2u32);
    }
    out
}

/// Writes the plane's rows of a padded head, each times a factor: row `first + i` from element
/// `base + (first + i) · stride` on, and none from `end` on.
#[cube]
pub(crate) fn write_rows(
    sums: &Array<f32>,
    factors: &Array<f32>,
    to: &mut [f32],
    base: usize,
    first: usize,
    end: usize,
    #[comptime] stride: usize,
    #[comptime] shape: Shape,
) {
    let lane = lane();
    let tiles = comptime!(shape.head_tiles());
    #[unroll]
    for strip in 0..shape.strips {
        #[unroll]
        for half in 0..2usize {
            let row = first + own_row(&lane, strip, half, shape);
            let factor = factors[comptime!(strip * 2 + half)];
            if row < end {
                #[unroll]
                for tile in 0..tiles {
                    let d = own_column(&lane, tile, 0usize);
                    let at = comptime!((strip * tiles + tile) * 4 + half * 2);
                    let pair = (sums[at] * factor, sums[comptime!(at + 1)] * factor);
                    write_pair(to, base + row * stride + d, d, pair.0, pair.1, shape);
                }
            }
        }
    }
}

#[cube]
fn write_pair(to: &mut [f32], at: usize, d: usize, a: f32, b: f32, #[comptime] shape: Shape) {
    if comptime!(shape.wide && shape.product == Product::Bf16) {
        if d < shape.head {
            let mut pair = Vector::<f32, Const<2>>::empty();
            pair.insert(0usize, a);
            pair.insert(1usize, b);
            to[at / 2] = f32::reinterpret(Vector::<bf16, Const<2>>::cast_from(pair));
        }
    } else if comptime!(shape.wide) {
        if d < shape.head {
            let mut pair = Vector::<f32, Const<2>>::empty();
            pair.insert(0usize, a);
            pair.insert(1usize, b);
            store::<f32, Const<2>>(to, at, pair);
        }
    } else {
        if d < shape.head {
            crate::vector_io::store_one(to, at, a, shape.elem);
        }
        if d + 1 < shape.head {
            crate::vector_io::store_one(to, at + 1, b, shape.elem);
        }
    }
}
