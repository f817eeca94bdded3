//! Packing for products of pairs of bf16: words of two that follow each other along k.
//!
//! Panels of b have one word of each column after the other. Of a, `Products::Vectors` takes rows
//! or panels as `contract_pack` makes them of f32, and `Products::Tiles` takes tiles: 16 words of
//! one row, then of the next. Where k ends, what is missing to a pair or a tile is zero.

use crate::contract_pack::{Block, pack_a_panels, prepare, prepare_across};
use crate::contract_plan::{LayoutA, LayoutB, Plan, Preparation, offset_of};
use crate::pairs::{narrow, transpose};
use crate::products::Products;
use crate::tiles::SIDE;
use crate::vector_io::{load_as, load_half, load_words, store, zip_halves, zip_rounded};
use cubecl::prelude::*;
use mdl_ir::kernel::{Elem, Operand};

/// Words of four bytes that a block of `depth` steps of k takes.
#[cube]
pub(crate) fn words(depth: usize, #[comptime] products: Products) -> usize {
    if comptime!(products == Products::Widened) {
        depth
    } else if comptime!(products == Products::Vectors) {
        depth.div_ceil(2usize)
    } else {
        depth.div_ceil(comptime!(2 * SIDE)) * SIDE
    }
}

/// The operand that is packed, and where: a row of it and the first step of its block.
#[derive(CubeType, Clone, Copy)]
struct Spot {
    row: usize,
    k: usize,
    depth: usize,
}

/// The word of steps k and k + 1 of a block that lie at `at` and `next`, as far as there are such.
#[cube]
fn word(
    x: &[f32],
    inputs: &Sequence<Box<[f32]>>,
    spot: &Spot,
    at: usize,
    next: usize,
    k: usize,
    #[comptime] preparation: Option<Preparation>,
) -> f32 {
    zipped::<Const<1>>(x, inputs, spot, at, next, k, preparation).extract(0usize)
}

/// The same for N rows of the operand from `at` and from `next`.
#[cube]
fn zipped<N: Size>(
    x: &[f32],
    inputs: &Sequence<Box<[f32]>>,
    spot: &Spot,
    at: usize,
    next: usize,
    k: usize,
    #[comptime] preparation: Option<Preparation>,
) -> Vector<f32, N> {
    let mut lanes = Vector::<f32, N>::new(0.0);
    if comptime!(preparation.is_none()) {
        if k + 1 < spot.depth {
            lanes = zip_halves::<N>(x, at, next);
        } else if k < spot.depth {
            lanes = load_half::<N>(x, at);
        }
    } else if k < spot.depth {
        let (row, first) = (spot.row, spot.k + k);
        let low = load_as::<N>(x, at, Elem::Bf16);
        let low = prepare_across::<N>(inputs, row, first, low, comptime!(preparation.clone()));
        lanes = zip_rounded::<N>(low, Vector::new(0.0));
        if k + 1 < spot.depth {
            let high = load_as::<N>(x, next, Elem::Bf16);
            let high = prepare_across::<N>(inputs, row, first + 1, high, preparation);
            lanes = zip_rounded::<N>(low, high);
        }
    }
    lanes
}

/// N words of one row from step `k` of a block, which is contiguous at `at`.
#[cube]
fn words_along<N: Size>(
    x: &[f32],
    inputs: &Sequence<Box<[f32]>>,
    spot: &Spot,
    at: usize,
    k: usize,
    #[comptime] preparation: Option<Preparation>,
) -> Vector<f32, N> {
    if comptime!(preparation.is_none()) {
        load_words::<N>(x, at)
    } else {
        let (row, first) = (spot.row, spot.k + k);
        let low = load_as::<N>(x, at, Elem::Bf16);
        let low = prepare::<N>(inputs, row, first, low, comptime!(preparation.clone()));
        let high = load_as::<N>(x, at + N::value(), Elem::Bf16);
        let high = prepare::<N>(inputs, row, first + N::value(), high, preparation);
        narrow::<N>(low, high)
    }
}

/// Where steps k and k + 1 of a block lie; what lies past its end is not to be read.
#[cube]
fn steps(
    block: &Block,
    k: usize,
    #[comptime] second: bool,
    #[comptime] plan: Plan,
) -> (usize, usize) {
    (
        offset_of(block.k + k, comptime!(plan.k.clone()), second),
        offset_of(block.k + k + 1, comptime!(plan.k.clone()), second),
    )
}

/// Packs steps k0..k1 of a block of b; but for the last of a block they are whole tiles.
#[cube]
pub(crate) fn pack_b_pairs<N: Size>(
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
    let products = comptime!(plan.products);
    let column = block.column + panel * width;
    let out = to + panel * width * words(block.depth, products);
    let first = k0 / 2;
    let last = first + words(k1 - k0, products);
    if comptime!(plan.layout_b == LayoutB::Columns) && column + width <= comptime!(plan.columns) {
        for w in first..last {
            let k = 2 * w;
            let (at, next) = steps(block, k, true, comptime!(plan.clone()));
            #[unroll]
            for v in 0..comptime!(plan.tile_vectors) {
                let column = column + v * N::value();
                let here = base + column;
                let spot = Spot { row: column, k: block.k, depth: block.depth };
                let preparation = comptime!(plan.preparation(Operand::B));
                let (at, next) = (here + at, here + next);
                let lanes = zipped::<N>(b, inputs, &spot, at, next, k, preparation);
                store::<f32, N>(workspace, out + w * width + v * N::value(), lanes);
            }
        }
    } else {
        for v in 0..comptime!(plan.tile_vectors) {
            let (column, out) = (column + v * N::value(), out + v * N::value());
            let plan = comptime!(plan.clone());
            let mut begin = first;
            if comptime!(plan.layout_b == LayoutB::Rows) {
                begin = first + (k1 / 2 - first) / N::value() * N::value();
                let plan = comptime!(plan.clone());
                pack_b_lines::<N>(
                    b, base, inputs, workspace, out, block, first, begin, column, plan,
                );
            }
            gather_b::<N>(b, base, inputs, workspace, out, block, begin, last, column, plan);
        }
    }
}

/// One vector of columns for words w0..w1, whole vectors of them, k contiguous.
#[cube]
fn pack_b_lines<N: Size>(
    b: &[f32],
    base: usize,
    inputs: &Sequence<Box<[f32]>>,
    workspace: &mut [f32],
    out: usize,
    block: &Block,
    w0: usize,
    w1: usize,
    column: usize,
    #[comptime] plan: Plan,
) {
    let width = comptime!(plan.tile_vectors * plan.width);
    let mut from = Array::<usize>::new(N::value());
    #[unroll]
    for lane in 0..N::value() {
        let here = min(column + lane, comptime!(plan.columns - 1));
        from[lane] = base + offset_of(here, comptime!(plan.n.clone()), false) + block.k;
    }
    for w in range_stepped(w0, w1, N::value()) {
        let mut lines = Array::<Vector<f32, N>>::new(N::value());
        #[unroll]
        for lane in 0..N::value() {
            let row = min(column + lane, comptime!(plan.columns - 1));
            let spot = Spot { row, k: block.k, depth: block.depth };
            let preparation = comptime!(plan.preparation(Operand::B));
            lines[lane] =
                words_along::<N>(b, inputs, &spot, from[lane] + 2 * w, 2 * w, preparation);
        }
        transpose::<N>(&mut lines);
        #[unroll]
        for i in 0..N::value() {
            store::<f32, N>(workspace, out + (w + i) * width, lines[i]);
        }
    }
}

/// One vector of columns for words w0..w1, one by one.
#[cube]
fn gather_b<N: Size>(
    b: &[f32],
    base: usize,
    inputs: &Sequence<Box<[f32]>>,
    workspace: &mut [f32],
    out: usize,
    block: &Block,
    w0: usize,
    w1: usize,
    column: usize,
    #[comptime] plan: Plan,
) {
    let width = comptime!(plan.tile_vectors * plan.width);
    for w in w0..w1 {
        let (at, next) = steps(block, 2 * w, true, comptime!(plan.clone()));
        for lane in 0..N::value() {
            let here = min(column + lane, comptime!(plan.columns - 1));
            let from = base + offset_of(here, comptime!(plan.n.clone()), false);
            let spot = Spot { row: here, k: block.k, depth: block.depth };
            let preparation = comptime!(plan.preparation(Operand::B));
            workspace[out + w * width + lane] =
                word(b, inputs, &spot, from + at, from + next, 2 * w, preparation);
        }
    }
}

/// Packs `rows` rows of a from `row` for one block of k; N is as long as `contract`'s vectors.
#[cube]
pub(crate) fn pack_a_pairs<N: Size, M: Size>(
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
    if comptime!(plan.layout_a == LayoutA::Direct) {
        // It is read in place.
    } else if comptime!(plan.products == Products::Tiles) {
        for panel in 0..rows.div_ceil(SIDE) {
            let out = to + panel * SIDE * words(block.depth, comptime!(plan.products));
            let plan = comptime!(plan.clone());
            pack_a_tiles::<N>(a, base, inputs, workspace, out, row + panel * SIDE, block, plan);
        }
    } else if comptime!(plan.layout_a == LayoutA::Rows) {
        let stride = comptime!(plan.row_words());
        let pairs = words(block.depth, comptime!(plan.products));
        for r in 0..rows {
            let m = min(row + r, comptime!(plan.rows - 1));
            let from = base + offset_of(m, comptime!(plan.m.clone()), false) + block.k;
            let out = to + r * stride;
            let whole = block.depth / 2 / N::value() * N::value();
            let spot = Spot { row: m, k: block.k, depth: block.depth };
            for w in range_stepped(0usize, whole, N::value()) {
                let preparation = comptime!(plan.preparation(Operand::A));
                let at = from + 2 * w;
                let lanes = words_along::<N>(a, inputs, &spot, at, 2 * w, preparation);
                store::<f32, N>(workspace, out + w, lanes);
            }
            for w in whole..pairs {
                let preparation = comptime!(plan.preparation(Operand::A));
                let at = from + 2 * w;
                workspace[out + w] = word(a, inputs, &spot, at, at + 1, 2 * w, preparation);
            }
        }
    } else {
        pack_a_panels::<M>(a, base, inputs, workspace, to, row, rows, block, plan);
    }
}

/// One panel from row `first`, a word of each row after the other.
#[cube]
pub(crate) fn pack_a_words(
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
    for w in 0..words(block.depth, comptime!(plan.products)) {
        let (at, next) = steps(block, 2 * w, false, comptime!(plan.clone()));
        for r in 0..height {
            let m = min(first + r, comptime!(plan.rows - 1));
            let from = base + offset_of(m, comptime!(plan.m.clone()), false);
            let spot = Spot { row: m, k: block.k, depth: block.depth };
            let preparation = comptime!(plan.preparation(Operand::A));
            let (at, next) = (from + at, from + next);
            let value = word(a, inputs, &spot, at, next, 2 * w, preparation);
            workspace[out + w * height + r] = value;
        }
    }
}

/// So many panels of rows that are contiguous, from `from` in a and `first` among the rows.
#[cube]
pub(crate) fn pack_a_zipped<M: Size>(
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
    let height = comptime!(plan.tile_rows);
    for w in 0..words(block.depth, comptime!(plan.products)) {
        let (at, next) = steps(block, 2 * w, false, comptime!(plan.clone()));
        #[unroll]
        for p in 0..panels {
            let spot = Spot { row: first + p * height, k: block.k, depth: block.depth };
            let preparation = comptime!(plan.preparation(Operand::A));
            let from = from + p * height;
            let (at, next) = (from + at, from + next);
            let lanes = zipped::<M>(a, inputs, &spot, at, next, 2 * w, preparation);
            store::<f32, M>(workspace, to + p * comptime!(plan.panel_words()) + w * height, lanes);
        }
    }
}

/// 16 rows from `first` as tiles, those of the first words first.
#[cube]
fn pack_a_tiles<N: Size>(
    a: &[f32],
    base: usize,
    inputs: &Sequence<Box<[f32]>>,
    workspace: &mut [f32],
    out: usize,
    first: usize,
    block: &Block,
    #[comptime] plan: Plan,
) {
    let tile = comptime!(SIDE * SIDE);
    let last = comptime!(plan.rows - 1);
    let count = block.depth.div_ceil(comptime!(2 * SIDE));
    let k_contiguous = comptime!(plan.layout_a == LayoutA::Rows);
    let m_contiguous = comptime!(plan.layout_a == LayoutA::Columns);
    let whole = block.depth / comptime!(2 * SIDE);
    let mut begin = 0usize.runtime();
    if k_contiguous {
        for r in 0..SIDE {
            let m = min(first + r, last);
            let from = base + offset_of(m, comptime!(plan.m.clone()), false) + block.k;
            for t in 0..whole {
                let k = t * comptime!(2 * SIDE);
                let spot = Spot { row: m, k: block.k, depth: block.depth };
                let preparation = comptime!(plan.preparation(Operand::A));
                let lanes = words_along::<N>(a, inputs, &spot, from + k, k, preparation);
                store::<f32, N>(workspace, out + t * tile + r * SIDE, lanes);
            }
        }
        begin = whole;
    } else if m_contiguous && first + SIDE <= comptime!(plan.rows) {
        let from = base + offset_of(first, comptime!(plan.m.clone()), false);
        for t in 0..count {
            let mut lines = Array::<Vector<f32, N>>::new(SIDE);
            #[unroll]
            for i in 0..SIDE {
                let k = (t * SIDE + i) * 2;
                let (at, next) = steps(block, k, false, comptime!(plan.clone()));
                let spot = Spot { row: first, k: block.k, depth: block.depth };
                let preparation = comptime!(plan.preparation(Operand::A));
                let (at, next) = (from + at, from + next);
                lines[i] = zipped::<N>(a, inputs, &spot, at, next, k, preparation);
            }
            transpose::<N>(&mut lines);
            #[unroll]
            for r in 0..SIDE {
                store::<f32, N>(workspace, out + t * tile + r * SIDE, lines[r]);
            }
        }
        begin = count;
    }
    for r in 0..SIDE {
        let m = min(first + r, last);
        let from = base + offset_of(m, comptime!(plan.m.clone()), false);
        for w in begin * SIDE..count * SIDE {
            let (at, next) = steps(block, 2 * w, false, comptime!(plan.clone()));
            let here = out + w / SIDE * tile + r * SIDE + w % SIDE;
            let spot = Spot { row: m, k: block.k, depth: block.depth };
            let preparation = comptime!(plan.preparation(Operand::A));
            let (at, next) = (from + at, from + next);
            workspace[here] = word(a, inputs, &spot, at, next, 2 * w, preparation);
        }
    }
}
