//! The repository's own files: they parse, and they are in canonical form.

use mdl_syntax::*;

fn files() -> Vec<(String, String)> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let mut files = Vec::new();
    for folder in ["stdlib", "models"] {
        for entry in std::fs::read_dir(format!("{root}/{folder}")).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|ending| ending == "mdl") {
                let text = std::fs::read_to_string(&path).expect("a text");
                files.push((path.display().to_string(), text));
            }
        }
    }
    files.sort();
    files
}

#[test]
fn repository_files_parse_without_errors() {
    for (name, text) in files() {
        let mut sink = Sink::default();
        parse(FileId(0), &text, &mut sink);
        assert!(sink.diagnostics.is_empty(), "{name}\n{:#?}", sink.diagnostics);
    }
}

#[test]
fn repository_files_are_canonical() {
    for (name, text) in files() {
        let formatted = fmt(&text).expect("it parses");
        assert_eq!(formatted, text, "{name}");
    }
}
