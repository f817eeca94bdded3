//! The walk that checks and builds: expressions of a scope become values of the innermost frame's
//! body.

use crate::auxiliary::Watch;
use crate::builtin::BUILTINS;
use crate::config::{Setting, arithmetic};
use crate::frame::{Capture, Frame, FrameKind, Made, Outside};
use crate::memo::Trail;
use crate::nearest::nearest;
use crate::program::{Program, item_name, standard_home};
use crate::size::Size;
use crate::value::{AxisVal, Eval, FunctionVal, Reported, Scope, SymAxis, TensorVal, Val};
use crate::work::{Spent, Work};
use mdl_ir::build::Builder;
use mdl_ir::graph::{Param, ValueId};
use mdl_ir::op::{Binary, Op, Unary};
use mdl_ir::place::Place;
use mdl_ir::tensor_type::{Axis, DType};
use mdl_symbol::{Quick, Symbol, SymbolMap};
use mdl_syntax::ast::{self, BinaryOp, Expr, ExprKind, ItemKind, UnaryOp};
use mdl_syntax::diag::{Diagnostic, Severity, Sink};
use mdl_syntax::span::Span;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::rc::Rc;

/// Calls within calls, and blocks within blocks.
pub const MAX_CALL_DEPTH: usize = 64;
/// Bytes of one tensor.
pub const MAX_TENSOR_BYTES: u64 = 1 << 48;
/// Expressions within expressions, through all calls: elaboration recurses along them.
pub const MAX_NESTING: usize = 1000;

/// A parameter with what elaboration needs to know of it beyond the graph.
#[derive(Clone, Debug)]
pub struct ParamInfo {
    pub param: Param,
    pub axes: Rc<[SymAxis]>,
    /// The axis along which a repeated block stacks it.
    pub repeat: Option<Symbol>,
    pub span: Span,
}

#[derive(Debug)]
pub struct Elaborator<'a> {
    pub program: &'a Program,
    pub sink: &'a mut Sink,
    pub params: Vec<ParamInfo>,
    pub frames: Vec<Frame>,
    /// Axis that a rename made, and the axis it was made from.
    pub origins: SymbolMap<Symbol>,
    /// Axes of the graph's data inputs by name.
    pub data: SymbolMap<Rc<[SymAxis]>>,
    /// Is there a `documents` input?
    pub documents: bool,
    /// Are the sizes made up? Then their numbers are no facts.
    pub sample: bool,
    pub depth: usize,
    /// Expressions that are being worked out, one within the other.
    pub nesting: usize,
    /// Names of the functions and blocks that are being expanded, one within the other.
    pub open: Vec<Span>,
    /// Parameters by their name in checkpoints.
    pub stored: HashMap<String, usize, BuildHasherDefault<Quick>>,
    /// Blocks with an auxiliary loss whose `forward` is being expanded, one within the other.
    pub watches: Vec<Watch>,
    pub work: &'a mut Work,
    pub trail: Trail,
}

pub fn place(span: Span) -> Place {
    Place { file: span.file.0, start: span.start, end: span.end }
}

impl Elaborator<'_> {
    pub fn fail<T>(
        &mut self,
        code: &'static str,
        message: impl Into<String>,
        at: Span,
        here: impl Into<String>,
    ) -> Eval<T> {
        self.sink.push(Diagnostic::error(code, message, at, here));
        Err(Reported)
    }

    /// Counts work that is about to be done; an error where it would be too much.
    pub fn step(&mut self, cost: usize, at: Span) -> Eval<()> {
        if self.sink.full(Severity::Error) {
            return Err(Reported);
        }
        match self.work.spend(cost) {
            Spent::Yes => Ok(()),
            Spent::Over => Err(Reported),
            Spent::Last => {
                let message = "this model expands to more than 10,000,000 steps";
                let d = Diagnostic::error("E0411", message, at, "the last step was here");
                self.sink.push(d.help("repeat a block with `* count` instead of nesting calls"));
                Err(Reported)
            }
        }
    }

    pub fn frame(&mut self) -> &mut Frame {
        self.frames.last_mut().expect("elaboration has a frame")
    }

    /// Begins a body.
    pub fn open_frame(&mut self, kind: FrameKind) {
        self.frames.push(Frame::new(kind, self.sketching()));
    }

    /// A walk with a memo wants no graph.
    pub fn sketching(&self) -> bool {
        self.work.memo.is_some()
    }

    /// The innermost body, of a walk that makes a graph.
    pub fn builder(&mut self) -> &mut Builder {
        match &mut self.frame().made {
            Made::Graph(builder) => builder,
            Made::Sketch(_) => unreachable!("a sketch has no operations"),
        }
    }

    /// The value of something outside, in the innermost frame: taken in through every region
    /// between.
    pub fn capture(&mut self, what: &Outside, depth: usize) -> (ValueId, Rc<[SymAxis]>) {
        let known = self.frames[depth].captures.iter().find(|c| c.what == *what);
        if let Some(Capture { id, axes, .. }) = known {
            return (*id, axes.clone());
        }
        let (axes, dtype) = match what {
            Outside::Param(p) => (self.params[*p].axes.clone(), DType::F32),
            Outside::Data(name) => (self.data.get(name).cloned().unwrap_or_default(), DType::I32),
        };
        let stacked_by = match what {
            Outside::Param(p) => self.params[*p].repeat,
            Outside::Data(_) => None,
        };
        // Within the region that repeats it, and in what that region calls, one slice is seen.
        let sliced_at = self.frames.iter().position(|f| match (&f.kind, &stacked_by) {
            (FrameKind::Repeat(axis), Some(by)) => axis == by,
            _ => false,
        });
        let sliced = sliced_at.is_some_and(|at| at <= depth);
        let axes = if sliced { axes[1..].into() } else { axes };
        let frame = &mut self.frames[depth];
        let name = match what {
            Outside::Param(p) => Symbol::new(&self.params[*p].param.name),
            Outside::Data(name) => *name,
        };
        let id = frame.input(name, dtype, axes.clone()).id;
        let sliced = sliced_at == Some(depth);
        frame.captures.push(Capture { what: what.clone(), id, axes: axes.clone(), sliced });
        (id, axes)
    }

    pub fn outside(&mut self, what: Outside) -> TensorVal {
        let depth = self.frames.len() - 1;
        let dtype = if matches!(what, Outside::Param(_)) { DType::F32 } else { DType::I32 };
        let (id, axes) = self.capture(&what, depth);
        TensorVal { id, dtype, axes }
    }

    pub fn constant(&mut self, value: f64, at: Span) -> TensorVal {
        let id = self.frame().number(value, place(at));
        TensorVal { id, dtype: DType::F32, axes: Rc::default() }
    }

    /// A value as a tensor: numbers become constants, weights are taken in.
    pub fn tensor(&mut self, val: Val, at: Span) -> Eval<TensorVal> {
        match val {
            Val::Tensor(t) => Ok(t),
            Val::Param(p) => Ok(self.outside(Outside::Param(p))),
            Val::Real(x) => Ok(self.constant(x, at)),
            Val::Size(s) => Ok(self.constant(s.as_f64(), at)),
            other => {
                let message = format!("a tensor is needed, and this is {}", other.kind());
                self.fail("E0405", message, at, "used as a tensor here")
            }
        }
    }

    pub fn expr(&mut self, e: &Expr, scope: &Scope) -> Eval<Val> {
        self.step(1, e.span)?;
        if self.nesting >= MAX_NESTING {
            let message = format!("expressions are nested more than {MAX_NESTING} deep");
            return self.fail("E0411", message, e.span, "through all calls, as far as here");
        }
        self.nesting += 1;
        self.trail.nesting = self.trail.nesting.max(self.nesting);
        let result = self.expr_within(e, scope);
        self.nesting -= 1;
        result
    }

    fn expr_within(&mut self, e: &Expr, scope: &Scope) -> Eval<Val> {
        match &e.kind {
            ExprKind::Number(text) => self.number(text, e.span),
            ExprKind::Text(t) => Ok(Val::Text(t.clone())),
            ExprKind::Bool(b) => Ok(Val::Bool(*b)),
            ExprKind::Infinity => Ok(Val::Real(f64::INFINITY)),
            ExprKind::Name(name) => self.name(name, scope),
            ExprKind::Member(base, name) => self.member(base, name, scope),
            ExprKind::Call { function, axes, args } => {
                self.call(e.span, function, axes, args, scope)
            }
            ExprKind::Reaxis(base, changes) => self.reaxis(base, changes, scope),
            ExprKind::Unary(op, inner) => self.unary(*op, inner, e.span, scope),
            ExprKind::Binary(op, a, b) => self.binary(*op, a, b, e.span, scope),
            ExprKind::If(condition, yes, no) => match self.expr(condition, scope)? {
                Val::Bool(true) => self.body(yes, scope),
                Val::Bool(false) => self.body(no, scope),
                other => {
                    let message = "the condition of `if` has to be known when compiling";
                    let here = format!("this is {}", other.kind());
                    let d = Diagnostic::error("E0405", message, condition.span, here);
                    self.sink.push(d.help("choose between tensors with `where(condition, a, b)`"));
                    Err(Reported)
                }
            },
            ExprKind::Tuple(items) => {
                let vals: Eval<Vec<Val>> = items.iter().map(|i| self.expr(i, scope)).collect();
                Ok(Val::Tuple(vals?))
            }
            ExprKind::Else(..) => {
                self.fail("E0405", "`else` belongs to fields of a configuration", e.span, "here")
            }
            ExprKind::Error => Err(Reported),
        }
    }

    pub fn number(&mut self, text: &str, at: Span) -> Eval<Val> {
        if let Ok(n) = text.parse::<u64>() {
            return Ok(Val::Size(Size::number(n)));
        }
        match text.parse::<f64>() {
            Ok(x) if x.is_finite() => Ok(Val::Real(x)),
            _ => self.fail("E0307", format!("`{text}` is out of range"), at, "too large"),
        }
    }

    fn name(&mut self, name: &ast::Name, scope: &Scope) -> Eval<Val> {
        if let Some(val) = scope.values.get(name.text) {
            return Ok(val.clone());
        }
        if let Some(AxisVal { size: Some(size), .. }) = scope.axes.get(name.text) {
            return Ok(Val::Size(size.clone()));
        }
        if let Some(item) = self.program.find(scope.module, name.text) {
            return match self.program.item(item).kind {
                ItemKind::Fn(_) => {
                    Ok(Val::Function(Rc::new(FunctionVal { item, bound: Vec::new() })))
                }
                _ => {
                    let message = format!("`{}` is no value", name.text);
                    let here = "a block is made as a member, not in an expression";
                    self.fail("E0405", message, name.span, here)
                }
            };
        }
        if scope.axes.has(name.text) {
            let message = format!("axis `{}` is no value", name.text);
            let d = Diagnostic::error("E0405", message, name.span, "used as a value here");
            let help = format!("write `size[{0}]()` or `position[{0}]()`", name.text);
            self.sink.push(d.help(help));
            return Err(Reported);
        }
        self.unknown_name(name, scope)
    }

    fn unknown_name<T>(&mut self, name: &ast::Name, scope: &Scope) -> Eval<T> {
        if scope.failed.contains(&name.text) {
            return Err(Reported);
        }
        let program = self.program;
        let names = program.names(scope.module).into_iter();
        let functions = names
            .filter(|(_, item)| matches!(program.item(*item).kind, ItemKind::Fn(_)))
            .map(|(name, _)| name.as_str());
        let methods = scope.owner.as_ref().and_then(|o| crate::block::block_decl(program, o.item));
        let methods = methods.into_iter().flat_map(|b| &b.methods).map(|m| m.name.text.as_str());
        let known = scope.values.names().into_iter().chain(scope.axes.names()).map(Symbol::as_str);
        let known = known.chain(functions).chain(methods).chain(BUILTINS.iter().copied());
        let message = format!("there is no `{}` here", name.text);
        let mut diagnostic = Diagnostic::error("E0201", message, name.span, "unknown name");
        if let Some(near) = nearest(&name.text, known) {
            diagnostic = diagnostic.help(format!("write `{near}`"));
        } else if let Some(module) = standard_home(program, &name.text) {
            diagnostic = diagnostic.help(format!("import it: `use {module}.{}`", name.text));
        }
        self.sink.push(diagnostic);
        Err(Reported)
    }

    fn member(&mut self, base: &Expr, name: &ast::Name, scope: &Scope) -> Eval<Val> {
        let val = self.expr(base, scope)?;
        if let Val::Config(config) = &val {
            return match config.fields.get(&name.text) {
                Some(setting) => Ok(from_setting(setting)),
                None => {
                    let near = nearest(&name.text, config.fields.keys()).copied();
                    let place = item_name(self.program.item(config.item)).map(|n| n.span);
                    let what = format!("`{}` has no field `{}`", config.name, name.text);
                    self.no_member(what, name.span, place, near)
                }
            };
        }
        if let Val::Block(block) = &val {
            return match block.members.get(name.text) {
                Some(member) => Ok(crate::block::member_value(member)),
                None => {
                    let near = nearest(&name.text, block.members.names().into_iter());
                    let place = item_name(self.program.item(block.item));
                    let owner = place.map_or("this block", |n| &n.text);
                    let what = format!("`{owner}` has no member `{}`", name.text);
                    self.no_member(what, name.span, place.map(|n| n.span), near)
                }
            };
        }
        // In how many bits numbers are stored is the run's choice.
        let mut known = DType::ALL.into_iter().filter(|d| *d != DType::Bf16);
        let Some(dtype) = known.clone().find(|d| name.text == d.name()) else {
            let message = format!("{} has no member `{}`", val.kind(), name.text);
            let near = nearest(&name.text, known.by_ref().map(|d| d.name())).map(Symbol::new);
            return self.no_member(message, name.span, None, near);
        };
        let tensor = self.tensor(val, base.span)?;
        if tensor.dtype == dtype {
            return Ok(Val::Tensor(tensor));
        }
        self.op(Op::Cast(dtype), &[&tensor], &[], name.span).map(Val::Tensor)
    }

    fn no_member<T>(
        &mut self,
        message: String,
        at: Span,
        owner: Option<Span>,
        near: Option<Symbol>,
    ) -> Eval<T> {
        let mut d = Diagnostic::error("E0207", message, at, "no such member");
        if let Some(owner) = owner {
            d = d.label(owner, "declared here");
        }
        if let Some(near) = near {
            d = d.help(format!("write `{near}`"));
        }
        self.sink.push(d);
        Err(Reported)
    }

    fn unary(&mut self, op: UnaryOp, inner: &Expr, at: Span, scope: &Scope) -> Eval<Val> {
        match (op, self.expr(inner, scope)?) {
            (UnaryOp::Neg, Val::Real(x)) => Ok(Val::Real(-x)),
            (UnaryOp::Neg, Val::Size(s)) => Ok(Val::Real(-s.as_f64())),
            (UnaryOp::Not, Val::Bool(b)) => Ok(Val::Bool(!b)),
            (op, val) => {
                let tensor = self.tensor(val, inner.span)?;
                let (wanted, unary) = match op {
                    UnaryOp::Neg => (DType::F32, Unary::Neg),
                    UnaryOp::Not => (DType::Bool, Unary::Not),
                };
                self.want(&tensor, wanted, inner.span)?;
                self.op(Op::Unary(unary), &[&tensor], &[], at).map(Val::Tensor)
            }
        }
    }

    /// An element type that an operation needs.
    pub fn want(&mut self, tensor: &TensorVal, wanted: DType, at: Span) -> Eval<()> {
        if tensor.dtype == wanted {
            return Ok(());
        }
        let name = |d: DType| match d {
            DType::F32 | DType::Bf16 => "numbers",
            DType::I32 => "ids",
            DType::Bool => "truth values",
        };
        let message = format!("{} are needed, and these are {}", name(wanted), name(tensor.dtype));
        let here = format!("these are {}", name(tensor.dtype));
        let d = Diagnostic::error("E0401", message, at, here);
        let help = match (wanted, tensor.dtype) {
            (DType::F32, DType::Bool) => Some("choose numbers with `where(condition, 1, 0)`"),
            (DType::F32, DType::I32) => Some("cast them with `.f32`"),
            (DType::Bool, _) => Some("compare them with something, as in `x > 0`"),
            _ => None,
        };
        self.sink.push(match help {
            Some(help) => d.help(help),
            None => d,
        });
        Err(Reported)
    }

    fn binary(&mut self, op: BinaryOp, a: &Expr, b: &Expr, at: Span, scope: &Scope) -> Eval<Val> {
        // Both sides are looked at, so that two mistakes are two messages.
        let (x, y) = (self.expr(a, scope), self.expr(b, scope));
        let (x, y) = (x?, y?);
        if let Some(known) = self.known_binary(op, &x, &y, at)? {
            return Ok(known);
        }
        let (x, y) = (self.tensor(x, a.span)?, self.tensor(y, b.span)?);
        let logic = matches!(op, BinaryOp::And | BinaryOp::Or);
        let comparison = matches!(
            op,
            BinaryOp::Eq | BinaryOp::Ne | BinaryOp::Lt | BinaryOp::Le | BinaryOp::Gt | BinaryOp::Ge
        );
        for (t, e) in [(&x, a), (&y, b)] {
            if logic {
                self.want(t, DType::Bool, e.span)?;
            } else if !comparison || t.dtype == DType::Bool {
                self.want(t, DType::F32, e.span)?;
            }
        }
        let mut go = |op, x: &TensorVal, y: &TensorVal| self.op(Op::Binary(op), &[x, y], &[], at);
        let result = match op {
            BinaryOp::Add => go(Binary::Add, &x, &y)?,
            BinaryOp::Sub => go(Binary::Sub, &x, &y)?,
            BinaryOp::Mul => go(Binary::Mul, &x, &y)?,
            BinaryOp::Div => go(Binary::Div, &x, &y)?,
            BinaryOp::Lt => go(Binary::Lt, &x, &y)?,
            BinaryOp::Le => go(Binary::Le, &x, &y)?,
            BinaryOp::Gt => go(Binary::Lt, &y, &x)?,
            BinaryOp::Ge => go(Binary::Le, &y, &x)?,
            BinaryOp::And => go(Binary::And, &x, &y)?,
            BinaryOp::Or => go(Binary::Or, &x, &y)?,
            BinaryOp::Eq => go(Binary::Eq, &x, &y)?,
            BinaryOp::Ne => {
                let equal = go(Binary::Eq, &x, &y)?;
                self.op(Op::Unary(Unary::Not), &[&equal], &[], at)?
            }
        };
        Ok(Val::Tensor(result))
    }

    fn known_binary(&mut self, op: BinaryOp, x: &Val, y: &Val, at: Span) -> Eval<Option<Val>> {
        let (Val::Size(a), Val::Size(b)) = (x, y) else { return Ok(known_value(op, x, y)) };
        // As many products of terms are made.
        self.step(a.terms_count() * b.terms_count() / 8, at)?;
        if let Some(size) = a.combine(op, b) {
            return Ok(Some(Val::Size(size)));
        }
        if matches!(op, BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul) {
            let message = "the arithmetic of these sizes is out of range";
            let here = format!("{} and {}", a.explained(), b.explained());
            return self.fail("E0307", message, at, here);
        }
        Ok(known_value(op, x, y))
    }

    /// Runs a body's statements and gives its result.
    pub fn body(&mut self, body: &ast::Body, outer: &Scope) -> Eval<Val> {
        if body.lets.is_empty() {
            self.watched(body, outer)?;
            return self.expr(&body.result, outer);
        }
        let mut scope = outer.clone();
        let mut failed = false;
        for statement in &body.lets {
            if self.statement(statement, &mut scope).is_err() {
                failed = true;
                let names = match statement {
                    ast::Let::Value { names, .. } => names.iter(),
                    ast::Let::Axis { name, .. } => std::slice::from_ref(name).iter(),
                };
                scope.failed.extend(names.map(|n| n.text));
            }
        }
        // After a failure the names that it would have made are unknown; saying so again helps
        // nobody.
        if failed {
            return Err(Reported);
        }
        self.watched(body, &scope)?;
        self.expr(&body.result, &scope)
    }

    /// The size of an axis has to be a whole number in range.
    pub fn whole(&mut self, name: &str, size: &Size, at: Span) -> Eval<()> {
        // Said of every axis, so the message is made only where it is needed.
        let message = || format!("axis `{name}` would be {}", size.explained());
        match size.value() {
            Some(n) if in_range(n) => Ok(()),
            // Made-up numbers leave remainders and differences that real ones do not.
            _ if self.sample
                && !size.is_number()
                && (size.is_fraction() || size.as_f64() < 1.0) =>
            {
                Err(Reported)
            }
            None if size.is_fraction() => {
                self.fail("E0407", message(), at, "this division leaves a remainder")
            }
            _ => self.fail("E0307", message(), at, "sizes are 1 to 2147483647"),
        }
    }

    fn statement(&mut self, statement: &ast::Let, scope: &mut Scope) -> Eval<()> {
        match statement {
            ast::Let::Axis { name, size } => {
                let value = crate::call::size_of(self, size, scope)?;
                self.whole(&name.text, &value, size.span)?;
                let axis = AxisVal { name: name.text, size: Some(value), origin: size.span };
                scope.axes.insert(name.text, axis);
            }
            ast::Let::Value { names, value } => {
                let val = self.expr(value, scope)?;
                match (names.as_slice(), val) {
                    ([one], val) => {
                        if let Val::Tensor(t) = &val {
                            self.frame().name(t.id, one.text);
                        }
                        scope.values.insert(one.text, val);
                    }
                    (many, Val::Tuple(vals)) if many.len() == vals.len() => {
                        let names = many.iter().map(|n| n.text);
                        scope.values.extend(names.zip(vals));
                    }
                    (many, other) => {
                        let message = format!("{} names are given one value each", many.len());
                        let here = match other {
                            Val::Tuple(vals) => format!("these are {} values", vals.len()),
                            other => format!("this is {}", other.kind()),
                        };
                        return self.fail("E0208", message, value.span, here);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Can an axis have this size?
pub fn in_range(n: u64) -> bool {
    (1..1 << 31).contains(&n)
}

pub fn concrete(axis: &SymAxis) -> Axis {
    Axis::new(axis.name, axis.size.value().expect("axes have whole sizes"))
}

pub fn from_setting(setting: &Setting) -> Val {
    match setting {
        Setting::Size(s) => Val::Size(s.clone()),
        Setting::Real(x) => Val::Real(*x),
        Setting::Bool(b) => Val::Bool(*b),
        Setting::Text(t) => Val::Text(t.clone()),
        Setting::Config(c) => Val::Config(c.clone()),
    }
}

/// Arithmetic on what is known at compile time, but for what sizes have in symbols.
fn known_value(op: BinaryOp, x: &Val, y: &Val) -> Option<Val> {
    let number = |v: &Val| match v {
        Val::Size(s) => Some(s.as_f64()),
        Val::Real(x) => Some(*x),
        _ => None,
    };
    match (x, y) {
        (Val::Text(a), Val::Text(b)) if op == BinaryOp::Eq => Some(Val::Bool(a == b)),
        (Val::Text(a), Val::Text(b)) if op == BinaryOp::Ne => Some(Val::Bool(a != b)),
        (Val::Bool(a), Val::Bool(b)) => match op {
            BinaryOp::And => Some(Val::Bool(*a && *b)),
            BinaryOp::Or => Some(Val::Bool(*a || *b)),
            BinaryOp::Eq => Some(Val::Bool(a == b)),
            BinaryOp::Ne => Some(Val::Bool(a != b)),
            _ => None,
        },
        _ => arithmetic(op, number(x)?, number(y)?).map(|s| from_setting(&s)),
    }
}
