//! Golden files: each broken model of `golden/errors` has exactly the diagnostics beside it.
//!
//! `MDL_BLESS=1` rewrites them. A golden that is missing, or has no model, fails.

mod front_end;

use front_end::{check, folder, root};
use std::collections::BTreeSet;

const FOLDER: &str = "tests/golden/errors";
const MAX_LINES: usize = 150;

#[test]
fn broken_models_have_these_diagnostics() {
    let bless = std::env::var_os("MDL_BLESS").is_some();
    let mut wrong = String::new();
    let mut goldens = BTreeSet::new();
    let mut codes = BTreeSet::new();
    let models = folder(FOLDER);
    for (name, text) in &models {
        assert!(text.starts_with("// about: "), "{name}: the first line says what it is about");
        let short = name.strip_prefix("tests/golden/errors/").unwrap_or(name);
        let front = check(short, text, &[]);
        codes.extend(front.sink.diagnostics.iter().map(|d| d.code));
        let report = front.report(false);
        assert!(!report.is_empty(), "{name} has no mistake");
        assert!(report.lines().count() <= MAX_LINES, "{name}: more than {MAX_LINES} lines");
        let golden = root().join(name).with_extension("txt");
        goldens.insert(golden.file_name().map(|f| f.to_os_string()).expect("a file name"));
        if bless {
            std::fs::write(&golden, &report).expect("the golden is written");
        } else if std::fs::read_to_string(&golden).ok().as_deref() != Some(report.as_str()) {
            wrong.push_str(&format!("{name} now gives\n{report}\n"));
        }
    }
    for entry in std::fs::read_dir(root().join(FOLDER)).expect("the folder is there") {
        let name = entry.expect("the folder is read").file_name();
        let is_text = name.to_string_lossy().ends_with(".txt");
        if is_text && !goldens.contains(&name) {
            wrong.push_str(&format!("{} belongs to no model\n", name.to_string_lossy()));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(models.len() >= 30 && codes.len() >= 30, "{} {}", models.len(), codes.len());
}
