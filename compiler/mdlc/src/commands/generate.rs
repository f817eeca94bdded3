//! `mdlc generate`: continues a text; standard output is the text and nothing else.

use super::eval::{context, tokenizer_for};
use super::say;
use crate::{Failure, Outcome};
use clap::Parser;
use mdl_kernels::Device;
use mdl_train::checkpoint;
use mdl_train::generate::{Generator, Sampling, choose};
use mdl_train::model::Model;
use mdl_train::weights::Weights;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug, Parser)]
pub struct Args {
    /// A checkpoint directory
    checkpoint: PathBuf,
    /// What to continue; an empty prompt starts from BOS alone
    #[arg(long, default_value = "")]
    prompt: String,
    #[arg(long = "max_tokens", default_value_t = 128)]
    max_tokens: u64,
    /// 0 always takes the most likely token
    #[arg(long, default_value_t = 0.8)]
    temperature: f64,
    #[arg(long, default_value_t = 12345)]
    seed: u64,
    /// bytes, a tokenizer.json or a directory [default: the checkpoint's]
    #[arg(long)]
    tokenizer: Option<String>,
}

pub fn run(args: &Args) -> Outcome {
    let dir = checkpoint::model_directory(&args.checkpoint)?;
    let mut model = Model::of_checkpoint(&dir)?;
    let vocab = model.size("vocab").unwrap_or(u64::MAX >> 32);
    let tokenizer = tokenizer_for(&dir, args.tokenizer.as_deref(), vocab)?;
    let mut prompt = tokenizer.encode(&args.prompt, true)?;
    if args.prompt.is_empty() {
        prompt = tokenizer.bos().into_iter().collect();
    }
    if prompt.is_empty() {
        return Err(Failure("this tokenizer has no BOS: give a --prompt to start from".into()));
    }
    let weights = Weights::open(&dir)?;
    let capacity = prompt.len() as u64 + args.max_tokens;
    if context(&dir).is_some_and(|c| capacity > c) {
        eprintln!("note: the text is longer than the context that this checkpoint was made for");
    }
    let device = Arc::new(Device::cpu(None));
    let mut generator = Generator::open(&mut model, &weights, capacity, device)?;
    let mut logits = Vec::new();
    for id in &prompt {
        logits = generator.push(*id).ok_or(Failure("the prompt is too long".into()))?;
    }
    let mut decoding = tokenizer.decoding(true);
    for id in &prompt {
        say(&decoding.push(*id)?);
    }
    let sampling = Sampling { temperature: args.temperature, seed: args.seed };
    for i in 0..args.max_tokens {
        let id = choose(&logits, sampling, prompt.len() as u64 + i);
        if tokenizer.is_end(id) {
            break;
        }
        say(&decoding.push(id)?);
        if i + 1 < args.max_tokens {
            logits = generator.push(id).ok_or(Failure("the cache is full".into()))?;
        }
    }
    say(&decoding.finish()?);
    say("\n");
    Ok(())
}
