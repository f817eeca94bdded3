//! Compiled kernels on disk, a file each: what a program compiled, the next one takes.
//!
//! A file is named by a hash of its key, the text of everything that the code depends on, and has
//! the whole key in it. Whatever is not exactly what a program like this one would have written,
//! under that key, is not taken, and what is compiled instead replaces it. Files are written
//! elsewhere and renamed, so that several processes can share a folder.

use cubecl::hash::StableHasher;
use std::fs::{self, File, OpenOptions};
use std::hash::Hasher;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// Where kernels are kept: a folder, or `off`.
const VARIABLE: &str = "MDL_KERNEL_CACHE";
/// Beyond so many bytes the files that were not used for longest go.
const MOST_BYTES: u64 = 256 << 20;
const MAGIC: &[u8; 8] = b"mdlkern1";
/// The magic number, the lengths of key and code, and their checksum.
const HEAD: usize = 8 + 8 + 8 + 16;

/// A folder of compiled kernels, or none.
#[derive(Debug)]
pub struct Store {
    folder: Option<PathBuf>,
    most_bytes: u64,
    /// Bytes in the folder, once this process has counted them.
    held: Mutex<Option<u64>>,
}

impl Store {
    /// The user's, or what `MDL_KERNEL_CACHE` says.
    pub fn of_user() -> Store {
        Store::new(match std::env::var_os(VARIABLE) {
            Some(said) if said == "off" || said.is_empty() => None,
            Some(said) => Some(PathBuf::from(said)),
            None => user_folder().map(|folder| folder.join("mdl").join("kernels")),
        })
    }

    pub fn new(folder: Option<PathBuf>) -> Store {
        Store { folder, most_bytes: MOST_BYTES, held: Mutex::new(None) }
    }

    /// As `new`, with another bound.
    pub fn bounded(folder: PathBuf, most_bytes: u64) -> Store {
        Store { most_bytes, ..Store::new(Some(folder)) }
    }

    /// What was kept under a key, if it is whole.
    pub fn read(&self, key: &str) -> Option<Vec<u8>> {
        let path = self.folder.as_ref()?.join(name(key));
        let mut file = File::open(&path).ok()?;
        let mut bytes = Vec::new();
        if !only_ours(&file) || file.read_to_end(&mut bytes).is_err() {
            return None;
        }
        let (head, rest) = bytes.split_at_checked(HEAD)?;
        let code = rest.strip_prefix(key.as_bytes())?;
        if head != header(key, code) {
            return None;
        }
        // Files that are used stay; where time cannot be set, they go by when they were written.
        let _ = OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|file| file.set_modified(SystemTime::now()));
        Some(code.to_vec())
    }

    /// Keeps code under a key. A folder that cannot be written is no fault: the next program
    /// compiles again.
    pub fn write(&self, key: &str, code: &[u8]) {
        let Some(folder) = &self.folder else { return };
        let path = folder.join(name(key));
        if replace(folder, &path, &[&header(key, code), key.as_bytes(), code]).is_err() {
            return;
        }
        let added = (HEAD + key.len() + code.len()) as u64;
        let mut held = self.held.lock().expect("invariant: nobody panics while holding it");
        let now = held.map_or_else(|| bytes_in(folder), |held| held + added);
        *held = Some(if now > self.most_bytes { shrink(folder, self.most_bytes) } else { now });
    }
}

fn user_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let home = || set("HOME").map(|home| Path::new(&home).join(".cache"));
    set("XDG_CACHE_HOME").or_else(|| set("LOCALAPPDATA")).map(PathBuf::from).or_else(home)
}

fn name(key: &str) -> String {
    let mut hasher = StableHasher::new();
    hasher.write(key.as_bytes());
    format!("{:032x}.o", hasher.finalize())
}

fn header(key: &str, code: &[u8]) -> [u8; HEAD] {
    let mut hasher = StableHasher::new();
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(MAGIC);
    head[8..16].copy_from_slice(&(key.len() as u64).to_le_bytes());
    head[16..24].copy_from_slice(&(code.len() as u64).to_le_bytes());
    hasher.write(&head[..24]);
    hasher.write(key.as_bytes());
    hasher.write(code);
    head[24..].copy_from_slice(&hasher.finalize().to_le_bytes());
    head
}

/// Whether nobody else could have written it: it is going to be run.
#[cfg(unix)]
fn only_ours(file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    let own = rustix::process::geteuid().as_raw();
    file.metadata()
        .is_ok_and(|about| about.is_file() && about.uid() == own && about.mode() & 0o022 == 0)
}

#[cfg(not(unix))]
fn only_ours(_: &File) -> bool {
    true
}

/// A new file that nobody else can write.
fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn replace(folder: &Path, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let draft = folder.join(format!("{}-{number}.draft", std::process::id()));
    fs::create_dir_all(folder)?;
    // A draft of that name may be another's: containers that share a folder number alike.
    let mut file = create(&draft)?;
    let write = |part: &&[u8]| file.write_all(part);
    let written = parts.iter().try_for_each(write).and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written
}

/// The files that are the store's, with their sizes and when they were last used. Drafts that a
/// process left behind count too.
fn files(folder: &Path) -> Vec<(SystemTime, u64, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| {
        let path = entry.path();
        path.extension().is_some_and(|extension| extension == "o" || extension == "draft")
    });
    let with_size = ours.filter_map(|entry| {
        let about = entry.metadata().ok()?;
        Some((about.modified().ok()?, about.len(), entry.path()))
    });
    with_size.collect()
}

fn bytes_in(folder: &Path) -> u64 {
    files(folder).iter().map(|(_, bytes, _)| bytes).sum()
}

/// Removes what was not used for longest, and gives the bytes that stay.
fn shrink(folder: &Path, most_bytes: u64) -> u64 {
    let mut files = files(folder);
    files.sort();
    let mut held: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
    for (_, bytes, path) in files {
        if held <= most_bytes {
            break;
        }
        if fs::remove_file(path).is_ok() {
            held -= bytes;
        }
    }
    held
}
