//! Memory of this process that is in use, as the system counts it. Where the system has no such
//! files nothing is known.

use std::fs;

/// Bytes that stay resident besides the plan once all kernels are compiled: their code, what their
/// compiler keeps on each core, and the threads. It is measured, as the peak of short runs less
/// what was resident before them and less their plan: 117 and 115 MB with `llama_110m` and
/// `llama_15m`, 112 and 111 MB with models of 0.8 and 0.1 million parameters, on two cores. Where
/// kernels are kept from before, it is 27 MB.
pub const RUNTIME: u64 = 110 << 20;

/// Bytes that are resident now.
pub fn now() -> Option<u64> {
    field("VmRSS:")
}

/// The most bytes that were resident at one time, since the process began or `forget_peak`.
pub fn peak() -> Option<u64> {
    field("VmHWM:")
}

/// Bytes that a process can still have without others losing theirs.
pub fn available() -> Option<u64> {
    kib_of("/proc/meminfo", "MemAvailable:")
}

/// Begins to watch for the peak anew, where the system lets a process do that: compilers of kernels
/// take memory that steps do not.
pub fn forget_peak() {
    // What this file cannot do is only a less sharp figure.
    let _ = fs::write("/proc/self/clear_refs", "5");
}

fn field(name: &str) -> Option<u64> {
    kib_of("/proc/self/status", name)
}

/// The bytes behind a name in a file that counts kibibytes.
fn kib_of(file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}
