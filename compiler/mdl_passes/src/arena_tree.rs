//! Offsets below a given height, by a search that goes back where it cannot go on.
//!
//! Buffers are placed from the bottom of the arena to its top, each directly on those below it, as
//! in Moffitt's MiniMalloc (2023): whatever fits at all fits in this way. What is left for a launch
//! has to fit above the lowest place that any of its buffers can still take; where it does not, the
//! last choice was wrong.

use crate::arena::{Lifetime, Preference};

pub(crate) struct Tree<'a> {
    lifetimes: &'a [Lifetime],
    /// Rank of each buffer by preference.
    rank: Vec<usize>,
    /// For each buffer, the moments at which it is in use: a range.
    span: Vec<(usize, usize)>,
    /// For each moment, the height up to which it is full, and the bytes still to be placed.
    floor: Vec<u64>,
    rest: Vec<u64>,
    cap: u64,
    /// Choices that may still be made.
    budget: usize,
    offsets: Vec<Option<u64>>,
}

/// Launches at which a set of buffers is in use that is no part of another launch's: after a buffer
/// began, just before one ends.
fn moments(lifetimes: &[Lifetime]) -> Vec<usize> {
    let mut events: Vec<(usize, bool)> = Vec::new();
    for l in lifetimes {
        events.push((l.first, false));
        events.push((l.last, true));
    }
    events.sort_unstable();
    let ends = events.windows(2).filter(|w| !w[0].1 && w[1].1).map(|w| w[1].0);
    ends.collect()
}

impl<'a> Tree<'a> {
    pub(crate) fn new(lifetimes: &'a [Lifetime], preference: Preference) -> Tree<'a> {
        let moments = moments(lifetimes);
        let mut order: Vec<usize> = (0..lifetimes.len()).collect();
        order.sort_by_key(|b| (std::cmp::Reverse(preference(&lifetimes[*b])), *b));
        let mut rank = vec![0; order.len()];
        for (r, b) in order.into_iter().enumerate() {
            rank[b] = r;
        }
        let span = |l: &Lifetime| {
            (moments.partition_point(|m| *m < l.first), moments.partition_point(|m| *m <= l.last))
        };
        Tree {
            lifetimes,
            rank,
            span: lifetimes.iter().map(span).collect(),
            floor: vec![0; moments.len()],
            rest: vec![0; moments.len()],
            cap: 0,
            budget: 0,
            offsets: Vec::new(),
        }
    }

    /// Offsets with which no buffer ends above `cap`, if `budget` choices find them.
    pub(crate) fn below(&mut self, cap: u64, budget: usize) -> Option<Vec<u64>> {
        (self.cap, self.budget) = (cap, budget);
        self.offsets = vec![None; self.lifetimes.len()];
        self.floor.fill(0);
        self.rest.fill(0);
        for (l, (from, to)) in self.lifetimes.iter().zip(&self.span) {
            self.rest[*from..*to].iter_mut().for_each(|rest| *rest += l.bytes);
        }
        self.place(0, self.lifetimes.len())
            .then(|| self.offsets.iter().flatten().copied().collect())
    }

    /// Places the `left` buffers that have no place yet, none of them lower than `least`.
    fn place(&mut self, least: u64, left: usize) -> bool {
        if left == 0 {
            return true;
        }
        let Some(choices) = self.choices(least) else { return false };
        for (at, _, b) in choices {
            if self.budget == 0 {
                return false;
            }
            self.budget -= 1;
            let (from, to) = self.span[b];
            let before = self.floor[from..to].to_vec();
            let bytes = self.lifetimes[b].bytes;
            self.floor[from..to].fill(at + bytes);
            self.rest[from..to].iter_mut().for_each(|rest| *rest -= bytes);
            self.offsets[b] = Some(at);
            if self.place(at, left - 1) {
                return true;
            }
            self.floor[from..to].copy_from_slice(&before);
            self.rest[from..to].iter_mut().for_each(|rest| *rest += bytes);
            self.offsets[b] = None;
        }
        false
    }

    /// Buffers that can come next with their places, the lowest first. None where what is left of a
    /// launch does not fit.
    fn choices(&self, least: u64) -> Option<Vec<(u64, usize, usize)>> {
        let mut lowest = vec![u64::MAX; self.floor.len()];
        let mut choices = Vec::new();
        let mut limit = u64::MAX;
        for (b, (from, to)) in self.span.iter().enumerate() {
            if self.offsets[b].is_some() {
                continue;
            }
            let at = self.floor[*from..*to].iter().fold(least, |at, floor| at.max(*floor));
            lowest[*from..*to].iter_mut().for_each(|low| *low = at.min(*low));
            limit = limit.min(at + self.lifetimes[b].bytes);
            choices.push((at, self.rank[b], b));
        }
        let fits = |(low, rest): (&u64, &u64)| *rest == 0 || low + rest <= self.cap;
        if !lowest.iter().zip(&self.rest).all(fits) {
            return None;
        }
        // A buffer that starts above where another one would end comes after that one.
        choices.retain(|(at, _, _)| *at < limit);
        choices.sort_unstable();
        Some(choices)
    }
}
