//! Every kernel of a preset's training step, assembled for NVIDIA's GPUs on a machine without one:
//! no register spills, and every product of matrices is a tensor core's.
//!
//! The assembler comes with `cargo xtask test`; without it this test fails and says so.

use mdl_driver::embedded;
use mdl_driver::front::Front;
use mdl_ir::kernel::Target;
use mdl_kernels::{Paper, Ptx};
use mdl_passes::request::Precision;
use mdl_train::machine::Machine;
use mdl_train::model::Model;
use mdl_train::session::{Settings, executables};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const TOKENS: u64 = 512;
/// All presets take a quarter of an hour; where this variable is set they are walked, and otherwise
/// the smallest and the largest of each file.
const ALL: &str = "MDL_ALL_PRESETS";
/// PTX for the first is assembled for the second as well; that for the second is `mdlc build`'s.
const TARGETS: [&str; 2] = ["sm_80", "sm_90a"];
/// Kernels whose main loop is a product of matrices, and those of the same names that walk rows.
const PRODUCTS: [&str; 2] = ["contract_tensor", "attention"];
const ROWS: [&str; 3] = ["attention_deltas", "attention_decode", "attention_combine"];

fn assembler() -> PathBuf {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/ptxas");
    let found = std::fs::read_to_string(&tools).map(|path| PathBuf::from(path.trim()));
    found.expect("ptxas is missing; `cargo xtask test` and `cargo xtask setup --gpu` bring it")
}

/// The kernels of a preset's step in f32, or in bf16.
fn kernels(file: &str, preset: &str, precision: Precision) -> Vec<Ptx> {
    let mut model = Model::open(file, Some(preset)).expect("an embedded preset");
    let settings =
        Settings { precision, optimizer_state: precision, ..mdl_tests::settings(1, TOKENS) };
    let (_, step, validate) =
        executables(&mut model, &settings, Target::Gpu).expect("the step is planned");
    let Paper { device, found } = Paper::new(80);
    let device = Arc::new(device);
    for plan in [step.first, validate] {
        Machine::new(device.clone(), plan).issue_each();
    }
    device.sync();
    found.kernels().unwrap_or_else(|fault| panic!("{preset}: {fault}"))
}

/// What the assembler says of a kernel.
fn assemble(assembler: &Path, kernel: &Ptx, target: &str) -> String {
    let place = std::env::temp_dir().join(format!("mdl-ptx-{}", std::process::id()));
    std::fs::create_dir_all(&place).expect("a folder");
    let source = place.join(format!("{}-{target}.ptx", kernel.name));
    std::fs::write(&source, &kernel.text).expect("a file");
    let mut command = Command::new(assembler);
    command.args(["-v", "-O3", "-arch", target, "-o", "/dev/null"]).arg(&source);
    let output = command.output().expect("the assembler runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{} for {target}: {said}", kernel.name);
    std::fs::remove_file(source).expect("it was written");
    said
}

/// The number that stands before some words.
fn number_before(text: &str, words: &str) -> u64 {
    let before = text.split(words).next().unwrap_or("");
    let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or("");
    digits.parse().unwrap_or_else(|_| panic!("no number before `{words}` in {text}"))
}

/// The most registers of the two, and what is wrong.
fn check(assembler: &Path, kernel: &Ptx) -> (u64, Vec<String>) {
    let (mut most, mut wrong) = (0, Vec::new());
    for target in TARGETS {
        let said = assemble(assembler, kernel, target);
        let spilled = number_before(&said, " bytes spill stores");
        if spilled > 0 {
            wrong.push(format!("{} for {target} spills {spilled} bytes", kernel.name));
        }
        most = most.max(number_before(&said, " registers"));
    }
    let is = |names: &[&str]| names.iter().any(|name| kernel.name.starts_with(name));
    if is(&PRODUCTS) && !is(&ROWS) && !kernel.text.contains("mma.sync") {
        wrong.push(format!("{} has no tensor-core instruction", kernel.name));
    }
    (most, wrong)
}

/// `check` of each kernel, on all cores.
fn check_all(assembler: &Path, kernels: &[Ptx]) -> Vec<(String, (u64, Vec<String>))> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let work = || {
        let numbers = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
        let mine = numbers.map_while(|i| kernels.get(i));
        mine.map(|kernel| (kernel.name.clone(), check(assembler, kernel))).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    })
}

/// The presets of a file that are walked.
fn presets(file: &str, text: &str) -> Vec<String> {
    let presets = Front::load(file, text, &|_| None).presets();
    let ends = [0, presets.len() - 1].map(|i| presets[i].clone());
    if std::env::var_os(ALL).is_some() || presets.len() < 3 { presets } else { ends.to_vec() }
}

#[test]
fn every_kernel_of_a_step_assembles_into_registers() {
    if let Ok(reason) = std::env::var("MDL_WITHOUT_PTXAS") {
        eprintln!("SKIPPED: no kernel was assembled, since ptxas is missing: {reason}");
        return;
    }
    let assembler = assembler();
    let mut seen: BTreeMap<String, (u64, Vec<String>)> = BTreeMap::new();
    for (file, text) in embedded::MODELS {
        for preset in presets(file, text) {
            for precision in [Precision::F32, Precision::Bf16] {
                let mut kernels = kernels(file, &preset, precision);
                // The name has a hash of everything that the kernel is compiled for.
                kernels.retain(|kernel| !seen.contains_key(&kernel.name));
                seen.extend(check_all(&assembler, &kernels));
            }
        }
    }
    let count = seen.len();
    let most = seen.values().map(|(registers, _)| *registers).max().unwrap_or(0);
    let wrong: Vec<&String> = seen.values().flat_map(|(_, wrong)| wrong).collect();
    println!("{count} kernels, each for {TARGETS:?}: {most} registers at most");
    assert!(count > 200, "{count} kernels are too few to be all");
    assert!(wrong.is_empty(), "{} kernels: {wrong:#?}", wrong.len());
}
