//! `mdlc eval`: mean loss per token of a checkpoint on a data set.

use super::say;
use crate::{Failure, Outcome};
use clap::Parser;
use mdl_check::entry::EntryOptions;
use mdl_driver::pipeline::{Purpose, finish, state_layout};
use mdl_ir::graph::InputRole;
use mdl_kernels::Device;
use mdl_train::machine::Machine;
use mdl_train::model::{Model, read_param};
use mdl_train::packing::Evaluation;
use mdl_train::tokenizer::Tokenizer;
use mdl_train::weights::Weights;
use mdl_train::{checkpoint, dataset, session};
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug, Parser)]
pub struct Args {
    /// A checkpoint directory
    checkpoint: PathBuf,
    /// Text files, .jsonl or .json.gz
    #[arg(long, required = true, num_args = 1..)]
    dataset: Vec<String>,
    /// Only the last part of each file, as training kept it apart
    #[arg(long = "validation_split")]
    validation_split: Option<f64>,
    /// bytes, a tokenizer.json or a directory [default: the checkpoint's]
    #[arg(long)]
    tokenizer: Option<String>,
    /// Tokens per window
    #[arg(long = "max_context_width")]
    max_context_width: Option<u64>,
    #[arg(long = "val_batch_size", default_value_t = 1)]
    val_batch_size: u64,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// The tokenizer of a checkpoint: its own file, or bytes.
pub fn tokenizer_for(
    dir: &std::path::Path,
    given: Option<&str>,
    vocab: u64,
) -> Result<Tokenizer, Failure> {
    let own = dir.join("tokenizer.json").exists().then(|| dir.display().to_string());
    let name = given.map(str::to_string).or(own).unwrap_or("bytes".into());
    Tokenizer::open(&name, vocab as usize).map_err(|e| Failure(format!("error[{}]: {e}", e.code())))
}

pub fn run(args: &Args) -> Outcome {
    let dir = checkpoint::model_directory(&args.checkpoint)?;
    let mut model = Model::of_checkpoint(&dir)?;
    let vocab = model.size("vocab").unwrap_or(u64::MAX >> 32);
    let tokenizer = tokenizer_for(&dir, args.tokenizer.as_deref(), vocab)?;
    let mut documents = dataset::documents(&args.dataset).map_err(coded)?;
    if let Some(fraction) = args.validation_split {
        documents = dataset::split(documents, fraction).map_err(coded)?.validation;
    }
    let context = context(&dir).unwrap_or(512);
    let t = args.max_context_width.unwrap_or(context);
    let data = Evaluation::from_documents(&documents, &tokenizer, t as usize)?;
    if data.n_targets() == 0 {
        return Err(Failure("error[E0904]: the data set has nothing to predict".into()));
    }
    let sizes = vec![("B".to_string(), args.val_batch_size), ("T".to_string(), t)];
    let options = EntryOptions { sizes, documents: true, auxiliary: false };
    let trace = model.compile("loss", &options, &Purpose::Forward)?;
    let device = Arc::new(Device::cpu(None));
    let state = state_layout(trace.last(), &Purpose::Forward);
    let executable = finish(trace.last(), &state, device.units())?;
    let machine = Machine::new(device, executable);
    let weights = Weights::open(&dir)?;
    for (p, param) in trace.last().params.iter().enumerate() {
        machine.write_input(&InputRole::Param(p), &read_param(&weights, param)?);
    }
    let (loss, tokens) = session::evaluate(&machine, &data, args.val_batch_size as usize, 0);
    if args.json {
        let row = serde_json::json!({
            "loss": loss, "perplexity": loss.exp(), "tokens": tokens,
        });
        say(&format!("{row}\n"));
    } else {
        say(&format!("loss {loss:.6}  perplexity {:.4}  tokens {tokens}\n", loss.exp()));
    }
    Ok(())
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
