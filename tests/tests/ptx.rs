//! Every kernel of every preset's training step, assembled for NVIDIA's GPUs on a machine without
//! one: none keeps registers in memory, and every product of matrices is a tensor core's.
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

/// Presets that differ from another one in the number of their layers alone, or in sizes that no
/// kernel is compiled for.
const TOKENS: u64 = 512;
/// PTX for the first is assembled for the second as well; that for the second is `mdlc build`'s.
const TARGETS: [&str; 2] = ["sm_80", "sm_90a"];
/// Kernels whose main loop is a product of matrices.
const PRODUCTS: [&str; 3] = ["contract_tensor", "attention_f", "attention_grad"];

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

fn check(assembler: &Path, kernel: &Ptx) -> u64 {
    let mut most = 0;
    for target in TARGETS {
        let said = assemble(assembler, kernel, target);
        let whole = said.contains("0 bytes spill stores, 0 bytes spill loads");
        assert!(whole, "{} for {target} spills: {said}", kernel.name);
        let registers = said.split("Used ").nth(1).and_then(|rest| rest.split(' ').next());
        most = most.max(registers.and_then(|n| n.parse().ok()).unwrap_or(0));
    }
    if PRODUCTS.iter().any(|name| kernel.name.starts_with(name)) {
        let multiplies = kernel.text.contains("mma.sync");
        assert!(multiplies, "{} has no tensor-core instruction", kernel.name);
    }
    most
}

#[test]
fn every_kernel_of_every_preset_assembles_without_spills() {
    let assembler = assembler();
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for (file, text) in embedded::MODELS {
        let front = Front::load(file, text, &|_| None);
        for preset in front.presets() {
            for precision in [Precision::F32, Precision::Bf16] {
                for kernel in kernels(file, &preset, precision) {
                    // The name has a hash of everything that the kernel is compiled for.
                    seen.entry(kernel.name.clone()).or_insert_with(|| check(&assembler, &kernel));
                }
            }
        }
    }
    let (count, most) = (seen.len(), seen.values().max().copied().unwrap_or(0));
    println!("{count} kernels of all presets, each for {TARGETS:?}: {most} registers at most");
    assert!(count > 100, "{count} kernels are too few to be all");
}
