//! `mdlc export`: a checkpoint for the other tools of the ecosystem.

use crate::Outcome;
use clap::Parser;
use mdl_train::export::{Options, export};
use mdl_train::floats::named;
use std::path::PathBuf;

#[derive(Debug, Parser)]
pub struct Args {
    /// A checkpoint directory: a run, one of its steps, or a Hugging Face model
    checkpoint: PathBuf,
    /// The directory to write
    dir: PathBuf,
    /// f32, bf16 or f16 [default: what each tensor is]
    #[arg(long, value_parser = ["f32", "bf16", "f16"])]
    dtype: Option<String>,
    /// Bytes of one weight file, such as 5GB or 500MiB
    #[arg(long = "max_shard_size", default_value = "5GB", value_parser = bytes)]
    max_shard_size: u64,
    /// Replace the directory if it holds a model
    #[arg(long)]
    force: bool,
}

/// `5GB` is 5 · 10^9 bytes, `5GiB` is 5 · 2^30, and a plain number is bytes.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" | "B" => 1,
        "KB" => 1000,
        "MB" => 1000 * 1000,
        "GB" => 1000 * 1000 * 1000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        unit => return Err(format!("`{unit}` is none of B, KB, MB, GB, KiB, MiB and GiB")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("`{digits}` is no whole number"))?;
    number.checked_mul(factor).filter(|n| *n > 0).ok_or("between 1 byte and 2^64".to_string())
}

pub fn run(args: &Args) -> Outcome {
    let dtype = args.dtype.as_deref().and_then(named);
    let options = Options { dtype, shard_bytes: args.max_shard_size, force: args.force };
    let done = export(&args.checkpoint, &args.dir, &options)?;
    done.notes.iter().for_each(|note| eprintln!("note: {note}"));
    eprintln!(
        "wrote {}: {} tensors, {} bytes, {} weight files",
        args.dir.display(),
        done.tensors,
        done.bytes,
        done.shards
    );
    Ok(())
}
