//! Tests of the whole: what each file in `tests/` says in its first line.

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
