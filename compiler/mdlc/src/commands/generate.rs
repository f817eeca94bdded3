//! `mdlc generate`: continues texts; standard output is the texts, their ids or JSON, and nothing
//! else.

mod output;

use super::eval::{context, tokenizer_for};
use crate::flags::device::DeviceName;
use crate::{Failure, Outcome};
use clap::Parser;
use mdl_train::checkpoint;
use mdl_train::generate::{Batch, Generator, Room, Sampling, Spent};
use mdl_train::import;
use mdl_train::machine::Machine;
use mdl_train::model::Model;
use mdl_train::tokenizer::Tokenizer;
use mdl_train::weights::Weights;
use output::{Form, Output};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

#[derive(Debug, Parser)]
pub struct Args {
    /// A checkpoint directory
    checkpoint: PathBuf,
    /// What to continue, repeatable; an empty prompt starts from BOS alone
    #[arg(long)]
    prompt: Vec<String>,
    /// More prompts: one per line, or in a .jsonl file one object with `prompt` per line
    #[arg(long = "prompts_file")]
    prompts_file: Option<PathBuf>,
    /// Tokens added at most; a text ends earlier where the model ends it
    #[arg(long = "max_tokens", default_value_t = 128)]
    max_tokens: u64,
    /// Logits are divided by it; 0 always takes the most likely token
    #[arg(long, default_value_t = 0.8)]
    temperature: f64,
    /// Choose among the k most likely tokens
    #[arg(long = "top_k")]
    top_k: Option<usize>,
    /// Choose among the fewest likely tokens that have this probability together
    #[arg(long = "top_p")]
    top_p: Option<f64>,
    /// A prompt with a seed gives one text, whatever other prompts stand beside it
    #[arg(long, default_value_t = 12345)]
    seed: u64,
    /// Prompts that are continued side by side; up to 8 cost little more than one
    #[arg(long = "batch_size", default_value_t = 8)]
    batch_size: u64,
    /// Go on where the model ends its text
    #[arg(long = "ignore_eos")]
    ignore_eos: bool,
    /// One JSON object per prompt on standard output
    #[arg(long)]
    json: bool,
    /// Token ids, prompt included, instead of text
    #[arg(long, conflicts_with = "json")]
    ids: bool,
    /// What computes: cpu; cuda, an NVIDIA GPU; wgpu, a GPU through Vulkan, Metal or DirectX
    #[arg(long, value_enum, default_value = "cpu", value_name = "DEVICE")]
    device: DeviceName,
    /// bytes, a tokenizer.json or a directory [default: the checkpoint's]
    #[arg(long)]
    tokenizer: Option<String>,
}

/// A text to continue, and its ids.
pub struct Prompt {
    text: String,
    ids: Vec<u32>,
}

pub fn run(args: &Args) -> Outcome {
    let begin = Instant::now();
    let sampling = sampling(args)?;
    let dir = checkpoint::model_directory(&args.checkpoint)?;
    let mut model = Model::of_checkpoint(&dir)?;
    let vocab = model.size("vocab").unwrap_or(u64::MAX >> 32);
    let tokenizer = tokenizer_for(Some(&dir), args.tokenizer.as_deref(), vocab)?;
    let prompts = prompts(args, &tokenizer)?;
    let mut generator = open(args, &dir, &mut model, &prompts)?;
    let opened = begin.elapsed().as_secs_f64();
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    // Only the first handler of a process can be set; there is no other.
    let _ = ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed));
    let form = match (args.json, args.ids) {
        (true, _) => Form::Json,
        (_, true) => Form::Ids,
        _ => Form::Text,
    };
    let mut output = Output::new(form, &prompts, &tokenizer)?;
    for (at, group) in prompts.chunks(generator.batch()).enumerate() {
        let ids: Vec<&[u32]> = group.iter().map(|p| p.ids.as_slice()).collect();
        let first = at * generator.batch();
        let mut batch = Batch::new(&mut generator, &ids, sampling, args.max_tokens)?;
        while !batch.finished() && !stop.load(Ordering::Relaxed) {
            for event in batch.step(|id| !args.ignore_eos && tokenizer.is_end(id))? {
                output.take(first, event)?;
            }
        }
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    output.interrupt()?;
    report(opened, &generator);
    Ok(())
}

fn sampling(args: &Args) -> Result<Sampling, Failure> {
    let wrong = |flag: &str, range: &str| Failure(format!("error[E0941]: {flag} is {range}"));
    if !(args.temperature.is_finite() && args.temperature >= 0.0) {
        return Err(wrong("--temperature", "a number from 0 on; 0 takes the most likely token"));
    }
    if args.top_k == Some(0) {
        return Err(wrong("--top_k", "at least 1; leave it out to choose among all tokens"));
    }
    if args.top_p.is_some_and(|p| !(p > 0.0 && p <= 1.0)) {
        return Err(wrong("--top_p", "above 0 and at most 1; leave it out to choose among all"));
    }
    if args.batch_size == 0 {
        return Err(wrong("--batch_size", "at least 1"));
    }
    let Args { temperature, top_k, top_p, seed, .. } = *args;
    Ok(Sampling { temperature, top_k, top_p, seed })
}

/// Those of the command line, then those of the file; without either, one that is empty.
fn prompts(args: &Args, tokenizer: &Tokenizer) -> Result<Vec<Prompt>, Failure> {
    let mut texts = args.prompt.clone();
    if let Some(path) = &args.prompts_file {
        texts.extend(read_prompts(path)?);
    }
    if texts.is_empty() && args.prompts_file.is_none() {
        texts.push(String::new());
    }
    let prompt = |text: String| {
        let ids = match text.is_empty() {
            true => tokenizer.bos().into_iter().collect(),
            false => tokenizer.encode(&text, true)?,
        };
        if ids.is_empty() {
            let message = "this tokenizer has no BOS: give a --prompt to start from";
            return Err(Failure(format!("error[E0941]: {message}")));
        }
        Ok(Prompt { text, ids })
    };
    texts.into_iter().map(prompt).collect()
}

fn read_prompts(path: &Path) -> Result<Vec<String>, Failure> {
    let name = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure(format!("error[E0901]: `{name}` cannot be read: {e}")))?;
    let json = path.extension().is_some_and(|e| e == "jsonl");
    let prompt = |(i, line): (usize, &str)| {
        if !json {
            return Ok(line.to_string());
        }
        let object: Option<serde_json::Value> = serde_json::from_str(line).ok();
        let prompt = object.as_ref().and_then(|o| o["prompt"].as_str()).map(str::to_string);
        prompt.ok_or_else(|| {
            let place = format!("{name}:{}", i + 1);
            Failure(format!("error[E0902]: {place}: this is no JSON object with a text `prompt`"))
        })
    };
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(prompt).collect()
}

/// A generator with room for the longest prompt and its continuation.
fn open(
    args: &Args,
    dir: &Path,
    model: &mut Model,
    prompts: &[Prompt],
) -> Result<Generator, Failure> {
    let batch = args.batch_size.min(prompts.len() as u64).max(1);
    let length = |p: &Prompt| p.ids.len() as u64;
    let longest = prompts.iter().map(length).max().unwrap_or(0);
    let shared = |group: &[Prompt]| group.iter().map(length).min();
    let at_once = prompts.chunks(batch as usize).filter_map(shared).max().unwrap_or(0);
    let capacity = longest.saturating_add(args.max_tokens);
    if context(dir).is_some_and(|c| capacity > c) {
        eprintln!("note: the text is longer than the context that this checkpoint was made for");
    }
    let weights = Weights::open(dir)?;
    let params = weights.names().filter_map(|n| weights.shape(n).ok());
    let params = params.map(|shape| shape.iter().product::<usize>() as u64).sum();
    let room = Room { batch, capacity, chunk: Room::chunk_for(params, at_once) };
    let device = args.device.open(None)?;
    let load = |machine: &Machine| Ok(import::load(machine, &weights, &machine.executable.params)?);
    Ok(Generator::open(model, room, device, load)?)
}

/// Times on standard error. The first run of each step compiles its kernels.
fn report(opened: f64, generator: &Generator) {
    let part = |name: &str, spent: &Spent| match (spent.first_tokens, spent.tokens) {
        (0, _) => String::new(),
        (n, 0) => format!("; {name} {n} tokens in {:.2} s with compilation", spent.first_seconds),
        (n, more) => format!(
            "; {name} {} tokens, {:.1} tokens/s after {:.2} s of compilation",
            n + more,
            more as f64 / spent.seconds,
            spent.first_seconds,
        ),
    };
    let prefill = part("prefill", &generator.prefill);
    let decode = part("decode", &generator.decode);
    eprintln!("opened in {opened:.2} s{prefill}{decode}");
}
