//! What an expression can stand for while a model is elaborated.

use crate::bindings::Bindings;
use crate::call::Given;
use crate::config::Config;
use crate::program::ItemRef;
use crate::size::Size;
use mdl_ir::graph::ValueId;
use mdl_ir::tensor_type::DType;
use mdl_symbol::{Symbol, joined};
use mdl_syntax::span::Span;
use std::collections::BTreeSet;
use std::rc::Rc;

/// An axis of a tensor: its name, its size in symbols, and where the size was said.
#[derive(Clone, Debug)]
pub struct SymAxis {
    pub name: Symbol,
    pub size: Size,
    pub origin: Span,
}

/// A value of the frame's body, with the axes that its type has, in the same order.
#[derive(Clone, Debug)]
pub struct TensorVal {
    pub id: ValueId,
    pub dtype: DType,
    pub axes: Rc<[SymAxis]>,
}

impl TensorVal {
    pub fn axis(&self, name: Symbol) -> Option<&SymAxis> {
        self.axes.iter().find(|a| a.name == name)
    }

    /// `[B, T, hidden]`, as the user writes it.
    pub fn show(&self) -> String {
        let names: Vec<Symbol> = self.axes.iter().map(|a| a.name).collect();
        format!("[{}]", joined(&names, ", "))
    }
}

/// A member of a block: a weight (an index into the model's parameters) or an instance of another
/// block.
#[derive(Clone, Debug)]
pub enum MemberVal {
    Param(usize),
    Instance(Rc<BlockVal>),
}

/// An instance of a block.
#[derive(Clone, Debug)]
pub struct BlockVal {
    pub item: ItemRef,
    /// Those with the same members, if a check keeps a memo.
    pub shape: Option<usize>,
    /// The first of its weights.
    pub first: usize,
    /// The axis along which it is repeated, or one of its owners.
    pub layers: Option<Symbol>,
    /// What its methods see, but for their owner: its arguments, axes and members.
    pub scope: Scope,
    pub members: Bindings<MemberVal>,
    /// The axis and the count where the instance is repeated.
    pub repeat: Option<(Symbol, Size)>,
}

/// A function with the arguments that it was bound to where it was named, as in `window(c.window)`.
#[derive(Clone, Debug)]
pub struct FunctionVal {
    pub item: ItemRef,
    pub bound: Vec<Given>,
}

#[derive(Clone, Debug)]
pub enum Val {
    Tensor(TensorVal),
    Size(Size),
    Real(f64),
    Bool(bool),
    Text(String),
    Config(Rc<Config>),
    Function(Rc<FunctionVal>),
    Block(Rc<BlockVal>),
    Param(usize),
    Tuple(Vec<Val>),
}

impl Val {
    /// What kind of thing it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Val::Tensor(_) | Val::Param(_) => "a tensor",
            Val::Size(_) => "a size",
            Val::Real(_) => "a number",
            Val::Bool(_) => "a truth value",
            Val::Text(_) => "a text",
            Val::Config(_) => "a configuration",
            Val::Function(_) => "a function",
            Val::Block(_) => "a block",
            Val::Tuple(_) => "a tuple",
        }
    }
}

/// What an axis name means in a scope.
#[derive(Clone, Debug)]
pub struct AxisVal {
    /// The name that tensors carry.
    pub name: Symbol,
    pub size: Option<Size>,
    pub origin: Span,
}

/// The names that are visible in a body.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    pub module: usize,
    pub values: Bindings<Val>,
    pub axes: Bindings<AxisVal>,
    /// Names whose statement had a mistake: that they are unknown is no news.
    pub failed: BTreeSet<Symbol>,
    /// The block whose method this is.
    pub owner: Option<Rc<BlockVal>>,
}

/// A diagnostic has been reported; what depends on this value says nothing more.
#[derive(Clone, Copy, Debug)]
pub struct Reported;

pub type Eval<T> = Result<T, Reported>;
