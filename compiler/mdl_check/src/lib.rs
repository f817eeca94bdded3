//! From syntax trees to a checked program, and from a program with a preset to a graph.
//!
//! `load` brings in the imports, `check` elaborates every model with every preset, `build` makes
//! the graph of one entry. Checking and building are one walk, `elaborate`: sizes carry their
//! polynomial and their value side by side, so the rules are symbolic and the graph has numbers.
//! Nothing shape-related is left for later stages to find.

mod auxiliary;
mod bindings;
mod block;
mod builtin;
mod call;
pub mod check;
pub mod config;
pub mod config_json;
mod elaborate;
pub mod entry;
mod frame;
mod memo;
mod names;
pub mod nearest;
mod operation;
pub mod overrides;
pub mod program;
mod sample;
mod shape;
pub mod size;
mod sketch;
mod value;
mod work;
