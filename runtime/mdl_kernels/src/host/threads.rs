//! The threads that run kernels, one for each unit of a launch.
//!
//! Launches run one after the other in the order they were sent: a unit starts when all units of
//! the launches before it have ended. Each thread takes its units in order too, so nothing waits
//! for what is behind it in a queue.

use super::code::Function;
use cubecl::cpu::compute::affinity::{CoreId, get_active_cores, set_for_current};
use cubecl_llvm::cpu::synchronization::SYNC_CUBE_STATE_LEN;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a thread without work looks for some before it sleeps: waking costs a launch more than
/// a small kernel does.
const AWAKE: Duration = Duration::from_micros(200);
/// Then the core goes to whoever else is waiting for it.
const SPINS: u32 = 1_000;
/// Kernels keep what they have on the stack.
const STACK_BYTES: usize = 64 << 20;

/// What all units of a launch share.
pub(super) struct Launch {
    pub function: Function,
    pub cubes: [u32; 3],
    pub buffers: Vec<*mut c_void>,
    pub metadata: Vec<u64>,
    pub barrier: [AtomicU32; SYNC_CUBE_STATE_LEN],
    /// None where nobody asks for it.
    pub span: Option<Arc<Span>>,
    /// Keeps the memory of the buffers where it is.
    pub _kept: Vec<Box<dyn Send>>,
}

// SAFETY: the buffers are kept, kernels order their own accesses to them, and nothing else is
// written but the barrier, which is atomic. `_kept` is dropped, once, and not used.
unsafe impl Send for Launch {}
// SAFETY: as above.
unsafe impl Sync for Launch {}

/// When the first unit of some launches began and the last one ended.
#[derive(Default)]
pub(super) struct Span(Mutex<Option<(Instant, Instant)>>);

impl Span {
    fn add(&self, start: Instant, end: Instant) {
        let mut span = self.0.lock().expect("invariant: nobody panics while holding it");
        let (first, last) = span.unwrap_or((start, end));
        *span = Some((first.min(start), last.max(end)));
    }

    pub(super) fn get(&self) -> Option<(Instant, Instant)> {
        *self.0.lock().expect("invariant: nobody panics while holding it")
    }
}

/// A kernel that does nothing.
#[rustfmt::skip]
extern "C" fn nothing(
    _: *mut *mut c_void, _: u32, _: u32, _: u32, _: u32, _: u32, _: u32, _: *mut u32, _: *mut u64,
) {}

/// What a thread finds in its queue.
enum Work {
    Unit(Unit),
    /// Somebody sleeps until everything before this has ended.
    Tell(#[expect(dead_code, reason = "dropping it tells")] Sender<()>),
}

struct Unit {
    launch: Arc<Launch>,
    place: [u32; 3],
    /// How many units have to have ended before.
    after: u64,
}

impl Unit {
    fn run(self) {
        let Launch { function, cubes, buffers, metadata, barrier, span, .. } = &*self.launch;
        let [x, y, z] = self.place;
        let (buffers, metadata) = (buffers.as_ptr().cast_mut(), metadata.as_ptr().cast_mut());
        let barrier = barrier[0].as_ptr();
        let start = span.as_ref().map(|_| Instant::now());
        function(buffers, cubes[0], cubes[1], cubes[2], x, y, z, barrier, metadata);
        if let (Some(span), Some(start)) = (span, start) {
            span.add(start, Instant::now());
        }
    }
}

/// Units that have ended, on cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
struct Ended(AtomicU64);

impl Ended {
    fn wait(&self, count: u64) {
        let mut spins = 0;
        while self.0.load(Ordering::Acquire) < count {
            spins += 1;
            match spins < SPINS {
                true => std::hint::spin_loop(),
                false => std::thread::yield_now(),
            }
        }
    }
}

pub(super) struct Threads {
    cores: Vec<CoreId>,
    queues: Vec<Sender<Work>>,
    sent: u64,
    ended: Arc<Ended>,
}

impl Threads {
    pub(super) fn new() -> Threads {
        let cores = get_active_cores().collect();
        Threads { cores, queues: Vec::new(), sent: 0, ended: Arc::default() }
    }

    /// One more of the threads that a launch needs. Where that is one for each core it keeps to its
    /// own; fewer go where the system puts them, since other programs have cores too.
    fn start(&mut self, threads: usize) {
        let core = self.cores[self.queues.len() % self.cores.len()];
        let own = (threads >= self.cores.len()).then_some(core);
        let ((queue, work), ended) = (channel(), self.ended.clone());
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            if let Some(core) = own {
                set_for_current(core);
            }
            run_all(&work, &ended);
        });
        thread.expect("invariant: the system has a thread for each unit");
        self.queues.push(queue);
    }

    /// Queues a launch of so many units along each axis. Units that wait for each other need a
    /// thread each; others take turns on as many as there are cores.
    pub(super) fn send(&mut self, launch: Launch, units: [u32; 3], barrier: bool) {
        let count = units.iter().product::<u32>() as usize;
        let threads = if barrier { count } else { count.min(self.cores.len()) };
        while self.queues.len() < threads {
            self.start(threads);
        }
        let (launch, after) = (Arc::new(launch), self.sent);
        for i in 0..count as u32 {
            let place = [i % units[0], i / units[0] % units[1], i / units[0] / units[1]];
            let unit = Unit { launch: launch.clone(), place, after };
            let queue = &self.queues[i as usize % threads];
            queue.send(Work::Unit(unit)).expect("invariant: threads end with the process");
        }
        self.sent += count as u64;
    }

    /// Has every thread look for work, as it does between the launches of a step.
    pub(super) fn wake(&mut self) {
        let launch = Launch {
            function: nothing,
            cubes: [1; 3],
            buffers: Vec::new(),
            metadata: Vec::new(),
            barrier: Default::default(),
            span: None,
            _kept: Vec::new(),
        };
        self.send(launch, [self.queues.len() as u32, 1, 1], true);
    }

    /// Waits for everything that was sent, asleep: whoever waits has no core of its own, and would
    /// take one from the units.
    pub(super) fn wait(&self) {
        if self.ended.0.load(Ordering::Acquire) == self.sent {
            return;
        }
        let (tell, told) = channel();
        for queue in &self.queues {
            let work = Work::Tell(tell.clone());
            queue.send(work).expect("invariant: threads end with the process");
        }
        drop(tell);
        while told.recv().is_ok() {}
    }
}

fn run_all(queue: &Receiver<Work>, ended: &Ended) {
    while let Some(work) = next(queue) {
        match work {
            Work::Unit(unit) => {
                ended.wait(unit.after);
                unit.run();
                ended.0.fetch_add(1, Ordering::Release);
            }
            // Dropping it tells as much.
            Work::Tell(_) => {}
        }
    }
}

fn next(queue: &Receiver<Work>) -> Option<Work> {
    let start = Instant::now();
    while start.elapsed() < AWAKE {
        match queue.try_recv() {
            Ok(work) => return Some(work),
            Err(_) => std::thread::yield_now(),
        }
    }
    queue.recv().ok()
}
