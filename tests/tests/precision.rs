//! Training in bf16: what rounding costs is within bounds, no way to save memory changes a bit, and
//! a run goes on from its checkpoint as if nothing had stopped.

use mdl_check::entry::EntryOptions;
use mdl_driver::front::Front;
use mdl_driver::pipeline::{Purpose, run_within};
use mdl_ir::graph::{Body, Graph, InputRole, Stage};
use mdl_ir::interp::{self, Env, mix};
use mdl_ir::op::Op;
use mdl_ir::rounding::{bf16_nearest, bf16_to_f32};
use mdl_ir::tensor::Tensor;
use mdl_ir::tensor_type::DType;
use mdl_kernels::Device;
use mdl_passes::executable::Speed;
use mdl_passes::request::{Budget, MemoryRequest, Precision};
use mdl_train::checkpoint;
use mdl_train::model::Model;
use mdl_train::packing::Stream;
use mdl_train::session::{Session, Settings, executables};
use safetensors::Dtype;
use std::path::PathBuf;
use std::sync::Arc;

const STEPS: usize = 3;
const THREADS: u32 = 2;
const SPEED: Speed = Speed { flops: 4e11, bytes: 2e10, host: 5e9 };

/// How the optimizer keeps its state where parameters are bf16.
const FORMS: [Precision; 2] = [Precision::F32, Precision::Bf16];

/// Half the distance between two bf16 around one: what one rounding loses at most.
const UNIT: f64 = 1.0 / 512.0;

/// What rounding may change of a loss: each of the n roundings between a token and its logits
/// changes those by a part of `UNIT`, and n of them in a row by √n of it. A loss is a difference of
/// two numbers of the size of the logits, which are about as large as itself.
fn loss_bound(loss: f64, roundings: u64) -> f64 {
    2.0 * UNIT * (roundings as f64).sqrt() * loss.abs().max(1.0)
}

fn settings(optimizer_state: Precision) -> Settings {
    Settings { precision: Precision::Bf16, optimizer_state, ..mdl_tests::settings(3, 37) }
}

fn open(file: &str, settings: Settings, device: &Arc<Device>) -> Session {
    let model = Model::open(file, Some("tiny")).expect("an embedded preset");
    Session::open(model, settings, device.clone()).expect("compiles")
}

fn stream() -> Stream {
    let ids = |n: u32| (0..n).map(|i| (i * i + 3 * i) % 250).collect::<Vec<u32>>();
    Stream::new(&[ids(211), ids(530)], 5)
}

/// Losses and gradient norms of some steps, as bits.
fn steps(session: &mut Session, n: usize) -> Vec<[u64; 2]> {
    let stream = stream();
    let step = |session: &mut Session| {
        let (b, t) = (session.settings.sequences() as usize, session.settings.t as usize);
        let batch = stream.batch(session.cursor, b, t).expect("long enough");
        let report = session.step(&batch);
        [report.loss.to_bits(), report.grad_norm.to_bits()]
    };
    (0..n).map(|_| step(session)).collect()
}

/// Parameters and moments as bits, by tensor.
fn state(session: &mut Session) -> Vec<Vec<u32>> {
    let parameters = session.snapshot(None, [None, None]).parameters;
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
    parameters.into_iter().map(|p| bits([p.value, p.m, p.v].concat())).collect()
}

/// Roundings in a body, those of a region as often as it is run.
fn roundings(body: &Body) -> u64 {
    let of = |op: &Op| match op {
        Op::Cast(DType::Bf16) | Op::Gather { .. } | Op::GroupedContract { .. } => 1,
        Op::Repeat { count, body, .. } => count * roundings(body),
        _ => 0,
    };
    body.nodes.iter().map(|n| of(&n.op)).sum()
}

/// Numbers that the type of each input holds exactly, the same ones for every precision as far as
/// that goes.
fn inputs(graph: &Graph) -> Vec<Tensor> {
    let noise = |i: u64| (mix(i) >> 11) as f64 / (1u64 << 52) as f64 - 1.0;
    let input = |(id, role): (&mdl_ir::graph::ValueId, &InputRole)| {
        let ty = graph.body.ty(*id).clone();
        let value = |i: u64| match role {
            InputRole::Data(name) if name == "documents" => (i % 24 / 9) as f64,
            InputRole::Data(_) => (mix(i) % 7) as f64,
            InputRole::Param(p) => {
                let axes = ty.axes.len() - usize::from(graph.params[*p].repeats.is_some());
                let x = 0.3 * noise(i ^ ((*p as u64) << 32)) + if axes == 1 { 1.0 } else { 0.0 };
                f64::from(match ty.dtype {
                    DType::Bf16 => bf16_to_f32(bf16_nearest(x as f32)),
                    _ => x as f32,
                })
            }
            _ => 0.0,
        };
        Tensor::new(ty.clone(), (0..ty.elements()).map(value).collect())
    };
    graph.body.inputs.iter().zip(&graph.inputs).map(input).collect()
}

#[test]
fn rounding_changes_a_loss_within_its_bound_and_fusion_not_at_all() {
    for (file, text) in mdl_tests::models() {
        let losses = [Precision::F32, Precision::Bf16].map(|precision| {
            let mut front = Front::load(&file, &text, &|_| None);
            let config = front.preset("ragged").expect("the preset binds");
            let sizes = vec![("B".to_string(), 2), ("T".to_string(), 24)];
            let options = EntryOptions { sizes, documents: true, auxiliary: true };
            let graph = front.build(&config, "loss", &options).expect("builds");
            let (purpose, memory) = (Purpose::Gradients, MemoryRequest::default());
            let trace = run_within(graph, &mut front, &purpose, &memory, precision).expect("runs");
            let forward = trace.at(Stage::Forward).expect("a stage of the pipeline");
            let training = trace.at(Stage::Training).expect("a stage of the pipeline");
            let run = |graph: &Graph| interp::run(&graph.body, inputs(graph), &Env::default());
            let (exact, fused) = (run(training), run(trace.last()));
            let rounds = precision == Precision::Bf16;
            assert!(!rounds || exact == fused, "{file}: fusion moves a rounding");
            let gradients = training.outputs.len() - forward.outputs.len();
            assert_eq!(gradients, training.params.len(), "{file}");
            (exact[0].data[0], roundings(&forward.body))
        });
        let [(exact, none), (rounded, some)] = losses;
        let (off, bound) = ((rounded - exact).abs(), loss_bound(exact, some));
        assert!(none < some && 0.0 < off && off < bound, "{file}: {exact} and {rounded}, {bound}");
    }
}

/// Every way to save memory that there is.
fn ways(file: &str, settings: &Settings) -> Vec<MemoryRequest> {
    let way = |again, offload, cpu_offload| MemoryRequest {
        activation_checkpointing: again,
        offload_activations: offload,
        cpu_offload,
        ..MemoryRequest::default()
    };
    let mut ways = vec![
        way(true, false, false),
        way(false, true, false),
        way(false, false, true),
        way(true, true, true),
    ];
    // A budget in the middle of what recomputation can do.
    let bytes = |memory: MemoryRequest| {
        let mut model = Model::open(file, Some("tiny")).expect("an embedded preset");
        let settings = Settings { memory, ..settings.clone() };
        let (_, step, _) = executables(&mut model, &settings, THREADS).expect("compiles");
        step.state_bytes() + step.work_bytes()
    };
    let (all, least) = (bytes(MemoryRequest::default()), bytes(way(true, false, false)));
    let device = least + all.saturating_sub(least) / 2;
    let budget =
        Budget { device, host: None, target: THREADS.into(), speed: SPEED, or_least: false };
    let budget = Some(budget);
    ways.push(MemoryRequest { budget, ..MemoryRequest::default() });
    ways
}

/// Models, and micro-batches of a step.
const CASES: [(&str, u64); 3] = [("llama", 1), ("llama", 2), ("mixtral", 1)];

#[test]
fn no_way_to_save_memory_changes_a_bit() {
    let device = Arc::new(Device::cpu(Some(THREADS)));
    for (file, gradient_accumulation) in CASES {
        for form in FORMS {
            let settings = Settings { gradient_accumulation, ..settings(form) };
            let mut plain = open(file, settings.clone(), &device);
            let expected = (steps(&mut plain, STEPS), state(&mut plain));
            for memory in ways(file, &settings) {
                let settings = Settings { memory, ..settings.clone() };
                let mut session = open(file, settings, &device);
                let got = (steps(&mut session, STEPS), state(&mut session));
                assert!(got == expected, "{file}: {form:?} moments, {memory:?}");
            }
        }
    }
}

#[test]
fn a_state_on_disk_changes_no_bit_and_has_the_bytes_of_its_elements() {
    let device = Arc::new(Device::cpu(Some(THREADS)));
    for form in FORMS {
        let mut plain = open("llama", settings(form), &device);
        let expected = (steps(&mut plain, STEPS), state(&mut plain));
        let mut away = settings(form);
        away.memory.cpu_offload = true;
        away.memory.state_on_disk = true;
        away.disk_offload = Some(folder(&format!("disk-{form:?}")));
        let mut session = open("llama", away, &device);
        assert_eq!(session.train.first.disk_bytes(), plain.train.allocated().0, "{form:?}");
        let got = (steps(&mut session, STEPS), state(&mut session));
        assert!(got == expected, "{form:?} moments");
    }
}

#[test]
fn losses_do_not_depend_on_threads_and_stay_near_those_of_f32() {
    let device = |threads| Arc::new(Device::cpu(Some(threads)));
    let exact = Settings { precision: Precision::F32, ..settings(Precision::F32) };
    let exact = steps(&mut open("llama", exact, &device(2)), STEPS);
    for form in FORMS {
        let mut session = open("llama", settings(form), &device(2));
        let losses = steps(&mut session, STEPS);
        assert_eq!(losses, steps(&mut open("llama", settings(form), &device(1)), STEPS));
        // Each step adds the error of its gradient, which has as many roundings again, and that of
        // what it stores.
        let roundings = 2 * roundings(&session.graph.body) + 1;
        for (n, (x, y)) in exact.iter().zip(&losses).enumerate() {
            let (x, y) = (f64::from_bits(x[0]), f64::from_bits(y[0]));
            let bound = loss_bound(x, roundings * (n as u64 + 1));
            assert!((x - y).abs() < bound, "{form:?} moments, step {n}: {x} and {y}, {bound}");
        }
    }
}

fn folder(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("mdl-precision-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    dir
}

#[test]
fn resuming_rejoins_the_curve_bit_for_bit() {
    let device = Arc::new(Device::cpu(Some(THREADS)));
    for (form, stored, named) in
        [(FORMS[0], Dtype::F32, "float32"), (FORMS[1], Dtype::BF16, "bfloat16")]
    {
        let session = || open("llama", settings(form), &device);
        let whole = steps(&mut session(), 6);
        let dir = folder(&format!("resume-{form:?}"));
        let mut first = session();
        steps(&mut first, 3);
        checkpoint::save(&dir, &first.snapshot(None, [None, None]), None).expect("saved");
        let checkpoint = checkpoint::open(&dir).expect("complete");
        let (weights, optimizer) = (checkpoint.weights(), checkpoint.optimizer());
        let (weights, optimizer) = (weights.expect("whole"), optimizer.expect("whole"));
        for (file, name) in [(&weights, "model.norm.weight"), (&optimizer, "v.model.norm.weight")] {
            let tensor = file.stored(name).expect("a tensor of the model");
            assert_eq!(tensor.dtype, stored, "{name}");
        }
        let config = checkpoint.text("config.json").expect("a file of the checkpoint");
        assert!(config.contains(&format!("\"dtype\": \"{named}\"")), "{config}");
        let run = checkpoint.text("run.json").expect("a file of the checkpoint");
        let run: Settings = serde_json::from_str(&run).expect("settings");
        assert_eq!((run.precision, run.optimizer_state), (Precision::Bf16, form));
        let mut second = session();
        second.resume(&checkpoint).expect("the same model");
        assert_eq!(state(&mut second), state(&mut first), "{form:?} moments");
        assert_eq!(steps(&mut second, 3), whole[3..], "{form:?} moments");
        std::fs::remove_dir_all(&dir).expect("written above");
    }
}
