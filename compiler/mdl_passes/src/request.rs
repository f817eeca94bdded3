//! What a run asks of the compiler besides the model and the optimizer: how memory is saved, and
//! with which numbers it computes. Plain data; a pass is given the part that it needs.

use crate::executable::Speed;
use serde::{Deserialize, Serialize};

/// Ways to need less device memory, each at a price in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryRequest {
    /// What a layer keeps for its gradient is computed again when the gradient needs it.
    pub activation_checkpointing: bool,
    /// What a layer keeps for its gradient waits in host memory.
    pub offload_activations: bool,
    /// Parameters, gradients and moments live in host memory, and come in where they are used.
    pub cpu_offload: bool,
    /// That part of host memory is files on disk.
    pub state_on_disk: bool,
    pub sharding: Sharding,
    /// The bytes that a step may take; the compiler then chooses what is saved.
    pub budget: Option<Budget>,
}

/// A bound on the memory of a device and of its host, and what the choice within it goes by.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    pub device: u64,
    /// None where there is no bound. What is on disk does not count.
    #[serde(default)]
    pub host: Option<u64>,
    /// Threads that workspaces are sized for.
    pub threads: u32,
    pub speed: Speed,
    /// Where nothing fits, the plan that needs the least is taken and nothing is refused: for
    /// somebody who wants to know by how much it does not fit.
    #[serde(default)]
    pub or_least: bool,
}

/// How the state is divided among devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sharding {
    /// Every device has all of it.
    None,
    /// Every device has its part of parameters, gradients and moments.
    #[default]
    Full,
    /// In parts within a machine, the same on every machine.
    Hybrid,
}

/// How numbers are stored: parameters, gradients and activations by one of these, the optimizer's
/// state by another one. Arithmetic and sums are always f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Precision {
    #[default]
    F32,
    Bf16,
}
