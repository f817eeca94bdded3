//! `mdlc bench front`: what it times, and that it needs neither a model file nor a device.

use crate::mdlc;
use serde_json::Value;

fn rows(args: &[&str]) -> Vec<Value> {
    let called = mdlc(&[&["bench", "front", "--runs=1", "--json"], args].concat());
    assert_eq!(called.status, 0, "{}", called.err);
    let rows: Value = serde_json::from_str(&called.out).expect("JSON");
    rows.as_array().expect("an array").clone()
}

#[test]
fn every_stage_has_its_lines_a_second_and_a_preset_its_compilation() {
    let rows = rows(&["--file=llama", "--preset=tiny"]);
    let stages: Vec<&str> = rows.iter().filter_map(|row| row["what"].as_str()).collect();
    assert_eq!(stages, ["lex", "parse", "check", "parse and check"]);
    for row in &rows[..4] {
        assert!(row["lines"].as_u64() > Some(10_000), "{row}");
        assert!(row["lines_per_s"].as_f64() > Some(0.0), "{row}");
    }
    let [tiny] = &rows[4..] else { panic!("{rows:?}") };
    assert_eq!((&tiny["model"], &tiny["preset"]), (&"llama".into(), &"tiny".into()));
    assert_eq!(tiny["layers"], 2);
    assert!(tiny["compile_ms"].as_f64() >= tiny["load_ms"].as_f64(), "{tiny}");
}

#[test]
fn a_preset_that_no_model_has_is_an_error() {
    let called = mdlc(&["bench", "front", "--preset=tiny_"]);
    assert_eq!((called.status, called.out.as_str()), (1, ""));
    assert!(called.err.contains("error[E0941]: no model has a preset `tiny_`"), "{}", called.err);
}
