//! Offsets of buffers in one arena, so that those in use at one time never overlap and the arena is
//! as small as can be found.
//!
//! No arena is smaller than the most bytes that are in use at one launch (`bound`), and most reach
//! that bound. To find the smallest one is as hard as packing boxes, so each attempt is bounded,
//! and the next one is made only where those before left room: buffers one after the other in a few
//! orders, each at the lowest free place; a search that goes back (`arena_tree`); moves of single
//! buffers from a fixed seed. Nothing depends on a clock, so the same buffers have the same offsets
//! on every machine.

use crate::arena_tree::Tree;
use std::cmp::Reverse;

/// A buffer as the arena sees it: its size and the launches between which it is in use, both of
/// them included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Bytes with their padding, more than 0; offsets are sums of such sizes.
    pub bytes: u64,
    pub first: usize,
    pub last: usize,
}

impl Lifetime {
    /// Are both in use at some launch?
    fn meets(&self, other: &Lifetime) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    fn launches(&self) -> u64 {
        (self.last - self.first) as u64 + 1
    }
}

/// Where buffers lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arena {
    /// In bytes, one for each lifetime.
    pub offsets: Vec<u64>,
    pub bytes: u64,
}

/// Which of several buffers comes first: the one with the largest key.
pub(crate) type Preference = fn(&Lifetime) -> (u64, u64);

/// The large ones, those that are in use for long, the product of both, and those that begin first.
const PREFERENCES: [Preference; 4] = [
    |l| (l.bytes, l.launches()),
    |l| (l.launches(), l.bytes),
    |l| (l.bytes.saturating_mul(l.launches()), 0),
    |l| (u64::MAX - l.first as u64, l.launches()),
];

/// What the search is asked for, one after the other: buffers of at most this many thousandths of
/// the bound are left out and put into gaps later, and the arena may be this many thousandths
/// larger than the bound. Small buffers are many, and almost any place does for them.
const RELAXED: [(u64, u64); 4] = [(0, 0), (1, 5), (5, 5), (20, 5)];

/// Choices that one search may make: about ten for each buffer of a training step.
const CHOICES: usize = 1500;

/// Moves that are tried where all else leaves more than a hundredth.
const MOVES: usize = 2000;

/// Within a hundredth of the bound.
fn near(bytes: u64, bound: u64) -> bool {
    u128::from(bytes) * 100 <= u128::from(bound) * 101
}

/// The most bytes that are in use at one launch: no arena is smaller.
pub fn bound(lifetimes: &[Lifetime]) -> u64 {
    // The sum grows only where a buffer begins.
    let live = |at: usize| {
        let here = lifetimes.iter().filter(move |l| l.first <= at && at <= l.last);
        here.map(|l| l.bytes).sum()
    };
    lifetimes.iter().map(|l| live(l.first)).max().unwrap_or(0)
}

/// Offsets for these buffers.
pub fn arrange(lifetimes: &[Lifetime]) -> Arena {
    let mut search = Search::new(lifetimes);
    let (mut order, mut best) = search.in_fixed_orders();
    for (small, slack) in RELAXED {
        let enough = if small == 0 { best.bytes == search.bound } else { search.near(&best) };
        if enough {
            return best;
        }
        for preference in PREFERENCES {
            let Some(found) = search.below(preference, small, slack) else { continue };
            let arena = search.place(&found);
            if arena.bytes < best.bytes {
                (order, best) = (found, arena);
            }
            if search.near(&best) {
                break;
            }
        }
    }
    if search.near(&best) { best } else { search.moved(order, best) }
}

struct Search<'a> {
    lifetimes: &'a [Lifetime],
    /// For each buffer, those that are in use at one time with it.
    meeting: Vec<Vec<usize>>,
    bound: u64,
    /// State of a xorshift generator.
    random: u64,
}

impl<'a> Search<'a> {
    fn new(lifetimes: &'a [Lifetime]) -> Search<'a> {
        let all = || 0..lifetimes.len();
        let met =
            |a: usize| all().filter(|b| *b != a && lifetimes[a].meets(&lifetimes[*b])).collect();
        let meeting = all().map(met).collect();
        Search { lifetimes, meeting, bound: bound(lifetimes), random: 0x9e37_79b9_7f4a_7c15 }
    }

    fn near(&self, arena: &Arena) -> bool {
        near(arena.bytes, self.bound)
    }

    fn sorted(&self, mut buffers: Vec<usize>, preference: Preference) -> Vec<usize> {
        buffers.sort_by_key(|b| (Reverse(preference(&self.lifetimes[*b])), *b));
        buffers
    }

    /// The best of the orders of the preferences, with its arena.
    fn in_fixed_orders(&self) -> (Vec<usize>, Arena) {
        let mut best = (Vec::new(), Arena { offsets: Vec::new(), bytes: u64::MAX });
        for preference in PREFERENCES {
            let order = self.sorted((0..self.lifetimes.len()).collect(), preference);
            let arena = self.place(&order);
            if arena.bytes < best.1.bytes {
                best = (order, arena);
            }
            if best.1.bytes == self.bound {
                break;
            }
        }
        best
    }

    /// An order in which the lowest free places keep to the bound and `slack` thousandths, as far
    /// as the search without the `small` buffers can tell. They come last.
    fn below(&self, preference: Preference, small: u64, slack: u64) -> Option<Vec<usize>> {
        let least = self.bound / 1000 * small;
        let all = 0..self.lifetimes.len();
        let (large, rest): (Vec<_>, Vec<_>) = all.partition(|b| self.lifetimes[*b].bytes > least);
        let lifetimes: Vec<Lifetime> = large.iter().map(|b| self.lifetimes[*b]).collect();
        let cap = self.bound + self.bound / 1000 * slack;
        let offsets = Tree::new(&lifetimes, preference).below(cap, CHOICES)?;
        let mut order: Vec<(u64, usize)> = offsets.into_iter().zip(large).collect();
        order.sort_unstable();
        let mut order: Vec<usize> = order.into_iter().map(|(_, b)| b).collect();
        order.extend(self.sorted(rest, PREFERENCES[2]));
        Some(order)
    }

    /// Each buffer in turn at the lowest place that is free while it is in use.
    fn place(&self, order: &[usize]) -> Arena {
        let mut places: Vec<Option<(u64, u64)>> = vec![None; self.lifetimes.len()];
        let mut taken: Vec<(u64, u64)> = Vec::new();
        let mut height = 0;
        for b in order {
            let bytes = self.lifetimes[*b].bytes;
            taken.clear();
            taken.extend(self.meeting[*b].iter().filter_map(|o| places[*o]));
            taken.sort_unstable();
            let mut at = 0;
            for (from, to) in &taken {
                if at + bytes <= *from {
                    break;
                }
                at = at.max(*to);
            }
            places[*b] = Some((at, at + bytes));
            height = height.max(at + bytes);
        }
        Arena { offsets: places.into_iter().flatten().map(|(at, _)| at).collect(), bytes: height }
    }

    /// A buffer that ends at the top is placed earlier, again and again; an arena that is not
    /// larger than the one before is gone on with.
    fn moved(&mut self, mut order: Vec<usize>, mut arena: Arena) -> Arena {
        for _ in 0..MOVES {
            let ends = |b: &usize| arena.offsets[*b] + self.lifetimes[*b].bytes == arena.bytes;
            let Some(top) = order.iter().position(ends).filter(|top| *top > 0) else { break };
            let mut changed = order.clone();
            changed[self.drawn(top)..=top].rotate_right(1);
            let next = self.place(&changed);
            if next.bytes <= arena.bytes {
                (order, arena) = (changed, next);
            }
            if self.near(&arena) {
                break;
            }
        }
        arena
    }

    /// A number below `n`, which is not 0.
    fn drawn(&mut self, n: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % n as u64) as usize
    }
}
