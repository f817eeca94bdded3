//! Memory in large pages, where Linux has them for those that ask.
//!
//! Walks with a stride, such as the keys of one head or the rows of a table, touch a page for every
//! few lines. With pages of 4 KiB a core does not know the places of all of them at once and looks
//! them up again and again; with pages of 2 MiB it does.

/// Asks for large pages for memory whose contents nobody needs. CubeCL's allocations have been
/// written, so they have small pages; those are given back, and the next write takes large ones.
/// Refusal is no fault: pages stay small then.
#[cfg(target_os = "linux")]
pub(crate) fn ask(at: *mut u8, bytes: usize) {
    use rustix::mm::{Advice, madvise};
    let page = rustix::param::page_size();
    let skipped = at.align_offset(page);
    let Some(bytes) = bytes.checked_sub(skipped) else { return };
    for advice in [Advice::LinuxHugepage, Advice::LinuxDontNeed] {
        // SAFETY: the range lies in an allocation of the caller's, which is private and anonymous
        // memory, as all of the allocator's is; it reads as zeros afterwards, and no reference to
        // it exists.
        let _ = unsafe { madvise(at.add(skipped).cast(), bytes / page * page, advice) };
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn ask(_: *mut u8, _: usize) {}
