//! Which rows pass by a block, and which pairs of query and key are seen.

use super::shape::Shape;
use cubecl::prelude::*;

/// Rows of the other kind that pass by, `first..end`.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Passing {
    pub first: usize,
    pub end: usize,
}

/// The position of query 0.
#[cube]
pub(crate) fn start_of(start: &[i32], #[comptime] shape: Shape) -> usize {
    let mut position = 0usize.runtime();
    if comptime!(shape.start) {
        position = start[0] as usize;
    }
    position
}

/// The keys that any of the queries from `t` on, of one block, sees.
#[cube]
pub(crate) fn keys_of(position: usize, t: usize, #[comptime] shape: Shape) -> Passing {
    let first_position = position + t;
    let count = min(shape.rows().runtime(), shape.t - t);
    let mut end = shape.s.runtime();
    if comptime!(shape.causal) {
        end = min(end, first_position + count);
    }
    let mut first = 0usize.runtime();
    if comptime!(shape.window.is_some()) {
        let window = comptime!(shape.window.unwrap_or(0));
        first = max(first_position + 1, window.runtime()) - window;
    }
    Passing { first: min(first, end), end }
}

/// The queries that see any of the keys from `s` on, of one block; the first is rounded down to
/// whole tiles.
#[cube]
pub(crate) fn queries_of(position: usize, s: usize, #[comptime] shape: Shape) -> Passing {
    let count = min(shape.rows().runtime(), shape.s - s);
    let mut first = 0usize.runtime();
    if comptime!(shape.causal) {
        first = (max(s, position) - position) / shape.columns * shape.columns;
    }
    let mut end = shape.t.runtime();
    if comptime!(shape.window.is_some()) {
        let window = comptime!(shape.window.unwrap_or(0));
        // The last key is seen up to the position before `last + window`.
        end = min(end, max(s + count - 1 + window, position) - position);
    }
    Passing { first: min(first, end), end }
}

/// Whether `queries` from `t` on all see all `keys` from `s` on, and all of these exist.
#[cube]
pub(crate) fn all_seen(
    position: usize,
    t: usize,
    #[comptime] queries: usize,
    s: usize,
    #[comptime] keys: usize,
    #[comptime] shape: Shape,
) -> bool {
    let mut all = s + keys <= shape.s && t + queries <= shape.t;
    if comptime!(shape.causal) {
        all = all && s + keys <= position + t + 1;
    }
    if comptime!(shape.window.is_some()) {
        let window = comptime!(shape.window.unwrap_or(0));
        all = all && position + t + queries <= s + window;
    }
    if comptime!(shape.documents) {
        all = false;
    }
    all
}

/// Whether one query sees one key.
#[cube]
pub(crate) fn seen(
    position: usize,
    t: usize,
    s: usize,
    documents_t: &[i32],
    documents_s: &[i32],
    batch: usize,
    #[comptime] shape: Shape,
) -> bool {
    let mut one = s < shape.s && t < shape.t;
    if comptime!(shape.causal) {
        one = one && s <= position + t;
    }
    if comptime!(shape.window.is_some()) {
        let window = comptime!(shape.window.unwrap_or(0));
        one = one && position + t < s + window;
    }
    if comptime!(shape.documents) {
        let query = documents_t[batch * shape.t + min(t, comptime!(shape.t - 1).runtime())];
        let key = documents_s[batch * shape.s + min(s, comptime!(shape.s - 1).runtime())];
        one = one && query == key;
    }
    one
}
