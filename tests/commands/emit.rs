//! `mdlc build --target … --emit ptx DIR`: every kernel of a step as a file, with no device.

use crate::mdlc;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;

#[test]
fn ptx_of_every_kernel_is_written_for_the_target_that_is_asked_for() {
    for target in ["sm_80", "sm_90a"] {
        let name = format!("mdl-{}-{target}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        let to = folder.display().to_string();
        let step = ["build", "llama", "--preset=tiny", "--max_context_width=16", "--json"];
        let called = mdlc(&[&step[..], &["--target", target, "--emit", "ptx", &to]].concat());
        assert_eq!(called.status, 0, "{}", called.err);
        let report: Value = serde_json::from_str(&called.out).expect("one JSON object");
        let table = fs::read_to_string(folder.join("kernels.json")).expect("written");
        let table: Vec<Value> = serde_json::from_str(&table).expect("a list");
        assert_eq!(report["kernels"], table.len());
        let mut files = BTreeSet::from(["kernels.json".to_string()]);
        for kernel in &table {
            let text = |key: &str| kernel[key].as_str().expect("a text").to_string();
            let (name, entry) = (text("name"), text("entry"));
            assert!(kernel["units"].as_u64() > Some(0), "{kernel}");
            let text = fs::read_to_string(folder.join(format!("{name}.ptx"))).expect("written");
            assert!(text.contains(&format!(".target {target}\n")), "{name} is for another GPU");
            assert!(text.contains(&format!(".entry {entry}(")), "{entry} is not in {name}");
            files.insert(format!("{name}.ptx"));
        }
        let there = fs::read_dir(&folder).expect("a folder").map(|file| file.expect("readable"));
        let there = there.map(|file| file.file_name().to_string_lossy().into_owned());
        assert_eq!(there.collect::<BTreeSet<String>>(), files);
        fs::remove_dir_all(folder).expect("it is ours");
    }
}

#[test]
fn a_form_that_no_target_has_is_refused_with_a_way_out() {
    for flags in [["--target=cpu", "ptx"], ["--target=sm_90a", "cubin"]] {
        let [target, form] = flags;
        let called = mdlc(&["build", "llama", "--preset=tiny", target, "--emit", form, "kernels"]);
        assert_ne!(called.status, 0);
        assert!(
            called.err.contains("E0941") && called.err.contains("--emit ptx"),
            "{}",
            called.err
        );
    }
}
