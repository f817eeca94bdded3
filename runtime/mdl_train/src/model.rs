//! A model that is ready to be compiled: its text, its configuration, and where its weights come
//! from.

use crate::checkpoint;
use crate::weights::{Weights, WeightsError};
use mdl_check::config::{Config, to_json};
use mdl_check::entry::EntryOptions;
use mdl_driver::embedded;
use mdl_driver::front::Front;
use mdl_driver::pipeline::{Bug, Purpose, Trace, run};
use mdl_ir::graph::{Graph, Param};
use mdl_ir::interp::{Env, mix};
use mdl_ir::tensor_type::Type;
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
        "error[E0952]: this needs {bytes} bytes of memory and {there} are free; ask for fewer or \
         shorter sequences"
    )]
    Memory { bytes: u64, there: u64 },
    #[error("error[{code}]: {0}", code = .0.code())]
    Weights(#[from] WeightsError),
    #[error("error[{code}]: {0}", code = .0.code())]
    Checkpoint(#[from] checkpoint::CheckpointError),
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
        let json = std::fs::read_to_string(&path).map_err(|e| ModelError::File(path, e))?;
        let json: serde_json::Value = serde_json::from_str(&json)
            .map_err(|e| ModelError::Form(format!("config.json is not JSON: {e}")))?;
        let own = dir.join("model.mdl");
        let (name, text) = if own.exists() {
            source(&own.display().to_string())?
        } else {
            let architecture = json["architectures"][0].as_str().unwrap_or("");
            embedded_for(architecture)?
        };
        let mut front = front(&name, &text);
        let config = if front.failed() { None } else { front.config_json(&json) };
        Model::bound(front, config, text, name)
    }

    fn bound(
        front: Front,
        config: Option<Rc<Config>>,
        text: String,
        name: String,
    ) -> Result<Model, ModelError> {
        match config {
            Some(config) if !front.failed() => Ok(Model { front, config, text, name }),
            _ => Err(ModelError::Source(front.report(false))),
        }
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
            Some(graph) if !self.front.failed() => Ok(graph),
            _ => Err(ModelError::Source(self.front.report(false))),
        }
    }

    /// A size of the configuration, `vocab` say.
    pub fn size(&self, field: &str) -> Option<u64> {
        match self.config.fields.get(field)? {
            mdl_check::config::Setting::Size(s) => s.value(),
            _ => None,
        }
    }

    /// The configuration as the ecosystem's `config.json`.
    pub fn config_json(&mut self) -> serde_json::Map<String, serde_json::Value> {
        let mut json = to_json(&self.front.program, &self.config);
        let name = self.front.model().map_or(String::new(), |m| m.name);
        let family = name.trim_end_matches("ForCausalLM").to_lowercase();
        json.insert("architectures".into(), serde_json::json!([name]));
        json.insert("model_type".into(), serde_json::json!(family));
        json.insert("torch_dtype".into(), serde_json::json!("float32"));
        json.insert("hidden_act".into(), serde_json::json!("silu"));
        json
    }
}

/// The embedded model file whose model has this name.
fn embedded_for(architecture: &str) -> Result<(String, String), ModelError> {
    for (name, text) in embedded::MODELS {
        if text.contains(&format!("model {architecture}(")) {
            return Ok((format!("models/{name}.mdl"), text.to_string()));
        }
    }
    let message = format!("no embedded model is called `{architecture}` (config.json names it)");
    Err(ModelError::Form(message))
}

/// One parameter's values, stacked: read from a checkpoint under any of its names.
pub fn read_param(weights: &Weights, param: &Param) -> Result<Vec<f32>, ModelError> {
    let mut out = Vec::with_capacity(param.ty.elements() as usize);
    let known: Vec<&str> = weights.names().collect();
    for (name, _) in param.stored_tensors() {
        let name = if known.contains(&name.as_str()) {
            name
        } else {
            let other = param.also_stored.iter().find(|n| known.contains(&n.as_str()));
            other.cloned().unwrap_or(name)
        };
        let shape = weights.shape(&name)?;
        let ty = param.tensor_type();
        if !shapes_agree(shape, &ty) {
            let message = format!("`{name}` has shape {shape:?}, the model wants {ty}");
            return Err(ModelError::Shape(message));
        }
        out.extend(weights.read_f32(&name)?);
    }
    Ok(out)
}

/// Does a stored shape merge adjacent axes of the type, and nothing else?
pub fn shapes_agree(shape: &[usize], ty: &Type) -> bool {
    let mut axes = ty.axes.iter().map(|a| a.size);
    for dim in shape {
        let mut product = 1;
        while product < *dim as u64 {
            let Some(size) = axes.next() else {
                return false;
            };
            product *= size;
        }
        if product != *dim as u64 {
            return false;
        }
    }
    axes.all(|size| size == 1)
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

/// Initial values of a parameter: a function of the seed, the stored name and the element alone.
pub fn initial(param: &Param, seed: u64) -> Vec<f32> {
    let mut out = Vec::with_capacity(param.ty.elements() as usize);
    let zeros = param.tensor_type().elements() as usize;
    for (name, _) in param.stored_tensors() {
        let Some(body) = &param.init else {
            out.extend(std::iter::repeat_n(0.0f32, zeros));
            continue;
        };
        let key = name.bytes().fold(mix(seed), |key, b| mix(key ^ u64::from(b)));
        let env = Env { random_key: key };
        let values = mdl_ir::interp::run(body, Vec::new(), &env);
        out.extend(values[0].data.iter().map(|x| *x as f32));
    }
    out
}
