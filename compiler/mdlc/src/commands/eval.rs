//! `mdlc eval`: loss, perplexity and bits per byte of a checkpoint on a data set.

use super::say;
use crate::flags::device::DeviceName;
use crate::{Failure, Outcome};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use mdl_check::entry::EntryOptions;
use mdl_train::checkpoint;
use mdl_train::dataset::{self, Document};
use mdl_train::evaluation::{Evaluator, Extent, Report, Tally, evaluate};
use mdl_train::model::{Model, ModelError};
use mdl_train::tokenizer::Tokenizer;
use mdl_train::weights::Weights;
use serde_json::json;
use std::fmt::Write;
use std::path::PathBuf;

#[derive(Debug, Parser)]
#[command(after_help = "Loss is in nats for each token, over windows that do not overlap; \
    BOS stands in front where the tokenizer adds it.\n\n\
    mdlc eval run --dataset book.txt --validation_split 0.1\n\
    mdlc eval run --dataset 'c4/*.json.gz' --max_documents 100 --per_document --json")]
pub struct Args {
    /// A checkpoint directory
    checkpoint: PathBuf,
    /// Text files or .jsonl, plain, .gz or .zst; folders and globs too
    #[arg(long, required = true, num_args = 1..)]
    dataset: Vec<String>,
    /// Only the last part of each file, as training kept it apart
    #[arg(long = "validation_split")]
    validation_split: Option<f64>,
    /// bytes, a tokenizer.json or a directory [default: the checkpoint's]
    #[arg(long)]
    tokenizer: Option<String>,
    /// Tokens per window [default: the context of the checkpoint, 2048 at most]
    #[arg(long = "max_context_width", value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    max_context_width: Option<u64>,
    /// Windows at a time
    #[arg(long = "val_batch_size", default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    val_batch_size: u64,
    /// A row for each document; no batch then holds two of them
    #[arg(long = "per_document")]
    per_document: bool,
    /// Only the first so many documents
    #[arg(long = "max_documents")]
    max_documents: Option<usize>,
    /// End after so many predicted tokens
    #[arg(long = "max_tokens")]
    max_tokens: Option<u64>,
    /// What computes: cpu; cuda, an NVIDIA GPU; wgpu, a GPU through Vulkan, Metal or DirectX
    #[arg(long, value_enum, default_value = "cpu", value_name = "DEVICE")]
    device: DeviceName,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// The tokenizer of a checkpoint: its own file, or bytes.
pub fn tokenizer_for(
    dir: Option<&std::path::Path>,
    given: Option<&str>,
    vocab: u64,
) -> Result<Tokenizer, Failure> {
    let own = dir.filter(|dir| dir.join("tokenizer.json").exists());
    let own = own.map(|dir| dir.display().to_string());
    let name = given.map(str::to_string).or(own).unwrap_or("bytes".into());
    Tokenizer::open(&name, vocab as usize).map_err(|e| Failure(format!("error[{}]: {e}", e.code())))
}

pub fn run(args: &Args) -> Outcome {
    let dir = checkpoint::model_directory(&args.checkpoint).map_err(ModelError::from)?;
    let model = Model::of_checkpoint(&dir)?;
    let vocab = model.size("vocab").unwrap_or(u64::MAX >> 32);
    let tokenizer = tokenizer_for(Some(&dir), args.tokenizer.as_deref(), vocab)?;
    if let Some(note) = tokenizer.note() {
        eprintln!("note: {note}");
    }
    let mut documents = dataset::documents(&args.dataset).map_err(coded)?;
    if let Some(fraction) = args.validation_split {
        documents = dataset::split(documents, fraction).map_err(coded)?.validation;
    }
    documents.truncate(args.max_documents.unwrap_or(usize::MAX));
    let weights = Weights::open(&dir).map_err(ModelError::from)?;
    let t = args.max_context_width.or(context(&dir)).unwrap_or(512);
    let options = EntryOptions { sizes: Vec::new(), documents: true, auxiliary: false };
    let sizes = (args.val_batch_size, t);
    let device = args.device.open(None)?;
    let mut evaluator = Evaluator::new(model, &weights, options, sizes, device);
    let extent = Extent { per_document: args.per_document, max_tokens: args.max_tokens };
    let bar = progress(args, &documents);
    let report = evaluate(&mut evaluator, &documents, &tokenizer, extent, &mut |done: &Tally| {
        bar.set_position(if args.max_tokens.is_some() { done.tokens } else { done.bytes });
    });
    bar.finish_and_clear();
    let report = report?;
    if report.total.tokens == 0 {
        let message = "the data set has nothing to predict; give texts of two tokens or more";
        return Err(Failure(format!("error[E0904]: {message}")));
    }
    say(&if args.json { as_json(&report, &documents) } else { as_text(&report, &documents) });
    Ok(())
}

/// Counts what ends the evaluation: tokens where they are limited, else bytes.
fn progress(args: &Args, documents: &[Document]) -> ProgressBar {
    let bytes = documents.iter().map(|it| it.text.len() as u64).sum();
    let unit = if args.max_tokens.is_some() { "tokens" } else { "bytes" };
    let bar = ProgressBar::new(args.max_tokens.unwrap_or(bytes)).with_message(unit);
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}  eta {eta}");
    bar.with_style(style.expect("the template is valid"))
}

/// The file of a document, and its line where the file has several.
fn source(document: &Document) -> String {
    let file = document.file.display();
    document.line.map_or(file.to_string(), |line| format!("{file}:{line}"))
}

fn as_text(report: &Report, documents: &[Document]) -> String {
    let mut out = String::new();
    if !report.documents.is_empty() {
        out += "document    tokens     bytes      loss    perplexity  bits_per_byte  source\n";
    }
    for (i, (tally, document)) in report.documents.iter().zip(documents).enumerate() {
        let _ = writeln!(
            out,
            "{i:>8}  {:>8}  {:>8}  {:>8.5}  {:>12.4}  {:>13.5}  {}",
            tally.tokens,
            tally.bytes,
            tally.loss(),
            tally.perplexity(),
            tally.bits_per_byte(),
            source(document)
        );
    }
    let total = &report.total;
    let label = if report.documents.is_empty() { "" } else { "total: " };
    let (loss, perplexity) = (total.loss(), total.perplexity());
    let (bits, tokens, bytes) = (total.bits_per_byte(), total.tokens, total.bytes);
    let _ = write!(out, "{label}loss {loss:.6}  perplexity {perplexity:.4}  ");
    let _ = writeln!(out, "bits per byte {bits:.6}  tokens {tokens}  bytes {bytes}");
    out
}

fn as_json(report: &Report, documents: &[Document]) -> String {
    let object = |tally: &Tally| {
        json!({
            "loss": tally.loss(),
            "perplexity": tally.perplexity(),
            "bits_per_byte": tally.bits_per_byte(),
            "tokens": tally.tokens,
            "bytes": tally.bytes,
        })
    };
    let mut res = object(&report.total);
    if !report.documents.is_empty() {
        let rows = report.documents.iter().zip(documents).enumerate().map(|(i, (tally, it))| {
            let mut row = object(tally);
            row["document"] = json!(i);
            row["file"] = json!(it.file);
            row["line"] = json!(it.line);
            row
        });
        res["documents"] = rows.collect();
    }
    format!("{res}\n")
}

fn coded(e: dataset::DataError) -> Failure {
    Failure(format!("error[{}]: {e}", e.code()))
}

/// The context that the checkpoint was made for.
pub fn context(dir: &std::path::Path) -> Option<u64> {
    let text = std::fs::read_to_string(dir.join("config.json")).ok()?;
    let json: serde_json::Value = serde_json::from_str(&text).ok()?;
    json["max_position_embeddings"].as_u64().map(|n| n.min(2048))
}
