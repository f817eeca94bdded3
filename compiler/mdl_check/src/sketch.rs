//! What a check keeps of a body: for each value what it is made from, and nothing of how.
//!
//! A check wants to know two things of a body that its types do not say: which weights a result
//! depends on, and what a call's value is made from. So its bodies have no operations.

use mdl_ir::graph::ValueId;

#[derive(Debug)]
pub struct Sketch {
    /// Where the arguments of each value end in `args`, which begin where those before end, and
    /// whether it comes from outside.
    ends: Vec<(u32, bool)>,
    args: Vec<ValueId>,
}

impl Default for Sketch {
    /// With room for what most bodies hold.
    fn default() -> Sketch {
        Sketch { ends: Vec::with_capacity(48), args: Vec::with_capacity(64) }
    }
}

impl Sketch {
    pub fn input(&mut self) -> ValueId {
        self.ends.push((self.args.len() as u32, true));
        ValueId(self.ends.len() as u32 - 1)
    }

    /// A value that is made from these.
    pub fn value(&mut self, args: impl IntoIterator<Item = ValueId>) -> ValueId {
        self.args.extend(args);
        self.ends.push((self.args.len() as u32, false));
        ValueId(self.ends.len() as u32 - 1)
    }

    pub fn is_input(&self, id: ValueId) -> bool {
        self.ends[id.index()].1
    }

    fn args(&self, id: ValueId) -> &[ValueId] {
        let start = id.index().checked_sub(1).map_or(0, |before| self.ends[before].0);
        &self.args[start as usize..self.ends[id.index()].0 as usize]
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Calls `found` for all that these are made from, themselves included. What it says no to is
    /// not followed any further. Each is found once, but for those before `since`: nothing is
    /// remembered of them, so that it costs no more than what was made after.
    pub fn each_source(
        &self,
        of: impl IntoIterator<Item = ValueId>,
        since: usize,
        mut found: impl FnMut(ValueId) -> bool,
    ) {
        let mut open: Vec<ValueId> = of.into_iter().collect();
        let mut seen = vec![false; self.ends.len().saturating_sub(since)];
        while let Some(id) = open.pop() {
            let before = id.index().checked_sub(since);
            let again = before.is_some_and(|at| std::mem::replace(&mut seen[at], true));
            if !again && found(id) {
                open.extend(self.args(id));
            }
        }
    }

    /// Which values these are made from.
    pub fn live(&self, of: impl IntoIterator<Item = ValueId>) -> Vec<bool> {
        let mut live = vec![false; self.ends.len()];
        self.each_source(of, 0, |id| {
            live[id.index()] = true;
            true
        });
        live
    }
}
