//! Packing: blocks of a and b rearranged so that a tile reads them in the order it needs.
//!
//! Rows and columns past the edge repeat the last one: their sums are never stored.

use crate::contract_pairs::{pack_a_pairs, pack_a_words, pack_a_zipped, pack_b_pairs};
use crate::contract_plan::{LayoutA, LayoutB, Plan, Preparation, offset_of};
use crate::contract_tile::run_prologue;
use crate::products::Products;
use crate::vector_io::{load_as, store};
use cubecl::prelude::*;
use mdl_ir::kernel::Operand;

/// Steps of k in one piece, so that few columns still give work to all units.
const CHUNK: usize = 64;

/// A block of k and of columns.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Block {
    pub k: usize,
    pub depth: usize,
    pub column: usize,
    pub columns: usize,
}

/// Pieces into which packing a block of b is divided.
#[cube]
pub(crate) fn pack_b_pieces(block: &Block, #[comptime] plan: Plan) -> usize {
    let width = comptime!(plan.tile_vectors * plan.width);
    block.columns.div_ceil(width) * block.depth.div_ceil(CHUNK)
}

/// Packs one piece of a block of b.
#[cube]
pub(crate) fn pack_b<N: Size>(
    b: &[f32],
    base: usize,
    inputs: &Sequence<Box<[f32]>>,
    workspace: &mut [f32],
    to: usize,
    block: &Block,
    piece: usize,
    #[comptime] plan: Plan,
) {
    let chunks = block.depth.div_ceil(CHUNK);
    let panel = piece / chunks;
    let k0 = piece % chunks * CHUNK;
    let k1 = min(k0 + CHUNK, block.depth);
    if comptime!(plan.products == Products::Widened) {
        pack_b_panel::<N>(b, base, inputs, workspace, to, block, panel, k0, k1, plan);
    } else {
        pack_b_pairs::<N>(b, base, inputs, workspace, to, block, panel, k0, k1, plan);
    }
}

/// Packs steps k0..k1 of a block of b into a panel of a tile's width, k outermost. The first panel
/// lies at `to` in the workspace.
#[cube]
pub(crate) fn pack_b_panel<N: Size>(
    b: &[f32],
    base: usize,
    inputs: &Sequence<Box<[f32]>>,
    workspace: &mut [f32],
    to: usize,
    block: &Block,
    panel: usize,
    k0: usize,
    k1: usize,
    #[comptime] plan: Plan,
) {
    let width = comptime!(plan.tile_vectors * plan.width);
    let column = block.column + panel * width;
    let out = to + panel * width * block.depth;
    let whole = column + width <= comptime!(plan.columns);
    if comptime!(matches!(plan.layout_b, LayoutB::Columns)) && whole {
        for k in k0..k1 {
            let k_offset = offset_of(block.k + k, comptime!(plan.k.clone()), true);
            #[unroll]
            for v in 0..comptime!(plan.tile_vectors) {
                let column = column + v * N::value();
                let lanes = load_as::<N>(b, base + k_offset + column, comptime!(plan.b));
                let preparation = comptime!(plan.preparation(Operand::B));
                let lanes = prepare_across::<N>(inputs, column, block.k + k, lanes, preparation);
                store::<f32, N>(workspace, out + k * width + v * N::value(), lanes);
            }
        }
    } else {
        for v in 0..comptime!(plan.tile_vectors) {
            let (column, out) = (column + v * N::value(), out + v * N::value());
            let plan = comptime!(plan.clone());
            let mut k = k0;
            if comptime!(matches!(plan.layout_b, LayoutB::Rows)) {
                k = k0 + (k1 - k0) / N::value() * N::value();
                let plan = comptime!(plan.clone());
                pack_b_rows::<N>(b, base, inputs, workspace, out, block.k, k0, k, column, plan);
            }
            pack_b_gathered::<N>(b, base, inputs, workspace, out, block.k, k, k1, column, plan);
        }
    }
}

/// One vector of columns for the whole vectors k0..k1, k contiguous: each line of b is read once,
/// because with strides of a power of two it might be gone before its next element is needed.
#[cube]
fn pack_b_rows<N: Size>(
    b: &[f32],
    base: usize,
    inputs: &Sequence<Box<[f32]>>,
    workspace: &mut [f32],
    out: usize,
    block_k: usize,
    k0: usize,
    k1: usize,
    column: usize,
    #[comptime] plan: Plan,
) {
    let width = comptime!(plan.tile_vectors * plan.width);
    let mut from = Array::<usize>::new(N::value());
    #[unroll]
    for lane in 0..N::value() {
        let here = min(column + lane, comptime!(plan.columns - 1));
        from[lane] = base + offset_of(here, comptime!(plan.n.clone()), false) + block_k;
    }
    for k in range_stepped(k0, k1, N::value()) {
        let mut lines = Array::<Vector<f32, N>>::new(N::value());
        #[unroll]
        for lane in 0..N::value() {
            let line = load_as::<N>(b, from[lane] + k, comptime!(plan.b));
            let here = min(column + lane, comptime!(plan.columns - 1));
            let preparation = comptime!(plan.preparation(Operand::B));
            lines[lane] = prepare::<N>(inputs, here, block_k + k, line, preparation);
        }
        #[unroll]
        for i in 0..N::value() {
            let mut lanes = Vector::<f32, N>::empty();
            #[unroll]
            for lane in 0..N::value() {
                lanes.insert(lane, lines[lane].extract(i));
            }
            store::<f32, N>(workspace, out + (k + i) * width, lanes);
        }
    }
}

/// One vector of columns for k0..k1, element by element.
#[cube]
fn pack_b_gathered<N: Size>(
    b: &[f32],
    base: usize,
    inputs: &Sequence<Box<[f32]>>,
    workspace: &mut [f32],
    out: usize,
    block_k: usize,
    k0: usize,
    k1: usize,
    column: usize,
    #[comptime] plan: Plan,
) {
    let width = comptime!(plan.tile_vectors * plan.width);
    let mut from = Array::<usize>::new(N::value());
    #[unroll]
    for lane in 0..N::value() {
        let here = min(column + lane, comptime!(plan.columns - 1));
        from[lane] = base + offset_of(here, comptime!(plan.n.clone()), false);
    }
    for k in k0..k1 {
        let k_offset = offset_of(block_k + k, comptime!(plan.k.clone()), true);
        #[unroll]
        for lane in 0..N::value() {
            let value = load_as::<Const<1>>(b, from[lane] + k_offset, comptime!(plan.b));
            let here = min(column + lane, comptime!(plan.columns - 1));
            let preparation = comptime!(plan.preparation(Operand::B));
            let value = prepare::<Const<1>>(inputs, here, block_k + k, value, preparation);
            store::<f32, Const<1>>(workspace, out + k * width + lane, value);
        }
    }
}

/// Packs `rows` rows of a from `row` for one block of k, through the prologue.
#[cube]
pub(crate) fn pack_a<N: Size, M: Size>(
    a: &[f32],
    base: usize,
    inputs: &Sequence<Box<[f32]>>,
    workspace: &mut [f32],
    to: usize,
    row: usize,
    rows: usize,
    block: &Block,
    #[comptime] plan: Plan,
) {
    if comptime!(plan.products != Products::Widened) {
        pack_a_pairs::<N, M>(a, base, inputs, workspace, to, row, rows, block, plan);
    } else if comptime!(matches!(plan.layout_a, LayoutA::Rows)) {
        pack_a_rows::<N>(a, base, inputs, workspace, to, row, rows, block, plan);
    } else if comptime!(matches!(plan.layout_a, LayoutA::Columns | LayoutA::Gathered)) {
        pack_a_panels::<M>(a, base, inputs, workspace, to, row, rows, block, plan);
    }
}

/// Rows of `block_depth` and one vector, contiguous along k.
#[cube]
fn pack_a_rows<N: Size>(
    a: &[f32],
    base: usize,
    inputs: &Sequence<Box<[f32]>>,
    workspace: &mut [f32],
    to: usize,
    row: usize,
    rows: usize,
    block: &Block,
    #[comptime] plan: Plan,
) {
    let stride = comptime!(plan.row_words());
    let whole = block.depth / N::value() * N::value();
    for r in 0..rows {
        let m = min(row + r, comptime!(plan.rows - 1));
        let from = base + offset_of(m, comptime!(plan.m.clone()), false) + block.k;
        let out = to + r * stride;
        for v in 0..block.depth / N::value() {
            let k = v * N::value();
            let value = prepare::<N>(
                inputs,
                m,
                block.k + k,
                load_as::<N>(a, from + k, comptime!(plan.a)),
                comptime!(plan.preparation(Operand::A)),
            );
            store::<f32, N>(workspace, out + k, value);
        }
        for k in whole..block.depth {
            let value = prepare::<Const<1>>(
                inputs,
                m,
                block.k + k,
                load_as::<Const<1>>(a, from + k, comptime!(plan.a)),
                comptime!(plan.preparation(Operand::A)),
            );
            store::<f32, Const<1>>(workspace, out + k, value);
        }
    }
}

/// Panels of a tile's rows, k outermost: those whose rows share a line together, then single ones,
/// and at last what is not contiguous, row by row.
#[cube]
pub(crate) fn pack_a_panels<M: Size>(
    a: &[f32],
    base: usize,
    inputs: &Sequence<Box<[f32]>>,
    workspace: &mut [f32],
    to: usize,
    row: usize,
    rows: usize,
    block: &Block,
    #[comptime] plan: Plan,
) {
    let height = comptime!(plan.tile_rows);
    let length = comptime!(plan.panel_words());
    let group = comptime!(plan.panels_per_line());
    let grouped = whole_panels(row, rows, group, comptime!(plan.clone()));
    let whole = whole_panels(row, rows, 1usize, comptime!(plan.clone()));
    for g in 0..grouped / group {
        let panel = g * group;
        let (first, out) = (row + panel * height, to + panel * length);
        let plan = comptime!(plan.clone());
        pack_a_together::<M>(a, base + first, inputs, workspace, out, first, block, group, plan);
    }
    for panel in grouped..whole {
        let (first, out) = (row + panel * height, to + panel * length);
        let plan = comptime!(plan.clone());
        pack_a_together::<M>(a, base + first, inputs, workspace, out, first, block, 1usize, plan);
    }
    for panel in whole..rows.div_ceil(height) {
        let (first, out) = (row + panel * height, to + panel * length);
        let plan = comptime!(plan.clone());
        if comptime!(plan.products == Products::Widened) {
            pack_a_gathered(a, base, inputs, workspace, out, first, block, plan);
        } else {
            pack_a_words(a, base, inputs, workspace, out, first, block, plan);
        }
    }
}

/// So many panels of rows that are contiguous, from `from` in a and `first` among the rows.
#[cube]
fn pack_a_together<M: Size>(
    a: &[f32],
    from: usize,
    inputs: &Sequence<Box<[f32]>>,
    workspace: &mut [f32],
    to: usize,
    first: usize,
    block: &Block,
    #[comptime] panels: usize,
    #[comptime] plan: Plan,
) {
    if comptime!(plan.products != Products::Widened) {
        pack_a_zipped::<M>(a, from, inputs, workspace, to, first, block, panels, plan);
    } else {
        let height = comptime!(plan.tile_rows);
        for k in 0..block.depth {
            let at = from + offset_of(block.k + k, comptime!(plan.k.clone()), false);
            #[unroll]
            for p in 0..panels {
                let lanes = load_as::<M>(a, at + p * height, comptime!(plan.a));
                let preparation = comptime!(plan.preparation(Operand::A));
                let row = first + p * height;
                let lanes = prepare_across::<M>(inputs, row, block.k + k, lanes, preparation);
                let out = to + p * comptime!(plan.panel_words()) + k * height;
                store::<f32, M>(workspace, out, lanes);
            }
        }
    }
}

/// One panel from row `first`, element by element.
#[cube]
fn pack_a_gathered(
    a: &[f32],
    base: usize,
    inputs: &Sequence<Box<[f32]>>,
    workspace: &mut [f32],
    out: usize,
    first: usize,
    block: &Block,
    #[comptime] plan: Plan,
) {
    let height = comptime!(plan.tile_rows);
    let mut from = Array::<usize>::new(height);
    #[unroll]
    for r in 0..height {
        let m = min(first + r, comptime!(plan.rows - 1));
        from[r] = base + offset_of(m, comptime!(plan.m.clone()), false);
    }
    for k in 0..block.depth {
        let at = offset_of(block.k + k, comptime!(plan.k.clone()), false);
        #[unroll]
        for r in 0..height {
            let value = prepare::<Const<1>>(
                inputs,
                min(first + r, comptime!(plan.rows - 1)),
                block.k + k,
                load_as::<Const<1>>(a, from[r] + at, comptime!(plan.a)),
                comptime!(plan.preparation(Operand::A)),
            );
            store::<f32, Const<1>>(workspace, out + k * height + r, value);
        }
    }
}

/// Panels that lie whole in `rows` rows of a from `row`, the most that is a multiple of `group`;
/// none where m is not contiguous.
#[cube]
fn whole_panels(
    row: usize,
    rows: usize,
    #[comptime] group: usize,
    #[comptime] plan: Plan,
) -> usize {
    if comptime!(plan.layout_a == LayoutA::Columns) {
        let height = comptime!(group * plan.tile_rows);
        min(rows, comptime!(plan.rows) - row) / height * group
    } else {
        0usize.runtime()
    }
}

/// The prologue on lanes that run along k from one row of the operand.
#[cube]
pub(crate) fn prepare<N: Size>(
    inputs: &Sequence<Box<[f32]>>,
    row: usize,
    k: usize,
    value: Vector<f32, N>,
    #[comptime] preparation: Option<Preparation>,
) -> Vector<f32, N> {
    if comptime!(preparation.is_none()) {
        value
    } else {
        let preparation = comptime!(preparation.clone().expect("invariant: it was looked at"));
        run_prologue::<N>(
            inputs,
            row,
            k,
            value,
            comptime!(preparation.program.clone()),
            comptime!(preparation.views.clone()),
            comptime!(preparation.result),
        )
    }
}

/// The same on lanes that run along the operand's rows, at one step of k.
#[cube]
pub(crate) fn prepare_across<N: Size>(
    inputs: &Sequence<Box<[f32]>>,
    row: usize,
    k: usize,
    value: Vector<f32, N>,
    #[comptime] preparation: Option<Preparation>,
) -> Vector<f32, N> {
    prepare::<N>(inputs, k, row, value, comptime!(preparation.map(Preparation::across)))
}
