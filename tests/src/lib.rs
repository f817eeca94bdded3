//! Tests of the whole: what each file in `tests/` says in its first line.

use mdl_passes::request::{MemoryRequest, Precision};
use mdl_train::session::Settings;
use std::path::Path;

/// The architectures of `tests/models`, by name and text. Each has a preset `small`, for
/// gradients by differences, and a preset `ragged`, for kernels.
pub fn models() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the folder is part of the repository") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if name.ends_with(".mdl") {
            found.push((name, std::fs::read_to_string(&path).expect("a text")));
        }
    }
    found.sort();
    assert!(!found.is_empty(), "tests/models is empty");
    found
}

/// A short run that uses everything: warm-up, decay of matrices alone, clipping.
pub fn settings(batch: u64, t: u64) -> Settings {
    Settings {
        batch,
        gradient_accumulation: 1,
        t,
        val_batch: 2,
        max_steps: 8,
        lr: 1e-3,
        min_lr: 1e-4,
        lr_decay_style: "cosine".into(),
        lr_decay_iters: 8,
        warmup: 0.25,
        weight_decay: 0.1,
        matrices_only: true,
        beta1: 0.9,
        beta2: 0.95,
        grad_clip: 1.0,
        seed: 7,
        memory: MemoryRequest::default(),
        precision: Precision::default(),
        optimizer_state: Precision::default(),
        disk_offload: None,
    }
}
