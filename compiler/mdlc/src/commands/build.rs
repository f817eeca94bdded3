//! `mdlc build`: the kernels of a training step, compiled ahead of time and without the device.

use super::say;
use crate::choose::{Chosen, choose};
use crate::flags::StepFlags;
use crate::flags::run::RunFlags;
use crate::{Failure, Outcome};
use clap::Parser;
use mdl_ir::kernel::Target;
use mdl_kernels::{Device, Paper, Ptx};
use mdl_passes::executable::Executable;
use mdl_train::machine::Machine;
use mdl_train::session::{Settings, executables};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

#[derive(Debug, Parser)]
#[command(after_help = "\
Compile Llama 2 7B for an H100 on a machine without one, and keep the assembly:
  mdlc build --preset llama2_7b --target sm_90a --emit ptx kernels

What is compiled are the kernels that `mdlc train` would launch with the same flags.")]
pub struct Args {
    /// A path, or the name of an embedded model [default: the one that has the preset]
    file: Option<String>,
    /// cpu, or a compute capability of NVIDIA's GPUs from sm_80 on, such as sm_80 or sm_90a
    #[arg(long, default_value = "cpu", value_parser = Machinery::parse)]
    target: Machinery,
    /// Write the kernels in a form into a folder: ptx
    #[arg(long, num_args = 2, value_names = ["FORM", "DIR"])]
    emit: Option<Vec<String>>,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: StepFlags,
}

/// What kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Machinery {
    Cpu,
    /// 80 for sm_80.
    Cuda(u32),
}

impl Machinery {
    const LEAST: u32 = 80;

    fn parse(text: &str) -> Result<Machinery, String> {
        if text == "cpu" {
            return Ok(Machinery::Cpu);
        }
        let number = text.strip_prefix("sm_").map(|rest| rest.trim_end_matches('a').parse());
        match number {
            Some(Ok(capability)) if capability >= Self::LEAST => Ok(Machinery::Cuda(capability)),
            Some(Ok(_)) => Err("kernels need sm_80 or later".to_string()),
            _ => Err("targets are cpu, sm_80, sm_90a and later ones".to_string()),
        }
    }

    fn name(self) -> String {
        match self {
            Machinery::Cpu => "cpu".to_string(),
            Machinery::Cuda(n) if n >= 90 => format!("sm_{n}a"),
            Machinery::Cuda(n) => format!("sm_{n}"),
        }
    }
}

pub fn run(args: &Args) -> Outcome {
    let folder = folder(args)?;
    let start = Instant::now();
    args.flags.note_without_effect(&RunFlags::names());
    let Chosen { mut model, .. } = choose(args.file.as_deref(), &args.flags.model)?;
    let settings = args.flags.settings()?;
    let target = match args.target {
        Machinery::Cpu => args.flags.training.target(),
        Machinery::Cuda(_) => Target::Gpu,
    };
    let (name, plans) = (model.config.name, plans(&mut model, &settings, target)?);
    let planned = start.elapsed();
    let specs: usize = plans.iter().map(|plan| plan.specs.len()).sum();
    let ptx = match args.target {
        Machinery::Cpu => None,
        Machinery::Cuda(capability) => Some(compile_for_gpu(capability, &plans)?),
    };
    let (count, new) = match &ptx {
        Some(kernels) => (kernels.len(), kernels.iter().filter(|kernel| kernel.new).count()),
        None => compile_for_cpu(args.flags.training.threads, plans)?,
    };
    let all = start.elapsed();
    if let (Some(folder), Some(kernels)) = (folder, &ptx) {
        write(folder, kernels)?;
    }
    let report = json!({
        "config": name, "target": args.target.name(), "specs": specs, "kernels": count,
        "new": new, "plan_s": planned.as_secs_f64(), "kernels_s": (all - planned).as_secs_f64(),
    });
    match args.json {
        true => say(&format!("{}\n", serde_json::to_string_pretty(&report)?)),
        false => say(&sentence(&report, folder)),
    }
    Ok(())
}

fn sentence(report: &Value, folder: Option<&Path>) -> String {
    let seconds = |key: &str| report[key].as_f64().unwrap_or(f64::NAN);
    let text = |key: &str| report[key].as_str().unwrap_or("");
    let written = folder.map_or(String::new(), |dir| format!(", written to {}", dir.display()));
    format!(
        "{} for {}: {} kernels, {} of them new{written}; planned in {:.2} s, compiled in {:.2} s\n",
        text("config"),
        text("target"),
        report["kernels"],
        report["new"],
        seconds("plan_s"),
        seconds("kernels_s"),
    )
}

/// Where `--emit` writes to.
fn folder(args: &Args) -> Result<Option<&Path>, Failure> {
    let Some([form, dir]) = args.emit.as_deref() else {
        return Ok(None);
    };
    if form != "ptx" || args.target == Machinery::Cpu {
        let message = "--emit takes the form ptx, which a target from sm_80 on has; \
                       for instance --target sm_90a --emit ptx kernels";
        return Err(Failure::coded("E0941", message));
    }
    Ok(Some(Path::new(dir)))
}

/// Everything that a run executes: the step's executables and validation.
fn plans(
    model: &mut mdl_train::model::Model,
    settings: &Settings,
    target: Target,
) -> Result<Vec<Executable>, Failure> {
    let (_, step, validate) = executables(model, settings, target)?;
    let step = step.runs().into_iter().map(|(executable, _)| executable.clone());
    Ok(step.chain([validate]).collect())
}

fn compile_for_gpu(capability: u32, plans: &[Executable]) -> Result<Vec<Ptx>, Failure> {
    let Paper { device, found } = Paper::new(capability);
    let device = Arc::new(device);
    for plan in plans {
        Machine::new(device.clone(), plan.clone()).issue_each();
    }
    device.sync();
    found.kernels().map_err(Failure)
}

/// How many kernels there are, and how many of them were not in the cache.
fn compile_for_cpu(
    threads: Option<u32>,
    plans: Vec<Executable>,
) -> Result<(usize, usize), Failure> {
    let device = Device::cpu(threads).on_paper().map(Arc::new);
    let device = device.expect("invariant: a CPU has its paper");
    for plan in plans {
        Machine::new(device.clone(), plan).issue_each();
    }
    device.compiled().map_err(Failure)
}

/// The kernels, and what a launch of each has to know.
fn write(folder: &Path, kernels: &[Ptx]) -> Outcome {
    let refused = |path: &Path| {
        let path: PathBuf = path.into();
        move |e| Failure(format!("cannot write {}: {e}", path.display()))
    };
    std::fs::create_dir_all(folder).map_err(refused(folder))?;
    for kernel in kernels {
        let path = folder.join(format!("{}.ptx", kernel.name));
        std::fs::write(&path, &kernel.text).map_err(refused(&path))?;
    }
    let row = |k: &Ptx| {
        json!({
            "name": k.name, "entry": k.entry, "units": k.units, "shared_bytes": k.shared_bytes
        })
    };
    let table: Vec<Value> = kernels.iter().map(row).collect();
    let path = folder.join("kernels.json");
    std::fs::write(&path, serde_json::to_string_pretty(&table)? + "\n").map_err(refused(&path))
}
