//! What the device can do at most: multiply-adds a second and bytes a second.
//!
//! Measured in the same process as the kernels that are compared to it, since machines are shared.

use crate::device::{Class, Device, Slice};
use crate::gpu::peak as gpu;
use crate::pairs::dot;
use crate::products::Products;
use crate::tiles::{self, SIDE};
use crate::vector_io::{load, store};
use cubecl::prelude::*;
use mdl_ir::kernel::Elem;
use std::time::Instant;

/// Sums of a chain for so many registers: enough for all multiply-adds that are under way, and few
/// enough to stay there.
fn accumulators(device: &Device) -> usize {
    device.vector_registers() * 3 / 4
}

const ROUNDS: usize = 1 << 16;
const REPEATS: usize = 15;
/// Elements of a tile of sums, and operations of one visit of it.
const TILE: usize = 4 * SIDE * SIDE;
const TILE_FLOPS: usize = TILE * 4 * SIDE;
/// Elements of an array of the triad, at least.
const TRIAD_ELEMENTS: u64 = 16 << 20;

#[cube(launch_unchecked)]
fn fma_chain<N: Size>(
    out: &mut [f32],
    rounds: u32,
    _unaligned: &[f32],
    #[comptime] products: Products,
    #[comptime] count: usize,
) {
    let mut sums = Array::<Vector<f32, N>>::new(count);
    let factor = load::<f32, N>(&*out, UNIT_POS as usize * N::value());
    let term = factor * Vector::new(0.5);
    for _ in 0..rounds {
        #[unroll]
        for i in 0..count {
            if comptime!(products == Products::Vectors) {
                sums[i] = dot::<N>(sums[i], factor, term);
            } else {
                sums[i] = fma(sums[i], factor, term);
            }
        }
    }
    let mut total = Vector::<f32, N>::new(0.0);
    #[unroll]
    for i in 0..count {
        total += sums[i];
    }
    store::<f32, N>(out, UNIT_POS as usize * N::value(), total);
}

/// Products of tiles of zeros, in `TILE` elements of each unit.
#[cube(launch_unchecked)]
fn tile_chain(out: &mut [f32], rounds: u32, _unaligned: &[f32]) {
    let own = UNIT_POS as usize * TILE;
    tiles::configure(out, own);
    tiles::zero();
    let zeros = own + SIDE;
    tiles::load(&*out, zeros, zeros, SIDE.runtime(), &*out, zeros);
    for _ in 0..rounds {
        tiles::multiply();
    }
    tiles::store_sums(out, own, (2 * SIDE).runtime());
    tiles::release();
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
    measure_chains(device, Products::Widened)
}

/// The same with the device's instructions for bf16.
pub fn measure_bf16_peak(device: &Device) -> f64 {
    if device.tensor_cores() {
        let (elements, flops) = gpu::tensor_chains();
        let arena = device.alloc(elements * 4);
        let out = arena.slice(0, elements * 4);
        return best_of(device, flops, || gpu::launch_tensor_chains(device, &out));
    }
    match device.products() {
        Products::Tiles => measure_tiles(device),
        products => measure_chains(device, products),
    }
}

fn measure_chains(device: &Device, products: Products) -> f64 {
    let lanes = device.vector_width();
    let bytes = device.units() as u64 * lanes as u64 * 4;
    let arena = device.alloc(bytes);
    let steps = if products == Products::Vectors { 2 } else { 1 };
    let count = accumulators(device);
    let flops = 2.0 * (steps * ROUNDS * count * lanes) as f64 * device.units() as f64;
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
                products,
                count,
            );
        }
    })
}

fn measure_tiles(device: &Device) -> f64 {
    let bytes = device.units() as u64 * TILE as u64 * 4;
    let arena = device.alloc(bytes);
    let flops = (ROUNDS * TILE_FLOPS) as f64 * device.units() as f64;
    best_of(device, flops, || {
        // SAFETY: each unit accesses its own tile of `out`.
        unsafe {
            tile_chain::launch_unchecked(
                device.client(),
                CubeCount::new_single(),
                device.cube_dim(),
                device.buffer(&arena.slice(0, bytes)),
                ROUNDS as u32,
                device.unaligned(&arena.slice(0, bytes), [Elem::F32]),
            );
        }
    })
}

/// GB/s of `out = a + 3·b` on arrays far larger than the caches, the best of several runs.
pub fn measure_triad(device: &Device) -> f64 {
    // Twice what this core's last cache holds, so that next to nothing of it stays there.
    let cache = device.as_cpu().caches[2] as u64;
    let bytes = (2 * cache).max(4 * TRIAD_ELEMENTS).next_multiple_of(256);
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
