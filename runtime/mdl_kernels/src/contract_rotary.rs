//! The end of a contraction that turns pairs of its columns: rotary embedding.
//!
//! Tiles have columns in another order than memory: runs of the first half of a head and of the
//! second take turns. So both sums of a pair are in one tile, a run apart.

use crate::contract_plan::{Axis, Plan, merge, offset_of};
use crate::contract_tile::Finish;
use crate::program::{Environment, Lanes, Program, Registers, interpret};
use crate::vector_io::{load, load_strided, store, store_as};
use cubecl::intrinsic;
use cubecl::prelude::*;
use mdl_ir::kernel::{ContractSpec, Dim, Elem, View};

/// How columns are paired, in a kernel's identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Rotary {
    /// Columns of a head, and of a run.
    pub head: usize,
    pub run: usize,
    pub views: Vec<RotaryView>,
}

/// An input of the epilogue: strides along the rows, from head to head, and along a half.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RotaryView {
    pub elem: Elem,
    offset: usize,
    rows: Vec<Axis>,
    head: usize,
    lane: usize,
}

impl RotaryView {
    fn of(view: &View, m: &[Dim]) -> RotaryView {
        let [rows @ .., head, lane] = &view.strides[..] else {
            panic!("views beside pairs have strides of rows, heads and elements")
        };
        let strided = |(dim, stride): (&Dim, &u32)| Dim { stride: *stride, ..*dim };
        let rows: Vec<Dim> = m.iter().zip(rows).map(strided).collect();
        RotaryView {
            elem: view.elem,
            offset: view.offset as usize,
            rows: merge(&rows, false),
            head: *head as usize,
            lane: *lane as usize,
        }
    }
}

impl Rotary {
    /// Elements that are turned at a time.
    const RUN: usize = 8;

    /// Runs are as long as halves and tiles allow.
    pub(crate) fn of(spec: &ContractSpec, tile_columns: usize) -> Option<Rotary> {
        let head = spec.rotary? as usize;
        let fits =
            |run: &usize| (head / 2).is_multiple_of(*run) && tile_columns.is_multiple_of(2 * run);
        let run = [Self::RUN, 4, 2, 1].into_iter().find(fits).expect("invariant: tiles are even");
        let views = spec.epilogue_inputs.iter().map(|view| RotaryView::of(view, &spec.m));
        Some(Rotary { head, run, views: views.collect() })
    }
}

/// The column, in a tile's order, of the first element of pair `pair`; the second is a run behind.
#[cube]
pub(crate) fn first_of(pair: usize, #[comptime] run: usize) -> usize {
    pair / run * comptime!(2 * run) + pair % run
}

/// Takes a tile from its buffer, as `finish_tile` does, by pairs.
#[cube]
pub(crate) fn finish_rotary<N: Size>(
    workspace: &mut [f32],
    inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    at: &Finish,
    #[comptime] width: usize,
    #[comptime] rotary: Rotary,
    #[comptime] plan: Plan,
) {
    let run = comptime!(rotary.run);
    for r in 0..at.rows {
        for pair in range_stepped(0, at.columns / 2, N::value()) {
            let c = first_of(pair, run);
            let from = at.tile + r * width + c;
            let mut first = load::<f32, N>(&*workspace, from);
            let mut second = load::<f32, N>(&*workspace, from + run);
            let partial = at.partial + r * comptime!(plan.block_columns) + c;
            if comptime!(plan.partial_elements > 0) && !at.first {
                first += load::<f32, N>(&*workspace, partial);
                second += load::<f32, N>(&*workspace, partial + run);
            }
            if at.last {
                turn::<N>(
                    inputs,
                    outputs,
                    at.row + r,
                    at.column + c,
                    first,
                    second,
                    comptime!(rotary.clone()),
                    comptime!(plan.epilogue.clone()),
                    comptime!(plan.outputs.clone()),
                    comptime!(plan.columns),
                );
            } else {
                store::<f32, N>(workspace, partial, first);
                store::<f32, N>(workspace, partial + run, second);
            }
        }
    }
}

/// Runs the epilogue on pairs of sums whose first ones begin at `column`, in the order of tiles.
#[cube]
#[allow(unused_variables)]
pub(crate) fn turn<N: Size>(
    inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    row: usize,
    column: usize,
    first: Vector<f32, N>,
    second: Vector<f32, N>,
    #[comptime] rotary: Rotary,
    #[comptime] program: Program,
    #[comptime] elems: Vec<Elem>,
    #[comptime] columns: usize,
) {
    let (head, run) = comptime!((rotary.head, rotary.run));
    let number = column / head;
    let within = column % head;
    let lane = within / comptime!(2 * run) * run + within % run;
    intrinsic!(|scope| {
        let mut registers = Registers::new();
        registers.set(0, first);
        registers.set(1, second);
        let mut pair =
            Pair { inputs, outputs, elems: &elems, columns, row, number, lane, rotary: &rotary };
        interpret(scope, &program, &mut registers, &mut pair);
    })
}

/// Elements of one row's head that start at a lane of its halves.
struct Pair<'a> {
    inputs: &'a SequenceExpand<Box<[f32]>>,
    outputs: &'a mut SequenceExpand<Box<[f32]>>,
    elems: &'a [Elem],
    columns: usize,
    row: NativeExpand<usize>,
    number: NativeExpand<usize>,
    lane: NativeExpand<usize>,
    rotary: &'a Rotary,
}

impl Pair<'_> {
    /// Elements from the first half to this one.
    fn half(&self, number: u16) -> usize {
        number as usize % 2 * (self.rotary.head / 2)
    }
}

impl<N: Size> Environment<N> for Pair<'_> {
    fn load(&mut self, scope: &Scope, input: u16) -> Lanes<N> {
        let i = input as usize / 2;
        let buffer = self.inputs.__expand_index_method(scope, i.into());
        let (half, view) = (self.half(input), self.rotary.views[i].clone());
        load_beside::expand::<N>(scope, buffer.into(), self.row, self.number, self.lane, half, view)
    }

    fn store(&mut self, scope: &Scope, output: u16, value: Lanes<N>) {
        let o = output as usize / 2;
        let (first, head) = (self.half(output), self.rotary.head);
        let buffer = self.outputs.__expand_index_mut_method(scope, o.into());
        let (columns, elem) = (self.columns, self.elems[o]);
        let (row, number, lane) = (self.row, self.number, self.lane);
        store_half::expand::<N>(
            scope,
            buffer.into(),
            row,
            number,
            lane,
            value,
            columns,
            head,
            first,
            elem,
        );
    }
}

#[cube]
fn load_beside<N: Size>(
    buffer: &[f32],
    row: usize,
    number: usize,
    lane: usize,
    #[comptime] half: usize,
    #[comptime] view: RotaryView,
) -> Vector<f32, N> {
    let rows = offset_of(row, comptime!(view.rows.clone()), false);
    let at = rows + number * comptime!(view.head) + lane * comptime!(view.lane);
    let first = comptime!(view.offset + half * view.lane);
    load_strided::<N>(buffer, at + first, comptime!(view.lane), comptime!(view.elem))
}

#[cube]
fn store_half<N: Size>(
    buffer: &mut [f32],
    row: usize,
    number: usize,
    lane: usize,
    value: Vector<f32, N>,
    #[comptime] columns: usize,
    #[comptime] head: usize,
    #[comptime] first: usize,
    #[comptime] elem: Elem,
) {
    store_as::<N>(buffer, row * columns + number * head + lane + first, value, elem);
}
