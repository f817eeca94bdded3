//! What `plan` and `train` say of a step of several micro-batches, and of memory.

use crate::{file, mdlc, plan};
use serde_json::Value;

#[test]
fn a_plan_of_micro_batches_has_their_work_and_the_memory_of_one() {
    let flags = ["llama", "--preset", "bytes_small", "--train_batch_size", "2", "--threads", "2"];
    let (one, _) = plan(&flags);
    let (four, _) = plan(&[&flags[..], &["--gradient_accumulation", "4"]].concat());
    let number = |plan: &Value, name: &str| plan[name].as_u64().expect(name);
    assert_eq!((number(&one, "gradient_accumulation"), number(&one, "batch")), (1, 2));
    assert_eq!((number(&four, "gradient_accumulation"), number(&four, "batch")), (4, 2));
    assert_eq!(number(&four, "tokens_per_step"), 4 * number(&one, "tokens_per_step"));
    assert_eq!(number(&four, "state_bytes"), number(&one, "state_bytes"));
    // The update is the same for one micro-batch and for four.
    let work = |plan: &Value| number(plan, "flops_per_step") as f64;
    let ratio = work(&four) / work(&one);
    assert!(3.9 < ratio && ratio < 4.001, "{ratio}");
    let called = mdlc(&[&["plan"], &flags[..], &["--gradient_accumulation", "4"]].concat());
    assert!(called.out.contains("4 × 2 sequences of 256 tokens"), "{}", called.out);
    let called = mdlc(&[&["plan"], &flags[..], &["--gradient_accumulation", "0"]].concat());
    assert_ne!(called.status, 0);
}

#[test]
fn a_run_says_what_memory_it_took() {
    let text = file("accumulation.txt", &"A line of text that is read again. ".repeat(60));
    let log = file("accumulation.jsonl", "");
    let (data, json) = (text.display().to_string(), log.display().to_string());
    let called = mdlc(&[
        "train",
        "llama",
        "--preset",
        "tiny",
        "--dataset",
        &data,
        "--max_steps",
        "3",
        "--max_context_width",
        "64",
        "--train_batch_size",
        "2",
        "--gradient_accumulation",
        "2",
        "--log_json",
        &json,
    ]);
    assert_eq!(called.status, 0, "{}", called.err);
    let line = called.err.lines().find(|line| line.starts_with("memory: "));
    assert!(line.is_some_and(|line| line.contains("planned")), "{}", called.err);
    let records = std::fs::read_to_string(&log).expect("written by the run");
    let records: Vec<Value> =
        records.lines().map(|row| serde_json::from_str(row).expect("JSON")).collect();
    assert_eq!(records.len(), 3);
    assert!(records[..2].iter().all(|record| record.get("planned_bytes").is_none()));
    let planned = records[2]["planned_bytes"].as_u64().expect("the last record has it");
    assert!(called.err.contains(&format!("{planned} bytes planned")), "{}", called.err);
    // All of the plan is in use, and what compiled kernels and the runtime take beside it is small
    // on any machine, but not beside a model as small as this.
    if let Some(observed) = records[2]["observed_bytes"].as_u64() {
        assert!(planned <= observed && observed < planned + (1 << 30), "{observed}, {planned}");
    }
}
