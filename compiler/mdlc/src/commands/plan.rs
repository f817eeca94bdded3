//! `mdlc plan`: what a training step needs, known before anything runs.

use super::say;
use crate::Outcome;
use crate::flags::TrainingFlags;
use clap::Parser;
use mdl_passes::executable::{Executable, Space};
use mdl_train::model::Model;
use mdl_train::session::executables;

#[derive(Debug, Parser)]
pub struct Args {
    /// A path, or the name of an embedded model
    file: String,
    #[arg(long)]
    preset: Option<String>,
    #[command(flatten)]
    training: TrainingFlags,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// Bytes that are in use at each launch, and the launch where they are most.
fn peak(e: &Executable) -> (usize, u64) {
    let last = e.buffers.iter().map(|b| b.last).max().unwrap_or(0);
    let live = |at: usize| {
        let here = e.buffers.iter().filter(|b| b.space == Space::Work);
        here.filter(|b| b.first <= at && at <= b.last).map(|b| b.bytes).sum::<u64>()
    };
    (0..=last)
        .map(|at| (at, live(at)))
        .max_by_key(|(at, bytes)| (*bytes, usize::MAX - at))
        .unwrap_or((0, 0))
}

pub fn run(args: &Args) -> Outcome {
    let mut model = Model::open(&args.file, args.preset.as_deref())?;
    let settings = args.training.settings();
    let (graph, e, _) = executables(&mut model, &settings, args.training.units())?;
    let (flops, traffic) = e.work();
    let (when, live) = peak(&e);
    let mut biggest: Vec<_> = e.buffers.iter().filter(|b| b.space == Space::Work).collect();
    biggest.sort_by_key(|b| std::cmp::Reverse(b.bytes));
    biggest.truncate(8);
    if args.json {
        let buffers: Vec<_> = biggest
            .iter()
            .map(|b| {
                serde_json::json!({
                    "name": b.name, "bytes": b.bytes, "first": b.first, "last": b.last,
                })
            })
            .collect();
        let row = serde_json::json!({
            "parameters": graph.param_count(),
            "peak_bytes": { "device": e.state_bytes + e.work_bytes },
            "state_bytes": e.state_bytes,
            "work_bytes": e.work_bytes,
            "live_bytes_at_peak": live,
            "peak_at_launch": when,
            "biggest_buffers": buffers,
            "launches": e.launches(),
            "flops_per_step": flops,
            "bytes_per_step": traffic,
            "tokens_per_step": settings.batch * settings.t,
        });
        say(&format!("{}\n", serde_json::to_string_pretty(&row)?));
        return Ok(());
    }
    let mib = |b: u64| b as f64 / (1 << 20) as f64;
    say(&format!(
        "{}: {} parameters, {} sequences of {} tokens\n\
         device    {:>12.1} MiB at the peak\n  \
         state   {:>12.1} MiB   parameters, gradients, two moments\n  \
         work    {:>12.1} MiB   (at least {:.1} MiB is in use at launch {when})\n\
         step      {:>12.2} GFLOP, {:.2} GB read and written, {} launches\n\
         biggest buffers of the step:\n",
        model.name,
        graph.param_count(),
        settings.batch,
        settings.t,
        mib(e.state_bytes + e.work_bytes),
        mib(e.state_bytes),
        mib(e.work_bytes),
        mib(live),
        flops as f64 / 1e9,
        traffic as f64 / 1e9,
        e.launches(),
    ));
    for b in biggest {
        let (size, name) = (mib(b.bytes), &b.name);
        say(&format!("  {size:>12.1} MiB   {name}, launches {} to {}\n", b.first, b.last));
    }
    Ok(())
}
