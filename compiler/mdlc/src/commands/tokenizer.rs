//! `mdlc tokenizer`: token ids of a text and back, what a tokenizer holds, and training one.

use super::say;
use crate::{Failure, Outcome};
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use mdl_train::tokenizer::{Tokenizer, TokenizerError};
use mdl_train::{dataset, tokenizer_train};
use std::fmt::Write;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Parser)]
#[command(after_help = "FILE is a tokenizer.json, a directory that holds one, or `bytes`.\n\n\
    Train a tokenizer on a text and look at what it does:\n  \
    mdlc tokenizer train --dataset book.txt --vocab_size 2048 --out tokens\n  \
    mdlc tokenizer encode tokens \"Once upon a time\"\n  \
    mdlc train llama --preset bytes_small --vocab_size 2048 --tokenizer tokens --dataset book.txt")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print the token ids of a text, with spaces between
    Encode(Encode),
    /// Print the text of token ids
    Decode(Decode),
    /// Say what a tokenizer holds
    Info { file: String },
    /// Train a byte-level BPE tokenizer on a data set
    Train(Train),
}

#[derive(Debug, Parser)]
#[command(after_help = "mdlc tokenizer encode llama2/tokenizer.json \"Once upon a time\"\n\
    mdlc tokenizer encode bytes --no_special_tokens - < book.txt")]
struct Encode {
    /// A tokenizer.json, a directory that holds one, or `bytes`
    file: String,
    /// What to encode; `-` reads standard input to its end
    text: String,
    /// Leave out what the tokenizer puts in front of a text
    #[arg(long = "no_special_tokens")]
    no_special_tokens: bool,
}

#[derive(Debug, Parser)]
#[command(after_help = "mdlc tokenizer decode bytes 79 110 99 101\n\
    mdlc tokenizer encode tokens Once | mdlc tokenizer decode tokens --skip_special_tokens -")]
struct Decode {
    /// A tokenizer.json, a directory that holds one, or `bytes`
    file: String,
    /// Token ids; `-` reads them from standard input
    #[arg(required = true)]
    ids: Vec<String>,
    /// Print no special tokens
    #[arg(long = "skip_special_tokens")]
    skip_special_tokens: bool,
}

#[derive(Debug, Parser)]
#[command(
    after_help = "mdlc tokenizer train --dataset 'books/*.txt' --vocab_size 4096 --out tokens"
)]
struct Train {
    /// Text files or .jsonl, plain, .gz or .zst; folders and globs too
    #[arg(long, required = true, num_args = 1..)]
    dataset: Vec<String>,
    /// Ids at most, BOS, EOS and the 256 bytes among them
    #[arg(long = "vocab_size")]
    vocab_size: usize,
    /// A directory, or a file that ends in .json
    #[arg(long)]
    out: PathBuf,
}

pub fn run(args: &Args) -> Outcome {
    match &args.action {
        Action::Encode(args) => encode(args),
        Action::Decode(args) => decode(args),
        Action::Info { file } => info(file),
        Action::Train(args) => train(args),
    }
}

fn coded(e: TokenizerError) -> Failure {
    Failure(format!("error[{}]: {e}", e.code()))
}

/// No model's vocabulary limits the ids here.
fn open(file: &str) -> Result<Tokenizer, Failure> {
    Tokenizer::open(file, usize::MAX).map_err(coded)
}

fn standard_input() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().read_to_end(&mut bytes);
    read.map_err(|e| Failure(format!("error[E0901]: standard input cannot be read: {e}")))?;
    String::from_utf8(bytes).map_err(|e| {
        let byte = e.utf8_error().valid_up_to();
        Failure(format!("error[E0903]: standard input is not UTF-8 at byte {byte}; convert it"))
    })
}

fn encode(args: &Encode) -> Outcome {
    let tokenizer = open(&args.file)?;
    let text = if args.text == "-" { standard_input()? } else { args.text.clone() };
    let ids = tokenizer.encode(&text, !args.no_special_tokens).map_err(coded)?;
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    say(&format!("{}\n", ids.join(" ")));
    Ok(())
}

fn decode(args: &Decode) -> Outcome {
    let tokenizer = open(&args.file)?;
    let given = match args.ids.as_slice() {
        [one] if one == "-" => standard_input()?,
        many => many.join(" "),
    };
    let id = |word: &str| {
        let message = format!("error[E0941]: `{word}` is not a token id; give numbers from 0");
        word.parse::<u32>().map_err(|_| Failure(message))
    };
    let ids = given.split_whitespace().map(id).collect::<Result<Vec<_>, _>>()?;
    tokenizer.known(&ids).map_err(coded)?;
    let text = tokenizer.decode(&ids, args.skip_special_tokens).map_err(coded)?;
    say(&format!("{text}\n"));
    Ok(())
}

fn info(file: &str) -> Outcome {
    let tokenizer = open(file)?;
    let list = |ids: &[u32]| match ids {
        [] => "none".to_string(),
        ids => ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "),
    };
    let bos: Vec<u32> = tokenizer.bos().into_iter().collect();
    let mut out = format!("kind        {}\n", tokenizer.model_type());
    let _ = writeln!(out, "vocabulary  {}", tokenizer.n_ids());
    let _ = writeln!(out, "BOS         {}", list(&bos));
    let _ = writeln!(out, "EOS         {}", list(tokenizer.ends()));
    let _ = writeln!(out, "in front    {}", list(tokenizer.front()));
    for (id, token) in tokenizer.special_tokens() {
        let _ = writeln!(out, "special     {id} {token}");
    }
    say(&out);
    Ok(())
}

fn train(args: &Train) -> Outcome {
    let documents = dataset::documents(&args.dataset);
    let documents = documents.map_err(|e| Failure(format!("error[{}]: {e}", e.code())))?;
    let bytes: usize = documents.iter().map(|it| it.text.len()).sum();
    let bar = ProgressBar::new(bytes as u64);
    let style = ProgressStyle::with_template("{bar:40} {msg} {bytes}/{total_bytes}  {elapsed}");
    bar.set_style(style.expect("the template is valid"));
    bar.set_message("counting");
    bar.enable_steady_tick(Duration::from_millis(200));
    let counted = |n: usize| {
        bar.inc(n as u64);
        if bar.position() >= bytes as u64 {
            bar.set_message("merging");
        }
    };
    let trained = tokenizer_train::train(&documents, args.vocab_size, &counted);
    bar.finish_and_clear();
    let trained = trained.map_err(coded)?;
    let path = tokenizer_train::write(&args.out, &trained).map_err(coded)?;
    if trained.n_ids < args.vocab_size {
        eprintln!("note: no pair of tokens occurs twice any more, {} ids are all", trained.n_ids);
    }
    eprintln!("{} ids from {bytes} bytes: {}", trained.n_ids, path.display());
    Ok(())
}
