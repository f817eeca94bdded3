//! Runs that start from a checkpoint alone, and what a damaged one is answered with.

use crate::{file, mdlc};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A new folder for temporary files.
fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("mdl-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    path
}

/// Trains with these arguments into a folder, to its end after `steps`.
fn train(args: &[&str], steps: &str, text: &Path, to: &Path) -> String {
    let (text, to) = (text.display().to_string(), to.display().to_string());
    let run = ["--dataset", &text, "--checkpoint_dir", &to, "--max_steps", steps];
    let run = [&["train"], args, &run, &["--max_context_width", "16"]].concat();
    let called = mdlc(&run);
    assert_eq!(called.status, 0, "{}", called.err);
    called.err
}

fn config(step: &Path) -> Value {
    let text = std::fs::read_to_string(step.join("config.json")).expect("a checkpoint");
    serde_json::from_str(&text).expect("one JSON object")
}

#[test]
fn a_checkpoint_stands_for_file_sizes_and_tokenizer() {
    let text = file("story.txt", &"Once upon a time there was a window. ".repeat(40));
    let (first, tuned) = (folder("first"), folder("tuned"));
    // A vocabulary of words, so that bytes would be another number of tokens.
    let words = r#"{"version":"1.0","pre_tokenizer":{"type":"WhitespaceSplit"},
        "model":{"type":"WordLevel","unk_token":"?","vocab":{"?":0}}}"#;
    let tokenizer = file("words.json", words);
    let named = tokenizer.display().to_string();
    train(&["mistral", "--preset", "tiny", "--tokenizer", &named], "1", &text, &first);
    let written = config(&first.join("step-00000001"));
    // Readers of the ecosystem refuse 7.0 here.
    assert_eq!(written["sliding_window"], Value::from(7));
    assert_eq!(written["max_position_embeddings"], Value::from(16));
    let from = first.display().to_string();
    let err = train(&["--init_from", &from], "1", &text, &tuned);
    assert!(err.contains("model.mdl: 133440 parameters"), "{err}");
    let step = tuned.join("step-00000001");
    assert_eq!(config(&step), written);
    assert!(step.join("tokenizer.json").is_file());
    let err = train(&["--resume_from_checkpoint", &from], "2", &text, &first);
    assert!(err.contains("resumed at step 1"), "{err}");
    let refused = mdlc(&["train", "--init_from", &from, "--num_layers=3"]);
    assert_eq!((refused.status, refused.err.contains("drop --num_layers")), (1, true));
    for path in [first, tuned] {
        std::fs::remove_dir_all(path).expect("written above");
    }
    for path in [text, tokenizer] {
        std::fs::remove_file(path).expect("written above");
    }
}

#[test]
fn a_run_in_bf16_is_read_by_every_command_and_goes_on() {
    let text = file("narrow.txt", &"Once upon a time there was a door. ".repeat(40));
    let text_path = text.display().to_string();
    for (optimizer_state, dtype) in [("f32", "float32"), ("bf16", "bfloat16")] {
        let state = format!("--optimizer_state={optimizer_state}");
        let flags = ["--bf16=1", &state];
        let (dir, out) = (folder(optimizer_state), folder(&format!("{optimizer_state}-out")));
        train(&[&["llama", "--preset", "tiny"], &flags[..]].concat(), "1", &text, &dir);
        assert_eq!(config(&dir.join("step-00000001"))["dtype"], dtype);
        let (from, to) = (dir.display().to_string(), out.display().to_string());
        for args in [
            vec!["eval", &from, "--dataset", &text_path],
            vec!["generate", &from, "--prompt", "Once", "--max_tokens", "2"],
            vec!["export", &from, &to],
        ] {
            let called = mdlc(&args);
            assert_eq!(called.status, 0, "{args:?}: {}", called.err);
        }
        assert_eq!(config(&out)["dtype"], dtype);
        let gone_on = [&["--resume_from_checkpoint", &from], &flags[..]].concat();
        let err = train(&gone_on, "2", &text, &dir);
        assert!(err.contains("resumed at step 1"), "{err}");
        std::fs::remove_dir_all(&out).expect("written above");
        train(&["--init_from", &from, "--bf16=1"], "1", &text, &out);
        for path in [dir, out] {
            std::fs::remove_dir_all(path).expect("written above");
        }
    }
    std::fs::remove_file(text).expect("written above");
}

#[test]
fn every_command_gives_the_code_of_a_damaged_checkpoint() {
    let dir = folder("damaged");
    std::fs::create_dir_all(&dir).expect("the temporary folder is writable");
    std::fs::write(dir.join("model.safetensors"), "1234567").expect("writable");
    let json = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 258}"#;
    std::fs::write(dir.join("config.json"), json).expect("writable");
    let (path, text) = (dir.display().to_string(), file("few.txt", &"a few words ".repeat(9)));
    let text_path = text.display().to_string();
    let to = format!("{path}-out");
    for args in [
        vec!["generate", &path, "--prompt", "a"],
        vec!["eval", &path, "--dataset", &text_path],
        vec!["export", &path, &to],
        vec!["check", "llama", "--against", &path],
        vec!["train", "--init_from", &path, "--dataset", &text_path, "--max_context_width", "8"],
    ] {
        let called = mdlc(&args);
        assert_eq!(called.status, 1, "{args:?}");
        assert!(called.err.contains("error[E0922]"), "{args:?}: {}", called.err);
    }
    assert!(!Path::new(&to).exists());
    std::fs::remove_dir_all(dir).expect("written above");
    std::fs::remove_file(text).expect("written above");
}

/// Sums in another order, as in the test of losses on the same device.
const TOLERANCE: f64 = 2e-6;

#[test]
fn a_checkpoint_is_evaluated_and_continued_on_a_software_vulkan_as_on_a_cpu() {
    let text = file("vulkan.txt", &"Once upon a time there was a bridge. ".repeat(4));
    let (text_path, dir) = (text.display().to_string(), folder("vulkan"));
    train(&["llama", "--preset", "tiny"], "1", &text, &dir);
    let from = dir.display().to_string();
    let both = |args: &[&str]| {
        ["cpu", "wgpu"].map(|device| {
            let called = mdlc(&[&args[..1], &[&from, "--device", device], &args[1..]].concat());
            assert_eq!(called.status, 0, "{}", called.err);
            called.out
        })
    };
    let [cpu, vulkan] =
        both(&["generate", "--prompt", "Once", "--max_tokens", "4", "--temperature", "0"]);
    assert_eq!(cpu, vulkan);
    let [cpu, vulkan] = both(&["eval", "--json", "--dataset", &text_path]).map(|out| {
        let object: Value = serde_json::from_str(&out).expect("one JSON object");
        object["loss"].as_f64().expect("a loss")
    });
    assert!((cpu - vulkan).abs() <= TOLERANCE * cpu, "{vulkan} for {cpu}");
    let wide = ["train", "llama", "--preset", "tiny", "--head_dim", "192", "--device", "wgpu"];
    let data = ["--dataset", &text_path, "--max_context_width", "16"];
    let refused = mdlc(&[&wide[..], &data].concat());
    assert_eq!(refused.status, 1, "{}", refused.err);
    for part in ["E0941", "192", "160", "--device"] {
        assert!(refused.err.contains(part), "{part}: {}", refused.err);
    }
    std::fs::remove_dir_all(dir).expect("written above");
    std::fs::remove_file(text).expect("written above");
}
