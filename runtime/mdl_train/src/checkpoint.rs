//! What a checkpoint is on the disk, and finding the newest one that is whole.
//!
//! A checkpoint is a directory `step-00000050/` that other tools read as a Hugging Face model.
//! One with such a name is complete unless the disk lost something, which the lengths and
//! SHA-256 in its `manifest.json` show. The file `latest` names the newest for people and
//! scripts; readers here go by the directories, because a stop can come between the two.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::packing::Cursor;
pub use crate::save::{Parameter, Snapshot, save};
use crate::weights::{Weights, WeightsError};

pub(crate) const FORMAT: u32 = 1;
const MAX_MANIFEST_BYTES: u64 = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("no checkpoint in `{path}`; give a checkpoint_dir, or one of its step directories")]
    NotFound { path: String },
    #[error("checkpoint file `{path}` is damaged: {reason}; resume from an older step")]
    Damaged { path: String, reason: String },
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error("checkpoint `{path}` cannot be written ({source}); make room or change checkpoint_dir")]
    Write { path: String, source: io::Error },
    #[error(
        "checkpoint `{path}` is of another model: {difference}; \
         use the model.mdl and run.json that lie in it"
    )]
    OtherModel { path: String, difference: String },
}

impl CheckpointError {
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "E0921",
            Self::Damaged { .. } => "E0922",
            Self::Weights(error) => error.code(),
            Self::Write { .. } => "E0924",
            Self::OtherModel { .. } => "E0925",
        }
    }
}

/// What is in the directory; written last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    pub step: u64,
    pub cursor: Cursor,
    /// Micro-batches of each step of the run that wrote it. One is not written down, as it was
    /// before there were several.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub gradient_accumulation: u64,
    pub graph: String,
    /// Shape of each parameter.
    pub tensors: BTreeMap<String, Vec<usize>>,
    pub files: BTreeMap<String, FileRecord>,
    /// SHA-256 of the manifest itself with this field empty.
    pub sha256: String,
}

pub(crate) fn one() -> u64 {
    1
}

fn is_one(n: &u64) -> bool {
    *n == 1
}

impl Manifest {
    pub(crate) fn own_sha256(&self) -> String {
        let without = Self { sha256: String::new(), ..self.clone() };
        let json = serde_json::to_vec(&without).expect("a manifest is plain data");
        hex(&Sha256::digest(json))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    pub bytes: u64,
    pub sha256: String,
}

/// A committed step whose files have their lengths.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The step directory.
    pub path: PathBuf,
    pub manifest: Manifest,
    /// Newer steps that were passed over, and why.
    pub notes: Vec<String>,
}

impl Checkpoint {
    /// Compares every file with its SHA-256.
    pub fn verify(&self) -> Result<(), CheckpointError> {
        for (name, record) in &self.manifest.files {
            let path = self.path.join(name);
            let found = sha256(&path).map_err(|error| damaged(&path, error))?;
            if found != record.sha256 {
                return Err(damaged(&path, "its SHA-256 differs from the manifest's"));
            }
        }
        Ok(())
    }

    pub fn weights(&self) -> Result<Weights, CheckpointError> {
        Ok(Weights::open(&self.path.join("model.safetensors"))?)
    }

    /// Tensors `m.NAME` and `v.NAME` for each parameter.
    pub fn optimizer(&self) -> Result<Weights, CheckpointError> {
        Ok(Weights::open(&self.path.join("optimizer.safetensors"))?)
    }

    /// The content of a text file: `config.json`, `run.json`, `model.mdl`.
    pub fn text(&self, name: &str) -> Result<String, CheckpointError> {
        let path = self.path.join(name);
        fs::read_to_string(&path).map_err(|error| damaged(&path, error))
    }

    /// Whether the checkpoint's tensors are those of the model, by name and shape.
    pub fn check_model<'a>(
        &self,
        expected: impl IntoIterator<Item = (&'a str, &'a [usize])>,
    ) -> Result<(), CheckpointError> {
        let other = |difference: String| CheckpointError::OtherModel {
            path: self.path.display().to_string(),
            difference,
        };
        let mut left = self.manifest.tensors.clone();
        for (name, shape) in expected {
            match left.remove(name) {
                None => return Err(other(format!("it has no tensor `{name}`"))),
                Some(found) if found != shape => {
                    return Err(other(format!(
                        "tensor `{name}` has shape {found:?} there and {shape:?} in the model"
                    )));
                }
                Some(_) => {}
            }
        }
        match left.keys().next() {
            Some(name) => Err(other(format!("its tensor `{name}` is not in the model"))),
            None => Ok(()),
        }
    }
}

/// The newest step of a checkpoint directory whose files have their lengths. A directory that
/// is not there, or without a step, is `None`; steps but none of them whole is an error.
pub fn newest(dir: &Path) -> Result<Option<Checkpoint>, CheckpointError> {
    newest_where(dir, |_| Ok(()))
}

/// Opens a step directory, or the newest whole step of a checkpoint directory, and compares
/// every file with its SHA-256. A damaged step that was not named itself is passed over.
pub fn open(path: &Path) -> Result<Checkpoint, CheckpointError> {
    if path.join("manifest.json").exists() {
        let found = read_step(path)?;
        found.verify()?;
        return Ok(found);
    }
    newest_where(path, Checkpoint::verify)?
        .ok_or_else(|| CheckpointError::NotFound { path: path.display().to_string() })
}

/// The directory with `model.safetensors`, `config.json` and perhaps `tokenizer.json` that a
/// path stands for: a Hugging Face directory itself, or a verified step of ours.
pub fn model_directory(path: &Path) -> Result<PathBuf, CheckpointError> {
    let published = ["model.safetensors", "model.safetensors.index.json"];
    let is_ours = path.join("manifest.json").exists();
    if !is_ours && published.iter().any(|name| path.join(name).is_file()) {
        return Ok(path.to_owned());
    }
    open(path).map(|found| found.path)
}

fn newest_where(
    dir: &Path,
    accept: impl Fn(&Checkpoint) -> Result<(), CheckpointError>,
) -> Result<Option<Checkpoint>, CheckpointError> {
    let mut passed_over = Vec::new();
    for (_, path) in steps(dir) {
        match read_step(&path).and_then(|found| accept(&found).map(|()| found)) {
            Ok(mut found) => {
                found.notes = passed_over
                    .iter()
                    .map(|error: &CheckpointError| format!("passed over a checkpoint: {error}"))
                    .collect();
                return Ok(Some(found));
            }
            Err(error) => passed_over.push(error),
        }
    }
    passed_over.into_iter().next().map_or(Ok(None), Err)
}

/// Committed steps, newest first.
pub(crate) fn steps(dir: &Path) -> Vec<(u64, PathBuf)> {
    let step = |path: PathBuf| {
        let digits = path.file_name()?.to_str()?.strip_prefix("step-")?;
        let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
        Some((digits.parse().ok().filter(|_| is_number && path.is_dir())?, path))
    };
    let mut res: Vec<_> = paths(dir).into_iter().filter_map(step).collect();
    res.sort_by(|a, b| b.cmp(a));
    res
}

pub(crate) fn paths(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

/// Reads a step's manifest and compares its files' lengths.
pub(crate) fn read_step(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let file = path.join("manifest.json");
    let size = fs::metadata(&file).map_err(|error| damaged(&file, error))?.len();
    if size > MAX_MANIFEST_BYTES {
        return Err(damaged(&file, format!("it has more than {MAX_MANIFEST_BYTES} bytes")));
    }
    let text = fs::read(&file).map_err(|error| damaged(&file, error))?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| damaged(&file, error))?;
    if manifest.format != FORMAT {
        let reason = format!("it has format {}, and {FORMAT} is read", manifest.format);
        return Err(damaged(&file, reason));
    }
    for needed in ["model.safetensors", "optimizer.safetensors", "config.json", "run.json"] {
        if !manifest.files.contains_key(needed) {
            return Err(damaged(&file, format!("it does not list {needed}")));
        }
    }
    for (name, record) in &manifest.files {
        // A path could lead out of the directory.
        let is_inside = |part| matches!(part, Component::Normal(_));
        if !Path::new(name).components().all(is_inside) {
            return Err(damaged(&file, format!("`{name}` is no path below the checkpoint")));
        }
        let listed = path.join(name);
        let bytes = fs::metadata(&listed).map_err(|error| damaged(&listed, error))?.len();
        if bytes != record.bytes {
            let reason = format!("it has {bytes} bytes, and {} in the manifest", record.bytes);
            return Err(damaged(&listed, reason));
        }
    }
    Ok(Checkpoint { path: path.to_owned(), manifest, notes: Vec::new() })
}

fn damaged(path: &Path, reason: impl ToString) -> CheckpointError {
    CheckpointError::Damaged { path: path.display().to_string(), reason: reason.to_string() }
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut part = vec![0; 1 << 20];
    loop {
        match file.read(&mut part)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&part[..n]),
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
