//! The cache of kernels: a second run compiles nothing, whatever is damaged is compiled again, and
//! results do not depend on any of it.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs `mdlc` with kernels in a folder, or with `off`.
fn mdlc(kernels: &str, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mdlc"));
    let output = command.args(args).env("MDL_KERNEL_CACHE", kernels).output();
    let output = output.expect("the binary was built with this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Kernels of a step, and how many of them were compiled anew.
fn build(kernels: &Path) -> (u64, u64) {
    let args = ["build", "llama", "--preset=tiny", "--max_context_width=16", "--json"];
    let report = mdlc(&kernels.display().to_string(), &args);
    let report: Value = serde_json::from_str(&report).expect("one JSON object");
    let count = |key: &str| report[key].as_u64().expect("a number");
    (count("kernels"), count("new"))
}

fn folder(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("mdl-{}-{name}", std::process::id()))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("kernels were kept there");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    files.sort();
    files
}

#[test]
fn what_was_compiled_is_compiled_again_only_where_it_is_damaged() {
    let kernels = folder("kernels");
    let (count, new) = build(&kernels);
    assert_eq!(new, count);
    assert_eq!(build(&kernels), (count, 0));
    let kept = files(&kernels);
    let damages: [fn(&Path, Vec<u8>); 4] = [
        |path, mut bytes| {
            *bytes.last_mut().expect("not empty") ^= 1;
            fs::write(path, bytes).expect("written");
        },
        |path, bytes| fs::write(path, &bytes[..bytes.len() / 2]).expect("written"),
        |path, _| fs::write(path, b"").expect("written"),
        |path, _| fs::remove_file(path).expect("removed"),
    ];
    for (path, damage) in kept.iter().zip(damages) {
        damage(path, fs::read(path).expect("readable"));
    }
    // One kernel under the name of another is whole, and not what was asked for.
    fs::copy(&kept[5], &kept[4]).expect("copied");
    assert_eq!(build(&kernels), (count, 5));
    assert_eq!(build(&kernels), (count, 0));
    assert_eq!(files(&kernels), kept);
    fs::remove_dir_all(&kernels).expect("it is ours");
}

#[test]
fn results_are_the_same_to_the_bit_with_kernels_from_the_cache_and_without() {
    let (kernels, work) = (folder("more-kernels"), folder("run"));
    fs::create_dir_all(&work).expect("the temporary folder is writable");
    let text = work.join("story.txt");
    fs::write(&text, "a tale of one byte after another. ".repeat(40)).expect("written");
    let text = text.display().to_string();
    let weights = |kernels: &str, name: &str| {
        let to = work.join(name);
        let checkpoint = format!("--checkpoint_dir={}", to.display());
        let run = ["train", "llama", "--preset=tiny", "--dataset", &text, &checkpoint];
        let sizes = ["--max_steps=2", "--max_context_width=16", "--train_batch_size=2"];
        mdlc(kernels, &[&run[..], &sizes].concat());
        fs::read(to.join("step-00000002").join("model.safetensors")).expect("saved")
    };
    let there = kernels.display().to_string();
    let without = weights("off", "without");
    assert!(!kernels.exists());
    assert!(weights(&there, "filled") == without, "the weights differ");
    let kept = files(&kernels);
    assert!(weights(&there, "filled-before") == without, "the weights differ");
    assert_eq!(files(&kernels), kept);
    fs::remove_dir_all(&kernels).expect("it is ours");
    fs::remove_dir_all(&work).expect("it is ours");
}
