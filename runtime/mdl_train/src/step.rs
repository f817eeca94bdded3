//! The executables of an optimizer step, and the machines that run them one after the other.
//!
//! With one micro-batch a step is one executable. With several, the first one writes its gradients,
//! the others add theirs, and an executable of its own updates the parameters. All of them share
//! one state, and one work space that is as large as the largest asks for.

use crate::machine::{Machine, Room};
use crate::model::{Model, ModelError};
use crate::packing::Evaluation;
use crate::ranks::{Ranks, RanksPlan};
use crate::session::{Settings, evaluate};
use mdl_check::entry::EntryOptions;
use mdl_driver::pipeline::{Purpose, Trace, finish, run_within, state_layout_for};
use mdl_ir::graph::{Graph, InputRole, Stage};
use mdl_ir::kernel::Target;
use mdl_kernels::{Device, StateFileError, StateFiles, free_bytes};
use mdl_passes::executable::{Executable, Speed};
use mdl_passes::optimise::{Optimizer, gradients_of};
use mdl_passes::plan::StateLayout;
use mdl_passes::request::{MemoryRequest, Precision};
use std::path::Path;
use std::sync::Arc;

/// What a step of `micro_batches` runs: all of it, or the first of several.
#[derive(Clone, Debug)]
pub struct StepPlan {
    pub micro_batches: u64,
    /// Bytes that validation needs of the work space, which it shares.
    pub validation_bytes: u64,
    /// Parts of the state by name, each with its bytes.
    pub sections: Vec<(&'static str, u64)>,
    pub first: Executable,
    /// Where there are several.
    pub further: Option<Further>,
    /// What is run besides where there is a mesh: all of this is then one rank's.
    pub ranks: Option<RanksPlan>,
}

/// What the micro-batches after the first run, and what ends the step.
#[derive(Clone, Debug)]
pub struct Further {
    pub accumulate: Executable,
    pub update: Executable,
}

impl StepPlan {
    /// The executables, each with how often a step runs it.
    pub fn runs(&self) -> Vec<(&Executable, u64)> {
        let further = self.further.iter();
        let further =
            further.flat_map(|f| [(&f.accumulate, self.micro_batches - 1), (&f.update, 1)]);
        let mut runs: Vec<_> = std::iter::once((&self.first, 1)).chain(further).collect();
        if let Some(ranks) = &self.ranks {
            // As often as a counter's carry goes that far on the way to the number.
            let ending = |end: u64| self.micro_batches / end - self.micro_batches / (2 * end);
            runs[0].1 = ending(1);
            let carries = ranks.carries.iter().zip(1..);
            runs.extend(carries.map(|(e, level)| (e, ending(1 << level))));
            runs.push((&ranks.update, 1));
        }
        runs
    }

    /// The executable that needs the most memory: its plan is the step's.
    pub fn largest(&self) -> &Executable {
        let runs = self.runs().into_iter();
        runs.map(|(e, _)| e).max_by_key(|e| e.work_bytes).unwrap_or(&self.first)
    }

    /// Bytes of the state that the executables share.
    pub fn state_bytes(&self) -> u64 {
        self.runs().iter().map(|(e, _)| e.state_bytes).max().unwrap_or(0)
    }

    /// Bytes of the work space that they and validation take in turn.
    pub fn work_bytes(&self) -> u64 {
        self.largest().work_bytes.max(self.validation_bytes)
    }

    /// Bytes of the host's memory that they share.
    pub fn host_bytes(&self) -> u64 {
        self.runs().iter().map(|(e, _)| e.host_bytes).max().unwrap_or(0)
    }

    /// Bytes of the state at the start of the host's memory, or on disk.
    pub fn host_state_bytes(&self) -> u64 {
        self.runs().iter().map(|(e, _)| e.host_state_bytes).max().unwrap_or(0)
    }

    /// Files for that state in a folder.
    pub fn state_files(&self, dir: &Path) -> Result<StateFiles, StateFileError> {
        StateFiles::create(dir, &self.sections, free_bytes)
    }

    /// Seconds of a step, see `Executable::seconds`.
    pub fn seconds(&self, speed: &Speed) -> f64 {
        self.runs().iter().map(|(e, n)| *n as f64 * e.seconds(speed)).sum()
    }

    /// Launches of a step, loops counted with their iterations.
    pub fn launches(&self) -> u64 {
        self.runs().iter().map(|(e, n)| n * e.launches()).sum()
    }

    /// FLOPs of a step, and bytes that its launches read and write.
    pub fn work(&self) -> (u64, u64) {
        self.runs().iter().fold((0, 0), |(flops, bytes), (e, n)| {
            let (f, b) = e.work();
            (flops + n * f, bytes + n * b)
        })
    }
}

/// Does nothing wait for the gradients of a whole step?
fn is_unclipped(settings: &Settings) -> bool {
    let alone = settings.gradient_accumulation == 1 && settings.memory.mesh.is_none();
    settings.grad_clip == 0.0 && alone
}

fn optimizer(settings: &Settings) -> Optimizer {
    Optimizer {
        beta1: settings.beta1,
        beta2: settings.beta2,
        eps: 1e-8,
        weight_decay: settings.weight_decay,
        matrices_only: settings.matrices_only,
        unclipped: is_unclipped(settings),
        state: settings.optimizer_state,
    }
}

/// Packed sequences of `t` tokens, `batch` at a time. The step trains with auxiliary losses;
/// validation is cross-entropy alone.
pub fn options(batch: u64, t: u64, auxiliary: bool) -> EntryOptions {
    let sizes = vec![("B".to_string(), batch), ("T".to_string(), t)];
    EntryOptions { sizes, documents: true, auxiliary }
}

/// The training step after every pass: all of it, or a micro-batch that adds its gradients.
pub fn training_trace(model: &mut Model, settings: &Settings) -> Result<Trace, ModelError> {
    let state = settings.optimizer_state;
    let purpose = match (settings.gradient_accumulation, settings.memory.mesh) {
        // Sums over micro-batches are the ranks'.
        (_, Some(_)) => Purpose::MicroBatch { first: true, state },
        (1, None) => Purpose::Training(optimizer(settings)),
        _ => Purpose::MicroBatch { first: false, state },
    };
    trace_for(model, settings, &purpose)
}

fn trace_for(
    model: &mut Model,
    settings: &Settings,
    purpose: &Purpose,
) -> Result<Trace, ModelError> {
    let Settings { precision, optimizer_state, .. } = settings;
    if (*precision, *optimizer_state) == (Precision::F32, Precision::Bf16) {
        let message = "--optimizer_state=bf16 is for parameters in bf16; give --bf16=1 as well";
        return Err(ModelError::Asked(message.into()));
    }
    let graph = model.graph("loss", &options(settings.batch, settings.t, true))?;
    Ok(run_within(graph, &mut model.front, purpose, &request(settings), settings.precision)?)
}

/// What the micro-batches after the first run, and the update that follows them.
fn further(
    model: &mut Model,
    settings: &Settings,
    (accumulate, state): (&Graph, &StateLayout),
    target: Target,
) -> Result<Further, ModelError> {
    let purpose = Purpose::Update(optimizer(settings));
    let graph = gradients_of(accumulate);
    let (memory, precision) = (&settings.memory, settings.precision);
    let update = run_within(graph, &mut model.front, &purpose, memory, precision)?;
    Ok(Further {
        accumulate: finish(accumulate, state, target)?,
        update: finish(update.last(), state, target)?,
    })
}

/// What a run asks about memory, with what follows from its micro-batches.
fn request(settings: &Settings) -> MemoryRequest {
    let levels = u64::from(settings.gradient_accumulation.max(1).ilog2());
    let partial_sums = settings.memory.mesh.map_or(0, |_| levels);
    MemoryRequest { partial_sums, ..settings.memory }
}

/// The executables of a rank: its micro-batches, which differ in how many partial sums they are
/// added to, and the update.
fn for_ranks(
    model: &mut Model,
    settings: &Settings,
    (micro_batch, state): (&Graph, &StateLayout),
    target: Target,
) -> Result<(Executable, RanksPlan), ModelError> {
    let (purpose, memory) = (Purpose::Update(optimizer(settings)), request(settings));
    let (graph, precision) = (gradients_of(micro_batch), settings.precision);
    let update = run_within(graph, &mut model.front, &purpose, &memory, precision)?;
    let update = finish(update.last(), &state.of_update(settings.gradient_accumulation), target)?;
    // The first of those whose carry goes to a place of the counter.
    let carry = |place: u64| state.of_micro_batch((1 << place) - 1);
    let first = finish(micro_batch, &carry(0), target)?;
    let carries = (1..=memory.partial_sums).map(|place| finish(micro_batch, &carry(place), target));
    let carries = carries.collect::<Result<_, _>>()?;
    Ok((first, RanksPlan { ranks: 1, carries, update }))
}

/// The executables of a run: the training step, and the loss alone. They share the layout of the
/// state, and the work space, which is as large as the largest needs.
pub fn executables(
    model: &mut Model,
    settings: &Settings,
    target: impl Into<Target>,
) -> Result<(Graph, StepPlan, Executable), ModelError> {
    let target = target.into();
    if settings.memory.mesh.is_some() && settings.memory.cpu_offload {
        let message = "with --mesh the ranks have the state in parts, and it stays on their \
                       devices; leave out --cpu_offload and --disk_offload, or leave out --mesh";
        return Err(ModelError::Asked(message.into()));
    }
    let moves = [
        settings.memory.mesh.is_some(),
        settings.memory.cpu_offload,
        settings.memory.offload_activations,
    ];
    if target == Target::Gpu && moves.contains(&true) {
        let message = "on a GPU the whole step stays in its memory so far; leave out --mesh, \
                       --cpu_offload, --disk_offload and --offload_activations";
        return Err(ModelError::Asked(message.into()));
    }
    let trace = training_trace(model, settings)?;
    let purpose = Purpose::Training(optimizer(settings));
    let state = state_layout_for(trace.last(), &purpose, &request(settings));
    let loss = model.graph("loss", &options(settings.val_batch, settings.t, false))?;
    let MemoryRequest { cpu_offload, mesh, sharding, .. } = settings.memory;
    let memory = MemoryRequest { cpu_offload, mesh, sharding, ..Default::default() };
    let (front, precision) = (&mut model.front, settings.precision);
    let loss = run_within(loss, front, &Purpose::Forward, &memory, precision)?;
    let validate = finish(loss.last(), &state, target)?;
    let (micro_batches, validation_bytes) = (settings.gradient_accumulation, validate.work_bytes);
    let (mut further_plans, mut ranks) = (None, None);
    let first = if let Some(mesh) = mesh {
        let (first, plan) = for_ranks(model, settings, (trace.last(), &state), target)?;
        ranks = Some(RanksPlan { ranks: mesh.ranks(), ..plan });
        first
    } else if micro_batches == 1 {
        finish(trace.last(), &state, target)?
    } else {
        let purpose = Purpose::MicroBatch { first: true, state: settings.optimizer_state };
        let first = trace_for(model, settings, &purpose)?;
        let first = finish(first.last(), &state, target)?;
        further_plans = Some(further(model, settings, (trace.last(), &state), target)?);
        first
    };
    let (sections, further) = (state.named(), further_plans);
    let train = StepPlan { micro_batches, validation_bytes, sections, first, further, ranks };
    let needed = train.state_bytes() + train.work_bytes();
    if let Some(budget) = settings.memory.budget.filter(|b| b.device < needed && !b.or_least) {
        let message = format!("validation needs {needed} bytes, and --memory is {}", budget.device);
        return Err(ModelError::Asked(message + "; lower --val_batch_size"));
    }
    let graph = trace.at(Stage::Forward).unwrap_or(trace.last()).clone();
    Ok((graph, train, validate))
}

/// A step, loaded.
#[derive(Debug)]
pub struct StepMachines {
    pub first: Machine,
    /// What adds its gradients, and what updates the parameters.
    pub further: Option<(Machine, Machine)>,
    /// All machines of a mesh; `first` is then one of the first rank's.
    pub ranks: Option<Ranks>,
    validate: Machine,
    /// Launches and FLOPs of a step, on all ranks.
    pub launches: u64,
    pub flops: u64,
}

impl StepMachines {
    /// Allocates what the plan says, once, with a state in these files if there are any.
    pub fn new(
        device: Arc<Device>,
        plan: StepPlan,
        validate: Executable,
        files: Option<StateFiles>,
    ) -> StepMachines {
        let (state, work, host) = (plan.state_bytes(), plan.work_bytes(), plan.host_bytes());
        let room = Room { state, work, host };
        let (launches, flops) = (plan.launches(), plan.work().0);
        if let Some(ranks) = plan.ranks {
            let (launches, flops) = (launches * ranks.ranks, flops * ranks.ranks);
            let ranks = Ranks::new(&device, (plan.first, ranks), &validate, room);
            let first = ranks.first().beside(ranks.first().executable.clone());
            let validate = first.beside(validate);
            let ranks = Some(ranks);
            return StepMachines { first, further: None, ranks, validate, launches, flops };
        }
        let first = Machine::with_room(device, plan.first, room, files);
        let further = plan.further.map(|f| (first.beside(f.accumulate), first.beside(f.update)));
        let validate = first.beside(validate);
        StepMachines { first, further, ranks: None, validate, launches, flops }
    }

    /// The machines that have the state: one, or one for each rank.
    pub fn holders(&self) -> Vec<&Machine> {
        match &self.ranks {
            Some(ranks) => ranks.machines().collect(),
            None => vec![self.last()],
        }
    }

    /// Mean loss over the targets of some batches, and how many those are.
    pub fn validate(&self, data: &Evaluation, batch_size: usize, batches: usize) -> (f64, u64) {
        match &self.ranks {
            Some(ranks) => ranks.evaluate(data, batch_size, batches),
            None => evaluate(&self.validate, data, batch_size, batches),
        }
    }

    /// The machine of a micro-batch, by its number from 0.
    pub fn of_micro_batch(&self, i: usize) -> &Machine {
        match &self.further {
            Some((accumulate, _)) if i > 0 => accumulate,
            _ => &self.first,
        }
    }

    /// The machine that updates parameters and moments.
    pub fn last(&self) -> &Machine {
        self.further.as_ref().map_or(&self.first, |(_, update)| update)
    }

    /// Bytes allocated, in a mesh for one rank: state and work.
    pub fn allocated(&self) -> (u64, u64) {
        self.first.allocated()
    }

    /// All of that, with the memory of the host that the run takes. What is on disk is not memory.
    pub fn planned(&self) -> u64 {
        let (state, work) = self.allocated();
        let each = state + work + self.first.host_allocated() - self.first.disk_bytes();
        each * self.holders().len() as u64
    }

    /// The values of a parameter, or of a moment of it.
    pub fn read_input(&self, role: &InputRole) -> Vec<f32> {
        if let Some(ranks) = &self.ranks {
            return ranks.read_input(role);
        }
        let machine = self.last();
        machine.executable.input(role).map_or(Vec::new(), |slot| machine.read(slot))
    }

    /// Writes some of the values of a parameter or of a moment.
    pub fn write_range(&self, role: &InputRole, start: u64, values: &[f32]) {
        match &self.ranks {
            Some(ranks) => ranks.write_range(role, start, values),
            None => self.last().write_range(role, start, values),
        }
    }
}
