//! Replaces calls that no kernel computes by their bodies.
//!
//! A function with a kernel may be called with a mask, or on tensors laid out in an order, that the
//! kernel does not know. Its body is its meaning, so the call becomes what the body says, and later
//! passes differentiate and fuse that like anything else.

use crate::specs;
use mdl_ir::build::Builder;
use mdl_ir::graph::{Body, Graph, Node, ValueId};
use mdl_ir::op::{Kernel, Op};
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
            Op::Repeat { .. } => repeat(&mut b, body, node, &mut map)?,
            _ => b.copy_node(body, node, &mut map)?,
        }
    }
    let outputs = body.outputs.iter().map(|o| map[o]).collect();
    Ok(b.finish(outputs))
}

/// Does the kernel compute this call?
fn computes(kernel: Kernel, axes: &[String], body: &Body) -> bool {
    match kernel {
        Kernel::Attention | Kernel::AttentionGrad => specs::attention(body, axes).is_ok(),
        Kernel::LinearCrossEntropy | Kernel::LinearCrossEntropyGrad => {
            specs::linear_cross_entropy(body, axes, false).is_ok()
        }
        Kernel::SumOfSquares | Kernel::AdamW | Kernel::Contraction | Kernel::Region => true,
    }
}

fn repeat(
    b: &mut Builder,
    outer: &Body,
    node: &Node,
    map: &mut HashMap<ValueId, ValueId>,
) -> Result<(), String> {
    let Op::Repeat { axis, count, reverse, carries, consts, body } = &node.op else {
        return Err("a repeated region".into());
    };
    let op = Op::Repeat {
        axis: axis.clone(),
        count: *count,
        reverse: *reverse,
        carries: *carries,
        consts: *consts,
        body: Box::new(unfold_body(body)?),
    };
    let args = node.args.iter().map(|a| map[a]).collect();
    let results = node.results.iter().map(|r| outer.values[r.index()].clone());
    let ids = b.node(op, args, results.map(|v| (v.name, v.ty)).collect(), node.span);
    map.extend(node.results.iter().copied().zip(ids));
    Ok(())
}
