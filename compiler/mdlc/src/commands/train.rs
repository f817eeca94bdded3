//! `mdlc train`: compile and run.

use super::eval::tokenizer_for;
use crate::choose::choose;
use crate::flags::config_values::flag_name;
use crate::flags::run::RunFlags;
use crate::flags::{ModelFlags, StepFlags};
use crate::hardware::measured_peak;
use crate::{Failure, Outcome};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use mdl_train::checkpoint::{self, Checkpoint};
use mdl_train::dataset::{self, DataError, Split};
use mdl_train::log::{JsonLog, Line, Record};
use mdl_train::model::Model;
use mdl_train::packing::{Evaluation, Stream};
use mdl_train::session::Session;
use mdl_train::tokenizer::Tokenizer;
use mdl_train::weights::Weights;
use mdl_train::{log, plot, resident};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

#[derive(Debug, Parser)]
#[command(after_help = EXAMPLE)]
pub struct Args {
    /// A path, or the name of an embedded model; --preset, --model_type or the checkpoint of
    /// --init_from or --resume_from_checkpoint may stand for it
    file: Option<String>,
    #[command(flatten)]
    flags: StepFlags,
}

const EXAMPLE: &str = "\
A published model that is changed, on a text of yours, with flags from a file:
  mdlc train --preset llama3_2_1b --num_layers 4 --dataset book.txt --tokenizer tokenizer.json \\
       --max_context_width 512 --checkpoint_dir run --config run.toml
where run.toml has keys that are flags:
  lr = 3e-4
  warmup = 0.01
Published weights that learn a text of yours; model, sizes and tokenizer are the checkpoint's:
  mdlc train --init_from SmolLM-135M --dataset book.txt --checkpoint_dir run
The command line wins over the file, and the file over --hardware.
`mdlc plan` with the same flags says what the run needs.";

fn data(e: DataError) -> Failure {
    Failure::coded(e.code(), e)
}

struct Data {
    stream: Stream,
    validation: Option<Evaluation>,
}

fn open_data(flags: &StepFlags, tokenizer: &Tokenizer) -> Result<Data, Failure> {
    let args = &flags.run;
    if args.dataset.is_empty() {
        let message = "a run needs data: --dataset FILES, text files or .jsonl";
        return Err(Failure::coded("E0941", message));
    }
    let documents = dataset::documents(&args.dataset).map_err(data)?;
    let mut split = match args.validation_split {
        Some(fraction) => dataset::split(documents, fraction).map_err(data)?,
        None => Split { training: documents, validation: Vec::new() },
    };
    if !args.validation_dataset.is_empty() {
        split.validation = dataset::documents(&args.validation_dataset).map_err(data)?;
    }
    let t = flags.training.max_context_width as usize;
    let stream = Stream::from_documents(&split.training, tokenizer, flags.training.seed)?;
    let stream = if args.cross_documents == 1 { stream.crossing_documents() } else { stream };
    stream.samples_per_epoch(t).map_err(data)?;
    let validation = match split.validation.is_empty() {
        true => None,
        false => Some(Evaluation::from_documents(&split.validation, tokenizer, t)?),
    };
    Ok(Data { stream, validation })
}

fn found(args: &RunFlags) -> Result<Option<Checkpoint>, Failure> {
    let Some(dir) = &args.resume_from_checkpoint else {
        return Ok(None);
    };
    let checkpoint = match checkpoint::newest(dir)? {
        None => None,
        Some(_) => Some(checkpoint::open(dir)?),
    };
    match &checkpoint {
        Some(c) => c.notes.iter().for_each(|note| eprintln!("note: {note}")),
        None => eprintln!("note: no checkpoint in `{}` yet, starting fresh", dir.display()),
    }
    Ok(checkpoint)
}

/// The model that FILE and flags name, or else the one of the checkpoint to start from.
fn model(file: Option<&str>, flags: &StepFlags, from: Option<&Path>) -> Result<Model, Failure> {
    let ModelFlags { preset, model_type, values } = &flags.model;
    let named = file.is_some() || preset.is_some() || model_type.is_some();
    let Some(dir) = from.filter(|_| !named) else {
        let chosen = choose(file, &flags.model)?;
        chosen.note_differences();
        return Ok(chosen.model);
    };
    if let Some((path, _)) = values.given.first() {
        let flag = flag_name(path);
        let message =
            format!("without FILE the sizes are those of `{}`: drop --{flag}", dir.display());
        return Err(Failure::coded("E0941", message));
    }
    Ok(Model::of_checkpoint(dir)?)
}

/// A checkpoint may go on in other micro-batches than it was made in; its place in the data counts
/// sequences.
fn note_micro_batches(checkpoint: &Checkpoint, session: &Session) {
    let then = checkpoint.manifest.gradient_accumulation;
    let now = session.settings.gradient_accumulation;
    if then != now {
        eprintln!("note: steps had {then} micro-batches so far, and have {now} from now on");
    }
}

pub fn run(Args { file, flags }: &Args) -> Outcome {
    // Data sets are files, and those have no parts with names.
    flags.note_without_effect(&["dataset_config_name".to_string()]);
    let args = &flags.run;
    let resumed = found(args)?;
    let from = match (&args.init_from, &resumed) {
        (Some(dir), _) => Some(checkpoint::model_directory(dir)?),
        (None, Some(checkpoint)) => Some(checkpoint.path.clone()),
        (None, None) => None,
    };
    let mut model = model(file.as_deref(), flags, from.as_deref())?;
    model.front.check();
    if model.front.failed() {
        return Err(Failure(model.front.report(false)));
    }
    let vocab = model.size("vocab").unwrap_or(u64::MAX >> 32);
    let tokenizer = tokenizer_for(from.as_deref(), args.tokenizer.as_deref(), vocab)?;
    if let Some(note) = tokenizer.note() {
        eprintln!("note: {note}");
    }
    let data = open_data(flags, &tokenizer)?;
    let device = flags.training.device.open(flags.training.threads)?;
    let mut session = Session::open(model, flags.settings()?, device)?;
    match (&resumed, &from) {
        (Some(checkpoint), _) => {
            session.resume(checkpoint)?;
            note_micro_batches(checkpoint, &session);
            eprintln!("resumed at step {} from {}", session.step, checkpoint.path.display());
        }
        (None, Some(dir)) => {
            let weights = Weights::open(dir).map_err(|e| Failure::coded(e.code(), e))?;
            session.load_weights(&weights)?;
        }
        (None, None) => {}
    }
    if let Some(mesh) = session.settings.memory.mesh {
        let (n, machines, devices) = (mesh.ranks(), mesh.machines, mesh.devices);
        eprintln!("note: all {n} ranks ({machines} × {devices}) run in this process");
    }
    eprintln!(
        "{}: {} parameters; {} bytes planned, {} launches a step",
        session.model.name,
        session.graph.param_count(),
        session.train.planned(),
        session.train.launches,
    );
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    // Only the first handler of a process can be set; there is no other.
    let _ = ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed));
    let log = match &args.log_json {
        Some(path) => {
            Some(JsonLog::open(path, session.step).map_err(|e| Failure::coded(e.code(), e))?)
        }
        None => None,
    };
    Run { args, session, data, tokenizer, log, stop, saved: None }.train()
}

struct Run<'a> {
    args: &'a RunFlags,
    session: Session,
    data: Data,
    tokenizer: Tokenizer,
    log: Option<JsonLog>,
    stop: Arc<AtomicBool>,
    saved: Option<PathBuf>,
}

impl Run<'_> {
    fn train(mut self) -> Outcome {
        let max = self.session.settings.max_steps;
        let (b, t) = (self.session.settings.sequences(), self.session.settings.t);
        let bar = progress(max, self.session.step);
        let flops = self.session.train.flops as f64;
        let began = self.session.step;
        let device = self.session.train.first.device.clone();
        let peak = measured_peak(&device, self.session.settings.precision) * 1e9;
        while self.session.step < max && !self.stop.load(Ordering::Relaxed) {
            let start = Instant::now();
            let cursor = self.session.cursor;
            let batch = self.data.stream.batch(cursor, b as usize, t as usize).map_err(data)?;
            let report = self.session.step(&batch);
            self.session.fault().map_or(Ok(()), Err)?;
            let step = self.session.step;
            if !report.loss.is_finite() || !report.grad_norm.is_finite() {
                return Err(self.not_finite(step, cursor, report.loss));
            }
            let seconds = start.elapsed().as_secs_f64();
            let line = Line {
                batch: step,
                loss: report.loss,
                samples_per_s: b as f64 / seconds,
                tokens_per_s: (b * t) as f64 / seconds,
                tflops_per_device: flops / seconds / 1e12,
                mfu: flops / seconds / peak,
                lr: report.lr,
            };
            let last = step == max;
            if last || step.is_multiple_of(self.args.logging_freq.max(1)) {
                bar.suspend(|| eprintln!("{line}"));
            }
            let validation = self.validation(step, last, &bar);
            bar.set_message(format!("loss {:.4}", report.loss));
            bar.set_position(step);
            if step == began + 1 {
                // All kernels have been compiled now, and what that took is no part of a step.
                resident::forget_peak();
            }
            let last = last || self.stop.load(Ordering::Relaxed);
            let memory = last.then(|| self.session.memory());
            self.record(&line, report.grad_norm, validation, memory)?;
            if step.is_multiple_of(self.args.checkpoint_freq.max(1)) && !last {
                self.save();
            }
        }
        bar.finish_and_clear();
        self.note_memory();
        self.save();
        self.draw()
    }

    fn not_finite(&self, step: u64, sample: u64, loss: f64) -> Failure {
        let good = match &self.saved {
            Some(path) => format!("the last good checkpoint is {}", path.display()),
            None => "there is no checkpoint of this run".to_string(),
        };
        let message = format!(
            "the loss or the gradient of step {step} is not finite (loss {loss}), in the batch \
             from sample {sample}; {good}; lower --lr, or raise --warmup"
        );
        Failure::coded("E0951", message)
    }

    fn validation(&self, step: u64, last: bool, bar: &ProgressBar) -> Option<(f64, u64)> {
        let freq = self.args.validation_freq?;
        if !last && !step.is_multiple_of(freq.max(1)) {
            return None;
        }
        let data = self.data.validation.as_ref()?;
        let (loss, tokens) = self.session.validate(data, self.args.validation_batches);
        bar.suspend(|| {
            eprintln!(
                "Batch {step} Validation loss: {loss:.5}, perplexity: {:.4}, tokens: {tokens}",
                loss.exp()
            );
        });
        Some((loss, tokens))
    }

    /// Before the last checkpoint, which copies parameters and moments to write them.
    fn note_memory(&self) {
        let (planned, observed) = self.session.memory();
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        match observed {
            Some(observed) => eprintln!(
                "memory: {:.3} GiB planned, {:.3} GiB observed ({:+.1} %), and {} MiB of the \
                 runtime's own",
                gib(planned),
                gib(observed),
                (observed as f64 / planned as f64 - 1.0) * 100.0,
                resident::RUNTIME >> 20
            ),
            None => eprintln!("memory: {:.3} GiB planned", gib(planned)),
        }
    }

    fn record(
        &mut self,
        line: &Line,
        grad_norm: f64,
        validation: Option<(f64, u64)>,
        memory: Option<(u64, Option<u64>)>,
    ) -> Outcome {
        let Some(log) = &mut self.log else {
            return Ok(());
        };
        let record = Record {
            step: line.batch,
            loss: line.loss,
            lr: line.lr,
            grad_norm,
            tokens_per_s: line.tokens_per_s,
            val_loss: validation.map(|(loss, _)| loss),
            val_tokens: validation.map(|(_, tokens)| tokens),
            planned_bytes: memory.map(|(planned, _)| planned),
            observed_bytes: memory.and_then(|(_, observed)| observed),
            runtime_bytes: memory.and_then(|(_, observed)| observed.map(|_| resident::RUNTIME)),
        };
        log.append(&record).map_err(|e| Failure::coded(e.code(), e))
    }

    /// A failed save is reported, and training goes on.
    fn save(&mut self) {
        let Some(dir) = &self.args.checkpoint_dir else {
            return;
        };
        let json = self.tokenizer.json().map(<[u8]>::to_vec);
        let ids = [self.tokenizer.bos(), self.tokenizer.eos()];
        let snapshot = self.session.snapshot(json, ids);
        if let Some(fault) = self.session.fault() {
            // The next step ends the run with it; what was saved before stays the last one.
            eprintln!("error[{}]: {fault}; nothing is saved", fault.code());
            return;
        }
        match checkpoint::save(dir, &snapshot, None) {
            Ok(path) => {
                eprintln!("saved {}", path.display());
                self.saved = Some(path);
            }
            Err(e) => eprintln!("error[{}]: {e}; training goes on", e.code()),
        }
    }

    fn draw(&self) -> Outcome {
        let Some(path) = &self.args.log_json else {
            return Ok(());
        };
        let records = log::read(path).map_err(|e| Failure::coded(e.code(), e))?;
        let svg: &Path = &path.with_extension("svg");
        if !records.is_empty() {
            plot::write(svg, &records, &self.session.model.name)
                .map_err(|e| Failure::coded(e.code(), e))?;
            eprintln!("loss curve: {}", svg.display());
        }
        Ok(())
    }
}

fn progress(max: u64, done: u64) -> ProgressBar {
    let bar = ProgressBar::new(max).with_position(done);
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}  eta {eta}");
    bar.with_style(style.expect("the template is valid"))
}
