//! An operand's part of a tile: from memory to registers, and from there to shared memory.
//!
//! Units walk the operand along the axis that is contiguous, so that neighbours read neighbours.
//! What lies past the edge is zero.

use super::Place;
use crate::contract_pack::prepare;
use crate::contract_plan::{Axis, Preparation, offset_of};
use crate::vector_io::load_as;
use cubecl::prelude::*;
use mdl_ir::kernel::Elem;

/// One operand: its rows (m of a, n of b) by steps of k.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Side {
    pub elem: Elem,
    pub rows: Vec<Axis>,
    pub k: Vec<Axis>,
    /// The strides of k and of batches are those of the second tensor.
    pub second: bool,
    pub length: usize,
    pub depth: usize,
    /// Units walk along k, and it lies along k in shared memory too.
    pub along_k: bool,
    /// Elements that a unit loads at a time.
    pub width: usize,
    /// Rows of a tile, steps of k of a stage, and the units that fill it.
    pub tile: usize,
    pub tile_depth: usize,
    pub units: usize,
    /// Numbers that stand for one element: two tf32 for an f32.
    pub parts: usize,
    /// Every stage is full.
    pub whole: bool,
    /// For lanes in the direction of the walk.
    pub prologue: Option<Preparation>,
    pub picked: Picked,
}

/// Whether rows or steps of k are those that an order names, divided by how many neighbours share
/// one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Picked {
    None,
    Rows(usize),
    Steps(usize),
}

impl Picked {
    fn share_of_rows(self) -> Option<usize> {
        if let Picked::Rows(share) = self { Some(share) } else { None }
    }

    fn share_of_steps(self) -> Option<usize> {
        if let Picked::Steps(share) = self { Some(share) } else { None }
    }
}

/// Elements between the ends of lines in shared memory, so that lines start in different banks and
/// stay aligned for matrix loads.
const PAD: usize = 8;
const WIDE: usize = 4;

impl Side {
    /// Chooses the direction of the walk, and wide loads where the operand lies aligned for them.
    pub(crate) fn arranged(mut self, may_be_wide: bool, batch: &[Axis]) -> Side {
        let stride = |axis: &Axis| if self.second { axis.stride_b } else { axis.stride };
        let rows_contiguous = self.rows.last().is_some_and(|axis| axis.stride == 1);
        let k_contiguous = self.k.last().is_some_and(|axis| stride(axis) == 1);
        let (line, along_k) = match (k_contiguous, rows_contiguous) {
            (false, true) => (self.rows.last(), false),
            _ => (self.k.last(), true),
        };
        let contiguous = k_contiguous || rows_contiguous;
        let aligned = |value: usize| value.is_multiple_of(WIDE);
        let line_fits = line.is_some_and(|axis| aligned(axis.size));
        let steps = |axes: &[Axis], second: bool, inner: bool| {
            let skip = usize::from(inner);
            axes.iter()
                .rev()
                .skip(skip)
                .all(|axis| aligned(if second { axis.stride_b } else { axis.stride }))
        };
        let others = steps(&self.rows, false, !along_k)
            && steps(&self.k, self.second, along_k)
            && steps(batch, self.second, false);
        if !along_k {
            self.prologue = self.prologue.map(Preparation::across);
        }
        // Lanes of a prologue's input are one number, or they are read as those of the operand are.
        let mut views = self.prologue.iter().flat_map(|prologue| &prologue.views);
        let beside = views.all(|view| {
            view.column == 0 || view.column == 1 && aligned(view.offset) && aligned(view.row)
        });
        let wide = may_be_wide && contiguous && line_fits && others && beside;
        self.width = if wide { WIDE } else { 1 };
        self.along_k = along_k;
        self
    }

    /// Vectors that a unit holds of one stage.
    pub(crate) fn held(&self) -> usize {
        self.tile * self.tile_depth / (self.units * self.width)
    }

    /// Elements of a line of the stage.
    fn across(&self) -> usize {
        if self.along_k { self.tile_depth } else { self.tile }
    }

    /// Elements between lines of the stage.
    pub(crate) fn line(&self) -> usize {
        PAD + self.across()
    }

    /// Elements of one part of the stage.
    pub(crate) fn stage(&self) -> usize {
        self.line() * if self.along_k { self.tile } else { self.tile_depth }
    }
}

/// Which row and step of k vector `i` of this unit begins with. Units fill whole lines, so that
/// vectors of one unit are a fixed number of lines apart and share their addresses but for that.
#[cube]
fn row_and_step(#[comptime] i: usize, #[comptime] side: Side) -> (usize, usize) {
    let unit = UNIT_POS as usize;
    let vectors = comptime!(side.across() / side.width);
    let line = unit / vectors + comptime!(i * side.units / vectors);
    let lane = unit % vectors * comptime!(side.width);
    if comptime!(side.along_k) { (line, lane) } else { (lane, line) }
}

/// Loads this unit's share of a stage that begins at step `k` of a place.
#[cube]
pub(crate) fn fetch<N: Size>(
    source: &[f32],
    inputs: &Sequence<Box<[f32]>>,
    order: &[u32],
    place: &Place,
    held: &mut Array<Vector<f32, N>>,
    k: usize,
    #[comptime] side: Side,
) {
    let mut base = place.base_a;
    let mut first = place.row;
    let mut limit = place.rows;
    if comptime!(side.second) {
        base = place.base_b;
        first = place.column;
        limit = comptime!(side.length).runtime();
    }
    #[unroll]
    for i in 0..comptime!(side.held()) {
        let (r, step) = row_and_step(i, comptime!(side.clone()));
        let mut row = first + r;
        let mut k = k + step;
        let mut value = Vector::<f32, N>::new(0.0);
        if comptime!(side.whole) || row < limit && k < place.depth {
            if comptime!(side.picked.share_of_rows().is_some()) {
                let share = comptime!(side.picked.share_of_rows().unwrap_or(1));
                row = order[place.start + row] as usize / share;
            }
            if comptime!(side.picked.share_of_steps().is_some()) {
                let share = comptime!(side.picked.share_of_steps().unwrap_or(1));
                k = order[place.start + k] as usize / share;
            }
            let at = base
                + offset_of(row, comptime!(side.rows.clone()), false)
                + offset_of(k, comptime!(side.k.clone()), side.second);
            value = load_as::<N>(source, at, comptime!(side.elem));
            let (line, lane) = if comptime!(side.along_k) { (row, k) } else { (k, row) };
            let prologue = comptime!(side.prologue.clone());
            value = prepare::<N>(inputs, line, lane, value, prologue);
        }
        held[i] = value;
    }
}

/// Stores this unit's share; with two parts the second is what the first one lost.
#[cube]
pub(crate) fn put<S: Float, N: Size>(
    held: &Array<Vector<f32, N>>,
    stage: &mut [S],
    #[comptime] side: Side,
) {
    #[unroll]
    for i in 0..comptime!(side.held()) {
        let (r, step) = row_and_step(i, comptime!(side.clone()));
        let line = comptime!(side.line());
        let mut at = r + step * line;
        if comptime!(side.along_k) {
            at = r * line + step;
        }
        #[unroll]
        for lane in 0..N::value() {
            let value = held[i].extract(lane);
            let first = S::cast_from(value);
            stage[at + lane] = first;
            if comptime!(side.parts == 2) {
                let lost = value - f32::cast_from(first);
                stage[at + lane + comptime!(side.stage())] = S::cast_from(lost);
            }
        }
    }
}
