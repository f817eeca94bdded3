//! Keeps the whole state in the host's memory: parameters come in where they are used, gradients
//! leave where they are made.
//!
//! A region sees one slice of its parameters in each iteration, and emits one of their gradients:
//! slices come in and leave as those of offloaded activations do. What belongs to no region comes
//! in before its use, and again after a region: a copy does not wait while layers are computed. The
//! optimizer's calls take the state where it lies, and lowering brings it chunk by chunk.
//!
//! The pass comes after fusion, so that no kernel depends on it, and with that no bit.

use crate::offload::{bring, send, transfer};
use mdl_ir::graph::{Body, Graph, InputRole, Node, OutputRole, ValueId};
use mdl_ir::op::{Kernel, Memory, Op};
use std::collections::{HashMap, HashSet};

/// A fused graph whose state is in the host's memory.
pub fn stream(graph: &Graph) -> Graph {
    let away = |role: &InputRole| {
        use InputRole::{Grad, Master, Moment1, Moment2, Param};
        matches!(role, Param(_) | Grad(_) | Moment1(_) | Moment2(_) | Master(_))
    };
    let leaves = |role: &OutputRole| {
        use OutputRole::{Grad, Master, Moment1, Moment2, Param};
        matches!(role, Param(_) | Grad(_) | Moment1(_) | Moment2(_) | Master(_))
    };
    let inputs = graph.body.inputs.iter().zip(&graph.inputs);
    let outputs = graph.body.outputs.iter().zip(&graph.outputs);
    let mut body = graph.body.clone();
    let nodes = std::mem::take(&mut body.nodes);
    let mut streaming = Streaming {
        users: graph.body.users(),
        state: inputs.filter(|(_, role)| away(role)).map(|(id, _)| *id).collect(),
        made: outputs.filter(|(_, role)| leaves(role)).map(|(id, _)| *id).collect(),
        nodes: &nodes,
        here: HashMap::new(),
        left: HashMap::new(),
        body,
    };
    for node in &nodes {
        streaming.node(node);
    }
    let left = streaming.left;
    let mut body = streaming.body;
    for output in &mut body.outputs {
        *output = left.get(output).copied().unwrap_or(*output);
    }
    Graph { body, ..graph.clone() }
}

struct Streaming<'a> {
    nodes: &'a [Node],
    users: Vec<Vec<usize>>,
    state: HashSet<ValueId>,
    /// Gradients, and parameters and moments after the update.
    made: HashSet<ValueId>,
    /// Copies of the state that are on the device now.
    here: HashMap<ValueId, ValueId>,
    /// Gradients that were made outside regions, as they are in the host's memory.
    left: HashMap<ValueId, ValueId>,
    body: Body,
}

/// Does this call take the state where it lies?
fn takes_state(node: &Node) -> bool {
    matches!(&node.op, Op::Call { kernel: Kernel::AdamW | Kernel::SumOfSquares, .. })
}

impl Streaming<'_> {
    fn node(&mut self, node: &Node) {
        let mut new = node.clone();
        if takes_state(node) {
            for a in &mut new.args {
                *a = self.left.get(a).copied().unwrap_or(*a);
            }
            self.body.nodes.push(new);
            return;
        }
        let region = matches!(node.op, Op::Repeat { .. });
        if region {
            self.here.clear();
        }
        let sliced = match &node.op {
            Op::Repeat { carries, consts, .. } => carries + consts,
            _ => node.args.len(),
        };
        for a in &mut new.args[..sliced] {
            *a = self.on_device(*a, node);
        }
        let left = self.slices(&mut new);
        self.body.nodes.push(new);
        if region {
            self.here.clear();
        }
        for r in node.results.iter().filter(|r| !left.contains(r)) {
            if self.made.contains(r) {
                let (leaves, id) = transfer(&mut self.body, *r, Memory::Host, node.span);
                self.body.nodes.push(leaves);
                self.left.insert(*r, id);
            }
        }
    }

    /// A value where kernels reach it.
    fn on_device(&mut self, value: ValueId, user: &Node) -> ValueId {
        if !self.state.contains(&value) {
            return value;
        }
        if let Some(copy) = self.here.get(&value) {
            return *copy;
        }
        let (comes, id) = transfer(&mut self.body, value, Memory::Device, user.span);
        self.body.nodes.push(comes);
        self.here.insert(value, id);
        id
    }

    /// Slices of a region's parameters come in, and those of gradients leave. Gives the results
    /// that are then in the host's memory.
    fn slices(&self, node: &mut Node) -> Vec<ValueId> {
        let (args, results, span) = (node.args.clone(), node.results.clone(), node.span);
        let Op::Repeat { body, carries, consts, .. } = &mut node.op else { return Vec::new() };
        let sliced = args.iter().zip(body.inputs.clone()).skip(*carries + *consts);
        let come = sliced.filter(|(a, _)| self.state.contains(a)).map(|(_, input)| input);
        bring(body, come.collect(), span);
        let mut left = Vec::new();
        for (k, result) in results.into_iter().enumerate().skip(*carries) {
            let for_optimizer =
                |r: &ValueId| self.users[r.index()].iter().all(|u| takes_state(&self.nodes[*u]));
            if self.made.contains(&result) && for_optimizer(&result) {
                send(body, k, span);
                left.push(result);
            }
        }
        left
    }
}
