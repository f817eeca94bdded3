//! Memory in large pages, where Linux has them for those that ask.
//!
//! Walks with a stride, such as the keys of one head or the rows of a table, touch a page for every
//! few lines. With pages of 4 KiB a core does not know the places of all of them at once and looks
//! them up again and again; with pages of 2 MiB it does.

/// Bytes of a large page on x86-64, and the least on other CPUs; less memory has no room for one.
#[cfg(target_os = "linux")]
const LARGE: usize = 2 << 20;

/// Asks for large pages for memory whose contents nobody needs. CubeCL's allocations have been
/// written, so they have small pages; those are given back, and the next write takes large ones.
/// Refusal is no fault: pages stay small then.
#[cfg(target_os = "linux")]
pub(crate) fn ask(at: *mut u8, bytes: usize) {
    use rustix::mm::{Advice, madvise};
    let page = rustix::param::page_size();
    let skipped = at.align_offset(page);
    let Some(bytes) = bytes.checked_sub(skipped).filter(|bytes| *bytes >= LARGE) else { return };
    // SAFETY: the range lies in an allocation of the caller's, which is private and anonymous
    // memory, as all of the allocator's is; after the second advice it reads as zeros, and no
    // reference to it exists.
    let advise = |advice| unsafe { madvise(at.add(skipped).cast(), bytes / page * page, advice) };
    let _ = advise(Advice::LinuxHugepage).and_then(|()| advise(Advice::LinuxDontNeed));
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn ask(_: *mut u8, _: usize) {}
