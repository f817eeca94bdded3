//! `mdlc plan` launch by launch: the picture, its JSON, the page and sweeps.

use crate::presets::embedded;
use crate::{mdlc, plan};
use serde_json::{Value, json};

fn list<'v>(plan: &'v Value, key: &str) -> &'v [Value] {
    plan[key].as_array().expect("a list")
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("`{key}` of {value} is no count"))
}

/// Bytes as the arena pads them, summed over the buffers that are in use at a launch.
fn in_use(plan: &Value, at: u64) -> u64 {
    let here = |b: &&Value| number(b, "first") <= at && at <= number(b, "last");
    let padded = |b: &Value| number(b, "bytes").next_multiple_of(256);
    list(plan, "buffers").iter().filter(here).map(padded).sum()
}

#[test]
fn the_timeline_of_every_preset_adds_up() {
    for published in embedded() {
        let preset = published.preset;
        let (plan, _) = plan(&[published.model, "--preset", preset, "--threads=2"]);
        let schedule = list(&plan, "schedule");
        let sum = |key| schedule.iter().map(|l| number(l, "times") * number(l, key)).sum::<u64>();
        assert_eq!(sum("flops"), number(&plan, "flops_per_step"), "{preset}");
        assert_eq!(sum("bytes"), number(&plan, "bytes_per_step"), "{preset}");
        let times: u64 = schedule.iter().map(|l| number(l, "times")).sum();
        assert_eq!(times, number(&plan, "launches"), "{preset}");
        for (at, launch) in schedule.iter().enumerate() {
            assert_eq!(number(launch, "live_bytes"), in_use(&plan, at as u64), "{preset}, {at}");
            // What the optimizer asks for, such as the norm of all gradients, has no line.
            let works = number(launch, "flops") > 0 && number(launch, "times") > 1;
            let said = launch["source"]["line"].as_u64().is_some_and(|line| line > 0);
            assert!(said || !works, "{preset}: no line says what {launch} computes");
        }
        let peak = number(&plan, "peak_at_launch") as usize;
        let most = schedule.iter().map(|l| number(l, "live_bytes")).max();
        assert_eq!(Some(number(&schedule[peak], "live_bytes")), most, "{preset}");
        assert_eq!(Some(number(&plan, "live_bytes_at_peak")), most, "{preset}");
        for l in list(&plan, "loops") {
            for at in number(l, "first")..=number(l, "last") {
                assert_eq!(schedule[at as usize]["times"], l["times"], "{preset}, launch {at}");
            }
        }
    }
}

#[test]
fn a_buffer_of_a_layer_comes_from_a_line_of_that_layer() {
    let (plan, _) = plan(&["llama", "--preset=tiny", "--threads=2"]);
    let kept = list(&plan, "buffers").iter().find(|b| b["name"] == "attention");
    let source = &kept.expect("what attention gives is kept for its gradient")["source"];
    assert_eq!(source["file"], "models/llama.mdl");
    assert!(source["text"].as_str().is_some_and(|text| text.contains("attention[")), "{source}");
}

#[test]
fn the_picture_marks_loops_and_the_peak() {
    let called = mdlc(&["plan", "llama", "--preset=llama3_2_1b", "--threads=2"]);
    for part in ["16 times", "█", "^ launch ", "in use at launch ", "models/llama.mdl:"] {
        assert!(called.out.contains(part), "no `{part}` in {}", called.out);
    }
}

#[test]
fn the_page_needs_nothing_but_itself() {
    let path = std::env::temp_dir().join(format!("mdl-{}-report.html", std::process::id()));
    let args = ["plan", "llama", "--preset=tiny", "--html", &path.to_string_lossy()];
    let called = mdlc(&args);
    let page = std::fs::read_to_string(&path).expect("the report is written");
    std::fs::remove_file(&path).expect("written above");
    assert_eq!(called.status, 0, "{}", called.err);
    // The name of SVG's elements is an address that nobody opens.
    let page = page.replace("http://www.w3.org/2000/svg", "");
    for outside in ["http:", "https:", "src=", "href=", "@import", "url("] {
        assert!(!page.contains(outside), "the page asks for something: {outside}");
    }
    let after = page.split_once("id=\"plan\">").expect("the plan is in the page").1;
    let data = after.split_once("</script>").expect("the element ends").0;
    let shown: Value = serde_json::from_str(data).expect("JSON");
    assert_eq!(shown, plan(&args[1..3]).0);
}

#[test]
fn a_page_that_cannot_be_written_is_an_error() {
    let called = mdlc(&["plan", "llama", "--preset=tiny", "--html=/no/such/folder/r.html"]);
    assert_eq!((called.status, called.out.as_str()), (1, ""));
    assert!(called.err.contains("error[E0941]"), "{}", called.err);
}

#[test]
fn a_sweep_is_every_plan_of_its_combinations() {
    let args = ["llama", "--preset=tiny", "--hardware=p5", "--threads=2"];
    let sweeps = ["--sweep=num-layers=1,3", "--sweep", "train_batch_size=2,4"];
    let (swept, _) = plan(&[&args[..], &sweeps[..]].concat());
    let plans = list(&swept, "plans");
    assert_eq!((&swept["sweep"], plans.len()), (&json!(["num_layers", "train_batch_size"]), 4));
    let each = [(1, 2), (1, 4), (3, 2), (3, 4)];
    for (row, (layers, batch)) in plans.iter().zip(each) {
        let flags = [format!("--num_layers={layers}"), format!("--train_batch_size={batch}")];
        let given = args.iter().map(|a| a.to_string()).chain(flags).collect::<Vec<_>>();
        let (alone, _) = plan(&given);
        for key in ["parameters", "needs_bytes", "fits", "flops_per_step", "tokens_per_step"] {
            assert_eq!(row[key], alone[key], "{key} with {layers} layers, batch {batch}");
        }
        let set = json!({ "num_layers": layers, "train_batch_size": batch });
        assert_eq!(row["flags"], set);
    }
    let table = mdlc(&[&["plan"], &args[..], &sweeps[..]].concat());
    assert_eq!(table.out.lines().count(), 5, "{}", table.out);
}

/// Flags of a sweep, and what is said about them.
const WRONG: [(&[&str], &str); 6] = [
    (&["--sweep=train_batch_size"], "write --sweep train_batch_size=1,2,4"),
    (&["--sweep=train_batch_size=1,x"], "write --sweep train_batch_size=1,2,4"),
    (&["--sweep=no_such_flag=1"], "there is no flag `--no_such_flag`"),
    (&["--sweep=train_batch_size=0"], "1..=1048576"),
    (&["--train_batch_size=3", "--sweep=train_batch_size=1"], "give it once"),
    (&["--sweep=seed=1", "--sweep=seed=2"], "give it once"),
];

#[test]
fn a_wrong_sweep_is_an_error_with_a_way_out() {
    for (sweep, said) in WRONG {
        let called = mdlc(&[&["plan", "llama", "--preset=tiny"], sweep].concat());
        assert_eq!((called.status, called.out.as_str()), (1, ""), "{sweep:?}");
        assert!(called.err.contains("error[E0941]"), "{sweep:?}: {}", called.err);
        assert!(called.err.contains(said), "{sweep:?}: {}", called.err);
    }
}
