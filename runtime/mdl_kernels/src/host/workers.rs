//! Compiling kernels on as many threads as there are cores, each from what was kept of it or anew.

use super::store::Store;
use cubecl_core::CubeKernel;
use cubecl_runtime::id::KernelId;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};

/// What a kernel is compiled to, when it is there; or why it cannot be.
pub(crate) type Slot<T> = Arc<OnceLock<Result<T, String>>>;

type Job = Box<dyn FnOnce() + Send>;

/// Expanding a kernel and optimising it go deep.
const STACK_BYTES: usize = 64 << 20;

/// Has a thread make something of a kernel.
pub(crate) fn compile<T: Send + Sync + 'static>(
    kernel: Box<dyn CubeKernel>,
    make: impl FnOnce(&dyn CubeKernel) -> Result<T, String> + Send + 'static,
) -> Slot<T> {
    static JOBS: OnceLock<Sender<Job>> = OnceLock::new();
    let slot = Slot::default();
    let to = slot.clone();
    let job = move || {
        let made = catch_unwind(AssertUnwindSafe(|| make(kernel.as_ref())));
        let made = made.unwrap_or_else(|_| Err("its compiler ended in a panic".to_string()));
        let set = to.set(made.map_err(|fault| format!("{}: {fault}", kernel.name())));
        assert!(set.is_ok(), "invariant: a slot has one job");
    };
    let sent = JOBS.get_or_init(start).send(Box::new(job));
    sent.expect("invariant: threads end with the process");
    slot
}

fn start() -> Sender<Job> {
    let (jobs, queue) = channel();
    let queue = Arc::new(Mutex::new(queue));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for _ in 0..cores {
        let queue = queue.clone();
        let thread = std::thread::Builder::new().name("kernels".into());
        let thread = thread.stack_size(STACK_BYTES).spawn(move || work(&queue));
        thread.expect("invariant: the system has a thread for each core");
    }
    jobs
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = queue.lock().expect("invariant: nobody panics while holding it").recv();
        let Ok(job) = job else { return };
        job();
    }
}

/// What this process keeps kernels in.
pub(crate) fn store() -> &'static Store {
    static STORE: OnceLock<Store> = OnceLock::new();
    STORE.get_or_init(Store::of_user)
}

/// Everything that the code of a kernel depends on: what it is and was given at compile time, the
/// sources that say what that means, and what it is compiled for.
pub(crate) fn key(id: &KernelId, target: &str) -> String {
    let sources = concat!(env!("CARGO_PKG_VERSION"), " ", env!("MDL_KERNELS_SOURCES"));
    format!("{sources}\n{target}\n{}\n", id.stable_format())
}
