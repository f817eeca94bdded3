//! A model file beside a checkpoint: in what they differ, and what the model file does not look at.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use mdl_check::config::{Config, Setting};
use serde_json::{Map, Value};

use crate::checkpoint::model_directory;
use crate::import::{Difference, differences};
use crate::model::{Model, ModelError, read_config};
use crate::weights::Weights;

/// Keys of a `config.json` that say nothing about what is computed.
const SILENT: [&str; 19] = [
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "auto_map",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "initializer_range",
    "max_position_embeddings",
    "model_type",
    "pad_token_id",
    "pretraining_tp",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "unk_token_id",
    "use_cache",
    "vocab_file",
];

/// What a comparison found.
#[derive(Clone, Debug)]
pub struct Against {
    /// Trained numbers of the model with this configuration; a tied weight counts once.
    pub parameters: u64,
    /// Tensors of the checkpoint, if there are weights beside the `config.json`.
    pub tensors: Option<usize>,
    pub differences: Vec<Difference>,
    /// Values of `config.json` that the model file does not read and that may matter.
    pub unread: Vec<String>,
}

/// FILE, bound from the `config.json` at `path` or in the directory there, beside the directory's
/// weights.
pub fn against(file: &str, path: &Path) -> Result<Against, ModelError> {
    let (json, dir) = config_and_weights(path)?;
    let mut model = Model::with_config(file, json.clone())?;
    let params = model.params()?;
    let reads = model.front.config_reads();
    let mut unread = Vec::new();
    not_read(&json, "", &reads, &mut unread);
    let weights = dir.map(|dir| Weights::open(&dir)).transpose()?;
    Ok(Against {
        parameters: params.iter().map(|p| p.ty.elements()).sum(),
        tensors: weights.as_ref().map(|w| w.names().count()),
        differences: weights.map_or(Vec::new(), |w| differences(&w, &params)),
        unread,
    })
}

/// Fields that a preset of FILE binds otherwise than the `config.json` does: name, the preset's
/// value, the other.
pub fn preset_against(
    file: &str,
    preset: &str,
    path: &Path,
) -> Result<Vec<(String, String, String)>, ModelError> {
    let (json, _) = config_and_weights(path)?;
    let bound = values(&Model::with_config(file, json)?.config);
    let preset = values(&Model::open(file, Some(preset))?.config);
    let pairs = preset.into_iter().map(|(name, value)| {
        let other = bound.get(&name).cloned().unwrap_or_default();
        (name, value, other)
    });
    Ok(pairs.filter(|(_, value, other)| value != other).collect())
}

/// The configuration, and the directory of the weights if there are some.
fn config_and_weights(
    path: &Path,
) -> Result<(Map<String, Value>, Option<std::path::PathBuf>), ModelError> {
    if path.is_file() {
        return Ok((read_config(path)?, None));
    }
    let config = path.join("config.json");
    match model_directory(path) {
        Ok(dir) => Ok((read_config(&dir.join("config.json"))?, Some(dir))),
        Err(_) if config.is_file() && !path.join("manifest.json").exists() => {
            Ok((read_config(&config)?, None))
        }
        Err(error) => Err(error.into()),
    }
}

/// Collects what no path reads. A null, a false and a zero switch something off.
fn not_read(
    json: &Map<String, Value>,
    above: &str,
    reads: &BTreeSet<String>,
    out: &mut Vec<String>,
) {
    for (key, value) in json {
        let path = format!("{above}{key}");
        let inside = format!("{path}.");
        let is_off = value.is_null() || *value == Value::Bool(false) || value.as_f64() == Some(0.0);
        if is_off || reads.contains(&path) || above.is_empty() && SILENT.contains(&key.as_str()) {
            continue;
        }
        match value {
            Value::Object(inner) if reads.iter().any(|read| read.starts_with(&inside)) => {
                not_read(inner, &inside, reads, out);
            }
            _ => out.push(format!("{path} = {value}")),
        }
    }
}

/// Every field by its path.
fn values(config: &Config) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for (name, setting) in &config.fields {
        let value = match setting {
            Setting::Size(s) => s.as_f64().to_string(),
            Setting::Real(x) => x.to_string(),
            Setting::Bool(b) => b.to_string(),
            Setting::Text(text) => format!("\"{text}\""),
            Setting::Config(inner) => {
                let inner = values(inner).into_iter();
                out.extend(inner.map(|(field, value)| (format!("{name}.{field}"), value)));
                continue;
            }
        };
        out.insert(name.to_string(), value);
    }
    out
}
