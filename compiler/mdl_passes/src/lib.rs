//! Passes over graphs, and the way from a fused graph to a schedule, a plan and an executable.

pub mod adjoint;
pub mod differentiate;
pub mod hoist;
pub mod optimise;
pub mod fuse;
pub mod group;
