//! What a GPU can do at most: multiply-adds a second and bytes a second, by all its units.

use super::{UNITS, cubes, cubes_for, unit_pos};
use crate::device::{Device, Slice};
use cubecl::cmma::{self, Matrix, MatrixIdent, MatrixLayout};
use cubecl::prelude::*;

/// Independent chains of a unit, so that no multiply-add waits for the one before it.
const CHAINS: usize = 16;
pub(crate) const ROUNDS: usize = 1 << 12;
/// Cubes that are enough for every multiprocessor to be full several times.
pub(crate) const CUBES: u64 = 2048;
/// Rows, columns and steps of a product, and independent sums of a plane.
const FRAGMENT: usize = 16;
const SUMS: usize = 4;

#[cube(launch_unchecked)]
fn fma_chains(out: &mut [f32], rounds: u32) {
    let mut sums = Array::<f32>::new(CHAINS);
    let factor = out[0];
    let term = factor * 0.5;
    #[unroll]
    for i in 0..CHAINS {
        sums[i] = f32::cast_from(i) * factor;
    }
    for _ in 0..rounds {
        #[unroll]
        for i in 0..CHAINS {
            sums[i] = fma(sums[i], factor, term);
        }
    }
    let mut total = 0.0f32;
    #[unroll]
    for i in 0..CHAINS {
        total += sums[i];
    }
    out[unit_pos()] = total;
}

/// Products of fragments on registers.
#[cube(launch_unchecked)]
fn products(out: &mut [f32], rounds: u32) {
    let a = fragment(MatrixIdent::A, MatrixLayout::RowMajor);
    let b = fragment(MatrixIdent::B, MatrixLayout::ColMajor);
    let mut sums = Sequence::<Matrix<f32>>::new();
    #[unroll]
    for _ in 0..SUMS {
        sums.push(Matrix::<f32>::from_value(
            MatrixIdent::Accumulator,
            FRAGMENT,
            FRAGMENT,
            FRAGMENT,
            MatrixLayout::Undefined,
            0.0f32,
        ));
    }
    for _ in 0..rounds {
        #[unroll]
        for i in 0..SUMS {
            let sum = sums.index(i);
            cmma::execute(&a, &b, sum, sum);
        }
    }
    let size = comptime!(FRAGMENT * FRAGMENT);
    let plane = unit_pos() / 32;
    #[unroll]
    for i in 0..SUMS {
        let at = (plane * SUMS + i) * size;
        cmma::store(&mut out[at..at + size], sums.index(i), 16u32, MatrixLayout::RowMajor);
    }
}

#[cube]
fn fragment(
    #[comptime] ident: MatrixIdent,
    #[comptime] layout: MatrixLayout,
) -> Matrix<half::bf16> {
    let one = half::bf16::cast_from(1.0f32);
    Matrix::<half::bf16>::from_value(ident, FRAGMENT, FRAGMENT, FRAGMENT, layout, one)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn triad(a: &[f32], b: &[f32], out: &mut [f32]) {
    let at = unit_pos();
    if at < out.len() {
        out[at] = fma(b[at], 3.0f32, a[at]);
    }
}

/// Elements that the chains of all units write, and FLOPs that they do.
pub(crate) fn chains() -> (u64, f64) {
    let units = CUBES * u64::from(UNITS);
    (units, 2.0 * (units * CHAINS as u64) as f64 * ROUNDS as f64)
}

pub(crate) fn launch_chains(device: &Device, out: &Slice) {
    // SAFETY: `out` has an element for each unit.
    unsafe {
        fma_chains::launch_unchecked(
            device.client(),
            cubes(CUBES),
            CubeDim::new_1d(UNITS),
            device.buffer(out),
            ROUNDS as u32,
        );
    }
}

/// The same of tensor cores, for operands in bf16.
pub(crate) fn tensor_chains() -> (u64, f64) {
    let planes = CUBES * u64::from(UNITS) / 32;
    let sums = planes * SUMS as u64;
    let product = 2 * FRAGMENT.pow(3) as u64;
    (sums * FRAGMENT.pow(2) as u64, (sums * product) as f64 * ROUNDS as f64)
}

pub(crate) fn launch_tensor_chains(device: &Device, out: &Slice) {
    // SAFETY: `out` has room for the sums of every plane.
    unsafe {
        products::launch_unchecked(
            device.client(),
            cubes(CUBES),
            CubeDim::new_1d(UNITS),
            device.buffer(out),
            ROUNDS as u32,
        );
    }
}

pub(crate) fn launch_triad(device: &Device, a: &Slice, b: &Slice, out: &Slice) {
    // SAFETY: the three have the same length.
    unsafe {
        triad::launch_unchecked(
            device.client(),
            cubes_for(out.bytes / 4),
            CubeDim::new_1d(UNITS),
            device.address_type(out.bytes),
            device.buffer(a),
            device.buffer(b),
            device.buffer(out),
        );
    }
}
