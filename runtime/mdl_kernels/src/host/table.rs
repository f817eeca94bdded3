//! The kernels of this process: each is compiled once, or taken from the store, on as many threads
//! as there are cores.

use super::code::{self, Function};
use super::lower::lower;
use super::store::Store;
use cubecl_core::CubeKernel;
use cubecl_runtime::id::KernelId;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};

/// A kernel that can be run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Compiled {
    pub function: Function,
    /// Whether its units wait for each other.
    pub barrier: bool,
    /// It was compiled here, and not taken from the store.
    pub new: bool,
}

/// A kernel that was asked for, when it is there; or why it cannot be.
pub(super) type Slot = Arc<OnceLock<Result<Compiled, String>>>;

struct Job {
    kernel: Box<dyn CubeKernel>,
    alignment: u32,
    slot: Slot,
}

pub(super) struct Table {
    slots: Mutex<HashMap<(KernelId, u32), Slot>>,
    jobs: Sender<Job>,
}

/// Expanding a kernel and optimising it go deep.
const STACK_BYTES: usize = 64 << 20;

impl Table {
    /// That of this process.
    pub(super) fn shared() -> &'static Table {
        static TABLE: OnceLock<Table> = OnceLock::new();
        TABLE.get_or_init(|| Table::new(Store::of_user()))
    }

    fn new(store: Store) -> Table {
        let (jobs, queue) = channel();
        let (queue, store) = (Arc::new(Mutex::new(queue)), Arc::new(store));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..cores {
            let (queue, store) = (queue.clone(), store.clone());
            let thread = std::thread::Builder::new().name("kernels".into());
            let thread = thread.stack_size(STACK_BYTES).spawn(move || work(&queue, &store));
            thread.expect("invariant: the system has a thread for each core");
        }
        Table { slots: Mutex::default(), jobs }
    }

    /// `alignment` is that of all its buffers in bytes.
    pub(super) fn request(&self, kernel: Box<dyn CubeKernel>, alignment: u32) -> Slot {
        let mut slots = self.slots.lock().expect("invariant: nobody panics while holding it");
        let slot = slots.entry((kernel.id(), alignment)).or_insert_with(|| {
            let slot = Slot::default();
            let job = Job { kernel, alignment, slot: slot.clone() };
            self.jobs.send(job).expect("invariant: threads end with the process");
            slot
        });
        slot.clone()
    }
}

fn work(queue: &Mutex<Receiver<Job>>, store: &Store) {
    loop {
        let job = queue.lock().expect("invariant: nobody panics while holding it").recv();
        let Ok(Job { kernel, alignment, slot }) = job else {
            return;
        };
        let made = catch_unwind(AssertUnwindSafe(|| make(kernel.as_ref(), alignment, store)));
        let made = made.unwrap_or_else(|_| Err("its compiler ended in a panic".to_string()));
        let set = slot.set(made.map_err(|fault| format!("{}: {fault}", kernel.name())));
        set.expect("invariant: a slot has one job");
    }
}

fn make(kernel: &dyn CubeKernel, alignment: u32, store: &Store) -> Result<Compiled, String> {
    let key = key(&kernel.id(), alignment);
    let kept = store.read(&key).and_then(|code| load(&code, false).ok());
    if let Some(compiled) = kept {
        return Ok(compiled);
    }
    let lowered = lower(kernel, alignment)?;
    let entry = lowered.entry.as_bytes();
    let object = code::object(&lowered.text)?;
    let code = [&[u8::from(lowered.barrier)], entry, &[0], object.as_slice()].concat();
    store.write(&key, &code);
    load(&code, true)
}

/// From whether there is a barrier, the entry's name up to a zero, and an object file.
fn load(code: &[u8], new: bool) -> Result<Compiled, String> {
    let parts = || {
        let (barrier, rest) = code.split_first()?;
        let end = rest.iter().position(|&byte| byte == 0)?;
        Some((*barrier != 0, std::str::from_utf8(&rest[..end]).ok()?, &rest[end + 1..]))
    };
    let (barrier, entry, object) = parts().ok_or("the code has no entry")?;
    Ok(Compiled { function: code::load(object, entry)?, barrier, new })
}

/// Everything that the code of a kernel depends on: what it is and was given at compile time, the
/// sources that say what that means, and the machine.
fn key(id: &KernelId, alignment: u32) -> String {
    static MACHINE: OnceLock<String> = OnceLock::new();
    let machine = MACHINE.get_or_init(code::machine);
    let sources = concat!(env!("CARGO_PKG_VERSION"), " ", env!("MDL_KERNELS_SOURCES"));
    format!("{sources}\n{machine}\n{alignment}\n{}\n", id.stable_format())
}
