//! Writes dk and dv from the sums in the workspace, whose heads are padded.

use super::GradShape;
use crate::embedding::share;
use crate::vector_io::{load, store_as};
use cubecl::prelude::*;

/// The sums of one head of keys. N is at most the head.
#[cube]
pub(crate) fn write_keys<N: Size>(
    dk: &mut [f32],
    dv: &mut [f32],
    workspace: &[f32],
    sums: usize,
    owner: usize,
    #[comptime] shape: GradShape,
) {
    let tile = comptime!(shape.tile);
    let batch = owner / tile.kv_heads;
    let kv_head = owner % tile.kv_heads;
    for s in 0..tile.s {
        let row = (batch * tile.s + s) * tile.kv_heads + kv_head;
        let from = sums + s * shape.outer.padded;
        write_row::<N>(dk, dv, workspace, from, row, 1usize, shape);
    }
}

/// The sums of all heads, each of which is a sum over parts in their order.
#[cube]
pub(crate) fn add_parts<N: Size>(
    dk: &mut [f32],
    dv: &mut [f32],
    workspace: &[f32],
    #[comptime] shape: GradShape,
) {
    let tile = comptime!(shape.tile);
    let base = CUBE_DIM as usize * comptime!(shape.unit());
    let rows = comptime!(tile.batch * tile.s * tile.kv_heads);
    let end = share(rows, UNIT_POS as usize + 1);
    for row in share(rows, UNIT_POS as usize)..end {
        let owner = row / comptime!(tile.s * tile.kv_heads) * tile.kv_heads + row % tile.kv_heads;
        let s = row / tile.kv_heads % tile.s;
        let item = owner * comptime!(shape.parts * 2 * shape.sum());
        let from = base + item + s * shape.outer.padded;
        write_row::<N>(dk, dv, workspace, from, row, shape.parts, shape);
    }
}

#[cube]
fn write_row<N: Size>(
    dk: &mut [f32],
    dv: &mut [f32],
    workspace: &[f32],
    from: usize,
    row: usize,
    #[comptime] parts: usize,
    #[comptime] shape: GradShape,
) {
    let head = comptime!(shape.tile.head);
    let sum = comptime!(shape.sum());
    let lanes = N::value();
    let last = comptime!(head - lanes);
    for i in 0..comptime!(head.div_ceil(lanes)) {
        // The last vector begins early rather than reach past the head.
        let d = min(i * lanes, last);
        let mut key = load::<f32, N>(workspace, from + d);
        let mut value = load::<f32, N>(workspace, from + sum + d);
        #[unroll]
        for part in 1..parts {
            let at = from + part * comptime!(2 * sum) + d;
            key += load::<f32, N>(workspace, at);
            value += load::<f32, N>(workspace, at + sum);
        }
        store_as::<N>(dk, row * head + d, key, shape.tile.elem);
        store_as::<N>(dv, row * head + d, value, shape.tile.elem);
    }
}
