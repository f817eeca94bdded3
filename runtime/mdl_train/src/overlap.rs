//! A loop with transfers: two queues side by side, with the waits between them that the plan
//! states.

use crate::machine::Machine;
use mdl_passes::executable::{Launch, Wait};
use std::collections::HashMap;

pub(crate) struct Overlap<'m> {
    machine: &'m Machine,
    count: u64,
    body: &'m [Launch],
    /// Number in its queue of what was issued, by its place in the body and its iteration.
    issued: HashMap<(usize, u64), u64>,
    /// Kernels that were issued, and those that are known to have ended.
    kernels: u64,
    ended: u64,
}

impl<'m> Overlap<'m> {
    pub(crate) fn new(machine: &'m Machine, count: u64, body: &'m [Launch]) -> Overlap<'m> {
        Overlap { machine, count, body, issued: HashMap::new(), kernels: 0, ended: 0 }
    }

    pub(crate) fn run(mut self) {
        self.machine.device.sync();
        let body = self.body;
        // Iterations before the first one have only what is issued ahead.
        let ahead = body.iter().map(|l| l.ahead).max().unwrap_or(0) as i64;
        for now in -ahead..self.count as i64 {
            for (place, launch) in body.iter().enumerate() {
                let i = now + launch.ahead as i64;
                if (0..self.count as i64).contains(&i) {
                    self.issue(place, launch, i as u64);
                }
            }
        }
        self.machine.copier().wait_for_all();
    }

    fn issue(&mut self, place: usize, launch: &Launch, i: u64) {
        let transfer = self.machine.is_transfer(launch);
        let of_other = |wait: &Wait| {
            let other = u64::try_from(i as i64 - wait.lag).ok()?;
            self.issued.get(&(wait.launch, other)).copied()
        };
        if let Some(number) = launch.wait.iter().filter_map(of_other).max() {
            if !transfer {
                self.machine.copier().wait(number);
            } else if number > self.ended {
                self.machine.device.sync();
                self.ended = self.kernels;
            }
        }
        let number = if transfer {
            self.machine.send(launch, i)
        } else {
            self.machine.launch(launch, i);
            self.kernels += 1;
            self.kernels
        };
        self.issued.insert((place, i), number);
    }
}
