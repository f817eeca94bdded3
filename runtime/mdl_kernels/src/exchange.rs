//! Where ranks inside one process meet: collectives as copies and sums between their memories.
//!
//! Each rank comes with a thread of its own, on which its collectives run in the order in which the
//! executable has them. All ranks have the same order, so a rank's place in it says which
//! collective it is at. Sums are those of a binary tree over the ranks, so that a tree over
//! micro-batches goes on in it; where numbers are bf16, each sum of two is rounded, as one that is
//! stored on the way is.

use mdl_ir::kernel::Elem;
use mdl_ir::kernel::collective::CollectiveSpec;
use mdl_ir::op::{Collective, Group};
use mdl_ir::rounding::{bf16_nearest, bf16_to_f32};
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
        let parts: Vec<Numbers> =
            brought.into_iter().map(|at| Numbers::of(at, spec.elem)).collect();
        let (len, piece) = (spec.len as usize, spec.piece as usize);
        let to = Numbers::of(to as usize, spec.elem);
        match spec.kind {
            Collective::AllGather => {
                for (i, part) in parts.iter().enumerate() {
                    // SAFETY: the whole has room for the pieces of all members, each where it lies.
                    unsafe { to.copy(i * piece, part, piece) };
                }
            }
            Collective::ReduceScatter => {
                let (start, end) = ((own * piece).min(len), ((own + 1) * piece).min(len));
                let mut sums = [0.0; BLOCK];
                for at in (0..piece).step_by(BLOCK) {
                    let sums = &mut sums[..BLOCK.min(piece - at)];
                    let there = (end - start).saturating_sub(at).min(sums.len());
                    sums[there..].fill(0.0);
                    // SAFETY: every member has `len` elements, which stay until all are done, and a
                    // piece has as many as are written.
                    unsafe {
                        tree(&parts, start + at, &mut sums[..there], spec.elem);
                        to.write(at, sums);
                    }
                }
            }
            Collective::AllReduce => {
                let share = len.div_ceil(parts.len());
                let (start, end) = ((own * share).min(len), ((own + 1) * share).min(len));
                let mut sums = [0.0; BLOCK];
                for at in (start..end).step_by(BLOCK) {
                    let sums = &mut sums[..BLOCK.min(end - at)];
                    // SAFETY: this share is read and written by this rank alone.
                    unsafe { tree(&parts, at, sums, spec.elem) };
                    for part in &parts {
                        // SAFETY: as above.
                        unsafe { part.write(at, sums) };
                    }
                }
            }
        }
        // Nobody's memory is used any more once all are here.
        let _ = self.exchange.meet(rank, &members, None);
    }
}

/// Numbers in a rank's memory.
#[derive(Clone, Copy)]
struct Numbers {
    address: usize,
    elem: Elem,
}

impl Numbers {
    fn of(address: usize, elem: Elem) -> Numbers {
        Numbers { address, elem }
    }

    fn at(&self, at: usize) -> usize {
        self.address + at * self.elem.bytes() as usize
    }

    /// Takes the first `len` of others.
    // SAFETY: for the caller: both have so many, and nobody else reads or writes those of this.
    unsafe fn copy(&self, at: usize, from: &Numbers, len: usize) {
        let bytes = len * self.elem.bytes() as usize;
        // SAFETY: the caller's.
        let from = unsafe { std::slice::from_raw_parts(from.address as *const u8, bytes) };
        // SAFETY: the caller's.
        let to = unsafe { std::slice::from_raw_parts_mut(self.at(at) as *mut u8, bytes) };
        to.copy_from_slice(from);
    }

    // SAFETY: for the caller: there are so many, and nobody writes to them.
    unsafe fn read(&self, at: usize, to: &mut [f32]) {
        if self.elem == Elem::Bf16 {
            // SAFETY: the caller's.
            let from = unsafe { std::slice::from_raw_parts(self.at(at) as *const u16, to.len()) };
            to.iter_mut().zip(from).for_each(|(x, b)| *x = bf16_to_f32(*b));
        } else {
            // SAFETY: the caller's.
            let from = unsafe { std::slice::from_raw_parts(self.at(at) as *const f32, to.len()) };
            to.copy_from_slice(from);
        }
    }

    // SAFETY: for the caller: there are so many, and nobody else reads or writes them.
    unsafe fn write(&self, at: usize, from: &[f32]) {
        if self.elem == Elem::Bf16 {
            // SAFETY: the caller's.
            let to = unsafe { std::slice::from_raw_parts_mut(self.at(at) as *mut u16, from.len()) };
            to.iter_mut().zip(from).for_each(|(b, x)| *b = bf16_nearest(*x));
        } else {
            // SAFETY: the caller's.
            let to = unsafe { std::slice::from_raw_parts_mut(self.at(at) as *mut f32, from.len()) };
            to.copy_from_slice(from);
        }
    }
}

/// ((0 + 1) + (2 + 3)) + … of at most `BLOCK` elements from one on.
// SAFETY: for the caller: every part has these elements, and nobody writes to them.
unsafe fn tree(parts: &[Numbers], at: usize, to: &mut [f32], elem: Elem) {
    if let [only] = parts {
        // SAFETY: the caller's.
        unsafe { only.read(at, to) };
        return;
    }
    let (left, right) = parts.split_at(parts.len().next_power_of_two() / 2);
    let mut other = [0.0; BLOCK];
    let other = &mut other[..to.len()];
    // SAFETY: the caller's.
    unsafe {
        tree(left, at, to, elem);
        tree(right, at, other, elem);
    }
    to.iter_mut().zip(other).for_each(|(x, y)| *x += *y);
    if elem == Elem::Bf16 {
        to.iter_mut().for_each(|x| *x = bf16_to_f32(bf16_nearest(*x)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let terms = [1e8f32, 1.0, -1e8, 1.0];
        let [a, b, c, d] = terms;
        let parts: Vec<Numbers> =
            terms.iter().map(|x| Numbers::of(x as *const f32 as usize, Elem::F32)).collect();
        let mut sum = [0.0];
        // SAFETY: each part is one number that stays where it is.
        unsafe { tree(&parts, 0, &mut sum, Elem::F32) };
        assert_eq!(sum, [(a + b) + (c + d)]);
    }

    #[test]
    fn sums_of_bf16_are_rounded_at_every_node() {
        let terms = [1.0f32, 1.0 / 256.0, 1.0, 1.0 / 256.0].map(bf16_nearest);
        let parts: Vec<Numbers> =
            terms.iter().map(|x| Numbers::of(x as *const u16 as usize, Elem::Bf16)).collect();
        let mut sum = [0.0];
        // SAFETY: each part is one number that stays where it is.
        unsafe { tree(&parts, 0, &mut sum, Elem::Bf16) };
        // 1 + 2^-8 lies between two numbers of bf16 and goes to the even one.
        assert_eq!(sum, [2.0]);
    }

    #[test]
    fn nobody_waits_for_a_rank_that_will_not_come() {
        let exchange = Exchange::new(2);
        exchange.abort();
        assert_eq!(exchange.meet(0, &[0, 1], None), None);
    }
}
