//! The house rules, checked over the whole repository: sizes, names, layers, error codes.
//!
//! Every rule is one `check_*` function and one row of `RULES`. Rules about code read it with
//! comments and the contents of literals blanked, so that naming a thing in prose is no offence.

#[path = "tidy/rust_code.rs"]
mod rust_code;
#[path = "tidy/tree.rs"]
mod tree;

use rust_code::{functions, has_word};
use tree::{Source, Tree, Violation};

const MAX_COLUMNS: usize = 100;
const MAX_FILE_LINES: usize = 700;
const MAX_FUNCTION_LINES: usize = 70;
const MAX_MODEL_LINES: usize = 200;
const MAX_TREE_LINES: usize = 60_000;
// Of these are eight parts of CubeCL, for operations of our own and for devices on paper.
const MAX_DEPENDENCIES: usize = 30;

/// Put before a function that is a table in the form of code.
const TABLE_MARK: &str = "// tidy: table";
const THIS_FILE: &str = "tests/tests/tidy.rs";
const CODES: &str = "compiler/mdl_syntax/src/codes.rs";
const CODE_PAGES: &str = "compiler/mdl_syntax/src/codes/";
const BANNED_NAMES: [&str; 9] =
    ["base", "utils", "helpers", "common", "misc", "types", "prelude", "core", "manager"];

/// Whether the file at this path may name a library.
type MayName = fn(&str) -> bool;

/// A library and the only files that may name it.
const WALLED: [(&str, MayName); 3] = [
    ("ariadne", |path| path == "compiler/mdl_syntax/src/render.rs"),
    ("chumsky", |path| path.starts_with("compiler/mdl_syntax/src/parse")),
    ("logos", |path| {
        let name = path.strip_prefix("compiler/mdl_syntax/src/");
        matches!(name, Some("lex.rs" | "token.rs"))
    }),
];

type Check = fn(&Tree, &mut Vec<Violation>);

const RULES: [Check; 16] = [
    check_headers,
    check_columns,
    check_file_lines,
    check_function_lines,
    check_file_names,
    check_unsafe,
    check_crate_layers,
    check_cubecl_is_walled,
    check_libraries_are_walled,
    check_no_outside_paths,
    check_nothing_is_left_to_do,
    check_model_lines,
    check_codes_have_pages,
    check_codes_are_emitted,
    check_tree_lines,
    check_dependencies,
];

#[test]
fn the_tree_is_tidy() {
    let tree = Tree::read();
    assert!(tree.file(THIS_FILE).is_some(), "the walk misses this file");
    let mut violations = Vec::new();
    for check in RULES {
        check(&tree, &mut violations);
    }
    let list: String = violations.iter().map(|violation| format!("{violation}\n")).collect();
    assert!(violations.is_empty(), "{} violations:\n{list}", violations.len());
}

fn check_headers(tree: &Tree, out: &mut Vec<Violation>) {
    for file in tree.rust() {
        if !file.text.starts_with("//!") {
            out.push(file.at(1, "a .rs file starts with `//!` and a sentence on what it is"));
        }
    }
}

fn check_columns(tree: &Tree, out: &mut Vec<Violation>) {
    for file in tree.rust() {
        for (number, line) in numbered(&file.text) {
            let columns = line.chars().count();
            if columns > MAX_COLUMNS {
                out.push(file.at(number, format!("{columns} columns, at most {MAX_COLUMNS}")));
            }
        }
    }
}

fn check_file_lines(tree: &Tree, out: &mut Vec<Violation>) {
    for file in tree.rust() {
        let lines = file.text.lines().count();
        if lines > MAX_FILE_LINES {
            out.push(file.at(lines, format!("{lines} lines, at most {MAX_FILE_LINES}")));
        }
    }
}

fn check_function_lines(tree: &Tree, out: &mut Vec<Violation>) {
    for file in tree.rust() {
        for function in functions(&file.code) {
            let lines = function.last_line - function.first_line + 1;
            if lines > MAX_FUNCTION_LINES && !is_marked_table(&file.text, function.first_line) {
                let rule =
                    format!("`{}` has {lines} lines, at most {MAX_FUNCTION_LINES}", function.name);
                out.push(file.at(function.first_line, rule));
            }
        }
    }
}

fn check_file_names(tree: &Tree, out: &mut Vec<Violation>) {
    for file in tree.rust() {
        for part in file.path.trim_end_matches(".rs").split('/') {
            let is_banned = BANNED_NAMES.contains(&part)
                || part.ends_with("_v2")
                || part.starts_with("new_")
                || part.starts_with("old_");
            if is_banned {
                out.push(file.at(1, format!("`{part}` says nothing; name the noun or verb in it")));
            }
        }
    }
}

fn check_unsafe(tree: &Tree, out: &mut Vec<Violation>) {
    for file in tree.rust() {
        let lines: Vec<&str> = file.text.lines().collect();
        for (number, line) in numbered(&file.code) {
            if !has_word(line, "unsafe") {
                continue;
            }
            let above = &lines[number.saturating_sub(4)..number];
            // Peers call other people's libraries, and are no part of the program.
            if !["runtime/", "benches/peers/"].iter().any(|part| file.path.starts_with(part)) {
                out.push(file.at(number, "`unsafe` is for the runtime only"));
            } else if !above.iter().any(|line| line.contains("SAFETY:")) {
                out.push(file.at(number, "`unsafe` without `// SAFETY:` in the three lines above"));
            }
        }
    }
}

fn check_crate_layers(tree: &Tree, out: &mut Vec<Violation>) {
    for file in tree.manifests() {
        if !file.path.starts_with("compiler/") || file.path == "compiler/mdlc/Cargo.toml" {
            continue;
        }
        for (number, line) in numbered(&file.text) {
            for name in ["mdl_kernels", "mdl_train", "cubecl"] {
                if has_word(line, name) {
                    out.push(file.at(number, format!("the compiler does not depend on {name}")));
                }
            }
        }
    }
}

fn check_cubecl_is_walled(tree: &Tree, out: &mut Vec<Violation>) {
    for file in tree.manifests() {
        let allowed = ["Cargo.toml", "runtime/mdl_kernels/Cargo.toml"];
        for (number, line) in numbered(&file.text) {
            if line.contains("cubecl") && !allowed.contains(&file.path.as_str()) {
                out.push(file.at(number, "cubecl is reached through mdl_kernels only"));
            }
        }
    }
}

fn check_libraries_are_walled(tree: &Tree, out: &mut Vec<Violation>) {
    for file in tree.rust() {
        for (number, line) in numbered(&file.code) {
            for (library, may_name) in WALLED {
                if has_word(line, library) && !may_name(&file.path) {
                    out.push(file.at(number, format!("{library} does not belong in this file")));
                }
            }
        }
    }
}

fn check_no_outside_paths(tree: &Tree, out: &mut Vec<Violation>) {
    for file in &tree.files {
        if file.path.starts_with("tests/") || file.path.starts_with("benches/") {
            continue;
        }
        for (number, line) in numbered(&file.text) {
            if line.contains("../shared") {
                out.push(
                    file.at(number, "the product does not need what is beside the repository"),
                );
            }
        }
    }
}

fn check_nothing_is_left_to_do(tree: &Tree, out: &mut Vec<Violation>) {
    for file in tree.files.iter().filter(|file| file.path != THIS_FILE) {
        for (number, line) in numbered(&file.text) {
            if has_word(line, "TODO") || has_word(line, "FIXME") {
                out.push(file.at(number, "do it, or write an issue; no marks in the code"));
            }
        }
        for (number, line) in numbered(&file.code) {
            if line.contains("todo!") || line.contains("dbg!") {
                out.push(file.at(number, "no todo! and no dbg!"));
            }
        }
    }
}

fn check_model_lines(tree: &Tree, out: &mut Vec<Violation>) {
    for file in &tree.files {
        let lines = file.text.lines().count();
        let is_model = file.path.starts_with("models/") && file.path.ends_with(".mdl");
        if is_model && lines > MAX_MODEL_LINES {
            out.push(file.at(lines, format!("{lines} lines, a model has {MAX_MODEL_LINES}")));
        }
    }
}

fn check_codes_have_pages(tree: &Tree, out: &mut Vec<Violation>) {
    let Some(table) = tree.file(CODES) else {
        out.push(Violation::new(CODES, 1, "the table of error codes is missing"));
        return;
    };
    for code in codes(table) {
        if tree.file(&format!("{CODE_PAGES}{}.md", code.id)).is_none() {
            out.push(table.at(code.line, format!("{} has no page {CODE_PAGES}", code.id)));
        }
    }
}

fn check_codes_are_emitted(tree: &Tree, out: &mut Vec<Violation>) {
    let Some(table) = tree.file(CODES) else {
        return;
    };
    let emitters: Vec<&Source> = tree
        .rust()
        .filter(|file| file.path.starts_with("compiler/") || file.path.starts_with("runtime/"))
        .filter(|file| file.path != CODES)
        .collect();
    for code in codes(table) {
        let page = tree.file(&format!("{CODE_PAGES}{}.md", code.id));
        let is_retired = page.is_some_and(|page| page.text.starts_with("No longer emitted."));
        // Literals are blanked in `code`, and the text also has comments; a quoted id is neither.
        let (quoted, shown) = (format!("\"{}\"", code.id), format!("error[{}]", code.id));
        let names = |file: &&Source| file.text.contains(&quoted) || file.text.contains(&shown);
        if !is_retired && !emitters.iter().any(names) {
            out.push(table.at(code.line, format!("{} is emitted nowhere", code.id)));
        }
    }
}

fn check_tree_lines(tree: &Tree, out: &mut Vec<Violation>) {
    let lines: usize = tree
        .rust()
        .filter(|file| !file.path.starts_with("tests/"))
        .map(|file| file.text.lines().take_while(|line| *line != "#[cfg(test)]").count())
        .sum();
    println!("the Rust tree without tests has {lines} lines, at most {MAX_TREE_LINES}");
    if lines > MAX_TREE_LINES {
        let rule = format!("the Rust tree has {lines} lines, at most {MAX_TREE_LINES}");
        out.push(Violation::new("Cargo.toml", 1, rule));
    }
}

fn check_dependencies(tree: &Tree, out: &mut Vec<Violation>) {
    let Some(manifest) = tree.file("Cargo.toml") else {
        return;
    };
    let direct: Vec<(usize, &str)> = numbered(&manifest.text)
        .skip_while(|(_, line)| *line != "[workspace.dependencies]")
        .skip(1)
        .take_while(|(_, line)| !line.starts_with('['))
        .filter(|(_, line)| line.contains('=') && !line.starts_with('#'))
        .filter(|(_, line)| !line.starts_with("mdl_"))
        .collect();
    for (number, line) in &direct {
        let reason = line.split_once(" # ").map_or("", |(_, reason)| reason.trim());
        if reason.is_empty() {
            out.push(manifest.at(*number, "a dependency states its reason on its line"));
        }
    }
    if direct.len() > MAX_DEPENDENCIES {
        let rule = format!("{} dependencies, at most {MAX_DEPENDENCIES}", direct.len());
        out.push(manifest.at(1, rule));
    }
}

/// A row of the table of error codes.
struct CodeRow {
    id: String,
    line: usize,
}

/// Every quoted or bare `E` with four digits in the table; a repeated mention is one row.
fn codes(table: &Source) -> Vec<CodeRow> {
    let mut rows: Vec<CodeRow> = Vec::new();
    for (line, text) in numbered(&table.text) {
        if text.trim_start().starts_with("//") {
            continue;
        }
        for id in text.split(|c: char| !c.is_ascii_alphanumeric()) {
            let digits = id.strip_prefix('E').unwrap_or("");
            let is_code = digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_digit());
            if is_code && !rows.iter().any(|row| row.id == id) {
                rows.push(CodeRow { id: id.to_string(), line });
            }
        }
    }
    rows
}

/// Whether the mark stands above the function, attributes and comments aside.
fn is_marked_table(text: &str, first_line: usize) -> bool {
    let lines: Vec<&str> = text.lines().collect();
    lines[..first_line - 1]
        .iter()
        .rev()
        .map(|line| line.trim())
        .take_while(|line| line.starts_with("//") || line.starts_with("#["))
        .any(|line| line.starts_with(TABLE_MARK))
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}
