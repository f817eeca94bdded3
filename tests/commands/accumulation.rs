//! What `plan` and `train` say of a step of several micro-batches, and of memory.

use crate::{file, mdlc, plan};
use serde_json::Value;
use std::process::Command;

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
    // The runtime's own is a few MiB more or less, which says nothing beside a model of this size.
    assert_eq!(
        records[2].get("observed_bytes").is_some(),
        records[2].get("runtime_bytes").is_some()
    );
}

/// How far the process may be from the plan and the runtime's constant, in percent of the plan.
const RESIDENT: f64 = 2.0;

/// A model that is large beside the uncertainty of the constant: what the process takes is what was
/// planned. The constant is that of a process that compiles its kernels.
#[test]
fn resident_memory_is_the_plan() {
    let folder = std::env::temp_dir().join(format!("mdl-{}-resident", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the temporary folder is writable");
    let text = folder.join("story.txt");
    std::fs::write(&text, "a tale of one byte after another. ".repeat(40)).expect("written");
    let [text, dir] = [&text, &folder.join("run")].map(|p| p.display().to_string());
    let log = folder.join("log.jsonl");
    let json = log.display().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mdlc"));
    command.env("MDL_KERNEL_CACHE", "off").args([
        "train",
        "llama",
        "--preset",
        "llama_110m",
        "--dataset",
        &text,
        "--max_context_width",
        "64",
        "--train_batch_size",
        "1",
        "--val_batch_size",
        "1",
        "--max_steps",
        "2",
        "--checkpoint_dir",
        &dir,
        "--log_json",
        &json,
    ]);
    let output = command.output().expect("the binary was built with this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let records = std::fs::read_to_string(&log).expect("written by the run");
    std::fs::remove_dir_all(&folder).expect("it is ours");
    let last: Value = serde_json::from_str(records.lines().last().expect("two")).expect("JSON");
    let planned = last["planned_bytes"].as_u64().expect("the last record has it") as f64;
    let Some(observed) = last["observed_bytes"].as_u64() else {
        println!("skipped: this system does not say what is resident");
        return;
    };
    let off = (observed as f64 / planned - 1.0) * 100.0;
    assert!(off.abs() <= RESIDENT, "{off:.2} %: {observed} bytes resident, {planned} planned");
}
