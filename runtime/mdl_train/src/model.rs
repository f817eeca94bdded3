//! A model that is ready to be compiled: its text, its configuration, and where its weights come
//! from.

use crate::checkpoint;
use crate::resident;
use crate::tokenizer::TokenizerError;
use crate::weights::WeightsError;
use mdl_check::config::Config;
use mdl_check::config_json::to_json;
use mdl_check::entry::EntryOptions;
use mdl_driver::embedded;
use mdl_driver::front::Front;
use mdl_driver::pipeline::{Bug, Purpose, Trace, run};
use mdl_ir::graph::{Graph, Param};
use mdl_ir::kernel::KernelSpec;
use mdl_ir::reach::{Reach, reach};
use mdl_kernels::{Class, Device};
use mdl_passes::executable::Executable;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::rc::Rc;

#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Diagnostics, rendered.
    #[error("{0}")]
    Source(String),
    #[error("error[E0921]: `{0}` cannot be read: {1}")]
    File(PathBuf, std::io::Error),
    #[error("error[E0921]: {0}")]
    Form(String),
    /// What was asked for does not go together.
    #[error("error[E0941]: {0}")]
    Asked(String),
    #[error("error[E0923]: {0}")]
    Shape(String),
    #[error(
        "error[E0952]: this needs {} of memory and {} are free; {way_out}", gib(*.bytes),
        gib(*.there)
    )]
    Memory { bytes: u64, there: u64, way_out: &'static str },
    #[error("error[{code}]: {0}", code = .0.code())]
    Weights(#[from] WeightsError),
    #[error("error[{code}]: {0}", code = .0.code())]
    Checkpoint(#[from] checkpoint::CheckpointError),
    #[error("error[{code}]: {0}", code = .0.code())]
    Tokenizer(#[from] TokenizerError),
    #[error("error[{code}]: {0}", code = .0.code())]
    State(#[from] mdl_kernels::StateFileError),
    #[error("{0}")]
    Bug(#[from] Bug),
}

#[derive(Debug)]
pub struct Model {
    pub front: Front,
    pub config: Rc<Config>,
    /// Text of the model file.
    pub text: String,
    pub name: String,
    /// The `config.json` that the configuration was bound from, if it was.
    pub json: Option<Map<String, Value>>,
}

/// Reads FILE: a path, or the name of an embedded model.
pub fn source(file: &str) -> Result<(String, String), ModelError> {
    let path = Path::new(file);
    if path.exists() {
        let text = std::fs::read(path).map_err(|e| ModelError::File(path.into(), e))?;
        let text = String::from_utf8(text)
            .map_err(|_| ModelError::Form(format!("`{file}` is not UTF-8 text")))?;
        return Ok((file.to_string(), text));
    }
    let stem = file.trim_end_matches(".mdl").trim_start_matches("models/");
    match embedded::model(stem) {
        Some(text) => Ok((format!("models/{stem}.mdl"), text.to_string())),
        None => {
            let known: Vec<&str> = embedded::MODELS.iter().map(|(n, _)| *n).collect();
            let known = known.join(", ");
            let message = format!("there is no file `{file}`, and embedded models are: {known}");
            Err(ModelError::Asked(message))
        }
    }
}

/// Loads a model file; its imports are embedded modules or files beside it.
pub fn front(name: &str, text: &str) -> Front {
    let folder = Path::new(name).parent().map(Path::to_path_buf).unwrap_or_default();
    Front::load(name, text, &|path: &[String]| {
        // Import paths are identifiers, so nothing outside the folder can be named.
        let file = folder.join(path.join("/")).with_extension("mdl");
        let text = std::fs::read_to_string(&file).ok()?;
        Some((file.display().to_string(), text))
    })
}

impl Model {
    /// FILE with a preset; without one, the only preset there is.
    pub fn open(file: &str, preset: Option<&str>) -> Result<Model, ModelError> {
        let (name, text) = source(file)?;
        let mut front = front(&name, &text);
        let presets = front.presets();
        let preset = match (preset, presets.as_slice()) {
            (Some(p), _) => p.to_string(),
            (None, [one]) => one.clone(),
            (None, many) => {
                let message = format!("choose one of `{name}`: --preset {}", many.join(" | "));
                return Err(ModelError::Asked(message));
            }
        };
        let config = if front.failed() { None } else { front.preset(&preset) };
        Model::bound(front, config, text, name)
    }

    /// The model of a checkpoint directory: its own `model.mdl`, or the embedded model of its
    /// architecture.
    pub fn of_checkpoint(dir: &Path) -> Result<Model, ModelError> {
        let path = dir.join("config.json");
        let json = read_config(&path)?;
        let own = dir.join("model.mdl");
        match own.exists() {
            true => Model::with_config(&own.display().to_string(), json),
            false => Model::with_config(embedded_for(&json, &path)?, json),
        }
    }

    /// FILE with a configuration from a `config.json`.
    pub fn with_config(file: &str, json: Map<String, Value>) -> Result<Model, ModelError> {
        let (name, text) = source(file)?;
        let mut front = front(&name, &text);
        let value = Value::Object(json);
        let config = if front.failed() { None } else { front.config_json(&value) };
        let mut model = Model::bound(front, config, text, name)?;
        model.json = match value {
            Value::Object(json) => Some(json),
            _ => None,
        };
        Ok(model)
    }

    fn bound(
        front: Front,
        config: Option<Rc<Config>>,
        text: String,
        name: String,
    ) -> Result<Model, ModelError> {
        match config {
            // Ids of tokens are checked against this size, never by the kernels.
            Some(config) if !front.failed() && config.field("vocab").is_none() => {
                let message = format!("the configuration of `{name}` has no size `vocab`");
                Err(ModelError::Asked(message + ": call the size of the vocabulary so"))
            }
            Some(config) if !front.failed() => Ok(Model { front, config, text, name, json: None }),
            _ => Err(ModelError::Source(front.report(false))),
        }
    }

    /// The parameters, which are known without a graph.
    pub fn params(&mut self) -> Result<Vec<Param>, ModelError> {
        let config = self.config.clone();
        match self.front.params(&config) {
            Some(params) if !self.front.failed() => Ok(params),
            _ => Err(ModelError::Source(self.front.report(false))),
        }
    }

    /// The files that the model imports, the standard library aside: path beside the model file,
    /// and text. None of them is `model.mdl`, since `model` is a word of the language.
    pub fn imports(&self) -> Vec<(String, String)> {
        let file = |path: String| format!("{}.mdl", path.replace('.', "/"));
        self.front.imports().into_iter().map(|(path, text)| (file(path), text)).collect()
    }

    /// The passes on one entry.
    pub fn compile(
        &mut self,
        entry: &str,
        options: &EntryOptions,
        purpose: &Purpose,
    ) -> Result<Trace, ModelError> {
        let graph = self.graph(entry, options)?;
        Ok(run(graph, &mut self.front, purpose)?)
    }

    pub fn graph(&mut self, entry: &str, options: &EntryOptions) -> Result<Graph, ModelError> {
        let config = self.config.clone();
        match self.front.build(&config, entry, options) {
            Some(graph) if !self.front.failed() => {
                let t = options.sizes.iter().find(|(name, _)| name == "T").map_or(1, |(_, n)| *n);
                within_reach(&graph, t)?;
                Ok(graph)
            }
            _ => Err(ModelError::Source(self.front.report(false))),
        }
    }

    /// A size of the configuration, `vocab` say.
    pub fn size(&self, field: &str) -> Option<u64> {
        match self.config.field(field)? {
            mdl_check::config::Setting::Size(s) => s.value(),
            _ => None,
        }
    }

    /// The configuration as the ecosystem's `config.json`; what the model was bound from comes
    /// along, as far as the model file does not read it.
    pub fn config_json(&mut self) -> Map<String, Value> {
        let mut json = to_json(&self.front.program, &self.config, self.json.as_ref());
        let name = self.front.model().map_or(String::new(), |m| m.name);
        json.entry("model_type").or_insert_with(|| Value::from(model_type(&name)));
        json.entry("architectures").or_insert_with(|| serde_json::json!([name]));
        for (key, value) in usual() {
            json.entry(key).or_insert(value);
        }
        json
    }
}

/// Refuses kernels that a device does not have, and memory that it does not give in one piece.
pub fn within_device(device: &Device, specs: &[KernelSpec], needed: u64) -> Result<(), ModelError> {
    if let Some(why) = specs.iter().find_map(|spec| device.refusal(spec)) {
        return Err(ModelError::Asked(why));
    }
    let most = device.largest_arena();
    if needed > most {
        let message = format!(
            "{needed} bytes are needed in one piece, and this device gives {most} at most; take \
             fewer or shorter sequences at a time, or another --device"
        );
        return Err(ModelError::Asked(message));
    }
    Ok(())
}

/// Refuses what cannot be in the host's memory, where the system says how much is free: an
/// allocation that is refused, or a process that is stopped, would say nothing of what to do.
pub fn within_memory(bytes: u64, way_out: &'static str) -> Result<(), ModelError> {
    match resident::available() {
        Some(there) if bytes > there => Err(ModelError::Memory { bytes, there, way_out }),
        _ => Ok(()),
    }
}

/// The same for an executable that is about to be loaded: a CPU's arenas are the host's memory.
pub fn has_room(
    device: &Device,
    executable: &Executable,
    way_out: &'static str,
) -> Result<(), ModelError> {
    match device.class() {
        Class::Cpu => within_memory(executable.state_bytes + executable.work_bytes, way_out),
        Class::Cuda | Class::Wgpu => Ok(()),
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

/// Refuses sequences of `t` tokens where a table of positions is shorter.
pub fn within_reach(graph: &Graph, t: u64) -> Result<(), ModelError> {
    match reach(graph, "T") {
        Some(Reach { table, longest }) if longest < t => Err(ModelError::Asked(format!(
            "{t} tokens do not fit: the table `{table}` has positions for {longest}"
        ))),
        _ => Ok(()),
    }
}

/// Values that readers of a `config.json` want and that say nothing about what is computed, as
/// published Llama models have them.
fn usual() -> [(&'static str, Value); 3] {
    [
        ("attention_dropout", Value::from(0.0)),
        ("initializer_range", Value::from(0.02)),
        ("use_cache", Value::from(true)),
    ]
}

/// `llama` for `LlamaForCausalLM`: the ecosystem names its families and their models so.
fn model_type(architecture: &str) -> String {
    architecture.trim_end_matches("ForCausalLM").to_lowercase()
}

/// Reads a `config.json`.
pub fn read_config(path: &Path) -> Result<Map<String, Value>, ModelError> {
    let bytes = std::fs::read(path).map_err(|e| ModelError::File(path.into(), e))?;
    let form = |reason: String| ModelError::Form(format!("`{}` {reason}", path.display()));
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(json)) => Ok(json),
        Ok(_) => Err(form("is no JSON object".into())),
        Err(e) => Err(form(format!("is not JSON: {e}"))),
    }
}

/// The name of the embedded model file for a `config.json`: that of its first architecture, or of
/// its `model_type` where it names no architecture.
fn embedded_for(json: &Map<String, Value>, path: &Path) -> Result<&'static str, ModelError> {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let architecture = text(json.get("architectures").and_then(|list| list.get(0)));
    let family = text(json.get("model_type"));
    let known: Vec<(&str, &str)> = embedded::MODELS
        .iter()
        .filter_map(|(file, text)| Some((*file, model_name(text)?)))
        .collect();
    let found = known.iter().find(|(_, name)| match (&architecture, &family) {
        (Some(wanted), _) => name == wanted,
        (None, Some(family)) => model_type(name) == *family,
        (None, None) => false,
    });
    if let Some((file, _)) = found {
        return Ok(file);
    }
    let names: Vec<&str> = known.iter().map(|(_, name)| *name).collect();
    let asked = match (architecture, family) {
        (Some(name), _) => format!("architecture `{name}`"),
        (None, Some(family)) => format!("model type `{family}`"),
        (None, None) => "no architecture".into(),
    };
    let message = format!(
        "`{}` names {asked}, and embedded models are: {}; put a model.mdl beside it for another",
        path.display(),
        names.join(", ")
    );
    Err(ModelError::Form(message))
}

/// The name behind the first `model` of a model file.
fn model_name(text: &str) -> Option<&str> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("model "));
    lines.next()?.split('(').next()
}

/// The shape under which a parameter's tensors are stored: the first axes that make up the outer
/// dimension merged, then the others. Weights have two dimensions at most in this form: [out, in].
pub fn stored_shape(param: &Param, input_axes: usize) -> Vec<usize> {
    let sizes: Vec<usize> = param.tensor_type().axes.iter().map(|a| a.size as usize).collect();
    if sizes.len() <= 1 {
        return sizes;
    }
    let split = sizes.len() - input_axes.clamp(1, sizes.len() - 1);
    vec![sizes[..split].iter().product(), sizes[split..].iter().product()]
}
