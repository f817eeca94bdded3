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
        // The oldest key that the first query sees.
        first_key = max(position + 1, window) - window;
    }
    let mut end_key = shape.s.runtime();
    if comptime!(shape.causal) {
        end_key = min(end_key, position + count);
    }
    first_key = min(first_key, end_key);
    Block { batch, t, count, position, first_key, end_key }
}

/// Whether all queries of the block see all keys `s..s + shape.keys`, if documents allow it.
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
    all
}

/// What documents say of the keys `s..s + shape.keys` and the block's queries: that each query sees
/// each key, that none sees any, or that this has to be asked for each pair.
#[cube]
pub(crate) fn documents_agree<N: Size>(
    documents: &[i32],
    block: &Block,
    s: usize,
    workspace: &[f32],
    packed: usize,
    #[comptime] shape: Shape,
) -> (bool, bool) {
    let mut every = true.runtime();
    let mut none = false.runtime();
    if comptime!(shape.documents) {
        every = false;
        if s + shape.keys <= shape.s {
            let at = block.batch * shape.s + s;
            let theirs = Vector::<i32, N>::new(documents[at]);
            let own = Vector::<f32, N>::new(workspace[packed]);
            let own = Vector::<i32, N>::reinterpret(own);
            let mut differ = Vector::<i32, N>::new(0i32);
            for i in range_stepped(0, shape.keys, N::value()) {
                differ = differ | (load::<i32, N>(documents, at + i) ^ theirs);
            }
            #[unroll]
            for j in 0..shape.vectors {
                let bits = load::<f32, N>(workspace, packed + j * N::value());
                differ = differ | (Vector::<i32, N>::reinterpret(bits) ^ own);
            }
            let mut any = 0i32.runtime();
            #[unroll]
            for lane in 0..N::value() {
                any = any | differ.extract(lane);
            }
            let one = any == 0;
            let same = theirs.extract(0usize) == own.extract(0usize);
            every = one && same;
            none = one && !same;
        }
    }
    (every, none)
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
