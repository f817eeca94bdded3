//! Which keys a block of queries sees: whole tiles, and elements of the tiles at the border.

use super::tile::Shape;
use crate::vector_io::load;
use cubecl::prelude::*;

/// A block of queries of one batch element, and the keys that any of them may see.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Block {
    pub batch: usize,
    /// The first query.
    pub t: usize,
    pub count: usize,
    /// The first query's position.
    pub position: usize,
    pub first_key: usize,
    pub end_key: usize,
}

#[cube]
pub(crate) fn block_of(start: &[i32], batch: usize, t: usize, #[comptime] shape: Shape) -> Block {
    let count = min(shape.queries, shape.t - t);
    let mut position = t;
    if comptime!(shape.start) {
        position += start[0] as usize;
    }
    let mut first_key = 0usize;
    if comptime!(shape.window.is_some()) {
        let window = comptime!(shape.window.unwrap_or(0));
        // The oldest key that the first query sees, rounded down to a whole register tile.
        let past = max(position + 1, window) - window;
        first_key = past / shape.step * shape.step;
    }
    let mut end_key = shape.s.runtime();
    if comptime!(shape.causal) {
        end_key = min(end_key, position + count);
    }
    first_key = min(first_key, end_key);
    Block { batch, t, count, position, first_key, end_key }
}

/// Whether all queries of the block see all keys `s..s + shape.keys`.
#[cube]
pub(crate) fn sees_all(block: &Block, s: usize, #[comptime] shape: Shape) -> bool {
    let mut all = s + shape.keys <= shape.s;
    if comptime!(shape.causal) {
        all = all && s + shape.keys <= block.position + 1;
    }
    if comptime!(shape.window.is_some()) {
        let window = comptime!(shape.window.unwrap_or(0));
        all = all && block.position + block.count <= s + window;
    }
    if comptime!(shape.documents) {
        all = false;
    }
    all
}

/// Copies the documents of the block's queries, as bits, to where `masked` looks for them.
#[cube]
pub(crate) fn pack_documents(
    documents: &[i32],
    block: &Block,
    workspace: &mut [f32],
    out: usize,
    #[comptime] shape: Shape,
) {
    if comptime!(shape.documents) {
        for t in 0..shape.queries {
            let from = block.batch * shape.t + min(block.t + t, shape.t - 1);
            workspace[out + t] = f32::reinterpret(documents[from]);
        }
    }
}

/// `value` where vector `j` of the block's queries sees `key`, else `hidden`.
#[cube]
pub(crate) fn masked<N: Size>(
    value: Vector<f32, N>,
    hidden: Vector<f32, N>,
    block: &Block,
    key: usize,
    documents: &[i32],
    workspace: &[f32],
    packed: usize,
    #[comptime] j: usize,
    #[comptime] shape: Shape,
) -> Vector<f32, N> {
    let mut lanes = Vector::<i32, N>::empty();
    #[unroll]
    for lane in 0..N::value() {
        lanes.insert(lane, i32::cast_from(j * N::value() + lane));
    }
    let place = Vector::<i32, N>::new(key as i32);
    let position = lanes + Vector::new(block.position as i32);
    let mut out = value;
    if key >= shape.s {
        out = hidden;
    }
    if comptime!(shape.causal) {
        out = select_many(place.less_equal(&position), out, hidden);
    }
    if comptime!(shape.window.is_some()) {
        let window = comptime!(shape.window.unwrap_or(0)) as i32;
        let oldest = position - Vector::new(window);
        out = select_many(place.greater_than(&oldest), out, hidden);
    }
    if comptime!(shape.documents) {
        let bits = load::<f32, N>(workspace, packed + j * N::value());
        let theirs = documents[block.batch * shape.s + min(key, shape.s - 1)];
        let same = Vector::<i32, N>::reinterpret(bits).equal(&Vector::new(theirs));
        out = select_many(same, out, hidden);
    }
    out
}
