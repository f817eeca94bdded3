//! Flags that choose and change models, run files, and what is said about a wrong command line.

use crate::{file, mdlc, plan};
use serde_json::json;

/// Exit statuses of a command that failed, and of a command line that could not be read.
const FAILED: i32 = 1;
const USAGE: i32 = 2;

#[test]
fn a_flag_changes_what_depends_on_it() {
    let (plan, notes) = plan(&["--preset=llama3_2_1b", "--num_heads=16"]);
    let expected = json!([
        { "field": "group", "value": 2, "preset": 4 },
        { "field": "head", "value": 128, "preset": 64 },
    ]);
    assert_eq!(plan["differences"], expected);
    assert!(notes.contains("note: head is 128; preset llama3_2_1b has 64\n"), "{notes}");
}

#[test]
fn a_head_that_is_given_stays() {
    let (plan, _) = plan(&["--preset=llama3_2_1b", "--num_heads=16", "--head_dim=64"]);
    assert_eq!(plan["differences"].as_array().map(Vec::len), Some(1));
    let given = plan_of_hub_names();
    assert_eq!(given["differences"], json!([{ "field": "layers", "value": 3, "preset": 2 }]));
}

/// The same values under the names of `config.json`, with dashes.
fn plan_of_hub_names() -> serde_json::Value {
    plan(&["llama", "--preset=tiny", "--num-hidden-layers=3", "--hidden-size", "64"]).0
}

#[test]
fn scaling_and_truth_values_are_flags_too() {
    let args = ["--preset=llama3_2_1b", "--rope_theta=1e4", "--rope_scaling.factor=8"];
    let (with, _) = plan(&args);
    let expected = json!([
        { "field": "rope.base", "value": 1e4, "preset": 5e5 },
        { "field": "rope.factor", "value": 8.0, "preset": 32.0 },
    ]);
    assert_eq!(with["differences"], expected);
    let (untied, _) = plan(&["--preset=llama3_2_1b", "--tie_word_embeddings=0"]);
    // The second table has one row for each of 128,256 ids.
    assert_eq!(untied["parameters"], 1_235_814_400u64 + 128_256 * 2048);
}

#[test]
fn a_preset_without_changes_has_no_differences() {
    let (plan, notes) = plan(&["--preset=llama3_2_1b", "--intermediate_size=8192"]);
    assert_eq!((&plan["differences"], notes.as_str()), (&json!([]), ""));
}

#[test]
fn a_model_without_presets_takes_all_sizes_from_flags() {
    let text = "use std.init.normal\n\n\
        config C {\n    d: size = from(\"hidden_size\")\n    v: size = from(\"vocab_size\")\n}\n\n\
        model M(c: C) {\n    e: param[v, d] as \"e.weight\" init normal(0.02)\n\n    \
        fn logits(tokens: ids[B, T]) -> [B, T, v] = sum[d](gather[v](e, tokens) * e)\n\n    \
        fn loss(tokens: ids[B, T], targets: ids[B, T]) -> f32[] = \
        total(gather[v](e, tokens) * gather[v](e, targets))\n}\n";
    let path = file("own.mdl", text);
    let path = path.display().to_string();
    let (plan, _) = plan(&[path.as_str(), "--vocab_size=7", "--hidden_width=4"]);
    assert_eq!((&plan["parameters"], &plan["preset"]), (&json!(28), &json!(null)));
    let called = mdlc(&["plan", path.as_str(), "--vocab_size=7"]);
    std::fs::remove_file(path).expect("written above");
    assert!(called.err.contains("error[E0406]") && called.err.contains("hidden_size"));
}

/// Arguments, the exit status, and what is said.
const WRONG: [(&[&str], i32, &[&str]); 31] = [
    (&["plan"], FAILED, &["error[E0941]: name a FILE"]),
    (&["plan", "--preset=tiny", "--max_step=3"], USAGE, &["error[E0941]", "`--max_steps`"]),
    (&["plan", "--preset=tiny", "--hidden_width=0"], USAGE, &["1 to 2147483647"]),
    (&["plan", "--preset=tiny", "--bf16=2"], USAGE, &["0..=1"]),
    (
        &["plan", "llama", "--preset=tiny", "--optimizer_state=bf16"],
        FAILED,
        &["error[E0941]", "give --bf16=1"],
    ),
    (&["plan", "--preset=tiny", "--mesh=0"], USAGE, &["--mesh", "1, 2, 4, 8"]),
    (&["plan", "--preset=tiny", "--mesh=2x3"], USAGE, &["--mesh", "not 3"]),
    (&["plan", "--preset=tiny", "--mesh=2x"], USAGE, &["--mesh", "MACHINESxDEVICES"]),
    (
        &["plan", "llama", "--preset=tiny", "--mesh=2", "--cpu_offload=1"],
        FAILED,
        &["error[E0941]", "leave out --cpu_offload"],
    ),
    (&["plan", "--preset=tiny", "--hardware=p6"], USAGE, &["p5, p4d, g5, local"]),
    (&["plan", "--preset=none_such"], FAILED, &["error[E0941]", "name a FILE"]),
    (&["plan", "llama", "--preset=none_such"], FAILED, &["error[E0408]", "use one of: tiny"]),
    (&["plan", "--model_type=llama_v9"], FAILED, &["error[E0941]", "llama_v2, llama_v3"]),
    (&["plan", "--model_type=llama_v3"], FAILED, &["error[E0941]", "llama3_1_8b | llama3_1_70b"]),
    (
        &["plan", "--model_type=llama_v2", "--preset=llama3_2_1b"],
        FAILED,
        &["error[E0941]", "not of --model_type llama_v2"],
    ),
    (&["plan", "llama", "--preset=tiny", "--num_heads=5"], FAILED, &["error[E0407]", "num_heads"]),
    (
        &["plan", "llama", "--preset=tiny", "--rope_scaling.type=yarn"],
        FAILED,
        &["error[E0404]", "scaling = \"yarn\""],
    ),
    (&["plan", "--config=no-such.toml"], USAGE, &["error[E0941]", "no-such.toml"]),
    (&["train", "llama", "--preset=tiny", "--lr=nan"], USAGE, &["--lr", "from 0 on"]),
    (&["train", "llama", "--preset=tiny", "--beta2=1"], USAGE, &["--beta2", "less than 1"]),
    (&["train", "llama", "--preset=tiny", "--warmup=3"], USAGE, &["--warmup", "from 0 to 1"]),
    (&["train", "llama", "--preset=tiny", "--threads=0"], USAGE, &["--threads", "1..=1024"]),
    (
        &["bench", "gemm", "--shape=2000000,2000000,2000000"],
        FAILED,
        &["error[E0952]", "give smaller sizes"],
    ),
    (&["train", "llama", "--preset=tiny"], FAILED, &["error[E0941]", "--dataset FILES"]),
    (&["bench", "decode", "--dtype=bf16"], FAILED, &["error[E0941]", "`mdlc bench gemm`"]),
    (&["bench", "llama", "--dtype=bf16"], FAILED, &["error[E0941]", "takes --bf16 1"]),
    (&["bench", "llama", "--out=t"], FAILED, &["error[E0941]", "`mdlc bench tune`"]),
    (&["bench", "gemm", "--html=t"], FAILED, &["error[E0941]", "name a model"]),
    (&["bench", "gemm", "--shape=0,8,8"], FAILED, &["error[E0941]", "from 1 to 2147483647"]),
    (&["bench", "gemm", "--file=llama"], FAILED, &["error[E0941]", "`mdlc bench step`"]),
    (&["bench", "step", "--shape=8,8,8"], FAILED, &["error[E0941]", "`mdlc bench gemm`"]),
];

#[test]
fn a_wrong_command_line_is_an_error_with_a_way_out() {
    for (args, status, said) in WRONG {
        let called = mdlc(args);
        assert_eq!(called.status, status, "{args:?}: {}", called.err);
        assert_eq!(called.out, "", "{args:?}");
        for part in said {
            assert!(called.err.contains(part), "{args:?}: {}", called.err);
        }
    }
}

#[test]
fn requests_that_are_off_say_nothing() {
    let off = ["--bf16=0", "--activation_checkpointing=0", "--offload_activations=0"];
    let more = ["--cpu_offload=0", "--sharding_strategy=0", "llama", "--preset=tiny"];
    let (_, notes) = plan(&[&off[..], &more[..]].concat());
    assert_eq!(notes, "");
}

#[test]
fn what_a_plan_never_reads_is_noted_and_never_opened() {
    let args = ["llama", "--preset=tiny", "--tokenizer=no/such", "--dataset=no/such"];
    let (_, notes) = plan(&args);
    assert_eq!(notes, "note: without effect on this command: --dataset, --tokenizer\n");
}

#[test]
fn a_run_file_gives_flags_and_the_command_line_wins() {
    let text = "preset = \"llama3_2_1b\"\nmax-context-width = 512\ntrain_batch_size = 3\n\
        hardware = \"p5\"\nbf16 = true\nnum_hidden_layers = 4\ndataset = [\"a\", \"b\"]\n\n\
        [rope_scaling]\nfactor = 8\n";
    let path = file("run.toml", text);
    let path = path.display().to_string();
    let (plan, notes) = plan(&["--config", path.as_str(), "--num_layers=5", "--seed=1"]);
    std::fs::remove_file(path).expect("written above");
    assert_eq!((&plan["context"], &plan["batch"]), (&json!(512), &json!(3)));
    assert_eq!(plan["hardware"]["name"], "p5");
    let fields: Vec<_> = plan["differences"].as_array().expect("a list").iter().collect();
    assert_eq!((&fields[0]["value"], &fields[1]["value"]), (&json!(5), &json!(8.0)));
    assert_eq!(plan["precision"]["parameters"], "bf16");
    assert!(!notes.contains("bf16"), "{notes}");
}

/// A run file, the line that is wrong, and what is said.
const WRONG_FILES: [(&str, usize, &str); 4] = [
    ("lr = 1e-3\n\nmax_step = 3\n", 3, "there is no flag `max_step`\n  help: write `max_steps`"),
    ("[rope_scaling]\nfacto = 3\n", 2, "help: write `rope_scaling.factor`"),
    ("lr = 1e-3\nseed =\n", 2, "error[E0941]"),
    ("lr = 2020-01-01\n", 1, "`lr` is no text, number, truth value or list"),
];

#[test]
fn a_wrong_run_file_is_an_error_with_its_line() {
    for (i, (text, line, said)) in WRONG_FILES.iter().enumerate() {
        let path = file(&format!("wrong-{i}.toml"), text);
        let called = mdlc(&["plan", "llama", "--preset=tiny", "--config", &path.to_string_lossy()]);
        std::fs::remove_file(&path).expect("written above");
        let place = format!("{}:{line}: ", path.display());
        assert_eq!(called.status, USAGE, "{}", called.err);
        assert!(called.err.contains(&place) && called.err.contains(said), "{}", called.err);
    }
}

/// A laptop is told at once that a model is too large for it, and what to do.
#[test]
fn a_run_that_has_no_room_is_refused_before_it_takes_memory() {
    let text = file("room.txt", &"a tale of one byte after another. ".repeat(3000));
    let dataset = text.display().to_string();
    let run = ["train", "llama", "--preset=llama2_70b", "--train_batch_size=64", "--dataset"];
    let called = mdlc(&[&run[..], &[&dataset]].concat());
    std::fs::remove_file(text).expect("written above");
    assert_eq!(called.status, FAILED);
    for part in ["error[E0952]", "GiB are free", "--memory 16GiB"] {
        assert!(called.err.contains(part), "{}", called.err);
    }
}
