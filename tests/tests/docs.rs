//! The examples of the documents: each block marked `mdl` is a module that checks and is canonical.
//!
//! A block marked `mdl,file=NAME` is one too, under that name in commands that follow. A block
//! marked `mdl,fragment` is part of a file; where it is whole items it is canonical too.

use mdl_driver::front::Front;
use std::path::Path;

/// A fenced block: the line of its first line, whether it is a whole module, and its text.
struct Block {
    line: usize,
    is_whole: bool,
    text: String,
}

fn blocks(markdown: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    for (index, line) in markdown.lines().enumerate() {
        match &mut open {
            None => {
                let is_whole = line == "```mdl" || line.starts_with("```mdl,file=");
                if is_whole || line == "```mdl,fragment" {
                    open = Some(Block { line: index + 2, is_whole, text: String::new() });
                }
            }
            Some(_) if line == "```" => found.extend(open.take()),
            Some(block) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
        }
    }
    assert!(open.is_none(), "a block is not closed");
    found
}

fn documents() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut names = vec!["README.md".to_string()];
    for folder in ["docs", "docs/commands"] {
        for entry in std::fs::read_dir(root.join(folder)).expect("there are documents") {
            let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
            if name.ends_with(".md") {
                names.push(format!("{folder}/{name}"));
            }
        }
    }
    names.sort();
    let read = |name: &String| std::fs::read_to_string(root.join(name)).expect("a text");
    names.iter().map(|name| (name.clone(), read(name))).collect()
}

#[test]
fn whole_modules_in_documents_check() {
    let mut checked = 0;
    for (name, text) in documents() {
        for block in blocks(&text).iter().filter(|block| block.is_whole) {
            let place = format!("{name}:{}", block.line);
            let mut front = Front::load(&place, &block.text, &|_| None);
            front.check();
            assert!(front.sink.diagnostics.is_empty(), "{place}\n{}", front.report(false));
            checked += 1;
        }
    }
    assert!(checked > 0, "no document has a whole module");
}

#[test]
fn examples_in_documents_are_canonical() {
    for (name, text) in documents() {
        for block in blocks(&text) {
            match mdl_syntax::fmt(&block.text) {
                Ok(formatted) => assert_eq!(formatted, block.text, "{name}:{}", block.line),
                Err(_) => assert!(!block.is_whole, "{name}:{} does not parse", block.line),
            }
        }
    }
}
