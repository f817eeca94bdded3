//! Flags that ask the compiler to save memory, or to compute with narrower numbers.

use super::TrainingFlags;
use super::bytes::Bounds;
use super::given::Given;
use crate::hardware::speed_of_cpu;
use clap::{Args, ValueEnum};
use mdl_passes::request::{Budget, MemoryRequest, Mesh, Precision, Sharding};
use mdl_train::session::Settings;
use std::path::PathBuf;

/// Requests of a run. Some have no pass yet, and `without_effect` says so.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Memory and precision (0 is off, 1 is on)")]
pub struct RequestFlags {
    /// Parameters, gradients and activations in bf16, with f32 arithmetic and f32 master weights
    #[arg(long, default_value_t = 0, value_name = "0|1",
        value_parser = clap::value_parser!(u8).range(0..=1))]
    bf16: u8,
    /// How moments are kept: f32, or with --bf16=1 bf16, where parameters are then rounded by
    /// chance and have no master copy
    #[arg(long = "optimizer_state", default_value = "f32", value_parser = ["f32", "bf16"],
        value_name = "TYPE")]
    optimizer_state: String,
    /// Compute activations again for the gradient in place of keeping them
    #[arg(long = "activation_checkpointing", default_value_t = 0, value_name = "0|1",
        value_parser = clap::value_parser!(u8).range(0..=1))]
    activation_checkpointing: u8,
    /// Keep activations in host memory until the gradient needs them
    #[arg(long = "offload_activations", default_value_t = 0, value_name = "0|1",
        value_parser = clap::value_parser!(u8).range(0..=1))]
    offload_activations: u8,
    /// Keep parameters, gradients and moments in host memory, and bring in what is being computed
    #[arg(long = "cpu_offload", default_value_t = 0, value_name = "0|1",
        value_parser = clap::value_parser!(u8).range(0..=1))]
    cpu_offload: u8,
    /// Keep the state in files in this folder, which are scratch of this run, and bring in what is
    /// being computed; with --cpu_offload or without it
    #[arg(long = "disk_offload", value_name = "DIR")]
    disk_offload: Option<PathBuf>,
    /// Bytes that a step may take, such as 8GiB or device=8GiB,host=64GiB: the compiler chooses
    /// what is saved and what is computed again, as fast as fits
    #[arg(long, value_name = "BYTES", value_parser = super::bytes::bounds)]
    memory: Option<Bounds>,
    /// Ranks that share a step, such as 8, or 2x4 for 2 machines of 4 devices: each has
    /// micro-batches of its own, and they run in this process
    #[arg(long, value_name = "N|MxD", value_parser = super::mesh::mesh)]
    mesh: Option<Mesh>,
    /// How the state is divided among the ranks of --mesh
    #[arg(long = "sharding_strategy", default_value = "full")]
    sharding_strategy: Strategy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Strategy {
    /// Every device has its part
    Full,
    /// In parts within a machine, the same on every machine
    Hybrid,
    /// Every device has all of it
    #[value(alias = "0")]
    None,
}

impl RequestFlags {
    fn memory(&self, training: &TrainingFlags) -> MemoryRequest {
        let (target, speed) = (training.target(), speed_of_cpu(training.units()));
        MemoryRequest {
            budget: self.memory.map(|Bounds { device, host }| Budget {
                device: device.unwrap_or(u64::MAX),
                host,
                target,
                speed,
                or_least: false,
            }),
            activation_checkpointing: self.activation_checkpointing == 1,
            offload_activations: self.offload_activations == 1,
            cpu_offload: self.cpu_offload == 1 || self.disk_offload.is_some(),
            state_on_disk: self.disk_offload.is_some(),
            sharding: match self.sharding_strategy {
                Strategy::Full => Sharding::Full,
                Strategy::Hybrid => Sharding::Hybrid,
                Strategy::None => Sharding::None,
            },
            mesh: self.mesh,
            partial_sums: 0,
        }
    }

    /// Does the user say how memory is to be saved?
    pub fn is_explicit(&self, given: &Given) -> bool {
        let flags = ["memory", "activation_checkpointing", "offload_activations"];
        flags.iter().any(|flag| given.has(flag))
    }

    /// What a run decides, with these requests.
    pub fn settings(&self, training: &TrainingFlags) -> Settings {
        let bits = |narrow| if narrow { Precision::Bf16 } else { Precision::F32 };
        Settings {
            memory: self.memory(training),
            precision: bits(self.bf16 == 1),
            optimizer_state: bits(self.optimizer_state == "bf16"),
            disk_offload: self.disk_offload.clone(),
            ..training.settings()
        }
    }

    /// The requests that were made and that nothing grants, each with what is done instead.
    pub fn without_effect(&self, given: &Given) -> Vec<(String, &'static str)> {
        let mut found = Vec::new();
        let divided = self.mesh.is_some() || self.sharding_strategy == Strategy::None;
        if given.has("sharding_strategy") && !divided {
            let name = self.sharding_strategy.to_possible_value();
            let name = name.map_or(String::new(), |value| value.get_name().to_string());
            let why = "without --mesh a run has one device, which has all of the state";
            found.push((format!("sharding_strategy={name}"), why));
        }
        found
    }
}
