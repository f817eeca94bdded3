//! The CPU as a device: a server of CubeCL's whose kernels are compiled in parallel and kept.
//!
//! CubeCL's own server compiles a kernel when it is launched, one after the other, and its compiled
//! kernels cannot be taken out of it. So launches are ours, from the table of kernels (`table`) to
//! the threads that run them (`threads`), and memory stays with CubeCL's server. `workers` compile
//! for any device.

mod code;
mod lower;
mod server;
mod store;
mod table;
mod threads;
mod workers;

pub(crate) use code::{compiler, cpu_name};
#[cfg(feature = "cuda")]
pub(crate) use server::Whole;
pub(crate) use server::{HostServer, Requested};
pub use store::Store;
#[cfg(feature = "cuda")]
pub(crate) use workers::{Slot, compile, key, store};
