//! A state that is on disk: one file for each section, read and written by the part.
//!
//! The files are scratch of one run: made new by it, locked while it runs, and removed at its end;
//! what a crash leaves is cleaned away by the next run that is given the folder. Checkpoints are
//! made from them and never are them.
//!
//! Each page of a file has a checksum in a file of its own, which every read is held against. A
//! part that is moved is read and written by itself, not mapped: then a full or broken disk is an
//! error that can be reported, and nothing of the state stays in this process's memory. Where the
//! system takes such advice (Linux), what was read or has reached the disk leaves its cache too.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::{fmt, ops};

/// Bytes that one checksum covers: 1 in 1024 of the state is checksums.
const PAGE: u64 = 4096;
/// Bytes written to a file before they are waited for, so that few are on their way.
const BEHIND: u64 = 64 << 20;
/// Says whose files these are.
const MARKER: &str = "mdl-state";
const SUMS: &str = "mdl-state.checksums";

/// What can go wrong with the files of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateFileError {
    /// The folder or a file cannot be used, and why.
    Unusable(PathBuf, String),
    /// Another run has them now.
    InUse(PathBuf),
    /// Bytes of this file from there on are not those that were written.
    Damaged(PathBuf, u64),
    /// The disk has less than the state needs.
    TooSmall { dir: PathBuf, bytes: u64, there: u64 },
}

impl StateFileError {
    /// Its code.
    pub fn code(&self) -> &'static str {
        match self {
            StateFileError::Unusable(..) | StateFileError::InUse(_) => "E0971",
            StateFileError::Damaged(..) => "E0972",
            StateFileError::TooSmall { .. } => "E0973",
        }
    }
}

impl fmt::Display for StateFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StateFileError::Unusable(path, e) => {
                write!(f, "state file `{}` cannot be used: {e}", path.display())
            }
            StateFileError::InUse(dir) => write!(
                f,
                "another run has its state in `{}`; give --disk_offload a folder of its own",
                dir.display()
            ),
            StateFileError::Damaged(path, at) => write!(
                f,
                "state file `{}` is damaged from byte {at} on; go on from the last checkpoint with \
                 --resume_from_checkpoint",
                path.display()
            ),
            StateFileError::TooSmall { dir, bytes, there } => write!(
                f,
                "the state takes {bytes} bytes on disk, and `{}` has {there} free; give \
                 --disk_offload a folder on a larger disk",
                dir.display()
            ),
        }
    }
}

impl std::error::Error for StateFileError {}

type Done<T> = Result<T, StateFileError>;

/// One file with its path.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// Bytes written since they were last waited for.
    behind: u64,
}

/// The sections of a state, one after the other, each in its file.
#[derive(Debug)]
pub struct StateFiles {
    dir: PathBuf,
    sections: Vec<Part>,
    sums: Part,
    /// Locked while the run lasts.
    _marker: File,
}

/// Bytes that are free to this user on the disk of a folder, where the system says so.
pub fn free_bytes(dir: &Path) -> Option<u64> {
    system::free_bytes(dir)
}

impl StateFiles {
    /// New files with zeros, one for each name and of so many bytes. `free` says what the disk has
    /// for them, if that is known: `free_bytes`.
    pub fn create(
        dir: &Path,
        sections: &[(&str, u64)],
        free: impl Fn(&Path) -> Option<u64>,
    ) -> Done<StateFiles> {
        fs::create_dir_all(dir).map_err(unusable(dir))?;
        let marker = own(dir)?;
        StateFiles::filled(dir, marker, sections, free).inspect_err(|_| {
            // What cannot be used is not left behind; the fault is what counts.
            let _ = clean(dir).and_then(|()| fs::remove_file(dir.join(MARKER)));
        })
    }

    fn filled(
        dir: &Path,
        marker: File,
        sections: &[(&str, u64)],
        free: impl Fn(&Path) -> Option<u64>,
    ) -> Done<StateFiles> {
        let sums = sections.iter().map(|(_, bytes)| bytes.div_ceil(PAGE) * 4).sum::<u64>();
        let bytes = sections.iter().map(|(_, bytes)| bytes).sum::<u64>() + sums;
        if let Some(there) = free(dir).filter(|there| *there < bytes) {
            return Err(StateFileError::TooSmall { dir: dir.to_path_buf(), bytes, there });
        }
        let part = |name: &str, bytes: u64| {
            let path = dir.join(name);
            let mut options = fs::OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(true).open(&path);
            let file = file.map_err(unusable(&path))?;
            system::reserve(&file, bytes).map_err(unusable(&path))?;
            Ok(Part { path, file, bytes, behind: 0 })
        };
        let parts = sections.iter().map(|(name, bytes)| part(&format!("{MARKER}.{name}"), *bytes));
        let sections = parts.collect::<Done<Vec<Part>>>()?;
        let sums = part(SUMS, sums)?;
        Ok(StateFiles { dir: dir.to_path_buf(), sections, sums, _marker: marker })
    }

    /// Bytes of all sections.
    pub fn bytes(&self) -> u64 {
        self.sections.iter().map(|part| part.bytes).sum()
    }

    /// The section in which a byte of the state lies, and where in it.
    fn place(&self, at: u64) -> (usize, u64) {
        let (mut n, mut at) = (0, at);
        while n + 1 < self.sections.len() && at >= self.sections[n].bytes {
            at -= self.sections[n].bytes;
            n += 1;
        }
        (n, at)
    }

    /// Fills `to` with what lies from a byte of the state on; all of it is in one section.
    pub fn read(&mut self, at: u64, to: &mut [u8]) -> Done<()> {
        let (n, at) = self.place(at);
        self.sections[n].read(at, to)?;
        let range = at..at + to.len() as u64;
        let sums = self.read_sums(n, &range)?;
        for (page, sum) in pages(&range).zip(sums) {
            let there = self.page_range(n, page);
            let found = if there.start >= range.start && there.end <= range.end {
                let inside =
                    (there.start - range.start) as usize..(there.end - range.start) as usize;
                checksum(&to[inside])
            } else {
                checksum(&self.page(n, page)?)
            };
            if found != sum {
                return Err(StateFileError::Damaged(self.sections[n].path.clone(), there.start));
            }
        }
        self.sections[n].forget(&range);
        Ok(())
    }

    /// Writes bytes from a byte of the state on; all of them are in one section.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> Done<()> {
        let (n, at) = self.place(at);
        let range = at..at + bytes.len() as u64;
        let mut sums = Vec::new();
        for page in pages(&range) {
            let there = self.page_range(n, page);
            let (from, to) = (there.start.max(range.start), there.end.min(range.end));
            let new = &bytes[(from - range.start) as usize..(to - range.start) as usize];
            let sum = if from == there.start && to == there.end {
                checksum(new)
            } else {
                // What stays of the page has to be right, or a new checksum would hide that it is
                // not.
                let old = self.checked(n, page)?;
                let mut whole = old;
                let inside = (from - there.start) as usize;
                whole[inside..inside + new.len()].copy_from_slice(new);
                checksum(&whole)
            };
            sums.extend(sum.to_le_bytes());
        }
        self.sections[n].write(at, bytes)?;
        let first = self.sum_place(n, range.start / PAGE);
        self.sums.write(first, &sums)
    }

    /// Bytes of a section that a page has.
    fn page_range(&self, n: usize, page: u64) -> ops::Range<u64> {
        page * PAGE..((page + 1) * PAGE).min(self.sections[n].bytes)
    }

    fn page(&mut self, n: usize, page: u64) -> Done<Vec<u8>> {
        let range = self.page_range(n, page);
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.sections[n].read(range.start, &mut bytes)?;
        Ok(bytes)
    }

    /// A page that was held against its checksum.
    fn checked(&mut self, n: usize, page: u64) -> Done<Vec<u8>> {
        let (bytes, range) = (self.page(n, page)?, self.page_range(n, page));
        match self.read_sums(n, &range)?.first() == Some(&checksum(&bytes)) {
            true => Ok(bytes),
            false => Err(StateFileError::Damaged(self.sections[n].path.clone(), range.start)),
        }
    }

    fn sum_place(&self, n: usize, page: u64) -> u64 {
        let before = self.sections[..n].iter().map(|part| part.bytes.div_ceil(PAGE)).sum::<u64>();
        (before + page) * 4
    }

    /// Checksums of the pages of a range.
    fn read_sums(&mut self, n: usize, range: &ops::Range<u64>) -> Done<Vec<u32>> {
        let mut bytes = vec![0; pages(range).count() * 4];
        let first = self.sum_place(n, range.start / PAGE);
        self.sums.read(first, &mut bytes)?;
        let four = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        Ok(bytes.chunks_exact(4).map(four).collect())
    }
}

impl Drop for StateFiles {
    fn drop(&mut self) {
        // What stays behind is cleaned away by the next run.
        let _ = clean(&self.dir);
        let _ = fs::remove_file(self.dir.join(MARKER));
    }
}

impl Part {
    fn read(&mut self, at: u64, to: &mut [u8]) -> Done<()> {
        let read = self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.read_exact(to));
        read.map_err(unusable(&self.path))
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> Done<()> {
        let written = self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.write_all(bytes));
        written.map_err(unusable(&self.path))?;
        self.behind += bytes.len() as u64;
        if self.behind >= BEHIND {
            self.file.sync_data().map_err(unusable(&self.path))?;
            self.behind = 0;
            self.forget(&(0..u64::MAX));
        }
        Ok(())
    }

    /// Takes bytes out of the system's cache where they are on disk as well.
    fn forget(&self, range: &ops::Range<u64>) {
        system::forget(&self.file, range);
    }
}

fn unusable(path: &Path) -> impl FnOnce(io::Error) -> StateFileError + use<> {
    let path = path.to_path_buf();
    move |e| StateFileError::Unusable(path, e.to_string())
}

/// Numbers of the pages that a range touches.
fn pages(range: &ops::Range<u64>) -> ops::Range<u64> {
    range.start / PAGE..range.end.div_ceil(PAGE)
}

/// 0 for zeros, which is what new files have.
fn checksum(bytes: &[u8]) -> u32 {
    if bytes.iter().all(|b| *b == 0) {
        return 0;
    }
    crc32fast::hash(bytes).max(1)
}

/// Makes the folder this run's own: what a run left there that is no more is removed.
fn own(dir: &Path) -> Done<File> {
    let path = dir.join(MARKER);
    let marked = path.exists();
    let mut options = fs::OpenOptions::new();
    let mut marker =
        options.write(true).create(true).truncate(false).open(&path).map_err(unusable(&path))?;
    match marker.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            return Err(StateFileError::InUse(dir.to_path_buf()));
        }
        Err(fs::TryLockError::Error(e)) => return Err(unusable(&path)(e)),
    }
    if marked {
        clean(dir).map_err(unusable(dir))?;
    }
    let text = "State of a run that is under way: scratch, and no checkpoint. It may be removed \
                when the run has ended.\n";
    marker.write_all(text.as_bytes()).map_err(unusable(&path))?;
    Ok(marker)
}

/// Removes all files of a state but for the marker.
fn clean(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&format!("{MARKER}.")) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(target_os = "linux")]
mod system {
    use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate, statvfs};
    use std::fs::File;
    use std::io;
    use std::num::NonZeroU64;
    use std::ops::Range;
    use std::path::Path;

    pub(super) fn free_bytes(dir: &Path) -> Option<u64> {
        // The folder may not be there yet: what is above it lies on the same disk.
        let there = dir.ancestors().find(|a| a.as_os_str().is_empty() || a.exists())?;
        let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
        statvfs(there).ok().map(|s| s.f_bavail * s.f_frsize)
    }

    /// The blocks of a file are taken now, where the file system can do that.
    pub(super) fn reserve(file: &File, bytes: u64) -> io::Result<()> {
        match fallocate(file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(bytes),
            Err(e) => Err(e.into()),
        }
    }

    pub(super) fn forget(file: &File, range: &Range<u64>) {
        let len = NonZeroU64::new(range.end.saturating_sub(range.start));
        // 0 is up to the end. Without this the cache is only fuller.
        let len = len.filter(|_| range.end != u64::MAX);
        let _ = fadvise(file, range.start, len, Advice::DontNeed);
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::fs::File;
    use std::io;
    use std::ops::Range;
    use std::path::Path;

    pub(super) fn free_bytes(_: &Path) -> Option<u64> {
        None
    }

    pub(super) fn reserve(file: &File, bytes: u64) -> io::Result<()> {
        file.set_len(bytes)
    }

    pub(super) fn forget(_: &File, _: &Range<u64>) {}
}

#[cfg(test)]
mod tests;
