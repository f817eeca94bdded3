//! The commands around tokens as a person runs them: a tokenizer is trained and used, a checkpoint
//! is evaluated, and whatever can be wrong with their input ends with a code and a way out.

use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The same windows in other batches: sums of f32 in another order.
const REORDERED: f64 = 1e-5;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("mdlc_{name}_{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("the temporary folder is writable");
        Folder(path)
    }

    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.0.join(name), bytes).expect("the temporary folder is writable");
    }

    fn run(&self, args: &str) -> Output {
        self.run_on(args, "")
    }

    /// Runs `mdlc` in this folder; words of `args` are apart by spaces.
    fn run_on(&self, args: &str, input: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mdlc"));
        command.args(args.split(' ')).current_dir(&self.0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary is built");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(input.as_bytes()).expect("the child reads or has ended without");
        drop(stdin);
        child.wait_with_output().expect("the child ends")
    }

    /// What a run that must succeed prints.
    fn print(&self, args: &str) -> String {
        printed(self.run(args), args)
    }

    /// Books, a tokenizer of 300 ids, and a model of raw bytes that was trained for one step.
    fn with_model(name: &str) -> Folder {
        let folder = Folder::new(name);
        folder.put("book.txt", "The cat sat on the mat and the rat sat on the hat.\n".repeat(40));
        let line = "{\"text\": \"one café and another thing\"}\n{\"text\": \"and the rest\"}\n";
        folder.put("lines.jsonl", line);
        folder
            .print("tokenizer train --dataset book.txt lines.jsonl --vocab_size 300 --out tokens");
        folder.print(
            "train llama --preset bytes_small --dataset book.txt --max_context_width 32 \
             --max_steps 1 --checkpoint_dir run",
        );
        folder
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn printed(output: Output, args: &str) -> String {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "mdlc {args}: {errors}");
    String::from_utf8(output.stdout).expect("the output is UTF-8")
}

#[test]
fn tokens_go_in_and_come_out() {
    let folder = Folder::new("tokens");
    assert_eq!(folder.print("tokenizer encode bytes hé"), "256 104 195 169\n");
    assert_eq!(folder.print("tokenizer encode bytes --no_special_tokens hé"), "104 195 169\n");
    let text = "two words\n";
    let ids = printed(folder.run_on("tokenizer encode bytes -", text), "encode");
    let back = folder.run_on("tokenizer decode bytes --skip_special_tokens -", &ids);
    assert_eq!(printed(back, "decode"), format!("{text}\n"));
    let info = folder.print("tokenizer info bytes");
    assert!(info.contains("vocabulary  258") && info.contains("EOS         257"), "{info}");
}

#[test]
fn a_trained_tokenizer_is_used_straight_away() {
    let folder = Folder::with_model("trained");
    let text = "the cat  sat\n\n🦙 on";
    let ids = printed(folder.run_on("tokenizer encode tokens -", text), "encode");
    let back = folder.run_on("tokenizer decode tokens --skip_special_tokens -", &ids);
    assert_eq!(printed(back, "decode"), format!("{text}\n"));
    let again = "tokenizer train --dataset book.txt,lines.jsonl --vocab_size 300 --out again.json";
    folder.print(again);
    let read = |path: &str| std::fs::read(folder.0.join(path)).expect("the tokenizer is written");
    assert_eq!(read("tokens/tokenizer.json"), read("again.json"));
    let file = Path::new("tokens/tokenizer_config.json");
    assert!(folder.0.join(file).exists(), "the directory says which tokens begin and end a text");
}

/// The object that `mdlc eval … --json` prints.
fn eval(folder: &Folder, args: &str) -> Value {
    let text = folder.print(&format!("eval run --json {args}"));
    serde_json::from_str(&text).expect("the output is one JSON object")
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} of {value}"))
}

#[test]
fn documents_make_up_the_total() {
    let folder = Folder::with_model("eval");
    let data = "--dataset book.txt lines.jsonl";
    let apart = eval(&folder, &format!("{data} --per_document"));
    let documents = apart["documents"].as_array().expect("a row for each document");
    let bytes = std::fs::metadata(folder.0.join("book.txt")).expect("written above").len();
    let rows: Vec<_> = documents
        .iter()
        .map(|it| (it["file"].as_str(), it["line"].as_u64(), it["bytes"].as_u64()))
        .collect();
    let lines = Some("lines.jsonl");
    let expected = [
        (Some("book.txt"), None, Some(bytes)),
        (lines, Some(1), Some("one café and another thing".len() as u64)),
        (lines, Some(2), Some("and the rest".len() as u64)),
    ];
    assert_eq!(rows, expected);
    let sum = |key: &str| documents.iter().map(|it| number(it, key)).sum::<f64>();
    let nats: f64 = documents.iter().map(|it| number(it, "loss") * number(it, "tokens")).sum();
    assert_eq!(sum("tokens"), number(&apart, "tokens"));
    let loss = nats / sum("tokens");
    assert!((loss / number(&apart, "loss") - 1.0).abs() < 1e-12, "the same numbers are added");
    let bits = nats / sum("bytes") / std::f64::consts::LN_2;
    assert!((bits / number(&apart, "bits_per_byte") - 1.0).abs() < 1e-12);
    for other in ["", " --val_batch_size 3", " --val_batch_size 3 --per_document"] {
        let total = eval(&folder, &format!("{data}{other}"));
        let difference = (number(&total, "loss") / loss - 1.0).abs();
        assert!(difference < REORDERED, "{other}: {difference:e}");
        assert_eq!(total["bytes"], apart["bytes"]);
    }
}

#[test]
fn limits_end_an_evaluation() {
    let folder = Folder::with_model("limits");
    let rows = eval(&folder, "--dataset book.txt --max_tokens 40 --max_context_width 16");
    assert_eq!((number(&rows, "tokens"), number(&rows, "bytes")), (40.0, 40.0));
    let first = eval(&folder, "--dataset lines.jsonl --max_documents 1 --per_document");
    assert_eq!(first["documents"].as_array().map(Vec::len), Some(1));
    let text = folder.print("eval run --dataset lines.jsonl --per_document");
    assert!(text.lines().count() == 4 && text.contains("lines.jsonl:2"), "{text}");
}

/// What is wrong, the command, and the code it ends with.
const WRONG: [(&str, &str, &str); 23] = [
    ("no such tokenizer", "tokenizer encode nowhere text", "E0911"),
    ("an empty tokenizer", "tokenizer encode empty.txt text", "E0911"),
    ("a text as tokenizer", "tokenizer info book.txt", "E0911"),
    ("deep nesting", "tokenizer info deep.json", "E0911"),
    ("many groups in a regex", "tokenizer info groups.json", "E0911"),
    ("a regex of great size", "tokenizer info large.json", "E0911"),
    ("no end of a file", "tokenizer info /dev/zero", "E0911"),
    ("an id too many", "tokenizer decode bytes 258", "E0911"),
    ("not an id", "tokenizer decode bytes 1 x", "E0941"),
    ("too few ids", "tokenizer train --dataset book.txt --vocab_size 9 --out t", "E0913"),
    (
        "a file in the way",
        "tokenizer train --dataset book.txt --vocab_size 300 --out book.txt/t",
        "E0913",
    ),
    (
        "nothing to learn from",
        "tokenizer train --dataset empty.txt --vocab_size 300 --out t",
        "E0904",
    ),
    ("no text field", "tokenizer train --dataset no_text.jsonl --vocab_size 300 --out t", "E0902"),
    ("not UTF-8", "tokenizer train --dataset latin.txt --vocab_size 300 --out t", "E0903"),
    ("a picture", "tokenizer train --dataset a.png --vocab_size 300 --out t", "E0905"),
    ("no such data set", "eval run --dataset nowhere.txt", "E0901"),
    ("an empty data set", "eval run --dataset empty.txt", "E0904"),
    ("no text field", "eval run --dataset no_text.jsonl", "E0902"),
    ("no documents", "eval run --dataset book.txt --max_documents 0", "E0904"),
    ("a fraction above 1", "eval run --dataset book.txt --validation_split 2", "E0904"),
    ("no such checkpoint", "eval nowhere --dataset book.txt", "E0921"),
    ("ids above the model's", "eval run --dataset book.txt --tokenizer tokens", "E0912"),
    (
        "ids above the model's",
        "train llama --preset bytes_small --dataset book.txt --tokenizer tokens",
        "E0912",
    ),
];

#[test]
fn wrong_input_ends_with_its_code() {
    let folder = Folder::with_model("wrong");
    folder.put("empty.txt", "");
    folder.put("latin.txt", b"caf\xe9");
    folder.put("no_text.jsonl", "{\"content\": \"x\"}\n");
    folder.put("a.png", "");
    folder.put("deep.json", "{\"a\":".repeat(10_000));
    let split = |regex: &str| {
        let json = std::fs::read(folder.0.join("tokens/tokenizer.json")).expect("written above");
        let mut json: Value = serde_json::from_slice(&json).expect("a tokenizer is JSON");
        json["pre_tokenizer"] = serde_json::json!({ "type": "Split",
            "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false });
        json.to_string()
    };
    folder.put("groups.json", split(&"(".repeat(100_000)));
    folder.put("large.json", split("((a{1000}){1000}){1000}"));
    for (what, args, code) in WRONG {
        let output = folder.run(args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{what}: mdlc {args}: {errors}");
        assert!(errors.contains(&format!("error[{code}]: ")), "{what}: mdlc {args}: {errors}");
        assert!(!errors.contains("panicked"), "{what}: mdlc {args}: {errors}");
        assert!(output.stdout.is_empty(), "{what}: mdlc {args} prints a result");
    }
}
