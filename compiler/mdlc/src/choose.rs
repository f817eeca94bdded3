//! From FILE and the flags of a model to a model: which file, which preset, and what the flags
//! change about it.

use crate::Failure;
use crate::flags::ModelFlags;
use crate::flags::config_values::flag_name;
use mdl_check::config::{Config, Setting};
use mdl_check::config_json::to_json;
use mdl_check::overrides::{Difference, differences, json_paths, least_json, overridden};
use mdl_driver::embedded::MODELS;
use mdl_driver::front::Front;
use mdl_train::model::{Model, front, source};
use serde_json::{Map, Value};
use std::rc::Rc;

/// A model with the preset that it started from.
#[derive(Debug)]
pub struct Chosen {
    pub model: Model,
    /// None where flags alone give every value.
    pub preset: Option<String>,
    /// What flags changed about the preset.
    pub differences: Vec<Difference>,
}

impl Chosen {
    /// The file, with the preset where there is one.
    pub fn name(&self) -> String {
        match &self.preset {
            Some(preset) => format!("{} {preset}", self.model.name),
            None => self.model.name.clone(),
        }
    }

    /// Says on standard error how the model differs from its preset.
    pub fn note_differences(&self) {
        let preset = self.preset.as_deref().unwrap_or("");
        for d in &self.differences {
            let (value, published) = (shown(&d.value), shown(&d.instead_of));
            eprintln!("note: {} is {value}; preset {preset} has {published}", d.field);
        }
    }
}

/// A setting as a model file writes it.
fn shown(setting: &Setting) -> String {
    match setting {
        Setting::Size(size) => size.as_f64().to_string(),
        Setting::Real(x) => x.to_string(),
        Setting::Bool(b) => b.to_string(),
        Setting::Text(text) => format!("\"{text}\""),
        Setting::Config(config) => config.name.to_string(),
    }
}

fn asked(message: impl std::fmt::Display) -> Failure {
    Failure::coded("E0941", message)
}

/// FILE may be left out where a preset or a family is named; the preset may be left out where there
/// is one alone, or where flags say which one is nearest.
pub fn choose(file: Option<&str>, flags: &ModelFlags) -> Result<Chosen, Failure> {
    let (file, generation) = model_file(file, flags)?;
    let (name, text) = source(&file)?;
    let mut front = front(&name, &text);
    let values = &flags.values.given;
    let preset = match front.failed() {
        true => None,
        false => which_preset(&mut front, &name, &generation, flags)?,
    };
    let bound = match &preset {
        _ if front.failed() => None,
        Some(preset) => front.preset(preset),
        None => front.model().and_then(|model| {
            overridden(&front.program, model.config, Map::new(), values, &mut front.sink)
        }),
    };
    let Some(published) = bound.filter(|_| !front.failed()) else {
        return Err(Failure(front.report(false)));
    };
    let config = changed(&mut front, &name, &published, values)?;
    let differences = differences(&config, &published);
    let model = Model { front, config, text, name, json: None };
    Ok(Chosen { model, preset, differences })
}

/// The file, and how the names of the presets that count begin.
fn model_file(file: Option<&str>, flags: &ModelFlags) -> Result<(String, String), Failure> {
    let family = flags.model_type.as_deref().map(family).transpose()?;
    match (file, family, &flags.preset) {
        (Some(file), Some((stem, _)), _)
            if MODELS.iter().any(|(n, _)| *n == file && n != &stem) =>
        {
            let message = format!("FILE is `{file}`, and --model_type is of `{stem}`; drop one");
            Err(asked(message))
        }
        (Some(file), family, _) => {
            Ok((file.to_string(), family.map_or(String::new(), |(_, generation)| generation)))
        }
        (None, Some((stem, generation)), _) => Ok((stem.to_string(), generation)),
        (None, None, Some(preset)) => {
            let has = |text: &str| front("embedded", text).presets().contains(preset);
            let with = MODELS.iter().filter(|(_, text)| has(text)).map(|(name, _)| *name);
            match with.collect::<Vec<_>>().as_slice() {
                [one] => Ok((one.to_string(), String::new())),
                [] => Err(asked(format!("no embedded model has a preset `{preset}`; name a FILE"))),
                many => {
                    let many = many.join(", ");
                    Err(asked(format!("name a FILE: preset `{preset}` is in {many}")))
                }
            }
        }
        (None, None, None) => {
            Err(asked("name a FILE, such as `llama`, or a --preset, or a --model_type with sizes"))
        }
    }
}

/// The embedded model of a family, and how the presets of the generation begin: `llama_v3` is of
/// `llama`, and its presets begin with `llama3_`.
fn family(model_type: &str) -> Result<(&'static str, String), Failure> {
    let mut known = Vec::new();
    for (stem, text) in MODELS {
        known.push((stem.to_string(), *stem, String::new()));
        for preset in front(stem, text).presets() {
            let digits = preset.strip_prefix(stem).and_then(|rest| rest.split('_').next());
            let is_number = |d: &&str| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit());
            if let Some(version) = digits.filter(is_number) {
                let entry = (format!("{stem}_v{version}"), *stem, format!("{stem}{version}_"));
                if !known.contains(&entry) {
                    known.push(entry);
                }
            }
        }
    }
    match known.iter().find(|(name, _, _)| name == model_type) {
        Some((_, stem, generation)) => Ok((stem, generation.clone())),
        None => {
            let known: Vec<&str> = known.iter().map(|(name, _, _)| name.as_str()).collect();
            let known = known.join(", ");
            Err(asked(format!("there is no --model_type `{model_type}`; there are {known}")))
        }
    }
}

/// The preset that is named, or else the nearest one of the generation. None where the file has no
/// presets, so that flags have to give everything.
fn which_preset(
    front: &mut Front,
    name: &str,
    generation: &str,
    flags: &ModelFlags,
) -> Result<Option<String>, Failure> {
    let mut presets = front.presets();
    let named = flags.preset.clone();
    // The presets of a file of one's own may be called anything.
    if presets.iter().any(|preset| preset.starts_with(generation)) {
        let other = named.as_ref().filter(|p| presets.contains(p) && !p.starts_with(generation));
        if let (Some(preset), Some(model_type)) = (other, &flags.model_type) {
            return Err(asked(format!("preset `{preset}` is not of --model_type {model_type}")));
        }
        presets.retain(|preset| preset.starts_with(generation));
    }
    match named {
        Some(preset) => Ok(Some(preset)),
        None => nearest_preset(front, name, &presets, &flags.values.given),
    }
}

/// The preset with the fewest values that differ from those given, and of several the one whose
/// values differ by the smallest factors.
fn nearest_preset(
    front: &mut Front,
    name: &str,
    presets: &[String],
    values: &[(String, Value)],
) -> Result<Option<String>, Failure> {
    match (presets, values) {
        ([one], _) => return Ok(Some(one.clone())),
        ([], []) => return Err(asked(format!("{name} has no presets; give sizes by flags"))),
        (many, []) => {
            let many = many.join(" | ");
            return Err(asked(format!("choose one of `{name}`: --preset {many}")));
        }
        _ => {}
    }
    let mut nearest: Option<((usize, f64), &String)> = None;
    for preset in presets {
        let Some(config) = front.preset(preset) else { continue };
        let distance = distance(&to_json(&front.program, &config, None).into(), values);
        if nearest.is_none_or(|(least, _)| distance < least) {
            nearest = Some((distance, preset));
        }
    }
    if let Some((_, preset)) = nearest {
        eprintln!("note: preset {preset} of {name} is nearest");
    }
    Ok(nearest.map(|(_, preset)| preset.clone()))
}

/// How many of the values differ, and the sum of the logarithms of the factors between them.
fn distance(json: &Value, values: &[(String, Value)]) -> (usize, f64) {
    let mut distance = (0, 0.0);
    for (path, value) in values {
        let published = json.pointer(&format!("/{}", path.replace('.', "/")));
        let numbers = (value.as_f64(), published.and_then(Value::as_f64));
        match numbers {
            (Some(a), Some(b)) if a == b => {}
            (Some(a), Some(b)) => distance = (distance.0 + 1, distance.1 + (a / b).ln().abs()),
            _ if published == Some(value) => {}
            _ => distance.0 += 1,
        }
    }
    distance
}

/// The configuration with the values of flags in it.
fn changed(
    front: &mut Front,
    name: &str,
    published: &Rc<Config>,
    values: &[(String, Value)],
) -> Result<Rc<Config>, Failure> {
    if values.is_empty() {
        return Ok(published.clone());
    }
    let known = json_paths(&front.program, published.item);
    if let Some((path, _)) = values.iter().find(|(p, _)| !known.iter().any(|k| k.path == *p)) {
        let flag = flag_name(path);
        let message = format!("--{flag} is not for {name}: nothing there is from(\"{path}\")");
        return Err(asked(message));
    }
    let Some(json) = least_json(&front.program, published) else {
        let message = format!(
            "flags cannot change this preset: {name} has fields without `from(\"…\")`; change the \
                 preset, or say where config.json has them"
        );
        return Err(asked(message));
    };
    let config = overridden(&front.program, published.item, json, values, &mut front.sink);
    config.ok_or_else(|| {
        let flag = |(path, value): &(String, Value)| format!("--{}={value}", flag_name(path));
        let flags: Vec<String> = values.iter().map(flag).collect();
        let report = front.report(false);
        Failure(format!("{report}note: flags give these values: {}", flags.join(" ")))
    })
}
