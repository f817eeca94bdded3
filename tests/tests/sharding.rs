//! Steps on several ranks: loss, gradient norm, parameters and moments are the same to the bit,
//! however the micro-batches of a step are divided among ranks and machines.

use mdl_driver::pipeline::{Purpose, run_within};
use mdl_ir::graph::{Graph, InputRole, Param, ValueId};
use mdl_ir::interp::{Env, mix, run};
use mdl_ir::kernel::KernelSpec;
use mdl_ir::op::Collective;
use mdl_ir::tensor::Tensor;
use mdl_kernels::Device;
use mdl_passes::executable::Step;
use mdl_passes::plan::ALIGNMENT;
use mdl_passes::request::{MemoryRequest, Mesh, Precision, Sharding};
use mdl_train::checkpoint;
use mdl_train::model::Model;
use mdl_train::packing::{Evaluation, Stream};
use mdl_train::session::{Session, Settings, executables, options};
use std::sync::Arc;

const T: u64 = 24;
const STEPS: usize = 3;

/// Models by name and preset: a matrix of its own for the vocabulary, experts, and one matrix that
/// is the embedding too.
const MODELS: [(&str, &str); 3] =
    [("llama", "tiny"), ("mixtral", "tiny"), ("llama", "bytes_small")];

/// A mesh, how the state is divided in it, and the micro-batches of a rank.
type Split = (u64, u64, Sharding, u64);

/// Eight micro-batches, the first row on one rank.
const SPLITS: [Split; 8] = [
    (1, 1, Sharding::Full, 8),
    (1, 2, Sharding::Full, 4),
    (1, 4, Sharding::Full, 2),
    (1, 8, Sharding::Full, 1),
    (2, 2, Sharding::Hybrid, 2),
    (2, 4, Sharding::Hybrid, 1),
    (2, 4, Sharding::Full, 1),
    (1, 2, Sharding::None, 4),
];

fn settings((machines, devices, sharding, gradient_accumulation): Split) -> Settings {
    let mesh = Mesh::new(machines, devices).expect("powers of two");
    let memory = MemoryRequest { mesh: Some(mesh), sharding, ..Default::default() };
    Settings { memory, gradient_accumulation, ..mdl_tests::settings(1, T) }
}

fn open((model, preset): (&str, &str), settings: Settings) -> Session {
    let model = Model::open(model, Some(preset)).expect("an embedded preset");
    Session::open(model, settings, Arc::new(Device::cpu(Some(1)))).expect("compiles")
}

fn steps(session: &mut Session, n: usize) -> Vec<[u64; 2]> {
    let ids: Vec<u32> = (0..700).map(|i| (i * i + 3 * i) % 61).collect();
    let stream = Stream::new(&[ids.clone(), ids[7..90].to_vec()], 5);
    let step = |_| {
        let sequences = session.settings.sequences() as usize;
        let batch = stream.batch(session.cursor, sequences, T as usize).expect("long enough");
        let report = session.step(&batch);
        [report.loss.to_bits(), report.grad_norm.to_bits()]
    };
    (0..n).map(step).collect()
}

/// All parameters and moments, as bits.
fn state(session: &mut Session) -> Vec<Vec<u32>> {
    let parameters = session.snapshot(None, [None, None]).parameters;
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
    parameters.into_iter().map(|p| bits([p.value, p.m, p.v].concat())).collect()
}

/// Mean loss over some windows, as bits; they are no multiple of any number of ranks.
fn validated(session: &Session) -> (u64, u64) {
    let ids: Vec<u32> = (0..300).map(|i| (i * 7 + i * i) % 61).collect();
    let (loss, targets) = session.validate(&Evaluation::new(vec![ids], T as usize), 5);
    (loss.to_bits(), targets)
}

type Trained = (Vec<[u64; 2]>, Vec<Vec<u32>>, (u64, u64));

fn trained(mut session: Session) -> Trained {
    let reports = steps(&mut session, STEPS);
    (reports, state(&mut session), validated(&session))
}

#[test]
fn every_split_of_a_step_trains_the_same_to_the_bit() {
    for model in MODELS {
        let one = trained(open(model, settings(SPLITS[0])));
        assert!(f64::from_bits(one.0[STEPS - 1][0]) < f64::from_bits(one.0[0][0]), "{model:?}");
        // Every split with one model, and with the others two, four and eight ranks.
        let some = [SPLITS[1], SPLITS[4], SPLITS[5]];
        let splits = if model == MODELS[0] { &SPLITS[1..] } else { &some[..] };
        for split in splits {
            let other = trained(open(model, settings(*split)));
            assert_eq!(one.0, other.0, "{model:?} {split:?}: losses and norms");
            assert!(one.1 == other.1, "{model:?} {split:?}: parameters and moments");
            assert_eq!(one.2, other.2, "{model:?} {split:?}: validation");
        }
    }
}

/// Layers that are computed again, activations that wait in the host's memory, and both, within the
/// ranks as without them.
#[test]
fn saving_memory_changes_no_bit_of_a_rank() {
    let with = |split: Split, activation_checkpointing, offload_activations| {
        let mut settings = settings(split);
        settings.memory.activation_checkpointing = activation_checkpointing;
        settings.memory.offload_activations = offload_activations;
        trained(open(MODELS[0], settings))
    };
    for (again, away, split) in
        [(true, false, SPLITS[1]), (false, true, SPLITS[4]), (true, true, SPLITS[2])]
    {
        let one = with(SPLITS[0], again, away);
        assert!(one == with(split, again, away), "{split:?} {again} {away}");
    }
}

/// Numbers of micro-batches that are no power of two leave several partial sums.
#[test]
fn six_micro_batches_are_summed_up_the_same_way() {
    let one = trained(open(MODELS[0], settings((1, 1, Sharding::Full, 6))));
    assert!(one == trained(open(MODELS[0], settings((1, 2, Sharding::Full, 3)))));
}

/// Sums are rounded at every node of the tree, in a collective as in a section of partial sums.
#[test]
fn ranks_agree_in_bf16_too() {
    for optimizer_state in [Precision::F32, Precision::Bf16] {
        let with = |split: Split| {
            let precision = Precision::Bf16;
            let settings = Settings { precision, optimizer_state, ..settings(split) };
            trained(open(MODELS[0], settings))
        };
        let one = with(SPLITS[0]);
        for split in [SPLITS[1], SPLITS[5]] {
            assert!(one == with(split), "{split:?} {optimizer_state:?}");
        }
    }
}

#[test]
fn a_rank_has_its_part_of_the_state_and_what_was_planned() {
    for model in MODELS {
        let planned = |split: Split| {
            let (name, preset) = model;
            let mut model = Model::open(name, Some(preset)).expect("an embedded preset");
            executables(&mut model, &settings(split), 1).expect("compiles").1
        };
        // One micro-batch on each rank: there are no partial sums.
        let all = planned((1, 1, Sharding::Full, 1)).state_bytes();
        for split in SPLITS.iter().filter(|(machines, devices, ..)| machines * devices > 1) {
            let (machines, devices, sharding, micro_batches) = *split;
            let pieces = match sharding {
                Sharding::None => 1,
                Sharding::Hybrid => devices,
                Sharding::Full => machines * devices,
            };
            let plan = planned(*split);
            let sections = 4 + u64::from(micro_batches.ilog2());
            assert_eq!(plan.state_bytes() * pieces * 4, all * sections, "{model:?} {split:?}");
            let session = open(model, settings(*split));
            let each = (plan.state_bytes(), plan.work_bytes());
            for machine in session.train.holders() {
                assert_eq!(machine.allocated(), each, "{model:?} {split:?}");
            }
            assert_eq!(session.train.holders().len() as u64, machines * devices);
        }
    }
}

/// What goes over the wire is the state: parameters twice, forward and backward, and gradients once
/// for each micro-batch, but for what lies outside of layers, which comes in again.
#[test]
fn collectives_add_up() {
    let mut model = Model::open("llama", Some("tiny")).expect("an embedded preset");
    let plan = executables(&mut model, &settings((1, 4, Sharding::Full, 2)), 2);
    let (graph, plan, _) = plan.expect("compiles");
    let mut bytes = [0; 3];
    for (e, times) in plan.runs() {
        for step in &e.steps {
            let (count, body) = match step {
                Step::Launch(launch) => (1, std::slice::from_ref(launch)),
                Step::Loop { count, body } => (*count, &body[..]),
            };
            for launch in body {
                if let KernelSpec::Collective(spec) = &e.specs[launch.spec] {
                    let at = Collective::ALL.iter().position(|kind| *kind == spec.kind);
                    bytes[at.expect("a kind")] += times * count * spec.bytes();
                    assert_eq!((spec.group.ranks, spec.group.stride), (4, 1));
                    assert!(spec.wire_bytes() * 4 == spec.bytes() * 3 || spec.len == 1);
                }
            }
        }
    }
    let padded =
        |p: &Param| p.repeats.unwrap_or(1) * p.slice_type().bytes().next_multiple_of(8 * ALIGNMENT);
    let sum = |stacked: bool| -> u64 {
        graph.params.iter().filter(|p| p.repeats.is_some() == stacked).map(padded).sum()
    };
    let [gathered, scattered, reduced] = bytes;
    assert_eq!(scattered, 2 * (sum(true) + sum(false)), "two micro-batches");
    assert_eq!(gathered, 2 * (2 * sum(true) + sum(false)), "tables once, layers twice");
    assert_eq!(reduced, 4, "the sum of squares");
}

/// In the interpreter, where a rank is alone, a graph means what it did.
#[test]
fn a_sharded_graph_means_the_same() {
    let mut model = Model::open("llama", Some("tiny")).expect("an embedded preset");
    let graph = model.graph("loss", &options(2, 8, true)).expect("builds");
    let traced = |model: &mut Model, mesh| {
        let memory = MemoryRequest { mesh, ..Default::default() };
        let (state, front) = (Precision::F32, &mut model.front);
        let purpose = Purpose::MicroBatch { first: true, state };
        let trace = run_within(graph.clone(), front, &purpose, &memory, Precision::F32);
        trace.expect("no bug").last().clone()
    };
    let whole = traced(&mut model, None);
    let divided = traced(&mut model, Some(Mesh::new(2, 4).expect("powers of two")));
    let text = mdl_ir::print::print(&divided);
    let again = mdl_ir::read::read(&text).expect("a text form");
    assert_eq!(mdl_ir::print::print(&again), text);
    let inputs = |graph: &Graph| -> Vec<Tensor> {
        let tensor = |(id, role): (&ValueId, &InputRole)| {
            let ty = graph.body.ty(*id).clone();
            let value = |i: u64| match role {
                InputRole::Data(_) => (i % 7) as f64,
                _ => (mix(i) >> 11) as f64 / (1u64 << 53) as f64 - 0.5,
            };
            Tensor::new(ty.clone(), (0..ty.elements()).map(value).collect())
        };
        graph.body.inputs.iter().zip(&graph.inputs).map(tensor).collect()
    };
    let results = |graph: &Graph| run(&graph.body, inputs(graph), &Env::default());
    assert_eq!(whole.outputs, divided.outputs);
    assert!(results(&whole) == results(&divided));
}

/// A checkpoint does not know the mesh: two ranks save, four go on.
#[test]
fn a_run_goes_on_on_another_mesh() {
    let dir = std::env::temp_dir().join(format!("mdl-sharding-{}", std::process::id()));
    let whole = steps(&mut open(MODELS[0], settings(SPLITS[0])), STEPS);
    let mut first = open(MODELS[0], settings(SPLITS[1]));
    assert_eq!(steps(&mut first, 2), whole[..2]);
    checkpoint::save(&dir, &first.snapshot(None, [None, None]), None).expect("saved");
    for split in [SPLITS[2], SPLITS[4]] {
        let mut second = open(MODELS[0], settings(split));
        second.resume(&checkpoint::open(&dir).expect("complete")).expect("the same model");
        assert_eq!(steps(&mut second, STEPS - 2), whole[2..], "{split:?}");
    }
    std::fs::remove_dir_all(&dir).expect("written above");
}

#[test]
fn what_does_not_go_together_is_refused() {
    for (machines, devices) in [(0, 1), (1, 3), (2, 6), (1, 1 << 20)] {
        assert!(Mesh::new(machines, devices).is_err(), "{machines}x{devices}");
    }
    let mut asked = settings(SPLITS[1]);
    asked.memory.cpu_offload = true;
    let model = Model::open("llama", Some("tiny")).expect("an embedded preset");
    let refused = Session::open(model, asked, Arc::new(Device::cpu(Some(1))));
    let said = refused.expect_err("two places for one state").to_string();
    assert!(said.starts_with("error[E0941]") && said.contains("leave out --cpu_offload"), "{said}");
}
