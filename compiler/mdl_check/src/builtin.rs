//! The functions that the language itself has: the primitive operations as a model file calls them.

use crate::elaborate::{Elaborator, concrete};
use crate::frame::{FrameKind, Outside};
use crate::memo::Origin;
use crate::nearest::nearest;
use crate::size::Size;
use crate::value::{AxisVal, Eval, Reported, Scope, SymAxis, TensorVal, Val};
use crate::work::OPERATION;
use mdl_ir::op::{Binary, Op, Reduction, Unary};
use mdl_ir::tensor_type::{Axis, DType};
use mdl_symbol::{Symbol, SymbolSet};
use mdl_syntax::ast::{AxisArg, AxisChange, CallArg, Expr};
use mdl_syntax::diag::Diagnostic;
use mdl_syntax::span::Span;
use std::sync::LazyLock;

/// Names that no item and no method may have.
pub const BUILTINS: &[&str] = &[
    "neg",
    "exp",
    "log",
    "sqrt",
    "rsqrt",
    "sigmoid",
    "sin",
    "cos",
    "tanh",
    "abs",
    "sum",
    "max",
    "min",
    "where",
    "total",
    "size",
    "position",
    "document",
    "stop_gradient",
    "gather",
    "concat",
    "uniform",
];

static NAMES: LazyLock<SymbolSet> =
    LazyLock::new(|| BUILTINS.iter().map(|name| Symbol::new(name)).collect());

pub fn is_builtin(name: Symbol) -> bool {
    NAMES.contains(&name)
}

/// A call of a builtin: where it stands, its axes and its arguments.
pub struct BuiltinCall<'c> {
    pub name: &'c str,
    pub at: Span,
    pub axes: &'c [AxisArg],
    pub args: &'c [CallArg],
}

impl Elaborator<'_> {
    pub fn builtin(&mut self, call: &BuiltinCall<'_>, scope: &Scope) -> Eval<Val> {
        if let Some(named) = call.args.iter().find_map(|a| a.name.as_ref()) {
            let message = format!("the arguments of `{}` have no names", call.name);
            return self.fail("E0208", message, named.span, "give the value alone");
        }
        let takes_axes = match call.name {
            "sum" | "size" | "position" | "document" | "gather" | "concat" => true,
            "max" => call.args.len() == 1,
            _ => false,
        };
        if let (false, Some(axis)) = (takes_axes, call.axes.first()) {
            let message = format!("`{}` takes no axes in brackets", call.name);
            return self.fail("E0208", message, axis.name.span, "given here");
        }
        if let (true, Some(AxisArg { name, old: Some(_) })) =
            (call.name != "concat", call.axes.iter().find(|a| a.old.is_some()))
        {
            let message = format!("`{}` renames no axis", call.name);
            return self.fail("E0208", message, name.span, "an axis by its name alone goes here");
        }
        if let Some(unary) = Unary::from_name(call.name) {
            return self.unary_call(unary, call, scope);
        }
        let wanted = match call.name {
            "sum" => 1,
            "max" if !call.axes.is_empty() => 1,
            "max" | "min" | "gather" | "concat" => 2,
            "where" => 3,
            "total" | "stop_gradient" | "uniform" => 1,
            _ => 0,
        };
        if call.args.len() != wanted {
            let wanted = crate::call::count(wanted, "argument", "arguments");
            let message = format!("`{}` takes {wanted}", call.name);
            return self.fail("E0208", message, call.at, format!("{} given", call.args.len()));
        }
        match call.name {
            "size" | "position" | "document" => self.of_axis(call, scope),
            "uniform" => self.uniform(call, scope),
            "concat" => self.concat(call, scope),
            "sum" if call.axes.is_empty() => {
                let message = "`sum` says the axes that it sums over";
                let d = Diagnostic::error("E0208", message, call.at, "no axis is named here");
                self.sink.push(d.help("write `sum[axis](x)`, or `total(x)` for all axes"));
                Err(Reported)
            }
            "sum" | "max" if !call.axes.is_empty() => self.reduce(call, scope),
            _ => self.on_tensors(call, scope),
        }
    }

    fn unary_call(&mut self, op: Unary, call: &BuiltinCall<'_>, scope: &Scope) -> Eval<Val> {
        let [arg] = call.args else {
            let message = format!("`{}` takes one argument", call.name);
            return self.fail("E0208", message, call.at, format!("{} given", call.args.len()));
        };
        let number = match self.expr(&arg.value, scope)? {
            Val::Real(x) => x,
            Val::Size(s) => s.as_f64(),
            val => {
                let t = self.tensor(val, arg.value.span)?;
                self.want(&t, DType::F32, arg.value.span)?;
                return self.op(Op::Unary(op), &[&t], &[], call.at).map(Val::Tensor);
            }
        };
        let folded = mdl_ir::interp::fold(&Op::Unary(op), &[number]);
        // Every unary operation folds.
        Ok(Val::Real(folded.unwrap_or(f64::NAN)))
    }

    fn arg(&mut self, arg: &CallArg, scope: &Scope) -> Eval<TensorVal> {
        let val = self.expr(&arg.value, scope)?;
        self.tensor(val, arg.value.span)
    }

    fn on_tensors(&mut self, call: &BuiltinCall<'_>, scope: &Scope) -> Eval<Val> {
        let args: Vec<Eval<TensorVal>> = call.args.iter().map(|a| self.arg(a, scope)).collect();
        let args: Vec<TensorVal> = args.into_iter().collect::<Eval<_>>()?;
        let refs: Vec<&TensorVal> = args.iter().collect();
        let span = |i: usize| call.args[i].value.span;
        let result = match call.name {
            "min" | "max" => {
                self.want(&args[0], DType::F32, span(0))?;
                self.want(&args[1], DType::F32, span(1))?;
                let op = if call.name == "min" { Binary::Min } else { Binary::Max };
                self.op(Op::Binary(op), &refs, &[], call.at)?
            }
            "where" => {
                self.want(&args[0], DType::Bool, span(0))?;
                self.want(&args[1], DType::F32, span(1))?;
                self.want(&args[2], DType::F32, span(2))?;
                self.op(Op::Select, &refs, &[], call.at)?
            }
            "total" => {
                let axes = names(args[0].axes.iter());
                self.op(Op::Reduce { kind: Reduction::Sum, axes }, &refs, &[], call.at)?
            }
            "gather" => {
                self.want(&args[1], DType::I32, span(1))?;
                let [axis] = call.axes else {
                    return self.fail("E0208", "`gather` takes one axis", call.at, "here");
                };
                let at = axis.name.span;
                let axis = self.axis(axis.name.text, at, scope, &[&args[0]])?.name;
                if args[0].axis(axis).is_none() {
                    return self.lacks_axis(&args[0], &axis, at, span(0));
                }
                self.op(Op::Gather { axis }, &refs, &[], call.at)?
            }
            _ => self.op(Op::StopGradient, &refs, &[], call.at)?,
        };
        Ok(Val::Tensor(result))
    }

    fn reduce(&mut self, call: &BuiltinCall<'_>, scope: &Scope) -> Eval<Val> {
        let t = self.arg(&call.args[0], scope)?;
        self.want(&t, DType::F32, call.args[0].value.span)?;
        let mut axes = Vec::new();
        for a in call.axes {
            axes.push(self.axis(a.name.text, a.name.span, scope, &[&t])?.name);
        }
        for (name, a) in axes.iter().zip(call.axes) {
            if t.axis(*name).is_none() {
                return self.lacks_axis(&t, name, a.name.span, call.args[0].value.span);
            }
        }
        for (i, a) in call.axes.iter().enumerate() {
            if axes[..i].contains(&axes[i]) {
                let message = format!("axis `{}` is named twice", a.name.text);
                return self.fail("E0306", message, a.name.span, "named again here");
            }
        }
        let kind = if call.name == "sum" { Reduction::Sum } else { Reduction::Max };
        self.op(Op::Reduce { kind, axes }, &[&t], &[], call.at).map(Val::Tensor)
    }

    /// What an axis name in brackets means: in scope, or an axis of one of these tensors.
    pub fn axis(
        &mut self,
        name: Symbol,
        at: Span,
        scope: &Scope,
        among: &[&TensorVal],
    ) -> Eval<AxisVal> {
        let known = scope.axes.get(name);
        let wanted = known.map_or(name, |k| k.name);
        if let Some(found) = among.iter().find_map(|t| t.axis(wanted)) {
            return Ok(AxisVal {
                name: found.name,
                size: Some(found.size.clone()),
                origin: found.origin,
            });
        }
        match known {
            Some(known) => Ok(known.clone()),
            None => self.no_axis(name, at, scope, among),
        }
    }

    pub fn no_axis<T>(
        &mut self,
        name: Symbol,
        at: Span,
        scope: &Scope,
        among: &[&TensorVal],
    ) -> Eval<T> {
        if scope.failed.contains(&name) {
            return Err(Reported);
        }
        let own = among.iter().flat_map(|t| t.axes.iter()).map(|a| a.name);
        let near = nearest(&name, own.chain(scope.axes.names()));
        let message = format!("there is no axis `{name}` here");
        let mut d = Diagnostic::error("E0204", message, at, "unknown axis");
        if let Some(near) = near {
            d = d.help(format!("write `{near}`"));
        }
        self.sink.push(d);
        Err(Reported)
    }

    fn lacks_axis<T>(&mut self, t: &TensorVal, name: &str, at: Span, operand: Span) -> Eval<T> {
        let message = format!("an operand {} has no axis `{name}`", t.show());
        let d = Diagnostic::error("E0301", message, at, format!("`{name}` is wanted here"));
        self.sink.push(d.label(operand, format!("this is {}", t.show())));
        Err(Reported)
    }

    fn sized(&mut self, call: &BuiltinCall<'_>, scope: &Scope) -> Eval<SymAxis> {
        let [axis] = call.axes else {
            let message = format!("`{}` takes one axis", call.name);
            let here = format!("write `{}[axis]()`", call.name);
            return self.fail("E0208", message, call.at, here);
        };
        let found = self.axis(axis.name.text, axis.name.span, scope, &[])?;
        match found.size {
            Some(size) => Ok(SymAxis { name: found.name, size, origin: found.origin }),
            None => {
                let message = format!("the size of axis `{}` is not known here", axis.name.text);
                self.fail("E0204", message, axis.name.span, "no argument has this axis")
            }
        }
    }

    fn of_axis(&mut self, call: &BuiltinCall<'_>, scope: &Scope) -> Eval<Val> {
        let axis = self.sized(call, scope)?;
        match call.name {
            "size" => Ok(Val::Size(axis.size)),
            "position" => {
                let op = Op::Position(concrete(&axis));
                self.op(op, &[], &[axis], call.at).map(Val::Tensor)
            }
            _ => self.document(&axis, call.at),
        }
    }

    /// Ids of the document at each position of a sequence axis, or of an axis renamed from it.
    fn document(&mut self, axis: &SymAxis, at: Span) -> Eval<Val> {
        if let FrameKind::Init(_) = self.frame().kind {
            let message = "documents belong to the sequences of a run";
            return self.fail("E0405", message, at, "an initial value has none");
        }
        if !self.documents {
            return Ok(Val::Tensor(self.constant(0.0, at)));
        }
        let documents = Symbol::new("documents");
        if !self.data.contains_key(&documents) {
            let message = "documents belong to the sequences of a run";
            return self.fail("E0405", message, at, "there is no sequence here");
        }
        let base = self.outside(Outside::Data(documents));
        if base.axis(axis.name).is_some() {
            return Ok(Val::Tensor(base));
        }
        let origin = self.origins.get(&axis.name).copied();
        self.trail.origins.push(Origin::Found(axis.name, origin));
        match origin {
            Some(from) if base.axis(from).is_some() => {
                let op = Op::Rename { from, to: axis.name };
                self.op(op, &[&base], std::slice::from_ref(axis), at).map(Val::Tensor)
            }
            _ => {
                let message = format!("`{}` is no axis along a sequence", axis.name);
                self.fail("E0204", message, at, "documents lie along the sequence")
            }
        }
    }

    fn uniform(&mut self, call: &BuiltinCall<'_>, scope: &Scope) -> Eval<Val> {
        let Val::Size(stream) = self.expr(&call.args[0].value, scope)? else {
            let at = call.args[0].value.span;
            return self.fail("E0405", "`uniform` takes the number of a stream", at, "here");
        };
        let FrameKind::Init(axes) = self.frame().kind.clone() else {
            let message = "random numbers belong to the initial values of parameters";
            return self.fail("E0405", message, call.at, "used elsewhere");
        };
        let Some(stream) = stream.value().and_then(|n| u32::try_from(n).ok()) else {
            let at = call.args[0].value.span;
            return self.fail("E0307", "a stream is a whole number", at, "out of range");
        };
        self.op(Op::Random { stream, axes: axes.to_vec() }, &[], &[], call.at).map(Val::Tensor)
    }

    fn concat(&mut self, call: &BuiltinCall<'_>, scope: &Scope) -> Eval<Val> {
        let (a, b) = (self.arg(&call.args[0], scope)?, self.arg(&call.args[1], scope)?);
        let [AxisArg { name, old: Some(old) }] = call.axes else {
            let message = "`concat` says the new and the old axis: `concat[head = half](a, b)`";
            return self.fail("E0208", message, call.at, "here");
        };
        let old = self.axis(old.text, old.span, scope, &[&a])?;
        let into = self.axis(name.text, name.span, scope, &[])?;
        let (Some(x), Some(y)) = (a.axis(old.name), b.axis(old.name)) else {
            let message = format!("both parts need the axis `{}`", old.name);
            return self.fail("E0301", message, call.at, format!("{} and {}", a.show(), b.show()));
        };
        let total = x.size.combine(mdl_syntax::ast::BinaryOp::Add, &y.size);
        let Some(total) = total else {
            return self.fail("E0307", "this size is out of range", call.at, "concatenated here");
        };
        let size = into.size.unwrap_or_else(|| total.clone());
        if !size.same(&total) {
            let message = format!(
                "axis `{}` is {} and the parts make {}",
                into.name,
                size.explained(),
                total.explained()
            );
            let d = Diagnostic::error("E0304", message, call.at, "concatenated here");
            let from = format!("`{}` has its size from here", into.name);
            self.sink.push(d.label(into.origin, from));
            return Err(Reported);
        }
        self.whole(&into.name, &size, call.at)?;
        let rest = |t: &TensorVal| t.axes.iter().filter(|o| o.name != old.name).count();
        let same = |t: &TensorVal, u: &TensorVal| {
            t.axes.iter().all(|o| o.name == old.name || u.axis(o.name).is_some())
        };
        if rest(&a) != rest(&b) || !same(&a, &b) {
            let message = "the parts of `concat` have the same further axes";
            let here = format!("{} and {}", a.show(), b.show());
            return self.fail("E0301", message, call.at, here);
        }
        let pair = TensorVal {
            axes: b.axes.iter().filter(|o| o.name != old.name).cloned().collect(),
            ..b.clone()
        };
        self.agree(&[&a, &pair], call.at)?;
        self.want(&a, DType::F32, call.args[0].value.span)?;
        self.want(&b, DType::F32, call.args[1].value.span)?;
        let b = self.in_order(&b, names(a.axes.iter()), call.at)?;
        let into = SymAxis { name: into.name, size, origin: into.origin };
        let op = Op::Concat { axis: old.name, into: concrete(&into) };
        // The old axis may differ in size between the parts, which `op` does not accept.
        self.unchecked(op, &[&a, &b], &[into], call.at).map(Val::Tensor)
    }

    /// The same tensor with its axes in this order, which means nothing but where they lie.
    fn in_order(&mut self, t: &TensorVal, axes: Vec<Symbol>, at: Span) -> Eval<TensorVal> {
        if t.axes.iter().map(|a| a.name).eq(axes.iter().copied()) {
            // In a graph the same axes may lie otherwise, and then this is an operation.
            let cost = if self.sketching() { OPERATION } else { 0 };
            self.step(cost, at)?;
            return Ok(t.clone());
        }
        self.op(Op::Reorder { axes }, &[t], &[], at)
    }

    pub fn reaxis(&mut self, base: &Expr, changes: &[AxisChange], scope: &Scope) -> Eval<Val> {
        let val = self.expr(base, scope)?;
        let mut t = self.tensor(val, base.span)?;
        for change in changes {
            t = self.change(&t, change, scope)?;
        }
        Ok(Val::Tensor(t))
    }

    fn change(&mut self, t: &TensorVal, change: &AxisChange, scope: &Scope) -> Eval<TensorVal> {
        let mut old = Vec::new();
        for name in &change.old {
            let axis = self.axis(name.text, name.span, scope, &[t])?;
            match t.axis(axis.name) {
                Some(found) => old.push(found.clone()),
                None => {
                    let message = format!("a value {} has no axis `{}`", t.show(), name.text);
                    return self.fail("E0301", message, name.span, "no such axis");
                }
            }
        }
        if let Some(start) = &change.start {
            let ([_], [from]) = (change.new.as_slice(), old.as_slice()) else {
                let message = "a slice is cut from one axis and makes one";
                return self.fail("E0304", message, change.span, "more are named here");
            };
            return self.slice(t, change, from, start, scope);
        }
        match (change.new.as_slice(), old.as_slice()) {
            ([new], [from]) => {
                let name = scope.axes.get(new.text).map_or(new.text, |a| a.name);
                self.origins.insert(name, from.name);
                self.trail.origins.push(Origin::Left(name, from.name));
                let renamed = SymAxis { name, ..from.clone() };
                let op = Op::Rename { from: from.name, to: name };
                self.op(op, &[t], &[renamed], change.span)
            }
            (many, [from]) => {
                let mut into = Vec::new();
                for name in many {
                    let a = self.axis(name.text, name.span, scope, &[])?;
                    let Some(size) = a.size else {
                        let message = format!("the size of `{}` is not known here", name.text);
                        return self.fail("E0204", message, name.span, "unknown size");
                    };
                    into.push(SymAxis { name: a.name, size, origin: a.origin });
                }
                self.multiplies_out(from, &into, change.span)?;
                let axes: Vec<Axis> = into.iter().map(concrete).collect();
                let op = Op::Split { axis: from.name, into: axes };
                self.op(op, &[t], &into, change.span)
            }
            ([new], many) => {
                let size = product(many.iter());
                let Some(size) = size else {
                    let message = "a product of sizes is out of range";
                    return self.fail("E0307", message, change.span, "merged here");
                };
                self.whole(&new.text, &size, change.span)?;
                let into = match scope.axes.get(new.text) {
                    Some(AxisVal { name, size: Some(s), origin }) => {
                        SymAxis { name: *name, size: s.clone(), origin: *origin }
                    }
                    _ => SymAxis { name: new.text, size, origin: change.span },
                };
                self.multiplies_out(&into, many, change.span)?;
                self.merge(t, many, into, change.span)
            }
            _ => self.fail("E0304", "one side of a change is a single axis", change.span, "here"),
        }
    }

    /// Axes that are merged must lie side by side, which is brought about here.
    fn merge(
        &mut self,
        t: &TensorVal,
        many: &[SymAxis],
        into: SymAxis,
        at: Span,
    ) -> Eval<TensorVal> {
        let axes = names(many.iter());
        if let Some(twice) = axes.iter().enumerate().find(|(i, a)| axes[..*i].contains(a)) {
            let message = format!("axis `{}` is merged twice", twice.1);
            return self.fail("E0306", message, at, "merged here");
        }
        let others = t.axes.iter().map(|a| a.name).filter(|n| !axes.contains(n));
        let first = t.axes.iter().position(|a| a.name == axes[0]).unwrap_or(0);
        let before =
            t.axes[..first].iter().filter(|a| !many.iter().any(|b| b.name == a.name)).count();
        let mut order: Vec<Symbol> = others.collect();
        order.splice(before..before, axes.iter().copied());
        let t = &self.in_order(t, order, at)?;
        let op = Op::Merge { axes, into: into.name };
        self.op(op, &[t], &[into], at)
    }

    fn multiplies_out(&mut self, whole: &SymAxis, parts: &[SymAxis], at: Span) -> Eval<()> {
        match product(parts.iter()) {
            Some(size) if size.same(&whole.size) => Ok(()),
            Some(size) => {
                let (own, product) = (whole.size.explained(), size.explained());
                let message = format!("axes that multiply to {product} are no `{}`", whole.name);
                let d = Diagnostic::error("E0304", message, at, format!("{product} here"));
                let place = format!("{own} there");
                self.sink.push(d.label(whole.origin, place));
                Err(Reported)
            }
            None => self.fail("E0307", "a product of sizes is out of range", at, "this one"),
        }
    }

    fn slice(
        &mut self,
        t: &TensorVal,
        change: &AxisChange,
        old: &SymAxis,
        start: &Expr,
        scope: &Scope,
    ) -> Eval<TensorVal> {
        let name = &change.new[0];
        let new = self.axis(name.text, name.span, scope, &[])?;
        let (Some(size), Val::Size(from)) = (new.size, self.expr(start, scope)?) else {
            let message = "a slice needs an axis with a size and a start that is a size";
            return self.fail("E0204", message, change.span, "here");
        };
        let (Some(first), Some(length)) = (from.value(), size.value()) else {
            let here = format!("this is {}", from.explained());
            return self.fail("E0407", "a slice starts at a whole number", start.span, here);
        };
        let end = first.saturating_add(length);
        let made_up = self.sample && !(old.size.is_number() && size.is_number());
        if end > old.size.value().unwrap_or(0) {
            if made_up {
                return Err(Reported);
            }
            let message = format!("a slice ends at {end} of axis `{}`", old.name);
            let here = format!("the axis has {}", old.size.explained());
            let d = Diagnostic::error("E0304", message, change.span, here);
            self.sink.push(d.label(old.origin, format!("`{}` has its size from here", old.name)));
            return Err(Reported);
        }
        let into = SymAxis { name: new.name, size, origin: new.origin };
        let op = Op::Slice { axis: old.name, start: first, into: concrete(&into) };
        self.op(op, &[t], &[into], change.span)
    }
}

fn names<'s>(axes: impl Iterator<Item = &'s SymAxis>) -> Vec<Symbol> {
    axes.map(|a| a.name).collect()
}

fn product<'s>(axes: impl Iterator<Item = &'s SymAxis>) -> Option<Size> {
    let mut size = Size::number(1);
    for axis in axes {
        size = size.combine(mdl_syntax::ast::BinaryOp::Mul, &axis.size)?;
    }
    Some(size)
}
