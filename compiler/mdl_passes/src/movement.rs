//! Where a state that kernels do not reach comes in, and where gradients leave for it.
//!
//! A region sees one slice of its parameters in each iteration, and emits one of their gradients:
//! slices come in and leave as those of offloaded activations do. What belongs to no region comes
//! in before its use, and again after a region: a copy does not wait while layers are computed. The
//! optimizer's calls take the state where it lies.

use crate::offload::{bring, moved, send};
use mdl_ir::graph::{Body, Graph, InputRole, Node, OutputRole, ValueId};
use mdl_ir::op::{Kernel, Op};
use std::collections::{HashMap, HashSet};

/// How the state comes to the kernels, and how gradients leave: none where they are in place.
#[derive(Clone, Debug)]
pub(crate) struct Ways {
    pub comes: Option<Op>,
    /// One after the other.
    pub leaves: Vec<Op>,
}

/// A fused graph whose state comes and leaves these ways.
pub(crate) fn with_movement(graph: &Graph, ways: &Ways) -> Graph {
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
    let mut movement = Movement {
        ways,
        users: graph.body.users(),
        state: inputs.filter(|(_, role)| away(role)).map(|(id, _)| *id).collect(),
        made: outputs.filter(|(_, role)| leaves(role)).map(|(id, _)| *id).collect(),
        nodes: &nodes,
        here: HashMap::new(),
        left: HashMap::new(),
        body,
    };
    for node in &nodes {
        movement.node(node);
    }
    let left = movement.left;
    let mut body = movement.body;
    for output in &mut body.outputs {
        *output = left.get(output).copied().unwrap_or(*output);
    }
    Graph { body, ..graph.clone() }
}

struct Movement<'a> {
    ways: &'a Ways,
    nodes: &'a [Node],
    users: Vec<Vec<usize>>,
    state: HashSet<ValueId>,
    /// Gradients, and parameters and moments after the update.
    made: HashSet<ValueId>,
    /// Copies of the state that are on the device now.
    here: HashMap<ValueId, ValueId>,
    /// Those that were made outside regions, as they are once they have left.
    left: HashMap<ValueId, ValueId>,
    body: Body,
}

/// Does this call take the state where it lies?
fn takes_state(node: &Node) -> bool {
    matches!(&node.op, Op::Call { kernel: Kernel::AdamW | Kernel::SumOfSquares, .. })
}

impl Movement<'_> {
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
                let mut value = *r;
                for op in &self.ways.leaves {
                    let (leaves, id) = moved(&mut self.body, value, op, node.span);
                    self.body.nodes.push(leaves);
                    value = id;
                }
                self.left.insert(*r, value);
            }
        }
    }

    /// A value where kernels reach it.
    fn on_device(&mut self, value: ValueId, user: &Node) -> ValueId {
        let Some(comes) = self.ways.comes.as_ref().filter(|_| self.state.contains(&value)) else {
            return value;
        };
        if let Some(copy) = self.here.get(&value) {
            return *copy;
        }
        let (node, id) = moved(&mut self.body, value, comes, user.span);
        self.body.nodes.push(node);
        self.here.insert(value, id);
        id
    }

    /// Slices of a region's parameters come in, and those of gradients leave. Gives the results
    /// that have then left.
    fn slices(&self, node: &mut Node) -> Vec<ValueId> {
        let (args, results, span) = (node.args.clone(), node.results.clone(), node.span);
        let Op::Repeat { body, carries, consts, .. } = &mut node.op else { return Vec::new() };
        if let Some(comes) = &self.ways.comes {
            let sliced = args.iter().zip(body.inputs.clone()).skip(*carries + *consts);
            let come = sliced.filter(|(a, _)| self.state.contains(a)).map(|(_, input)| input);
            bring(body, come.collect(), comes, span);
        }
        let mut left = Vec::new();
        for (k, result) in results.into_iter().enumerate().skip(*carries) {
            let for_optimizer =
                |r: &ValueId| self.users[r.index()].iter().all(|u| takes_state(&self.nodes[*u]));
            if self.made.contains(&result) && for_optimizer(&result) {
                self.ways.leaves.iter().for_each(|op| send(body, k, op, span));
                left.push(result);
            }
        }
        left
    }
}
