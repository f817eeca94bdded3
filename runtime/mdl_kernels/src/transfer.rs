//! Host memory, and the queue of transfers between it and a device's arena.
//!
//! Transfers run on a thread of their own, one after the other, beside the kernels of the device's
//! stream. Who issues them says what they wait for: kernels by `Device::sync` before a transfer is
//! sent, transfers by `Copier::wait` before a kernel is launched.
//!
//! A rank of a mesh does its part of collectives on the same thread, in the same order.
//!
//! The first bytes of host memory may be files on disk. A fault of theirs is kept for whoever asks;
//! from then on nothing is moved.

use crate::device::{Arena, Device};
use crate::exchange::Seat;
use crate::state_files::{StateFileError, StateFiles};
use mdl_ir::kernel::collective::CollectiveSpec;
use mdl_ir::op::Collective;
use memmap2::MmapMut;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// A side of a transfer: a byte of the device's work space or of its state, or of the host's
/// memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Device(u64),
    State(u64),
    Host(u64),
}

/// Bytes that are copied from one place to another.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    pub from: Side,
    pub to: Side,
    pub bytes: u64,
}

/// A collective with what it takes and gives on this rank, which may be the same.
#[derive(Clone, Debug)]
pub struct Together {
    pub spec: CollectiveSpec,
    pub from: Side,
    pub to: Side,
}

/// What the thread does: a copy, or this rank's part of what all ranks do.
#[derive(Clone, Debug)]
pub enum Job {
    Transfer(Transfer),
    Together(Together),
}

/// Arenas of the device and memory of the host, with the thread that copies between them, and
/// between this rank and others.
pub struct Copier {
    queue: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    sent: AtomicU64,
    ended: Arc<(Mutex<u64>, Condvar)>,
    device_bytes: u64,
    state_bytes: u64,
    host: Arc<Host>,
}

/// Host memory. The thread has it while transfers are under way, and others when it has been waited
/// for: its locks never wait.
struct Host {
    bytes: u64,
    /// The first of them, where these are on disk.
    files: Option<Mutex<StateFiles>>,
    files_bytes: u64,
    memory: Mutex<MmapMut>,
    fault: Mutex<Option<StateFileError>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    fn new(bytes: u64, files: Option<StateFiles>) -> Host {
        let files_bytes = files.as_ref().map_or(0, StateFiles::bytes);
        let memory = MmapMut::map_anon((bytes - files_bytes).max(1) as usize);
        let memory = memory.expect("the host has the memory that was planned");
        Host {
            bytes,
            files: files.map(Mutex::new),
            files_bytes,
            memory: Mutex::new(memory),
            fault: Mutex::new(None),
        }
    }

    /// Reads from a byte on.
    fn read(&self, at: u64, to: &mut [u8]) {
        self.unless_faulty(at, |files, at| match files {
            Some(files) => files.read(at, to),
            None => {
                to.copy_from_slice(&locked(&self.memory)[at as usize..at as usize + to.len()]);
                Ok(())
            }
        });
    }

    /// Writes from a byte on.
    fn write(&self, at: u64, bytes: &[u8]) {
        self.unless_faulty(at, |files, at| match files {
            Some(files) => files.write(at, bytes),
            None => {
                let mut memory = locked(&self.memory);
                memory[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
                Ok(())
            }
        });
    }

    /// Works on the files or on the memory behind them, and keeps the first fault.
    fn unless_faulty(
        &self,
        at: u64,
        work: impl FnOnce(Option<&mut StateFiles>, u64) -> Result<(), StateFileError>,
    ) {
        let mut fault = locked(&self.fault);
        if fault.is_some() {
            return;
        }
        let files = self.files.as_ref().filter(|_| at < self.files_bytes);
        let done = match files {
            Some(files) => work(Some(&mut locked(files)), at),
            None => work(None, at - self.files_bytes),
        };
        *fault = done.err();
    }
}

impl fmt::Debug for Copier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Copier").field("host_bytes", &self.host.bytes).finish_non_exhaustive()
    }
}

/// All memories, as the thread has them.
struct Memories {
    device: *mut u8,
    /// Null where there are no collectives.
    state: *mut u8,
    /// Keeps the arenas where they are.
    _held: Vec<Box<dyn Send>>,
    host: Arc<Host>,
    seat: Option<Seat>,
}

// SAFETY: the device's addresses stay valid while `_held` lives, which moves along; that no kernel
// has the same bytes at the same time is what the plan's waits are for.
unsafe impl Send for Memories {}

impl Copier {
    /// Host memory of this many bytes, zeroed, and taken page by page as it is written to. The
    /// first of them are those of the files, if there are any.
    pub fn new(
        device: &Device,
        arena: &Arena,
        host_bytes: u64,
        files: Option<StateFiles>,
    ) -> Copier {
        Copier::open(device, [Some(arena), None], Host::new(host_bytes, files), None)
    }

    /// For a rank of a mesh: its work space, its state, and host memory of this many bytes.
    pub fn of_rank(
        device: &Device,
        work: &Arena,
        state: &Arena,
        host_bytes: u64,
        seat: Seat,
    ) -> Copier {
        Copier::open(device, [Some(work), Some(state)], Host::new(host_bytes, None), Some(seat))
    }

    fn open(
        device: &Device,
        arenas: [Option<&Arena>; 2],
        host: Host,
        seat: Option<Seat>,
    ) -> Copier {
        let host = Arc::new(host);
        let mut held = Vec::new();
        let [work, state] = arenas.map(|arena| {
            arena.map_or(std::ptr::null_mut(), |arena| {
                let (address, keeps) = device.address(arena);
                held.push(keeps);
                address
            })
        });
        let memories = Memories { device: work, state, _held: held, host: host.clone(), seat };
        let (queue, jobs) = channel();
        let ended = Arc::new((Mutex::new(0), Condvar::new()));
        let says = ended.clone();
        let thread = std::thread::Builder::new().name("transfers".into());
        let thread = thread.spawn(move || serve(memories, &jobs, &says));
        Copier {
            queue: Some(queue),
            thread: Some(thread.expect("a process may have one more thread")),
            sent: AtomicU64::new(0),
            ended,
            device_bytes: arenas[0].map_or(0, Arena::bytes),
            state_bytes: arenas[1].map_or(0, Arena::bytes),
            host,
        }
    }

    /// Bytes of host memory, those on disk included.
    pub fn host_bytes(&self) -> u64 {
        self.host.bytes
    }

    /// Bytes on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.host.files_bytes
    }

    /// The first fault of the files; after it nothing is right that came from them.
    pub fn fault(&self) -> Option<StateFileError> {
        locked(&self.host.fault).clone()
    }

    /// Puts a job behind those that were sent before, and gives its number.
    pub fn send(&self, job: Job) -> u64 {
        for (side, bytes) in job.extents() {
            let (at, all) = match side {
                Side::Device(at) => (at, self.device_bytes),
                Side::State(at) => (at, self.state_bytes),
                Side::Host(at) => (at, self.host.bytes),
            };
            assert!(at + bytes <= all, "a transfer lies inside its memories");
        }
        let queue = self.queue.as_ref().expect("there until it is dropped");
        queue.send(job).expect("the thread ends with its queue");
        self.sent.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Waits until the transfer with this number, and all before it, have ended.
    pub fn wait(&self, number: u64) {
        let (count, changed) = &*self.ended;
        let guard = count.lock().unwrap_or_else(PoisonError::into_inner);
        let done = changed.wait_while(guard, |ended| *ended < number);
        drop(done.unwrap_or_else(PoisonError::into_inner));
    }

    /// Writes to host memory, behind everything that was sent.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        assert!(at + bytes.len() as u64 <= self.host.bytes, "a write lies inside host memory");
        self.wait_for_all();
        self.host.write(at, bytes);
    }

    /// Reads host memory, behind everything that was sent.
    pub fn read(&self, at: u64, bytes: u64) -> Vec<u8> {
        assert!(at + bytes <= self.host.bytes, "a read lies inside host memory");
        self.wait_for_all();
        let mut found = vec![0; bytes as usize];
        self.host.read(at, &mut found);
        found
    }

    /// Waits for everything that was sent.
    pub fn wait_for_all(&self) {
        self.wait(self.sent.load(Ordering::Relaxed));
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A thread that copies has nothing to report.
            let _ = thread.join();
        }
    }
}

impl Job {
    /// Both sides, with how many bytes from there on it may touch.
    fn extents(&self) -> [(Side, u64); 2] {
        match self {
            Job::Transfer(Transfer { from, to, bytes }) => [(*from, *bytes), (*to, *bytes)],
            Job::Together(Together { spec, from, to }) => {
                let bytes = |elements: u64| elements * spec.elem.bytes();
                let (len, piece) = (bytes(spec.len), bytes(spec.piece));
                match spec.kind {
                    Collective::AllGather => [(*from, piece), (*to, spec.bytes())],
                    Collective::ReduceScatter => [(*from, len), (*to, piece)],
                    Collective::AllReduce => [(*from, len), (*to, len)],
                }
            }
        }
    }
}

impl Memories {
    fn transfer(&self, job: &Transfer) {
        let device = |at: u64| {
            // SAFETY: `send` has held both sides against the sizes of their memories, and no kernel
            // has these bytes while they are moved.
            unsafe {
                std::slice::from_raw_parts_mut(self.device.add(at as usize), job.bytes as usize)
            }
        };
        match (job.from, job.to) {
            (Side::Device(from), Side::Host(to)) => self.host.write(to, device(from)),
            (Side::Host(from), Side::Device(to)) => self.host.read(from, device(to)),
            (from, to) => unreachable!("a transfer is between memories, not {from:?} to {to:?}"),
        }
    }

    fn together(&self, job: &Together) {
        let seat = self.seat.as_ref().expect("collectives are for ranks of a mesh");
        let address = |side: Side| match side {
            Side::Device(at) => self.device.wrapping_add(at as usize),
            Side::State(at) => self.state.wrapping_add(at as usize),
            Side::Host(_) => unreachable!("a collective is between devices"),
        };
        // SAFETY: `send` has held both sides against the sizes of their memories, and no kernel of
        // any rank has these bytes before the collective is over.
        unsafe { seat.together(&job.spec, address(job.from), address(job.to)) };
    }
}

fn serve(memories: Memories, jobs: &Receiver<Job>, ended: &(Mutex<u64>, Condvar)) {
    for job in jobs {
        match &job {
            Job::Transfer(job) => memories.transfer(job),
            Job::Together(job) => memories.together(job),
        }
        *locked(&ended.0) += 1;
        ended.1.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_to_the_host_and_back_in_the_order_of_the_queue() {
        let device = Device::cpu(Some(1));
        let arena = device.alloc(1024);
        let bytes: Vec<u8> = (0..=255).collect();
        device.write(&arena, 256, &bytes).expect("inside");
        device.sync();
        let copier = Copier::new(&device, &arena, 512, None);
        let send = |from, to| copier.send(Job::Transfer(Transfer { from, to, bytes: 256 }));
        send(Side::Device(256), Side::Host(256));
        send(Side::Host(256), Side::Device(512));
        let last = send(Side::Host(0), Side::Device(256));
        copier.wait(last);
        copier.wait_for_all();
        assert_eq!(device.read(&arena, 512, 256).expect("inside"), bytes);
        assert_eq!(device.read(&arena, 256, 256).expect("inside"), [0; 256]);
    }
}
