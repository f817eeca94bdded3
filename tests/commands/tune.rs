//! `mdlc bench tune`: what it measures, the table that it writes, and the tables that it refuses.

use crate::{file, mdlc};
use mdl_kernels::{Device, Table};
use serde_json::Value;

#[test]
fn rows_of_other_cpus_stay_and_those_of_this_one_are_made_again() {
    let row = |cpu: &str, gain: f64| {
        format!(
            r#"{{"cpu":"{cpu}","width":16,"products":"widened","a":"packed","blocks":{{
            "tile_rows":8,"tile_vectors":3,"depth":512,"columns":1536,"rows":96}},"gain":{gain}}}"#
        )
    };
    let name = Device::cpu_name();
    let before = format!("[{},{}]", row("a paper one", 1.5), row(&name, 99.0));
    let path = file("tuned.json", &before);
    let out = format!("--out={}", path.display());
    let called = mdlc(&["bench", "tune", "--runs=1", "--shape=64,96,32", "--json", &out]);
    assert_eq!(called.status, 0, "{}", called.err);
    let measured: Value = serde_json::from_str(&called.out).expect("JSON");
    let measured = measured.as_array().expect("an array");
    assert!(measured.len() > 10);
    for row in measured {
        assert!(row["ratio"].as_f64() > Some(0.0) && row["noise"].as_f64() >= Some(0.0), "{row}");
        assert_ne!(row["blocks"], row["beside"], "{row}");
    }
    let text = std::fs::read_to_string(&path).expect("the table");
    let table = Table::read(&text).expect("what was written can be read");
    assert_eq!(table.0.iter().filter(|row| row.cpu == "a paper one").count(), 1, "{text}");
    assert!(table.0.iter().all(|row| row.gain < 99.0), "{text}");
}

#[test]
fn a_file_that_is_no_table_is_refused_before_anything_is_measured() {
    for (text, said) in [("{}", "expected a sequence"), ("[{\"cpu\":1}]", "expected a string")] {
        let path = file("no-table.json", text);
        let called = mdlc(&["bench", "tune", &format!("--out={}", path.display())]);
        assert_eq!((called.status, called.out.as_str()), (1, ""));
        let code = "error[E0981]: the table `";
        assert!(called.err.starts_with(code) && called.err.contains(said), "{}", called.err);
        assert_eq!(std::fs::read_to_string(&path).expect("it stays as it is"), text);
    }
    let called = mdlc(&["bench", "tune", "--out=/nowhere/tuned.json", "--shape=32,32,32"]);
    assert!(called.status == 1 && called.err.contains("error[E0981]"), "{}", called.err);
}

#[test]
fn the_help_says_how_the_table_is_made_again() {
    let help = mdlc(&["bench", "--help"]).out;
    assert!(help.contains("mdlc bench tune --runs 15 --out"), "{help}");
}
