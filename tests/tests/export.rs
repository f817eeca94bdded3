//! What is exported is what was there: weights, configuration and tokenizer, whole or not at all.

mod model_files;

use mdl_train::export::{Options, export};
use mdl_train::floats::{narrow, widen};
use mdl_train::model::Model;
use mdl_train::weights::Weights;
use model_files::{Tensor, folder, llama, put_model, put_text, small_config, tiny_config, values};
use safetensors::Dtype;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const AS_IT_IS: Options = Options { dtype: None, shard_bytes: u64::MAX, force: false };

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("the file was written");
    serde_json::from_str(&text).expect("JSON")
}

/// A model's directory, and a place for its export.
fn model(name: &str, config: &Value, tensors: &[Tensor]) -> (PathBuf, PathBuf) {
    let dir = folder(name);
    let from = dir.join("from");
    std::fs::create_dir(&from).expect("writable");
    put_model(&from, config, tensors);
    (from, dir.join("to"))
}

fn files(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("a directory").flatten();
    let mut names: Vec<String> =
        entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_published_model_goes_through_without_loss() {
    let config = small_config();
    let mut tensors = llama(&config, Dtype::BF16);
    // As some tools store a tied weight: under the head's name alone.
    tensors[0].name = "lm_head.weight".into();
    let (from, to) = model("export-whole", &config, &tensors);
    put_text(&from.join("tokenizer_config.json"), "{\"a\": 1}");
    put_text(&from.join("tokenizer.json"), "{}");
    let refused = export(&from, &to, &AS_IT_IS).expect_err("no tokenizer").to_string();
    assert!(refused.contains("error[E0911]") && !to.exists(), "{refused}");
    let words = r#"{"version":"1.0","model":{"type":"WordLevel","unk_token":"?","vocab":{"?":0}}}"#;
    put_text(&from.join("tokenizer.json"), words);
    let done = export(&from, &to, &AS_IT_IS).expect("a whole model");
    assert_eq!((done.tensors, done.shards, done.notes.len()), (tensors.len(), 1, 0));
    let expected = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(files(&to), expected);
    assert_eq!(files(to.parent().expect("a folder")), ["from", "to"]);
    tensors[0].name = "model.embed_tokens.weight".into();
    let weights = Weights::open(&to).expect("whole");
    assert_eq!(weights.names().count(), tensors.len());
    for t in &tensors {
        let stored = weights.stored(&t.name).expect("every tensor");
        let found = (stored.dtype, stored.shape, stored.bytes);
        assert_eq!(found, (t.dtype, &*t.shape, &*t.bytes), "{}", t.name);
    }
    let written = json(&to.join("config.json"));
    for (key, value) in config.as_object().expect("an object") {
        assert_eq!(&written[key], value, "{key}");
    }
    assert_eq!(written["dtype"], "bfloat16");
    let generation = json(&to.join("generation_config.json"));
    assert_eq!((&generation["bos_token_id"], &generation["eos_token_id"]), (&json!(0), &json!(0)));
    let again = Model::of_checkpoint(&to).expect("a Llama").config;
    assert_eq!(again.fields, Model::of_checkpoint(&from).expect("a Llama").config.fields);
}

/// The newer spelling comes in, the older one goes out, and both bind to the same.
#[test]
fn the_rotary_embedding_is_written_in_the_spelling_that_all_readers_know() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
    let mut parameters = llama3.clone();
    parameters["rope_theta"] = json!(5e5);
    let plain = json!({"rope_type": "default", "rope_theta": 1e4});
    for (parameters, theta, scaling) in [(parameters, 5e5, llama3), (plain, 1e4, Value::Null)] {
        let mut config = tiny_config();
        config["rope_parameters"] = parameters;
        config.as_object_mut().map(|config| config.remove("rope_theta"));
        let (from, to) = model("export-rope", &config, &llama(&config, Dtype::F32));
        export(&from, &to, &AS_IT_IS).expect("a whole model");
        let written = json(&to.join("config.json"));
        assert_eq!((&written["rope_theta"], &written["rope_scaling"]), (&json!(theta), &scaling));
        assert!(written.get("rope_parameters").is_none());
        let fields = |dir: &Path| Model::of_checkpoint(dir).expect("a Llama").config.fields.clone();
        assert_eq!(fields(&to), fields(&from));
    }
}

/// A configuration from a preset has all that a reader asks for, but the element type and the
/// context, which those know who write weights.
#[test]
fn a_preset_becomes_a_whole_config() {
    let mut model = Model::open("llama", Some("llama3_2_1b")).expect("an embedded preset");
    let config = Value::Object(model.config_json());
    let wanted = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "attention_bias": false, "mlp_bias": false, "hidden_size": 2048, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
        "intermediate_size": 8192, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
        "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 32.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192},
        "initializer_range": 0.02, "use_cache": true, "attention_dropout": 0.0,
    });
    assert_eq!(config, wanted);
}

#[test]
fn shards_and_narrower_numbers_hold_the_same_weights() {
    let config = tiny_config();
    let tensors = llama(&config, Dtype::F32);
    let (from, to) = model("export-shards", &config, &tensors);
    let options = Options { dtype: Some(Dtype::F16), shard_bytes: 500, force: false };
    let done = export(&from, &to, &options).expect("a whole model");
    assert!(done.shards > 2);
    assert!(to.join(format!("model-00001-of-{:05}.safetensors", done.shards)).is_file());
    let index = json(&to.join("model.safetensors.index.json"));
    assert_eq!(index["metadata"]["total_size"].as_u64(), Some(done.bytes));
    assert_eq!(index["weight_map"].as_object().map(|map| map.len()), Some(tensors.len()));
    let weights = Weights::open(&to).expect("every shard");
    for t in &tensors {
        let (mut rounded, values) = (Vec::new(), values(t));
        let bytes = narrow(Dtype::F16, &values).expect("small numbers");
        widen(Dtype::F16, &bytes, &mut rounded);
        assert_eq!(weights.read_f32(&t.name).expect("every tensor"), rounded, "{}", t.name);
    }
    assert_eq!(json(&to.join("config.json"))["torch_dtype"], "float16");
}

/// What stood there before a refusal or a failure stands there afterwards.
#[test]
fn nothing_is_lost_where_an_export_is_refused_or_fails() {
    let config = tiny_config();
    let mut tensors = llama(&config, Dtype::F32);
    let (from, to) = model("export-refused", &config, &tensors);
    let code = |from: &Path, to: &Path, options: &Options| {
        let error = export(from, to, options).expect_err("refused").to_string();
        error.get(6..11).map(str::to_owned).expect("a code")
    };
    std::fs::create_dir(&to).expect("writable");
    let forced = Options { force: true, ..AS_IT_IS };
    export(&from, &to, &AS_IT_IS).expect("an empty directory is as good as none");
    put_text(&to.join("mine.txt"), "kept");
    assert_eq!(code(&from, &to, &AS_IT_IS), "E0941");
    assert_eq!(code(&to, &to, &forced), "E0941");
    assert!(to.join("mine.txt").exists());
    // 1e30 is no number of F16.
    tensors[0].bytes[..4].copy_from_slice(&1e30f32.to_le_bytes());
    put_model(&from, &config, &tensors);
    let narrow = Options { dtype: Some(Dtype::F16), ..forced };
    assert_eq!(code(&from, &to, &narrow), "E0924");
    assert!(to.join("mine.txt").exists());
    export(&from, &to, &forced).expect("a model makes way");
    assert!(!to.join("mine.txt").exists());
    put_text(&from.join("config.json"), "{}");
    assert_eq!(code(&from, &to, &forced), "E0921");
    std::fs::remove_file(to.join("config.json")).expect("written above");
    assert_eq!(code(&from, &to, &forced), "E0941");
    assert_eq!(files(to.parent().expect("a folder")), ["from", "to"]);
}
