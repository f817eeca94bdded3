//! The text of the repository as the house rules see it, and how a broken rule is reported.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::rust_code::blank;

/// The text files of the repository, in the order of their paths.
pub struct Tree {
    pub files: Vec<Source>,
}

pub struct Source {
    pub path: String,
    pub text: String,
    /// For Rust: the text with comments and the contents of literals blanked, line for line.
    pub code: String,
}

pub struct Violation {
    path: String,
    line: usize,
    rule: String,
}

impl Tree {
    pub fn read() -> Tree {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut files = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for path in entries(&folder) {
                if path.is_dir() {
                    folders.push(path);
                } else if let Ok(text) = fs::read_to_string(&path) {
                    files.push(Source::new(&root, &path, text));
                }
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Tree { files }
    }

    pub fn rust(&self) -> impl Iterator<Item = &Source> {
        self.files.iter().filter(|file| file.path.ends_with(".rs"))
    }

    pub fn manifests(&self) -> impl Iterator<Item = &Source> {
        self.files.iter().filter(|file| file.path.ends_with("Cargo.toml"))
    }

    pub fn file(&self, path: &str) -> Option<&Source> {
        self.files.iter().find(|file| file.path == path)
    }
}

/// What people wrote in a folder: no build outputs, no links, no data.
fn entries(folder: &Path) -> Vec<PathBuf> {
    const WRITTEN: [&str; 9] = ["rs", "toml", "md", "mdl", "py", "sh", "yml", "yaml", "txt"];
    let read = fs::read_dir(folder).expect("a folder of the repository can be read");
    let mut paths = Vec::new();
    for entry in read.flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        let is_skipped = match name.as_str() {
            ".ci" | ".cargo" | ".github" => false,
            "target" | "demo" | "__pycache__" => kind.is_dir(),
            other => other.starts_with('.') || other.contains(".tmp-"),
        };
        let is_written = match path.extension().and_then(|extension| extension.to_str()) {
            Some(extension) => WRITTEN.contains(&extension),
            None => folder.file_name().is_some_and(|name| name == ".ci"),
        };
        if !is_skipped && (kind.is_dir() || kind.is_file() && is_written) {
            paths.push(path);
        }
    }
    paths
}

impl Source {
    pub fn new(root: &Path, path: &Path, text: String) -> Source {
        let path = path.strip_prefix(root).unwrap_or(path).to_string_lossy().replace('\\', "/");
        let code = if path.ends_with(".rs") { blank(&text) } else { String::new() };
        Source { path, text, code }
    }

    pub fn at(&self, line: usize, rule: impl Into<String>) -> Violation {
        Violation::new(&self.path, line, rule)
    }
}

impl Violation {
    pub fn new(path: &str, line: usize, rule: impl Into<String>) -> Violation {
        Violation { path: path.to_string(), line, rule: rule.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.rule)
    }
}
