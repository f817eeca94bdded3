//! The front end as tests call it: a text in, its diagnostics out.

use mdl_driver::front::Front;

/// Loads and checks a text; a module `NAME` is looked for among `files`.
pub fn check(name: &str, text: &str, files: &[(&str, &str)]) -> Front {
    let resolve = |path: &[String]| {
        let wanted = format!("{}.mdl", path.join("/"));
        let found = files.iter().find(|(name, _)| *name == wanted)?;
        Some((found.0.to_string(), found.1.to_string()))
    };
    let mut front = Front::load(name, text, &resolve);
    front.check();
    front
}

/// The repository's root.
pub fn root() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The `.mdl` files of a folder of the repository by name, sorted.
pub fn folder(name: &str) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(root().join(name)).expect("the folder is there") {
        let path = entry.expect("the folder is read").path();
        if path.extension().is_some_and(|e| e == "mdl") {
            let file = path.file_name().and_then(|f| f.to_str()).expect("a plain name");
            let text = std::fs::read_to_string(&path).expect("the file is read");
            files.push((format!("{name}/{file}"), text));
        }
    }
    files.sort();
    files
}
