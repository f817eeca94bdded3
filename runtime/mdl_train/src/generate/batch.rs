//! A batch of prompts that are continued side by side, each until its own end.

use super::{GenerateError, Generator, Sampling, choose};

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model said so.
    Eos,
    /// As many tokens as were asked for.
    Length,
}

impl Finish {
    pub fn name(self) -> &'static str {
        match self {
            Finish::Eos => "eos",
            Finish::Length => "length",
        }
    }
}

/// What happened to sequence `.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Token(usize, u32),
    Finished(usize, Finish),
}

#[derive(Debug)]
struct Sequence<'a> {
    prompt: &'a [u32],
    ids: Vec<u32>,
    finished: bool,
}

/// Prompts on their way. Each is continued as if it were alone: with the same tokens, as long as
/// rounding, which depends on the sizes of a step, does not decide between two of them.
#[derive(Debug)]
pub struct Batch<'a> {
    generator: &'a mut Generator,
    sequences: Vec<Sequence<'a>>,
    sampling: Sampling,
    max_tokens: u64,
}

impl<'a> Batch<'a> {
    /// Up to as many prompts as the generator has room for; what they have in common in length is
    /// taken at once.
    pub fn new(
        generator: &'a mut Generator,
        prompts: &[&'a [u32]],
        sampling: Sampling,
        max_tokens: u64,
    ) -> Result<Batch<'a>, GenerateError> {
        if let Some(empty) = prompts.iter().position(|p| p.is_empty()) {
            return Err(GenerateError::Empty(empty));
        }
        if prompts.len() > generator.batch() {
            let (given, batch) = (prompts.len(), generator.batch());
            return Err(GenerateError::Batch { given, batch });
        }
        generator.rewind();
        generator.prefill(prompts)?;
        let sequence = |p: &&'a [u32]| Sequence { prompt: p, ids: Vec::new(), finished: false };
        let sequences = prompts.iter().map(sequence).collect();
        Ok(Batch { generator, sequences, sampling, max_tokens })
    }

    /// One position of every sequence, and what came of it; nothing once all are finished.
    pub fn step(&mut self, is_end: impl Fn(u32) -> bool) -> Result<Vec<Event>, GenerateError> {
        let mut events = Vec::new();
        if self.max_tokens == 0 {
            for i in 0..self.sequences.len() {
                self.finish(i, Finish::Length, &mut events);
            }
        }
        if self.sequences.iter().all(|s| s.finished) {
            return Ok(events);
        }
        let position = self.generator.position();
        // Nobody reads what a finished sequence, or one that there is no prompt for, goes on with.
        let mut ids: Vec<u32> =
            self.sequences.iter().map(|s| s.id(position as usize).unwrap_or(0)).collect();
        ids.resize(self.generator.batch(), 0);
        let logits = self.generator.push(&ids)?;
        let next = position + 1;
        for (i, row) in logits.chunks(logits.len() / ids.len()).enumerate() {
            let waits = |s: &&mut Sequence| !s.finished && s.prompt.len() as u64 <= next;
            let Some(sequence) = self.sequences.get_mut(i).filter(waits) else { continue };
            let id = choose(row, self.sampling, next).map_err(|error| GenerateError::Logits {
                error,
                position,
                sequence: i,
            })?;
            if is_end(id) {
                self.finish(i, Finish::Eos, &mut events);
                continue;
            }
            sequence.ids.push(id);
            events.push(Event::Token(i, id));
            if sequence.ids.len() as u64 >= self.max_tokens {
                self.finish(i, Finish::Length, &mut events);
            }
        }
        Ok(events)
    }

    fn finish(&mut self, i: usize, reason: Finish, events: &mut Vec<Event>) {
        if !std::mem::replace(&mut self.sequences[i].finished, true) {
            events.push(Event::Finished(i, reason));
        }
    }

    pub fn finished(&self) -> bool {
        self.sequences.iter().all(|s| s.finished)
    }
}

impl Sequence<'_> {
    fn id(&self, position: usize) -> Option<u32> {
        let made = || self.ids.get(position.checked_sub(self.prompt.len())?);
        self.prompt.get(position).or_else(made).copied()
    }
}
