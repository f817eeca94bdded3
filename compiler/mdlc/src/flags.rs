//! The training flags, shared by `train`, `plan` and `bench step`.

use clap::Args;
use mdl_train::session::Settings;

/// Names and defaults are those of the guide that the project starts from.
#[derive(Clone, Debug, Args)]
pub struct TrainingFlags {
    /// Sequences per step
    #[arg(long = "train_batch_size", default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub train_batch_size: u64,
    /// Sequences per validation batch
    #[arg(long = "val_batch_size", default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub val_batch_size: u64,
    /// Tokens per sequence
    #[arg(long = "max_context_width", default_value_t = 256,
        value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    pub max_context_width: u64,
    /// Optimizer steps
    #[arg(long = "max_steps", default_value_t = 5000)]
    pub max_steps: u64,
    /// Highest learning rate
    #[arg(long, default_value_t = 1e-4)]
    pub lr: f64,
    /// Learning rate at the end of the decay
    #[arg(long = "min_lr", default_value_t = 1e-5)]
    pub min_lr: f64,
    /// constant, linear, cosine, exponential or wsd
    #[arg(long = "lr_decay_style", default_value = "cosine")]
    pub lr_decay_style: String,
    /// Steps until `min_lr` is reached [default: max_steps]
    #[arg(long = "lr_decay_iters")]
    pub lr_decay_iters: Option<u64>,
    /// Fraction of the decay steps that warm up
    #[arg(long, default_value_t = 0.0032)]
    pub warmup: f64,
    #[arg(long = "weight_decay", default_value_t = 0.2)]
    pub weight_decay: f64,
    /// What weight decay applies to: all or matrices
    #[arg(long, default_value = "all", value_parser = ["all", "matrices"])]
    pub decay: String,
    #[arg(long, default_value_t = 0.9)]
    pub beta1: f64,
    #[arg(long, default_value_t = 0.95)]
    pub beta2: f64,
    /// Largest global norm of the gradients; 0 does not clip
    #[arg(long = "grad_clip", default_value_t = 1.0)]
    pub grad_clip: f64,
    #[arg(long, default_value_t = 12345)]
    pub seed: u64,
    /// Threads of the CPU [default: all cores]
    #[arg(long)]
    pub threads: Option<u32>,
}

impl TrainingFlags {
    pub fn settings(&self) -> Settings {
        Settings {
            batch: self.train_batch_size,
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
        }
    }

    pub fn units(&self) -> u32 {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        self.threads.unwrap_or(cores).max(1)
    }
}
