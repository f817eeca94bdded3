//! Tokenizers against the ids that the reference library gives, where the published files are at
//! hand.

use mdl_train::tokenizer::Tokenizer;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The folder of test assets, which a checkout may lack.
fn assets() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/assets");
    if !path.is_dir() {
        println!("SKIPPED: {} is not there", path.display());
    }
    path.is_dir().then_some(path)
}

fn json(path: PathBuf) -> Value {
    let text = std::fs::read_to_string(path).expect("the asset is there");
    serde_json::from_str(&text).expect("the asset is JSON")
}

fn ids_of(value: &Value) -> Vec<u32> {
    let ids = value.as_array().expect("a list of ids").iter();
    ids.map(|id| id.as_u64().expect("an id") as u32).collect()
}

#[test]
fn published_tokenizers_give_the_reference_ids() {
    let Some(assets) = assets() else { return };
    let expected = json(assets.join("tokenizers/encodings.json"));
    let ends = [("llama2", 2), ("llama3_1", 128_001), ("mistral_v1", 2), ("mistral_v3", 2)];
    for (name, eos) in ends {
        let vocab = expected[format!("{name}_vocab")].as_u64().expect("a size") as usize;
        let path = assets.join("tokenizers").join(name);
        let path = path.to_str().expect("asset paths are UTF-8");
        let tokenizer = Tokenizer::open(path, vocab).expect("the asset is a tokenizer");
        assert_eq!(tokenizer.eos(), Some(eos));
        let error = Tokenizer::open(path, vocab - 1).expect_err("one id too many");
        assert_eq!(error.code(), "E0912");
        for case in expected[name].as_array().expect("a list of texts") {
            let text = case["text"].as_str().expect("a text");
            let ids = tokenizer.encode(text, false).expect("any text has ids");
            assert_eq!(ids, ids_of(&case["ids"]), "{name}: {text}");
            let mut with_ends = vec![tokenizer.bos().expect("these have one")];
            with_ends.extend(ids.iter().chain([&eos]));
            assert_eq!(tokenizer.training_ids(text).expect("any text has ids"), with_ends);
            assert_eq!(tokenizer.decode(&ids, false).expect("ids have a text"), text);
            let mut decoding = tokenizer.decoding(true);
            let pieces: Result<String, _> = with_ends.iter().map(|id| decoding.push(*id)).collect();
            assert_eq!(pieces.expect("ids have a text"), text, "{name}, one by one");
        }
    }
}

#[test]
fn a_pretrained_model_directory_gives_its_ids() {
    let Some(assets) = assets() else { return };
    let path = assets.join("stories260k");
    let expected = json(path.join("expected.json"));
    let path = path.to_str().expect("asset paths are UTF-8");
    let tokenizer = Tokenizer::open(path, 512).expect("the asset is a tokenizer");
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
    let text = expected["text"].as_str().expect("a text");
    let ids = tokenizer.evaluation_ids(text).expect("any text has ids");
    assert_eq!(ids, ids_of(&expected["text_ids"]));
    let greedy = tokenizer.decode(&ids_of(&expected["greedy_ids"]), true);
    assert_eq!(greedy.ok().as_deref(), expected["greedy_text"].as_str());
}
