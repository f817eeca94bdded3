//! The pipeline: a table of passes in order, and the function that runs them.
//!
//! After every pass the verifier runs. `mdlc dump`, timings and tests read this table.

use crate::budget::within;
use crate::front::Front;
use mdl_ir::graph::{Graph, OutputRole, Stage};
use mdl_ir::kernel::Target;
use mdl_ir::verify::verify;
use mdl_passes::executable::{Executable, Space};
use mdl_passes::offload::saved;
use mdl_passes::optimise::{Optimizer, StateTypes, decays, optimise};
use mdl_passes::plan::{StateLayout, plan};
use mdl_passes::recompute::residuals;
use mdl_passes::request::{MemoryRequest, Precision};
use std::time::{Duration, Instant};

/// What a compilation is for.
#[derive(Clone, Debug)]
pub enum Purpose {
    /// The entry alone.
    Forward,
    /// The loss with all gradients.
    Gradients,
    /// Gradients and the optimizer step.
    Training(Optimizer),
    /// Gradients of one of several micro-batches: the first, or one that adds to the gradients of
    /// those before. How the optimizer keeps its state says how much of it there is.
    MicroBatch { first: bool, state: Precision },
    /// The optimizer step alone, on gradients that are there.
    Update(Optimizer),
}

/// What a pass may look at besides the graph.
#[derive(Debug)]
pub struct PassInput<'a> {
    pub front: &'a mut Front,
    pub purpose: &'a Purpose,
    pub memory: &'a MemoryRequest,
    pub precision: Precision,
}

/// One row of the pipeline.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    pub name: &'static str,
    /// Why it is there, in a sentence.
    pub why: &'static str,
    /// The stage that the graph has afterwards.
    pub leaves: Stage,
    run: fn(&Graph, &mut PassInput<'_>) -> Result<Graph, String>,
}

pub const PIPELINE: &[Pass] = &[
    Pass {
        name: "unfold",
        why: "calls that no kernel computes become their bodies, while those have no gradient yet",
        leaves: Stage::Forward,
        run: unfold,
    },
    Pass {
        name: "narrow",
        why: "what is rounded is settled before gradients, which are rounded where values are",
        leaves: Stage::Forward,
        run: narrow,
    },
    Pass {
        name: "weigh",
        why: "a micro-batch counts by its targets, which gradients have to know",
        leaves: Stage::Forward,
        run: weigh,
    },
    Pass {
        name: "differentiate",
        why: "gradients exist as nodes before anything decides about memory or kernels",
        leaves: Stage::Training,
        run: differentiate,
    },
    Pass {
        name: "accumulate",
        why: "the sum with earlier gradients is part of the kernels that make the new ones",
        leaves: Stage::Training,
        run: accumulate,
    },
    Pass {
        name: "optimise",
        why: "the optimizer step is part of the graph, so that its memory and kernels are planned",
        leaves: Stage::Training,
        run: add_optimizer,
    },
    Pass {
        name: "hoist",
        why: "what is the same in every layer is computed once; fusion would hide it",
        leaves: Stage::Placed,
        run: hoist,
    },
    Pass {
        name: "recompute",
        why: "what a layer saves is chosen while every value of it is visible",
        leaves: Stage::Placed,
        run: recompute,
    },
    Pass {
        name: "offload",
        why: "what is saved and not made again may wait in the host's memory",
        leaves: Stage::Placed,
        run: offload,
    },
    Pass {
        name: "fuse",
        why: "every node becomes a kernel, a view or a region, which fixes what is stored",
        leaves: Stage::Fused,
        run: fuse,
    },
    Pass {
        name: "stream",
        why: "a state in the host's memory comes in by slices, so that no kernel depends on it",
        leaves: Stage::Fused,
        run: stream,
    },
    Pass {
        name: "shard",
        why: "a divided state is gathered by slices; last, so that no kernel knows the ranks",
        leaves: Stage::Fused,
        run: shard,
    },
];

fn unfold(graph: &Graph, _: &mut PassInput<'_>) -> Result<Graph, String> {
    mdl_passes::unfold::unfold(graph)
}

fn narrow(graph: &Graph, input: &mut PassInput<'_>) -> Result<Graph, String> {
    match input.precision {
        Precision::F32 => Ok(graph.clone()),
        Precision::Bf16 => mdl_passes::narrow::narrow(graph),
    }
}

fn differentiate(graph: &Graph, input: &mut PassInput<'_>) -> Result<Graph, String> {
    match input.purpose {
        Purpose::Forward | Purpose::Update(_) => Ok(graph.clone()),
        _ => mdl_passes::differentiate::differentiate(graph),
    }
}

fn weigh(graph: &Graph, input: &mut PassInput<'_>) -> Result<Graph, String> {
    match input.purpose {
        Purpose::MicroBatch { .. } => mdl_passes::micro_batch::weigh(graph),
        _ => Ok(graph.clone()),
    }
}

fn accumulate(graph: &Graph, input: &mut PassInput<'_>) -> Result<Graph, String> {
    match input.purpose {
        Purpose::MicroBatch { first: false, .. } => mdl_passes::micro_batch::accumulate(graph),
        _ => Ok(graph.clone()),
    }
}

fn add_optimizer(graph: &Graph, input: &mut PassInput<'_>) -> Result<Graph, String> {
    match input.purpose {
        Purpose::Training(optimizer) | Purpose::Update(optimizer) => {
            optimise(graph, &input.front.program, optimizer, &mut input.front.sink)
        }
        _ => Ok(graph.clone()),
    }
}

fn hoist(graph: &Graph, _: &mut PassInput<'_>) -> Result<Graph, String> {
    mdl_passes::hoist::hoist(graph)
}

fn recompute(graph: &Graph, input: &mut PassInput<'_>) -> Result<Graph, String> {
    if let (Some(budget), true) = (&input.memory.budget, has_gradients(graph)) {
        let state = state_layout_for(graph, input.purpose, input.memory);
        // The moments are there although a micro-batch does not see them.
        let state_bytes = match (input.purpose, state.space) {
            (Purpose::MicroBatch { .. }, Space::State) => state.bytes(),
            _ => 0,
        };
        let planner = |chosen: &Graph| {
            let fused = mdl_passes::fuse::fuse(&offloaded(chosen, input.memory))?;
            let fused = sharded(&streamed(&fused, input.memory), input.memory);
            let mut executable = plan(&fused, &state, budget.target)?;
            executable.state_bytes = executable.state_bytes.max(state_bytes);
            executable.host_bytes = executable.host_memory(input.memory.state_on_disk);
            Ok(executable)
        };
        return within(graph, &planner, budget, &input.front.sources);
    }
    if !input.memory.activation_checkpointing {
        return Ok(graph.clone());
    }
    mdl_passes::recompute::recompute(graph, &residuals(graph))
}

fn offload(graph: &Graph, input: &mut PassInput<'_>) -> Result<Graph, String> {
    Ok(offloaded(graph, input.memory))
}

fn offloaded(graph: &Graph, memory: &MemoryRequest) -> Graph {
    match memory.offload_activations {
        true => mdl_passes::offload::offload(graph, &saved(graph)),
        false => graph.clone(),
    }
}

fn fuse(graph: &Graph, _: &mut PassInput<'_>) -> Result<Graph, String> {
    mdl_passes::fuse::fuse(graph)
}

fn stream(graph: &Graph, input: &mut PassInput<'_>) -> Result<Graph, String> {
    Ok(streamed(graph, input.memory))
}

fn streamed(graph: &Graph, memory: &MemoryRequest) -> Graph {
    match memory.cpu_offload {
        true => mdl_passes::stream::stream(graph),
        false => graph.clone(),
    }
}

fn shard(graph: &Graph, input: &mut PassInput<'_>) -> Result<Graph, String> {
    Ok(sharded(graph, input.memory))
}

fn sharded(graph: &Graph, memory: &MemoryRequest) -> Graph {
    match memory.division() {
        Some(division) => mdl_passes::shard::shard(graph, division),
        None => graph.clone(),
    }
}

/// A fault of the compiler: never the user's.
#[derive(Debug)]
pub struct Bug {
    pub pass: &'static str,
    pub faults: Vec<String>,
}

impl std::fmt::Display for Bug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let faults = self.faults.join("; ");
        if self.pass == "plan" {
            return write!(f, "error[E0952]: no kernel of this device does this: {faults}");
        }
        // A budget that does not hold is the one fault of a pass that a user can have.
        if let Some(small) = faults.strip_prefix("the budget of ") {
            return write!(f, "error[E0953]: the budget of {small}");
        }
        write!(f, "the compiler has a bug in pass `{}`: {faults}", self.pass)
    }
}

impl std::error::Error for Bug {}

/// The graph after each pass, with the time that the pass and its verification took.
#[derive(Debug)]
pub struct Trace {
    pub stages: Vec<(&'static str, Graph, Duration)>,
}

impl Trace {
    pub fn last(&self) -> &Graph {
        &self.stages.last().expect("the first stage is the graph itself").1
    }

    /// The graph as the last pass that leaves this stage left it.
    pub fn at(&self, stage: Stage) -> Option<&Graph> {
        let name = PIPELINE.iter().rev().find(|p| p.leaves == stage).map_or("forward", |p| p.name);
        self.stages.iter().find(|(n, _, _)| *n == name).map(|(_, g, _)| g)
    }
}

/// Runs the passes on a forward graph, where nothing is asked about memory.
pub fn run(graph: Graph, front: &mut Front, purpose: &Purpose) -> Result<Trace, Bug> {
    run_within(graph, front, purpose, &MemoryRequest::default(), Precision::F32)
}

/// Runs the passes on a forward graph.
pub fn run_within(
    graph: Graph,
    front: &mut Front,
    purpose: &Purpose,
    memory: &MemoryRequest,
    precision: Precision,
) -> Result<Trace, Bug> {
    check("forward", &graph)?;
    let mut trace = Trace { stages: vec![("forward", graph, Duration::ZERO)] };
    for pass in PIPELINE {
        let start = Instant::now();
        let mut input = PassInput { front: &mut *front, purpose, memory, precision };
        let result = (pass.run)(trace.last(), &mut input);
        let mut graph = result.map_err(|fault| Bug { pass: pass.name, faults: vec![fault] })?;
        graph.stage = pass.leaves;
        check(pass.name, &graph)?;
        trace.stages.push((pass.name, graph, start.elapsed()));
    }
    Ok(trace)
}

fn check(pass: &'static str, graph: &Graph) -> Result<(), Bug> {
    verify(graph).map_err(|faults| Bug { pass, faults })
}

/// Where the state of a model lies, for every executable of a run.
pub fn state_layout(graph: &Graph, purpose: &Purpose) -> StateLayout {
    state_layout_for(graph, purpose, &MemoryRequest::default())
}

/// The same where a run asks that some of it lies in the host's memory, or is divided among ranks.
pub fn state_layout_for(graph: &Graph, purpose: &Purpose, memory: &MemoryRequest) -> StateLayout {
    let kept = match purpose {
        Purpose::Training(optimizer) | Purpose::Update(optimizer) => optimizer.state,
        Purpose::MicroBatch { state, .. } => *state,
        Purpose::Forward | Purpose::Gradients => Precision::F32,
    };
    let optimizer = match purpose {
        Purpose::Training(optimizer) | Purpose::Update(optimizer) => Some(optimizer),
        Purpose::Forward | Purpose::Gradients | Purpose::MicroBatch { .. } => None,
    };
    let last = |p| optimizer.is_some_and(|optimizer| !decays(graph, p, optimizer));
    let types = StateTypes::of(&graph.params, kept);
    let all = StateLayout::divided(&graph.params, types, last, memory.division());
    let all = all.with_partial_sums(memory.partial_sums);
    let all = match optimizer.is_some_and(|optimizer| optimizer.unclipped) {
        true => all.without_gradients(),
        false => all,
    };
    StateLayout { space: if memory.cpu_offload { Space::Host } else { Space::State }, ..all }
}

/// A fused graph as an executable for `units` threads.
pub fn finish(
    graph: &Graph,
    state: &StateLayout,
    target: impl Into<Target>,
) -> Result<Executable, Bug> {
    plan(graph, state, target).map_err(|fault| Bug { pass: "plan", faults: vec![fault] })
}

/// Does the graph give gradients?
pub fn has_gradients(graph: &Graph) -> bool {
    graph.outputs.iter().any(|r| matches!(r, OutputRole::Grad(_)))
}
