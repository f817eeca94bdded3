//! A training session: weights resident, ready to step. What a step does is in the executable.

use crate::checkpoint::{Checkpoint, Parameter, Snapshot};
use crate::floats;
use crate::import::{self, ModelTensors};
use crate::initial::each_part;
use crate::machine::Machine;
use crate::model::{Model, ModelError, stored_shape, within_device, within_memory};
use crate::packing::{Batch, Cursor, Evaluation};
use crate::resident;
use crate::step::{StepMachines, StepPlan};
pub use crate::step::{executables, options, training_trace};
use crate::weights::Weights;
use mdl_check::entry::function;
use mdl_ir::graph::{Body, Graph, InputRole, Param, ValueId};
use mdl_ir::interp::{Env, mix, run};
use mdl_ir::kernel::Elem;
use mdl_ir::op::Op;
use mdl_ir::tensor::Tensor;
use mdl_ir::tensor_type::{DType, Type};
use mdl_kernels::{Class, Device, StateFileError};
use mdl_passes::micro_batch::{SHARE, WEIGHT};
use mdl_passes::optimise::{SEED, StateTypes};
use mdl_passes::request::{MemoryRequest, Precision};
use mdl_syntax::diag::Sink;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;

/// What a run decides; stored with its checkpoints.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// Sequences of a micro-batch.
    pub batch: u64,
    /// Micro-batches whose gradients a step adds up.
    #[serde(default = "crate::checkpoint::one")]
    pub gradient_accumulation: u64,
    pub t: u64,
    pub val_batch: u64,
    pub max_steps: u64,
    pub lr: f64,
    pub min_lr: f64,
    /// constant, linear, cosine, exponential or wsd: a function of `std.optim`.
    pub lr_decay_style: String,
    pub lr_decay_iters: u64,
    /// Fraction of the steps that warm up.
    pub warmup: f64,
    pub weight_decay: f64,
    pub matrices_only: bool,
    pub beta1: f64,
    pub beta2: f64,
    pub grad_clip: f64,
    pub seed: u64,
    #[serde(default)]
    pub memory: MemoryRequest,
    #[serde(default)]
    pub precision: Precision,
    /// How the optimizer keeps its moments. In bf16 there is no master copy of the parameters.
    #[serde(default)]
    pub optimizer_state: Precision,
    /// The folder of the state's files, where it is on disk. A checkpoint does not know it.
    #[serde(skip)]
    pub disk_offload: Option<PathBuf>,
}

impl Settings {
    /// Sequences of a step.
    pub fn sequences(&self) -> u64 {
        self.batch * self.gradient_accumulation * self.ranks()
    }

    /// Ranks that share a step.
    pub fn ranks(&self) -> u64 {
        self.memory.mesh.map_or(1, |mesh| mesh.ranks())
    }
}

/// The numbers that the host gives to the update of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepScalars {
    lr: f32,
    clip: f32,
    correct1: f32,
    correct2: f32,
    /// What the step rounds by.
    seed: i32,
}

impl StepScalars {
    pub(crate) fn write(&self, machine: &Machine) {
        machine.write_scalar("lr", self.lr);
        machine.write_scalar("clip", self.clip);
        machine.write_scalar("correct1", self.correct1);
        machine.write_scalar("correct2", self.correct2);
        machine.write_number(SEED, self.seed);
    }
}

/// What a step reports.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// Mean over valid targets, nats.
    pub loss: f64,
    pub grad_norm: f64,
    pub lr: f64,
}

/// The learning rate as the standard library defines it, evaluated in f64 on the host.
#[derive(Debug)]
pub struct Schedule {
    body: Body,
    warm: f64,
    steps: f64,
    lr: f64,
    min_lr: f64,
}

impl Schedule {
    pub fn new(model: &Model, settings: &Settings) -> Result<Schedule, ModelError> {
        let scalar = Type::scalar(DType::F32);
        let style = settings.lr_decay_style.as_str();
        let mut sink = Sink::default();
        let known = ["constant", "linear", "cosine", "exponential", "wsd"];
        let body = known.contains(&style).then(|| {
            let types = vec![scalar; 5];
            function(&model.front.program, "std.optim", style, &types, &[], &mut sink)
        });
        let Some(body) = body.flatten() else {
            let message = format!("--lr_decay_style is one of {}", known.join(", "));
            return Err(ModelError::Asked(message));
        };
        let steps = settings.lr_decay_iters as f64;
        let warm = (settings.warmup * steps).round();
        Ok(Schedule { body, warm, steps, lr: settings.lr, min_lr: settings.min_lr })
    }

    /// The rate of step `step`, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        let inputs = [step as f64, self.warm, self.steps, self.lr, self.min_lr];
        let scalar = |x: f64| Tensor::new(Type::scalar(DType::F32), vec![x]);
        run(&self.body, inputs.map(scalar).to_vec(), &Env::default())[0].data[0]
    }
}

#[derive(Debug)]
pub struct Session {
    pub model: Model,
    pub settings: Settings,
    pub step: u64,
    pub cursor: u64,
    pub graph: Graph,
    pub train: StepMachines,
    schedule: Schedule,
    /// Resident bytes of the process before anything was allocated for the run.
    resident_before: Option<u64>,
    /// Shapes under which parameters are stored.
    shapes: Vec<Vec<usize>>,
}

/// What there is to do about a step that is too large.
const SMALLER: &str = "plan within what is free with --memory, such as --memory 16GiB, halve the \
                       state with --bf16 1, or take a smaller --train_batch_size or preset";

/// Bytes that a run has in the host's memory. What lies on a disk is not known before its files are
/// there, and is left out.
fn on_host(step: &StepPlan, settings: &Settings, class: Class) -> u64 {
    let host = if settings.disk_offload.is_some() { 0 } else { step.host_bytes() };
    let device = if class == Class::Cpu { step.state_bytes() + step.work_bytes() } else { 0 };
    (host + device) * settings.ranks()
}

impl Session {
    /// Compiles, allocates, and initialises the weights from the seed.
    pub fn open(
        mut model: Model,
        settings: Settings,
        device: Arc<Device>,
    ) -> Result<Session, ModelError> {
        let narrow = [settings.precision, settings.optimizer_state].contains(&Precision::Bf16);
        if narrow && !device.takes(Elem::Bf16) {
            let message = "this device has no elements of 16 bits; leave out --bf16, or take \
                           --device cuda or cpu";
            return Err(ModelError::Asked(message.into()));
        }
        let schedule = Schedule::new(&model, &settings)?;
        let (graph, train, validate) = executables(&mut model, &settings, device.target())?;
        let needed = train.state_bytes().max(train.work_bytes());
        within_device(&device, &train.first.specs, needed)?;
        within_memory(on_host(&train, &settings, device.class()), SMALLER)?;
        let inputs = input_axes(&graph);
        let shapes = graph.params.iter().zip(inputs).map(|(p, n)| stored_shape(p, n)).collect();
        let resident_before = resident::now();
        let files = match &settings.disk_offload {
            Some(dir) => Some(train.state_files(dir)?),
            None => None,
        };
        let train = StepMachines::new(device, train, validate, files);
        let session = Session {
            model,
            settings,
            step: 0,
            cursor: 0,
            graph,
            train,
            schedule,
            resident_before,
            shapes,
        };
        for (p, param) in session.graph.params.iter().enumerate() {
            each_part(param, session.settings.seed, |start, values| {
                session.train.write_range(&InputRole::Param(p), start, values);
            });
        }
        Ok(session)
    }

    /// Bytes that the plan has, and the most that the process took at one time beyond what it had
    /// before the run was allocated and `resident::RUNTIME`, where the system says so.
    pub fn memory(&self) -> (u64, Option<u64>) {
        let observed = resident::peak().zip(self.resident_before);
        let beyond = |(peak, before): (u64, u64)| peak.saturating_sub(before + resident::RUNTIME);
        (self.train.planned(), observed.map(beyond))
    }

    /// What went wrong with the state's files, if something did: then nothing is right that came
    /// from the session since, and it cannot go on.
    pub fn fault(&self) -> Option<StateFileError> {
        self.train.first.fault()
    }

    /// Weights of a checkpoint, fresh optimizer.
    pub fn load_weights(&mut self, weights: &Weights) -> Result<(), ModelError> {
        for machine in self.train.holders() {
            import::load(machine, weights, &self.graph.params)?;
        }
        Ok(())
    }

    /// Weights, optimizer state, step and place in the data.
    pub fn resume(&mut self, checkpoint: &Checkpoint) -> Result<(), ModelError> {
        let (weights, optimizer) = (checkpoint.weights()?, checkpoint.optimizer()?);
        let n = self.graph.params.len();
        let moments: Vec<Param> = ["m", "v"]
            .iter()
            .flat_map(|m| self.graph.params.iter().map(|p| moment(p, m)))
            .collect();
        let moments = ModelTensors::find(&optimizer, &moments)?;
        self.load_weights(&weights)?;
        moments.each(|place, values| {
            let role = match place.param < n {
                true => InputRole::Moment1(place.param),
                false => InputRole::Moment2(place.param - n),
            };
            self.train.write_range(&role, place.range.start, values);
        });
        self.step = checkpoint.manifest.step;
        self.cursor = checkpoint.manifest.cursor.sample;
        Ok(())
    }

    /// One optimizer step on a batch of all its sequences, which micro-batches take in order.
    pub fn step(&mut self, batch: &Batch) -> StepReport {
        self.step_by(batch, &mut Machine::run)
    }

    /// As `step`, with something else that runs the executable of each machine. A mesh has a thread
    /// for each rank, and runs its machines by itself.
    pub fn step_by(&mut self, batch: &Batch, run: &mut dyn FnMut(&Machine)) -> StepReport {
        let lr = self.schedule.at(self.step);
        let k = (self.step + 1) as i32;
        let scalars = StepScalars {
            lr: lr as f32,
            clip: self.settings.grad_clip as f32,
            correct1: (1.0 - self.settings.beta1.powi(k)) as f32,
            correct2: (1.0 - self.settings.beta2.powi(k)) as f32,
            seed: rounding_seed(self.settings.seed, self.step),
        };
        let (loss, grad_norm) = match &self.train.ranks {
            Some(ranks) => ranks.step(batch, self.settings.gradient_accumulation, &scalars),
            None => self.step_alone(batch, &scalars, run),
        };
        self.step += 1;
        self.cursor += self.settings.sequences();
        StepReport { loss, grad_norm, lr }
    }

    /// A step of one device: loss and gradient norm.
    fn step_alone(
        &self,
        batch: &Batch,
        scalars: &StepScalars,
        run: &mut dyn FnMut(&Machine),
    ) -> (f64, f64) {
        let accumulated = self.train.further.is_some().then(|| self.accumulate(batch, run));
        let last = self.train.last();
        if accumulated.is_none() {
            write_batch(last, batch);
        }
        scalars.write(last);
        run(last);
        let loss = accumulated.unwrap_or_else(|| value(last, "loss"));
        (loss, value(last, "grad_norm"))
    }

    /// Adds up the gradients of all micro-batches, and gives the mean loss over their targets. Each
    /// counts by how many of those it has; auxiliary losses count alike.
    fn accumulate(&self, batch: &Batch, run: &mut dyn FnMut(&Machine)) -> f64 {
        let n = self.settings.gradient_accumulation;
        let targets = batch.n_targets().max(1) as f64;
        let parts = batch.split(n as usize);
        let losses = parts.iter().enumerate().map(|(i, part)| {
            let machine = self.train.of_micro_batch(i);
            machine.write_scalar(WEIGHT, (part.n_targets() as f64 / targets) as f32);
            machine.write_scalar(SHARE, (1.0 / n as f64) as f32);
            write_batch(machine, part);
            run(machine);
            value(machine, "loss")
        });
        losses.sum()
    }

    /// Mean loss over all targets of the first `windows` windows (all of them if zero), and how
    /// many those are.
    pub fn validate(&self, data: &Evaluation, batches: usize) -> (f64, u64) {
        self.train.validate(data, self.settings.val_batch as usize, batches)
    }

    /// Everything that a checkpoint holds.
    pub fn snapshot(&mut self, tokenizer: Option<Vec<u8>>, ids: [Option<u32>; 2]) -> Snapshot {
        let mut parameters = Vec::new();
        let types = StateTypes::of(&self.graph.params, self.settings.optimizer_state);
        let exact = if types.master { InputRole::Master } else { InputRole::Param };
        for (p, param) in self.graph.params.iter().enumerate() {
            let read = |role: InputRole| self.train.read_input(&role);
            let value = read(exact(p));
            let (m, v) = (read(InputRole::Moment1(p)), read(InputRole::Moment2(p)));
            for (name, range) in param.stored_tensors() {
                let part = |all: &[f32]| all[range.start as usize..range.end as usize].to_vec();
                parameters.push(Parameter {
                    name,
                    shape: self.shapes[p].clone(),
                    value: part(&value),
                    m: part(&m),
                    v: part(&v),
                });
            }
        }
        let mut config = self.model.config_json();
        for (key, id) in ["bos_token_id", "eos_token_id"].iter().zip(ids) {
            config.insert(key.to_string(), serde_json::json!(id));
        }
        // Weights are saved as they are trained, whatever those that the run began with were.
        let stored = if types.stochastic() { Dtype::BF16 } else { Dtype::F32 };
        for key in ["dtype", "torch_dtype"] {
            config.insert(key.to_string(), serde_json::json!(floats::ecosystem_name(stored)));
        }
        // Where the model reads this key itself, its own value stays.
        let context = config.entry("max_position_embeddings");
        context.or_insert(serde_json::json!(self.settings.t));
        Snapshot {
            step: self.step,
            cursor: Cursor { sample: self.cursor },
            gradient_accumulation: self.settings.gradient_accumulation,
            graph: mdl_ir::print::print(&self.graph),
            parameters,
            stored,
            config_json: pretty(&config),
            tokenizer_json: tokenizer,
            model_mdl: self.model.text.clone(),
            modules: self.model.imports(),
            run_json: pretty(&self.settings),
        }
    }
}

/// By what a step rounds stochastically: a function of the run's seed and the step alone.
fn rounding_seed(seed: u64, step: u64) -> i32 {
    (mix(mix(seed) ^ step) >> 32) as i32
}

/// A parameter's moment as a checkpoint has it: the same tensors under other names.
fn moment(param: &Param, prefix: &str) -> Param {
    let stored = format!("{prefix}.{}", param.stored);
    Param { stored, also_stored: Vec::new(), init: None, ..param.clone() }
}

/// Plain data as readable JSON.
fn pretty(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("settings are plain data")
}

/// A number that a run gave.
pub(crate) fn value(machine: &Machine, name: &str) -> f64 {
    machine.read_value(name).map_or(f64::NAN, |v| f64::from(v[0]))
}

pub fn write_batch(machine: &Machine, batch: &Batch) {
    machine.write_data("tokens", &batch.tokens);
    machine.write_data("targets", &batch.targets);
    machine.write_data("documents", &batch.documents);
}

/// Mean loss over the targets of `batches` batches (0: all), and the number of targets.
pub fn evaluate(
    machine: &Machine,
    data: &Evaluation,
    batch_size: usize,
    batches: usize,
) -> (f64, u64) {
    let all = data.n_windows().div_ceil(batch_size.max(1));
    let batches = if batches == 0 { all } else { batches.min(all) };
    let (mut sum, mut count) = (0.0, 0u64);
    for i in 0..batches {
        let batch = data.batch(i * batch_size, batch_size);
        let targets = batch.n_targets() as u64;
        write_batch(machine, &batch);
        machine.run();
        let loss = machine.read_value("loss").map_or(f64::NAN, |v| f64::from(v[0]));
        sum += loss * targets as f64;
        count += targets;
    }
    (sum / count.max(1) as f64, count)
}

/// For every parameter, how many of its innermost axes are summed where it is used: the `in` of
/// [out, in].
fn input_axes(graph: &Graph) -> Vec<usize> {
    let mut counts = vec![1; graph.params.len()];
    for (id, role) in graph.body.inputs.iter().zip(&graph.inputs) {
        if let InputRole::Param(p) = role {
            counts[*p] = contracted(&graph.body, *id).unwrap_or(1);
        }
    }
    counts
}

fn contracted(body: &Body, id: ValueId) -> Option<usize> {
    for node in &body.nodes {
        for (i, _) in node.args.iter().enumerate().filter(|(_, a)| **a == id) {
            let found = match &node.op {
                Op::Contract { axes } => Some(axes.len()),
                Op::Repeat { body, .. } | Op::Call { body, .. } => {
                    contracted(body, *body.inputs.get(i)?)
                }
                _ => None,
            };
            if found.is_some() {
                return found;
            }
        }
    }
    None
}
