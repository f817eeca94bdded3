//! Rows picked out of a table, added back into it, and written into a cache, on a GPU.
//!
//! A unit copies one element. In a scatter-add the cube of the first row with an id owns that id:
//! it adds up all rows that share it, in their order, and cubes of later ones end at once. So no
//! two cubes touch one element, and nothing is added atomically.

use super::{UNITS, cube_pos, cubes, cubes_for, unit_pos};
use crate::device::{Device, Slice};
use crate::vector_io::{copy, load_one, store_one};
use cubecl::prelude::*;
use mdl_ir::kernel::{CacheWriteSpec, Elem, GatherSpec, ScatterAddSpec};

#[cube(launch_unchecked, address_type = "dynamic")]
fn gather(
    table: &[f32],
    ids: &[i32],
    out: &mut [f32],
    rows: usize,
    #[comptime] width: usize,
    #[comptime] elem: Elem,
) {
    let item = unit_pos();
    if item < rows * width {
        let id = ids[item / width] as usize;
        copy::<Const<1>>(table, id * width + item % width, out, item, elem);
    }
}

/// Buffers: table, ids, out.
pub(crate) fn launch_gather(device: &Device, spec: &GatherSpec, args: &[Slice]) {
    let elements = u64::from(spec.rows) * u64::from(spec.width);
    // SAFETY: ids are known to be in range.
    unsafe {
        gather::launch_unchecked(
            device.client(),
            cubes_for(elements),
            CubeDim::new_1d(UNITS),
            device.address_type(args[0].bytes.max(args[2].bytes)),
            device.buffer(&args[0]),
            device.buffer(&args[1]),
            device.buffer(&args[2]),
            spec.rows as usize,
            spec.width as usize,
            spec.elem,
        );
    }
    device.launched();
}

/// Zeros elements of any kind, each unit its own.
#[cube(launch_unchecked, address_type = "dynamic")]
fn clear(out: &mut [f32], elements: usize, #[comptime] elem: Elem) {
    let at = unit_pos();
    if at < elements {
        store_one(out, at, 0.0, elem);
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn scatter_add(
    ids: &[i32],
    g: &[f32],
    out: &mut [f32],
    rows: usize,
    #[comptime] width: usize,
    #[comptime] accumulate: bool,
    #[comptime] elem: Elem,
    #[comptime] out_elem: Elem,
) {
    let found = Shared::<[Atomic<u32>]>::new_slice(1usize);
    let row = cube_pos();
    if UNIT_POS == 0 {
        found[0].store(0);
    }
    sync_cube();
    if row < rows {
        let id = ids[row];
        for earlier in range_stepped(UNIT_POS as usize, row, UNITS as usize) {
            if ids[earlier] == id {
                found[0].store(1);
            }
        }
    }
    sync_cube();
    if row < rows && found[0].load() == 0 {
        let id = ids[row];
        for column in range_stepped(UNIT_POS as usize, width, UNITS as usize) {
            let to = id as usize * width + column;
            let mut sum = 0.0f32;
            if comptime!(accumulate) {
                sum = load_one(&*out, to, out_elem);
            }
            for other in row..rows {
                if ids[other] == id {
                    sum += load_one(g, other * width + column, elem);
                }
            }
            store_one(out, to, sum, out_elem);
        }
    }
}

/// Buffers: ids, g, out.
pub(crate) fn launch_scatter_add(device: &Device, spec: &ScatterAddSpec, args: &[Slice]) {
    let elements = u64::from(spec.vocab) * u64::from(spec.width);
    let address = device.address_type(args[1].bytes.max(args[2].bytes));
    let dim = CubeDim::new_1d(UNITS);
    // SAFETY: ids are known to be in range.
    unsafe {
        if !spec.accumulate {
            let grid = cubes_for(elements);
            let out = device.buffer(&args[2]);
            let count = elements as usize;
            clear::launch_unchecked(device.client(), grid, dim, address, out, count, spec.out);
            device.launched();
        }
        scatter_add::launch_unchecked(
            device.client(),
            cubes(u64::from(spec.rows)),
            dim,
            address,
            device.buffer(&args[0]),
            device.buffer(&args[1]),
            device.buffer(&args[2]),
            spec.rows as usize,
            spec.width as usize,
            spec.accumulate,
            spec.elem,
            spec.out,
        );
    }
    device.launched();
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn cache_write(
    x: &[f32],
    start: &[i32],
    cache: &mut [f32],
    rows: usize,
    #[comptime] t: usize,
    #[comptime] capacity: usize,
    #[comptime] width: usize,
    #[comptime] elem: Elem,
) {
    let item = unit_pos();
    if item < rows * width {
        let row = item / width;
        let to = row / t * capacity + start[0] as usize + row % t;
        copy::<Const<1>>(x, item, cache, to * width + item % width, elem);
    }
}

/// Buffers: x, start, cache.
pub(crate) fn launch_cache_write(device: &Device, spec: &CacheWriteSpec, args: &[Slice]) {
    let rows = u64::from(spec.batch) * u64::from(spec.t);
    // SAFETY: `start + t` is known to be within the capacity.
    unsafe {
        cache_write::launch_unchecked(
            device.client(),
            cubes_for(rows * u64::from(spec.width)),
            CubeDim::new_1d(UNITS),
            device.address_type(args[2].bytes),
            device.buffer(&args[0]),
            device.buffer(&args[1]),
            device.buffer(&args[2]),
            rows as usize,
            spec.t as usize,
            spec.capacity as usize,
            spec.width as usize,
            spec.elem,
        );
    }
    device.launched();
}
