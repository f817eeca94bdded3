//! The compiler and its kernels against exact answers of an independent implementation, where those
//! are at hand.
//!
//! The reference models and the pretrained one lie beside the repository; where they are absent the
//! tests say so.

use mdl_kernels::Device;
use mdl_train::compare::compare;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn beside(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared").join(path);
    if path.exists() {
        return Some(path);
    }
    println!("SKIPPED: {} is absent, nothing was compared", path.display());
    None
}

/// Every reference there is, on a device or in f64.
fn check_all(device: Option<&Arc<Device>>) {
    let Some(all) = beside("reference") else { return };
    let mut checked = 0;
    let mut routers = 0;
    for entry in std::fs::read_dir(all).expect("a folder") {
        let dir = entry.expect("readable").path();
        if !dir.join("answers.safetensors").exists() {
            continue;
        }
        let result = compare(&dir, &dir.join("answers.safetensors"), device);
        let result = result.unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        assert!(result.tensors.len() > 30, "logits, gradients, steps and final parameters");
        assert!(result.passed, "{}: {:?}", dir.display(), result.worst());
        checked += 1;
        routers += result.tensors.iter().filter(|t| t.name == "router loss").count();
    }
    assert!(checked >= 4, "Llama 2 and 3, Mistral and Mixtral");
    assert_eq!(routers, 1, "the router of Mixtral");
}

#[test]
fn references_agree_on_the_cpu() {
    check_all(Some(&Arc::new(Device::cpu(None))));
}

#[test]
fn references_agree_on_the_interpreter() {
    check_all(None);
}

#[test]
fn a_tensor_changed_by_a_thousandth_is_caught() {
    let Some(dir) = beside("reference/llama2-tiny") else { return };
    let bytes = std::fs::read(dir.join("answers.safetensors")).expect("readable");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("a reference");
    let name = "grad.model.layers.1.mlp.up_proj.weight";
    let at =
        tensors.tensor(name).expect("there").data().as_ptr() as usize - bytes.as_ptr() as usize;
    let mut changed = bytes.clone();
    let range = at..at + tensors.tensor(name).expect("there").data().len();
    for four in changed[range].chunks_exact_mut(4) {
        let x = f32::from_le_bytes([four[0], four[1], four[2], four[3]]) * 1.001;
        four.copy_from_slice(&x.to_le_bytes());
    }
    let file = std::env::temp_dir().join(format!("mdl-changed-{}.safetensors", std::process::id()));
    std::fs::write(&file, changed).expect("the temporary folder is writable");
    let result = compare(&dir, &file, None).expect("runs");
    std::fs::remove_file(&file).expect("written above");
    assert!(!result.passed);
    assert_eq!(result.worst().map(|w| w.name.as_str()), Some(name));
}
