//! Fused executables on the CPU and on a software Vulkan against the interpreter in f64, on the
//! graph before fusion.
//!
//! Whatever a pass after differentiation or a kernel does wrong shows here. Sizes are ragged: no
//! axis is a multiple of a vector, a tile or a block. Besides the embedded models, `tests/models`
//! holds architectures that go the generic path: nothing in the compiler knows of them.

use mdl_check::entry::EntryOptions;
use mdl_driver::embedded;
use mdl_driver::front::Front;
use mdl_driver::pipeline::{Purpose, finish, run, state_layout};
use mdl_ir::graph::{Graph, InputRole, OutputRole, Stage};
use mdl_ir::interp::{self, Env, mix};
use mdl_ir::kernel::KernelSpec;
use mdl_ir::tensor::Tensor;
use mdl_ir::tensor_type::{DType, Type};
use mdl_kernels::Device;
use mdl_passes::executable::Executable;
use mdl_passes::incremental::{START, incremental};
use mdl_train::machine::Machine;
use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;

/// ‖difference‖ / ‖exact‖ of a tensor. One rounding of f32 is 6·10⁻⁸; a sum of k ≤ 400 products in
/// random order loses √k of them, 1.2·10⁻⁶, and the errors of some forty kernels in a row add up
/// like a random walk: 8·10⁻⁶.
const TOLERANCE: f64 = 1e-5;

/// Models above this many parameters are left to `mdlc compare`.
const SMALL: u64 = 1_000_000;

const B: u64 = 3;
const T: u64 = 37;

/// Of `tests/models`, those that a GPU in software runs too: it takes a second for each kernel.
const SOFTWARE: [&str; 2] = ["grouped.mdl", "odd.mdl"];

/// Tokens that are generated one after the other.
const CONTINUED: u64 = 13;

const RAGGED: &str = "
preset ragged: Llama {
    hidden = 36, layers = 2, kv_heads = 2, group = 3, head = 12, ffn = 133, vocab = 331
}

preset ragged_tied: Llama {
    hidden = 36, layers = 3, kv_heads = 1, group = 2, head = 10, ffn = 31, vocab = 67, tied = true
    rope = Rope(base: 500_000, scaling: \"llama3\", factor: 32, low: 1, high: 4, original: 8192)
}

preset one_layer: Llama {
    hidden = 20, layers = 1, kv_heads = 5, group = 1, head = 4, ffn = 7, vocab = 19
}
";

fn ragged_llama() -> String {
    let text = embedded::model("llama").expect("llama is part of the compiler").to_string();
    text + RAGGED
}

/// A number in (−1, 1).
fn noise(seed: u64, i: u64) -> f64 {
    (mix(mix(seed) ^ i) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// Values that an f32 holds exactly. Weights keep the size of what they are applied to; gains lie
/// around one.
fn weights(ty: &Type, repeated: bool, seed: u64) -> Tensor {
    let axes = &ty.axes[usize::from(repeated)..];
    let value = |i: u64| match axes {
        [_] => 1.0 + 0.3 * noise(seed, i),
        _ => 0.3 * noise(seed, i),
    };
    let data = (0..ty.elements()).map(|i| f64::from(value(i) as f32)).collect();
    Tensor::new(ty.clone(), data)
}

/// Tokens, targets of which some are ignored, and documents that end inside a sequence.
fn data(name: &str, ty: &Type, vocab: u64) -> Tensor {
    let value = |i: u64| match name {
        "documents" => ((i % T) / (5 + 7 * (i / T))) as f64,
        "targets" if mix(i).is_multiple_of(7) => -1.0,
        _ => (mix(i ^ 0xda7a) % vocab) as f64,
    };
    Tensor::new(ty.clone(), (0..ty.elements()).map(value).collect())
}

fn inputs(graph: &Graph) -> Vec<Tensor> {
    let table = graph.params.iter().find_map(|p| p.ty.axis("vocab".into()));
    let vocab = table.expect("a language model has a vocabulary").size;
    let input = |(id, role): (&mdl_ir::graph::ValueId, &InputRole)| {
        let ty = graph.body.ty(*id);
        match role {
            InputRole::Param(p) => weights(ty, graph.params[*p].repeats.is_some(), *p as u64),
            InputRole::Data(name) => data(name, ty, vocab),
            _ => Tensor::zeros(ty.clone()),
        }
    };
    graph.body.inputs.iter().zip(&graph.inputs).map(input).collect()
}

/// The largest relative error of any output, with its name.
fn worst(graph: &Graph, executable: Executable, device: &Arc<Device>) -> (f64, String) {
    let inputs = inputs(graph);
    let machine = Machine::new(device.clone(), executable);
    for (role, value) in graph.inputs.iter().zip(&inputs) {
        let Some(slot) = machine.executable.input(role) else { continue };
        match value.ty.dtype {
            DType::I32 => {
                machine.write_ids(slot, &value.data.iter().map(|x| *x as i32).collect::<Vec<_>>());
            }
            _ => machine.write(slot, &value.data.iter().map(|x| *x as f32).collect::<Vec<_>>()),
        }
    }
    // The second run finds the memory as the first one left it.
    machine.run();
    machine.run();
    let exact = interp::run(&graph.body, inputs, &Env::default());
    let mut worst = (0.0, String::from("nothing"));
    for (role, exact) in graph.outputs.iter().zip(&exact) {
        let got = machine.read_output(role).expect("the executable has every output");
        let square = |x: f64| x * x;
        let off: f64 = got.iter().zip(&exact.data).map(|(g, e)| square(f64::from(*g) - e)).sum();
        let norm: f64 = exact.data.iter().map(|e| square(*e)).sum();
        let error = off.sqrt() / norm.sqrt().max(f64::MIN_POSITIVE);
        let error = if error.is_nan() { f64::INFINITY } else { error };
        if error > worst.0 {
            worst = (error, name(graph, role));
        }
    }
    worst
}

fn name(graph: &Graph, role: &OutputRole) -> String {
    match role {
        OutputRole::Grad(p) => format!("gradient of {}", graph.params[*p].name),
        _ => format!("{role:?}"),
    }
}

/// Compiles and compares the entries of a preset.
fn agree(file: &str, text: &str, preset: &str, on: &mut On) -> Vec<String> {
    let mut faults = Vec::new();
    for (entry, purpose, documents) in [
        ("logits", Purpose::Forward, false),
        ("loss", Purpose::Forward, true),
        ("loss", Purpose::Gradients, false),
        ("loss", Purpose::Gradients, true),
    ] {
        let what = format!("{file}, {preset}: {entry}, {purpose:?}, documents: {documents}");
        match compare(file, text, preset, (entry, &purpose, documents), on) {
            Err(fault) => faults.push(format!("{what}: {fault}")),
            Ok((error, tensor)) if error > TOLERANCE => {
                faults.push(format!("{what}: {tensor} is off by {error:.1e}"));
            }
            Ok(_) => {}
        }
    }
    faults
}

fn compare(
    file: &str,
    text: &str,
    preset: &str,
    (entry, purpose, documents): (&str, &Purpose, bool),
    on: &mut On,
) -> Result<(f64, String), String> {
    let mut front = Front::load(file, text, &|_| None);
    front.check();
    let config = if front.failed() { None } else { front.preset(preset) };
    let config = config.ok_or_else(|| front.report(false))?;
    let sizes = vec![("B".into(), B), ("T".into(), T)];
    let graph = front.build(&config, entry, &EntryOptions { sizes, documents, auxiliary: true });
    let graph = graph.ok_or_else(|| front.report(false))?;
    if graph.param_count() > SMALL {
        return Ok((0.0, String::from("nothing")));
    }
    let trace = run(graph, &mut front, purpose).map_err(|bug| bug.to_string())?;
    let state = state_layout(trace.last(), purpose);
    let executable =
        finish(trace.last(), &state, on.device.target()).map_err(|bug| bug.to_string())?;
    on.ran.extend(executable.specs.iter().cloned());
    let graph = trace.at(Stage::Training).ok_or("every compilation has this stage")?;
    Ok(worst(graph, executable, &on.device))
}

/// Logits of one token after the other, with caches, against those of the whole sequence: the
/// largest relative error of a position.
fn generation(file: &str, text: &str, preset: &str, on: &mut On) -> Result<f64, String> {
    let mut front = Front::load(file, text, &|_| None);
    let config = front.preset(preset).ok_or_else(|| front.report(false))?;
    let mut graph = |t: u64| {
        let sizes = vec![("B".into(), 1), ("T".into(), t)];
        let graph = front.build(
            &config,
            "logits",
            &EntryOptions { sizes, documents: false, auxiliary: false },
        );
        graph.ok_or_else(|| front.report(false))
    };
    let (whole, step) = (graph(CONTINUED)?, incremental(&graph(1)?, "T", CONTINUED)?);
    let exact = interp::run(&whole.body, inputs(&whole), &Env::default()).remove(0).data;
    let trace = run(step, &mut front, &Purpose::Forward).map_err(|bug| bug.to_string())?;
    let state = state_layout(trace.last(), &Purpose::Forward);
    let executable =
        finish(trace.last(), &state, on.device.target()).map_err(|bug| bug.to_string())?;
    on.ran.extend(executable.specs.iter().cloned());
    let machine = Machine::new(on.device.clone(), executable);
    let mut tokens = Vec::new();
    for (role, value) in whole.inputs.iter().zip(inputs(&whole)) {
        match role {
            InputRole::Param(_) => {
                let values: Vec<f32> = value.data.iter().map(|x| *x as f32).collect();
                machine.write_input(role, &values);
            }
            _ => tokens = value.data,
        }
    }
    let mut worst = 0.0f64;
    for (at, (token, exact)) in
        tokens.iter().zip(exact.chunks(exact.len() / CONTINUED as usize)).enumerate()
    {
        machine.write_data(START, &[at as i32]);
        machine.write_data("tokens", &[*token as i32]);
        machine.run();
        let got = machine.read_value("logits").ok_or("logits come out")?;
        let off: f64 = got.iter().zip(exact).map(|(g, e)| (f64::from(*g) - e).powi(2)).sum();
        let norm: f64 = exact.iter().map(|e| e * e).sum();
        let error = (off / norm.max(f64::MIN_POSITIVE)).sqrt();
        worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
    }
    Ok(worst)
}

/// A device, and the kernels that ran on it.
struct On {
    device: Arc<Device>,
    ran: Vec<KernelSpec>,
}

impl On {
    fn new(device: Device) -> On {
        On { device: Arc::new(device), ran: Vec::new() }
    }

    fn cpu() -> On {
        On::new(Device::cpu(None))
    }
}

/// The kernels that logits and gradients are made of. A new one has to be in a row below.
const KINDS: [&str; 10] = [
    "region",
    "contract",
    "attention",
    "attention_grad",
    "linear_cross_entropy",
    "gather",
    "scatter_add",
    "grouped_contract",
    "grouped_outer",
    "cache_write",
];

fn kind(spec: &KernelSpec) -> Option<&'static str> {
    let row = match spec {
        KernelSpec::Region(_) => 0,
        KernelSpec::Contract(_) => 1,
        KernelSpec::Attention(_) => 2,
        KernelSpec::AttentionGrad(_) => 3,
        KernelSpec::LinearCrossEntropy(_) => 4,
        KernelSpec::Gather(_) => 5,
        KernelSpec::ScatterAdd(_) => 6,
        KernelSpec::GroupedContract(_) => 7,
        KernelSpec::GroupedOuter(_) => 8,
        KernelSpec::CacheWrite(_) => 9,
        // Those of accumulation and of the optimizer, which `software_gpu` takes steps with.
        KernelSpec::ContractAdd(_)
        | KernelSpec::SumOfSquares(_)
        | KernelSpec::MoreSquares(_)
        | KernelSpec::AdamW(_) => return None,
        // Between memories and between ranks; no kernels.
        KernelSpec::Transfer | KernelSpec::Collective(_) => return None,
    };
    Some(KINDS[row])
}

#[test]
fn small_presets_of_embedded_models_agree_with_the_interpreter() {
    let mut on = On::cpu();
    let mut faults = Vec::new();
    for (name, text) in embedded::MODELS {
        let file = format!("models/{name}.mdl");
        for preset in Front::load(&file, text, &|_| None).presets() {
            faults.extend(agree(&file, text, &preset, &mut on));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn ragged_llamas_agree_with_the_interpreter() {
    let (mut on, text) = (On::cpu(), ragged_llama());
    let mut faults = Vec::new();
    for preset in ["ragged", "ragged_tied", "one_layer"] {
        faults.extend(agree("models/llama.mdl", &text, preset, &mut on));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn other_architectures_agree_with_the_interpreter() {
    let mut on = On::cpu();
    let mut faults = Vec::new();
    for (file, text) in mdl_tests::models() {
        // `small` is for gradients by differences.
        let presets = Front::load(&file, &text, &|_| None).presets();
        for preset in presets.iter().filter(|preset| *preset != "small") {
            faults.extend(agree(&file, &text, preset, &mut on));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn generation_with_caches_is_the_full_forward_pass() {
    let mut on = On::cpu();
    let mut models = mdl_tests::models();
    models.push(("models/llama.mdl".to_string(), ragged_llama()));
    let mut faults = Vec::new();
    for (file, text) in models {
        match generation(&file, &text, "ragged", &mut on) {
            Err(fault) => faults.push(format!("{file}: {fault}")),
            Ok(error) if error > TOLERANCE => faults.push(format!("{file}: off by {error:.1e}")),
            Ok(_) => {}
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// What runs on any GPU: every kind of kernel, with planes and cubes of many units.
#[test]
fn every_kind_of_kernel_on_a_software_vulkan_agrees_with_the_interpreter() {
    let mut on = On::new(Device::wgpu().expect("`cargo xtask test` installs a Vulkan in software"));
    let llama = ragged_llama();
    let mut faults = agree("models/llama.mdl", &llama, "ragged", &mut on);
    faults.extend(agree("models/llama.mdl", &llama, "ragged_tied", &mut on));
    let models = mdl_tests::models();
    for (file, text) in models.iter().filter(|(file, _)| SOFTWARE.contains(&file.as_str())) {
        faults.extend(agree(file, text, "ragged", &mut on));
    }
    match generation("models/llama.mdl", &llama, "ragged", &mut on) {
        Err(fault) => faults.push(fault),
        Ok(error) if error > TOLERANCE => faults.push(format!("generation is off by {error:.1e}")),
        Ok(_) => {}
    }
    let mut kernels: Vec<KernelSpec> = Vec::new();
    for spec in std::mem::take(&mut on.ran) {
        if !kernels.contains(&spec) {
            kernels.push(spec);
        }
    }
    let ran: BTreeSet<&str> = kernels.iter().filter_map(kind).collect();
    let skipped: Vec<&str> = KINDS.into_iter().filter(|kind| !ran.contains(kind)).collect();
    // Past the harness, which shows what a test prints only where it fails.
    let planes = on.device.plane_units();
    let count = kernels.len();
    let line = format!("{count} kernels of {} kinds on a GPU with planes of {planes}\n", ran.len());
    std::io::stderr().write_all(line.as_bytes()).expect("stderr is open");
    assert!(planes > 1, "a plane of one unit shows no mistake between units");
    assert!(skipped.is_empty(), "never launched: {skipped:?}");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
