//! Replaces calls that no kernel computes by their bodies.
//!
//! A function with a kernel may be called with a mask, or on tensors laid out in an order, that the
//! kernel does not know. Its body is its meaning, so the call becomes what the body says, and later
//! passes differentiate and fuse that like anything else.

use crate::specs;
use mdl_ir::build::Builder;
use mdl_ir::graph::{Body, Graph, ValueId};
use mdl_ir::op::{Kernel, Op};
use mdl_symbol::Symbol;
use std::collections::HashMap;

pub fn unfold(graph: &Graph) -> Result<Graph, String> {
    Ok(Graph { body: unfold_body(&graph.body)?, ..graph.clone() })
}

fn unfold_body(body: &Body) -> Result<Body, String> {
    let mut b = Builder::default();
    let mut map: HashMap<ValueId, ValueId> = HashMap::new();
    for input in &body.inputs {
        map.insert(*input, b.input(body.name(*input), body.ty(*input).clone()));
    }
    for node in &body.nodes {
        match &node.op {
            Op::Call { kernel, axes, body: inner } if !computes(*kernel, axes, inner) => {
                let args: Vec<ValueId> = node.args.iter().map(|a| map[a]).collect();
                let results = b.inline(inner, &args)?;
                map.extend(node.results.iter().copied().zip(results));
            }
            Op::Repeat { body: inner, .. } => {
                b.copy_region(body, node, unfold_body(inner)?, &mut map)?;
            }
            _ => b.copy_node(body, node, &mut map)?,
        }
    }
    let outputs = body.outputs.iter().map(|o| map[o]).collect();
    Ok(b.finish(outputs))
}

/// Does the kernel compute this call?
fn computes(kernel: Kernel, axes: &[Symbol], body: &Body) -> bool {
    match kernel {
        Kernel::Attention | Kernel::AttentionGrad => specs::attention(body, axes).is_ok(),
        Kernel::LinearCrossEntropy | Kernel::LinearCrossEntropyGrad => {
            specs::linear_cross_entropy(body, axes, false).is_ok()
        }
        Kernel::SumOfSquares | Kernel::AdamW | Kernel::Contraction | Kernel::Region => true,
    }
}
