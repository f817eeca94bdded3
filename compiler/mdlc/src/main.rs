//! `mdlc`: write down, check, plan, train and compare language models.

mod arguments;
mod choose;
mod commands;
mod failure;
mod flags;
mod hardware;
mod source_line;

use clap::{CommandFactory, Parser, Subcommand};
use failure::Failure;
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(
    name = "mdlc",
    version,
    about = "Checks, plans and trains language models written in .mdl",
    after_help = "FILE is a path or the name of an embedded model, such as `llama`.\n\
                  In names of flags, dashes and underscores are the same.\n\n\
                  Say what a step of a published model needs on a machine:\n  \
                  mdlc plan --preset llama3_2_1b --max_context_width 8192 --hardware p5\n\n\
                  Train a small Llama on a text and let it write:\n  \
                  mdlc train llama --preset bytes_small --dataset book.txt \\\n       \
                  --validation_split 0.1 --max_context_width 256 --train_batch_size 8 \\\n       \
                  --max_steps 500 --lr 2e-3 --checkpoint_dir run\n  \
                  mdlc generate run --prompt \"Once\" --max_tokens 200 --temperature 0.8"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a model file: names, shapes, presets and their assertions
    Check(commands::check::Args),
    /// Put model files into the canonical format
    Fmt(commands::fmt::Args),
    /// Explain an error code, or list all of them
    Explain(commands::explain::Args),
    /// Print one stage of the compilation
    Dump(commands::dump::Args),
    /// Compile the kernels of a training step for a target, without its device
    Build(Box<commands::build::Args>),
    /// Say what a training step needs, without running it
    Plan(Box<commands::plan::Args>),
    /// Train a model
    Train(Box<commands::train::Args>),
    /// Continue a text
    Generate(commands::generate::Args),
    /// Loss, perplexity and bits per byte of a checkpoint on a data set
    Eval(commands::eval::Args),
    /// Encode and decode text, and train tokenizers
    Tokenizer(commands::tokenizer::Args),
    /// Compare a checkpoint's logits, gradients and optimizer steps with a reference
    Compare(commands::compare::Args),
    /// Write a checkpoint as a directory that other tools load
    Export(commands::export::Args),
    /// Measure kernels and the training step against this machine's limits
    Bench(Box<commands::bench::Args>),
}

/// What a command ends with: nothing to add, or a message for standard error and a failing exit
/// status.
type Outcome = Result<(), Failure>;

/// The exit status for a command line that cannot be read, as the parser has it.
const USAGE: u8 = 2;

fn parsed() -> Result<Cli, ExitCode> {
    // An argument that is no text names nothing that there is, which is said where it is used.
    let raw = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned());
    let arguments = arguments::expanded(raw, &Cli::command());
    let arguments = arguments.map_err(|Failure(message)| {
        eprintln!("{message}");
        ExitCode::from(USAGE)
    })?;
    Cli::try_parse_from(arguments).map_err(|e| match arguments::refused(&e) {
        Some(Failure(message)) => {
            eprintln!("{message}");
            ExitCode::from(USAGE)
        }
        None => e.exit(),
    })
}

fn main() -> ExitCode {
    let cli = match parsed() {
        Ok(cli) => cli,
        Err(status) => return status,
    };
    let outcome = match cli.command {
        Command::Check(args) => commands::check::run(&args),
        Command::Fmt(args) => commands::fmt::run(&args),
        Command::Explain(args) => commands::explain::run(&args),
        Command::Dump(args) => commands::dump::run(&args),
        Command::Build(args) => commands::build::run(&args),
        Command::Plan(args) => commands::plan::run(&args),
        Command::Train(args) => commands::train::run(&args),
        Command::Generate(args) => commands::generate::run(&args),
        Command::Eval(args) => commands::eval::run(&args),
        Command::Tokenizer(args) => commands::tokenizer::run(&args),
        Command::Compare(args) => commands::compare::run(&args),
        Command::Export(args) => commands::export::run(&args),
        Command::Bench(args) => commands::bench::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(message)) => {
            if !message.is_empty() {
                eprintln!("{}", message.trim_end());
            }
            ExitCode::FAILURE
        }
    }
}
