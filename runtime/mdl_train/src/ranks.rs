//! The ranks of a mesh inside this process: each has machines of its own and a thread, and all of
//! them meet in collectives. They share the one device, and all run the same executables.

use crate::machine::{Machine, Room};
use crate::packing::{Batch, Evaluation};
use crate::session::{StepScalars, value, write_batch};
use mdl_ir::graph::InputRole;
use mdl_kernels::{Device, Exchange};
use mdl_passes::executable::Executable;
use mdl_passes::micro_batch::{SHARE, WEIGHT};
use std::sync::Arc;

/// What the ranks run besides the first micro-batch.
#[derive(Clone, Debug)]
pub struct RanksPlan {
    pub ranks: u64,
    /// Micro-batches that end a carry of the partial sums, by how far it goes, from 1.
    pub carries: Vec<Executable>,
    pub update: Executable,
}

#[derive(Debug)]
struct Rank {
    /// By how far the carry of a micro-batch goes.
    micro_batches: Vec<Machine>,
    update: Machine,
    validate: Machine,
}

impl Rank {
    /// The machine of a rank's micro-batch, by its number from 0.
    fn of_micro_batch(&self, i: usize) -> &Machine {
        &self.micro_batches[i.trailing_ones() as usize]
    }
}

#[derive(Debug)]
pub struct Ranks {
    ranks: Vec<Rank>,
    exchange: Arc<Exchange>,
}

/// Lets the others go on when a rank panics.
struct Present<'a>(&'a Exchange);

impl Drop for Present<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.abort();
        }
    }
}

impl Ranks {
    /// Allocates this room for every rank.
    pub fn new(
        device: &Arc<Device>,
        (first, plan): (Executable, RanksPlan),
        validate: &Executable,
        room: Room,
    ) -> Ranks {
        let exchange = Arc::new(Exchange::new(plan.ranks));
        let machines = Machine::of_ranks(device, &first, room, &exchange, plan.ranks);
        let rank = |first: Machine| {
            let (update, validate) =
                (first.beside(plan.update.clone()), first.beside(validate.clone()));
            let carries: Vec<Machine> =
                plan.carries.iter().map(|e| first.beside(e.clone())).collect();
            let micro_batches = std::iter::once(first).chain(carries).collect();
            Rank { micro_batches, update, validate }
        };
        Ranks { ranks: machines.into_iter().map(rank).collect(), exchange }
    }

    /// The machine of the first rank.
    pub fn first(&self) -> &Machine {
        &self.ranks[0].micro_batches[0]
    }

    /// The machine of each rank that sees all of its state.
    pub fn machines(&self) -> impl Iterator<Item = &Machine> {
        self.ranks.iter().map(|rank| &rank.update)
    }

    /// Does something on every rank at the same time; results are in the order of the ranks.
    fn together<T: Send>(&self, work: impl Fn(usize, &Rank) -> T + Sync) -> Vec<T> {
        let exchange = &self.exchange;
        std::thread::scope(|scope| {
            let work = &work;
            let on = |(r, rank)| {
                scope.spawn(move || {
                    let _present = Present(exchange);
                    work(r, rank)
                })
            };
            let threads: Vec<_> = self.ranks.iter().enumerate().map(on).collect();
            let end = |thread: std::thread::ScopedJoinHandle<'_, T>| match thread.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            threads.into_iter().map(end).collect()
        })
    }

    /// One optimizer step: loss and gradient norm. Micro-batch m is the one of rank m mod R, and
    /// counts by its part of the step's targets.
    pub(crate) fn step(
        &self,
        batch: &Batch,
        micro_batches: u64,
        scalars: &StepScalars,
    ) -> (f64, f64) {
        let n = self.ranks.len() * micro_batches as usize;
        let (targets, parts) = (batch.n_targets().max(1) as f64, batch.split(n));
        let reports = self.together(|r, rank| {
            let own = parts.iter().skip(r).step_by(self.ranks.len());
            let loss = |(i, part): (usize, &Batch)| {
                let machine = rank.of_micro_batch(i);
                machine.write_scalar(WEIGHT, (part.n_targets() as f64 / targets) as f32);
                machine.write_scalar(SHARE, (1.0 / n as f64) as f32);
                write_batch(machine, part);
                machine.run();
                value(machine, "loss")
            };
            let losses: Vec<f64> = own.enumerate().map(loss).collect();
            scalars.write(&rank.update);
            rank.update.run();
            (losses, value(&rank.update, "grad_norm"))
        });
        let loss = |m: usize| reports[m % reports.len()].0[m / reports.len()];
        ((0..n).map(loss).sum(), reports[0].1)
    }

    /// As `session::evaluate`: each rank has its turn of the batches, and all run equally often.
    pub fn evaluate(&self, data: &Evaluation, batch_size: usize, batches: usize) -> (f64, u64) {
        let all = data.n_windows().div_ceil(batch_size.max(1));
        let batches = if batches == 0 { all } else { batches.min(all) };
        let turns = batches.div_ceil(self.ranks.len());
        let found = self.together(|r, rank| {
            let turn = |turn: usize| {
                let i = turn * self.ranks.len() + r;
                // A batch behind the last one has no targets.
                let first = if i < batches { i * batch_size } else { data.n_windows() };
                let batch = data.batch(first, batch_size);
                write_batch(&rank.validate, &batch);
                rank.validate.run();
                (value(&rank.validate, "loss"), batch.n_targets() as u64)
            };
            (0..turns).map(turn).collect::<Vec<_>>()
        });
        let (mut sum, mut count) = (0.0, 0);
        for i in 0..batches {
            let (loss, targets) = found[i % found.len()][i / found.len()];
            sum += loss * targets as f64;
            count += targets;
        }
        (sum / count.max(1) as f64, count)
    }

    /// The values of a parameter or of a moment, from the pieces of all ranks.
    pub fn read_input(&self, role: &InputRole) -> Vec<f32> {
        let Some(slot) = self.ranks[0].update.executable.input(role) else { return Vec::new() };
        let mut values = vec![0.0; slot.ty.elements() as usize];
        let holders = slot.piece.map_or(1, |piece| piece.ranks as usize);
        self.ranks[..holders].iter().for_each(|rank| rank.update.read_into(slot, &mut values));
        values
    }

    /// Writes some of an input's values, on each rank those that it has.
    pub fn write_range(&self, role: &InputRole, start: u64, values: &[f32]) {
        self.ranks.iter().for_each(|rank| rank.update.write_range(role, start, values));
    }
}
