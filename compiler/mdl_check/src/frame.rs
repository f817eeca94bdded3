//! A body under elaboration and what it takes in from outside: bodies capture nothing, so weights,
//! documents and the like become arguments of every region between the graph and their use.

use crate::auxiliary::Named;
use mdl_ir::build::Builder;
use mdl_ir::graph::ValueId;
use mdl_symbol::Symbol;

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
    Init(Vec<mdl_ir::tensor_type::Axis>),
}

#[derive(Debug)]
pub struct Frame {
    pub kind: FrameKind,
    pub builder: Builder,
    /// What was taken in, and as which value; `true` where each iteration sees a slice.
    pub captures: Vec<(Outside, ValueId, bool)>,
    /// What blocks with an auxiliary loss named in this body.
    pub named: Vec<Named>,
}

impl Frame {
    pub fn new(kind: FrameKind) -> Self {
        Frame { kind, builder: Builder::default(), captures: Vec::new(), named: Vec::new() }
    }
}
