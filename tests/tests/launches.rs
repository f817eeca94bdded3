//! Launch counts, traffic and peak memory of training steps, and whether the memory plan keeps its
//! promise.
//!
//! The numbers are exact and stand in `golden/launches.txt`: a change of a pass shows there in the
//! same commit. `cargo xtask test --bless` writes the file.

use mdl_check::entry::EntryOptions;
use mdl_driver::embedded;
use mdl_driver::front::Front;
use mdl_driver::pipeline::{Purpose, Trace, finish, run, state_layout};
use mdl_ir::graph::{Body, Node, OutputRole, Stage};
use mdl_ir::kernel::cost::work;
use mdl_ir::op::{Class, Op};
use mdl_passes::executable::{Arg, BufferPlan, Executable, Launch, Space, Step};
use mdl_passes::optimise::Optimizer;
use mdl_passes::request::Precision;
use std::fmt::Write;
use std::path::Path;

/// Kernels that one layer may take, forward and backward.
fn launches_allowed(model: &str) -> (usize, usize) {
    match model {
        // Routing ranks and weighs the experts, and takes its gradient.
        "mixtral" => (21, 44),
        _ => (12, 24),
    }
}

/// Sizes of the run, and the threads that workspaces are planned for.
const B: u64 = 2;
const T: u64 = 128;
const UNITS: u32 = 2;

/// A training step, planned.
fn planned(model: &str, preset: &str) -> Executable {
    traced(model, preset).1
}

/// The passes of a training step, and its plan.
fn traced(model: &str, preset: &str) -> (Trace, Executable) {
    let text = embedded::model(model).expect("the model is part of the compiler");
    let mut front = Front::load(&format!("models/{model}.mdl"), text, &|_| None);
    let config = front.preset(preset).expect("the preset binds");
    let options = EntryOptions {
        sizes: vec![("B".into(), B), ("T".into(), T)],
        documents: true,
        auxiliary: true,
    };
    let graph = front.build(&config, "loss", &options).expect("the loss can be built");
    let purpose = Purpose::Training(Optimizer {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        matrices_only: true,
        unclipped: false,
        state: Precision::F32,
    });
    let trace = run(graph, &mut front, &purpose).expect("the passes have no bug");
    let state = state_layout(trace.last(), &purpose);
    let executable = finish(trace.last(), &state, UNITS).expect("the plan has no bug");
    (trace, executable)
}

/// Bytes that the kernels of a step read and write.
fn moved(executable: &Executable) -> u64 {
    let bytes = |launch: &Launch| {
        let spec = &executable.specs[launch.spec];
        work(spec).map_or_else(|| launch.args.iter().map(|a| a.bytes).sum(), |work| work.bytes)
    };
    clocked(executable).into_iter().map(|(count, launch)| count * bytes(launch)).sum()
}

/// The same if each operation read its arguments from memory and wrote its results there.
fn moved_one_by_one(body: &Body) -> u64 {
    let of_node = |node: &Node| match &node.op {
        Op::Repeat { count, body, .. } => count * moved_one_by_one(body),
        op if matches!(op.class(), Class::View | Class::Source) => 0,
        _ => node.args.iter().chain(&node.results).map(|id| body.ty(*id).bytes()).sum(),
    };
    body.nodes.iter().map(of_node).sum()
}

/// Every preset with its model.
fn presets() -> Vec<(&'static str, String)> {
    let of = |(model, text): &(&'static str, &'static str)| {
        let presets = Front::load(&format!("models/{model}.mdl"), text, &|_| None).presets();
        let model = *model;
        presets.into_iter().map(move |preset| (model, preset))
    };
    embedded::MODELS.iter().flat_map(of).collect()
}

/// The loops of a training step: forward and backward.
fn loops(executable: &Executable) -> Vec<(u64, &[Launch])> {
    let loops = executable.steps.iter().filter_map(|step| match step {
        Step::Launch(_) => None,
        Step::Loop { count, body } => Some((*count, body.as_slice())),
    });
    loops.collect()
}

fn summary(model: &str, preset: &str, (trace, executable): &(Trace, Executable)) -> String {
    let placed = trace.at(Stage::Placed).expect("the stage before fusion");
    let loops = loops(executable);
    let [(layers, forward), (_, backward)] = loops[..] else {
        panic!("{preset}: a training step has two loops, not {}", loops.len());
    };
    let (forward, backward) = (forward.len(), backward.len());
    let allowed = launches_allowed(model);
    assert!(forward <= allowed.0, "{preset}: a layer takes {forward} launches forward");
    assert!(backward <= allowed.1, "{preset}: a layer takes {backward} backward");
    let outside = executable.steps.len() - 2;
    let mut out = String::new();
    let mut line = |what: &str, value: String| {
        let _ = writeln!(out, "  {what:<34} {value:>18}");
    };
    line("launches of a layer, forward", forward.to_string());
    line("launches of a layer, backward", backward.to_string());
    line("launches outside of layers", outside.to_string());
    line("launches of a step", executable.launches().to_string());
    line("layers", layers.to_string());
    line("kernels to compile", executable.specs.len().to_string());
    line("buffers", executable.buffers.len().to_string());
    line("bytes of weights and moments", executable.state_bytes.to_string());
    line("bytes of work, at the peak", executable.work_bytes.to_string());
    line("FLOPs of a step", executable.work().0.to_string());
    line("bytes that kernels move", moved(executable).to_string());
    line("bytes, one operation at a time", moved_one_by_one(&placed.body).to_string());
    format!("{model} {preset}\n{out}")
}

#[test]
fn launches_and_peaks_are_those_of_the_golden_file() {
    let mut text = format!("A training step with B={B} T={T} for {UNITS} threads.\n");
    for (model, preset) in presets() {
        let _ = write!(text, "\n{}", summary(model, &preset, &traced(model, &preset)));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/launches.txt");
    if std::env::var_os("MDL_BLESS").is_some() {
        std::fs::write(&path, &text).expect("the golden file can be written");
    }
    let golden = std::fs::read_to_string(&path).expect("the golden file is there");
    assert!(golden == text, "launches changed; `cargo xtask test --bless` accepts this:\n{text}");
}

/// The launches of a step in the order of the plan's clock, with the iterations of the loop that
/// they are in.
fn clocked(executable: &Executable) -> Vec<(u64, &Launch)> {
    let mut launches = Vec::new();
    for step in &executable.steps {
        match step {
            Step::Launch(launch) => launches.push((1, launch)),
            Step::Loop { count, body } => launches.extend(body.iter().map(|l| (*count, l))),
        }
    }
    launches
}

/// Clock intervals of the loops.
fn intervals(executable: &Executable) -> Vec<(usize, usize)> {
    let (mut clock, mut intervals) = (0, Vec::new());
    for step in &executable.steps {
        match step {
            Step::Launch(_) => clock += 1,
            Step::Loop { body, .. } => {
                intervals.push((clock, clock + body.len() - 1));
                clock += body.len();
            }
        }
    }
    intervals
}

fn apart(a: &BufferPlan, b: &BufferPlan) -> bool {
    let in_time = a.last < b.first || b.last < a.first;
    let in_space = a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset;
    in_time || in_space
}

/// Does this argument lie inside a buffer that is in use at this time, in every iteration?
fn covered(executable: &Executable, clock: usize, count: u64, arg: &Arg) -> bool {
    let range = |i: u64| {
        let start = arg.offset + arg.index.map_or(0, |index| index.at(i));
        (start, start + arg.bytes)
    };
    executable.buffers.iter().any(|b| {
        let live = b.space == arg.space && b.first <= clock && clock <= b.last;
        let inside = |i: u64| {
            let (from, to) = range(i);
            b.offset <= from && to <= b.offset + b.bytes
        };
        live && (0..count).all(inside)
    })
}

#[test]
fn buffers_in_use_at_one_time_never_overlap() {
    for (model, preset) in presets() {
        let executable = planned(model, &preset);
        let work: Vec<&BufferPlan> =
            executable.buffers.iter().filter(|b| b.space == Space::Work).collect();
        for (i, a) in work.iter().enumerate() {
            assert!(a.offset + a.bytes <= executable.work_bytes, "{preset}: {a:?} is outside");
            for b in &work[i + 1..] {
                assert!(apart(a, b), "{preset}: {a:?} and {b:?} overlap");
            }
        }
        // A buffer that an iteration hands to the next, or to what comes after, is in use for the
        // whole loop.
        for (begin, end) in intervals(&executable) {
            for b in &work {
                let around = b.first <= begin && end <= b.last;
                let within = begin <= b.first && b.last <= end;
                let outside = b.last < begin || end < b.first;
                assert!(around || within || outside, "{preset}: {b:?} ends inside a loop");
            }
        }
        for (clock, (count, launch)) in clocked(&executable).into_iter().enumerate() {
            for arg in &launch.args {
                let known = covered(&executable, clock, count, arg);
                assert!(known, "{preset}: {} uses {arg:?} at {clock}, which is free", launch.name);
            }
        }
    }
}

#[test]
fn parameters_moments_and_gradients_have_places_of_their_own() {
    for (model, preset) in presets() {
        let executable = planned(model, &preset);
        let inputs = executable.inputs.iter().map(|(_, slot)| slot);
        let gradients = executable.outputs.iter().filter_map(|(role, slot)| match role {
            OutputRole::Grad(_) => Some(slot),
            _ => None,
        });
        let state = inputs.chain(gradients).filter(|slot| slot.space == Space::State);
        let mut places: Vec<(u64, u64)> =
            state.flat_map(|slot| slot.parts(0)).map(|p| (p.offset, p.elements * 4)).collect();
        places.sort_unstable();
        for pair in places.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{preset}: {pair:?} overlap");
        }
        let end = places.last().map_or(0, |(offset, bytes)| offset + bytes);
        assert!(end <= executable.state_bytes, "{preset}: state ends at {end}");
    }
}

#[test]
fn the_plan_of_a_deep_model_is_as_short_as_that_of_a_shallow_one() {
    let shape = |executable: &Executable| {
        let loops: Vec<usize> = loops(executable).iter().map(|(_, body)| body.len()).collect();
        (executable.steps.len(), loops, executable.buffers.len())
    };
    for (model, deep) in [("llama", "llama2_70b"), ("mixtral", "mixtral_8x7b")] {
        assert_eq!(shape(&planned(model, deep)), shape(&planned(model, "tiny")), "{deep}");
    }
}
