//! Reads tensors from `model.safetensors`, one file or several with an index.
//!
//! Files are mapped, not read: opening costs nothing but the header, and each tensor is
//! converted to f32 when it is asked for. The header comes from anywhere, so it is compared
//! with the file's length, and its ranges with each other, before any of them is used.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

const MAX_INDEX_BYTES: u64 = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("`{path}` has no model.safetensors; give a directory that holds one, or the file")]
    NotFound { path: String },
    #[error("`{path}` is damaged or no safetensors file: {reason}; copy it again from its source")]
    Damaged { path: String, reason: String },
    #[error("tensor `{name}` is not in `{path}`; is this a checkpoint of the same model?")]
    Missing { name: String, path: String },
    #[error(
        "`{path}` has {} tensors that the model does not: {}; is it of the same model?",
        names.len(), names.iter().take(5).map(|it| format!("`{it}`")).collect::<Vec<_>>().join(", ")
    )]
    Extra { names: Vec<String>, path: String },
    #[error("tensor `{name}` in `{path}` has shape {found:?}, and {expected:?} in the model")]
    Shape { name: String, path: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("tensor `{name}` in `{path}` is {dtype}; convert it to F32, BF16 or F16")]
    Dtype { name: String, path: String, dtype: String },
}

impl WeightsError {
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "E0921",
            Self::Damaged { .. } => "E0922",
            Self::Missing { .. } | Self::Extra { .. } | Self::Shape { .. } | Self::Dtype { .. } => {
                "E0923"
            }
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

    /// Row-major values; BF16 and F16 are widened.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let Entry { file_idx, dtype, range, .. } = self.entry(name)?;
        let bytes = &self.files[*file_idx].bytes[range.clone()];
        match dtype {
            Dtype::F32 => Ok(bytes.chunks_exact(4).map(f32_of).collect()),
            Dtype::BF16 => Ok(bytes.chunks_exact(2).map(bf16_of).collect()),
            Dtype::F16 => Ok(bytes.chunks_exact(2).map(f16_of).collect()),
            other => Err(WeightsError::Dtype {
                name: name.to_owned(),
                path: self.files[*file_idx].path.display().to_string(),
                dtype: format!("{other:?}"),
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

    /// Whether every tensor that the model has is here in its shape, and nothing else is.
    ///
    /// Two leftovers that published checkpoints hold are let be: tables of rotary frequencies,
    /// and the head of a model whose head is its embedding.
    pub fn check<'a>(
        &self,
        expected: impl IntoIterator<Item = (&'a str, &'a [usize])>,
    ) -> Result<(), WeightsError> {
        let mut known = BTreeSet::new();
        for (name, shape) in expected {
            let found = self.shape(name)?;
            if found != shape {
                return Err(WeightsError::Shape {
                    name: name.to_owned(),
                    path: self.path.display().to_string(),
                    found: found.to_vec(),
                    expected: shape.to_vec(),
                });
            }
            known.insert(name);
        }
        let leftover =
            |name: &str| name == "lm_head.weight" || name.ends_with("rotary_emb.inv_freq");
        let extra = self.names().filter(|name| !known.contains(name) && !leftover(name));
        let names: Vec<String> = extra.map(str::to_owned).collect();
        if !names.is_empty() {
            return Err(WeightsError::Extra { names, path: self.path.display().to_string() });
        }
        Ok(())
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
        Ok(())
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

fn f32_of(bytes: &[u8]) -> f32 {
    f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn bf16_of(bytes: &[u8]) -> f32 {
    f32::from_le_bytes([0, 0, bytes[0], bytes[1]])
}

fn f16_of(bytes: &[u8]) -> f32 {
    let bits = u32::from(u16::from_le_bytes([bytes[0], bytes[1]]));
    let sign = (bits & 0x8000) << 16;
    let (exponent, mantissa) = (bits >> 10 & 0x1f, bits & 0x3ff);
    let magnitude = match exponent {
        0 => (mantissa as f32 * 2f32.powi(-24)).to_bits(),
        31 => 0x7f80_0000 | mantissa << 13,
        _ => (exponent + 112) << 23 | mantissa << 13,
    };
    f32::from_bits(sign | magnitude)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("mdl_weights_{name}_{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("the temporary directory is writable");
        path
    }

    fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    fn put(path: PathBuf, bytes: &[u8]) {
        fs::write(path, bytes).expect("the temporary directory is writable");
    }

    #[test]
    fn narrow_types_are_widened() {
        let dir = directory("widen");
        let header = r#"{"b":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},
            "h":{"dtype":"F16","shape":[2,3],"data_offsets":[4,16]},
            "i":{"dtype":"I8","shape":[1],"data_offsets":[16,17]}}"#;
        let halves: [u16; 8] = [0xbfc0, 0x7f80, 0x3c00, 0xc000, 0x0001, 0x7bff, 0xfc00, 0x0400];
        let mut data: Vec<u8> = halves.iter().flat_map(|it| it.to_le_bytes()).collect();
        data.push(1);
        put(dir.join("model.safetensors"), &safetensors(header, &data));
        let weights = Weights::open(&dir).expect("the file is whole");
        assert_eq!(weights.names().collect::<Vec<_>>(), ["b", "h", "i"]);
        assert_eq!(weights.shape("h").ok(), Some([2, 3].as_slice()));
        assert_eq!(weights.read_f32("b").ok(), Some(vec![-1.5, f32::INFINITY]));
        let small = 2f32.powi(-24);
        let h = vec![1.0, -2.0, small, 65504.0, f32::NEG_INFINITY, 2f32.powi(-14)];
        assert_eq!(weights.read_f32("h").ok(), Some(h));
        assert_eq!(weights.read_f32("i").expect_err("integers").code(), "E0923");
        assert_eq!(weights.read_f32("none").expect_err("missing").code(), "E0923");
    }

    #[test]
    fn headers_that_lie_are_errors() {
        let dir = directory("lies");
        let path = dir.join("model.safetensors");
        let one = |shape: &str, offsets: &str| {
            format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        let two = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
            "b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
        let files = [
            safetensors(&one("[2]", "[0,8]"), &[0; 4]),
            safetensors(&one("[3]", "[0,8]"), &[0; 8]),
            safetensors(&one("[2]", "[8,0]"), &[0; 8]),
            safetensors(&one("[4294967296,4294967296,4]", "[0,0]"), &[]),
            safetensors(&one("[2]", "[0,18446744073709551615]"), &[0; 8]),
            safetensors(two, &[0; 12]),
            safetensors(&"[".repeat(10_000), &[]),
            u64::MAX.to_le_bytes().to_vec(),
            vec![],
            vec![1, 2, 3],
        ];
        for (i, bytes) in files.iter().enumerate() {
            put(path.clone(), bytes);
            let error = Weights::open(&dir).expect_err("the header lies");
            assert_eq!(error.code(), "E0922", "file {i}: {error}");
        }
        assert_eq!(Weights::open(&dir.join("none")).expect_err("nothing").code(), "E0921");
    }

    #[test]
    fn shards_are_found_through_the_index() {
        let dir = directory("shards");
        for (file, name, value) in [("x.safetensors", "a", 1f32), ("y.safetensors", "b", 2.0)] {
            let header =
                format!(r#"{{"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
            put(dir.join(file), &safetensors(&header, &value.to_le_bytes()));
        }
        let index = dir.join("model.safetensors.index.json");
        put(index.clone(), br#"{"weight_map":{"a":"x.safetensors","b":"y.safetensors"}}"#);
        let weights = Weights::open(&dir).expect("both shards are there");
        assert_eq!(weights.read_f32("b").ok(), Some(vec![2.0]));
        let one: &[usize] = &[1];
        assert!(weights.check([("a", one), ("b", one)]).is_ok());
        assert_eq!(weights.check([("a", one)]).expect_err("b is extra").code(), "E0923");
        assert!(weights.check([("a", one), ("b", &[2])]).is_err());
        put(index.clone(), br#"{"weight_map":{"a":"y.safetensors"}}"#);
        assert_eq!(Weights::open(&dir).expect_err("wrong shard").code(), "E0923");
        put(index, br#"{"weight_map":{"a":"../x.safetensors"}}"#);
        assert_eq!(Weights::open(&dir).expect_err("leads out").code(), "E0922");
    }
}
