//! Tiles of rows from a buffer into the memory that a cube shares, padded with zeros.
//!
//! What lies outside the rows that are seen is never read: a cache may hold anything there, and
//! zero times that need not be zero.

use super::shape::Shape;
use crate::vector_io::{load, load_one, nearest_bits, store};
use cubecl::prelude::*;
use mdl_ir::kernel::Elem;

/// Words that a unit moves at a time where rows are aligned.
const WIDE: usize = 4;
/// Loads of a unit that are under way together.
const TOGETHER: usize = 8;

/// Where the rows of a tile lie: row `i` from element `base + (first + i) · stride` on, and only
/// rows `low..high` are read.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Source {
    pub base: usize,
    pub first: usize,
    pub low: usize,
    pub high: usize,
}

/// Copies `rows` rows as they are: row `i` from word `i · pitch` on.
#[cube]
pub(crate) fn stage_rows(
    from: &[f32],
    source: &Source,
    tile: &mut [f32],
    #[comptime] rows: usize,
    #[comptime] stride: usize,
    #[comptime] shape: Shape,
) {
    let lanes = comptime!(if shape.wide { WIDE } else { 1 });
    let across = comptime!(shape.words() / lanes);
    let each = comptime!((rows * across).div_ceil(shape.units()));
    let size!(N) = lanes;
    #[unroll]
    for start in range_stepped(0, each, TOGETHER) {
        let count = comptime!(TOGETHER.min(each - start));
        let mut held = Array::<Vector<f32, N>>::new(count);
        #[unroll]
        for i in 0..count {
            let item = (start + i) * shape.units() + UNIT_POS as usize;
            let row = source.first + item / across;
            held[i] = words_of::<N>(from, source, row, item % across * lanes, stride, shape);
        }
        #[unroll]
        for i in 0..count {
            let item = (start + i) * shape.units() + UNIT_POS as usize;
            if item < comptime!(rows * across) {
                let place = item / across * shape.pitch() + item % across * lanes;
                store::<f32, N>(tile, place, held[i]);
            }
        }
    }
}

/// Copies `shape.columns` rows of bf16 such that a word holds two rows' elements: those of rows
/// `2i` and `2i + 1` from word `i · turned_pitch` on.
#[cube]
pub(crate) fn stage_turned(
    from: &[f32],
    source: &Source,
    tile: &mut [f32],
    #[comptime] stride: usize,
    #[comptime] shape: Shape,
) {
    let lanes = comptime!(if shape.wide { WIDE } else { 1 });
    let across = comptime!(shape.words() / lanes);
    let items = comptime!(shape.columns / 2 * across);
    let size!(N) = lanes;
    #[unroll]
    for i in 0..comptime!(items.div_ceil(shape.units())) {
        let item = i * shape.units() + UNIT_POS as usize;
        let row = source.first + item / across * 2;
        let word = item % across * lanes;
        let even = words_of::<N>(from, source, row, word, stride, shape);
        let odd = words_of::<N>(from, source, row + 1, word, stride, shape);
        if item < items {
            let place = item / across * shape.turned_pitch() + word * 2;
            #[unroll]
            for lane in 0..lanes {
                let a = u32::reinterpret(even.extract(lane));
                let b = u32::reinterpret(odd.extract(lane));
                let low = (a & 0xffff) | (b << 16);
                let high = (a >> 16) | (b & 0xffff_0000);
                tile[place + lane * 2] = f32::reinterpret(low);
                tile[place + lane * 2 + 1] = f32::reinterpret(high);
            }
        }
    }
}

/// N words of a row; zeros outside the rows that are read, and behind the head.
#[cube]
fn words_of<N: Size>(
    from: &[f32],
    source: &Source,
    row: usize,
    word: usize,
    #[comptime] stride: usize,
    #[comptime] shape: Shape,
) -> Vector<f32, N> {
    let lanes = N::value();
    let per_word = comptime!(shape.padded() / shape.words());
    let mut words = Vector::<f32, N>::new(0.0);
    if row >= source.low && row < source.high && word * per_word < shape.head {
        let at = source.base + row * stride;
        if comptime!(lanes > 1) {
            words = load::<f32, N>(from, at / per_word + word);
        } else if comptime!(shape.elem == Elem::Bf16) {
            let d = word * 2;
            let mut bits =
                nearest_bits::<Const<1>>(Vector::new(load_one(from, at + d, shape.elem)));
            if d + 1 < shape.head {
                let next = load_one(from, at + d + 1, shape.elem);
                bits = bits | (nearest_bits::<Const<1>>(Vector::new(next)) << Vector::new(16u32));
            }
            words = Vector::new(f32::reinterpret(bits.extract(0usize)));
        } else {
            words = Vector::new(from[at + word]);
        }
    }
    words
}
