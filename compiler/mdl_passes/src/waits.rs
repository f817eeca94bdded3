//! Which launches of a loop wait for which: what the two queues of an executable must know of each
//! other, read off the memory that launches touch.
//!
//! Two launches meet where they touch the same bytes. Reading is not told from writing: a launch
//! that only reads beside a transfer has, in every loop there is, to wait for it a moment later.
//! Because a queue keeps its order, it is enough to wait for the last of all that a launch meets;
//! the first iterations, in which that is not there yet, may have to wait for another one.

use crate::executable::{Arg, Launch, Wait};
use crate::lower_transfer::SLOTS;

/// Iterations around one in which it meets others. Slots are taken in turn, and slices of stacked
/// values one by one, so the distance at which two launches meet is the same everywhere and at most
/// the number of slots.
const WINDOW: i64 = 2 * SLOTS as i64;

/// Writes into each launch of a loop what it waits for in the other queue.
pub(crate) fn say_waits(count: u64, body: &mut [Launch], transfer: impl Fn(&Launch) -> bool) {
    let transfers: Vec<bool> = body.iter().map(transfer).collect();
    let waits: Vec<Vec<Wait>> = (0..body.len())
        .map(|p| {
            let others = (0..body.len()).filter(|q| transfers[p] != transfers[*q]);
            let met = others.filter_map(|q| {
                let lag = nearest(count, body, p, q)?;
                Some(Wait { launch: q, lag })
            });
            latest(body, met.collect())
        })
        .collect();
    for (launch, wait) in body.iter_mut().zip(waits) {
        launch.wait = wait;
    }
}

/// Those that are issued last: each one has a smaller lag than those that are issued after it.
fn latest(body: &[Launch], mut met: Vec<Wait>) -> Vec<Wait> {
    met.sort_by_key(|w| (-w.lag - body[w.launch].ahead as i64, w.launch));
    let mut kept: Vec<Wait> = Vec::new();
    for wait in met.into_iter().rev() {
        if kept.last().is_none_or(|after| wait.lag.max(0) < after.lag.max(0)) {
            kept.push(wait);
        }
    }
    kept
}

/// How many iterations before its own launch `p` last meets `q`, of those in which `q` is issued
/// first; the least such distance of all iterations.
fn nearest(count: u64, body: &[Launch], p: usize, q: usize) -> Option<i64> {
    let near = |a: &Arg, b: &Arg| {
        let ((from, to), (start, end)) = (whole(a, count), whole(b, count));
        a.space == b.space && from < end && start < to
    };
    let pairs = body[p].args.iter().flat_map(|a| body[q].args.iter().map(move |b| (a, b)));
    let pairs: Vec<(&Arg, &Arg)> = pairs.filter(|(a, b)| near(a, b)).collect();
    if pairs.is_empty() {
        return None;
    }
    let issued = |launch: usize, i: i64| (i - body[launch].ahead as i64, launch);
    let meet = |i: i64, j: i64| {
        pairs.iter().any(|(a, b)| {
            let ((from, to), (start, end)) = (range(a, i as u64), range(b, j as u64));
            from < end && start < to
        })
    };
    let last = count as i64 - 1;
    let lag = |i: i64| {
        let before = (i - WINDOW).max(0)..=(i + WINDOW).min(last);
        let first = before.rev().find(|j| issued(q, *j) < issued(p, i) && meet(i, *j));
        first.map(|j| i - j)
    };
    ((last - WINDOW).max(0)..=last).filter_map(lag).min()
}

/// Bytes of an argument in iteration `i`.
fn range(arg: &Arg, i: u64) -> (u64, u64) {
    let from = arg.offset + arg.index.map_or(0, |index| index.at(i));
    (from, from + arg.bytes)
}

/// The bytes that an argument takes in all iterations, and what lies between.
fn whole(arg: &Arg, count: u64) -> (u64, u64) {
    let ranges = || (0..count).map(|i| range(arg, i));
    let from = ranges().map(|(from, _)| from).min().unwrap_or(0);
    (from, ranges().map(|(_, to)| to).max().unwrap_or(0))
}
