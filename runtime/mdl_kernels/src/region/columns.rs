//! `Walk::Columns`: units share outer indices × column vectors; each reduces in a fixed order.
//!
//! A unit reduces several vectors of columns side by side, so that it reads a long piece of each
//! row: one vector of each would be a line of memory here and a line there, which no prefetcher
//! foresees. A column's sum does not depend on what is summed beside it.
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
    let mut item = first;
    while item < end {
        let outer = item / blocks;
        let block = item % blocks;
        if block + plan.strip <= vectors && item + plan.strip <= end {
            let plan = comptime!(plan.clone());
            let strip = comptime!(plan.strip);
            column_piece::<N>(inputs, outputs, outer, block * lanes, strip, plan);
            item += strip;
        } else {
            if block < vectors {
                let plan = comptime!(plan.clone());
                column_piece::<N>(inputs, outputs, outer, block * lanes, 1usize, plan);
            } else {
                let plan = comptime!(plan.clone());
                last_columns::<N>(inputs, outputs, outer, plan);
            }
            item += 1;
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
    #[comptime] strip: usize,
    #[comptime] plan: Plan,
) {
    intrinsic!(|scope| {
        reduce::<N>(scope, &Views::new(&plan, &*inputs, &*outputs), outer, column, strip);
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
                    1 => reduce::<Const<1>>(scope, &views, outer, column, 1),
                    2 => reduce::<Const<2>>(scope, &views, outer, column, 1),
                    4 => reduce::<Const<4>>(scope, &views, outer, column, 1),
                    8 => reduce::<Const<8>>(scope, &views, outer, column, 1),
                    16 => reduce::<Const<16>>(scope, &views, outer, column, 1),
                    _ => reduce::<Const<32>>(scope, &views, outer, column, 1),
                }
                tail -= width;
            }
        }
    })
}

/// A vector of columns: its row registers, the sums of a run, and those of all runs.
struct Strand<N: Size> {
    column: Index,
    rows: Registers<N>,
    sums: Accumulators<N>,
    totals: Accumulators<N>,
}

impl<N: Size> Strand<N> {
    fn new(scope: &Scope, plan: &Plan, column: Index) -> Self {
        let new = || Accumulators::<N>::new(scope, plan.reductions(0));
        Strand { column, rows: Registers::new(), sums: new(), totals: new() }
    }

    /// A phase's `row`.
    fn row(&mut self, scope: &Scope, views: &Views, place: &Place, phase: usize) {
        if let Some(phase) = views.plan.phases.get(phase) {
            let column = Some(self.column);
            let mut at = At { views, place, column, rows: Rows::None, sums: None };
            interpret(scope, &phase.row, &mut self.rows, &mut at);
        }
    }

    fn term(&self, scope: &Scope, views: &Views, place: &Place) {
        let (rows, sums) = (Rows::Vectors(&self.rows), Some(&self.sums));
        let mut at = At { views, place, column: Some(self.column), rows, sums };
        interpret(scope, &views.plan.phases[0].cols, &mut Registers::<N>::new(), &mut at);
    }
}

/// `strip` vectors of columns at one outer index: the reduction, then the second phase's `row`.
fn reduce<N: Size>(scope: &Scope, views: &Views, outer: Index, column: Index, strip: usize) {
    let plan = views.plan;
    let reduced = plan.dims.len() - 1 - plan.reduced..plan.dims.len() - 1;
    let origin = Place::origin(scope, plan);
    let place = origin.at(scope, plan, 0..reduced.start, outer);
    let lanes = N::__expand_value(scope);
    let strand = |i: usize| {
        let column = column.__expand_add_method(scope, (i * lanes).into_expand(scope));
        Strand::<N>::new(scope, plan, column)
    };
    let mut strip: Vec<_> = (0..strip).map(strand).collect();
    for strand in &mut strip {
        strand.row(scope, views, &place, 0);
    }
    let terms: usize = plan.dims[reduced.clone()].iter().product();
    let zero: Index = 0usize.into_expand(scope);
    let runs: Index = terms.div_ceil(RUN).into_expand(scope);
    for_expand(scope, RangeExpand::new(zero, runs), false, |scope, run| {
        let first = run.__expand_mul_method(scope, RUN.into_expand(scope));
        let end = first.__expand_add_method(scope, RUN.into_expand(scope));
        let end = min::expand(scope, end, terms.into_expand(scope));
        for strand in &strip {
            strand.sums.reset(scope);
        }
        for_expand(scope, RangeExpand::new(first, end), false, |scope, term| {
            let place = place.at(scope, plan, reduced.clone(), term);
            for strand in &strip {
                strand.term(scope, views, &place);
            }
        });
        for strand in &strip {
            for (register, _, value) in strand.sums.values(scope) {
                strand.totals.add(scope, register, value);
            }
        }
    });
    for strand in &mut strip {
        for (register, _, value) in strand.totals.values(scope) {
            strand.rows.set(register as u16, value);
        }
        strand.row(scope, views, &place, 1);
    }
}
