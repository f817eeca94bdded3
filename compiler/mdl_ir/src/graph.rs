//! Graphs, bodies, nodes and values.

use crate::op::Op;
use crate::place::Place;
use crate::tensor_type::Type;
use mdl_symbol::Symbol;
use serde::{Deserialize, Serialize};

/// A value of one body: an index into `Body::values`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ValueId(pub u32);

impl ValueId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Value {
    /// From the source where it had a name; `g.x` is the gradient of x. Unique only when printed.
    pub name: Symbol,
    pub ty: Type,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    pub op: Op,
    pub args: Vec<ValueId>,
    pub results: Vec<ValueId>,
    /// Where the model file says it; made-up nodes carry the span of what they were made from.
    #[serde(skip)]
    pub span: Place,
}

/// Nodes in an order in which every value is made before it is used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Body {
    pub values: Vec<Value>,
    pub inputs: Vec<ValueId>,
    pub nodes: Vec<Node>,
    pub outputs: Vec<ValueId>,
}

impl Body {
    pub fn ty(&self, id: ValueId) -> &Type {
        &self.values[id.index()].ty
    }

    pub fn name(&self, id: ValueId) -> Symbol {
        self.values[id.index()].name
    }

    /// For every value, the node that makes it; body inputs have none.
    pub fn producers(&self) -> Vec<Option<usize>> {
        let mut producers = vec![None; self.values.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            for r in &node.results {
                producers[r.index()] = Some(i);
            }
        }
        producers
    }

    /// For every value, the nodes that use it, once each, in order. Outputs are not nodes.
    pub fn users(&self) -> Vec<Vec<usize>> {
        let mut users: Vec<Vec<usize>> = vec![Vec::new(); self.values.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            for a in &node.args {
                if users[a.index()].last() != Some(&i) {
                    users[a.index()].push(i);
                }
            }
        }
        users
    }
}

/// How far a graph has come; each stage keeps what the earlier ones promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Stage {
    /// One entry of the model.
    Forward,
    /// With gradients and the optimizer step.
    Training,
    /// Every value has a place and a time (recompute, offload, sharding).
    Placed,
    /// Every node is a kernel, a view of memory or a repeated region.
    Fused,
}

impl Stage {
    pub const ALL: [Stage; 4] = [Stage::Forward, Stage::Training, Stage::Placed, Stage::Fused];

    pub fn name(self) -> &'static str {
        match self {
            Stage::Forward => "forward",
            Stage::Training => "training",
            Stage::Placed => "placed",
            Stage::Fused => "fused",
        }
    }
}

/// A trained weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Param {
    /// Path of members, `stack.attend.wq`.
    pub name: String,
    /// Name in checkpoints, with `{}` where the index of a repeated block goes, and the next one
    /// where the index of a part goes.
    pub stored: String,
    /// Names of other members that are this same weight.
    pub also_stored: Vec<String>,
    /// Stacked along the repeat's axis where the block is repeated.
    pub ty: Type,
    /// Iterations of the repeated block that it belongs to.
    pub repeats: Option<u64>,
    /// A checkpoint has the outermost axis of an iteration's slice as this many tensors: experts.
    pub parts: Option<u64>,
    /// Initial values of one stored tensor.
    pub init: Option<Body>,
}

impl Param {
    /// The tensors that a checkpoint has for this weight: name and element range within the stacked
    /// tensor.
    pub fn stored_tensors(&self) -> Vec<(String, std::ops::Range<u64>)> {
        let mut names = vec![self.stored.clone()];
        for count in [self.repeats, self.parts].into_iter().flatten() {
            let numbered =
                |name: String| (0..count).map(move |i| name.replacen("{}", &i.to_string(), 1));
            names = names.into_iter().flat_map(numbered).collect();
        }
        let each = self.ty.elements() / names.len() as u64;
        let range = |i: u64| i * each..(i + 1) * each;
        names.into_iter().enumerate().map(|(i, name)| (name, range(i as u64))).collect()
    }

    /// What one iteration of the repeated block sees.
    pub fn slice_type(&self) -> Type {
        self.inner_type(usize::from(self.repeats.is_some()))
    }

    /// Shape of one stored tensor, with the axes that a checkpoint merges into one dimension left
    /// apart.
    pub fn tensor_type(&self) -> Type {
        self.inner_type(usize::from(self.repeats.is_some()) + usize::from(self.parts.is_some()))
    }

    fn inner_type(&self, skip: usize) -> Type {
        Type::new(self.ty.dtype, self.ty.axes[skip..].to_vec())
    }
}

/// What a graph's input is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InputRole {
    Param(usize),
    /// The gradient from the micro-batches before, or from all of a step.
    Grad(usize),
    /// First and second moment of a parameter's gradient.
    Moment1(usize),
    Moment2(usize),
    /// The f32 values that a parameter in bf16 is rounded from.
    Master(usize),
    /// A batch tensor: tokens, targets, documents.
    Data(String),
    /// A number that the host computes for each step: lr, correct1, correct2, seed, start.
    Scalar(String),
    /// Keys or values kept from earlier positions.
    Cache(usize),
}

/// What a graph's output is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutputRole {
    /// loss, logits, grad_norm.
    Value(String),
    Grad(usize),
    Param(usize),
    Moment1(usize),
    Moment2(usize),
    Master(usize),
    Cache(usize),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Graph {
    pub name: String,
    pub stage: Stage,
    pub params: Vec<Param>,
    /// One for each input of the body.
    pub inputs: Vec<InputRole>,
    /// One for each output of the body.
    pub outputs: Vec<OutputRole>,
    pub body: Body,
}

impl Graph {
    /// Number of trained numbers; a tied weight counts once.
    pub fn param_count(&self) -> u64 {
        self.params.iter().map(|p| p.ty.elements()).sum()
    }

    pub fn output(&self, role: &OutputRole) -> Option<usize> {
        self.outputs.iter().position(|r| r == role)
    }
}
