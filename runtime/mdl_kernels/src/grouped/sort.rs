//! The numbers of rows sorted by group: a stable counting sort.
//!
//! `sorted` holds the order of the rows, where each group starts in it (after the last group the
//! strays, then the end), and while sorting where the next row of each group goes.

use cubecl::prelude::*;

/// Sorts; for one unit. It walks the ids twice, a few operations each.
#[cube]
pub(crate) fn sort_rows(
    ids: &[i32],
    sorted: &mut [u32],
    #[comptime] rows: usize,
    #[comptime] groups: usize,
) {
    let starts = comptime!(rows);
    let next = comptime!(rows + groups + 2);
    for e in 0..comptime!(groups + 2) {
        sorted[starts + e] = 0u32;
    }
    for r in 0..rows {
        sorted[starts + 1 + group_of(ids[r], groups)] += 1u32;
    }
    for e in 0..comptime!(groups + 1) {
        let start = sorted[starts + e];
        sorted[next + e] = start;
        sorted[starts + e + 1] += start;
    }
    for r in 0..rows {
        let e = group_of(ids[r], groups);
        let at = sorted[next + e];
        sorted[usize::cast_from(at)] = u32::cast_from(r);
        sorted[next + e] = at + 1u32;
    }
}

/// The group of an id; `groups` for an id that names none.
#[cube]
fn group_of(id: i32, #[comptime] groups: usize) -> usize {
    let mut group = comptime!(groups).runtime();
    if id >= 0 {
        group = min(usize::cast_from(id), comptime!(groups));
    }
    group
}

/// Where a group starts in the order.
#[cube]
pub(crate) fn start_of(sorted: &[u32], group: usize, #[comptime] rows: usize) -> usize {
    usize::cast_from(sorted[comptime!(rows) + group])
}
