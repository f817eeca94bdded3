//! Tokenizers: those of each family as their files state it, hostile files, one trained here, and
//! the published ones against the ids that the reference library gives, where these are at hand.

use mdl_train::dataset::Document;
use mdl_train::tokenizer::Tokenizer;
use mdl_train::tokenizer_train::{self, MIN_VOCAB, Trained};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The folder of test assets, which a checkout may lack.
fn assets() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/assets");
    if !path.is_dir() {
        println!("SKIPPED: {} is not there", path.display());
    }
    path.is_dir().then_some(path)
}

/// A fresh folder with these files.
fn folder(name: &str, files: &[(&str, String)]) -> String {
    let path = std::env::temp_dir().join(format!("mdl_tokenizers_{name}_{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).expect("the temporary folder is writable");
    for (file, text) in files {
        std::fs::write(path.join(file), text).expect("the temporary folder is writable");
    }
    path.to_str().expect("the temporary folder is UTF-8").to_string()
}

fn json_file(path: PathBuf) -> Value {
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
    let expected = json_file(assets.join("tokenizers/encodings.json"));
    let ends = [
        ("llama2", 1, 2),
        ("llama3_1", 128_000, 128_001),
        ("mistral_v1", 1, 2),
        ("mistral_v3", 1, 2),
    ];
    for (name, bos, eos) in ends {
        let vocab = expected[format!("{name}_vocab")].as_u64().expect("a size") as usize;
        let path = assets.join("tokenizers").join(name);
        let path = path.to_str().expect("asset paths are UTF-8");
        let tokenizer = Tokenizer::open(path, vocab).expect("the asset is a tokenizer");
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(bos), Some(eos)));
        let error = Tokenizer::open(path, vocab - 1).expect_err("one id too many");
        assert_eq!(error.code(), "E0912");
        for case in expected[name].as_array().expect("a list of texts") {
            let text = case["text"].as_str().expect("a text");
            let ids = tokenizer.encode(text, false).expect("any text has ids");
            assert_eq!(ids, ids_of(&case["ids"]), "{name}: {text}");
            let with_bos = [&[bos], ids.as_slice()].concat();
            assert_eq!(tokenizer.encode(text, true).expect("any text has ids"), with_bos);
            let with_ends = [with_bos.as_slice(), &[eos]].concat();
            assert_eq!(tokenizer.training_ids(text).expect("any text has ids"), with_ends);
            assert_eq!(tokenizer.decode(&ids, false).expect("ids have a text"), text);
            let mut decoding = tokenizer.decoding(true);
            let pieces: Result<String, _> = with_ends.iter().map(|id| decoding.push(*id)).collect();
            assert_eq!(pieces.expect("ids have a text"), text, "{name}, one by one");
            let (spanned, spans) = tokenizer.evaluation_spans(text).expect("any text has ids");
            assert_eq!((spanned, spans.last()), (with_bos, Some(&text.len())), "{name}: {text}");
            assert!(spans.is_sorted() && spans[0] == 0);
        }
    }
}

#[test]
fn a_pretrained_model_directory_gives_its_ids() {
    let Some(assets) = assets() else { return };
    let path = assets.join("stories260k");
    let expected = json_file(path.join("expected.json"));
    let path = path.to_str().expect("asset paths are UTF-8");
    let tokenizer = Tokenizer::open(path, 512).expect("the asset is a tokenizer");
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
    let text = expected["text"].as_str().expect("a text");
    let ids = tokenizer.evaluation_ids(text).expect("any text has ids");
    assert_eq!(ids, ids_of(&expected["text_ids"]));
    let greedy = tokenizer.decode(&ids_of(&expected["greedy_ids"]), true);
    assert_eq!(greedy.ok().as_deref(), expected["greedy_text"].as_str());
}

/// A tokenizer.json with these special tokens from id 0, then the letters a to c.
fn small(special: &[&str], post_processor: Value) -> String {
    let names = special.iter().copied().chain(["a", "b", "c"]);
    let vocab: serde_json::Map<_, _> =
        names.enumerate().map(|(i, name)| (name.to_string(), json!(i))).collect();
    let added = special.iter().enumerate().map(|(id, name)| {
        json!({ "id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true })
    });
    let model = json!({ "type": "BPE", "vocab": vocab, "merges": [] });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "pre_tokenizer": null, "decoder": null, "post_processor": post_processor,
        "added_tokens": added.collect::<Vec<_>>(), "model": model,
    })
    .to_string()
}

/// A post-processor that puts special tokens around a text, `$A` below.
fn template(parts: &[(&str, u32)]) -> Value {
    let mut special = serde_json::Map::new();
    let piece = |(name, id): &(&str, u32)| {
        if *name == "$A" {
            return json!({ "Sequence": { "id": "A", "type_id": 0 } });
        }
        special.insert(name.to_string(), json!({ "id": name, "ids": [id], "tokens": [name] }));
        json!({ "SpecialToken": { "id": name, "type_id": 0 } })
    };
    let single: Vec<Value> = parts.iter().map(piece).collect();
    json!({ "type": "TemplateProcessing", "single": single, "special_tokens": special,
        "pair": [{ "Sequence": { "id": "A", "type_id": 0 } },
            { "Sequence": { "id": "B", "type_id": 1 } }] })
}

struct Family {
    name: &'static str,
    special: &'static [&'static str],
    post_processor: Value,
    beside: Vec<(&'static str, Value)>,
    bos: Option<u32>,
    eos: &'static [u32],
    front: &'static [u32],
}

// tidy: table
fn families() -> Vec<Family> {
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false,
        "use_regex": true });
    let bos_first = template(&[("<s>", 1), ("$A", 0)]);
    vec![
        Family {
            name: "Llama 2 and Mistral",
            special: &["<unk>", "<s>", "</s>"],
            post_processor: bos_first.clone(),
            beside: vec![],
            bos: Some(1),
            eos: &[2],
            front: &[1],
        },
        Family {
            name: "Llama 3 with several ends",
            special: &["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
            post_processor: json!({ "type": "Sequence", "processors":
                [byte_level, template(&[("<|begin_of_text|>", 0), ("$A", 0)])] }),
            beside: vec![
                ("generation_config.json", json!({ "bos_token_id": 0, "eos_token_id": [1, 2] })),
                ("config.json", json!({ "bos_token_id": 0, "eos_token_id": 2 })),
            ],
            bos: Some(0),
            eos: &[1, 2],
            front: &[0],
        },
        Family {
            name: "GPT-2 and SmolLM",
            special: &["<|endoftext|>"],
            post_processor: byte_level.clone(),
            beside: vec![("config.json", json!({ "bos_token_id": 0, "eos_token_id": 0 }))],
            bos: Some(0),
            eos: &[0],
            front: &[],
        },
        Family {
            name: "GPT-2 without a file beside it",
            special: &["<|endoftext|>"],
            post_processor: Value::Null,
            beside: vec![],
            bos: Some(0),
            eos: &[0],
            front: &[],
        },
        Family {
            name: "add_bos_token puts BOS in front",
            special: &["<pad>", "<eos>", "<bos>"],
            post_processor: Value::Null,
            beside: vec![(
                "tokenizer_config.json",
                json!({ "add_bos_token": true, "bos_token": { "content": "<bos>" },
                    "eos_token": "<eos>" }),
            )],
            bos: Some(2),
            eos: &[1],
            front: &[2],
        },
        Family {
            name: "add_bos_token leaves BOS out",
            special: &["<unk>", "<s>", "</s>"],
            post_processor: bos_first,
            beside: vec![("tokenizer_config.json", json!({ "add_bos_token": false }))],
            bos: Some(1),
            eos: &[2],
            front: &[],
        },
        Family {
            name: "one token begins and ends, as in OPT",
            special: &["<pad>", "</s>"],
            post_processor: template(&[("</s>", 1), ("$A", 0)]),
            beside: vec![("special_tokens_map.json", json!({ "eos_token": "</s>" }))],
            bos: Some(1),
            eos: &[1],
            front: &[1],
        },
        Family {
            name: "what is put behind is not in front",
            special: &["<pad>", "</s>"],
            post_processor: template(&[("$A", 0), ("</s>", 1)]),
            beside: vec![],
            bos: None,
            eos: &[1],
            front: &[],
        },
    ]
}

#[test]
fn each_family_gets_its_bos_and_eos() {
    for family in families() {
        let name = family.name;
        let mut files = vec![("tokenizer.json", small(family.special, family.post_processor))];
        files.extend(family.beside.iter().map(|(file, value)| (*file, value.to_string())));
        let n = family.special.len();
        let tokenizer = Tokenizer::open(&folder("family", &files), n + 3);
        let tokenizer = tokenizer.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((tokenizer.bos(), tokenizer.ends()), (family.bos, family.eos), "{name}");
        let text = [n as u32 + 1, n as u32];
        let front = [family.front, &text].concat();
        assert_eq!(tokenizer.encode("ba", true).expect("letters have ids"), front, "{name}");
        assert_eq!(tokenizer.encode("ba", false).expect("letters have ids"), text, "{name}");
        let training = [front.as_slice(), &family.eos[..1]].concat();
        assert_eq!(tokenizer.training_ids("ba").expect("letters have ids"), training, "{name}");
    }
}

#[test]
fn ids_beside_the_tokenizer_are_held_to_the_vocabulary() {
    let files = |id: u32| {
        let json = small(&["<s>", "</s>"], template(&[("<s>", id), ("$A", 0)]));
        folder("vocabulary", &[("tokenizer.json", json)])
    };
    assert_eq!(Tokenizer::open(&files(0), 5).expect("all ids are below 5").front(), [0]);
    assert_eq!(Tokenizer::open(&files(7), 5).expect_err("7 is in front").code(), "E0912");
    let config = ("config.json", json!({ "eos_token_id": [1, 99] }).to_string());
    let path = folder("vocabulary", &[("tokenizer.json", small(&["<s>"], Value::Null)), config]);
    assert_eq!(Tokenizer::open(&path, 5).expect_err("99 ends a text").code(), "E0912");
}

/// What a tokenizer is trained on here: prose, code and characters of several bytes.
fn trained(vocab_size: usize) -> Trained {
    let line = "Once upon a time there was a café 漢字 🦙\n    return x @ w  # once more\r\n\t";
    let documents: Vec<Document> = (0..40)
        .map(|i| Document {
            text: format!("{line} {i} {}", "the theory of the thing ".repeat(i)),
            file: Arc::from(Path::new("here.txt")),
            line: None,
        })
        .collect();
    tokenizer_train::train(&documents, vocab_size, &|_| {}).expect("the text has many pairs")
}

/// A numeric sequence for inputs: the constants of Knuth's MMIX generator.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    *state >> 33
}

#[test]
fn a_trained_tokenizer_gives_back_any_text() {
    let first = trained(300);
    assert_eq!(first, trained(300), "the same text gives the same bytes");
    assert_eq!(first.n_ids, 300);
    let path = folder("trained", &[]);
    tokenizer_train::write(Path::new(&path), &first).expect("the temporary folder is writable");
    let tokenizer = Tokenizer::open(&path, 300).expect("what is written can be read");
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.front()), (Some(0), Some(1), &[0][..]));
    let once = tokenizer.encode("Once upon a time", false).expect("any text has ids");
    assert!(once.len() < 8, "words of the text are few tokens: {once:?}");
    let mut state = 1;
    for _ in 0..300 {
        let length = next(&mut state) % 60;
        let text: String = (0..length)
            .map(|_| match next(&mut state) % 4 {
                0 => ' ',
                1 => char::from((next(&mut state) % 128) as u8),
                2 => char::from_u32(0x1F300 + (next(&mut state) % 0x400) as u32).unwrap_or('\n'),
                _ => char::from_u32((next(&mut state) % 0x11_0000) as u32).unwrap_or('\r'),
            })
            .collect();
        let ids = tokenizer.encode(&text, false).expect("any text has ids");
        assert_eq!(tokenizer.decode(&ids, false).expect("ids have a text"), text);
    }
}

#[test]
fn a_trained_vocabulary_has_room_for_every_byte() {
    let smallest = trained(MIN_VOCAB);
    assert_eq!(smallest.n_ids, MIN_VOCAB);
    let none: &[Document] = &[];
    for vocab_size in [0, MIN_VOCAB - 1, usize::MAX] {
        let error = tokenizer_train::train(none, vocab_size, &|_| {}).expect_err("out of range");
        assert_eq!(error.code(), "E0913");
    }
}

/// Changes to each of them. A run of 20,000 found no crash that is left.
const FUZZ: usize = 250;

/// Files that real ones are changed from, one of each kind of model.
fn originals() -> Vec<String> {
    let unigram = json!({
        "version": "1.0", "truncation": { "max_length": 8, "strategy": "LongestFirst",
            "stride": 2, "direction": "Right" },
        "padding": { "strategy": { "Fixed": 16 }, "direction": "Right", "pad_to_multiple_of": 8,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>" },
        "normalizer": { "type": "Sequence", "normalizers": [{ "type": "NFKC" },
            { "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": " " }] },
        "pre_tokenizer": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always",
            "split": true },
        "decoder": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always",
            "split": true },
        "post_processor": template(&[("<pad>", 0), ("$A", 0)]),
        "added_tokens": [],
        "model": { "type": "Unigram", "unk_id": 1, "byte_fallback": false,
            "vocab": [["<pad>", 0.0], ["<unk>", 0.0], ["▁a", -1.5], ["b", -2.0], ["▁", -3.0]] },
    });
    let words = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "normalizer": { "type": "Lowercase" },
        "pre_tokenizer": { "type": "Split", "pattern": { "Regex": "\\s+(?!\\S)|\\s+" },
            "behavior": "Isolated", "invert": false },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "post_processor": null, "added_tokens": [],
        "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": { "[UNK]": 0, "a": 1, "##b": 2, " ": 3 } },
    });
    vec![
        trained(300).tokenizer_json,
        small(&["<unk>", "<s>", "</s>"], template(&[("<s>", 1), ("$A", 0)])),
        unigram.to_string(),
        words.to_string(),
    ]
}

/// A text with some of its bytes replaced, left out, or doubled with what follows.
fn changed(text: &str, state: &mut u64) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..1 + next(state) % 4 {
        let at = next(state) as usize % bytes.len();
        let end = bytes.len().min(at + 1 + next(state) as usize % 30);
        match next(state) % 4 {
            0 => bytes[at] = b"0123456789-\"{}[],:eE.nt\\ "[next(state) as usize % 25],
            1 => drop(bytes.drain(at..end)),
            2 => bytes.extend_from_within(at..end),
            _ => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
        }
    }
    bytes
}

#[test]
fn changed_files_are_errors_or_tokenizers() {
    let path = folder("changed", &[]);
    let file = Path::new(&path).join("tokenizer.json");
    let (mut state, mut opened) = (7, 0);
    for original in originals() {
        std::fs::write(&file, &original).expect("the temporary folder is writable");
        Tokenizer::open(&path, 1000).expect("the original is a tokenizer");
        for _ in 0..FUZZ {
            let bytes = changed(&original, &mut state);
            std::fs::write(&file, &bytes).expect("the temporary folder is writable");
            match Tokenizer::open(&path, 1000) {
                Err(error) => assert!(["E0911", "E0912"].contains(&error.code())),
                Ok(tokenizer) => {
                    opened += 1;
                    if let Ok(ids) = tokenizer.training_ids("a b  ab\n漢 🦙 <s>") {
                        assert!(ids.iter().all(|id| *id < 1000), "{ids:?}");
                        let _ = tokenizer.decode(&ids, false);
                    }
                }
            }
        }
    }
    assert!(opened > 0, "no change was harmless: the changes are too coarse");
}
