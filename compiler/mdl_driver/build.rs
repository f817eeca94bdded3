//! Lists `models/` and `stdlib/` for embedding: a new file there is in the binary because it
//! exists.

use std::fmt::Write;
use std::path::Path;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut code = String::new();
    for (folder, constant) in [("models", "MODELS"), ("stdlib", "STDLIB")] {
        let dir = root.join(folder);
        println!("cargo:rerun-if-changed={}", dir.display());
        let mut names: Vec<String> = std::fs::read_dir(&dir)
            .expect("the repository has this folder")
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.ends_with(".mdl"))
            .collect();
        names.sort();
        writeln!(code, "pub const {constant}: &[(&str, &str)] = &[").expect("writes to a string");
        for name in names {
            let path = dir.join(&name);
            let stem = name.trim_end_matches(".mdl");
            println!("cargo:rerun-if-changed={}", path.display());
            writeln!(code, "    ({stem:?}, include_str!({path:?})),").expect("writes to a string");
        }
        writeln!(code, "];").expect("writes to a string");
    }
    let out = std::env::var("OUT_DIR").expect("cargo sets it");
    std::fs::write(Path::new(&out).join("embedded.rs"), code).expect("OUT_DIR is writable");
}
