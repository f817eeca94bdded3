//! Flags about what surrounds a run: data, validation, checkpoints, logs.

use clap::{Args, Command};
use std::path::PathBuf;

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Data, checkpoints and logs")]
pub struct RunFlags {
    /// Text files or .jsonl, plain, .gz or .zst; folders and globs too
    #[arg(long, num_args = 1.., value_name = "FILES")]
    pub dataset: Vec<String>,
    /// The part of a data set that has several, such as `en`
    #[arg(long = "dataset_config_name", value_name = "NAME")]
    pub dataset_config_name: Option<String>,
    /// The last part of each file that is never trained on, a fraction from 0 to 1
    #[arg(long = "validation_split", value_name = "X")]
    pub validation_split: Option<f64>,
    /// Files to validate on instead
    #[arg(long = "validation_dataset", num_args = 1.., conflicts_with = "validation_split",
        value_name = "FILES")]
    pub validation_dataset: Vec<String>,
    /// bytes, a tokenizer.json or a directory that has one [default: that of the checkpoint to
    /// start from, or else bytes]
    #[arg(long)]
    pub tokenizer: Option<String>,
    /// Let sequences attend across documents
    #[arg(long = "cross_documents", default_value_t = 0, value_name = "0|1",
        value_parser = clap::value_parser!(u8).range(0..=1))]
    pub cross_documents: u8,
    /// Validate every N steps, and at the end [default: never]
    #[arg(long = "validation_freq", value_name = "N")]
    pub validation_freq: Option<u64>,
    /// Batches of each validation; 0 is the whole set
    #[arg(long = "validation_batches", default_value_t = 10, value_name = "N")]
    pub validation_batches: usize,
    /// Where checkpoints are written [default: nowhere]
    #[arg(long = "checkpoint_dir", value_name = "DIR")]
    pub checkpoint_dir: Option<PathBuf>,
    /// Save every N steps, and at the end
    #[arg(long = "checkpoint_freq", default_value_t = 1000, value_name = "N")]
    pub checkpoint_freq: u64,
    /// Go on from the newest complete checkpoint in this directory
    #[arg(long = "resume_from_checkpoint", value_name = "DIR")]
    pub resume_from_checkpoint: Option<PathBuf>,
    /// Start from the weights of this checkpoint with a fresh optimizer
    #[arg(long = "init_from", conflicts_with = "resume_from_checkpoint", value_name = "DIR")]
    pub init_from: Option<PathBuf>,
    /// Log every N steps
    #[arg(long = "logging_freq", default_value_t = 1, value_name = "N")]
    pub logging_freq: u64,
    /// Records as JSON lines; the loss curve is drawn beside it as .svg
    #[arg(long = "log_json", value_name = "FILE")]
    pub log_json: Option<PathBuf>,
}

impl RunFlags {
    /// Names of all flags here: what a command that runs nothing never reads.
    pub fn names() -> Vec<String> {
        let command = RunFlags::augment_args(Command::new("run"));
        command.get_arguments().map(|arg| arg.get_id().to_string()).collect()
    }
}
