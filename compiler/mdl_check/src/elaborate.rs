//! The walk that checks and builds: expressions of a scope become values of the innermost frame's
//! body.

use crate::config::{Setting, arithmetic};
use crate::frame::{Frame, FrameKind, Outside};
use crate::program::Program;
use crate::size::Size;
use crate::value::{AxisVal, Eval, Reported, Scope, SymAxis, TensorVal, Val};
use mdl_ir::graph::{Param, ValueId};
use mdl_ir::op::{Binary, Op, Unary};
use mdl_ir::place::Place;
use mdl_ir::tensor_type::{Axis, DType, Type};
use mdl_syntax::ast::{self, BinaryOp, Expr, ExprKind, ItemKind, UnaryOp};
use mdl_syntax::diag::{Diagnostic, Sink};
use mdl_syntax::span::Span;
use std::collections::BTreeMap;

/// Calls within calls.
pub const MAX_CALL_DEPTH: usize = 64;
/// Operations of one entry, all regions together.
pub const MAX_OPERATIONS: usize = 10_000_000;

/// A parameter with what elaboration needs to know of it beyond the graph.
#[derive(Clone, Debug)]
pub struct ParamInfo {
    pub param: Param,
    pub axes: Vec<SymAxis>,
    /// The axis along which a repeated block stacks it.
    pub repeat: Option<String>,
    pub span: Span,
}

#[derive(Debug)]
pub struct Elaborator<'a> {
    pub program: &'a Program,
    pub sink: &'a mut Sink,
    pub params: Vec<ParamInfo>,
    pub frames: Vec<Frame>,
    /// Axis that a rename made, and the axis it was made from.
    pub origins: BTreeMap<String, String>,
    /// Axes of the graph's data inputs by name.
    pub data: BTreeMap<String, Vec<SymAxis>>,
    /// Is there a `documents` input?
    pub documents: bool,
    pub depth: usize,
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

    pub fn frame(&mut self) -> &mut Frame {
        self.frames.last_mut().expect("elaboration has a frame")
    }

    /// Adds an operation; axes that two arguments share must have one size.
    pub fn op(
        &mut self,
        op: Op,
        args: &[&TensorVal],
        new: &[SymAxis],
        at: Span,
    ) -> Eval<TensorVal> {
        self.agree(args, at)?;
        let ids: Vec<ValueId> = args.iter().map(|t| t.id).collect();
        let pushed = self.frame().builder.push(op, &ids, place(at));
        let id = match pushed {
            Ok(id) => id,
            Err(fault) => {
                let code = if fault.contains("is the most") { "E0305" } else { "E0301" };
                return self.fail(code, fault, at, "in this operation");
            }
        };
        if self.frame().builder.body.nodes.len() > MAX_OPERATIONS {
            return self.fail("E0411", "the model has more than 10 million operations", at, "here");
        }
        let ty = self.frame().builder.ty(id).clone();
        let known: Vec<&SymAxis> = new.iter().chain(args.iter().flat_map(|t| &t.axes)).collect();
        let axes = ty.axes.iter().map(|axis| symbolic(axis, &known, at)).collect();
        self.limits(&ty, at)?;
        Ok(TensorVal { id, dtype: ty.dtype, axes })
    }

    fn limits(&mut self, ty: &Type, at: Span) -> Eval<()> {
        let mut bytes = ty.dtype.bytes();
        for axis in &ty.axes {
            bytes = match bytes.checked_mul(axis.size) {
                Some(b) if b <= 1 << 48 => b,
                _ => {
                    let message = format!("a tensor {ty} is larger than 2^48 bytes");
                    return self.fail("E0307", message, at, "made here");
                }
            };
        }
        Ok(())
    }

    /// Sizes of axes with one name are compared as polynomials, with both places shown where they
    /// differ.
    fn agree(&mut self, args: &[&TensorVal], at: Span) -> Eval<()> {
        for (i, a) in args.iter().enumerate() {
            for b in &args[i + 1..] {
                for x in &a.axes {
                    let Some(y) = b.axis(&x.name) else { continue };
                    if !x.size.same(&y.size) {
                        let (x, y) = (x.clone(), y.clone());
                        return self.sizes_differ(&x, &y, at);
                    }
                }
            }
        }
        Ok(())
    }

    pub fn sizes_differ<T>(&mut self, x: &SymAxis, y: &SymAxis, at: Span) -> Eval<T> {
        let message = format!(
            "axis `{}` has two sizes: {} and {}",
            x.name,
            x.size.explained(),
            y.size.explained()
        );
        let mut diagnostic = Diagnostic::error("E0302", message, at, "these must agree");
        diagnostic = diagnostic.label(x.origin, format!("{} here", x.size.explained()));
        if x.origin != y.origin {
            diagnostic = diagnostic.label(y.origin, format!("{} here", y.size.explained()));
        }
        self.sink.push(diagnostic);
        Err(Reported)
    }

    /// The value of something outside, in the innermost frame: taken in through every region
    /// between.
    pub fn capture(&mut self, what: &Outside, depth: usize) -> (ValueId, Vec<SymAxis>) {
        let known = self.frames[depth].captures.iter().find(|(w, _, _)| w == what);
        let (axes, dtype) = match what {
            Outside::Param(p) => (self.params[*p].axes.clone(), DType::F32),
            Outside::Data(name) => (self.data[name].clone(), DType::I32),
        };
        let stacked_by = match what {
            Outside::Param(p) => self.params[*p].repeat.clone(),
            Outside::Data(_) => None,
        };
        // Within the region that repeats it, and in what that region calls, one slice is seen.
        let sliced_at = self.frames.iter().position(|f| match (&f.kind, &stacked_by) {
            (FrameKind::Repeat(axis), Some(by)) => axis == by,
            _ => false,
        });
        let sliced = sliced_at.is_some_and(|at| at <= depth);
        let axes = if sliced { axes[1..].to_vec() } else { axes };
        if let Some((_, id, _)) = known {
            return (*id, axes);
        }
        let ty = Type::new(dtype, axes.iter().map(concrete).collect());
        let name = match what {
            Outside::Param(p) => self.params[*p].param.name.clone(),
            Outside::Data(name) => name.clone(),
        };
        let frame = &mut self.frames[depth];
        let id = frame.builder.input(&name, ty);
        frame.captures.push((what.clone(), id, sliced_at == Some(depth)));
        (id, axes)
    }

    pub fn outside(&mut self, what: Outside) -> TensorVal {
        let depth = self.frames.len() - 1;
        let dtype = if matches!(what, Outside::Param(_)) { DType::F32 } else { DType::I32 };
        let (id, axes) = self.capture(&what, depth);
        TensorVal { id, dtype, axes }
    }

    pub fn constant(&mut self, value: f64, at: Span) -> TensorVal {
        let id = self.frame().builder.number(value, place(at));
        TensorVal { id, dtype: DType::F32, axes: Vec::new() }
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
                Val::Bool(true) => self.body(yes, scope.clone()),
                Val::Bool(false) => self.body(no, scope.clone()),
                other => {
                    let message = format!(
                        "the condition of `if` is known at compile time, and this is {}",
                        other.kind()
                    );
                    self.fail("E0405", message, condition.span, "use `where` on tensors")
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
        if let Some(val) = scope.values.get(&name.text) {
            return Ok(val.clone());
        }
        if let Some(AxisVal { size: Some(size), .. }) = scope.axes.get(&name.text) {
            return Ok(Val::Size(size.clone()));
        }
        if let Some(item) = self.program.find(scope.module, &name.text)
            && matches!(self.program.item(item).kind, ItemKind::Fn(_))
        {
            return Ok(Val::Function(item));
        }
        let known = scope.values.keys().chain(scope.axes.keys()).map(String::as_str);
        let near = nearest(&name.text, known);
        let message = format!("there is no `{}` here", name.text);
        let mut diagnostic = Diagnostic::error("E0201", message, name.span, "unknown name");
        if let Some(near) = near {
            diagnostic = diagnostic.help(format!("there is `{near}`"));
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
                    let message = format!("`{}` has no field `{}`", config.name, name.text);
                    self.fail("E0207", message, name.span, "no such field")
                }
            };
        }
        if let Val::Block(block) = &val {
            return match block.members.get(&name.text) {
                Some(member) => Ok(crate::block::member_value(member)),
                None => {
                    let message = format!("this block has no member `{}`", name.text);
                    self.fail("E0207", message, name.span, "no such member")
                }
            };
        }
        let Some(dtype) = DType::from_name(&name.text) else {
            let message = format!("{} has no member `{}`", val.kind(), name.text);
            return self.fail("E0207", message, name.span, "no such member");
        };
        let tensor = self.tensor(val, base.span)?;
        if tensor.dtype == dtype {
            return Ok(Val::Tensor(tensor));
        }
        self.op(Op::Cast(dtype), &[&tensor], &[], name.span).map(Val::Tensor)
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
            DType::F32 => "numbers",
            DType::I32 => "ids",
            DType::Bool => "truth values",
        };
        let message = format!("{} are needed, and these are {}", name(wanted), name(tensor.dtype));
        self.fail("E0401", message, at, name(tensor.dtype))
    }

    fn binary(&mut self, op: BinaryOp, a: &Expr, b: &Expr, at: Span, scope: &Scope) -> Eval<Val> {
        // Both sides are looked at, so that two mistakes are two messages.
        let (x, y) = (self.expr(a, scope), self.expr(b, scope));
        let (x, y) = (x?, y?);
        if let Some(known) = self.known_binary(op, &x, &y) {
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

    /// Arithmetic on what is known at compile time.
    fn known_binary(&mut self, op: BinaryOp, x: &Val, y: &Val) -> Option<Val> {
        let number = |v: &Val| match v {
            Val::Size(s) => Some(s.as_f64()),
            Val::Real(x) => Some(*x),
            _ => None,
        };
        match (x, y) {
            (Val::Size(a), Val::Size(b)) if a.combine(op, b).is_some() => {
                a.combine(op, b).map(Val::Size)
            }
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

    /// Runs a body's statements and gives its result.
    pub fn body(&mut self, body: &ast::Body, mut scope: Scope) -> Eval<Val> {
        let mut failed = false;
        for statement in &body.lets {
            failed |= self.statement(statement, &mut scope).is_err();
        }
        // After a failure the names that it would have made are unknown; saying so again helps
        // nobody.
        if failed { Err(Reported) } else { self.expr(&body.result, &scope) }
    }

    fn statement(&mut self, statement: &ast::Let, scope: &mut Scope) -> Eval<()> {
        match statement {
            ast::Let::Axis { name, size } => {
                let Val::Size(value) = self.expr(size, scope)? else {
                    return self.fail("E0405", "an axis takes a size", size.span, "this is none");
                };
                let message = |s: &Size| format!("axis `{}` would be {}", name.text, s.explained());
                match value.value() {
                    Some(n) if (1..1 << 31).contains(&n) => {}
                    Some(_) => return self.fail("E0307", message(&value), size.span, "here"),
                    None => {
                        return self.fail(
                            "E0407",
                            message(&value),
                            size.span,
                            "leaves a remainder",
                        );
                    }
                }
                let axis =
                    AxisVal { name: name.text.clone(), size: Some(value), origin: size.span };
                scope.axes.insert(name.text.clone(), axis);
            }
            ast::Let::Value { names, value } => {
                let val = self.expr(value, scope)?;
                match (names.as_slice(), val) {
                    ([one], val) => {
                        if let Val::Tensor(t) = &val {
                            self.frame().builder.name(t.id, &one.text);
                        }
                        scope.values.insert(one.text.clone(), val);
                    }
                    (many, Val::Tuple(vals)) if many.len() == vals.len() => {
                        let names = many.iter().map(|n| n.text.clone());
                        scope.values.extend(names.zip(vals));
                    }
                    (many, _) => {
                        let message = format!("{} names and another number of values", many.len());
                        return self.fail("E0208", message, value.span, "this value");
                    }
                }
            }
        }
        Ok(())
    }
}

/// An axis with its symbolic size, found among the known ones by name and value.
fn symbolic(axis: &Axis, known: &[&SymAxis], at: Span) -> SymAxis {
    let fits = |k: &&&SymAxis| k.name == axis.name && k.size.value() == Some(axis.size);
    match known.iter().find(fits) {
        Some(k) => (*k).clone(),
        None => SymAxis { name: axis.name.clone(), size: Size::number(axis.size), origin: at },
    }
}

pub fn concrete(axis: &SymAxis) -> Axis {
    Axis::new(&axis.name, axis.size.value().expect("axes have whole sizes"))
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

/// The known name that differs least, if it differs little.
pub fn nearest<'s>(name: &str, known: impl Iterator<Item = &'s str>) -> Option<&'s str> {
    let limit = (name.chars().count() / 3).max(1);
    known
        .map(|k| (distance(name, k), k))
        .filter(|(d, _)| *d <= limit)
        .min_by_key(|(d, _)| *d)
        .map(|(_, k)| k)
}

/// Edit distance (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let next = (diagonal + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], next);
        }
    }
    row[b.len()]
}
