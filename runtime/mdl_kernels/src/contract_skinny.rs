//! Contractions of few rows, as in decoding: b is read once, in place.
//!
//! # What it computes
//!
//! The contraction of `contract` for at most eight rows and one batch: 2·m·n·k operations on
//! n·k elements of b, so the memory's speed is the limit. a goes first, through the prologue, into
//! each unit's part of the workspace as rows along k. Units share the columns.

use crate::contract_pack::prepare;
use crate::contract_plan::{LayoutB, Plan, offset_of};
use crate::contract_tile::{Finish, dense_rows, finish_tile};
use crate::device::{Device, Slice};
use crate::region::environment::sum_lanes;
use crate::vector_io::{load, load_as, load_one, store};
use cubecl::prelude::*;
use mdl_ir::kernel::{Elem, Operand};

/// Steps of k for which a sum stays in a register while b is contiguous along n.
const STEPS: usize = 4;

#[cube(launch_unchecked, address_type = "u64")]
fn contract_skinny<N: Size>(
    a: &[f32],
    b: &[f32],
    prologue_inputs: &Sequence<Box<[f32]>>,
    epilogue_inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    packed: &mut [f32],
    tiles: &mut [f32],
    _unaligned: &[f32],
    #[comptime] plan: Plan,
    #[comptime] chunk: usize,
) {
    let unit = UNIT_POS as usize;
    let units = comptime!(plan.units);
    let tile = unit * comptime!(plan.tile_elements);
    let first = unit * comptime!(plan.packed_a_elements);
    pack_rows(a, prologue_inputs, packed, first, comptime!(plan.clone()));
    let from_a = dense_rows(first, comptime!(plan.rows), comptime!(plan.depth + plan.width));
    let chunks = comptime!(plan.columns.div_ceil(chunk));
    for c in chunks * unit / units..chunks * (unit + 1) / units {
        let column = c * chunk;
        let columns = min(chunk, comptime!(plan.columns) - column);
        let plan_b = comptime!(plan.clone());
        multiply_columns::<N>(
            &*packed,
            Elem::F32,
            &from_a,
            b,
            0usize,
            tiles,
            tile,
            column,
            columns,
            chunk,
            plan_b,
        );
        let finish = Finish {
            tile,
            row: 0usize.runtime(),
            column,
            rows: comptime!(plan.rows).runtime(),
            columns,
            partial: 0usize.runtime(),
            first: true.runtime(),
            last: true.runtime(),
        };
        let plan = comptime!(plan.clone());
        finish_tile::<N>(tiles, epilogue_inputs, outputs, &finish, chunk, plan);
    }
}

/// All of a, through the prologue, as rows along k.
#[cube]
fn pack_rows(
    a: &[f32],
    inputs: &Sequence<Box<[f32]>>,
    workspace: &mut [f32],
    to: usize,
    #[comptime] plan: Plan,
) {
    for m in 0..comptime!(plan.rows) {
        let from = offset_of(m, comptime!(plan.m.clone()), false);
        for k in 0..comptime!(plan.depth) {
            let at = from + offset_of(k, comptime!(plan.k.clone()), false);
            let value = load_as::<Const<1>>(a, at, comptime!(plan.a));
            let preparation = comptime!(plan.preparation(Operand::A));
            let value = prepare::<Const<1>>(inputs, m, k, value, preparation);
            let here = to + m * comptime!(plan.depth + plan.width) + k;
            store::<f32, Const<1>>(workspace, here, value);
        }
    }
}

/// The sums of a chunk of columns, at most as many as `chunk`, into rows of a tile that are `chunk`
/// apart. The rows of a start at `from_a`, and b at `base`.
#[cube]
pub(crate) fn multiply_columns<N: Size>(
    a: &[f32],
    #[comptime] elem_a: Elem,
    from_a: &Array<usize>,
    b: &[f32],
    base: usize,
    tiles: &mut [f32],
    tile: usize,
    column: usize,
    columns: usize,
    #[comptime] chunk: usize,
    #[comptime] plan: Plan,
) {
    if comptime!(plan.layout_b == LayoutB::Rows) {
        dot_columns::<N>(a, elem_a, from_a, b, base, tiles, tile, column, chunk, plan);
    } else {
        add_rows::<N>(a, elem_a, from_a, b, base + column, tiles, tile, columns, chunk, plan);
    }
}

/// b contiguous along k: each sum is a dot product, kept as a vector of partial sums.
#[cube]
fn dot_columns<N: Size>(
    a: &[f32],
    #[comptime] elem_a: Elem,
    from_a: &Array<usize>,
    b: &[f32],
    base: usize,
    tiles: &mut [f32],
    tile: usize,
    column: usize,
    #[comptime] chunk: usize,
    #[comptime] plan: Plan,
) {
    let rows = comptime!(plan.rows);
    let depth = comptime!(plan.depth);
    let group = comptime!(columns_at_once(plan.rows, plan.registers));
    // A copy that is indexed by constants alone stays in registers.
    let mut row_at = Array::<usize>::new(rows);
    #[unroll]
    for m in 0..rows {
        row_at[m] = from_a[m];
    }
    for g in 0..comptime!(chunk / group) {
        let mut from = Array::<usize>::new(group);
        #[unroll]
        for c in 0..group {
            let n = min(column + g * group + c, comptime!(plan.columns - 1));
            from[c] = base + offset_of(n, comptime!(plan.n.clone()), false);
        }
        let mut sums = Array::<Vector<f32, N>>::new(comptime!(rows * group));
        for v in 0..comptime!(depth / plan.width) {
            let k = v * N::value();
            let mut b_lanes = Array::<Vector<f32, N>>::new(group);
            #[unroll]
            for c in 0..group {
                b_lanes[c] = load_as::<N>(b, from[c] + k, comptime!(plan.b));
            }
            #[unroll]
            for m in 0..rows {
                let a_lanes = load_as::<N>(a, row_at[m] + k, elem_a);
                #[unroll]
                for c in 0..group {
                    sums[m * group + c] = fma(a_lanes, b_lanes[c], sums[m * group + c]);
                }
            }
        }
        // Through memory, so that the code for one sum's lanes is not repeated for every sum.
        let spill = tile + comptime!(rows * chunk);
        #[unroll]
        for i in 0..comptime!(rows * group) {
            store::<f32, N>(tiles, spill + i * N::value(), sums[i]);
        }
        for i in 0..comptime!(rows * group) {
            let m = i / group;
            let c = i % group;
            let n = min(column + g * group + c, comptime!(plan.columns - 1));
            let start = base + offset_of(n, comptime!(plan.n.clone()), false);
            let mut sum = sum_lanes::<N>(load::<f32, N>(&*tiles, spill + i * N::value()));
            for k in comptime!(depth / plan.width * plan.width)..depth {
                let x = load_one(a, from_a[m] + k, elem_a);
                sum = fma(x, load_one(b, start + k, comptime!(plan.b)), sum);
            }
            tiles[tile + m * chunk + g * group + c] = sum;
        }
    }
}

/// Columns whose sums for all rows fit the registers and leave a quarter of them for the operands;
/// a divisor of every chunk.
fn columns_at_once(rows: usize, registers: usize) -> usize {
    [8, 6, 4, 3, 2, 1].into_iter().find(|c| rows * c <= registers * 3 / 4).unwrap_or(1)
}

/// b contiguous along n: rows of b are added to rows of sums that stay in the nearest cache.
#[cube]
fn add_rows<N: Size>(
    a: &[f32],
    #[comptime] elem_a: Elem,
    from_a: &Array<usize>,
    b: &[f32],
    base: usize,
    tiles: &mut [f32],
    tile: usize,
    columns: usize,
    #[comptime] chunk: usize,
    #[comptime] plan: Plan,
) {
    let depth = comptime!(plan.depth);
    #[unroll]
    for m in 0..comptime!(plan.rows) {
        for v in 0..comptime!(chunk / plan.width) {
            store::<f32, N>(tiles, tile + m * chunk + v * N::value(), Vector::new(0.0));
        }
    }
    for s in 0..comptime!(depth / STEPS) {
        let k = s * STEPS;
        let plan = comptime!(plan.clone());
        add_steps::<N>(a, elem_a, from_a, b, base, tiles, tile, columns, k, STEPS, chunk, plan);
    }
    for k in comptime!(depth / STEPS * STEPS)..depth {
        let plan = comptime!(plan.clone());
        add_steps::<N>(a, elem_a, from_a, b, base, tiles, tile, columns, k, 1usize, chunk, plan);
    }
}

#[cube]
fn add_steps<N: Size>(
    a: &[f32],
    #[comptime] elem_a: Elem,
    from_a: &Array<usize>,
    b: &[f32],
    base: usize,
    tiles: &mut [f32],
    tile: usize,
    columns: usize,
    k: usize,
    #[comptime] steps: usize,
    #[comptime] chunk: usize,
    #[comptime] plan: Plan,
) {
    let mut from = Array::<usize>::new(steps);
    #[unroll]
    for s in 0..steps {
        from[s] = offset_of(k + s, comptime!(plan.k.clone()), true) + base;
    }
    for v in 0..columns / N::value() {
        let plan = comptime!(plan.clone());
        let c = v * N::value();
        add_lanes::<N>(a, elem_a, from_a, b, tiles, tile, &from, k, c, steps, chunk, plan);
    }
    for c in columns / N::value() * N::value()..columns {
        let plan = comptime!(plan.clone());
        add_lanes::<Const<1>>(a, elem_a, from_a, b, tiles, tile, &from, k, c, steps, chunk, plan);
    }
}

#[cube]
fn add_lanes<N: Size>(
    a: &[f32],
    #[comptime] elem_a: Elem,
    from_a: &Array<usize>,
    b: &[f32],
    tiles: &mut [f32],
    tile: usize,
    from: &Array<usize>,
    k: usize,
    c: usize,
    #[comptime] steps: usize,
    #[comptime] chunk: usize,
    #[comptime] plan: Plan,
) {
    let mut lanes = Array::<Vector<f32, N>>::new(steps);
    #[unroll]
    for s in 0..steps {
        lanes[s] = load_as::<N>(b, from[s] + c, comptime!(plan.b));
    }
    #[unroll]
    for m in 0..comptime!(plan.rows) {
        let at = tile + m * chunk + c;
        let mut sum = load::<f32, N>(&*tiles, at);
        #[unroll]
        for s in 0..steps {
            let broadcast = Vector::<f32, N>::new(load_one(a, from_a[m] + k + s, elem_a));
            sum = fma(broadcast, lanes[s], sum);
        }
        store::<f32, N>(tiles, at, sum);
    }
}

pub(crate) fn launch(device: &Device, plan: Plan, args: &[Slice]) {
    let buffers = |slices: &[Slice]| -> SequenceArg<Box<[f32]>> {
        slices.iter().map(|slice| device.buffer(slice)).collect()
    };
    let (inputs, rest) = args[2..].split_at(plan.prologue_inputs());
    let (extra, rest) = rest.split_at(plan.epilogue_views.len());
    let (workspace, outputs) = rest.split_last().expect("invariant: the workspace comes last");
    let chunk = chunk_columns(&plan);
    let units = plan.units as u64;
    let [packed, tiles] =
        [plan.packed_a_elements, plan.tile_elements].map(|elements| elements as u64 * units * 4);
    // SAFETY: the plan's sizes and strides are those of the buffers, as the spec promises.
    unsafe {
        contract_skinny::launch_unchecked(
            device.client(),
            CubeCount::new_single(),
            device.cube_dim(),
            plan.width,
            device.buffer(&args[0]),
            device.buffer(&args[1]),
            buffers(inputs),
            buffers(extra),
            buffers(outputs),
            device.buffer(&workspace.part(0, packed)),
            device.buffer(&workspace.part(packed, tiles)),
            device.unaligned(&args[0], plan.elems()),
            plan,
            chunk,
        );
    }
    device.launched();
}

/// Columns of a unit's turn. Along k a turn is short, for balance; along n it is as long as the
/// tile buffer and an even share allow, because b is then read in runs of this length.
fn chunk_columns(plan: &Plan) -> usize {
    let tile = plan.tile_elements / plan.rows / 48 * 48;
    match plan.layout_b {
        LayoutB::Rows => 48,
        _ => plan.columns.div_ceil(plan.units).next_multiple_of(48).min(tile),
    }
}
