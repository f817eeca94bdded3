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
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const TOKENS: u64 = 512;
/// Text for the first is assembled for both. That for the second differs in the target's name and
/// where a kernel depends on how many multiprocessors there are; of the first preset of a file it
/// is compared, and assembled where it differs.
const TARGETS: [&str; 2] = ["sm_80", "sm_90a"];
const CAPABILITIES: [u32; 2] = [80, 90];
/// Kernels whose main loop is a product of matrices, and those of the same names that walk rows.
const PRODUCTS: [&str; 2] = ["contract_tensor", "attention"];
const ROWS: [&str; 3] = ["attention_deltas", "attention_decode", "attention_combine"];

fn assembler() -> PathBuf {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/ptxas");
    let found = std::fs::read_to_string(&tools).map(|path| PathBuf::from(path.trim()));
    found.expect("ptxas is missing; `cargo xtask test` and `cargo xtask setup --gpu` bring it")
}

/// The kernels of a preset's step and of its validation.
fn kernels(file: &str, preset: &str, precision: Precision, capability: u32) -> Vec<Ptx> {
    let mut model = Model::open(file, Some(preset)).expect("an embedded preset");
    let settings =
        Settings { precision, optimizer_state: precision, ..mdl_tests::settings(1, TOKENS) };
    let (_, step, validate) =
        executables(&mut model, &settings, Target::Gpu).expect("the step is planned");
    let Paper { device, found } = Paper::new(capability);
    let device = Arc::new(device);
    for plan in step.runs().into_iter().map(|(plan, _)| plan).chain([&validate]) {
        Machine::new(device.clone(), plan.clone()).issue_each();
    }
    device.sync();
    found.kernels().unwrap_or_else(|fault| panic!("{preset}: {fault}"))
}

/// A kernel without the line that says for which target it is.
fn body(kernel: &Ptx) -> String {
    kernel.text.lines().filter(|line| !line.starts_with(".target")).collect()
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

/// What a kernel takes on the two targets together, and what is wrong with it.
#[derive(Default)]
struct Record {
    registers: u64,
    shared_bytes: u64,
    wrong: Vec<String>,
}

impl Record {
    /// What is worse of both.
    fn join(mut self, other: &Record) -> Record {
        self.registers = self.registers.max(other.registers);
        self.shared_bytes = self.shared_bytes.max(other.shared_bytes);
        self.wrong.extend(other.wrong.iter().cloned());
        self
    }
}

fn check(assembler: &Path, kernel: &Ptx) -> Record {
    let mut record = Record { shared_bytes: kernel.shared_bytes, ..Record::default() };
    let own = |target: &&str| !kernel.text.contains(".target sm_90a") || *target == TARGETS[1];
    for target in TARGETS.into_iter().filter(own) {
        let said = assemble(assembler, kernel, target);
        for what in [" bytes spill stores", " bytes spill loads"] {
            let bytes = number_before(&said, what);
            if bytes > 0 {
                record.wrong.push(format!("{} for {target}: {bytes}{what}", kernel.name));
            }
        }
        record.registers = record.registers.max(number_before(&said, " registers"));
    }
    let is = |names: &[&str]| names.iter().any(|name| kernel.name.starts_with(name));
    if is(&PRODUCTS) && !is(&ROWS) && !kernel.text.contains("mma.sync") {
        record.wrong.push(format!("{} has no tensor-core instruction", kernel.name));
    }
    record
}

/// `check` of each kernel, on all cores.
fn check_all(assembler: &Path, kernels: &[Ptx]) -> Vec<(String, Record)> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let work = || {
        let numbers = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
        let mine = numbers.map_while(|i| kernels.get(i));
        mine.map(|kernel| (body(kernel), check(assembler, kernel))).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    })
}

/// Those that were not assembled before, each once.
fn only_new(kernels: Vec<Ptx>, seen: &BTreeMap<String, Record>) -> Vec<Ptx> {
    let mut own = BTreeSet::new();
    let mut new = |kernel: &Ptx| !seen.contains_key(&body(kernel)) && own.insert(body(kernel));
    kernels.into_iter().filter(|kernel| new(kernel)).collect()
}

/// Says it past the harness, which shows what a test prints only where it fails.
fn say(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).expect("stderr is open");
}

#[test]
fn every_kernel_of_a_step_assembles_into_registers() {
    if let Ok(reason) = std::env::var("MDL_WITHOUT_PTXAS") {
        eprintln!("SKIPPED: no kernel was assembled, since ptxas is missing: {reason}");
        return;
    }
    let assembler = assembler();
    let mut seen: BTreeMap<String, Record> = BTreeMap::new();
    for (file, text) in embedded::MODELS {
        for (number, preset) in Front::load(file, text, &|_| None).presets().iter().enumerate() {
            for precision in [Precision::F32, Precision::Bf16] {
                let mut all = kernels(file, preset, precision, CAPABILITIES[0]);
                if number == 0 {
                    all.extend(kernels(file, preset, precision, CAPABILITIES[1]));
                }
                let bodies: BTreeSet<String> = all.iter().map(body).collect();
                let new = only_new(all, &seen);
                seen.extend(check_all(&assembler, &new));
                let records = bodies.iter().map(|body| &seen[body]);
                let record = records.fold(Record::default(), Record::join);
                say(&format!(
                    "{file} {preset} {precision:?}: {} kernels, {} of them new, at most {} \
                     registers and {} bytes of shared memory, {} faults",
                    bodies.len(),
                    new.len(),
                    record.registers,
                    record.shared_bytes,
                    record.wrong.len()
                ));
            }
        }
    }
    let wrong: Vec<&String> = seen.values().flat_map(|record| &record.wrong).collect();
    say(&format!("{} kernels of all presets, each for {TARGETS:?}", seen.len()));
    assert!(seen.len() > 200, "{} kernels are too few to be all", seen.len());
    assert!(wrong.is_empty(), "{} faults: {wrong:#?}", wrong.len());
}
