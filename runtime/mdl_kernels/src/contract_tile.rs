//! One tile of a contraction: multiply-adds on registers, and the way from there to the outputs.
//!
//! Tiles that are whole and have no epilogue are stored from the registers. All others go through
//! a small buffer, from which loops over rows and vectors run the epilogue.

use crate::contract_pack::Block;
use crate::contract_plan::{LayoutA, Plan, View2, offset_of};
use crate::contract_rotary::finish_rotary;
use crate::pairs::{dot, narrow};
use crate::prefetch::prefetch_write;
use crate::products::Products;
use crate::program::{Environment, Lanes, Program, Registers, interpret};
use crate::tiles::{self, SIDE};
use crate::vector_io::{load, load_strided, store, store_as, store_words};
use cubecl::intrinsic;
use cubecl::prelude::*;
use mdl_ir::kernel::Elem;

/// Where a unit keeps its things in the workspace, and what it works on.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Place {
    pub packed_b: usize,
    pub partial: usize,
    pub packed_a: usize,
    pub tile: usize,
    pub batch: usize,
    pub base_a: usize,
    pub base_b: usize,
}

/// Where each row of a tile starts in a or in the packed block, in words of four bytes.
#[cube]
pub(crate) fn row_offsets(
    place: &Place,
    block: &Block,
    row: usize,
    packed_panel: usize,
    #[comptime] plan: Plan,
) -> Array<usize> {
    let height = comptime!(plan.tile_rows);
    let mut offsets = Array::<usize>::new(height);
    #[unroll]
    for r in 0..height {
        if comptime!(plan.layout_a == LayoutA::Direct) {
            let m = min(row + r, comptime!(plan.rows - 1));
            let at = place.base_a + offset_of(m, comptime!(plan.m.clone()), false) + block.k;
            offsets[r] = at / comptime!(plan.steps_per_word());
        } else if comptime!(plan.layout_a == LayoutA::Rows) {
            let stride = comptime!(plan.row_words());
            offsets[r] = place.packed_a + (packed_panel * height + r) * stride;
        } else {
            offsets[r] = place.packed_a + packed_panel * comptime!(plan.panel_words()) + r;
        }
    }
    offsets
}

/// Adds `Σ_k a[offsets[r] + k·step] · packed[at + k·panel + v·N ..]` to sum `r·vectors + v`, over
/// `depth` words.
#[cube]
pub(crate) fn multiply<N: Size>(
    a: &[f32],
    offsets: &Array<usize>,
    packed: &[f32],
    at: usize,
    depth: usize,
    sums: &mut Array<Vector<f32, N>>,
    #[comptime] step: usize,
    #[comptime] rows: usize,
    #[comptime] vectors: usize,
    #[comptime] panel: usize,
    #[comptime] products: Products,
) {
    for k in 0..depth {
        let mut b = Array::<Vector<f32, N>>::new(vectors);
        #[unroll]
        for v in 0..vectors {
            b[v] = load::<f32, N>(packed, at + k * panel + v * N::value());
        }
        #[unroll]
        for r in 0..rows {
            let broadcast = Vector::<f32, N>::new(a[offsets[r] + k * step]);
            #[unroll]
            for v in 0..vectors {
                let sum = sums[r * vectors + v];
                if comptime!(products == Products::Widened) {
                    sums[r * vectors + v] = fma(broadcast, b[v], sum);
                } else {
                    sums[r * vectors + v] = dot::<N>(sum, broadcast, b[v]);
                }
            }
        }
    }
}

/// Adds to the sums the products of 32 rows of a with a panel of b over `depth` words. Of a, tiles
/// follow each other after `next` words, their rows after `row`, and the lower rows after `lower`.
#[cube]
pub(crate) fn multiply_tiles(
    a: &[f32],
    from_a: usize,
    packed: &[f32],
    from_b: usize,
    depth: usize,
    lower: usize,
    #[comptime] next: usize,
    #[comptime] row: usize,
) {
    for t in 0..depth / SIDE {
        let upper = from_a + t * next;
        let b = from_b + t * comptime!(2 * SIDE * SIDE);
        tiles::load(a, upper, upper + lower, row.runtime(), packed, b);
        tiles::multiply();
    }
}

/// Where the rows of a dense matrix start: `at`, `at + stride`, …
#[cube]
pub(crate) fn dense_rows(
    at: usize,
    #[comptime] rows: usize,
    #[comptime] stride: usize,
) -> Array<usize> {
    let mut starts = Array::<usize>::new(rows);
    #[unroll]
    for r in 0..rows {
        starts[r] = at + r * stride;
    }
    starts
}

/// Asks for the lines that a tile's sums go to, which come while it is multiplied.
#[cube]
pub(crate) fn expect_tile<N: Size>(
    out: &[f32],
    first: usize,
    #[comptime] rows: usize,
    #[comptime] vectors: usize,
    #[comptime] stride: usize,
) {
    #[unroll]
    for r in 0..rows {
        #[unroll]
        for v in 0..vectors {
            prefetch_write(out, first + r * stride + v * N::value());
        }
    }
}

/// Stores a whole tile whose rows start at `to`, or adds it to what is there.
#[cube]
pub(crate) fn store_tile<N: Size>(
    out: &mut [f32],
    to: &Array<usize>,
    sums: &Array<Vector<f32, N>>,
    accumulate: bool,
    #[comptime] rows: usize,
    #[comptime] vectors: usize,
) {
    #[unroll]
    for r in 0..rows {
        #[unroll]
        for v in 0..vectors {
            let here = to[r] + v * N::value();
            let mut sum = sums[r * vectors + v];
            if accumulate {
                sum += load::<f32, N>(&*out, here);
            }
            store::<f32, N>(out, here, sum);
        }
    }
}

/// Where a tile's buffered sums go.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Finish {
    /// The tile's buffer in the workspace.
    pub tile: usize,
    /// First row of the tile, counting all batches, and its first column.
    pub row: usize,
    pub column: usize,
    /// Valid rows and columns.
    pub rows: usize,
    pub columns: usize,
    /// Element of the workspace where this tile's partial sums start.
    pub partial: usize,
    pub first: bool,
    pub last: bool,
}

/// Takes a tile from its buffer, whose rows are `width` apart: keeps partial sums, or runs the
/// epilogue on complete ones.
#[cube]
pub(crate) fn finish_tile<N: Size>(
    workspace: &mut [f32],
    inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    at: &Finish,
    #[comptime] width: usize,
    #[comptime] plan: Plan,
) {
    let rotary = comptime!(plan.rotary.clone());
    #[comptime]
    match rotary {
        None => finish_alone::<N>(workspace, inputs, outputs, at, width, plan),
        Some(rotary) => {
            if comptime!(rotary.run == 8) {
                finish_rotary::<Const<8>>(workspace, inputs, outputs, at, width, rotary, plan);
            } else {
                finish_rotary::<Const<1>>(workspace, inputs, outputs, at, width, rotary, plan);
            }
        }
    }
}

/// Each column for itself.
#[cube]
fn finish_alone<N: Size>(
    workspace: &mut [f32],
    inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    at: &Finish,
    #[comptime] width: usize,
    #[comptime] plan: Plan,
) {
    let whole = at.columns / N::value() * N::value();
    for r in 0..at.rows {
        for v in 0..at.columns / N::value() {
            let c = v * N::value();
            let sum = load::<f32, N>(&*workspace, at.tile + r * width + c);
            finish_lanes::<N>(workspace, inputs, outputs, at, r, c, sum, comptime!(plan.clone()));
        }
        for c in whole..at.columns {
            let sum = load::<f32, Const<1>>(&*workspace, at.tile + r * width + c);
            let plan = comptime!(plan.clone());
            finish_lanes::<Const<1>>(workspace, inputs, outputs, at, r, c, sum, plan);
        }
    }
}

/// The same for a whole tile of two vectors whose sums only have to be rounded to bf16.
#[cube]
pub(crate) fn finish_rounded<N: Size>(
    workspace: &mut [f32],
    outputs: &mut Sequence<Box<[f32]>>,
    at: &Finish,
    #[comptime] plan: Plan,
) {
    let out = outputs.index_mut(0usize);
    for r in 0..comptime!(plan.tile_rows) {
        let from = at.tile + r * comptime!(2 * plan.width);
        let partial = at.partial + r * comptime!(plan.block_columns);
        let mut low = load::<f32, N>(&*workspace, from);
        let mut high = load::<f32, N>(&*workspace, from + N::value());
        if comptime!(plan.partial_elements > 0) && !at.first {
            low += load::<f32, N>(&*workspace, partial);
            high += load::<f32, N>(&*workspace, partial + N::value());
        }
        if at.last {
            let to = (at.row + r) * comptime!(plan.columns) + at.column;
            store_words::<N>(out, to, narrow::<N>(low, high));
        } else {
            store::<f32, N>(workspace, partial, low);
            store::<f32, N>(workspace, partial + N::value(), high);
        }
    }
}

#[cube]
fn finish_lanes<N: Size>(
    workspace: &mut [f32],
    inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    at: &Finish,
    r: usize,
    c: usize,
    sum: Vector<f32, N>,
    #[comptime] plan: Plan,
) {
    let mut total = sum;
    let row = at.row + r;
    let column = at.column + c;
    if comptime!(plan.direct) {
        let here = row * comptime!(plan.columns) + column;
        let out = outputs.index_mut(0usize);
        if !at.first {
            total += load::<f32, N>(&*out, here);
        }
        store::<f32, N>(out, here, total);
    } else {
        let here = at.partial + r * comptime!(plan.block_columns) + c;
        if comptime!(plan.partial_elements > 0) && !at.first {
            total += load::<f32, N>(&*workspace, here);
        }
        if at.last {
            run_epilogue::<N>(
                inputs,
                outputs,
                row,
                column,
                total,
                comptime!(plan.epilogue.clone()),
                comptime!(plan.epilogue_views.clone()),
                comptime!(plan.outputs.clone()),
                comptime!(plan.columns),
            );
        } else {
            store::<f32, N>(workspace, here, total);
        }
    }
}

/// Runs a program on the lanes `(row, column..column + N)` with register 0 = `value`; its loads
/// read `inputs` through `views` and its stores write dense rows of `columns`.
#[cube]
#[allow(unused_variables)]
pub(crate) fn run_epilogue<N: Size>(
    inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    row: usize,
    column: usize,
    value: Vector<f32, N>,
    #[comptime] program: Program,
    #[comptime] views: Vec<View2>,
    #[comptime] elems: Vec<Elem>,
    #[comptime] columns: usize,
) {
    intrinsic!(|scope| {
        let mut registers = Registers::new();
        registers.set(0, value);
        let outputs = Some(Outputs { buffers: outputs, elems: &elems, columns });
        let mut cell = Cell { inputs, outputs, row, column, views: &views };
        interpret(scope, &program, &mut registers, &mut cell);
    })
}

/// Runs a program that only loads, and gives register `result`.
#[cube]
#[allow(unused_variables)]
pub(crate) fn run_prologue<N: Size>(
    inputs: &Sequence<Box<[f32]>>,
    row: usize,
    column: usize,
    value: Vector<f32, N>,
    #[comptime] program: Program,
    #[comptime] views: Vec<View2>,
    #[comptime] result: u16,
) -> Vector<f32, N> {
    intrinsic!(|scope| {
        let mut registers = Registers::new();
        registers.set(0, value);
        let mut cell = Cell { inputs, outputs: None, row, column, views: &views };
        interpret(scope, &program, &mut registers, &mut cell);
        registers.get(result)
    })
}

/// Dense matrices of so many columns.
struct Outputs<'a> {
    buffers: &'a mut SequenceExpand<Box<[f32]>>,
    elems: &'a [Elem],
    columns: usize,
}

/// The lanes of one row that start at a column.
struct Cell<'a> {
    inputs: &'a SequenceExpand<Box<[f32]>>,
    outputs: Option<Outputs<'a>>,
    row: NativeExpand<usize>,
    column: NativeExpand<usize>,
    views: &'a [View2],
}

impl<N: Size> Environment<N> for Cell<'_> {
    fn load(&mut self, scope: &Scope, input: u16) -> Lanes<N> {
        let number = (input as usize).into();
        let buffer = self.inputs.__expand_index_method(scope, number);
        let view = self.views[input as usize];
        load_view::expand::<N>(scope, buffer.into(), self.row, self.column, view)
    }

    fn store(&mut self, scope: &Scope, output: u16, value: Lanes<N>) {
        let outputs = self.outputs.as_mut().expect("invariant: prologues store nothing");
        let number = (output as usize).into();
        let buffer = outputs.buffers.__expand_index_mut_method(scope, number);
        let (columns, elem) = (outputs.columns, outputs.elems[output as usize]);
        store_dense::expand::<N>(scope, buffer.into(), self.row, self.column, value, columns, elem);
    }
}

#[cube]
fn load_view<N: Size>(
    buffer: &[f32],
    row: usize,
    column: usize,
    #[comptime] view: View2,
) -> Vector<f32, N> {
    let at = row * comptime!(view.row) + column * comptime!(view.column);
    load_strided::<N>(
        buffer,
        at + comptime!(view.offset),
        comptime!(view.column),
        comptime!(view.elem),
    )
}

#[cube]
fn store_dense<N: Size>(
    buffer: &mut [f32],
    row: usize,
    column: usize,
    value: Vector<f32, N>,
    #[comptime] columns: usize,
    #[comptime] elem: Elem,
) {
    store_as::<N>(buffer, row * columns + column, value, elem);
}
