//! Jobs on all cores, for texts of many items. What comes out is the same on any number of cores.

use std::num::NonZero;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, available_parallelism};

/// More threads than this would wait for memory and for one another.
const MOST_THREADS: usize = 8;
/// As much as the main thread has: parsing and checking recurse.
const STACK_BYTES: usize = 8 << 20;

/// The results of `count` jobs, in order. Every thread makes a state for its jobs with `start`.
pub fn map<S, T: Send>(
    count: usize,
    start: impl Fn() -> S + Sync,
    job: impl Fn(&mut S, usize) -> T + Sync,
) -> Vec<T> {
    // One job needs no other thread, and to ask for the cores takes as long as a small file.
    static CORES: OnceLock<usize> = OnceLock::new();
    let ask = || available_parallelism().map_or(1, NonZero::get);
    let cores = if count > 1 { *CORES.get_or_init(ask) } else { 1 };
    let threads = cores.min(MOST_THREADS).min(count);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut state = start();
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count {
                return done;
            }
            done.push((at, job(&mut state, at)));
        }
    };
    let mut done = std::thread::scope(|scope| {
        let spawn = |_| Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work);
        // Where the system gives no more threads, those that there are do all of it.
        let others: Vec<_> = (1..threads).filter_map(|i| spawn(i).ok()).collect();
        let mut done = work();
        for other in others {
            match other.join() {
                Ok(more) => done.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_is_done_once_and_results_are_in_order() {
        for count in [0, 1, 2, 1000] {
            let made = AtomicUsize::new(0);
            let start = || made.fetch_add(1, Ordering::Relaxed);
            let results = map(count, start, |_, at| at * at);
            assert_eq!(results, (0..count).map(|at| at * at).collect::<Vec<_>>());
            assert!(made.into_inner() <= MOST_THREADS);
        }
    }
}
