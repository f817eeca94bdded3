//! `Walk::Rows`: units share rows; each phase walks a row with vectors.
//!
//! A row that is no multiple of the vector ends in narrower vectors, halving each time, so a
//! ragged row costs a few more instructions and no branch.

// The vector's width is used where code is emitted, which the attribute's output hides.
#![allow(clippy::extra_unused_type_parameters)]

use super::environment::{Accumulators, At, Index, Place, Rows, Views, across_lanes, combine};
use super::plan::{Plan, Reduction};
use crate::embedding::share;
use crate::program::{Registers, interpret};
use cubecl::intrinsic;
use cubecl::prelude::*;

/// Vectors added before they go to the total: rounding errors grow with the square root of runs.
const RUN: usize = 128;

#[cube(launch_unchecked, address_type = "u64")]
pub(crate) fn region_rows<N: Size>(
    inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    #[comptime] plan: Plan,
    _unaligned: &[f32],
) {
    let blocks = comptime!(plan.columns().div_ceil(plan.block));
    let items = comptime!(plan.rows() * blocks);
    let first = share(items, UNIT_POS as usize);
    let end = share(items, UNIT_POS as usize + 1);
    for item in first..end {
        if comptime!(blocks == 1) {
            let columns = comptime!(plan.columns());
            row_piece::<N>(inputs, outputs, item, 0, columns, true, comptime!(plan.clone()));
        } else {
            let columns = comptime!(plan.columns());
            let block = comptime!(plan.block);
            let begin = item % blocks * block;
            if begin + block < columns {
                let plan = comptime!(plan.clone());
                row_piece::<N>(inputs, outputs, item / blocks, begin, begin + block, false, plan);
            } else {
                let plan = comptime!(plan.clone());
                row_piece::<N>(inputs, outputs, item / blocks, begin, columns, true, plan);
            }
        }
    }
}

/// All phases over the columns `begin..end` of a row; `last` says that the row ends there.
#[cube]
#[allow(unused_variables)]
pub(crate) fn row_piece<N: Size>(
    inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    row: usize,
    begin: usize,
    end: usize,
    #[comptime] last: bool,
    #[comptime] plan: Plan,
) {
    intrinsic!(|scope| {
        let views = Views::new(&plan, &*inputs, &*outputs);
        let origin = Place::origin(scope, &plan);
        let place = origin.at(scope, &plan, 0..plan.dims.len() - 1, row);
        let piece = Piece { views: &views, place: &place, begin, end, last };
        let mut rows = Registers::<Const<1>>::new();
        for phase in 0..plan.phases.len() {
            piece.phase::<N>(scope, phase, &mut rows);
        }
    })
}

struct Piece<'a> {
    views: &'a Views<'a>,
    place: &'a Place,
    begin: Index,
    end: Index,
    last: bool,
}

impl Piece<'_> {
    fn phase<N: Size>(&self, scope: &Scope, phase: usize, rows: &mut Registers<Const<1>>) {
        let plan = self.views.plan;
        let program = &plan.phases[phase];
        let (views, place) = (self.views, self.place);
        let mut row = At { views, place, column: None, rows: Rows::None, sums: None };
        interpret(scope, &program.row, rows, &mut row);
        if program.cols.0.is_empty() {
            return;
        }
        let lanes = N::__expand_value(scope);
        let mut totals = Vec::new();
        let mut tail_first = self.end;
        let mut tail = 0;
        if self.last {
            tail = plan.columns() % lanes;
            tail_first = (plan.columns() - tail).into_expand(scope);
        }
        self.walk::<N>(scope, phase, rows, self.begin, tail_first, &mut totals);
        let mut width = lanes;
        while tail > 0 {
            width /= 2;
            if tail >= width {
                self.narrow(scope, width, phase, rows, tail_first, &mut totals);
                tail_first = tail_first.__expand_add_method(scope, width.into_expand(scope));
                tail -= width;
            }
        }
        for (register, _, value) in totals {
            rows.set(register as u16, value);
        }
    }

    fn narrow(
        &self,
        scope: &Scope,
        width: usize,
        phase: usize,
        rows: &Registers<Const<1>>,
        first: Index,
        totals: &mut Totals,
    ) {
        let end = first.__expand_add_method(scope, width.into_expand(scope));
        match width {
            1 => self.walk::<Const<1>>(scope, phase, rows, first, end, totals),
            2 => self.walk::<Const<2>>(scope, phase, rows, first, end, totals),
            4 => self.walk::<Const<4>>(scope, phase, rows, first, end, totals),
            8 => self.walk::<Const<8>>(scope, phase, rows, first, end, totals),
            16 => self.walk::<Const<16>>(scope, phase, rows, first, end, totals),
            _ => self.walk::<Const<32>>(scope, phase, rows, first, end, totals),
        }
    }

    /// One phase's `cols` over `first..end`, a multiple of the vector.
    fn walk<N: Size>(
        &self,
        scope: &Scope,
        phase: usize,
        rows: &Registers<Const<1>>,
        first: Index,
        end: Index,
        totals: &mut Totals,
    ) {
        let slots = self.views.plan.reductions(phase);
        let sums = Accumulators::<N>::new(scope, slots.clone());
        let run = RUN * N::__expand_value(scope);
        if slots.is_empty() || self.views.plan.columns() <= run {
            self.columns::<N>(scope, phase, rows, first, end, &sums);
        } else {
            let terms = Accumulators::<N>::new(scope, slots);
            let runs = range_stepped::expand(scope, first, end, run.into_expand(scope));
            for_expand(scope, runs, false, |scope, from| {
                let to = from.__expand_add_method(scope, run.into_expand(scope));
                terms.reset(scope);
                let to = min::expand(scope, to, end);
                self.columns::<N>(scope, phase, rows, from, to, &terms);
                for (register, _, value) in terms.values(scope) {
                    sums.add(scope, register, value);
                }
            });
        }
        for (register, reduction, value) in sums.values(scope) {
            let value = across_lanes::<N>(scope, reduction, value);
            match totals.iter_mut().find(|total| total.0 == register) {
                Some(total) => total.2 = combine(scope, reduction, total.2, value),
                None => totals.push((register, reduction, value)),
            }
        }
    }

    /// The instructions at every vector of columns.
    fn columns<N: Size>(
        &self,
        scope: &Scope,
        phase: usize,
        rows: &Registers<Const<1>>,
        first: Index,
        end: Index,
        sums: &Accumulators<N>,
    ) {
        let step: Index = N::__expand_value(scope).into_expand(scope);
        let columns = range_stepped::expand(scope, first, end, step);
        for_expand(scope, columns, false, |scope, column| {
            let mut at = At {
                views: self.views,
                place: self.place,
                column: Some(column),
                rows: Rows::Scalars(rows),
                sums: Some(sums),
            };
            let program = &self.views.plan.phases[phase].cols;
            interpret(scope, program, &mut Registers::<N>::new(), &mut at);
        });
    }
}

/// Register, reduction and value so far.
type Totals = Vec<(usize, Reduction, NativeExpand<Vector<f32, Const<1>>>)>;
