//! The primitive operations. `infer` has their types, `interp` their meaning, `cost` their price.

use crate::graph::Body;
use crate::tensor_type::{Axis, DType};
use mdl_symbol::Symbol;
use serde::{Deserialize, Serialize};
use std::hash::{Hash, Hasher};

/// What a node does. Elementwise operations broadcast by axis name: their result has every axis of
/// every argument.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Op {
    /// A number without axes.
    Const(f64),
    /// 0, 1, 2, … along an axis of its own, as f32.
    Position(Axis),
    /// A uniform number in (0, 1) for every element: stream `k` of the parameter being initialised.
    Random {
        stream: u32,
        axes: Vec<Axis>,
    },
    Unary(Unary),
    Binary(Binary),
    /// `args[0] ? args[1] : args[2]`.
    Select,
    Reduce {
        kind: Reduction,
        axes: Vec<Symbol>,
    },
    /// Σ over `axes` of `args[0] · args[1]`; the axes stand in both. The result has the shared kept
    /// axes, then what only `args[0]` has, then what only `args[1]` has.
    Contract {
        axes: Vec<Symbol>,
    },
    /// Each row with the matrix of its group: Σ over `axes` of `args[0]` times the slice of
    /// `args[1]` along `axis` that the row's id in `args[2]` says. Ids' axes are the rows, and
    /// `args[0]` may lack the innermost of them. The result has the ids' axes, then what only
    /// `args[1]` has; a row whose id names no group is zero.
    GroupedContract {
        axis: Symbol,
        axes: Vec<Symbol>,
    },
    /// For each group, Σ over its rows of `args[0] · args[1]`, where the ids `args[2]` say which
    /// rows those are. The result has `axis`, then the axes of `args[0]` that are no rows, then
    /// those of `args[1]`.
    GroupedOuter {
        axis: Axis,
    },
    /// The argument repeated along what it lacks, laid out as these axes.
    Broadcast {
        axes: Vec<Axis>,
    },
    /// The same values with the axes in another order of memory.
    Reorder {
        axes: Vec<Symbol>,
    },
    /// To `Bf16` rounds to the nearest; from it is exact.
    Cast(DType),
    /// `args[0]` as bf16: one of its two neighbours, by random bits that are a function of the
    /// value, the step's seed `args[1]` and the stream alone (see `rounding`). Right on average.
    StochasticRound {
        stream: u32,
    },
    Rename {
        from: Symbol,
        to: Symbol,
    },
    /// One axis becomes several, outermost first.
    Split {
        axis: Symbol,
        into: Vec<Axis>,
    },
    /// Adjacent axes become one.
    Merge {
        axes: Vec<Symbol>,
        into: Symbol,
    },
    /// `into.size` elements of `axis` from `start`.
    Slice {
        axis: Symbol,
        start: u64,
        into: Axis,
    },
    /// The inverse of `Slice`: the argument's `axis` at `start` of a longer axis of zeros.
    Pad {
        axis: Symbol,
        start: u64,
        into: Axis,
    },
    /// The arguments one after the other along `axis`, which becomes `into`.
    Concat {
        axis: Symbol,
        into: Axis,
    },
    /// `args[0]` (table with `axis`) at the ids `args[1]`: the ids' axes, then the table's others.
    Gather {
        axis: Symbol,
    },
    /// Adds the rows `args[1]` (ids' axes, then others) at the ids `args[0]` to a table of zeros,
    /// or to `args[2]`.
    ScatterAdd {
        axis: Axis,
    },
    StopGradient,
    /// The same value in another memory.
    Transfer {
        to: Memory,
    },
    /// What the ranks of a group do together. A rank alone is a group, and then each kind is the
    /// value itself: all of its pieces, its sum over the ranks, or both.
    Collective {
        kind: Collective,
        group: Group,
    },
    /// `args[1]` (a cache with `axis`) with `args[0]` (which has the shorter `axis`) written from
    /// position `args[2]`.
    CacheWrite {
        axis: Symbol,
    },
    /// A region run `count` times. Arguments and body inputs: `carries`, `consts`, then values
    /// stacked along `axis` of which each iteration sees its slice. Body outputs and results:
    /// carries, then values that get stacked. With `reverse`, the last slice comes first.
    Repeat {
        axis: Symbol,
        count: u64,
        reverse: bool,
        carries: usize,
        consts: usize,
        body: Box<Body>,
    },
    /// A function with a kernel. The body is its meaning; results beyond the body's outputs are
    /// residuals that only the adjoint of the same kernel reads (the interpreter leaves them zero).
    /// `axes` are the axes that the function was called over, in the order of its declaration.
    Call {
        kernel: Kernel,
        axes: Vec<Symbol>,
        body: Box<Body>,
    },
}

/// The kernels that a stdlib function or a pass may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kernel {
    Attention,
    AttentionGrad,
    LinearCrossEntropy,
    LinearCrossEntropyGrad,
    SumOfSquares,
    AdamW,
    /// A contraction with the elementwise work that is done on its result before it is stored.
    Contraction,
    /// Elementwise work and reductions along the innermost axes, or over the outer ones.
    Region,
}

impl Kernel {
    pub const ALL: [Kernel; 8] = [
        Kernel::Attention,
        Kernel::AttentionGrad,
        Kernel::LinearCrossEntropy,
        Kernel::LinearCrossEntropyGrad,
        Kernel::SumOfSquares,
        Kernel::AdamW,
        Kernel::Contraction,
        Kernel::Region,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kernel::Attention => "attention",
            Kernel::AttentionGrad => "attention_grad",
            Kernel::LinearCrossEntropy => "linear_cross_entropy",
            Kernel::LinearCrossEntropyGrad => "linear_cross_entropy_grad",
            Kernel::SumOfSquares => "sum_of_squares",
            Kernel::AdamW => "adamw",
            Kernel::Contraction => "contraction",
            Kernel::Region => "region",
        }
    }

    pub fn from_name(name: &str) -> Option<Kernel> {
        Kernel::ALL.into_iter().find(|k| k.name() == name)
    }
}

macro_rules! named_enum {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name { $($variant),* }
        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$variant),*];
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $text),* }
            }
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some($name::$variant),)* _ => None }
            }
        }
    };
}

named_enum!(
    /// Operations on one element. `not` takes and gives a boolean.
    Unary {
        Neg = "neg", Exp = "exp", Log = "log", Sqrt = "sqrt", Rsqrt = "rsqrt", Sigmoid = "sigmoid",
        Sin = "sin", Cos = "cos", Tanh = "tanh", Abs = "abs", Not = "not",
    }
);

named_enum!(
    /// Operations on two elements. Comparisons give booleans; `and` and `or` take them.
    Binary {
        Add = "add", Sub = "sub", Mul = "mul", Div = "div", Min = "min", Max = "max",
        Lt = "lt", Le = "le", Eq = "eq", And = "and", Or = "or",
    }
);

named_enum!(
    Reduction { Sum = "sum", Max = "max" }
);

named_enum!(
    /// All pieces of a value on every rank; its sum over the ranks in pieces, one for each; its sum
    /// on every rank.
    Collective {
        AllGather = "all_gather", ReduceScatter = "reduce_scatter", AllReduce = "all_reduce",
    }
);

/// The ranks that a collective is between: this many, and this far apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Group {
    pub ranks: u64,
    pub stride: u64,
}

named_enum!(
    /// Where a value is kept: where kernels run, or where it waits for them.
    Memory { Device = "device", Host = "host" }
);

impl Binary {
    pub fn is_comparison(self) -> bool {
        matches!(self, Binary::Lt | Binary::Le | Binary::Eq)
    }

    pub fn is_logic(self) -> bool {
        matches!(self, Binary::And | Binary::Or)
    }
}

/// What kind of work an operation is: what fusion and recomputation decide by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A number or an index: made again wherever it is used.
    Source,
    Elementwise,
    Reduce,
    /// Another name for the same memory.
    View,
    /// One kernel of its own.
    Kernel,
    Repeat,
}

/// Numbers count by their bits. What holds a body is told apart by `same` alone.
impl Hash for Op {
    fn hash<H: Hasher>(&self, h: &mut H) {
        std::mem::discriminant(self).hash(h);
        match self {
            Op::Const(c) => c.to_bits().hash(h),
            Op::Position(axis) | Op::GroupedOuter { axis } | Op::ScatterAdd { axis } => {
                axis.hash(h);
            }
            Op::Random { stream, axes } => (stream, axes).hash(h),
            Op::Unary(op) => op.hash(h),
            Op::Binary(op) => op.hash(h),
            Op::Reduce { kind, axes } => (kind, axes).hash(h),
            Op::Contract { axes } | Op::Reorder { axes } => axes.hash(h),
            Op::GroupedContract { axis, axes } => (axis, axes).hash(h),
            Op::Broadcast { axes } => axes.hash(h),
            Op::Cast(dtype) => dtype.hash(h),
            Op::StochasticRound { stream } => stream.hash(h),
            Op::Rename { from, to } => (from, to).hash(h),
            Op::Split { axis, into } => (axis, into).hash(h),
            Op::Merge { axes, into } => (axes, into).hash(h),
            Op::Slice { axis, start, into } | Op::Pad { axis, start, into } => {
                (axis, start, into).hash(h);
            }
            Op::Concat { axis, into } => (axis, into).hash(h),
            Op::Gather { axis } | Op::CacheWrite { axis } => axis.hash(h),
            Op::Transfer { to } => to.hash(h),
            Op::Collective { kind, group } => (kind, group).hash(h),
            Op::Select | Op::StopGradient | Op::Repeat { .. } | Op::Call { .. } => {}
        }
    }
}

impl Op {
    /// Is it the same operation? As `==`, but 0 is not −0, and a number that is none is itself.
    pub fn same(&self, other: &Op) -> bool {
        match (self, other) {
            (Op::Const(a), Op::Const(b)) => a.to_bits() == b.to_bits(),
            _ => self == other,
        }
    }

    pub fn class(&self) -> Class {
        match self {
            Op::Const(_) | Op::Position(_) | Op::Random { .. } => Class::Source,
            Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Cast(_) | Op::StopGradient => {
                Class::Elementwise
            }
            Op::StochasticRound { .. } => Class::Elementwise,
            Op::Broadcast { .. } | Op::Reorder { .. } => Class::Elementwise,
            Op::Reduce { .. } => Class::Reduce,
            Op::Rename { .. } | Op::Split { .. } | Op::Merge { .. } => Class::View,
            Op::Slice { .. } | Op::Concat { .. } => Class::View,
            Op::Contract { .. } | Op::Gather { .. } | Op::ScatterAdd { .. } | Op::Pad { .. } => {
                Class::Kernel
            }
            Op::GroupedContract { .. } | Op::GroupedOuter { .. } => Class::Kernel,
            Op::Transfer { .. } | Op::Collective { .. } => Class::Kernel,
            Op::CacheWrite { .. } | Op::Call { .. } => Class::Kernel,
            Op::Repeat { .. } => Class::Repeat,
        }
    }

    /// The word that stands for the operation in the text form.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Const(_) => "const",
            Op::Position(_) => "position",
            Op::Random { .. } => "random",
            Op::Unary(u) => u.name(),
            Op::Binary(b) => b.name(),
            Op::Select => "select",
            Op::Reduce { kind: Reduction::Sum, .. } => "reduce_sum",
            Op::Reduce { kind: Reduction::Max, .. } => "reduce_max",
            Op::Contract { .. } => "contract",
            Op::GroupedContract { .. } => "grouped_contract",
            Op::GroupedOuter { .. } => "grouped_outer",
            Op::Broadcast { .. } => "broadcast",
            Op::Reorder { .. } => "reorder",
            Op::Cast(_) => "cast",
            Op::StochasticRound { .. } => "stochastic_round",
            Op::Rename { .. } => "rename",
            Op::Split { .. } => "split",
            Op::Merge { .. } => "merge",
            Op::Slice { .. } => "slice",
            Op::Pad { .. } => "pad",
            Op::Concat { .. } => "concat",
            Op::Gather { .. } => "gather",
            Op::ScatterAdd { .. } => "scatter_add",
            Op::StopGradient => "stop_gradient",
            Op::Transfer { .. } => "transfer",
            Op::Collective { kind, .. } => kind.name(),
            Op::CacheWrite { .. } => "cache_write",
            Op::Repeat { .. } => "repeat",
            Op::Call { .. } => "call",
        }
    }
}
