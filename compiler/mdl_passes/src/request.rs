//! What a run asks of the compiler besides the model and the optimizer: how memory is saved, and
//! with which numbers it computes. Plain data; a pass is given the part that it needs.

use crate::executable::Speed;
use mdl_ir::kernel::Target;
use mdl_ir::op::Group;
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
    /// The ranks among which the step and its state are divided; none where there is one device.
    pub mesh: Option<Mesh>,
    /// Sections of gradients besides the first one, for partial sums over micro-batches of a mesh.
    /// It follows from how many of those a rank has.
    pub partial_sums: u64,
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
    /// What workspaces are sized for.
    pub target: Target,
    pub speed: Speed,
    /// Where nothing fits, the plan that needs the least is taken and nothing is refused: for
    /// somebody who wants to know by how much it does not fit.
    #[serde(default)]
    pub or_least: bool,
}

/// Ranks: machines with as many devices each. Those of a machine have numbers in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mesh {
    pub machines: u64,
    pub devices: u64,
}

impl Mesh {
    /// A mesh, or why there is none. Gradients are summed in a binary tree over the ranks, so both
    /// numbers are powers of two.
    pub fn new(machines: u64, devices: u64) -> Result<Mesh, String> {
        for n in [machines, devices] {
            if !n.is_power_of_two() || n > Mesh::MOST {
                let most = Mesh::MOST;
                return Err(format!("a mesh has 1, 2, 4, 8, … or {most} of each, not {n}"));
            }
        }
        Ok(Mesh { machines, devices })
    }

    /// Machines, or devices of one, at most.
    const MOST: u64 = 1 << 10;

    pub fn ranks(&self) -> u64 {
        self.machines * self.devices
    }
}

/// A state in pieces, one on each rank of a group, and the same in every such group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Division {
    pub pieces: u64,
    pub copies: u64,
}

impl Division {
    /// The ranks that together have the state.
    pub fn within(&self) -> Group {
        Group { ranks: self.pieces, stride: 1 }
    }

    /// The ranks that have the same piece.
    pub fn across(&self) -> Group {
        Group { ranks: self.copies, stride: self.pieces }
    }
}

impl MemoryRequest {
    /// How the state is divided, where there is a mesh.
    pub fn division(&self) -> Option<Division> {
        self.mesh.map(|mesh| match self.sharding {
            Sharding::None => Division { pieces: 1, copies: mesh.ranks() },
            Sharding::Full => Division { pieces: mesh.ranks(), copies: 1 },
            Sharding::Hybrid => Division { pieces: mesh.devices, copies: mesh.machines },
        })
    }
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
