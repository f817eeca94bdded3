//! `mdlc check`: everything that can be said about a model file without running it.

use super::say;
use crate::{Failure, Outcome};
use clap::Parser;
use mdl_ir::active::active_params;
use mdl_train::model::{Model, front, source};

#[derive(Debug, Parser)]
pub struct Args {
    /// A path, or the name of an embedded model
    file: String,
    /// Also say what this preset is
    #[arg(long)]
    preset: Option<String>,
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
    match &args.preset {
        None => say(&format!("{name}: no errors, {} presets\n", presets.len())),
        Some(preset) => {
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
