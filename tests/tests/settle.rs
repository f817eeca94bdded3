//! Without clipping a gradient is used as soon as it is made: training is the same to the bit as
//! with a limit that no norm reaches, and the state has no section of gradients.

use mdl_kernels::Device;
use mdl_passes::request::{MemoryRequest, Precision};
use mdl_train::model::Model;
use mdl_train::packing::Stream;
use mdl_train::session::{Session, Settings, executables};
use std::path::Path;
use std::sync::Arc;

const STEPS: u64 = 4;
/// No norm reaches it, so every gradient is scaled by exactly one.
const NO_LIMIT: f64 = 1e30;

/// Every model with the preset that kernels are tested on.
fn models() -> Vec<Name> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let own = mdl_tests::models();
    let own = own.iter().map(|(name, _)| (folder.join(name).display().to_string(), "ragged"));
    ["llama", "mixtral"].map(|name| (name.to_string(), "tiny")).into_iter().chain(own).collect()
}

/// Ways to keep less on the device, all of which leave the bits alone.
fn requests() -> [MemoryRequest; 3] {
    let plain = MemoryRequest::default();
    let all = MemoryRequest { activation_checkpointing: true, offload_activations: true, ..plain };
    [
        plain,
        MemoryRequest { cpu_offload: true, ..plain },
        MemoryRequest { cpu_offload: true, ..all },
    ]
}

/// A model's file and preset.
type Name = (String, &'static str);
/// How parameters and the optimizer's state are stored.
type Form = (Precision, Precision);

const FORMS: [Form; 3] = [
    (Precision::F32, Precision::F32),
    (Precision::Bf16, Precision::F32),
    (Precision::Bf16, Precision::Bf16),
];

/// Every model in f32, and the embedded ones in all forms.
fn cases() -> Vec<(Name, Form)> {
    let forms = |name: &(String, &str)| if name.1 == "tiny" { &FORMS[..] } else { &FORMS[..1] };
    let each =
        |name: Name| forms(&name).iter().map(|form| (name.clone(), *form)).collect::<Vec<_>>();
    models().into_iter().flat_map(each).collect()
}

fn settings(grad_clip: f64, memory: MemoryRequest, form: Form) -> Settings {
    let (precision, optimizer_state) = form;
    let plain = mdl_tests::settings(2, 37);
    Settings { grad_clip, memory, precision, optimizer_state, max_steps: STEPS, ..plain }
}

/// What a run leaves: losses, norms of gradients, and parameters and moments, as bits.
struct Trained {
    losses: Vec<u64>,
    norms: Vec<f64>,
    state: Vec<Vec<u32>>,
}

fn trained(name: &(String, &str), settings: Settings, device: &Arc<Device>) -> Trained {
    let model = Model::open(&name.0, Some(name.1)).expect("a model of this repository");
    let mut session = Session::open(model, settings, device.clone()).expect("compiles");
    let ids: Vec<u32> = (0..700).map(|i| (i * i + 3 * i) % 61).collect();
    let stream = Stream::new(&[ids], 5);
    let reports: Vec<_> = (0..STEPS)
        .map(|_| session.step(&stream.batch(session.cursor, 2, 37).expect("long enough")))
        .collect();
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
    let parameters = session.snapshot(None, [None, None]).parameters;
    Trained {
        losses: reports.iter().map(|r| r.loss.to_bits()).collect(),
        norms: reports.iter().map(|r| r.grad_norm).collect(),
        state: parameters.into_iter().map(|p| bits([p.value, p.m, p.v].concat())).collect(),
    }
}

/// Norms are the same sum in another order. Each order is off by a rounding of f32 for each of the
/// few hundred terms that follow each other, at the very most.
const NORM_TOLERANCE: f64 = 300.0 * f32::EPSILON as f64;

#[test]
fn updates_at_once_are_those_after_the_last_gradient() {
    let device = Arc::new(Device::cpu(Some(2)));
    for (name, form) in cases() {
        let after = trained(&name, settings(NO_LIMIT, MemoryRequest::default(), form), &device);
        for memory in requests() {
            let at_once = trained(&name, settings(0.0, memory, form), &device);
            let what = format!("{}, {form:?}, {memory:?}", name.0);
            assert_eq!(at_once.losses, after.losses, "{what}");
            assert!(at_once.state == after.state, "{what}: the state differs");
            for (a, b) in at_once.norms.iter().zip(&after.norms) {
                assert!((a - b).abs() <= NORM_TOLERANCE * b, "{}: norms {a} and {b}", name.0);
            }
        }
    }
}

#[test]
fn the_state_has_no_gradients() {
    let form = (Precision::F32, Precision::F32);
    for name in models() {
        let bytes = |grad_clip, cpu_offload| {
            let mut model = Model::open(&name.0, Some(name.1)).expect("a model");
            let memory = MemoryRequest { cpu_offload, ..MemoryRequest::default() };
            let (_, step, _) =
                executables(&mut model, &settings(grad_clip, memory, form), 2).expect("compiles");
            step.state_bytes() + step.host_state_bytes()
        };
        for cpu_offload in [false, true] {
            let (with, without) = (bytes(1.0, cpu_offload), bytes(0.0, cpu_offload));
            assert_eq!(with / 4 * 3, without, "{}", name.0);
        }
    }
}
