//! The graph that every pass of the compiler reads and writes, its text form, its verifier and its
//! meaning.
//!
//! A `Graph` is one entry of a model (a loss, logits, a training step) with concrete sizes. Its
//! `Body` is in SSA form; repeated regions and annotated functions are nodes that hold a body of
//! their own and capture nothing: everything that a nested body uses comes in as an argument.

pub mod active;
pub mod build;
pub mod cost;
pub mod graph;
mod grouped;
pub mod infer;
pub mod interp;
pub mod kernel;
pub mod op;
pub mod place;
pub mod print;
pub mod reach;
pub mod read;
pub mod rounding;
pub mod tensor;
pub mod tensor_type;
pub mod verify;
