//! Generation: the incremental step with its key and value caches, one token after the other.

use crate::machine::Machine;
use crate::model::{Model, ModelError, read_param};
use crate::weights::Weights;
use mdl_check::entry::EntryOptions;
use mdl_driver::pipeline::{Purpose, finish, run, state_layout};
use mdl_ir::graph::InputRole;
use mdl_ir::interp::mix;
use mdl_kernels::Device;
use mdl_passes::incremental::{START, incremental};
use std::sync::Arc;

/// A model that goes on from the tokens it has seen.
#[derive(Debug)]
pub struct Generator {
    machine: Machine,
    position: u64,
    capacity: u64,
}

impl Generator {
    /// Room for `capacity` tokens, prompt included.
    pub fn open(
        model: &mut Model,
        weights: &Weights,
        capacity: u64,
        device: Arc<Device>,
    ) -> Result<Generator, ModelError> {
        let sizes = vec![("B".to_string(), 1), ("T".to_string(), 1)];
        let graph =
            model.graph("logits", &EntryOptions { sizes, documents: false, auxiliary: false })?;
        let graph = incremental(&graph, "T", capacity.max(1)).map_err(ModelError::Asked)?;
        let trace = run(graph, &mut model.front, &Purpose::Forward)?;
        let state = state_layout(trace.last(), &Purpose::Forward);
        let executable = finish(trace.last(), &state, device.units())?;
        let machine = Machine::new(device, executable);
        for (p, param) in trace.last().params.iter().enumerate() {
            machine.write_input(&InputRole::Param(p), &read_param(weights, param)?);
        }
        Ok(Generator { machine, position: 0, capacity })
    }

    /// Logits after one more token. None where the capacity is used up.
    pub fn push(&mut self, id: u32) -> Option<Vec<f32>> {
        if self.position >= self.capacity {
            return None;
        }
        self.machine.write_data(START, &[self.position as i32]);
        self.machine.write_data("tokens", &[id as i32]);
        self.machine.run();
        self.position += 1;
        self.machine.read_value("logits")
    }
}

/// How the next token is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// 0 takes the most likely token.
    pub temperature: f64,
    pub seed: u64,
}

/// The next token: a function of the logits, the seed and the position alone.
pub fn choose(logits: &[f32], sampling: Sampling, position: u64) -> u32 {
    let best = |a: &(usize, &f32), b: &(usize, &f32)| a.1.total_cmp(b.1).then(b.0.cmp(&a.0));
    let top = logits.iter().enumerate().max_by(best).map_or(0, |(i, _)| i);
    if sampling.temperature <= 0.0 {
        return top as u32;
    }
    let scale = 1.0 / sampling.temperature;
    let highest = f64::from(logits[top]);
    let weight = |x: &f32| ((f64::from(*x) - highest) * scale).exp();
    let total: f64 = logits.iter().map(weight).sum();
    let bits = mix(mix(sampling.seed) ^ position) >> 11;
    let mut left = bits as f64 / (1u64 << 53) as f64 * total;
    for (i, x) in logits.iter().enumerate() {
        left -= weight(x);
        if left < 0.0 {
            return i as u32;
        }
    }
    top as u32
}
