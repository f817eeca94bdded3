//! The syntax tree of one module: plain data, a `Span` on every node, no parser types.
//!
//! Names are kept as written. What a name refers to is decided by `mdl_check`.

use crate::span::Span;
use mdl_symbol::Symbol;

/// A name with the place where it stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Name {
    pub text: Symbol,
    pub span: Span,
}

/// One `.mdl` file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Module {
    /// Text of the `//!` lines, joined with newlines.
    pub doc: String,
    pub items: Vec<Item>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Text of the `///` lines above the item, joined with newlines.
    pub doc: String,
    pub kind: ItemKind,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ItemKind {
    Use(Use),
    Config(Config),
    Fn(Fn),
    Block(Block),
    Model(Block),
    Preset(Preset),
    /// What error recovery skipped.
    Error,
}

/// `use std.rope.{Rope, rotate}`; `use std.norm.RmsNorm` has one name.
#[derive(Clone, Debug, PartialEq)]
pub struct Use {
    pub path: Vec<Name>,
    pub names: Vec<Name>,
}

/// `config Rope { base: real = from("rope_theta") else 10000 }`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub name: Name,
    pub fields: Vec<Field>,
    pub asserts: Vec<Expr>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    pub doc: String,
    pub name: Name,
    pub ty: FieldType,
    pub default: Option<Expr>,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq)]
pub enum FieldType {
    Size,
    Real,
    Bool,
    Text,
    Config(Name),
}

/// `fn softmax[S](x: [.., S]) -> [.., S] { … }`. Both `= expr` and `{ … }` are bodies.
#[derive(Clone, Debug, PartialEq)]
pub struct Fn {
    /// `@kernel(attention)` above the function.
    pub kernel: Option<Name>,
    pub name: Name,
    pub axes: Vec<Name>,
    pub args: Vec<Arg>,
    /// One type, or several for a function that returns a tuple. Empty where nothing is declared.
    pub result: Vec<TypeExpr>,
    pub body: Body,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Arg {
    pub name: Name,
    pub ty: ArgType,
    pub default: Option<Expr>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ArgType {
    /// `[.., T, head]`, `f32[..]`, `ids[B, T]`.
    Tensor(TypeExpr),
    Size,
    Real,
    Bool,
    /// `fn[T, S]`: a function over these axes, such as a mask.
    Function(Vec<Name>),
    /// A configuration by name.
    Config(Name),
}

/// A tensor type. `dtype` is empty where the run decides (`[B, T]`).
#[derive(Clone, Debug, PartialEq)]
pub struct TypeExpr {
    pub dtype: Option<Name>,
    /// A leading `..`: any further axes.
    pub open: bool,
    pub axes: Vec<AxisExpr>,
    pub span: Span,
}

/// An axis of a type: `hidden`, or `inner = kv_heads * head` with its size.
#[derive(Clone, Debug, PartialEq)]
pub struct AxisExpr {
    pub name: Name,
    pub size: Option<Expr>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Body {
    pub lets: Vec<Let>,
    pub result: Box<Expr>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Let {
    /// `let q = …` or `let (p, m, v) = …`.
    Value { names: Vec<Name>, value: Expr },
    /// `axis half = head / 2`.
    Axis { name: Name, size: Expr },
}

/// A block or a model: members, then methods. `forward` is what a call of the block runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    pub name: Name,
    pub axes: Vec<Name>,
    pub args: Vec<Arg>,
    pub members: Vec<Member>,
    pub methods: Vec<Fn>,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    pub doc: String,
    pub name: Name,
    pub kind: MemberKind,
    /// `as "q_proj.weight"`: the name in checkpoints, appended to the owner's.
    pub stored: Option<(String, Span)>,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq)]
pub enum MemberKind {
    /// `param[out, in] as "…" init normal(0.02) = embed if c.tied`.
    Param {
        ty: TypeExpr,
        init: Option<Expr>,
        /// The member whose parameter this one is, and when.
        tied: Option<(Name, Option<Expr>)>,
    },
    /// `Layer(c) * layers`: an instance, repeated where a count is given.
    Instance { block: Name, axes: Vec<Name>, args: Vec<CallArg>, count: Option<Name> },
}

/// `preset tiny: Llama { hidden = 64 … assert params == 1 }`.
#[derive(Clone, Debug, PartialEq)]
pub struct Preset {
    pub name: Name,
    pub config: Name,
    pub bindings: Vec<(Name, Expr)>,
    pub asserts: Vec<Expr>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    pub kind: ExprKind,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ExprKind {
    /// A number as written, without `_`.
    Number(String),
    Text(String),
    Bool(bool),
    /// `inf`.
    Infinity,
    Name(Name),
    /// `c.eps`, `x.f32`.
    Member(Box<Expr>, Name),
    /// `f(args)`, `f[T, S](args)`, `sum[hidden](x)`, `concat[head = half](a, b)`.
    Call {
        function: Box<Expr>,
        axes: Vec<AxisArg>,
        args: Vec<CallArg>,
    },
    /// `k[S = T]`, `x[a * b = hidden]`, `x[hidden = a * b]`, `x[half = head from 0]`.
    Reaxis(Box<Expr>, Vec<AxisChange>),
    Unary(UnaryOp, Box<Expr>),
    Binary(BinaryOp, Box<Expr>, Box<Expr>),
    /// `a else b`: b where a is absent. Only in the defaults of configurations.
    Else(Box<Expr>, Box<Expr>),
    /// `if c.tied { a } else { b }`: the condition is known at compile time.
    If(Box<Expr>, Box<Body>, Box<Body>),
    Tuple(Vec<Expr>),
    Error,
}

/// An axis in the brackets of a call: `T`, or `head = half` where a function renames.
#[derive(Clone, Debug, PartialEq)]
pub struct AxisArg {
    pub name: Name,
    pub old: Option<Name>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct CallArg {
    pub name: Option<Name>,
    pub value: Expr,
}

/// `new = old`, where either side may be a product, and `old` may be cut from a start.
#[derive(Clone, Debug, PartialEq)]
pub struct AxisChange {
    pub new: Vec<Name>,
    pub old: Vec<Name>,
    pub start: Option<Expr>,
    pub span: Span,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnaryOp {
    Neg,
    Not,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    And,
    Or,
}
