//! Rows picked out of a table, added back into it, and written into a cache at a run-time place.
//!
//! What they compute, with `width` contiguous elements a row:
//! - gather: out[i, :] = table[ids[i], :]; moves 2·rows·width elements.
//! - scatter-add: out[v, :] += Σ_{i: ids[i] = v} g[i, :], in the order of i; rows·width adds,
//!   3·rows·width elements, and vocab·width more to zero `out` unless it accumulates.
//! - cache write: cache[b, start + t, :] = x[b, t, :]; moves 2·batch·t·width elements.
//!
//! Each unit of a scatter-add owns a range of columns and walks all ids in order: no two units
//! touch one element, and skewed ids do not unbalance it.

// The kernel language indexes: it has neither iterators over slices nor `copy_from_slice`.
#![allow(clippy::needless_range_loop, clippy::manual_memcpy)]

use crate::device::{Device, Slice};
use crate::grouped::sort::{sort_rows, start_of};
use crate::prefetch::{LINE_BYTES, prefetch, rows_ahead};
use crate::stream::{fence, pays, store_past};
use crate::vector_io::{copy, load, load_as, store, store_as};
use cubecl::prelude::*;
use mdl_ir::kernel::{CacheWriteSpec, Elem, GatherSpec, ScatterAddSpec};

/// The first of `count` things that this unit owns, or that unit `UNIT_POS + 1` does.
#[cube]
pub(crate) fn share(count: usize, unit: usize) -> usize {
    count * unit / CUBE_DIM as usize
}

#[cube]
fn copy_row<N: Size>(
    from: &[f32],
    at: usize,
    into: &mut [f32],
    to: usize,
    width: usize,
    #[comptime] elem: Elem,
) {
    let vectors = width / N::value();
    for i in 0..vectors {
        copy::<N>(from, at + i * N::value(), into, to + i * N::value(), elem);
    }
    for i in vectors * N::value()..width {
        copy::<Const<1>>(from, at + i, into, to + i, elem);
    }
}

/// Where rows go past the caches they are whole vectors of f32, whatever they hold.
#[cube(launch_unchecked, address_type = "u64")]
fn gather<N: Size>(
    table: &[f32],
    ids: &[i32],
    out: &mut [f32],
    #[comptime] width: usize,
    #[comptime] elem: Elem,
    #[comptime] past_caches: bool,
    _unaligned: &[f32],
) {
    let first = share(ids.len(), UNIT_POS as usize);
    let end = share(ids.len(), UNIT_POS as usize + 1);
    let ahead = comptime!(rows_ahead(width, elem));
    let whole = width / N::value() * N::value();
    for row in first..end {
        let (from, to) = (ids[row] as usize * width, row * width);
        let next = ids[min(row + ahead, end - 1)] as usize * width;
        for i in range_stepped(0, whole, N::value()) {
            prefetch(table, next + i, elem);
            if comptime!(past_caches) {
                store_past::<N>(out, to + i, load::<f32, N>(table, from + i));
            } else {
                copy::<N>(table, from + i, out, to + i, elem);
            }
        }
        for i in whole..width {
            copy::<Const<1>>(table, from + i, out, to + i, elem);
        }
    }
    if comptime!(past_caches) {
        fence();
    }
}

/// Zeros, one behind the other: a row that a unit has a part of would be fetched to be written, and
/// memory that is written as a whole is not.
#[cube]
fn clear<N: Size>(out: &mut [f32], elements: usize, #[comptime] elem: Elem) {
    let vectors = elements / N::value();
    for i in share(vectors, UNIT_POS as usize)..share(vectors, UNIT_POS as usize + 1) {
        store_as::<N>(out, i * N::value(), Vector::new(0.0), elem);
    }
    if UNIT_POS == 0 {
        for i in vectors * N::value()..elements {
            store_as::<Const<1>>(out, i, Vector::new(0.0), elem);
        }
    }
}

#[cube]
fn add_at<N: Size>(g: &[f32], from: usize, out: &mut [f32], to: usize, #[comptime] elem: Elem) {
    let sum = load::<f32, N>(&*out, to) + load_as::<N>(g, from, elem);
    store::<f32, N>(out, to, sum);
}

/// The columns of a row that are this unit's, in whole lines: two units that write to one line
/// would take it from each other all the time.
#[cube]
fn columns_of_unit(#[comptime] width: usize, #[comptime] elem: Elem) -> (usize, usize) {
    let line = comptime!(LINE_BYTES / elem.bytes() as usize);
    let lines = comptime!(width.div_ceil(line));
    let first = share(lines, UNIT_POS as usize) * line;
    (min(first, width), min(share(lines, UNIT_POS as usize + 1) * line, width))
}

#[cube(launch_unchecked, address_type = "u64")]
fn scatter_add<N: Size>(
    ids: &[i32],
    g: &[f32],
    out: &mut [f32],
    vocab: usize,
    #[comptime] width: usize,
    #[comptime] ahead: usize,
    #[comptime] accumulate: bool,
    #[comptime] elem: Elem,
    _unaligned: &[f32],
) {
    let lanes = N::value();
    let (first, end) = columns_of_unit(width, Elem::F32);
    let tail = first + (end - first) / lanes * lanes;
    if comptime!(!accumulate) {
        clear::<N>(out, vocab * width, Elem::F32);
        sync_cube();
    }
    for row in 0..ids.len() {
        let to = ids[row] as usize * width;
        let from = row * width;
        let later = min(row + ahead, ids.len() - 1);
        let next = ids[later] as usize * width;
        for i in range_stepped(first, tail, lanes) {
            prefetch(&*out, next + i, Elem::F32);
            prefetch(g, later * width + i, elem);
            add_at::<N>(g, from + i, out, to + i, elem);
        }
        for i in tail..end {
            add_at::<Const<1>>(g, from + i, out, to + i, elem);
        }
    }
}

/// The same into bf16: the rows of one id follow each other in `sorted`, so that their sum is
/// complete in a register and rounded once.
#[cube(launch_unchecked, address_type = "u64")]
fn scatter_rounded<N: Size>(
    ids: &[i32],
    g: &[f32],
    out: &mut [f32],
    sorted: &mut [u32],
    #[comptime] rows: usize,
    #[comptime] vocab: usize,
    #[comptime] width: usize,
    #[comptime] ahead: usize,
    #[comptime] accumulate: bool,
    #[comptime] elem: Elem,
    _unaligned: &[f32],
) {
    if comptime!(!accumulate) {
        clear::<N>(out, comptime!(vocab * width), Elem::Bf16);
    }
    if UNIT_POS == 0 {
        sort_rows(ids, sorted, rows, vocab);
    }
    sync_cube();
    let lanes = N::value();
    let (first, end) = columns_of_unit(width, Elem::Bf16);
    let tail = first + (end - first) / lanes * lanes;
    for id in 0..vocab {
        let from = start_of(&*sorted, id, rows);
        let to = start_of(&*sorted, id + 1, rows);
        if from < to {
            let next = ids[usize::cast_from(sorted[min(to + ahead, rows - 1)])] as usize;
            for i in range_stepped(first, tail, lanes) {
                for at in from..to {
                    let later = usize::cast_from(sorted[min(at + ahead, rows - 1)]);
                    prefetch(g, later * width + i, elem);
                }
                prefetch(&*out, next * width + i, Elem::Bf16);
                sum_rows::<N>(g, &*sorted, from, to, out, id, i, width, accumulate, elem);
            }
            for i in tail..end {
                sum_rows::<Const<1>>(g, &*sorted, from, to, out, id, i, width, accumulate, elem);
            }
        }
    }
}

/// Columns `i..i + N` of the rows `first..end` of the order, into row `id`.
#[cube]
fn sum_rows<N: Size>(
    g: &[f32],
    sorted: &[u32],
    first: usize,
    end: usize,
    out: &mut [f32],
    id: usize,
    i: usize,
    #[comptime] width: usize,
    #[comptime] accumulate: bool,
    #[comptime] elem: Elem,
) {
    let mut sum = Vector::<f32, N>::new(0.0);
    if comptime!(accumulate) {
        sum = load_as::<N>(&*out, id * width + i, Elem::Bf16);
    }
    for at in first..end {
        sum += load_as::<N>(g, usize::cast_from(sorted[at]) * width + i, elem);
    }
    store_as::<N>(out, id * width + i, sum, Elem::Bf16);
}

#[cube(launch_unchecked, address_type = "u64")]
fn cache_write<N: Size>(
    x: &[f32],
    start: &[i32],
    cache: &mut [f32],
    batch: usize,
    t: usize,
    capacity: usize,
    #[comptime] width: usize,
    #[comptime] elem: Elem,
    _unaligned: &[f32],
) {
    let rows = batch * t;
    let place = start[0] as usize;
    let first = share(rows, UNIT_POS as usize);
    let end = share(rows, UNIT_POS as usize + 1);
    for row in first..end {
        let to = row / t * capacity + place + row % t;
        copy_row::<N>(x, row * width, cache, to * width, width, elem);
    }
}

// ---- Launches: one cube; rows, or columns for the scatter-add, are shared by its units.

/// Buffers: table, ids, out.
pub(crate) fn launch_gather(device: &Device, spec: &GatherSpec, args: &[Slice]) {
    let row_bytes = u64::from(spec.width) * spec.elem.bytes();
    let past_caches = pays(device, &args[2], row_bytes);
    let (width, elem) = match past_caches {
        true => ((row_bytes / 4) as usize, Elem::F32),
        false => (spec.width as usize, spec.elem),
    };
    // SAFETY: ids are in range, and `out` has one row per id. Past the caches `pays` says that each
    // vector of `out` is aligned.
    unsafe {
        gather::launch_unchecked(
            device.client(),
            CubeCount::new_single(),
            device.cube_dim(),
            device.vector_width(),
            device.buffer(&args[0]),
            device.buffer(&args[1].part(0, u64::from(spec.rows) * 4)),
            device.buffer(&args[2]),
            width,
            elem,
            past_caches,
            device.unaligned(&args[0], [elem]),
        );
    }
    device.launched();
}

/// Buffers: ids, g, out, workspace.
pub(crate) fn launch_scatter_add(device: &Device, spec: &ScatterAddSpec, args: &[Slice]) {
    if spec.out == Elem::Bf16 {
        return launch_scatter_rounded(device, spec, args);
    }
    // SAFETY: ids are in range, and the sizes are those of the spec.
    unsafe {
        scatter_add::launch_unchecked(
            device.client(),
            CubeCount::new_single(),
            device.cube_dim(),
            device.vector_width(),
            device.buffer(&args[0].part(0, u64::from(spec.rows) * 4)),
            device.buffer(&args[1]),
            device.buffer(&args[2]),
            spec.vocab as usize,
            spec.width as usize,
            columns_ahead(device, spec),
            spec.accumulate,
            spec.elem,
            device.unaligned(&args[0], [spec.elem]),
        );
    }
    device.launched();
}

/// How many rows ahead a unit asks for, of which it touches its own columns alone.
fn columns_ahead(device: &Device, spec: &ScatterAddSpec) -> usize {
    rows_ahead(spec.width.div_ceil(device.units()) as usize, spec.elem)
}

fn launch_scatter_rounded(device: &Device, spec: &ScatterAddSpec, args: &[Slice]) {
    // SAFETY: as above, and the workspace has room for the order.
    unsafe {
        scatter_rounded::launch_unchecked(
            device.client(),
            CubeCount::new_single(),
            device.cube_dim(),
            device.vector_width(),
            device.buffer(&args[0].part(0, u64::from(spec.rows) * 4)),
            device.buffer(&args[1]),
            device.buffer(&args[2]),
            device.buffer(&args[3]),
            spec.rows as usize,
            spec.vocab as usize,
            spec.width as usize,
            columns_ahead(device, spec),
            spec.accumulate,
            spec.elem,
            device.unaligned(&args[0], [spec.elem, spec.out]),
        );
    }
    device.launched();
}

/// Buffers: x, start, cache.
pub(crate) fn launch_cache_write(device: &Device, spec: &CacheWriteSpec, args: &[Slice]) {
    // SAFETY: start + t ≤ capacity, so every row written lies in the cache.
    unsafe {
        cache_write::launch_unchecked(
            device.client(),
            CubeCount::new_single(),
            device.cube_dim(),
            device.vector_width(),
            device.buffer(&args[0]),
            device.buffer(&args[1]),
            device.buffer(&args[2]),
            spec.batch as usize,
            spec.t as usize,
            spec.capacity as usize,
            spec.width as usize,
            spec.elem,
            device.unaligned(&args[0], [spec.elem]),
        );
    }
    device.launched();
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
