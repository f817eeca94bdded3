//! How much elaboration has done so far: a few lines that double each other would otherwise ask
//! for any amount of work.

use crate::memo::Memo;
use mdl_symbol::Quick;
use mdl_syntax::span::Span;
use std::collections::HashSet;
use std::hash::BuildHasherDefault;

/// Steps of one check, or of one graph: an expression is one.
pub const MAX_STEPS: usize = 10_000_000;
/// Steps that an operation costs, for it takes memory too.
pub const OPERATION: usize = 10;

/// Functions, methods and blocks that were expanded, by the place of their names.
pub type Reached = HashSet<Span, BuildHasherDefault<Quick>>;

/// What has been done.
#[derive(Clone, Debug, Default)]
pub struct Work {
    steps: usize,
    /// Calls that need not be expanded again. Who has it wants no graph.
    pub memo: Option<Memo>,
    pub reached: Reached,
}

/// Whether there was enough left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spent {
    Yes,
    /// This was the step that is too much.
    Last,
    /// An earlier one was.
    Over,
}

impl Work {
    pub fn with_memo() -> Work {
        Work { memo: Some(Memo::default()), ..Work::default() }
    }

    pub fn steps(&self) -> usize {
        self.steps
    }

    pub fn spend(&mut self, cost: usize) -> Spent {
        let before = self.steps;
        self.steps = before.saturating_add(cost);
        match (before > MAX_STEPS, self.steps > MAX_STEPS) {
            (true, _) => Spent::Over,
            (false, true) => Spent::Last,
            _ => Spent::Yes,
        }
    }
}
