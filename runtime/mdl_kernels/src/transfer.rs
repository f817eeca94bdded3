//! Host memory, and the queue of transfers between it and a device's arena.
//!
//! Transfers run on a thread of their own, one after the other, beside the kernels of the device's
//! stream. Who issues them says what they wait for: kernels by `Device::sync` before a transfer is
//! sent, transfers by `Copier::wait` before a kernel is launched.

use crate::device::{Arena, Device};
use memmap2::MmapMut;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// A side of a transfer: a byte of the device's arena, or of the host's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Device(u64),
    Host(u64),
}

/// Bytes that are copied from one place to another.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    pub from: Side,
    pub to: Side,
    pub bytes: u64,
}

/// An arena of the device and memory of the host, with the thread that copies between them.
pub struct Copier {
    queue: Option<Sender<Transfer>>,
    thread: Option<JoinHandle<()>>,
    sent: AtomicU64,
    ended: Arc<(Mutex<u64>, Condvar)>,
    device_bytes: u64,
    host_bytes: u64,
    host: Host,
    /// What `host` points into; the thread ends before it does.
    _map: MmapMut,
}

/// The address of the host's memory.
#[derive(Clone, Copy)]
struct Host(*mut u8);

// SAFETY: the memory lives as long as the copier; the thread has it while transfers are under way,
// and others when it has been waited for.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

impl fmt::Debug for Copier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Copier").field("host_bytes", &self.host_bytes).finish_non_exhaustive()
    }
}

/// Both memories, as the thread has them.
struct Memories {
    device: *mut u8,
    /// Keeps the arena where it is.
    _held: Box<dyn Send>,
    host: Host,
}

// SAFETY: the device's address stays valid while `_held` lives, which moves along; that no kernel
// has the same bytes at the same time is what the plan's waits are for.
unsafe impl Send for Memories {}

impl Copier {
    /// Host memory of this many bytes, zeroed, and taken page by page as it is written to.
    pub fn new(device: &Device, arena: &Arena, host_bytes: u64) -> Copier {
        let host = MmapMut::map_anon(host_bytes.max(1) as usize);
        let mut map = host.expect("the host has the memory that was planned");
        let host = Host(map.as_mut_ptr());
        let (address, held) = device.address(arena);
        let memories = Memories { device: address, _held: held, host };
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
            device_bytes: arena.bytes(),
            host_bytes,
            host,
            _map: map,
        }
    }

    /// Bytes of host memory.
    pub fn host_bytes(&self) -> u64 {
        self.host_bytes
    }

    /// Puts a transfer behind those that were sent before, and gives its number.
    pub fn send(&self, transfer: Transfer) -> u64 {
        for side in [transfer.from, transfer.to] {
            let (at, all) = match side {
                Side::Device(at) => (at, self.device_bytes),
                Side::Host(at) => (at, self.host_bytes),
            };
            assert!(at + transfer.bytes <= all, "a transfer lies inside its memories");
        }
        let queue = self.queue.as_ref().expect("there until it is dropped");
        queue.send(transfer).expect("the thread ends with its queue");
        self.sent.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Waits until the transfer with this number, and all before it, have ended.
    pub fn wait(&self, number: u64) {
        let (count, changed) = &*self.ended;
        let guard = count.lock().unwrap_or_else(PoisonError::into_inner);
        let done = changed.wait_while(guard, |ended| *ended < number);
        drop(done.unwrap_or_else(PoisonError::into_inner));
    }

    /// Writes to host memory, behind everything that was sent. One caller at a time.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        assert!(at + bytes.len() as u64 <= self.host_bytes, "a write lies inside host memory");
        self.wait_for_all();
        // SAFETY: held against the size above, and no transfer is under way.
        unsafe {
            let to = self.host.0.add(at as usize);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }

    /// Reads host memory, behind everything that was sent.
    pub fn read(&self, at: u64, bytes: u64) -> Vec<u8> {
        assert!(at + bytes <= self.host_bytes, "a read lies inside host memory");
        self.wait_for_all();
        // SAFETY: as for `write`.
        unsafe { std::slice::from_raw_parts(self.host.0.add(at as usize), bytes as usize).to_vec() }
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

fn serve(memories: Memories, jobs: &Receiver<Transfer>, ended: &(Mutex<u64>, Condvar)) {
    for job in jobs {
        // SAFETY: `send` has held both sides against the sizes of their memories.
        let address = |side: Side| unsafe {
            match side {
                Side::Device(at) => memories.device.add(at as usize),
                Side::Host(at) => memories.host.0.add(at as usize),
            }
        };
        let (from, to) = (address(job.from), address(job.to));
        // SAFETY: both are valid for these bytes, which do not overlap in different memories, and
        // one space hands out a byte once at a time.
        unsafe { std::ptr::copy(from, to, job.bytes as usize) };
        *ended.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
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
        let copier = Copier::new(&device, &arena, 512);
        let send = |from, to| copier.send(Transfer { from, to, bytes: 256 });
        send(Side::Device(256), Side::Host(256));
        send(Side::Host(256), Side::Device(512));
        let last = send(Side::Host(0), Side::Device(256));
        copier.wait(last);
        copier.wait_for_all();
        assert_eq!(device.read(&arena, 512, 256).expect("inside"), bytes);
        assert_eq!(device.read(&arena, 256, 256).expect("inside"), [0; 256]);
    }
}
