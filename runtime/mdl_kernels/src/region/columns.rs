//! `Walk::Columns`: units share outer indices × column vectors; each reduces in a fixed order.
//!
//! A long reduction adds in runs, and the runs to a total: its rounding error then grows with
//! the square root of what it would in one go.

// The vector's width is used where code is emitted, which the attribute's output hides.
#![allow(clippy::extra_unused_type_parameters)]

use super::environment::{Accumulators, At, Index, Place, Rows, Views};
use super::plan::Plan;
use crate::embedding::share;
use crate::program::{Registers, interpret};
use cubecl::intrinsic;
use cubecl::prelude::*;

/// Terms added before they go to the total.
const RUN: usize = 128;

#[cube(launch_unchecked, address_type = "u64")]
pub(crate) fn region_columns<N: Size>(
    inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    #[comptime] plan: Plan,
    _unaligned: &[f32],
) {
    let lanes = N::value();
    let columns = comptime!(plan.columns());
    let vectors = comptime!(columns / lanes);
    let blocks = comptime!(columns.div_ceil(lanes));
    let items = comptime!(plan.outer() * blocks);
    let first = share(items, UNIT_POS as usize);
    let end = share(items, UNIT_POS as usize + 1);
    for item in first..end {
        let outer = item / blocks;
        let block = item % blocks;
        if block < vectors {
            let plan = comptime!(plan.clone());
            column_piece::<N>(inputs, outputs, outer, block * lanes, plan);
        } else {
            let plan = comptime!(plan.clone());
            last_columns::<N>(inputs, outputs, outer, plan);
        }
    }
}

#[cube]
#[allow(unused_variables)]
fn column_piece<N: Size>(
    inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    outer: usize,
    column: usize,
    #[comptime] plan: Plan,
) {
    intrinsic!(|scope| {
        reduce::<N>(scope, &Views::new(&plan, &*inputs, &*outputs), outer, column);
    })
}

/// The columns behind the last whole vector, in narrower vectors.
#[cube]
#[allow(unused_variables)]
fn last_columns<N: Size>(
    inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    outer: usize,
    #[comptime] plan: Plan,
) {
    intrinsic!(|scope| {
        let views = Views::new(&plan, &*inputs, &*outputs);
        let lanes = N::__expand_value(scope);
        let mut tail = plan.columns() % lanes;
        let mut width = lanes;
        while tail > 0 {
            width /= 2;
            if tail >= width {
                let column: Index = (plan.columns() - tail).into_expand(scope);
                match width {
                    1 => reduce::<Const<1>>(scope, &views, outer, column),
                    2 => reduce::<Const<2>>(scope, &views, outer, column),
                    4 => reduce::<Const<4>>(scope, &views, outer, column),
                    8 => reduce::<Const<8>>(scope, &views, outer, column),
                    16 => reduce::<Const<16>>(scope, &views, outer, column),
                    _ => reduce::<Const<32>>(scope, &views, outer, column),
                }
                tail -= width;
            }
        }
    })
}

/// One vector of columns at one outer index: the reduction, then the second phase's `row`.
fn reduce<N: Size>(scope: &Scope, views: &Views, outer: Index, column: Index) {
    let plan = views.plan;
    let reduced = plan.dims.len() - 1 - plan.reduced..plan.dims.len() - 1;
    let origin = Place::origin(scope, plan);
    let place = origin.at(scope, plan, 0..reduced.start, outer);
    let mut rows = Registers::<N>::new();
    let row = |scope: &Scope, phase: usize, rows: &mut Registers<N>| {
        if let Some(phase) = plan.phases.get(phase) {
            let column = Some(column);
            let mut at = At { views, place: &place, column, rows: Rows::None, sums: None };
            interpret(scope, &phase.row, rows, &mut at);
        }
    };
    row(scope, 0, &mut rows);
    let totals = Accumulators::<N>::new(scope, plan.reductions(0));
    let sums = Accumulators::<N>::new(scope, plan.reductions(0));
    let terms: usize = plan.dims[reduced.clone()].iter().product();
    let zero: Index = 0usize.into_expand(scope);
    let runs: Index = terms.div_ceil(RUN).into_expand(scope);
    for_expand(scope, RangeExpand::new(zero, runs), false, |scope, run| {
        let first = run.__expand_mul_method(scope, RUN.into_expand(scope));
        let end = first.__expand_add_method(scope, RUN.into_expand(scope));
        let end = min::expand(scope, end, terms.into_expand(scope));
        sums.reset(scope);
        for_expand(scope, RangeExpand::new(first, end), false, |scope, term| {
            let place = place.at(scope, plan, reduced.clone(), term);
            let mut at = At {
                views,
                place: &place,
                column: Some(column),
                rows: Rows::Vectors(&rows),
                sums: Some(&sums),
            };
            interpret(scope, &plan.phases[0].cols, &mut Registers::<N>::new(), &mut at);
        });
        for (register, _, value) in sums.values(scope) {
            totals.add(scope, register, value);
        }
    });
    for (register, _, value) in totals.values(scope) {
        rows.set(register as u16, value);
    }
    row(scope, 1, &mut rows);
}
