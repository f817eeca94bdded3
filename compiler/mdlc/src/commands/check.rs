//! `mdlc check`: everything that can be said about a model file without running it.

use super::say;
use crate::{Failure, Outcome};
use clap::Parser;
use mdl_ir::active::active_params;
use mdl_train::against::{against, preset_against};
use mdl_train::model::{Model, front, source};
use std::path::{Path, PathBuf};

#[derive(Debug, Parser)]
pub struct Args {
    /// A path, or the name of an embedded model
    file: String,
    /// Also say what this preset is
    #[arg(long)]
    preset: Option<String>,
    /// Say in what the file differs from this checkpoint or config.json; with --preset, in what
    /// the preset does
    #[arg(long, value_name = "CONFIG_OR_DIR")]
    against: Option<PathBuf>,
    /// Check a standard or custom module without a model too
    #[arg(long, hide = true)]
    quiet: bool,
}

pub fn run(args: &Args) -> Outcome {
    let (name, text) = source(&args.file)?;
    let mut front = front(&name, &text);
    front.check();
    let report = front.report(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    if front.failed() {
        return Err(Failure(report));
    }
    eprint!("{report}");
    if args.quiet {
        return Ok(());
    }
    let presets = front.presets();
    match (&args.against, &args.preset) {
        (Some(path), Some(preset)) => return compare_preset(&args.file, preset, path),
        (Some(path), None) => return compare(&args.file, path),
        (None, None) => say(&format!("{name}: no errors, {} presets\n", presets.len())),
        (None, Some(preset)) => {
            let mut model = Model::open(&args.file, Some(preset))?;
            let options = mdl_check::entry::EntryOptions {
                sizes: Vec::new(),
                documents: false,
                auxiliary: true,
            };
            let graph = model.graph("logits", &options)?;
            let (all, active) = (graph.param_count(), active_params(&graph));
            let active = match active == all {
                true => String::new(),
                false => format!(", {active} of them active for a token"),
            };
            say(&format!("{name}: no errors; {preset} has {all} parameters{active}\n"));
        }
    }
    Ok(())
}

fn compare(file: &str, path: &Path) -> Outcome {
    let found = against(file, path)?;
    let shown = path.display();
    if !found.unread.is_empty() {
        eprintln!("note: {file} does not read these values of `{shown}`:");
        found.unread.iter().for_each(|value| eprintln!("  {value}"));
    }
    let lines: String = found.differences.iter().map(|d| format!("{d}\n")).collect();
    let tensors = match found.tensors {
        Some(n) => format!("{n} tensors"),
        None => "no weights beside it".into(),
    };
    say(&format!("{lines}{file} with `{shown}`: {} parameters, {tensors}\n", found.parameters));
    match found.differences.len() {
        0 => Ok(()),
        n => Err(Failure(format!("error[E0923]: the checkpoint differs in {n} tensors"))),
    }
}

fn compare_preset(file: &str, preset: &str, path: &Path) -> Outcome {
    let found = preset_against(file, preset, path)?;
    let shown = path.display();
    for (name, value, other) in &found {
        say(&format!("{name}: {value} in {preset}, {other} in `{shown}`\n"));
    }
    match found.len() {
        0 => {
            say(&format!("{preset} of {file} is what `{shown}` says\n"));
            Ok(())
        }
        n => Err(Failure(format!("error[E0925]: the preset differs in {n} fields"))),
    }
}
