//! The training runtime: what happens around an executable. It decides nothing that the plan could
//! have decided.

pub mod against;
pub mod checkpoint;
pub mod compare;
pub mod dataset;
pub mod decoding;
pub mod evaluation;
pub mod export;
pub mod floats;
pub mod generate;
pub mod import;
pub mod initial;
pub mod log;
pub mod machine;
pub mod model;
mod overlap;
pub mod packing;
pub mod plot;
pub mod profile;
pub mod ranks;
pub mod resident;
pub mod runner;
mod save;
pub mod session;
pub mod step;
mod tensor_file;
pub mod tokenizer;
mod tokenizer_file;
pub mod tokenizer_train;
pub mod weights;
mod zstandard;
