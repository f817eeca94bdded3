//! A run of an executable in which every launch is timed where it stands: on the data and in the
//! caches that the launches before it have left.

use crate::machine::Machine;
use mdl_passes::executable::{Launch, Step};
use std::time::{Duration, Instant};

/// Runs the executable as `Machine::run` does, but each launch ends before the next one begins, and
/// transfers go on beside nothing.
pub fn each_launch(machine: &Machine, timed: &mut dyn FnMut(&Launch, Duration)) {
    machine.device.sync();
    for step in &machine.executable.steps {
        match step {
            Step::Launch(launch) => time(machine, launch, 0, timed),
            Step::Loop { count, body } => {
                // Launches in the order in which they are issued: what one waits for has ended.
                let ahead = body.iter().map(|l| l.ahead).max().unwrap_or(0) as i64;
                for now in -ahead..*count as i64 {
                    let issued = body.iter().map(|launch| (launch, now + launch.ahead as i64));
                    for (launch, i) in issued.filter(|(_, i)| (0..*count as i64).contains(i)) {
                        time(machine, launch, i as u64, timed);
                    }
                }
            }
        }
    }
}

fn time(machine: &Machine, launch: &Launch, i: u64, timed: &mut dyn FnMut(&Launch, Duration)) {
    if machine.is_transfer(launch) {
        let start = Instant::now();
        let number = machine.send(launch, i);
        machine.copier().wait(number);
        return timed(launch, start.elapsed());
    }
    timed(launch, machine.device.timed(|| machine.launch(launch, i)));
}
