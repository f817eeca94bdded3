//! What `plan` and `train` say of a step on several ranks.

use crate::{file, mdlc, plan};
use serde_json::{Value, json};

const MODEL: [&str; 4] = ["llama", "--preset=bytes_small", "--threads=2", "--max_context_width=64"];

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("`{name}` of {value}"))
}

#[test]
fn a_plan_of_ranks_has_a_part_of_the_state_and_what_goes_over_the_wire() {
    let (one, _) = plan(&[&MODEL[..], &["--mesh=1"]].concat());
    assert_eq!((&one["sharded"], &one["collectives"]), (&json!(false), &json!([])));
    let meshes = [("--mesh=8", "full", 8, 1), ("--mesh=2x4", "hybrid", 4, 2)];
    for (mesh, strategy, pieces, copies) in meshes {
        let strategy = format!("--sharding_strategy={strategy}");
        let (ranks, notes) = plan(&[&MODEL[..], &[mesh, strategy.as_str()]].concat());
        assert_eq!(notes, "");
        assert_eq!((&ranks["sharded"], &ranks["devices_used"]), (&json!(true), &json!(8)));
        let made = (number(&ranks["mesh"], "pieces"), number(&ranks["mesh"], "copies"));
        assert_eq!(made, (pieces, copies));
        assert_eq!(number(&ranks, "state_bytes") * pieces, number(&one, "state_bytes"));
        assert_eq!(number(&ranks, "tokens_per_step"), 8 * number(&one, "tokens_per_step"));
        let rows = ranks["collectives"].as_array().expect("a list");
        let sum: u64 = rows.iter().map(|row| number(row, "wire_bytes")).sum();
        assert_eq!(sum, number(&ranks, "wire_bytes_per_step"));
        for row in rows {
            let n = number(row, "ranks");
            let once = number(row, "count") * (number(row, "bytes") * (n - 1) / n);
            let times = if row["kind"] == "all_reduce" { 2 } else { 1 };
            assert_eq!(number(row, "wire_bytes"), times * once, "{row}");
        }
        let text = mdlc(&[&["plan"], &MODEL[..], &[mesh, strategy.as_str()]].concat()).out;
        assert!(text.contains("all_gather") && text.contains("a rank sends"), "{text}");
    }
}

#[test]
fn the_verdict_is_that_of_each_device() {
    let args = ["--preset=llama3_2_3b", "--hardware=p4d", "--max_context_width=1024"];
    let (eight, _) = plan(&args);
    let (one, _) = plan(&[&args[..], &["--mesh=1"]].concat());
    assert_eq!((&eight["fits"], &one["fits"]), (&json!(true), &json!(false)));
    let text = mdlc(&[&["plan"], &args[..]].concat()).out;
    assert!(text.contains("chosen: the state in 8 pieces on 8 devices"), "{text}");
    let (more, _) = plan(&[&args[..], &["--mesh=16"]].concat());
    assert_eq!(more["fits"], false, "a machine has eight");
}

#[test]
fn a_run_on_two_ranks_logs_what_one_rank_does() {
    let text = file("mesh.txt", &"A line of text that ranks share. ".repeat(60));
    let data = format!("--dataset={}", text.display());
    let losses = |name: &str, more: &[&str]| -> Vec<Value> {
        let log = file(name, "");
        let json = format!("--log_json={}", log.display());
        let run = ["train", "llama", "--preset=tiny", "--max_steps=3", "--max_context_width=48"];
        let called = mdlc(&[&run[..], &[&data, &json], more].concat());
        assert_eq!(called.status, 0, "{}", called.err);
        assert!(called.err.contains("run in this process"), "{}", called.err);
        let records = std::fs::read_to_string(&log).expect("written by the run");
        let loss = |row: &str| serde_json::from_str::<Value>(row).expect("JSON")["loss"].clone();
        records.lines().map(loss).collect()
    };
    let one = losses("mesh1.jsonl", &["--mesh=1", "--gradient_accumulation=2"]);
    assert_eq!((one.len(), &one), (3, &losses("mesh2.jsonl", &["--mesh=2"])));
}
