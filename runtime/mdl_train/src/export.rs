//! Writes a checkpoint as a directory that other tools of the Hugging Face ecosystem load.
//!
//! The directory is written under another name beside its place and renamed when it is whole, so
//! that nobody ever sees half of it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mdl_driver::embedded;
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::checkpoint::{CheckpointError, model_directory};
use crate::floats::{ecosystem_name, narrow, widen};
use crate::import::ModelTensors;
use crate::model::{Model, ModelError};
use crate::save::{sync_directory, write_file};
use crate::tensor_file::{Tensor, write_tensors};
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;

/// Files that go along as they are, where the checkpoint has them.
const COPIED: [&str; 6] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
];

/// What the caller decides about an export.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The numbers' type; without one, each tensor keeps its own.
    pub dtype: Option<Dtype>,
    /// Bytes of tensors in one file, where a single one is not larger.
    pub shard_bytes: u64,
    /// Replace a model's directory that is there already.
    pub force: bool,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Exported {
    pub tensors: usize,
    pub shards: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// What the receiver should know.
    pub notes: Vec<String>,
}

/// Writes `to` from `from`: a step of ours, a directory of steps, or a Hugging Face directory.
/// Everything is checked before anything is written.
pub fn export(from: &Path, to: &Path, options: &Options) -> Result<Exported, ModelError> {
    let source = model_directory(from)?;
    let old = may_replace(&source, to, options.force)?;
    let mut model = Model::of_checkpoint(&source)?;
    let params = model.params()?;
    let weights = Weights::open(&source)?;
    let mut found = ModelTensors::find(&weights, &params)?;
    found.places.sort_by_cached_key(|place| in_order(&place.name));
    // Only whether it can be read: a tokenizer may well have more ids than the model.
    let tokenizer = source.join("tokenizer.json");
    if tokenizer.exists() {
        Tokenizer::open(&tokenizer.display().to_string(), usize::MAX)?;
    }
    let contents = Contents::new(&found, options);
    let mut config = model.config_json();
    for key in ["dtype", "torch_dtype"] {
        config.insert(key.into(), json!(ecosystem_name(contents.main_dtype())));
    }
    // Readers want one; what published Llama models without a longer one have.
    config.entry("max_position_embeddings").or_insert(json!(2048));
    let failed = |source| CheckpointError::Write { path: to.display().to_string(), source };
    let temporary = beside(to, "tmp")?;
    let _ = fs::remove_dir_all(&temporary);
    let written = contents
        .write(&temporary)
        .and_then(|()| write_others(&temporary, &source, &config, &model))
        .and_then(|()| put_in_place(&temporary, to, old));
    if let Err(source) = written {
        let _ = fs::remove_dir_all(&temporary);
        return Err(failed(source).into());
    }
    Ok(Exported {
        tensors: contents.tensors.len(),
        shards: contents.shards.len(),
        bytes: contents.tensors.iter().map(|t| t.bytes() as u64).sum(),
        notes: notes(&source, &config, &model),
    })
}

/// Whether there is a directory to make way, or why it must not.
fn may_replace(source: &Path, to: &Path, force: bool) -> Result<bool, ModelError> {
    let refused = |why: &str| {
        let message = format!("`{}` {why}", to.display());
        Err(ModelError::Asked(message))
    };
    let empty = fs::read_dir(to).map(|mut entries| entries.next().is_none());
    match empty {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(ModelError::File(to.into(), e)),
        Ok(true) => return Ok(false),
        Ok(false) if !force => {
            return refused("is not empty; name another directory, or replace it with --force");
        }
        Ok(false) => {}
    }
    if !to.join("config.json").is_file() {
        return refused("holds something else than a model, which --force does not replace");
    }
    match (fs::canonicalize(source), fs::canonicalize(to)) {
        (Ok(source), Ok(to)) if source.starts_with(&to) => {
            refused("holds the checkpoint that is to be exported; name another directory")
        }
        _ => Ok(true),
    }
}

/// A name beside a directory that no other process uses.
fn beside(to: &Path, what: &str) -> Result<PathBuf, ModelError> {
    let Some(name) = to.file_name() else {
        let message = format!("`{}` does not name a new directory", to.display());
        return Err(ModelError::Asked(message));
    };
    let name = format!("{}.{what}-{}", name.to_string_lossy(), std::process::id());
    Ok(to.with_file_name(name))
}

/// Layers in the order of their numbers: 2 before 10.
fn in_order(name: &str) -> Vec<(u64, String)> {
    name.split('.').map(|part| (part.parse().unwrap_or(u64::MAX), part.to_owned())).collect()
}

/// Tensors, and which of them share a file.
struct Contents<'w> {
    found: &'w ModelTensors<'w>,
    tensors: Vec<Tensor<'w>>,
    shards: Vec<std::ops::Range<usize>>,
}

impl<'w> Contents<'w> {
    fn new(found: &'w ModelTensors<'w>, options: &Options) -> Self {
        let tensors: Vec<Tensor> = found
            .places
            .iter()
            .map(|place| {
                let stored = found.stored(place);
                let dtype = options.dtype.unwrap_or(stored.dtype);
                Tensor { name: place.name.clone(), dtype, shape: stored.shape }
            })
            .collect();
        let (mut shards, mut start, mut bytes) = (Vec::new(), 0, 0);
        for (i, tensor) in tensors.iter().enumerate() {
            let more = tensor.bytes() as u64;
            if i > start && bytes + more > options.shard_bytes {
                shards.push(start..i);
                (start, bytes) = (i, 0);
            }
            bytes += more;
        }
        shards.push(start..tensors.len());
        Contents { found, tensors, shards }
    }

    /// The type of most of the bytes.
    fn main_dtype(&self) -> Dtype {
        let share = |dtype: &Dtype| -> usize {
            self.tensors.iter().filter(|t| t.dtype == *dtype).map(Tensor::bytes).sum()
        };
        let types = [Dtype::F32, Dtype::BF16, Dtype::F16];
        types.into_iter().max_by_key(share).unwrap_or(Dtype::F32)
    }

    fn file(&self, shard: usize) -> String {
        match self.shards.len() {
            1 => "model.safetensors".to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", shard + 1),
        }
    }

    fn write(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir(dir)?;
        for (i, shard) in self.shards.iter().enumerate() {
            let tensors = &self.tensors[shard.clone()];
            let path = dir.join(self.file(i));
            write_file(&path, &mut |out| {
                write_tensors(out, tensors, |t| self.values(shard.start + t))
            })?;
        }
        if self.shards.len() == 1 {
            return Ok(());
        }
        let shards = self.shards.iter().enumerate();
        let map: BTreeMap<&str, String> = shards
            .flat_map(|(i, shard)| shard.clone().map(move |t| (i, t)))
            .map(|(i, t)| (self.tensors[t].name.as_str(), self.file(i)))
            .collect();
        let bytes: usize = self.tensors.iter().map(Tensor::bytes).sum();
        let index = json!({"metadata": {"total_size": bytes}, "weight_map": map});
        write_json(&dir.join("model.safetensors.index.json"), &index)
    }

    /// A tensor's values in its type.
    fn values(&self, i: usize) -> io::Result<Cow<'w, [u8]>> {
        let stored = self.found.stored(&self.found.places[i]);
        let Tensor { name, dtype, .. } = &self.tensors[i];
        if stored.dtype == *dtype {
            return Ok(Cow::Borrowed(stored.bytes));
        }
        let mut values = Vec::new();
        widen(stored.dtype, stored.bytes, &mut values);
        narrow(*dtype, &values).map(Cow::Owned).ok_or_else(|| {
            let message = format!("`{name}` has values that are too large for {dtype:?}");
            io::Error::other(message)
        })
    }
}

fn write_json(path: &Path, value: &Value) -> io::Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    write_file(path, &mut |out| out.write_all(text.as_bytes())).map(|_| ())
}

/// Everything beside the weights.
fn write_others(
    dir: &Path,
    source: &Path,
    config: &Map<String, Value>,
    model: &Model,
) -> io::Result<()> {
    write_json(&dir.join("config.json"), &Value::Object(config.clone()))?;
    for name in COPIED.iter().filter(|name| source.join(name).is_file()) {
        let bytes = fs::read(source.join(name))?;
        write_file(&dir.join(name), &mut |out| out.write_all(&bytes))?;
    }
    if !source.join("generation_config.json").is_file() {
        let ids = ["bos_token_id", "eos_token_id", "pad_token_id"];
        let known = ids.iter().filter_map(|key| Some((key.to_string(), config.get(*key)?.clone())));
        let mut generation: Map<String, Value> = known.filter(|(_, id)| !id.is_null()).collect();
        generation.insert("_from_model_config".into(), json!(true));
        write_json(&dir.join("generation_config.json"), &Value::Object(generation))?;
    }
    if !is_embedded(model) {
        let root = ("model.mdl".to_owned(), model.text.clone());
        for (name, text) in model.imports().iter().chain([&root]) {
            let path = dir.join(name);
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            write_file(&path, &mut |out| out.write_all(text.as_bytes()))?;
        }
    }
    sync_directory(dir)
}

/// Is this model's text one that every reader of ours has?
fn is_embedded(model: &Model) -> bool {
    embedded::MODELS.iter().any(|(_, text)| *text == model.text)
}

fn put_in_place(temporary: &Path, to: &Path, old: bool) -> io::Result<()> {
    let aside = temporary.with_extension(format!("old-{}", std::process::id()));
    if old {
        fs::rename(to, &aside)?;
    }
    if let Err(error) = fs::rename(temporary, to) {
        if old {
            fs::rename(&aside, to)?;
        }
        return Err(error);
    }
    if old {
        // It has lost its place; what cannot be removed only takes room.
        let _ = fs::remove_dir_all(&aside);
    }
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty());
    sync_directory(parent.unwrap_or(Path::new(".")))
}

fn notes(source: &Path, config: &Map<String, Value>, model: &Model) -> Vec<String> {
    let mut notes = Vec::new();
    if !source.join("tokenizer.json").is_file() {
        notes.push("the checkpoint has no tokenizer.json, so none was written".to_owned());
    }
    if !is_embedded(model) {
        let name = config["architectures"][0].as_str().unwrap_or_default().to_owned();
        notes.push(format!(
            "the checkpoint has a model file of its own, which went along; other tools compute \
             what they know as `{name}`"
        ));
    }
    notes
}
