//! `mdlc bench FILE`: every kernel of a model's training step, timed where it stands in the step.
//!
//! A kernel on buffers of its own would find its operands in the caches, and ids that nobody
//! routed. So the whole step runs, launch by launch, on the step's own data; between two such runs
//! the step runs as it always does, and the machine's limits are measured.

use super::report::{Machine, Report, Row};
use super::spec_name::{kind, label};
use super::{Args, Batch, What, some_batch, time};
use crate::Failure;
use crate::choose::{Chosen, choose};
use crate::flags::run::RunFlags;
use crate::hardware::{measured_peak, speed_of};
use crate::source_line::SourceLine;
use clap::ValueEnum;
use mdl_check::nearest::nearest;
use mdl_ir::kernel::cost::{Work, work};
use mdl_ir::kernel::{Elem, KernelSpec, SumOfSquaresSpec};
use mdl_ir::place::Place;
use mdl_kernels::{Device, measure_triad};
use mdl_passes::executable::Launch;
use mdl_passes::request::Precision;
use mdl_syntax::source::SourceMap;
use mdl_train::profile::each_launch;
use mdl_train::session::Session;
use std::sync::Arc;
use std::time::Instant;

/// A kernel with all its launches: those of one spec, at one or more places of the model.
struct Kernel {
    spec: KernelSpec,
    /// Bytes that a transfer takes along; 0 for others, which have their sizes in the spec.
    moved: u64,
    /// Names of the first results, and where those stand.
    results: Vec<String>,
    places: Vec<Place>,
    /// Seconds that the cost model gives to a launch, where it knows the device.
    predicted: Option<f64>,
    /// Seconds of every launch, of all runs.
    seconds: Vec<f64>,
}

impl Kernel {
    fn work(&self) -> Work {
        // A transfer reads here and writes there.
        work(&self.spec).unwrap_or(Work { flops: 0, bytes: 2 * self.moved })
    }
}

/// Times of several runs of the step, each as it always runs and then launch by launch.
#[derive(Default)]
struct Runs {
    kernels: Vec<Kernel>,
    steps: Vec<f64>,
    peaks: Vec<f64>,
    triads: Vec<f64>,
}

/// Of an odd number of values the one in the middle.
pub fn middle(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Runs {
    fn add(&mut self, spec: &KernelSpec, launch: &Launch, seconds: f64, device: &Device) {
        let moved = if *spec == KernelSpec::Transfer { launch.args[0].bytes } else { 0 };
        let found = self.kernels.iter().position(|k| k.moved == moved && k.spec == *spec);
        let at = found.unwrap_or_else(|| {
            let predicted = speed_of(device).map(|speed| match moved {
                0 => launch.seconds(&speed),
                moved => moved as f64 / speed.host,
            });
            let (results, places, seconds) = Default::default();
            let spec = spec.clone();
            self.kernels.push(Kernel { spec, moved, results, places, predicted, seconds });
            self.kernels.len() - 1
        });
        let kernel = &mut self.kernels[at];
        kernel.seconds.push(seconds);
        if !kernel.results.contains(&launch.name) {
            kernel.results.push(launch.name.clone());
        }
        if launch.place.end > launch.place.start && !kernel.places.contains(&launch.place) {
            kernel.places.push(launch.place);
        }
    }

    /// One run of each kind, and the machine's limits beside them.
    fn measure(&mut self, device: &Device, session: &mut Session, batch: &Batch) {
        let start = Instant::now();
        session.step(batch);
        device.sync();
        self.steps.push(start.elapsed().as_secs_f64());
        session.step_by(batch, &mut |machine| {
            let specs = &machine.executable.specs;
            each_launch(machine, &mut |launch, time| {
                self.add(&specs[launch.spec], launch, time.as_secs_f64(), device);
            });
        });
        self.peaks.push(measured_peak(device, session.settings.precision));
        self.triads.push(measure_triad(device));
    }

    fn row(&self, kernel: &Kernel, sources: &SourceMap, machine: &Machine) -> Row {
        let launches = (kernel.seconds.len() / self.steps.len()) as u64;
        let (work, seconds) = (kernel.work(), middle(&kernel.seconds));
        let mut lines: Vec<SourceLine<'_>> = Vec::new();
        for line in kernel.places.iter().filter_map(|place| SourceLine::of(sources, *place)) {
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        let sources = lines.iter().map(|l| (l.file.to_string(), l.number, l.text.to_string()));
        Row {
            kernel: kind(&kernel.spec),
            name: label(&kernel.spec),
            results: kernel.results.clone(),
            sources: sources.collect(),
            launches,
            flops: work.flops,
            bytes: work.bytes,
            predicted: kernel.predicted,
            measured: seconds,
            arithmetic: work.flops as f64 / (machine.peak * 1e9),
            traffic: work.bytes as f64 / (machine.triad * 1e9),
        }
    }
}

/// A name that is no file may be a suite with a slip of the pen.
fn or_suite(Failure(message): Failure, file: Option<&str>) -> Failure {
    let suites: Vec<String> = What::value_variants()
        .iter()
        .filter_map(|w| w.to_possible_value())
        .map(|v| v.get_name().to_string())
        .collect();
    let near = file.and_then(|file| nearest(file, suites.iter().map(String::as_str)));
    match near {
        Some(suite) => Failure(format!("{message}\n  help: the suite is called `{suite}`")),
        None => Failure(message),
    }
}

/// Seconds of a launch that has next to nothing to do, and of waiting for it.
fn launch_seconds(device: &Device, runs: usize) -> f64 {
    let spec = KernelSpec::SumOfSquares(SumOfSquaresSpec { elem: Elem::F32, len: 1 });
    time(device, &spec, Elem::F32, &[1, 1], runs.max(100))
}

pub fn report(device: &Arc<Device>, args: &Args, file: Option<&str>) -> Result<Report, Failure> {
    let flags = &args.flags;
    flags.note_without_effect(&RunFlags::names());
    let chosen = choose(file, &flags.model).map_err(|e| or_suite(e, file))?;
    chosen.note_differences();
    let Chosen { model, preset, .. } = chosen;
    let settings = flags.settings()?;
    if settings.memory.mesh.is_some() {
        let message = "the ranks of a mesh run their steps side by side, where no launch can be \
                       timed alone; leave out --mesh to measure the kernels of one device";
        return Err(Failure::coded("E0941", message));
    }
    let mut session = Session::open(model, settings, device.clone())?;
    let batch = some_batch(&session);
    // Compiles every kernel.
    session.step(&batch);
    let mut runs = Runs::default();
    for _ in 0..args.runs.max(1) {
        runs.measure(device, &mut session, &batch);
        session.fault().map_or(Ok(()), Err)?;
    }
    let machine = Machine {
        threads: device.units(),
        peak: middle(&runs.peaks),
        triad: middle(&runs.triads),
        launch: launch_seconds(device, args.runs),
    };
    let sources = &session.model.front.sources;
    let rows = runs.kernels.iter().map(|k| runs.row(k, sources, &machine)).collect();
    Ok(Report {
        model: session.model.name.clone(),
        preset,
        batch: session.settings.sequences(),
        context: session.settings.t,
        bf16: session.settings.precision == Precision::Bf16,
        runs: runs.steps.len(),
        step: middle(&runs.steps),
        machine,
        rows,
    }
    .sorted())
}
