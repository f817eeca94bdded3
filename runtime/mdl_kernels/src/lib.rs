//! The kernels and the device they run on: each `KernelSpec` has one launch here.
//!
//! A `Device` is one stream, so launches run in the order they are issued. Nothing is allocated
//! by a launch: every tensor is a `Slice` of an `Arena`.

// Kernel bodies are written in CubeCL's language, which has no iterators over buffers, no division
// rounded up on runtime values and no structs for argument lists.
#![allow(
    clippy::assign_op_pattern,
    clippy::needless_range_loop,
    clippy::manual_div_ceil,
    clippy::too_many_arguments,
    clippy::explicit_auto_deref,
    clippy::borrow_deref_ref
)]

mod attention;
mod attention_grad;
mod contract;
mod contract_pack;
mod contract_pairs;
mod contract_plan;
mod contract_rotary;
mod contract_skinny;
mod contract_tile;
mod device;
mod embedding;
mod exchange;
mod gpu;
mod grouped;
mod host;
mod large_pages;
mod launch;
mod linear_cross_entropy;
mod optimizer;
mod pairs;
#[cfg(feature = "cuda")]
mod paper;
mod peak;
mod prefetch;
mod products;
mod program;
mod record;
mod region;
mod state_files;
mod stream;
mod tiles;
mod transfer;
mod tuning;
mod vector_io;

pub use device::{Arena, Class, Device, KernelError, MemoryUse, Slice};
pub use exchange::{Exchange, Seat};
pub use host::Store;
#[cfg(feature = "cuda")]
pub use paper::{Compiled, Paper, Ptx};
pub use peak::{measure_bf16_peak, measure_fma_peak, measure_triad};
pub use products::Products;
pub use record::Repeated;
pub use state_files::{StateFileError, StateFiles, free_bytes};
pub use transfer::{Copier, Job, Side, Together, Transfer};
pub use tuning::{Blocks, Cpu, Rows, Table, Tuned};
