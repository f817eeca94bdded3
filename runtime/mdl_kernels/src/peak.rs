//! What the device can do at most: multiply-adds a second and bytes a second.
//!
//! Measured in the same process as the kernels that are compared to it, since machines are shared.

use crate::device::{Class, Device, Slice};
use crate::gpu::peak as gpu;
use crate::vector_io::{load, store};
use cubecl::prelude::*;
use mdl_ir::kernel::Elem;
use std::time::Instant;

const ACCUMULATORS: usize = 24;
const ROUNDS: usize = 1 << 16;
const REPEATS: usize = 15;
const TRIAD_ELEMENTS: u64 = 16 << 20;

#[cube(launch_unchecked)]
fn fma_chain<N: Size>(out: &mut [f32], rounds: u32, _unaligned: &[f32]) {
    let mut sums = Array::<Vector<f32, N>>::new(ACCUMULATORS);
    let factor = load::<f32, N>(&*out, UNIT_POS as usize * N::value());
    let term = factor * Vector::new(0.5);
    for _ in 0..rounds {
        #[unroll]
        for i in 0..ACCUMULATORS {
            sums[i] = fma(sums[i], factor, term);
        }
    }
    let mut total = Vector::<f32, N>::new(0.0);
    #[unroll]
    for i in 0..ACCUMULATORS {
        total += sums[i];
    }
    store::<f32, N>(out, UNIT_POS as usize * N::value(), total);
}

#[cube(launch_unchecked)]
fn triad<N: Size>(a: &[f32], b: &[f32], out: &mut [f32], _unaligned: &[f32]) {
    let vectors = a.len() / N::value();
    let first = vectors * UNIT_POS as usize / CUBE_DIM as usize;
    let end = vectors * (UNIT_POS as usize + 1) / CUBE_DIM as usize;
    for i in first..end {
        let at = i * N::value();
        let sum = fma(load::<f32, N>(b, at), Vector::new(3.0), load::<f32, N>(a, at));
        store::<f32, N>(out, at, sum);
    }
}

#[cube(launch_unchecked, address_type = "u64")]
fn fill_kernel<N: Size>(out: &mut [f32], value: f32, _unaligned: &[f32]) {
    let vectors = out.len() / N::value();
    let first = vectors * UNIT_POS as usize / CUBE_DIM as usize;
    let end = vectors * (UNIT_POS as usize + 1) / CUBE_DIM as usize;
    for i in first..end {
        store::<f32, N>(out, i * N::value(), Vector::new(value));
    }
    if UNIT_POS == 0 {
        for i in vectors * N::value()..out.len() {
            out[i] = value;
        }
    }
}

/// Sets every element.
pub(crate) fn fill(device: &Device, out: &Slice, value: f32) {
    // SAFETY: indices stay below the length of `out`.
    unsafe {
        fill_kernel::launch_unchecked(
            device.client(),
            CubeCount::new_single(),
            device.cube_dim(),
            device.vector_width(),
            device.buffer(out),
            value,
            device.unaligned(out, [Elem::F32]),
        );
    }
    device.launched();
}

/// GFLOP/s of independent multiply-adds on registers, the best of several runs.
pub fn measure_fma_peak(device: &Device) -> f64 {
    if device.class() != Class::Cpu {
        let (elements, flops) = gpu::chains();
        let arena = device.alloc(elements * 4);
        let out = arena.slice(0, elements * 4);
        return best_of(device, flops, || gpu::launch_chains(device, &out));
    }
    let lanes = device.vector_width();
    let bytes = device.units() as u64 * lanes as u64 * 4;
    let arena = device.alloc(bytes);
    let flops = 2.0 * (ROUNDS * ACCUMULATORS * lanes) as f64 * device.units() as f64;
    best_of(device, flops, || {
        // SAFETY: each unit accesses its own vector of `out`.
        unsafe {
            fma_chain::launch_unchecked(
                device.client(),
                CubeCount::new_single(),
                device.cube_dim(),
                lanes,
                device.buffer(&arena.slice(0, bytes)),
                ROUNDS as u32,
                device.unaligned(&arena.slice(0, bytes), [Elem::F32]),
            );
        }
    })
}

/// GFLOP/s of tensor cores on operands in bf16, or none where a device has no such units.
pub fn measure_tensor_peak(device: &Device) -> Option<f64> {
    if !device.tensor_cores() {
        return None;
    }
    let (elements, flops) = gpu::tensor_chains();
    let arena = device.alloc(elements * 4);
    let out = arena.slice(0, elements * 4);
    Some(best_of(device, flops, || gpu::launch_tensor_chains(device, &out)))
}

/// GB/s of `out = a + 3·b` on arrays far larger than the caches, the best of several runs.
pub fn measure_triad(device: &Device) -> f64 {
    let bytes = TRIAD_ELEMENTS * 4;
    let arena = device.alloc(3 * bytes);
    let part = |i: u64| arena.slice(i * bytes, bytes);
    if device.class() != Class::Cpu {
        return best_of(device, 3.0 * bytes as f64, || {
            gpu::launch_triad(device, &part(0), &part(1), &part(2));
        });
    }
    best_of(device, 3.0 * bytes as f64, || {
        // SAFETY: the three slices have the same length.
        unsafe {
            triad::launch_unchecked(
                device.client(),
                CubeCount::new_single(),
                device.cube_dim(),
                device.vector_width(),
                device.buffer(&part(0)),
                device.buffer(&part(1)),
                device.buffer(&part(2)),
                device.unaligned(&part(0), [Elem::F32]),
            );
        }
    })
}

/// Work per nanosecond.
fn best_of(device: &Device, work: f64, launch: impl Fn()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        let start = Instant::now();
        launch();
        device.sync();
        best = best.min(start.elapsed().as_secs_f64());
    }
    work / best / 1e9
}
