//! `mdlc compare`: a checkpoint against a reference.

use super::say;
use crate::flags::device::DeviceName;
use crate::{Failure, Outcome};
use clap::{Parser, ValueEnum};
use mdl_train::compare;
use std::path::PathBuf;

#[derive(Debug, Parser)]
pub struct Args {
    /// Directory with config.json and model.safetensors
    checkpoint: PathBuf,
    /// Tensors input_ids, labels, logits, grad.NAME and, with meta.json beside it, after.NAME
    answers: PathBuf,
    /// What computes: the kernels of cpu, cuda or wgpu, or the reference interpreter in f64
    #[arg(long, default_value = "cpu", value_parser = ["cpu", "cuda", "wgpu", "interpreter"])]
    device: String,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Outcome {
    let device = DeviceName::from_str(&args.device, false).ok();
    let device = device.map(|name| name.open(None)).transpose()?;
    let result = compare::compare(&args.checkpoint, &args.answers, device.as_ref())?;
    if args.json {
        say(&(serde_json::to_string_pretty(&result)? + "\n"));
    } else {
        for t in &result.tensors {
            let mark = if t.error <= t.tolerance { "" } else { "  beyond tolerance" };
            say(&format!("{:<64} {:.2e} of {:.0e}{mark}\n", t.name, t.error, t.tolerance));
        }
    }
    match result.worst() {
        Some(worst) if !result.passed => Err(Failure(format!(
            "`{}` is off by {:.3e} relative, and {:.0e} is allowed",
            worst.name, worst.error, worst.tolerance
        ))),
        _ => Ok(()),
    }
}
