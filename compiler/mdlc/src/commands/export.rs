//! `mdlc export`: a checkpoint for the other tools of the ecosystem.

use crate::Outcome;
use crate::flags::bytes::bytes;
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
