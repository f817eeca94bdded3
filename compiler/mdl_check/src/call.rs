//! Calls: of builtins, of functions, of functions with a kernel, of blocks.

use crate::builtin::{BUILTINS, BuiltinCall};
use crate::elaborate::{Elaborator, MAX_CALL_DEPTH, concrete, place};
use crate::frame::{Frame, FrameKind};
use crate::program::ItemRef;
use crate::size::Size;
use crate::value::{AxisVal, Eval, Reported, Scope, SymAxis, TensorVal, Val};
use mdl_ir::graph::ValueId;
use mdl_ir::op::{Kernel, Op};
use mdl_ir::tensor_type::{DType, Type};
use mdl_syntax::ast::{self, ArgType, AxisArg, CallArg, Expr, ExprKind, ItemKind, TypeExpr};
use mdl_syntax::diag::Diagnostic;
use mdl_syntax::span::Span;

/// An argument as it was worked out at the call.
#[derive(Clone, Debug)]
pub struct Given {
    pub name: Option<ast::Name>,
    pub val: Val,
    pub span: Span,
}

impl Elaborator<'_> {
    pub fn call(
        &mut self,
        at: Span,
        function: &Expr,
        axes: &[AxisArg],
        args: &[CallArg],
        scope: &Scope,
    ) -> Eval<Val> {
        if self.depth >= MAX_CALL_DEPTH {
            let message = format!("calls are nested more than {MAX_CALL_DEPTH} deep");
            return self.fail("E0411", message, at, "this call");
        }
        self.depth += 1;
        let result = self.call_within(at, function, axes, args, scope);
        self.depth -= 1;
        result
    }

    fn call_within(
        &mut self,
        at: Span,
        function: &Expr,
        axes: &[AxisArg],
        args: &[CallArg],
        scope: &Scope,
    ) -> Eval<Val> {
        if let ExprKind::Name(name) = &function.kind {
            let shadowed = scope.values.contains_key(&name.text);
            if let (false, Some(method)) = (shadowed, self.method(&name.text, scope)) {
                let given = self.given(args, scope)?;
                let axes = self.bind_axes(&method, axes, &given, scope, at)?;
                let owner = scope.owner.clone().expect("methods have an owner");
                let mut inner = crate::block::method_scope(&owner);
                inner.axes.extend(axes);
                return self.call_fn(&method, inner, given, at);
            }
            let defined = self.program.find(scope.module, &name.text).is_some();
            if !shadowed && !defined && BUILTINS.contains(&name.text.as_str()) {
                let call = BuiltinCall { name: &name.text, at, axes, args };
                return self.builtin(&call, scope);
            }
        }
        match self.expr(function, scope)? {
            Val::Function(item) => self.call_item(item, axes, args, at, scope),
            Val::Block(block) => {
                let given = self.given(args, scope)?;
                self.call_block(&block, given, at)
            }
            other => {
                let message = format!("this is {}, and only functions are called", other.kind());
                self.fail("E0405", message, function.span, "called here")
            }
        }
    }

    fn method(&self, name: &str, scope: &Scope) -> Option<ast::Fn> {
        let owner = scope.owner.as_ref()?;
        crate::block::method(self.program, owner, name).cloned()
    }

    fn given(&mut self, args: &[CallArg], scope: &Scope) -> Eval<Vec<Given>> {
        let vals: Vec<Eval<Given>> = args
            .iter()
            .map(|a| {
                let val = self.expr(&a.value, scope)?;
                Ok(Given { name: a.name.clone(), val, span: a.value.span })
            })
            .collect();
        vals.into_iter().collect()
    }

    fn call_item(
        &mut self,
        item: ItemRef,
        axes: &[AxisArg],
        args: &[CallArg],
        at: Span,
        scope: &Scope,
    ) -> Eval<Val> {
        let program = self.program;
        let ItemKind::Fn(decl) = &program.item(item).kind else {
            return self.fail("E0405", "only functions are called", at, "called here");
        };
        let given = self.given(args, scope)?;
        let axes = self.bind_axes(decl, axes, &given, scope, at)?;
        let mut inner = Scope { module: item.module, ..Scope::default() };
        inner.axes.extend(axes);
        self.call_fn(decl, inner, given, at)
    }

    /// The callee's axes: what each bracketed name means at the call.
    fn bind_axes(
        &mut self,
        decl: &ast::Fn,
        axes: &[AxisArg],
        given: &[Given],
        scope: &Scope,
        at: Span,
    ) -> Eval<Vec<(String, AxisVal)>> {
        if axes.len() != decl.axes.len() {
            let message = format!(
                "`{}` takes {} axes in brackets, and {} are given",
                decl.name.text,
                decl.axes.len(),
                axes.len()
            );
            let d = Diagnostic::error("E0208", message, at, "called here");
            self.sink.push(d.label(decl.name.span, "declared here"));
            return Err(Reported);
        }
        let tensors: Vec<TensorVal> = given
            .iter()
            .filter_map(|g| match &g.val {
                Val::Tensor(t) => Some(t.clone()),
                Val::Param(p) => Some(self.outside(crate::frame::Outside::Param(*p))),
                _ => None,
            })
            .collect();
        let refs: Vec<&TensorVal> = tensors.iter().collect();
        let mut bound = Vec::new();
        for (own, arg) in decl.axes.iter().zip(axes) {
            let axis = self.axis(&arg.name.text, arg.name.span, scope, &refs)?;
            bound.push((own.text.clone(), axis));
        }
        Ok(bound)
    }

    /// Runs a function with its axes already in `scope`.
    pub fn call_fn(
        &mut self,
        decl: &ast::Fn,
        mut scope: Scope,
        given: Vec<Given>,
        at: Span,
    ) -> Eval<Val> {
        let vals = self.match_args(decl, given, &scope, at)?;
        let mut fits = Ok(());
        for (arg, given) in decl.args.iter().zip(&vals) {
            let bound = self.bind_arg(arg, given, &mut scope);
            fits = fits.and(bound);
        }
        fits?;
        let kernel = decl.kernel.as_ref().and_then(|k| Kernel::from_name(&k.text));
        if let (Some(name), None) = (&decl.kernel, kernel) {
            let message = format!("there is no kernel `{}`", name.text);
            return self.fail("E0201", message, name.span, "unknown kernel");
        }
        match kernel {
            // Within a kernel's body everything is plain: a kernel has no kernels inside.
            Some(kernel) if !matches!(self.frame().kind, FrameKind::Call) => {
                self.call_kernel(kernel, decl, scope, at)
            }
            _ => self.run_fn(decl, scope),
        }
    }

    fn run_fn(&mut self, decl: &ast::Fn, scope: Scope) -> Eval<Val> {
        let val = self.body(&decl.body, scope.clone())?;
        let result_span = decl.body.result.span;
        match decl.result.as_slice() {
            [] => Ok(val),
            [ty] => {
                if matches!(val, Val::Real(_) | Val::Size(_))
                    && let FrameKind::Init(_) = self.frame().kind
                {
                    return Ok(val);
                }
                let t = self.tensor(val, result_span)?;
                self.check_result(&t, ty, &scope, result_span)?;
                Ok(Val::Tensor(t))
            }
            types => {
                let Val::Tuple(vals) = val else {
                    let message = format!("{} values are declared", types.len());
                    return self.fail("E0303", message, result_span, "one is given");
                };
                let mut out = Vec::new();
                for (val, ty) in vals.into_iter().zip(types) {
                    let t = self.tensor(val, result_span)?;
                    self.check_result(&t, ty, &scope, result_span)?;
                    out.push(Val::Tensor(t));
                }
                Ok(Val::Tuple(out))
            }
        }
    }

    fn match_args(
        &mut self,
        decl: &ast::Fn,
        given: Vec<Given>,
        scope: &Scope,
        at: Span,
    ) -> Eval<Vec<Given>> {
        let mut slots: Vec<Option<Given>> = vec![None; decl.args.len()];
        for (i, g) in given.into_iter().enumerate() {
            let slot = match &g.name {
                None => i,
                Some(n) => match decl.args.iter().position(|a| a.name.text == n.text) {
                    Some(slot) => slot,
                    None => {
                        let message = format!("`{}` has no argument `{}`", decl.name.text, n.text);
                        return self.fail("E0208", message, n.span, "unknown argument");
                    }
                },
            };
            if slot >= slots.len() || slots[slot].is_some() {
                let message = format!("`{}` takes {} arguments", decl.name.text, decl.args.len());
                return self.fail("E0208", message, g.span, "one too many");
            }
            slots[slot] = Some(g);
        }
        let mut out = Vec::new();
        for (arg, slot) in decl.args.iter().zip(slots) {
            match (slot, &arg.default) {
                (Some(g), _) => out.push(g),
                (None, Some(e)) => {
                    let val = self.expr(e, scope)?;
                    out.push(Given { name: None, val, span: e.span });
                }
                (None, None) => {
                    let message =
                        format!("`{}` needs the argument `{}`", decl.name.text, arg.name.text);
                    let d = Diagnostic::error("E0208", message, at, "called here");
                    self.sink.push(d.label(arg.name.span, "declared here"));
                    return Err(Reported);
                }
            }
        }
        Ok(out)
    }

    /// Enters an argument into the callee's scope, if it is what the declaration says.
    pub fn bind_arg(&mut self, arg: &ast::Arg, given: &Given, scope: &mut Scope) -> Eval<()> {
        let val = match (&arg.ty, given.val.clone()) {
            (ArgType::Tensor(ty), val) => {
                let t = self.tensor(val, given.span)?;
                self.check_arg(&t, ty, scope, given.span)?;
                for axis in &ty.axes {
                    let known = scope.axes.get(&axis.name.text);
                    let name = known.map_or(axis.name.text.clone(), |k| k.name.clone());
                    if let Some(found) = t.axis(&name) {
                        let (size, origin) = (Some(found.size.clone()), found.origin);
                        scope.axes.insert(axis.name.text.clone(), AxisVal { name, size, origin });
                    }
                }
                Val::Tensor(t)
            }
            (ArgType::Size, val @ Val::Size(_)) => val,
            (ArgType::Real, Val::Size(s)) => Val::Real(s.as_f64()),
            (ArgType::Real, val @ Val::Real(_)) => val,
            (ArgType::Bool, val @ Val::Bool(_)) => val,
            (ArgType::Function(_), val @ Val::Function(_)) => val,
            (ArgType::Config(_), val @ Val::Config(_)) => val,
            (_, other) => {
                let message = format!("`{}` does not take {}", arg.name.text, other.kind());
                let d = Diagnostic::error("E0405", message, given.span, "given here");
                self.sink.push(d.label(arg.name.span, "declared here"));
                return Err(Reported);
            }
        };
        scope.values.insert(arg.name.text.clone(), val);
        Ok(())
    }

    fn check_dtype(&mut self, t: &TensorVal, ty: &TypeExpr, at: Span) -> Eval<()> {
        let wanted = match ty.dtype.as_ref().map(|d| d.text.as_str()) {
            None | Some("f32") => DType::F32,
            Some("ids" | "i32") => DType::I32,
            Some("bool") => DType::Bool,
            Some(other) => {
                let message = format!("there is no element type `{other}`");
                let span = ty.dtype.as_ref().map_or(at, |d| d.span);
                return self.fail("E0401", message, span, "unknown");
            }
        };
        self.want(t, wanted, at)
    }

    fn check_arg(&mut self, t: &TensorVal, ty: &TypeExpr, scope: &Scope, at: Span) -> Eval<()> {
        self.check_dtype(t, ty, at)?;
        if let Some(fault) = axes_differ(t, ty, scope) {
            let message = format!("this argument is {}: {fault}", t.show());
            let d = Diagnostic::error("E0301", message, at, "given here");
            self.sink.push(d.label(ty.span, "declared here"));
            return Err(Reported);
        }
        self.check_sizes(t, ty, scope, at)
    }

    fn check_result(&mut self, t: &TensorVal, ty: &TypeExpr, scope: &Scope, at: Span) -> Eval<()> {
        self.check_dtype(t, ty, at)?;
        if let Some(fault) = axes_differ(t, ty, scope) {
            let message = format!("the result is {}: {fault}", t.show());
            let d = Diagnostic::error("E0303", message, at, "this is the result");
            self.sink.push(d.label(ty.span, "declared here"));
            return Err(Reported);
        }
        self.check_sizes(t, ty, scope, at)
    }

    fn check_sizes(&mut self, t: &TensorVal, ty: &TypeExpr, scope: &Scope, at: Span) -> Eval<()> {
        for axis in &ty.axes {
            let known = scope.axes.get(&axis.name.text);
            let name = known.map_or(axis.name.text.as_str(), |k| k.name.as_str());
            let Some(found) = t.axis(name).cloned() else { continue };
            let declared = match &axis.size {
                Some(e) => match self.expr(e, scope)? {
                    Val::Size(size) => Some((size, e.span)),
                    _ => return self.fail("E0405", "an axis takes a size", e.span, "this is none"),
                },
                None => known.and_then(|k| k.size.clone().map(|s| (s, k.origin))),
            };
            if let Some((size, origin)) = declared
                && !size.same(&found.size)
            {
                let declared = SymAxis { name: name.to_string(), size, origin };
                return self.sizes_differ(&declared, &found, at);
            }
        }
        Ok(())
    }

    /// A call that stays a call: the body is elaborated on its own and goes with the node.
    fn call_kernel(
        &mut self,
        kernel: Kernel,
        decl: &ast::Fn,
        mut scope: Scope,
        at: Span,
    ) -> Eval<Val> {
        self.frames.push(Frame::new(FrameKind::Call));
        let mut outer: Vec<ValueId> = Vec::new();
        for arg in &decl.args {
            let Some(Val::Tensor(t)) = scope.values.get(&arg.name.text).cloned() else { continue };
            outer.push(t.id);
            let ty = Type::new(t.dtype, t.axes.iter().map(concrete).collect());
            let id = self.frame().builder.input(&arg.name.text, ty);
            scope.values.insert(arg.name.text.clone(), Val::Tensor(TensorVal { id, ..t }));
        }
        let axes = decl.axes.iter().map(|a| scope.axes[&a.text].name.clone()).collect();
        let result = self.run_fn(decl, scope).and_then(|val| self.laid_out(val, at));
        let frame = self.frames.pop().expect("pushed above");
        let results = result?;
        let depth = self.frames.len() - 1;
        for (what, _, _) in &frame.captures {
            outer.push(self.capture(what, depth).0);
        }
        let body = frame.builder.finish(results.iter().map(|t| t.id).collect());
        let types: Vec<(String, Type)> =
            body.outputs.iter().map(|o| (decl.name.text.clone(), body.ty(*o).clone())).collect();
        let op = Op::Call { kernel, axes, body: Box::new(body) };
        let ids = self.frame().builder.node(op, outer, types, place(at));
        let mut vals: Vec<Val> = ids
            .into_iter()
            .zip(results)
            .map(|(id, t)| Val::Tensor(TensorVal { id, ..t }))
            .collect();
        Ok(if vals.len() == 1 { vals.remove(0) } else { Val::Tuple(vals) })
    }
}

impl Elaborator<'_> {
    /// Results of a kernel: one that has the axes of an input lies in memory as that input does.
    fn laid_out(&mut self, val: Val, at: Span) -> Eval<Vec<TensorVal>> {
        let vals = if let Val::Tuple(vals) = val { vals } else { vec![val] };
        let mut out = Vec::new();
        for val in vals {
            let t = self.tensor(val, at)?;
            let body = &self.frame().builder.body;
            let ty = body.ty(t.id).clone();
            let like = body.inputs.iter().map(|i| body.ty(*i)).find(|x| x.same_axes(&ty));
            out.push(match like.map(|x| mdl_ir::build::axis_names(&x.axes)) {
                Some(axes) => self.op(Op::Reorder { axes }, &[&t], &[], at)?,
                None => t,
            });
        }
        Ok(out)
    }
}

/// How a tensor's axes differ from the declared ones, in a clause.
fn axes_differ(t: &TensorVal, ty: &TypeExpr, scope: &Scope) -> Option<String> {
    let resolve = |n: &str| scope.axes.get(n).map_or(n.to_string(), |a| a.name.clone());
    let declared: Vec<String> = ty.axes.iter().map(|a| resolve(&a.name.text)).collect();
    let missing: Vec<String> =
        declared.iter().filter(|d| t.axis(d).is_none()).map(|d| format!("`{d}`")).collect();
    if !missing.is_empty() {
        return Some(format!("it lacks {}", missing.join(" and ")));
    }
    let extra: Vec<String> = t
        .axes
        .iter()
        .filter(|a| !declared.contains(&a.name))
        .map(|a| format!("`{}`", a.name))
        .collect();
    if !ty.open && !extra.is_empty() {
        return Some(format!("it also has {}", extra.join(" and ")));
    }
    None
}

/// The size that an expression of sizes has in a scope.
pub fn size_of(e: &mut Elaborator<'_>, expr: &Expr, scope: &Scope) -> Eval<Size> {
    match e.expr(expr, scope)? {
        Val::Size(size) => Ok(size),
        _ => e.fail("E0405", "a size is needed", expr.span, "this is none"),
    }
}
