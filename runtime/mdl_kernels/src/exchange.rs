//! Where ranks inside one process meet: collectives as copies and sums between their memories.
//!
//! Each rank comes with a thread of its own, on which its collectives run in the order in which the
//! executable has them. All ranks have the same order, so a rank's place in it says which
//! collective it is at. Sums are those of a binary tree over the ranks, so that a tree over
//! micro-batches goes on in it.

use mdl_ir::kernel::collective::CollectiveSpec;
use mdl_ir::op::{Collective, Group};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Elements that are added up at a time: they stay in the fastest cache.
const BLOCK: usize = 1024;

/// The meeting place of all ranks of a mesh.
#[derive(Debug)]
pub struct Exchange {
    meeting: Mutex<Meeting>,
    changed: Condvar,
}

#[derive(Debug)]
struct Meeting {
    /// How often each rank has come here: twice for each collective.
    visits: Vec<u64>,
    /// The address that a rank has brought.
    brought: Vec<usize>,
    aborted: bool,
}

/// A rank with its place at the exchange.
#[derive(Clone, Debug)]
pub struct Seat {
    pub exchange: Arc<Exchange>,
    pub rank: u64,
}

impl Exchange {
    pub fn new(ranks: u64) -> Exchange {
        let (visits, brought) = (vec![0; ranks as usize], vec![0; ranks as usize]);
        let meeting = Mutex::new(Meeting { visits, brought, aborted: false });
        Exchange { meeting, changed: Condvar::new() }
    }

    /// Lets every rank go on without what it waits for: one of them will not come any more.
    pub fn abort(&self) {
        self.locked().aborted = true;
        self.changed.notify_all();
    }

    fn locked(&self) -> MutexGuard<'_, Meeting> {
        self.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all members are as far as this rank; then gives what they have brought, which
    /// lies there until it brings something else. None where a rank will not come.
    fn meet(&self, rank: usize, members: &[usize], brings: Option<usize>) -> Option<Vec<usize>> {
        let mut meeting = self.locked();
        meeting.visits[rank] += 1;
        meeting.brought[rank] = brings.unwrap_or(meeting.brought[rank]);
        let visit = meeting.visits[rank];
        self.changed.notify_all();
        let early = |m: &mut Meeting| !m.aborted && members.iter().any(|r| m.visits[*r] < visit);
        let meeting = self.changed.wait_while(meeting, early);
        let meeting = meeting.unwrap_or_else(PoisonError::into_inner);
        let brought = members.iter().map(|r| meeting.brought[*r]).collect();
        (!meeting.aborted).then_some(brought)
    }
}

/// The ranks of the group that a rank is in.
fn members(group: Group, rank: u64) -> Vec<usize> {
    let Group { ranks, stride } = group;
    let first = rank / (ranks * stride) * (ranks * stride) + rank % stride;
    (0..ranks).map(|i| (first + i * stride) as usize).collect()
}

impl Seat {
    /// One collective. Both addresses are those of this rank's memory, as the spec has them.
    // SAFETY: for the caller: what the spec says lies there, and nobody else writes to it or, where
    // this writes, reads it before the call is over.
    pub(crate) unsafe fn together(&self, spec: &CollectiveSpec, from: *mut u8, to: *mut u8) {
        let members = members(spec.group, self.rank);
        let rank = self.rank as usize;
        let own = members.iter().position(|m| *m == rank).expect("a rank is in its group");
        let Some(brought) = self.exchange.meet(rank, &members, Some(from as usize)) else { return };
        let parts: Vec<*mut f32> = brought.into_iter().map(|at| at as *mut f32).collect();
        let (len, piece) = (spec.len as usize, spec.piece as usize);
        match spec.kind {
            Collective::AllGather => {
                // SAFETY: the whole has room for the pieces of all members, each where it lies.
                let pieces = parts.iter().map(|p| unsafe { elements(*p, 0, piece) });
                // SAFETY: as above.
                let whole = unsafe { elements_mut(to.cast(), 0, piece * parts.len()) };
                whole.chunks_mut(piece).zip(pieces).for_each(|(w, p)| w.copy_from_slice(p));
            }
            Collective::ReduceScatter => {
                let (start, end) = ((own * piece).min(len), ((own + 1) * piece).min(len));
                // SAFETY: a piece has this many elements.
                let to = unsafe { elements_mut(to.cast(), 0, piece) };
                let (sums, rest) = to.split_at_mut(end - start);
                // SAFETY: every member has `len` elements, which stay until all are done.
                unsafe { sum(&parts, start, sums) };
                rest.fill(0.0);
            }
            Collective::AllReduce => {
                let share = len.div_ceil(parts.len());
                let (start, end) = ((own * share).min(len), ((own + 1) * share).min(len));
                let mut sums = [0.0; BLOCK];
                for at in (start..end).step_by(BLOCK) {
                    let sums = &mut sums[..BLOCK.min(end - at)];
                    // SAFETY: this share is read and written by this rank alone.
                    unsafe { sum(&parts, at, sums) };
                    for part in &parts {
                        // SAFETY: as above.
                        unsafe { elements_mut(*part, at, sums.len()) }.copy_from_slice(sums);
                    }
                }
            }
        }
        // Nobody's memory is used any more once all are here.
        let _ = self.exchange.meet(rank, &members, None);
    }
}

/// Elements of a rank's memory.
// SAFETY: for the caller: there are so many behind the address, and nobody writes to them.
unsafe fn elements<'a>(address: *mut f32, at: usize, len: usize) -> &'a [f32] {
    // SAFETY: the caller's.
    unsafe { std::slice::from_raw_parts(address.add(at), len) }
}

/// Elements of a rank's memory that this rank writes.
// SAFETY: for the caller: there are so many, and nobody else reads or writes them.
unsafe fn elements_mut<'a>(address: *mut f32, at: usize, len: usize) -> &'a mut [f32] {
    // SAFETY: the caller's.
    unsafe { std::slice::from_raw_parts_mut(address.add(at), len) }
}

/// The sum of all parts from an element on.
// SAFETY: for the caller: every part has these elements, and nobody writes to them.
unsafe fn sum(parts: &[*mut f32], at: usize, to: &mut [f32]) {
    for (i, block) in to.chunks_mut(BLOCK).enumerate() {
        let start = at + i * BLOCK;
        // SAFETY: the caller's.
        let terms = parts.iter().map(|p| unsafe { elements(*p, start, block.len()) });
        tree(&terms.collect::<Vec<_>>(), block);
    }
}

/// ((0 + 1) + (2 + 3)) + …
fn tree(terms: &[&[f32]], to: &mut [f32]) {
    if let [only] = terms {
        to.copy_from_slice(only);
        return;
    }
    let (left, right) = terms.split_at(terms.len().next_power_of_two() / 2);
    tree(left, to);
    let mut other = [0.0; BLOCK];
    let other = &mut other[..to.len()];
    tree(right, other);
    to.iter_mut().zip(other).for_each(|(x, y)| *x += *y);
}

#[cfg(test)]
mod tests {
    use super::*;
    use mdl_ir::kernel::Elem;

    /// Every rank's memory after a collective: its own values, then what it got.
    fn run(kind: Collective, group: Group, ranks: u64, len: u64, piece: u64) -> Vec<Vec<f32>> {
        let exchange = Arc::new(Exchange::new(ranks));
        let spec = CollectiveSpec { kind, group, elem: Elem::F32, len, piece };
        let rank = |rank: u64| {
            let (exchange, spec) = (exchange.clone(), spec.clone());
            move || {
                let seat = Seat { exchange, rank };
                let mut from: Vec<f32> = (0..len).map(|i| (rank * 100 + i) as f32).collect();
                let mut to = vec![-1.0f32; (group.ranks * piece) as usize];
                // SAFETY: both are this thread's own, and as long as the spec says.
                unsafe {
                    seat.together(&spec, from.as_mut_ptr().cast(), to.as_mut_ptr().cast());
                }
                if kind == Collective::AllReduce { from } else { to }
            }
        };
        let threads: Vec<_> = (0..ranks).map(|r| std::thread::spawn(rank(r))).collect();
        threads.into_iter().map(|t| t.join().expect("a rank")).collect()
    }

    #[test]
    fn pieces_are_gathered_in_the_order_of_the_ranks() {
        let group = Group { ranks: 2, stride: 1 };
        let got = run(Collective::AllGather, group, 4, 3, 3);
        assert_eq!(got[1], [0.0, 1.0, 2.0, 100.0, 101.0, 102.0]);
        assert_eq!(got[2], [200.0, 201.0, 202.0, 300.0, 301.0, 302.0]);
    }

    #[test]
    fn a_piece_of_a_sum_is_zero_behind_the_end() {
        let group = Group { ranks: 2, stride: 1 };
        let got = run(Collective::ReduceScatter, group, 2, 5, 4);
        assert_eq!(got[0][..4], [100.0, 102.0, 104.0, 106.0]);
        assert_eq!(got[1][..4], [108.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_sum_across_machines_is_the_same_on_each() {
        let group = Group { ranks: 2, stride: 2 };
        let got = run(Collective::AllReduce, group, 4, 3, 3);
        assert_eq!((&got[0], &got[0]), (&vec![200.0, 202.0, 204.0], &got[2]));
        assert_eq!((&got[1], &got[1]), (&vec![400.0, 402.0, 404.0], &got[3]));
    }

    #[test]
    fn sums_are_those_of_a_tree() {
        let [a, b, c, d] = [1e8f32, 1.0, -1e8, 1.0];
        let mut sum = [0.0];
        tree(&[&[a], &[b], &[c], &[d]], &mut sum);
        assert_eq!(sum, [(a + b) + (c + d)]);
    }

    #[test]
    fn nobody_waits_for_a_rank_that_will_not_come() {
        let exchange = Exchange::new(2);
        exchange.abort();
        assert_eq!(exchange.meet(0, &[0, 1], None), None);
    }
}
