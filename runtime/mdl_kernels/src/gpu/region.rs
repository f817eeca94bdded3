//! Regions on a GPU: a unit for each element, a cube for each row that is reduced, or a cube for a
//! strip of columns.
//!
//! What they compute is `region`'s, by the same plan and the same instructions; only who walks
//! where differs. Bytes are each view's, once for each phase that names it.

// The vector's width is used where code is emitted, which the attribute's output hides.
#![allow(clippy::extra_unused_type_parameters)]

use super::reduce::across_units;
use super::{UNITS, address_type, buffers, cube_pos, cubes, cubes_for, unit_pos};
use crate::device::{Device, Slice};
use crate::program::{Registers, interpret};
use crate::region::environment::{Accumulators, At, Index, Place, Rows, Views, across_lanes};
use crate::region::plan::{Plan, PlanView, Reduction};
use crate::region::rows::row_piece;
use cubecl::intrinsic;
use cubecl::prelude::*;
use mdl_ir::kernel::{Elem, RegionSpec, Walk};

/// Elements that a unit takes at a time where memory allows it.
const WIDE: usize = 4;
/// Columns of a strip, and the units that share the reduction of one of them.
const STRIP: usize = 32;
const SHARERS: usize = UNITS as usize / STRIP;

/// Buffers: inputs, outputs.
pub(crate) fn launch(device: &Device, spec: &RegionSpec, args: &[Slice]) {
    let plan = Plan::new(spec, usize::MAX, 1);
    let (inputs, outputs) = args.split_at(spec.inputs.len());
    let outputs = buffers(device, &outputs[..spec.outputs.len()]);
    let (inputs, address) = (buffers(device, inputs), address_type(device, args));
    let (client, dim) = (device.client(), CubeDim::new_1d(UNITS));
    let (rows, columns) = (plan.rows(), plan.columns());
    let width = if device.has_pointer_casts() && wide(&plan) { WIDE } else { 1 };
    // SAFETY: every index of `dims` lies inside its buffer by the contract of a view.
    unsafe {
        match spec.walk {
            Walk::Rows if by_row(&plan) => {
                let units = units_of_row(columns / width);
                let (grid, dim) = (cubes(rows as u64), CubeDim::new_1d(units as u32));
                reduce_rows::launch_unchecked(
                    client, grid, dim, address, width, inputs, outputs, plan, units,
                );
            }
            Walk::Rows => {
                let grid = cubes_for((rows * columns / width) as u64);
                each::launch_unchecked(client, grid, dim, address, width, inputs, outputs, plan);
            }
            Walk::Columns { .. } => {
                let strips = plan.outer() * columns.div_ceil(STRIP);
                let grid = cubes(strips as u64);
                reduce_columns::launch_unchecked(client, grid, dim, address, inputs, outputs, plan);
            }
        }
    }
    device.launched();
}

/// Whether a whole row belongs to one cube.
fn by_row(plan: &Plan) -> bool {
    let stores = plan.phases.iter().any(|phase| phase.row.stores());
    plan.reduces() || stores
}

/// Units that share a row, a power of two.
fn units_of_row(items: usize) -> usize {
    items.next_power_of_two().clamp(32, UNITS as usize)
}

/// Whether every view walks `WIDE` elements as one that lie aligned.
fn wide(plan: &Plan) -> bool {
    let last = plan.dims.len() - 1;
    let fits = |view: &PlanView| match view.inner() {
        0 => true,
        1 => {
            let steps = view.strides[..last].iter().chain([&view.offset]);
            steps.into_iter().all(|step| step.is_multiple_of(WIDE))
        }
        _ => false,
    };
    let i32s = plan.inputs.iter().chain(&plan.outputs).any(|view| view.elem == Elem::I32);
    !i32s
        && plan.columns().is_multiple_of(WIDE)
        && plan.inputs.iter().chain(&plan.outputs).all(fits)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn each<N: Size>(
    inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    #[comptime] plan: Plan,
) {
    let lanes = N::value();
    let vectors = comptime!(plan.columns() / lanes);
    let item = unit_pos();
    if item < comptime!(plan.rows() * vectors) {
        let column = item % vectors * lanes;
        row_piece::<N>(inputs, outputs, item / vectors, column, column + lanes, false, plan);
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(unused_variables)]
fn reduce_rows<N: Size>(
    inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    #[comptime] plan: Plan,
    #[comptime] units: usize,
) {
    let mut scratch = Shared::<[f32]>::new_slice(units);
    let row = cube_pos();
    if row < comptime!(plan.rows()) {
        walk_row::<N>(inputs, outputs, &mut scratch, row, plan, units);
    }
}

/// All phases over one row, by all units of a cube.
#[cube]
#[allow(unused_variables)]
fn walk_row<N: Size>(
    inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    scratch: &mut [f32],
    row: usize,
    #[comptime] plan: Plan,
    #[comptime] units: usize,
) {
    intrinsic!(|scope| {
        let views = Views::new(&plan, &*inputs, &*outputs);
        let place = Place::origin(scope, &plan).at(scope, &plan, 0..plan.dims.len() - 1, row);
        let mut rows = Registers::<Const<1>>::new();
        for phase in 0..plan.phases.len() {
            let (views, place) = (&views, &place);
            let mut at = At { views, place, column: None, rows: Rows::None, sums: None };
            interpret(scope, &plan.phases[phase].row, &mut rows, &mut at);
            let slots = plan.reductions(phase);
            let sums = Accumulators::<N>::new(scope, slots.clone());
            let lanes = N::__expand_value(scope);
            let first = own_column::expand(scope, lanes);
            let end: Index = plan.columns().into_expand(scope);
            let step: Index = (units * lanes).into_expand(scope);
            let columns = range_stepped::expand(scope, first, end, step);
            for_expand(scope, columns, false, |scope, column| {
                let (column, rows) = (Some(column), Rows::Scalars(&rows));
                let mut at = At { views, place, column, rows, sums: Some(&sums) };
                let program = &plan.phases[phase].cols;
                interpret(scope, program, &mut Registers::<N>::new(), &mut at);
            });
            for (register, reduction, value) in sums.values(scope) {
                let value = across_lanes::<N>(scope, reduction, value);
                let whole = of_cube::expand(scope, value, scratch, units, 1, reduction);
                rows.set(register as u16, whole);
            }
        }
    })
}

#[cube]
fn own_column(#[comptime] lanes: usize) -> usize {
    UNIT_POS as usize * lanes
}

/// `across_units` for a vector of one.
#[cube]
fn of_cube(
    value: Vector<f32, Const<1>>,
    scratch: &mut [f32],
    #[comptime] units: usize,
    #[comptime] lanes: usize,
    #[comptime] reduction: Reduction,
) -> Vector<f32, Const<1>> {
    Vector::new(across_units(value.extract(0usize), scratch, units, lanes, reduction))
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn reduce_columns(
    inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    #[comptime] plan: Plan,
) {
    let mut scratch = Shared::<[f32]>::new_slice(UNITS as usize);
    let strips = comptime!(plan.columns().div_ceil(STRIP));
    let strip = cube_pos();
    if strip < comptime!(plan.outer() * strips) {
        let column = strip % strips * STRIP + UNIT_POS as usize % STRIP;
        let inside = column < comptime!(plan.columns());
        // Units past the edge walk the last column, and store nothing.
        let column = min(column, comptime!(plan.columns() - 1));
        let stores = inside && UNIT_POS < STRIP as u32;
        walk_column(inputs, outputs, &mut scratch, strip / strips, column, stores, plan);
    }
}

/// One column at one outer index: the reduction by all units of its lane, then the second phase's
/// `row` by those that store.
#[cube]
#[allow(unused_variables)]
fn walk_column(
    inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    scratch: &mut [f32],
    outer: usize,
    column: usize,
    stores: bool,
    #[comptime] plan: Plan,
) {
    intrinsic!(|scope| {
        let views = Views::new(&plan, &*inputs, &*outputs);
        let views = &views;
        let reduced = plan.dims.len() - 1 - plan.reduced..plan.dims.len() - 1;
        let place = Place::origin(scope, &plan).at(scope, &plan, 0..reduced.start, outer);
        let mut rows = Registers::<Const<1>>::new();
        let row = |scope: &Scope, phase: usize, rows: &mut Registers<Const<1>>| {
            if let Some(phase) = plan.phases.get(phase) {
                let (place, column) = (&place, Some(column));
                let mut at = At { views, place, column, rows: Rows::None, sums: None };
                interpret(scope, &phase.row, rows, &mut at);
            }
        };
        row(scope, 0, &mut rows);
        let sums = Accumulators::<Const<1>>::new(scope, plan.reductions(0));
        let terms: usize = plan.dims[reduced.clone()].iter().product();
        let first = own_share::expand(scope);
        let step: Index = SHARERS.into_expand(scope);
        let all = range_stepped::expand(scope, first, terms.into_expand(scope), step);
        for_expand(scope, all, false, |scope, term| {
            let place = &place.at(scope, &plan, reduced.clone(), term);
            let (column, rows) = (Some(column), Rows::Vectors(&rows));
            let mut at = At { views, place, column, rows, sums: Some(&sums) };
            interpret(scope, &plan.phases[0].cols, &mut Registers::new(), &mut at);
        });
        for (register, reduction, value) in sums.values(scope) {
            let units = UNITS as usize;
            let whole = of_cube::expand(scope, value, scratch, units, STRIP, reduction);
            rows.set(register as u16, whole);
        }
        if_expand(scope, stores, |scope| row(scope, 1, &mut rows));
    })
}

#[cube]
fn own_share() -> usize {
    UNIT_POS as usize / STRIP
}
