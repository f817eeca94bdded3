//! Reads tensors from `model.safetensors`, one file or several with an index.
//!
//! Files are mapped, not read: opening costs nothing but the header, and each tensor is
//! converted to f32 when it is asked for. The header comes from anywhere, so it is compared
//! with the file's length, and its ranges with each other, before any of them is used.
//! Whether the tensors are those of a model is what `import` looks at.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use crate::floats::widen;
use crate::import::{Difference, listed};

const MAX_INDEX_BYTES: u64 = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("`{path}` has no model.safetensors; give a directory that holds one, or the file")]
    NotFound { path: String },
    #[error("`{path}` is damaged or no safetensors file: {reason}; copy it again from its source")]
    Damaged { path: String, reason: String },
    #[error("tensor `{name}` is not in `{path}`; is this a checkpoint of the same model?")]
    Missing { name: String, path: String },
    #[error("tensor `{name}` in `{path}` is {dtype}; convert it to F32, BF16 or F16")]
    Dtype { name: String, path: String, dtype: String },
    #[error(
        "`{path}` does not hold the weights of this model; take the sizes of its \
        config.json, or other weights:{}",
        listed(differences)
    )]
    Differs { path: String, differences: Vec<Difference> },
    #[error(
        "`{path}` holds weights that are not finite; take an older step, or copy it again:{}",
        listed(differences)
    )]
    NotFinite { path: String, differences: Vec<Difference> },
}

impl WeightsError {
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "E0921",
            Self::Damaged { .. } => "E0922",
            Self::Missing { .. } | Self::Dtype { .. } | Self::Differs { .. } => "E0923",
            Self::NotFinite { .. } => "E0926",
        }
    }
}

#[derive(Debug)]
struct Mapped {
    path: PathBuf,
    bytes: memmap2::Mmap,
}

#[derive(Debug)]
struct Entry {
    file_idx: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// A tensor in a mapped file: its values as they are stored, row-major and little-endian.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'w> {
    pub dtype: Dtype,
    pub shape: &'w [usize],
    pub bytes: &'w [u8],
}

/// Tensors by name, in files that stay mapped.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    files: Vec<Mapped>,
    tensors: BTreeMap<String, Entry>,
}

impl Weights {
    /// `path` is a safetensors file, or a directory with `model.safetensors` or
    /// `model.safetensors.index.json`.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let mut res = Self { path: path.to_owned(), files: Vec::new(), tensors: BTreeMap::new() };
        let single = path.join("model.safetensors");
        let index = path.join("model.safetensors.index.json");
        if path.is_file() {
            res.add(path)?;
        } else if single.is_file() {
            res.add(&single)?;
        } else if index.is_file() {
            res.add_sharded(&index)?;
        } else {
            return Err(WeightsError::NotFound { path: path.display().to_string() });
        }
        Ok(res)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn shape(&self, name: &str) -> Result<&[usize], WeightsError> {
        Ok(&self.entry(name)?.shape)
    }

    /// A tensor as it lies in its file.
    pub fn stored(&self, name: &str) -> Option<Stored<'_>> {
        let Entry { file_idx, dtype, shape, range } = self.tensors.get(name)?;
        let bytes = &self.files[*file_idx].bytes[range.clone()];
        Some(Stored { dtype: *dtype, shape, bytes })
    }

    /// Row-major values; BF16 and F16 are widened.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let Entry { file_idx, dtype, range, .. } = self.entry(name)?;
        let Mapped { path, bytes } = &self.files[*file_idx];
        let mut values = Vec::new();
        match widen(*dtype, &bytes[range.clone()], &mut values) {
            true => Ok(values),
            false => Err(WeightsError::Dtype {
                name: name.to_owned(),
                path: path.display().to_string(),
                dtype: format!("{dtype:?}"),
            }),
        }
    }

    /// Row-major ids.
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>, WeightsError> {
        let entry = self.entry(name)?;
        let file = &self.files[entry.file_idx];
        if entry.dtype != Dtype::I64 {
            return Err(WeightsError::Dtype {
                name: name.to_owned(),
                path: file.path.display().to_string(),
                dtype: format!("{:?}", entry.dtype),
            });
        }
        let id = |b: &[u8]| b.iter().rev().fold(0u64, |x, byte| x << 8 | u64::from(*byte)) as i64;
        Ok(file.bytes[entry.range.clone()].chunks_exact(8).map(id).collect())
    }

    /// The file or the directory that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn entry(&self, name: &str) -> Result<&Entry, WeightsError> {
        self.tensors.get(name).ok_or_else(|| WeightsError::Missing {
            name: name.to_owned(),
            path: self.path.display().to_string(),
        })
    }

    fn add_sharded(&mut self, index: &Path) -> Result<(), WeightsError> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let bytes = fs::metadata(index).map_err(|error| damaged(index, error))?.len();
        if bytes > MAX_INDEX_BYTES {
            return Err(damaged(index, format!("it has more than {MAX_INDEX_BYTES} bytes")));
        }
        let text = fs::read(index).map_err(|error| damaged(index, error))?;
        let Index { weight_map } =
            serde_json::from_slice(&text).map_err(|error| damaged(index, error))?;
        for shard in weight_map.values().collect::<BTreeSet<_>>() {
            // A path could lead out of the directory.
            if Path::new(shard).file_name() != Some(shard.as_ref()) {
                return Err(damaged(index, format!("`{shard}` is not a plain file name")));
            }
            self.add(&index.with_file_name(shard))?;
        }
        for (name, shard) in &weight_map {
            let file = self.tensors.get(name).map(|entry| &self.files[entry.file_idx].path);
            if file.is_none_or(|path| path.file_name() != Some(shard.as_ref())) {
                let path = index.with_file_name(shard).display().to_string();
                return Err(WeightsError::Missing { name: name.clone(), path });
            }
        }
        // Files of two checkpoints that were mixed up show in this, whatever their values.
        match self.tensors.keys().find(|name| !weight_map.contains_key(*name)) {
            Some(name) => Err(damaged(index, format!("it does not list tensor `{name}`"))),
            None => Ok(()),
        }
    }

    fn add(&mut self, path: &Path) -> Result<(), WeightsError> {
        let file = File::open(path).map_err(|error| damaged(path, error))?;
        // SAFETY: the map is read only and lives as long as the slices taken from it. Its bytes
        // change only if the file is rewritten in place, which no writer of checkpoints does:
        // they write another file and rename it.
        let bytes = unsafe { memmap2::Mmap::map(&file) }.map_err(|error| damaged(path, error))?;
        // Checks the header's size, that ranges touch without overlap, that each is as long as
        // its shape says, and that the last one ends with the file.
        let (n_header, header) =
            SafeTensors::read_metadata(&bytes).map_err(|error| damaged(path, error))?;
        let file_idx = self.files.len();
        for (name, info) in header.tensors() {
            let (start, end) = info.data_offsets;
            let range = 8 + n_header + start..8 + n_header + end;
            if bytes.get(range.clone()).is_none() {
                return Err(damaged(path, format!("tensor `{name}` lies outside the file")));
            }
            let entry = Entry { file_idx, dtype: info.dtype, shape: info.shape.clone(), range };
            if self.tensors.insert(name.clone(), entry).is_some() {
                return Err(damaged(path, format!("tensor `{name}` is in two files")));
            }
        }
        self.files.push(Mapped { path: path.to_owned(), bytes });
        Ok(())
    }
}

fn damaged(path: &Path, reason: impl ToString) -> WeightsError {
    WeightsError::Damaged { path: path.display().to_string(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests;
