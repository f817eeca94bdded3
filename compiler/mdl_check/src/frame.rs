//! A body under elaboration and what it takes in from outside: bodies capture nothing, so weights,
//! documents and the like become arguments of every region between the graph and their use.

use crate::auxiliary::Named;
use crate::elaborate::concrete;
use crate::sketch::Sketch;
use crate::value::{SymAxis, TensorVal};
use mdl_ir::build::Builder;
use mdl_ir::graph::{Body, ValueId};
use mdl_ir::op::Op;
use mdl_ir::place::Place;
use mdl_ir::tensor_type::{DType, Type};
use mdl_symbol::Symbol;
use std::rc::Rc;

/// Something that belongs to the whole graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outside {
    Param(usize),
    Data(Symbol),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameKind {
    Graph,
    /// A repeated region over this axis.
    Repeat(Symbol),
    /// The body of a function with a kernel.
    Call,
    /// Initial values of a parameter with this type.
    Init(Rc<[mdl_ir::tensor_type::Axis]>),
}

/// What was taken in, and as which value.
#[derive(Debug)]
pub struct Capture {
    pub what: Outside,
    pub id: ValueId,
    pub axes: Rc<[SymAxis]>,
    /// Does each iteration see a slice?
    pub sliced: bool,
}

/// The values of a body: with their operations, or for a check without.
#[derive(Debug)]
pub enum Made {
    Graph(Builder),
    Sketch(Sketch),
}

impl Made {
    /// How many values there are.
    pub fn len(&self) -> usize {
        match self {
            Made::Graph(b) => b.body.values.len(),
            Made::Sketch(s) => s.len(),
        }
    }
}

#[derive(Debug)]
pub struct Frame {
    pub kind: FrameKind,
    pub made: Made,
    pub captures: Vec<Capture>,
    /// What blocks with an auxiliary loss named in this body.
    pub named: Vec<Named>,
}

impl Frame {
    pub fn new(kind: FrameKind, sketch: bool) -> Self {
        let made = match sketch {
            true => Made::Sketch(Sketch::default()),
            false => Made::Graph(Builder::default()),
        };
        Frame { kind, made, captures: Vec::new(), named: Vec::new() }
    }

    pub fn input(&mut self, name: Symbol, dtype: DType, axes: Rc<[SymAxis]>) -> TensorVal {
        let id = match &mut self.made {
            Made::Graph(b) => b.input(name, Type::new(dtype, axes.iter().map(concrete).collect())),
            Made::Sketch(s) => s.input(),
        };
        TensorVal { id, dtype, axes }
    }

    pub fn number(&mut self, value: f64, at: Place) -> ValueId {
        match &mut self.made {
            Made::Graph(b) => b.number(value, at),
            Made::Sketch(s) => s.value([]),
        }
    }

    /// Gives a value the name that the source has for it.
    pub fn name(&mut self, id: ValueId, name: Symbol) {
        if let Made::Graph(b) = &mut self.made {
            b.name(id, name);
        }
    }

    /// The body with these outputs, unless it is a sketch.
    pub fn finish(self, outputs: Vec<ValueId>) -> Option<Body> {
        match self.made {
            Made::Graph(b) => Some(b.finish(outputs)),
            Made::Sketch(_) => None,
        }
    }

    /// The weights that these values depend on.
    pub fn weights(self, of: Vec<ValueId>) -> Vec<usize> {
        let param = |what: &Outside| match what {
            Outside::Param(p) => Some(*p),
            Outside::Data(_) => None,
        };
        let live: Vec<bool> = match self.made {
            Made::Sketch(s) => {
                let live = s.live(of);
                self.captures.iter().map(|c| live[c.id.index()]).collect()
            }
            Made::Graph(b) => {
                let body = Body { outputs: of, ..b.body };
                let live = live_inputs(&body);
                let at = |c: &Capture| body.inputs.iter().position(|input| *input == c.id);
                self.captures.iter().map(|c| at(c).is_some_and(|at| live[at])).collect()
            }
        };
        let captures = self.captures.iter().zip(live).filter(|(_, live)| *live);
        captures.filter_map(|(c, _)| param(&c.what)).collect()
    }
}

/// Which inputs of a body its outputs depend on.
fn live_inputs(body: &Body) -> Vec<bool> {
    let mut needed = vec![false; body.values.len()];
    for output in &body.outputs {
        needed[output.index()] = true;
    }
    for node in body.nodes.iter().rev() {
        if !node.results.iter().any(|r| needed[r.index()]) {
            continue;
        }
        let inner = match &node.op {
            Op::Repeat { body, .. } | Op::Call { body, .. } => live_inputs(body),
            _ => Vec::new(),
        };
        for (i, arg) in node.args.iter().enumerate() {
            if inner.get(i).copied().unwrap_or(true) {
                needed[arg.index()] = true;
            }
        }
    }
    body.inputs.iter().map(|i| needed[i.index()]).collect()
}
