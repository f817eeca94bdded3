//! Passes over graphs, and the way from a fused graph to an executable.

pub mod adjoint;
pub mod arena;
mod arena_tree;
mod ask;
pub mod differentiate;
pub mod executable;
pub mod fuse;
pub mod group;
pub mod hoist;
pub mod incremental;
pub mod layout;
pub mod lower;
mod lower_kernel;
mod lower_repeat;
pub mod mask;
pub mod micro_batch;
pub mod optimise;
pub mod plan;
pub mod recompute;
pub mod region;
pub mod request;
pub mod saving;
mod specs;
mod specs_grouped;
pub mod unfold;
