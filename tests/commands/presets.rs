//! Published presets: they check, their parameters are counted, and every machine gets its plan.

use crate::{mdlc, plan};
use mdl_driver::embedded::MODELS;
use mdl_driver::front::Front;
use serde_json::Value;

/// A published preset of a model file with its parameters, all and those that one token uses.
pub struct Published {
    pub model: &'static str,
    pub preset: &'static str,
    pub parameters: u64,
    pub active: u64,
}

const fn dense(model: &'static str, preset: &'static str, parameters: u64) -> Published {
    Published { model, preset, parameters, active: parameters }
}

pub const PUBLISHED: [Published; 9] = [
    dense("llama", "llama2_7b", 6_738_415_616),
    dense("llama", "llama2_13b", 13_015_864_320),
    dense("llama", "llama2_70b", 68_976_648_192),
    dense("llama", "llama3_1_8b", 8_030_261_248),
    dense("llama", "llama3_1_70b", 70_553_706_496),
    dense("llama", "llama3_2_1b", 1_235_814_400),
    dense("llama", "llama3_2_3b", 3_212_749_824),
    dense("mistral", "mathstral_7b", 7_248_023_552),
    Published {
        model: "mixtral",
        preset: "mixtral_8x7b",
        parameters: 46_702_792_704,
        active: 12_879_925_248,
    },
];

/// Presets with fewer parameters are for trials.
const SMALLEST_PUBLISHED: u64 = 1_000_000_000;

/// Bytes of state for each parameter: itself, its gradient and two moments, in f32.
const STATE_BYTES: u64 = 16;

/// Published presets whose model file is part of the compiler; the others are named.
pub fn embedded() -> impl Iterator<Item = &'static Published> {
    PUBLISHED.iter().filter(|row| {
        let there = MODELS.iter().any(|(name, _)| *name == row.model);
        if !there {
            println!("SKIPPED: {} ({}.mdl is absent)", row.preset, row.model);
        }
        there
    })
}

#[test]
fn published_presets_check_and_count() {
    for row in embedded() {
        let called = mdlc(&["check", row.model, "--preset", row.preset]);
        assert_eq!(called.status, 0, "{}", called.err);
        let active = match row.active == row.parameters {
            true => String::new(),
            false => format!(", {} of them active for a token", row.active),
        };
        let said = format!("{} has {} parameters{active}\n", row.preset, row.parameters);
        assert!(called.out.ends_with(&said), "{}", called.out);
    }
}

/// Every preset of every embedded model that is large enough to be published has a row.
#[test]
fn every_large_preset_is_a_published_one() {
    for (name, text) in MODELS {
        for preset in Front::load(name, text, &|_| None).presets() {
            let (plan, _) = plan(&[*name, "--preset", &preset, "--max_context_width", "16"]);
            let parameters = plan["parameters"].as_u64().expect("a count");
            let row = PUBLISHED.iter().find(|row| (row.model, row.preset) == (name, &preset));
            assert_eq!(row.is_some(), parameters >= SMALLEST_PUBLISHED, "{name} {preset}");
        }
    }
}

#[test]
fn every_machine_gets_a_plan_of_every_published_preset() {
    const GIB: u64 = 1 << 30;
    // Bytes of a device, sequences of a rank, and ranks.
    let machines = [("p5", 80 * GIB, 2, 8), ("p4d", 40 * GIB, 1, 8), ("g5", 24 * GIB, 1, 1)];
    for row in embedded() {
        for (machine, device, batch, ranks) in machines {
            let (plan, notes) = plan(&["--preset", row.preset, "--hardware", machine]);
            let number = |path: &str| plan.pointer(path).and_then(|v| v.as_u64()).expect("bytes");
            let need = number("/needs_bytes/device");
            assert_eq!(need, number("/state_bytes") + number("/work_bytes"));
            // The smallest machine has the state in the host, the others a part on each device.
            let host = number("/needs_bytes/host");
            let state = if machine == "g5" { host } else { number("/state_bytes") };
            assert!(state * ranks >= row.parameters * STATE_BYTES, "{} on {machine}", row.preset);
            decisions_hold(&plan, need);
            assert_eq!(number("/device_bytes"), device);
            let fits = need <= device && ranks * host <= number("/hardware/host_bytes");
            assert_eq!(plan["fits"], fits, "{} on {machine}", row.preset);
            assert_eq!((&plan["sharded"], number("/devices_used")), (&(ranks > 1).into(), ranks));
            assert_eq!(number("/wire_bytes_per_step") > 0, ranks > 1, "{}", row.preset);
            assert_eq!(
                (number("/parameters"), number("/active_parameters")),
                (row.parameters, row.active)
            );
            assert_eq!(number("/batch"), batch);
            assert!(!notes.contains("activation"), "{notes}");
        }
    }
}

/// Bytes of state for each parameter in bf16: with moments and a master copy in f32, and without.
const NARROW_STATE_BYTES: [(&str, u64); 2] = [("f32", 2 + 2 + 4 + 4 + 4), ("bf16", 4 * 2)];

#[test]
fn a_state_in_bf16_has_the_bytes_of_its_elements() {
    // Slices start at multiples of 256 bytes: below a thousandth of these models.
    for row in embedded() {
        for (optimizer_state, bytes) in NARROW_STATE_BYTES {
            let state = format!("--optimizer_state={optimizer_state}");
            let (plan, _) = plan(&["--preset", row.preset, "--bf16=1", &state]);
            let (got, exact) = (plan["state_bytes"].as_u64(), row.parameters * bytes);
            let got = got.expect("bytes");
            assert!((exact..exact + exact / 1000).contains(&got), "{}: {got}", row.preset);
            assert_eq!(plan["precision"]["moments"], optimizer_state);
            assert_eq!(plan["precision"]["master"].is_null(), optimizer_state == "bf16");
        }
    }
}

/// What is not kept is why the plan needs less than one that keeps everything, and takes longer.
fn decisions_hold(plan: &Value, need: u64) {
    let decided = &plan["decided"];
    let saved = decided["saved"].as_array().expect("a list");
    let kept = saved.iter().all(|s| s["way"] == "kept");
    assert_eq!(decided["all_kept"].is_null(), kept);
    if !kept {
        let seconds = |of: &Value| of["predicted_seconds"].as_f64().expect("seconds");
        assert!(decided["all_kept"]["device_bytes"].as_u64().expect("bytes") > need);
        assert!(seconds(decided) >= seconds(&decided["all_kept"]));
    }
    assert!(!saved.is_empty());
}

#[test]
fn a_small_model_fits_and_a_flag_wins_over_the_machine() {
    let (plan, notes) = plan(&[
        "llama",
        "--preset=tiny",
        "--hardware=g5",
        "--train_batch_size=3",
        "--cpu_offload=0",
    ]);
    assert_eq!((&plan["fits"], &plan["batch"]), (&true.into(), &3.into()));
    assert!(!notes.contains("cpu_offload"), "{notes}");
    let local = mdlc(&["plan", "llama", "--preset=tiny", "--hardware=local"]);
    assert_eq!(local.status, 0, "{}", local.err);
    assert!(local.out.contains("1 × CPU") && local.out.contains("nothing sharded"));
}
