//! Keeps the whole state in the host's memory: parameters come in where they are used, gradients
//! leave where they are made (see `movement`). Lowering brings the state to the optimizer's calls
//! chunk by chunk.
//!
//! The pass comes after fusion, so that no kernel depends on it, and with that no bit.

use crate::movement::{Ways, with_movement};
use crate::offload::{COMES, LEAVES};
use mdl_ir::graph::Graph;

/// A fused graph whose state is in the host's memory.
pub fn stream(graph: &Graph) -> Graph {
    with_movement(graph, &Ways { comes: Some(COMES), leaves: vec![LEAVES] })
}
