//! The flags of a training step, shared by `train`, `plan`, `build` and `bench`. Names and defaults
//! are those that common training scripts use.

pub mod bytes;
pub mod config_values;
pub mod device;
pub mod given;
pub mod mesh;
mod numbers;
pub mod request;
pub mod run;

use crate::Failure;
use crate::hardware::{Hardware, cores};
use clap::Args;
use config_values::ConfigValues;
use device::DeviceName;
use given::Given;
use mdl_ir::kernel::Target;
use mdl_passes::request::{MemoryRequest, Precision};
use mdl_train::session::Settings;
use numbers::{fraction, not_negative, share};
use request::RequestFlags;
use run::RunFlags;
use std::path::PathBuf;

/// All of them. A flag that a command has no use for is accepted and noted.
#[derive(Clone, Debug, Args)]
pub struct StepFlags {
    // First, since the others take their values away when they are parsed.
    #[command(flatten)]
    pub given: Given,
    #[command(flatten)]
    pub sources: SourceFlags,
    #[command(flatten)]
    pub model: ModelFlags,
    #[command(flatten)]
    pub training: TrainingFlags,
    #[command(flatten)]
    pub request: RequestFlags,
    #[command(flatten)]
    pub run: RunFlags,
}

impl StepFlags {
    /// The settings of a run. The machine of `--hardware` is a budget, unless flags say how memory
    /// is to be saved.
    pub fn settings(&self) -> Result<Settings, Failure> {
        let mut settings = self.request.settings(&self.training);
        if let Some(hardware) = self.sources.hardware
            && !self.request.is_explicit(&self.given)
        {
            let budget = hardware.machine()?.budget(settings.precision, self.training.target());
            settings.memory.budget = Some(budget);
        }
        Ok(settings)
    }

    /// Says on standard error which flags have no effect on this command. `without` are those that
    /// it never reads.
    pub fn note_without_effect(&self, without: &[String]) {
        if let Some(path) = &self.sources.config {
            eprintln!("note: flags of {} are in force", path.display());
        }
        for (flag, why) in self.request.without_effect(&self.given) {
            eprintln!("note: --{flag} has no effect yet: {why}");
        }
        let unread: Vec<String> = without
            .iter()
            .filter(|flag| self.given.has(flag))
            .map(|flag| format!("--{flag}"))
            .collect();
        if !unread.is_empty() {
            eprintln!("note: without effect on this command: {}", unread.join(", "));
        }
    }
}

/// Where flags come from besides the command line, which wins.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Presets of flags")]
pub struct SourceFlags {
    /// A TOML file whose keys are names of flags
    #[arg(long, value_name = "RUN.toml")]
    pub config: Option<PathBuf>,
    /// Batch size, mesh and offload for a machine, within the memory of each of its devices; `plan`
    /// says what fits there. Kernels are those of --device
    #[arg(long)]
    pub hardware: Option<Hardware>,
}

/// Which model it is.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelFlags {
    /// A preset of the model file; without FILE, of the embedded model that has it
    #[arg(long)]
    pub preset: Option<String>,
    /// llama_v2, llama_v3, mistral, mixtral: the model file where FILE is not given
    #[arg(long = "model_type", value_name = "FAMILY")]
    pub model_type: Option<String>,
    #[command(flatten)]
    pub values: ConfigValues,
}

/// What a step computes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Training")]
pub struct TrainingFlags {
    /// Sequences per micro-batch, and per step where it has one
    #[arg(long = "train_batch_size", default_value_t = 1, value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub train_batch_size: u64,
    /// Micro-batches per step: their gradients are added up, in the memory of one of them
    #[arg(long = "gradient_accumulation", default_value_t = 1, value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..=1 << 16))]
    pub gradient_accumulation: u64,
    /// Sequences per validation batch
    #[arg(long = "val_batch_size", default_value_t = 1, value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub val_batch_size: u64,
    /// Tokens per sequence; a setting of the run, not of the model
    #[arg(long = "max_context_width", default_value_t = 256, value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    pub max_context_width: u64,
    /// Optimizer steps
    #[arg(long = "max_steps", default_value_t = 5000, value_name = "N")]
    pub max_steps: u64,
    /// Highest learning rate
    #[arg(long, default_value_t = 1e-4, value_name = "X", value_parser = not_negative)]
    pub lr: f64,
    /// Learning rate at the end of the decay
    #[arg(long = "min_lr", default_value_t = 1e-5, value_name = "X", value_parser = not_negative)]
    pub min_lr: f64,
    /// constant, linear, cosine, exponential or wsd
    #[arg(long = "lr_decay_style", default_value = "cosine", value_name = "STYLE")]
    pub lr_decay_style: String,
    /// Steps until `min_lr` is reached [default: max_steps]
    #[arg(long = "lr_decay_iters", value_name = "N")]
    pub lr_decay_iters: Option<u64>,
    /// Fraction of the decay steps that warm up, from 0 to 1
    #[arg(long, default_value_t = 0.0032, value_name = "X", value_parser = fraction)]
    pub warmup: f64,
    /// AdamW's decay of weights, per step a fraction lr · X
    #[arg(long = "weight_decay", default_value_t = 0.2, value_name = "X",
        value_parser = not_negative)]
    pub weight_decay: f64,
    /// What weight decay applies to: all or matrices
    #[arg(long, default_value = "all", value_parser = ["all", "matrices"], value_name = "WHAT")]
    pub decay: String,
    /// AdamW's share of the first moment that a step keeps
    #[arg(long, default_value_t = 0.9, value_name = "X", value_parser = share)]
    pub beta1: f64,
    /// AdamW's share of the second moment that a step keeps
    #[arg(long, default_value_t = 0.95, value_name = "X", value_parser = share)]
    pub beta2: f64,
    /// Largest global norm of the gradients; 0 does not clip
    #[arg(long = "grad_clip", default_value_t = 1.0, value_name = "X", value_parser = not_negative)]
    pub grad_clip: f64,
    /// Initial weights and the order of the data follow from it
    #[arg(long, default_value_t = 12345, value_name = "N")]
    pub seed: u64,
    /// Threads of the CPU [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
    /// What computes: cpu; cuda, an NVIDIA GPU; wgpu, a GPU through Vulkan, Metal or DirectX
    #[arg(long, value_enum, default_value = "cpu", value_name = "DEVICE")]
    pub device: DeviceName,
}

impl TrainingFlags {
    /// With nothing asked about memory and precision.
    pub fn settings(&self) -> Settings {
        Settings {
            batch: self.train_batch_size,
            gradient_accumulation: self.gradient_accumulation,
            t: self.max_context_width,
            val_batch: self.val_batch_size,
            max_steps: self.max_steps,
            lr: self.lr,
            min_lr: self.min_lr.min(self.lr),
            lr_decay_style: self.lr_decay_style.clone(),
            lr_decay_iters: self.lr_decay_iters.unwrap_or(self.max_steps),
            warmup: self.warmup,
            weight_decay: self.weight_decay,
            matrices_only: self.decay == "matrices",
            beta1: self.beta1,
            beta2: self.beta2,
            grad_clip: self.grad_clip,
            seed: self.seed,
            memory: MemoryRequest::default(),
            precision: Precision::default(),
            optimizer_state: Precision::default(),
            disk_offload: None,
        }
    }

    /// What plans are made for.
    pub fn target(&self) -> Target {
        self.device.target(self.units())
    }

    pub fn units(&self) -> u32 {
        self.threads.unwrap_or_else(cores).max(1)
    }
}
