//! Generation: the incremental step with its key and value caches, for a batch of sequences.
//!
//! Two executables share weights and caches: one takes a chunk of every prompt at once and fills
//! the caches alone, the other takes one token of every sequence and gives logits. Position p of
//! every sequence is visited in the same step, so a prompt that is longer than the shortest one
//! goes on token by token while the others already continue.

mod batch;
mod sampling;

pub use batch::{Batch, Event, Finish};
pub use sampling::{Sampling, SamplingError, choose};

use crate::machine::Machine;
use crate::model::{Model, ModelError, has_room, within_device, within_reach};
use mdl_check::entry::EntryOptions;
use mdl_driver::pipeline::{Purpose, finish, run, state_layout};
use mdl_ir::graph::{Graph, OutputRole};
use mdl_ir::kernel::Target;
use mdl_ir::reach::reach;
use mdl_kernels::Device;
use mdl_passes::executable::Executable;
use mdl_passes::incremental::{START, caches_only, incremental};
use std::sync::Arc;
use std::time::Instant;

/// What can go wrong once a model is compiled.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    #[error("{0}")]
    Model(#[from] ModelError),
    #[error(
        "error[E0961]: position {position} is behind the {capacity} that the caches have room \
         for; open the generator with more"
    )]
    Full { position: u64, capacity: u64 },
    #[error("error[E0912]: token id {id} is not below the model's vocabulary of {vocab}")]
    Vocabulary { id: u32, vocab: usize },
    #[error("error[E0961]: {given} prompts are more than the {batch} sequences there is room for")]
    Batch { given: usize, batch: usize },
    #[error("error[E0961]: prompt {0} is empty; a continuation starts from one token at least")]
    Empty(usize),
    #[error("error[E0962]: {error} at position {position} of sequence {sequence}; {ADVICE}")]
    Logits { error: SamplingError, position: u64, sequence: usize },
}

const ADVICE: &str = "compare the weights with those that were published";

/// What a generator is compiled for.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Sequences side by side.
    pub batch: u64,
    /// Positions of each, prompt included.
    pub capacity: u64,
    /// Positions of a prompt that one step takes; None feeds prompts token by token.
    pub chunk: Option<u64>,
}

impl Room {
    /// Long chunks read the weights seldom; this one's activations still fit the caches.
    const CHUNK: u64 = 64;
    /// A second executable takes about as long to compile as it takes to read this many weights,
    /// and a step by itself about as long as reading `STEP` of them.
    const COMPILING: u64 = 5_000_000_000;
    const STEP: u64 = 5_000_000;

    /// The length of chunks where `positions` of a prompt are enough to earn back their
    /// compilation; `params` is the number of the model's parameters.
    pub fn chunk_for(params: u64, positions: u64) -> Option<u64> {
        let saved = positions.saturating_mul(params.saturating_add(Self::STEP));
        (saved > Self::COMPILING).then_some(Self::CHUNK)
    }
}

/// Runs of one executable. The first one compiles kernels and is kept apart.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    pub first_seconds: f64,
    pub first_tokens: u64,
    /// Of all later runs.
    pub seconds: f64,
    pub tokens: u64,
}

impl Spent {
    fn run(&mut self, machine: &Machine, tokens: u64) {
        let start = Instant::now();
        machine.run();
        machine.device.sync();
        let seconds = start.elapsed().as_secs_f64();
        if self.first_tokens == 0 {
            (self.first_seconds, self.first_tokens) = (seconds, tokens);
        } else {
            self.seconds += seconds;
            self.tokens += tokens;
        }
    }
}

#[derive(Debug)]
struct Chunk {
    machine: Machine,
    width: usize,
}

/// A model that goes on from the tokens it has seen.
#[derive(Debug)]
pub struct Generator {
    single: Machine,
    chunk: Option<Chunk>,
    room: Room,
    vocab: usize,
    position: u64,
    /// Prompts in chunks.
    pub prefill: Spent,
    /// One token of each sequence at a time, prompts' included.
    pub decode: Spent,
}

/// Below this many positions that are left of a prompt, single steps cost less than a chunk.
const FEW: usize = 3;

impl Generator {
    /// Compiles for `room`; `load` writes the weights to the machine.
    pub fn open(
        model: &mut Model,
        mut room: Room,
        device: Arc<Device>,
        load: impl FnOnce(&Machine) -> Result<(), ModelError>,
    ) -> Result<Generator, ModelError> {
        let graph = entry(model, &room, 1)?;
        within_reach(&graph, room.capacity)?;
        let table = reach(&graph, "T").map_or(u64::MAX, |table| table.longest);
        room.chunk = room.chunk.map(|width| width.min(table));
        // The last chunk of a prompt may reach past it.
        room.capacity = room
            .capacity
            .max(1)
            .checked_next_multiple_of(room.chunk.unwrap_or(1))
            .filter(|capacity| *capacity <= MOST_POSITIONS)
            .ok_or(ModelError::Asked(format!("a sequence has at most {MOST_POSITIONS} tokens")))?;
        let executable = compile(model, &room, 1, device.target())?;
        let chunk = match room.chunk {
            Some(width) => Some((width, compile(model, &room, width, device.target())?)),
            None => None,
        };
        for e in [&executable].into_iter().chain(chunk.as_ref().map(|(_, e)| e)) {
            within_device(&device, &e.specs, e.state_bytes.max(e.work_bytes))?;
        }
        has_room(&device, &executable, "ask for fewer or shorter sequences")?;
        let single = Machine::new(device.clone(), executable);
        load(&single)?;
        let chunk =
            chunk.map(|(width, e)| Chunk { machine: single.beside(e), width: width as usize });
        let logits = single.executable.output(&OutputRole::Value("logits".into()));
        let vocab = logits.and_then(|slot| slot.ty.axes.last()).map_or(0, |a| a.size as usize);
        let (prefill, decode) = (Spent::default(), Spent::default());
        Ok(Generator { single, chunk, room, vocab, position: 0, prefill, decode })
    }

    /// Positions seen so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    pub fn batch(&self) -> usize {
        self.room.batch as usize
    }

    /// Number of the model's weights, nearly all of which one token's step reads.
    pub fn parameters(&self) -> u64 {
        self.single.executable.params.iter().map(|p| p.ty.elements()).sum()
    }

    /// Forgets all sequences. What the caches hold is overwritten before anything sees it again.
    pub fn rewind(&mut self) {
        self.position = 0;
    }

    /// Takes what all prompts have, save for the last token of the shortest one, from which logits
    /// will be wanted. Where there are no chunks, and for the last few positions, nothing happens.
    ///
    /// A chunk may reach past a prompt. What it puts into the caches there no position sees: the
    /// mask hides it from positions before it, and the step of each later position overwrites the
    /// position's entries before it reads them.
    pub fn prefill(&mut self, prompts: &[&[u32]]) -> Result<(), GenerateError> {
        let Some(chunk) = &self.chunk else { return Ok(()) };
        let count = prompts.iter().map(|p| p.len()).min().unwrap_or(0).saturating_sub(1);
        for prompt in prompts {
            self.check(prompt)?;
        }
        let mut at = self.position as usize;
        while at + FEW < count {
            if at + chunk.width > self.room.capacity as usize {
                let capacity = self.room.capacity;
                return Err(GenerateError::Full { position: capacity, capacity });
            }
            let mut ids = vec![0; self.room.batch as usize * chunk.width];
            for (row, prompt) in ids.chunks_mut(chunk.width).zip(prompts) {
                for (id, given) in row.iter_mut().zip(&prompt[at..]) {
                    *id = *given as i32;
                }
            }
            chunk.machine.write_data(START, &[at as i32]);
            chunk.machine.write_data("tokens", &ids);
            let taken = chunk.width.min(count - at);
            self.prefill.run(&chunk.machine, (taken * prompts.len()) as u64);
            at += taken;
        }
        self.position = at as u64;
        Ok(())
    }

    /// Logits [batch, vocab] after one more token of each sequence.
    pub fn push(&mut self, ids: &[u32]) -> Result<Vec<f32>, GenerateError> {
        let (position, capacity) = (self.position, self.room.capacity);
        if position >= capacity {
            return Err(GenerateError::Full { position, capacity });
        }
        if ids.len() != self.batch() {
            return Err(GenerateError::Batch { given: ids.len(), batch: self.batch() });
        }
        self.check(ids)?;
        let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
        self.single.write_data(START, &[position as i32]);
        self.single.write_data("tokens", &ids);
        self.decode.run(&self.single, ids.len() as u64);
        self.position += 1;
        Ok(self.single.read_value("logits").unwrap_or_default())
    }

    fn check(&self, ids: &[u32]) -> Result<(), GenerateError> {
        let vocab = self.vocab;
        match ids.iter().find(|id| **id as usize >= vocab) {
            Some(id) => Err(GenerateError::Vocabulary { id: *id, vocab }),
            None => Ok(()),
        }
    }
}

/// Positions are counted in f32, which is exact up to here.
const MOST_POSITIONS: u64 = 1 << 24;

/// Logits of `t` positions of each sequence.
fn entry(model: &mut Model, room: &Room, t: u64) -> Result<Graph, ModelError> {
    let sizes = vec![("B".to_string(), room.batch), ("T".to_string(), t)];
    model.graph("logits", &EntryOptions { sizes, documents: false, auxiliary: false })
}

/// The step of `t` positions of each sequence; only a step of one gives logits.
fn compile(
    model: &mut Model,
    room: &Room,
    t: u64,
    target: Target,
) -> Result<Executable, ModelError> {
    let graph = entry(model, room, t)?;
    let mut graph = incremental(&graph, "T", room.capacity).map_err(ModelError::Asked)?;
    if t > 1 {
        graph = caches_only(graph);
    }
    let trace = run(graph, &mut model.front, &Purpose::Forward)?;
    let state = state_layout(trace.last(), &Purpose::Forward);
    Ok(finish(trace.last(), &state, target)?)
}
