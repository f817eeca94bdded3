//! Placeholder.

pub mod checkpoint;
pub mod dataset;
pub mod log;
pub mod packing;
pub mod plot;
mod save;
pub mod tokenizer;
mod tokenizer_file;
pub mod weights;
