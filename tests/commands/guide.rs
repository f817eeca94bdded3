//! Command lines under the names that common training scripts use: sizes of published models, and
//! settings of memory, training, machines, data and logs.
//!
//! They are fenced blocks of a guide to configuring models, a Markdown file that is no part of the
//! repository; where it is absent the tests say so.

use crate::presets::embedded;
use crate::{mdlc, plan};
use serde_json::json;
use std::path::Path;

/// A fenced block of the guide: the line above it without its marks, and its flags.
struct Block {
    title: String,
    flags: Vec<String>,
}

fn blocks() -> Option<Vec<Block>> {
    let path = "../../../shared/seed/model-configuration-guidelines.md";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let Ok(text) = std::fs::read_to_string(&path) else {
        println!("SKIPPED: {} is absent, no flag was tried", path.display());
        return None;
    };
    let (mut title, mut inside) = (String::new(), false);
    let mut blocks: Vec<Block> = Vec::new();
    for line in text.lines() {
        match (line.starts_with("```"), inside) {
            (true, false) => {
                blocks.push(Block { title: title.clone(), flags: Vec::new() });
                inside = true;
            }
            (true, true) => inside = false,
            (false, true) => {
                let flag = line.split('#').next().unwrap_or("").trim();
                let flags = blocks.last_mut().map(|block| &mut block.flags);
                flags.filter(|_| flag.starts_with("--")).into_iter().for_each(|flags| {
                    flags.push(flag.to_string());
                });
            }
            (false, false) if !line.trim().is_empty() => {
                title = line.trim_matches(['#', '*', ':', ' ']).to_string();
            }
            (false, false) => {}
        }
    }
    Some(blocks.into_iter().filter(|block| !block.flags.is_empty()).collect())
}

/// Title in the guide, and the preset that its sizes are nearest to.
const MODELS: [(&str, &str); 9] = [
    ("Llama 2 7B", "llama2_7b"),
    ("Llama 2 13B", "llama2_13b"),
    ("Llama 2 70B", "llama2_70b"),
    ("Llama 3.1 8B", "llama3_1_8b"),
    ("Llama 3.1 70B", "llama3_1_70b"),
    ("Llama 3.2 1B", "llama3_2_1b"),
    ("Llama 3.2 3B", "llama3_2_3b"),
    ("Mistral 8x7B (Mixtral)", "mixtral_8x7b"),
    ("Mistral Mathstral 7B", "mathstral_7b"),
];

/// The one model that the guide has in another size than the published one: the width of its
/// feed-forward blocks, which have three matrices in each of 28 layers.
const DEVIANT: &str = "llama3_2_3b";
const DEVIANT_FFN: u64 = 11008;
const PUBLISHED_FFN: u64 = 8192;
const MORE_PARAMETERS: u64 = 28 * 3 * 3072 * (DEVIANT_FFN - PUBLISHED_FFN);

#[test]
fn the_guides_sizes_choose_the_published_models() {
    let Some(blocks) = blocks() else { return };
    let sized = |block: &&Block| block.flags.iter().any(|f| f.starts_with("--model_type="));
    assert_eq!(blocks.iter().filter(sized).count(), MODELS.len());
    for row in embedded() {
        let title = MODELS.iter().find(|(_, preset)| *preset == row.preset).expect("a title").0;
        let block = blocks.iter().find(|block| block.title == title).expect("it is in the guide");
        let (plan, notes) = plan(&block.flags);
        assert_eq!(plan["model"], format!("models/{}.mdl", row.model), "{title}");
        assert_eq!(plan["preset"], row.preset, "{title}");
        let (mut differences, mut parameters) = (json!([]), row.parameters);
        if row.preset == DEVIANT {
            let ffn = json!({ "field": "ffn", "value": DEVIANT_FFN, "preset": PUBLISHED_FFN });
            differences = json!([ffn]);
            parameters += MORE_PARAMETERS;
            let said = format!("note: ffn is {DEVIANT_FFN}; preset {DEVIANT} has {PUBLISHED_FFN}");
            assert!(notes.contains(&said), "{notes}");
        } else {
            assert!(!notes.contains("; preset"), "{title}: {notes}");
        }
        assert_eq!(plan["differences"], differences, "{title}");
        assert_eq!(plan["parameters"], parameters, "{title}");
        let width = block.flags.iter().find_map(|f| f.strip_prefix("--max_context_width="));
        assert_eq!(Some(plan["context"].to_string().as_str()), width);
    }
}

/// All other blocks: what there is to say about memory, training, machines, data and logs.
#[test]
fn every_flag_of_the_guide_is_known_to_plan_and_train() {
    let Some(blocks) = blocks() else { return };
    let mut tried = 0;
    for block in &blocks {
        let is_sized = block.flags.iter().any(|flag| flag.starts_with("--model_type="));
        if is_sized {
            continue;
        }
        let mut args = vec!["llama".to_string(), "--preset=tiny".to_string()];
        args.extend(block.flags.iter().cloned());
        let (_, notes) = plan(&args);
        for flag in &block.flags {
            let (name, value) = flag.split_once('=').expect("the guide gives values");
            if name == "--sharding_strategy" && value != "0" {
                let said = format!("note: {flag} has no effect yet: ");
                assert!(notes.contains(&said), "{}: {flag}\n{notes}", block.title);
            }
            tried += 1;
        }
        // The data set is none that is here, and that is all that is wrong with the run.
        args.insert(0, "train".to_string());
        if !block.flags.iter().any(|flag| flag.starts_with("--dataset=")) {
            args.push("--dataset=no/such".to_string());
        }
        let called = mdlc(&args);
        assert!(called.err.contains("error[E0901]"), "{}: {}", block.title, called.err);
    }
    assert!(tried > 30, "the guide has more flags than {tried}");
}
