//! `mdlc bench FILE`: the kernels of a model's step as a table, as JSON and as a page.
//!
//! What is measured is not what is tested: any time may be long on a machine with other work.

use crate::{file, mdlc};
use serde_json::Value;

/// A model whose step takes milliseconds, timed once.
const QUICK: [&str; 8] = [
    "bench",
    "llama",
    "--preset=tiny",
    "--max_context_width=32",
    "--runs=1",
    "--threads=1",
    "--train_batch_size=2",
    "--val_batch_size=1",
];

fn bench(more: &[&str]) -> String {
    let called = mdlc(&[&QUICK[..], more].concat());
    assert_eq!(called.status, 0, "{}", called.err);
    called.out
}

fn json(more: &[&str]) -> Value {
    serde_json::from_str(&bench(&[more, &["--json"]].concat())).expect("one JSON object")
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("`{key}` of {value} is no number"))
}

fn kernels(report: &Value) -> &[Value] {
    report["kernels"].as_array().expect("a list")
}

#[test]
fn generation_has_room_for_all_runs_at_both_positions() {
    // A step takes microseconds here, so nothing but the number of runs may decide how many follow.
    let called = mdlc(&["bench", "decode", "--file=llama", "--preset=tiny", "--runs=3", "--json"]);
    assert_eq!(called.status, 0, "{}", called.err);
    let rows: Value = serde_json::from_str(&called.out).expect("an array");
    let rows: Vec<&str> =
        rows.as_array().into_iter().flatten().flat_map(|r| r["what"].as_str()).collect();
    assert_eq!(rows, ["prefill", "token 40", "token 400"]);
}

/// Relative, for numbers that are added up here and there in another order.
const SUMS_AGREE: f64 = 1e-9;

fn agree(a: f64, b: f64) -> bool {
    (a - b).abs() <= SUMS_AGREE * a.abs().max(b.abs())
}

#[test]
fn a_report_has_every_launch_of_the_plan_and_adds_up() {
    let report = json(&[]);
    let args = [&["plan", "--json"], &QUICK[1..4], &QUICK[5..]].concat();
    let plan: Value = serde_json::from_str(&mdlc(&args).out).expect("one JSON object");
    assert_eq!(report["launches"], plan["launches"]);
    let sum = |of: &dyn Fn(&Value) -> f64| kernels(&report).iter().map(of).sum::<f64>();
    let times = |k: &Value| number(k, "launches");
    assert_eq!(sum(&times), number(&plan, "launches"));
    for (all, each) in [("kernels_ms", "measured_ms"), ("limit_ms", "limit_ms")] {
        let added = sum(&|k| times(k) * number(k, each));
        assert!(agree(number(&report, all), added), "{all}: {report}");
    }
    assert!(agree(number(&report, "won_ms"), sum(&|k| number(k, "won_ms"))));
    for key in ["peak_gflops", "triad_gb_per_s", "step_ms", "launch_ms", "tokens_per_s"] {
        assert!(number(&report, key) > 0.0, "{key}: {report}");
    }
    assert_eq!((&report["preset"], &report["dtype"]), (&"tiny".into(), &"f32".into()));
}

#[test]
fn a_kernel_has_its_limit_and_the_most_to_win_comes_first() {
    let report = json(&[]);
    let mut most = f64::INFINITY;
    for kernel in kernels(&report) {
        for key in ["launches", "bytes", "measured_ms", "predicted_ms", "limit_ms", "gb_per_s"] {
            assert!(number(kernel, key) > 0.0, "{key}: {kernel}");
        }
        let arithmetic = number(kernel, "flops") / number(&report, "peak_gflops") / 1e6;
        let memory = number(kernel, "bytes") / number(&report, "triad_gb_per_s") / 1e6;
        assert!(agree(number(kernel, "limit_ms"), arithmetic.max(memory)), "{kernel}");
        let bound = if arithmetic >= memory { "arithmetic" } else { "memory" };
        assert_eq!(kernel["bound_by"], bound, "{kernel}");
        assert!((0.0..=most).contains(&number(kernel, "won_ms")), "{kernel}");
        most = number(kernel, "won_ms");
    }
    let of_models = kernels(&report).iter().filter(|k| {
        let sources = k["sources"].as_array().expect("a list");
        sources.iter().any(|s| s["line"].as_u64() > Some(0) && s["text"].is_string())
    });
    assert!(2 * of_models.count() > kernels(&report).len(), "most kernels are some line's");
}

#[test]
fn the_table_names_kernels_lines_and_the_sum() {
    let table = bench(&[]);
    let parts = ["won ms", "of limit", "contract 64×176×64", "models/llama.mdl:", "attention_grad"];
    for part in parts.iter().chain(&["linear_cross_entropy_grad 64×320×64", "of the step's"]) {
        assert!(table.contains(part), "no `{part}` in\n{table}");
    }
}

#[test]
fn numbers_in_bf16_and_moved_states_are_measured_too() {
    let narrow = json(&["--bf16=1"]);
    assert_eq!(narrow["dtype"], "bf16");
    let is_narrow = |k: &&Value| k["name"].as_str().is_some_and(|name| name.contains("bf16"));
    assert!(kernels(&narrow).iter().filter(is_narrow).count() > 10, "{narrow}");
    let moved = json(&["--cpu_offload=1", "--gradient_accumulation=2"]);
    let transfer = kernels(&moved).iter().find(|k| k["kernel"] == "transfer");
    let transfer = transfer.expect("the state comes in by slices");
    assert!(number(transfer, "bytes") > 0.0 && number(transfer, "flops") == 0.0, "{transfer}");
}

#[test]
fn the_page_is_a_picture_and_a_table_and_asks_for_nothing() {
    let path = file("roofline.html", "");
    let report = json(&["--html", &path.to_string_lossy()]);
    let page = std::fs::read_to_string(&path).expect("the report is written");
    std::fs::remove_file(&path).expect("written above");
    // The name of SVG's elements is an address that nobody opens.
    let page = page.replace("http://www.w3.org/2000/svg", "");
    for outside in ["http:", "https:", "src=", "href=", "@import", "url(", "<script"] {
        assert!(!page.contains(outside), "the page asks for something: {outside}");
    }
    assert!(!page.contains("<!-- ") && !page.contains("/* the"), "a mark is left in the page");
    let computing = kernels(&report).iter().filter(|k| number(k, "flops") > 0.0).count();
    assert_eq!(page.matches("<circle").count(), computing);
    assert_eq!(page.matches("<title>").count(), computing + 1);
    assert_eq!(page.matches("<tr>").count(), kernels(&report).len() + 1);
    assert!(page.contains("<svg") && page.contains("triad: "));
}

/// Arguments behind `bench`, and what is said about them.
const WRONG: [(&[&str], &str); 9] = [
    (&[], "name a model FILE, such as `mdlc bench llama"),
    (&["gem"], "help: the suite is called `gemm`"),
    (&["llama"], ": --preset tiny | bytes_small"),
    (&["gemm", "--html=no.html"], "name a model in place of the suite"),
    (&["gemm", "--out=no.json"], "--out is the table of `mdlc bench tune`"),
    (&["gemm", "--shape=64,64"], "--shape has three sizes"),
    (&["llama", "--preset=tiny", "--file=llama"], "are two models; drop one"),
    (&["llama", "--preset=tiny", "--mesh=2"], "leave out --mesh"),
    (&["--preset=tiny_", "--runs=1"], "no embedded model has a preset `tiny_`"),
];

#[test]
fn a_wrong_bench_is_an_error_with_a_way_out() {
    for (args, said) in WRONG {
        let called = mdlc(&[&["bench"], args].concat());
        assert_eq!((called.status, called.out.as_str()), (1, ""), "{args:?}");
        assert!(called.err.contains("error[E0941]") && called.err.contains(said), "{}", called.err);
    }
}

#[test]
fn the_help_teaches_both_forms() {
    let help = mdlc(&["bench", "--help"]).out;
    for part in ["FILE|SUITE", "mdlc bench llama --preset", "mdlc bench gemm", "--html"] {
        assert!(help.contains(part), "no `{part}` in\n{help}");
    }
}
