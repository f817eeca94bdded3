//! The functions that the language itself has: the primitive operations as a model file calls them.

use crate::elaborate::{Elaborator, concrete};
use crate::frame::{FrameKind, Outside};
use crate::size::Size;
use crate::value::{AxisVal, Eval, Scope, SymAxis, TensorVal, Val};
use mdl_ir::op::{Binary, Op, Reduction, Unary};
use mdl_ir::tensor_type::{Axis, DType};
use mdl_syntax::ast::{AxisArg, AxisChange, CallArg, Expr};
use mdl_syntax::span::Span;

/// Names that no model may give to something else.
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

/// A call of a builtin: where it stands, its axes and its arguments.
pub struct BuiltinCall<'c> {
    pub name: &'c str,
    pub at: Span,
    pub axes: &'c [AxisArg],
    pub args: &'c [CallArg],
}

impl Elaborator<'_> {
    pub fn builtin(&mut self, call: &BuiltinCall<'_>, scope: &Scope) -> Eval<Val> {
        if let Some(unary) = Unary::from_name(call.name) {
            return self.unary_call(unary, call, scope);
        }
        let wanted = match call.name {
            "sum" | "max" if !call.axes.is_empty() => 1,
            "max" | "min" | "gather" | "concat" => 2,
            "where" => 3,
            "total" | "stop_gradient" | "uniform" => 1,
            _ => 0,
        };
        if call.args.len() != wanted {
            let message = format!("`{}` takes {wanted} arguments", call.name);
            return self.fail("E0208", message, call.at, format!("{} given", call.args.len()));
        }
        match call.name {
            "size" | "position" | "document" => self.of_axis(call, scope),
            "uniform" => self.uniform(call, scope),
            "concat" => self.concat(call, scope),
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
        Ok(Val::Real(folded.expect("every unary operation folds")))
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
                let axes: Vec<String> = args[0].axes.iter().map(|a| a.name.clone()).collect();
                self.op(Op::Reduce { kind: Reduction::Sum, axes }, &refs, &[], call.at)?
            }
            "gather" => {
                self.want(&args[1], DType::I32, span(1))?;
                let [axis] = call.axes else {
                    return self.fail("E0208", "`gather` takes one axis", call.at, "here");
                };
                let axis = self.axis(&axis.name.text, axis.name.span, scope, &[&args[0]])?.name;
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
            axes.push(self.axis(&a.name.text, a.name.span, scope, &[&t])?.name);
        }
        for (name, a) in axes.iter().zip(call.axes) {
            if t.axis(name).is_none() {
                let message = format!("the operand {} has no axis `{name}`", t.show());
                return self.fail("E0301", message, a.name.span, "summed over here");
            }
        }
        let kind = if call.name == "sum" { Reduction::Sum } else { Reduction::Max };
        self.op(Op::Reduce { kind, axes }, &[&t], &[], call.at).map(Val::Tensor)
    }

    /// What an axis name in brackets means: in scope, or an axis of one of these tensors.
    pub fn axis(
        &mut self,
        name: &str,
        at: Span,
        scope: &Scope,
        among: &[&TensorVal],
    ) -> Eval<AxisVal> {
        let known = scope.axes.get(name).cloned();
        let wanted = known.as_ref().map_or(name, |k| k.name.as_str());
        if let Some(found) = among.iter().find_map(|t| t.axis(wanted)) {
            return Ok(AxisVal {
                name: found.name.clone(),
                size: Some(found.size.clone()),
                origin: found.origin,
            });
        }
        match known {
            Some(known) => Ok(known),
            None => {
                let message = format!("there is no axis `{name}` here");
                self.fail("E0204", message, at, "unknown axis")
            }
        }
    }

    fn sized(&mut self, call: &BuiltinCall<'_>, scope: &Scope) -> Eval<SymAxis> {
        let [axis] = call.axes else {
            let message = format!("`{}` takes one axis", call.name);
            return self.fail("E0208", message, call.at, "in brackets");
        };
        let found = self.axis(&axis.name.text, axis.name.span, scope, &[])?;
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
        if !self.documents {
            return Ok(Val::Tensor(self.constant(0.0, at)));
        }
        let base = self.outside(Outside::Data("documents".into()));
        if base.axis(&axis.name).is_some() {
            return Ok(Val::Tensor(base));
        }
        match self.origins.get(&axis.name).cloned() {
            Some(from) if base.axis(&from).is_some() => {
                let op = Op::Rename { from, to: axis.name.clone() };
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
        let stream = stream.value().unwrap_or(0) as u32;
        self.op(Op::Random { stream, axes }, &[], &[], call.at).map(Val::Tensor)
    }

    fn concat(&mut self, call: &BuiltinCall<'_>, scope: &Scope) -> Eval<Val> {
        let (a, b) = (self.arg(&call.args[0], scope)?, self.arg(&call.args[1], scope)?);
        let [AxisArg { name, old: Some(old) }] = call.axes else {
            let message = "`concat` says the new and the old axis: `concat[head = half](a, b)`";
            return self.fail("E0208", message, call.at, "here");
        };
        let old = self.axis(&old.text, old.span, scope, &[&a])?;
        let into = self.axis(&name.text, name.span, scope, &[])?;
        let (Some(x), Some(y)) = (a.axis(&old.name), b.axis(&old.name)) else {
            let message = format!("both parts need the axis `{}`", old.name);
            return self.fail("E0301", message, call.at, format!("{} and {}", a.show(), b.show()));
        };
        let total = x.size.combine(mdl_syntax::ast::BinaryOp::Add, &y.size);
        let Some(total) = total else {
            return self.fail("E0307", "this size is out of range", call.at, "here");
        };
        let size = into.size.unwrap_or_else(|| total.clone());
        if !size.same(&total) {
            let message = format!(
                "axis `{}` is {} and the parts make {}",
                into.name,
                size.explained(),
                total.explained()
            );
            return self.fail("E0304", message, call.at, "concatenated here");
        }
        let into = SymAxis { name: into.name, size, origin: into.origin };
        let op = Op::Concat { axis: old.name, into: concrete(&into) };
        self.op(op, &[&a, &b], &[into], call.at).map(Val::Tensor)
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
            let axis = self.axis(&name.text, name.span, scope, &[t])?;
            match t.axis(&axis.name) {
                Some(found) => old.push(found.clone()),
                None => {
                    let message = format!("{} has no axis `{}`", t.show(), name.text);
                    return self.fail("E0301", message, name.span, "no such axis");
                }
            }
        }
        if let Some(start) = &change.start {
            return self.slice(t, change, &old[0], start, scope);
        }
        match (change.new.as_slice(), old.as_slice()) {
            ([new], [from]) => {
                let name = scope.axes.get(&new.text).map_or(new.text.clone(), |a| a.name.clone());
                self.origins.insert(name.clone(), from.name.clone());
                let renamed = SymAxis { name: name.clone(), ..from.clone() };
                let op = Op::Rename { from: from.name.clone(), to: name };
                self.op(op, &[t], &[renamed], change.span)
            }
            (many, [from]) => {
                let mut into = Vec::new();
                for name in many {
                    let a = self.axis(&name.text, name.span, scope, &[])?;
                    let Some(size) = a.size else {
                        let message = format!("the size of `{}` is not known here", name.text);
                        return self.fail("E0204", message, name.span, "unknown size");
                    };
                    into.push(SymAxis { name: a.name, size, origin: a.origin });
                }
                self.multiplies_out(from, &into, change.span)?;
                let axes: Vec<Axis> = into.iter().map(concrete).collect();
                let op = Op::Split { axis: from.name.clone(), into: axes };
                self.op(op, &[t], &into, change.span)
            }
            ([new], many) => {
                let size = product(many.iter());
                let Some(size) = size else {
                    return self.fail("E0307", "this size is out of range", change.span, "here");
                };
                let into = match scope.axes.get(&new.text) {
                    Some(AxisVal { name, size: Some(s), origin }) => {
                        SymAxis { name: name.clone(), size: s.clone(), origin: *origin }
                    }
                    _ => SymAxis { name: new.text.clone(), size, origin: change.span },
                };
                self.multiplies_out(&into, many, change.span)?;
                let axes = many.iter().map(|a| a.name.clone()).collect();
                let op = Op::Merge { axes, into: into.name.clone() };
                self.op(op, &[t], &[into], change.span)
            }
            _ => self.fail("E0304", "one side of a change is a single axis", change.span, "here"),
        }
    }

    fn multiplies_out(&mut self, whole: &SymAxis, parts: &[SymAxis], at: Span) -> Eval<()> {
        match product(parts.iter()) {
            Some(size) if size.same(&whole.size) => Ok(()),
            Some(size) => {
                let message = format!(
                    "axis `{}` is {} and the product is {}",
                    whole.name,
                    whole.size.explained(),
                    size.explained()
                );
                let d = mdl_syntax::diag::Diagnostic::error("E0304", message, at, "changed here");
                let place = format!("`{}` has its size from here", whole.name);
                self.sink.push(d.label(whole.origin, place));
                Err(crate::value::Reported)
            }
            None => self.fail("E0307", "this size is out of range", at, "here"),
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
        let new = self.axis(&name.text, name.span, scope, &[])?;
        let (Some(size), Val::Size(from)) = (new.size, self.expr(start, scope)?) else {
            let message = "a slice needs an axis with a size and a start that is a size";
            return self.fail("E0204", message, change.span, "here");
        };
        let (Some(first), Some(length)) = (from.value(), size.value()) else {
            return self.fail("E0407", "a slice starts at a whole number", start.span, "here");
        };
        if first + length > old.size.value().unwrap_or(0) {
            let message = format!("the slice ends at {} of axis `{}`", first + length, old.name);
            let here = format!("the axis has {}", old.size.explained());
            return self.fail("E0304", message, change.span, here);
        }
        let into = SymAxis { name: new.name, size, origin: new.origin };
        let op = Op::Slice { axis: old.name.clone(), start: first, into: concrete(&into) };
        self.op(op, &[t], &[into], change.span)
    }
}

fn product<'s>(axes: impl Iterator<Item = &'s SymAxis>) -> Option<Size> {
    let mut size = Size::number(1);
    for axis in axes {
        size = size.combine(mdl_syntax::ast::BinaryOp::Mul, &axis.size)?;
    }
    Some(size)
}
