//! Compares a checkpoint with a reference: logits, every gradient, every optimizer step, the final
//! parameters.

use crate::import::ModelTensors;
use crate::machine::Machine;
use crate::model::{Model, ModelError, has_room, within_device};
use crate::runner::{Interpreter, Runner};
use crate::weights::Weights;
use mdl_check::entry::{AUXILIARY, EntryOptions};
use mdl_driver::pipeline::{Purpose, finish, state_layout};
use mdl_ir::graph::{Graph, InputRole, OutputRole, Stage};
use mdl_kernels::Device;
use mdl_passes::optimise::Optimizer;
use mdl_passes::request::Precision;
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;

/// ‖difference‖ / ‖reference‖ that f32 arithmetic of these depths may reach: single precision has
/// 6e-8, and sums of some thousand terms through a few layers lose two digits.
pub const TOLERANCE: f64 = 1e-5;
/// A router's loss is a mean of probabilities: one rounding for each of its few operations.
pub const TOLERANCE_ROUTER: f64 = 1e-6;
/// One rounding of f32, for gradients that are zero in exact arithmetic.
pub const TOLERANCE_ZERO: f64 = f32::EPSILON as f64;
/// After a few AdamW steps: the first steps divide gradients by their own size, so errors of tiny
/// gradients are enlarged up to the size of a step.
pub const TOLERANCE_AFTER: f64 = 1e-4;

#[derive(Clone, Debug, Serialize)]
pub struct TensorError {
    pub name: String,
    pub error: f64,
    pub tolerance: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    pub device: String,
    pub tensors: Vec<TensorError>,
    pub passed: bool,
}

impl Comparison {
    pub fn worst(&self) -> Option<&TensorError> {
        let share = |t: &TensorError| {
            if t.error.is_nan() { f64::INFINITY } else { t.error / t.tolerance }
        };
        self.tensors.iter().max_by(|a, b| share(a).total_cmp(&share(b)))
    }
}

/// What the reference holds.
struct Answers {
    weights: Weights,
    ids: Vec<i32>,
    targets: Vec<i32>,
    batch: u64,
    t: u64,
    meta: Option<serde_json::Value>,
}

fn answers(path: &Path) -> Result<Answers, ModelError> {
    let weights = Weights::open(path)?;
    let [batch, t] = weights.shape("input_ids")? else {
        return Err(ModelError::Form("`input_ids` has the shape [B, T]".into()));
    };
    let (batch, t) = (*batch, *t);
    let ids = weights.read_i64("input_ids")?;
    let labels = weights.read_i64("labels")?;
    // Logits at position t predict labels[t + 1]; nothing follows the last position.
    let target = |i: usize| match (i % t + 1 < t).then(|| labels[i + 1]) {
        Some(label) if label >= 0 => label as i32,
        _ => -1,
    };
    let meta = path.parent().map(|d| d.join("meta.json")).filter(|m| m.exists());
    let meta = match meta {
        Some(path) => {
            let text =
                std::fs::read_to_string(&path).map_err(|e| ModelError::File(path.clone(), e))?;
            let json = serde_json::from_str(&text);
            Some(json.map_err(|e| ModelError::Form(format!("meta.json is not JSON: {e}")))?)
        }
        None => None,
    };
    Ok(Answers {
        targets: (0..labels.len()).map(target).collect(),
        ids: ids.iter().map(|x| *x as i32).collect(),
        batch: batch as u64,
        t: t as u64,
        meta,
        weights,
    })
}

/// Runs everything on a device or, without one, in f64.
pub fn compare(
    checkpoint: &Path,
    reference: &Path,
    device: Option<&Arc<Device>>,
) -> Result<Comparison, ModelError> {
    let mut model = Model::of_checkpoint(checkpoint)?;
    let weights = Weights::open(checkpoint)?;
    let answers = answers(reference)?;
    let mut tensors = Vec::new();
    let mut runner = open(&mut model, "logits", &Purpose::Forward, &answers, device)?;
    load(&mut runner.1, &runner.0, &weights)?;
    runner.1.run();
    let logits = read(&runner.1, &OutputRole::Value("logits".into()))?;
    let expected = answers.weights.read_f32("logits")?;
    tensors.push(error("logits", &logits, &expected, TOLERANCE));
    gradients(&mut model, &weights, &answers, device, &mut tensors)?;
    if let Some(meta) = &answers.meta {
        steps(&mut model, &weights, &answers, meta, device, &mut tensors)?;
    }
    let passed = tensors.iter().all(|t| t.error <= t.tolerance);
    let name = |device: &Arc<Device>| format!("{:?}", device.class()).to_lowercase();
    let device = device.map_or("interpreter".to_string(), name);
    Ok(Comparison { device, tensors, passed })
}

fn open(
    model: &mut Model,
    entry: &str,
    purpose: &Purpose,
    answers: &Answers,
    device: Option<&Arc<Device>>,
) -> Result<(Graph, Runner), ModelError> {
    let sizes = vec![("B".to_string(), answers.batch), ("T".to_string(), answers.t)];
    let trace = model.compile(
        entry,
        &EntryOptions { sizes, documents: false, auxiliary: true },
        purpose,
    )?;
    let graph = trace.at(Stage::Placed).unwrap_or(trace.last()).clone();
    let mut runner = match device {
        None => Runner::Interpreter(Box::new(Interpreter::new(graph.clone()))),
        Some(device) => {
            let state = state_layout(trace.last(), purpose);
            let executable = finish(trace.last(), &state, device.target())?;
            let needed = executable.state_bytes.max(executable.work_bytes);
            within_device(device, &executable.specs, needed)?;
            let way_out = "take a smaller model, or answers to a shorter sequence";
            has_room(device, &executable, way_out)?;
            Runner::Machine(Box::new(Machine::new(device.clone(), executable)))
        }
    };
    runner.write_data("tokens", &answers.ids);
    runner.write_data("targets", &answers.targets);
    Ok((graph, runner))
}

fn load(runner: &mut Runner, graph: &Graph, weights: &Weights) -> Result<(), ModelError> {
    ModelTensors::find(weights, &graph.params)?.each(|place, values| {
        runner.write_range(&InputRole::Param(place.param), place.range.start, values);
    });
    Ok(())
}

fn read(runner: &Runner, role: &OutputRole) -> Result<Vec<f64>, ModelError> {
    runner.read(role).ok_or_else(|| ModelError::Form(format!("the graph has no {role:?}")))
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x * x).sum::<f64>().sqrt()
}

fn error(name: &str, got: &[f64], expected: &[f32], tolerance: f64) -> TensorError {
    let difference = norm(got.iter().zip(expected).map(|(g, e)| g - f64::from(*e)));
    let error = if got.len() != expected.len() {
        f64::INFINITY
    } else {
        difference / norm(expected.iter().copied().map(f64::from)).max(f64::MIN_POSITIVE)
    };
    TensorError { name: name.to_string(), error, tolerance }
}

/// A gradient that the reference has as zero but for rounding, `norm` below f32's epsilon of the
/// largest one: a part whose terms cancel, such as the queries of a window of one key. There is
/// nothing to be relative to, so the difference is measured by the largest gradient, whose rounding
/// is what such a part consists of, and may be no more than that.
fn rounding_of_zero(row: &mut TensorError, norm: f64, largest: f64) {
    if norm < TOLERANCE_ZERO * largest {
        row.error *= norm.max(f64::MIN_POSITIVE) / largest;
        row.tolerance = TOLERANCE_ZERO;
    }
}

/// One row for every stored tensor of every parameter, under `prefix`.
fn stored(
    graph: &Graph,
    runner: &Runner,
    role: fn(usize) -> OutputRole,
    (prefix, tolerance): (&str, f64),
    answers: &Answers,
    tensors: &mut Vec<TensorError>,
) -> Result<(), ModelError> {
    let mut rows = Vec::new();
    for (p, param) in graph.params.iter().enumerate() {
        let values = read(runner, &role(p))?;
        for (name, range) in param.stored_tensors() {
            let name = format!("{prefix}.{name}");
            let expected = answers.weights.read_f32(&name)?;
            let got = &values[range.start as usize..range.end as usize];
            let size = norm(expected.iter().copied().map(f64::from));
            rows.push((error(&name, got, &expected, tolerance), size));
        }
    }
    let largest = rows.iter().map(|(_, size)| *size).fold(0.0, f64::max);
    for (row, size) in &mut rows {
        rounding_of_zero(row, *size, largest);
    }
    tensors.extend(rows.into_iter().map(|(row, _)| row));
    Ok(())
}

fn gradients(
    model: &mut Model,
    weights: &Weights,
    answers: &Answers,
    device: Option<&Arc<Device>>,
    tensors: &mut Vec<TensorError>,
) -> Result<(), ModelError> {
    let (graph, mut runner) = open(model, "loss", &Purpose::Gradients, answers, device)?;
    load(&mut runner, &graph, weights)?;
    runner.run();
    let loss = read(&runner, &OutputRole::Value("loss".into()))?;
    if let Some(expected) = answers.meta.as_ref().and_then(|m| m["loss"].as_f64()) {
        tensors.push(error("loss", &loss, &[expected as f32], TOLERANCE));
    }
    let router = runner.read(&OutputRole::Value(AUXILIARY.into()));
    let expected = answers.meta.as_ref().and_then(|m| m["aux_loss"].as_f64());
    if let (Some(router), Some(expected)) = (router, expected) {
        // The reference has it without its weight, which the model's loss includes.
        let weight = model.config_json()["router_aux_loss_coef"].as_f64().unwrap_or(1.0);
        let expected = [(expected * weight) as f32];
        tensors.push(error("router loss", &router, &expected, TOLERANCE_ROUTER));
    }
    stored(&graph, &runner, OutputRole::Grad, ("grad", TOLERANCE), answers, tensors)
}

fn steps(
    model: &mut Model,
    weights: &Weights,
    answers: &Answers,
    meta: &serde_json::Value,
    device: Option<&Arc<Device>>,
    tensors: &mut Vec<TensorError>,
) -> Result<(), ModelError> {
    let number = |v: &serde_json::Value, default: f64| v.as_f64().unwrap_or(default);
    let o = &meta["optimizer"];
    let (beta1, beta2) = (number(&o["betas"][0], 0.9), number(&o["betas"][1], 0.95));
    let optimizer = Optimizer {
        beta1,
        beta2,
        eps: number(&o["eps"], 1e-8),
        weight_decay: number(&o["weight_decay"], 0.0),
        matrices_only: false,
        unclipped: false,
        state: Precision::F32,
    };
    let purpose = Purpose::Training(optimizer);
    let (graph, mut runner) = open(model, "loss", &purpose, answers, device)?;
    load(&mut runner, &graph, weights)?;
    let empty = Vec::new();
    let list = meta["steps"].as_array().unwrap_or(&empty);
    let scalar = |name: &str| InputRole::Scalar(name.to_string());
    for (i, step) in list.iter().enumerate() {
        let k = i as i32 + 1;
        runner.write(&scalar("lr"), &[number(&o["lr"], 1e-3) as f32]);
        runner.write(&scalar("clip"), &[number(&o["grad_clip"], 0.0) as f32]);
        runner.write(&scalar("correct1"), &[(1.0 - beta1.powi(k)) as f32]);
        runner.write(&scalar("correct2"), &[(1.0 - beta2.powi(k)) as f32]);
        runner.run();
        for (key, value) in [("loss", "loss"), ("grad_norm", "grad_norm")] {
            if let Some(expected) = step[key].as_f64() {
                let got = read(&runner, &OutputRole::Value(value.into()))?;
                let name = format!("step {}.{key}", i + 1);
                let tolerance = if key == "loss" { TOLERANCE } else { TOLERANCE_AFTER };
                tensors.push(error(&name, &got, &[expected as f32], tolerance));
            }
        }
    }
    stored(&graph, &runner, OutputRole::Param, ("after", TOLERANCE_AFTER), answers, tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a gradient with this norm passes beside one of norm 1, off by `difference`.
    fn passes(norm: f32, difference: f64) -> bool {
        let mut row = error("grad", &[f64::from(norm) + difference], &[norm], TOLERANCE);
        rounding_of_zero(&mut row, f64::from(norm), 1.0);
        row.error <= row.tolerance
    }

    #[test]
    fn zeros_may_be_off_by_a_rounding_of_the_largest_gradient_and_nothing_else_is_excused() {
        for norm in [0.0, 1e-20, 1e-8] {
            assert!(passes(norm, 5e-8) && !passes(norm, 2e-7), "{norm} is rounding");
        }
        assert!(passes(1e-3, 9e-9) && !passes(1e-3, 2e-8), "small is not zero");
    }
}
