//! The mean loss of a model on a data set, as a whole and for each document.
//!
//! A document is cut into windows that do not overlap; every token but the first, and with BOS
//! in front every token of the text, is predicted once. An executable has one width, and most
//! windows at the end of a document are narrower than the context: they go to an executable of
//! half that width, a quarter and so on, filled up with positions that have no target. Which of
//! them computes a window changes its loss by rounding alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use mdl_check::entry::EntryOptions;
use mdl_driver::pipeline::{Purpose, finish, state_layout};
use mdl_kernels::Device;

use crate::dataset::Document;
use crate::import;
use crate::machine::Machine;
use crate::model::{Model, ModelError, has_room, within_device};
use crate::packing::Evaluation;
use crate::session;
use crate::tokenizer::{Tokenizer, TokenizerError};
use crate::weights::Weights;

/// Narrower executables save less than compiling them costs.
const MIN_WIDTH: u64 = 64;
/// How many full windows' worth of empty positions pay for one more executable.
const PATIENCE: u64 = 4;

#[derive(Debug, thiserror::Error)]
pub enum EvaluationError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("error[{code}]: {0}", code = .0.code())]
    Tokenizer(#[from] TokenizerError),
}

/// The loss of some text.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Sum over all targets.
    pub nats: f64,
    /// Number of targets.
    pub tokens: u64,
    /// Bytes of UTF-8 that the targets stand for.
    pub bytes: u64,
}

impl Tally {
    /// Nats for each token; not a number where there is no target.
    pub fn loss(&self) -> f64 {
        self.nats / self.tokens as f64
    }

    pub fn perplexity(&self) -> f64 {
        self.loss().exp()
    }

    /// Bits for each byte of the text, which tokenizers with other vocabularies share.
    pub fn bits_per_byte(&self) -> f64 {
        self.nats / self.bytes as f64 / std::f64::consts::LN_2
    }
}

/// A model with its weights, ready to score windows of up to `t` targets.
#[derive(Debug)]
pub struct Evaluator<'a> {
    model: Model,
    weights: &'a Weights,
    options: EntryOptions,
    device: Arc<Device>,
    t: u64,
    batch: u64,
    machines: BTreeMap<u64, Machine>,
    /// Positions without a target that a narrower executable would have spared, by its width.
    spared: BTreeMap<u64, u64>,
    /// Windows that wait until a batch is full, by the width of their executable.
    waiting: BTreeMap<u64, Vec<Vec<u32>>>,
    nats: f64,
}

impl<'a> Evaluator<'a> {
    /// Windows of up to `t` targets, `batch` at a time. The sizes B and T of `options` are set
    /// here, and nothing is compiled before the first window asks for it.
    pub fn new(
        model: Model,
        weights: &'a Weights,
        options: EntryOptions,
        (batch, t): (u64, u64),
        device: Arc<Device>,
    ) -> Evaluator<'a> {
        let (machines, spared, waiting) = Default::default();
        let (batch, t) = (batch.max(1), t.max(1));
        Evaluator {
            model,
            weights,
            options,
            device,
            t,
            batch,
            machines,
            spared,
            waiting,
            nats: 0.0,
        }
    }

    /// The most targets of a window.
    pub fn t(&self) -> usize {
        self.t as usize
    }

    /// Scores a window of up to `t` targets: each id but the first.
    pub fn push(&mut self, window: &[u32]) -> Result<(), ModelError> {
        let width = self.width_for(window.len().saturating_sub(1) as u64);
        let waiting = self.waiting.entry(width).or_default();
        waiting.push(window.to_vec());
        if waiting.len() as u64 == self.batch {
            self.run(width)?;
        }
        Ok(())
    }

    /// Scores what still waits; the sum in nats over all targets since the last call.
    pub fn finish(&mut self) -> Result<f64, ModelError> {
        let widths: Vec<u64> = self.waiting.keys().copied().collect();
        for width in widths {
            self.run(width)?;
        }
        Ok(std::mem::take(&mut self.nats))
    }

    /// The narrowest width for so many targets, or a wider one that is compiled already while
    /// that costs less.
    fn width_for(&mut self, n_targets: u64) -> u64 {
        let fits = |width: &u64| *width >= n_targets;
        let halves = std::iter::successors(Some(self.t), |t| Some(t.div_ceil(2)));
        let narrower = halves.skip(1).take_while(|width| *width >= MIN_WIDTH && fits(width));
        let wanted = narrower.last().unwrap_or(self.t);
        let Some((compiled, _)) = self.machines.range(wanted..).next() else {
            return wanted;
        };
        let spared = self.spared.entry(wanted).or_default();
        *spared += compiled - wanted;
        if *spared > PATIENCE * self.t { wanted } else { *compiled }
    }

    fn run(&mut self, width: u64) -> Result<(), ModelError> {
        let windows = self.waiting.remove(&width).unwrap_or_default();
        if !self.machines.contains_key(&width) {
            let machine = self.compile(width)?;
            self.machines.insert(width, machine);
        }
        let data = Evaluation::new(windows, width as usize);
        let (loss, n) = session::evaluate(&self.machines[&width], &data, self.batch as usize, 0);
        self.nats += loss * n as f64;
        Ok(())
    }

    /// All executables share the weights of the first.
    fn compile(&mut self, width: u64) -> Result<Machine, ModelError> {
        let mut options = self.options.clone();
        options.sizes = vec![("B".to_string(), self.batch), ("T".to_string(), width)];
        let trace = self.model.compile("loss", &options, &Purpose::Forward)?;
        let state = state_layout(trace.last(), &Purpose::Forward);
        let executable = finish(trace.last(), &state, self.device.target())?;
        let needed = executable.state_bytes.max(executable.work_bytes);
        within_device(&self.device, &executable.specs, needed)?;
        if let Some(machine) = self.machines.values().next() {
            return Ok(machine.beside(executable));
        }
        let way_out = "take fewer or shorter sequences at a time, or a smaller model";
        has_room(&self.device, &executable, way_out)?;
        let machine = Machine::new(self.device.clone(), executable);
        import::load(&machine, self.weights, &trace.last().params)?;
        Ok(machine)
    }
}

/// What an evaluation covers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extent {
    /// Keep documents apart. A batch then never holds two of them.
    pub per_document: bool,
    /// End after so many targets.
    pub max_tokens: Option<u64>,
}

/// The total, and with `per_document` the tally of each document in order.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub total: Tally,
    pub documents: Vec<Tally>,
}

/// Scores documents in order; `progress` sees how many tokens and bytes are done.
pub fn evaluate(
    evaluator: &mut Evaluator<'_>,
    documents: &[Document],
    tokenizer: &Tokenizer,
    extent: Extent,
    progress: &mut dyn FnMut(&Tally),
) -> Result<Report, EvaluationError> {
    let mut res = Report::default();
    for document in documents {
        let room = extent.max_tokens.map_or(u64::MAX, |max| max - res.total.tokens);
        if room == 0 {
            break;
        }
        let before = res.total;
        let (ids, ends) = tokenizer.evaluation_spans(&document.text)?;
        let n_targets =
            ids.len().saturating_sub(1).min(usize::try_from(room).unwrap_or(usize::MAX));
        for start in (0..n_targets).step_by(evaluator.t()) {
            let end = n_targets.min(start + evaluator.t());
            evaluator.push(&ids[start..=end])?;
            res.total.tokens += (end - start) as u64;
            res.total.bytes += (ends[end] - ends[start]) as u64;
            progress(&res.total);
        }
        if extent.per_document {
            let nats = evaluator.finish()?;
            res.total.nats += nats;
            let tokens = res.total.tokens - before.tokens;
            let bytes = res.total.bytes - before.bytes;
            res.documents.push(Tally { nats, tokens, bytes });
        }
    }
    res.total.nats += evaluator.finish()?;
    Ok(res)
}
