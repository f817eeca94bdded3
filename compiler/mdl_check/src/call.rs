//! Calls: of builtins, of functions, of functions with a kernel, of blocks.

use crate::block::{method, method_scope};
use crate::builtin::{BuiltinCall, is_builtin};
use crate::elaborate::{Elaborator, MAX_CALL_DEPTH, place};
use crate::frame::{FrameKind, Made};
use crate::nearest::nearest;
use crate::program::ItemRef;
use crate::size::Size;
use crate::value::{AxisVal, Eval, FunctionVal, Reported, Scope, SymAxis, TensorVal, Val};
use mdl_ir::graph::ValueId;
use mdl_ir::op::{Kernel, Op};
use mdl_ir::tensor_type::DType;
use mdl_symbol::{Symbol, joined};
use mdl_syntax::ast::{self, ArgType, AxisArg, CallArg, Expr, ExprKind, ItemKind, TypeExpr};
use mdl_syntax::diag::Diagnostic;
use mdl_syntax::span::Span;
use std::rc::Rc;

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
            return self.fail("E0411", message, at, "this call is one too deep");
        }
        self.depth += 1;
        self.trail.depth = self.trail.depth.max(self.depth);
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
            let shadowed = scope.values.has(name.text);
            let program = self.program;
            let owner = scope.owner.as_ref().filter(|_| !shadowed);
            let method = owner.and_then(|o| Some((o, method(program, o, &name.text)?)));
            if let Some((owner, method)) = method {
                let given = self.given(args, scope)?;
                let axes = self.bind_axes(method, axes, &given, scope, at)?;
                let mut inner = method_scope(owner);
                inner.axes.extend(axes);
                return self.call_fn(method, inner, given, at);
            }
            let defined = self.program.find(scope.module, name.text);
            if !shadowed && defined.is_none() && is_builtin(name.text) {
                let call = BuiltinCall { name: &name.text, at, axes, args };
                return self.builtin(&call, scope);
            }
            let is_function = |item: &ItemRef| self.is_function(name, *item, scope);
            if !shadowed && let Some(item) = defined.filter(is_function) {
                self.step(1, function.span)?;
                let function = FunctionVal { item, bound: Vec::new() };
                return self.call_function(&function, axes, args, at, scope);
            }
        }
        match self.expr(function, scope)? {
            Val::Function(function) => self.call_function(&function, axes, args, at, scope),
            Val::Block(block) => {
                if let Some(first) = axes.first() {
                    let message = "an instance of a block has its axes already";
                    let span = first.name.span;
                    return self.fail("E0208", message, span, "given again here");
                }
                let given = self.given(args, scope)?;
                self.call_block(&block, given, at)
            }
            other => {
                let message = "only functions and instances of blocks are called";
                let here = format!("this is {}", other.kind());
                self.fail("E0405", message, function.span, here)
            }
        }
    }

    /// Does a name that no value has stand for this item, which is a function, and for no size?
    fn is_function(&self, name: &ast::Name, item: ItemRef, scope: &Scope) -> bool {
        let sized = scope.axes.get(name.text).is_some_and(|axis| axis.size.is_some());
        !sized && matches!(self.program.item(item).kind, ItemKind::Fn(_))
    }

    fn given(&mut self, args: &[CallArg], scope: &Scope) -> Eval<Vec<Given>> {
        let vals: Vec<Eval<Given>> = args
            .iter()
            .map(|a| {
                let val = self.expr(&a.value, scope)?;
                Ok(Given { name: a.name, val, span: a.value.span })
            })
            .collect();
        vals.into_iter().collect()
    }

    fn call_function(
        &mut self,
        function: &FunctionVal,
        axes: &[AxisArg],
        args: &[CallArg],
        at: Span,
        scope: &Scope,
    ) -> Eval<Val> {
        let (program, item) = (self.program, function.item);
        let ItemKind::Fn(decl) = &program.item(item).kind else {
            return self.fail("E0405", "only functions are called", at, "called here");
        };
        let mut given = function.bound.clone();
        given.extend(self.given(args, scope)?);
        // Without its axes it is not called yet: the arguments are bound to it.
        let plain = |g: &Given| !matches!(g.val, Val::Tensor(_) | Val::Param(_));
        let binds = axes.is_empty() && !decl.axes.is_empty() && !args.is_empty();
        if binds && given.iter().all(plain) {
            let bound = self.match_args(&decl.name, &decl.args, given, scope, at)?;
            return Ok(Val::Function(Rc::new(FunctionVal { item, bound })));
        }
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
    ) -> Eval<Vec<(Symbol, AxisVal)>> {
        if axes.len() != decl.axes.len() {
            let name = &decl.name.text;
            let wanted = count(decl.axes.len(), "axis", "axes");
            let message = format!("`{name}` takes {wanted} in brackets, not {}", axes.len());
            let d = Diagnostic::error("E0208", message, at, "called here");
            let own: Vec<Symbol> = decl.axes.iter().map(|a| a.text).collect();
            let d = d.label(decl.name.span, "declared here");
            self.sink.push(match own.as_slice() {
                [] => d.help(format!("write `{name}(…)`")),
                own => d.help(format!("write `{name}[{}](…)`, with your axes", joined(own, ", "))),
            });
            return Err(Reported);
        }
        if let Some(AxisArg { name, old: Some(_) }) = axes.iter().find(|a| a.old.is_some()) {
            let message = format!("`{}` renames no axis", decl.name.text);
            return self.fail("E0208", message, name.span, "an axis by its name alone goes here");
        }
        // A graph takes weights in here, in this order.
        if axes.is_empty() && self.sketching() {
            return Ok(Vec::new());
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
            let axis = self.axis(arg.name.text, arg.name.span, scope, &refs)?;
            if let Some((other, _)) =
                bound.iter().find(|(_, b): &&(_, AxisVal)| b.name == axis.name)
            {
                let message = format!("`{other}` and `{}` are one axis", own.text);
                let here = format!("`{}` stands here twice", axis.name);
                let d = Diagnostic::error("E0306", message, arg.name.span, here);
                self.sink.push(d.label(own.span, "two axes are declared here"));
                return Err(Reported);
            }
            bound.push((own.text, axis));
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
        // Copies of a scope are made below.
        self.step(1 + (scope.values.own_len() + scope.axes.own_len()) / 4, at)?;
        self.enter(&decl.name, at)?;
        let result = self.match_args(&decl.name, &decl.args, given, &scope, at).and_then(|vals| {
            let mut fits = Ok(());
            for (arg, given) in decl.args.iter().zip(&vals) {
                let bound = self.bind_arg(arg, given, &mut scope);
                fits = fits.and(bound);
            }
            fits?;
            self.remembered(decl, scope, at, |e, scope| e.run_or_keep(decl, scope, at))
        });
        self.open.pop();
        result
    }

    /// Notes that something is being expanded; an error where it already is.
    pub fn enter(&mut self, name: &ast::Name, at: Span) -> Eval<()> {
        if self.open.contains(&name.span) {
            let message = format!("`{}` uses itself", name.text);
            let d = Diagnostic::error("E0412", message, at, "this leads back to it");
            self.sink.push(d.label(name.span, "declared here"));
            return Err(Reported);
        }
        self.open.push(name.span);
        self.trail.opened.push(name.span);
        self.work.reached.insert(name.span);
        Ok(())
    }

    fn run_or_keep(&mut self, decl: &ast::Fn, scope: Scope, at: Span) -> Eval<Val> {
        let Some(name) = &decl.kernel else { return self.run_fn(decl, scope) };
        if !self.program.is_standard(scope.module) {
            // The check of names says so.
            return self.run_fn(decl, scope);
        }
        let Some(kernel) = Kernel::from_name(&name.text) else {
            let message = format!("there is no kernel `{}`", name.text);
            return self.fail("E0201", message, name.span, "unknown kernel");
        };
        // Within a kernel's body everything is plain: a kernel has no kernels inside.
        match self.frame().kind {
            FrameKind::Call => self.run_fn(decl, scope),
            _ => self.call_kernel(kernel, decl, scope, at),
        }
    }

    fn run_fn(&mut self, decl: &ast::Fn, scope: Scope) -> Eval<Val> {
        let val = self.body(&decl.body, &scope)?;
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
                let given = match &val {
                    Val::Tuple(vals) => vals.len(),
                    _ => 1,
                };
                let vals = match val {
                    Val::Tuple(vals) if vals.len() == types.len() => vals,
                    _ => {
                        let message = format!("{given} values are given for {}", types.len());
                        let d = Diagnostic::error("E0303", message, result_span, "the result");
                        let declared = types[0].span.to(types[types.len() - 1].span);
                        self.sink.push(d.label(declared, "declared here"));
                        return Err(Reported);
                    }
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

    /// The arguments of a call or an instance, in the order in which they are declared.
    pub fn match_args(
        &mut self,
        owner: &ast::Name,
        declared: &[ast::Arg],
        given: Vec<Given>,
        scope: &Scope,
        at: Span,
    ) -> Eval<Vec<Given>> {
        if given.len() == declared.len() && given.iter().all(|g| g.name.is_none()) {
            return Ok(given);
        }
        let mut slots: Vec<Option<Given>> = vec![None; declared.len()];
        for (i, g) in given.into_iter().enumerate() {
            let slot = match &g.name {
                None => i,
                Some(n) => match declared.iter().position(|a| a.name.text == n.text) {
                    Some(slot) => slot,
                    None => {
                        let message = format!("`{}` has no argument `{}`", owner.text, n.text);
                        let known = declared.iter().map(|a| &a.name.text);
                        let mut d = Diagnostic::error("E0208", message, n.span, "no such argument");
                        d = d.label(owner.span, "declared here");
                        if let Some(near) = nearest(&n.text, known) {
                            d = d.help(format!("write `{near}:`"));
                        }
                        self.sink.push(d);
                        return Err(Reported);
                    }
                },
            };
            let Some(place) = slots.get_mut(slot) else {
                let wanted = count(declared.len(), "argument", "arguments");
                let message = format!("`{}` takes {wanted}", owner.text);
                let d = Diagnostic::error("E0208", message, g.span, "this is one too many");
                self.sink.push(d.label(owner.span, "declared here"));
                return Err(Reported);
            };
            if let Some(first) = place {
                let message = format!("argument `{}` is given twice", declared[slot].name.text);
                let d = Diagnostic::error("E0208", message, g.span, "given again here");
                self.sink.push(d.label(first.span, "first given here"));
                return Err(Reported);
            }
            *place = Some(g);
        }
        let mut out = Vec::new();
        for (arg, slot) in declared.iter().zip(slots) {
            match (slot, &arg.default) {
                (Some(g), _) => out.push(g),
                (None, Some(e)) => {
                    let val = self.expr(e, scope)?;
                    out.push(Given { name: None, val, span: e.span });
                }
                (None, None) => {
                    let message =
                        format!("`{}` needs the argument `{}`", owner.text, arg.name.text);
                    let d = Diagnostic::error("E0208", message, at, "not given here");
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
                    let known = scope.axes.get(axis.name.text);
                    let name = known.map_or(axis.name.text, |k| k.name);
                    if let Some(found) = t.axis(name) {
                        let (size, origin) = (Some(found.size.clone()), found.origin);
                        scope.axes.insert(axis.name.text, AxisVal { name, size, origin });
                    }
                }
                Val::Tensor(t)
            }
            (ArgType::Size, val @ Val::Size(_)) => val,
            (ArgType::Real, Val::Size(s)) => Val::Real(s.as_f64()),
            (ArgType::Real, val @ Val::Real(_)) => val,
            (ArgType::Bool, val @ Val::Bool(_)) => val,
            (ArgType::Function(axes), Val::Function(function)) => {
                self.fits_function(arg, axes, &function, given.span)?;
                Val::Function(function)
            }
            (ArgType::Config(n), val @ Val::Text(_)) if n.text == "text" => val,
            (ArgType::Config(n), Val::Config(c))
                if self.program.find(scope.module, n.text) == Some(c.item) =>
            {
                Val::Config(c)
            }
            (ty, other) => {
                let wanted = wanted(ty);
                let message =
                    format!("`{}` takes {wanted}, and this is {}", arg.name.text, shown(&other));
                let d = Diagnostic::error("E0405", message, given.span, shown(&other));
                self.sink.push(d.label(arg.name.span, format!("declared as {wanted}")));
                return Err(Reported);
            }
        };
        scope.values.insert(arg.name.text, val);
        Ok(())
    }

    /// A function as an argument is called with these axes and nothing else.
    fn fits_function(
        &mut self,
        arg: &ast::Arg,
        axes: &[ast::Name],
        function: &FunctionVal,
        at: Span,
    ) -> Eval<()> {
        let program = self.program;
        let ItemKind::Fn(decl) = &program.item(function.item).kind else { return Ok(()) };
        let open = |a: &&ast::Arg| a.default.is_none() && function.bound.is_empty();
        let needed = decl.args.iter().filter(open).count();
        if decl.axes.len() == axes.len() && needed == 0 {
            return Ok(());
        }
        let wanted = count(axes.len(), "axis", "axes");
        let name = &decl.name.text;
        let message = format!("`{}` takes a function of {wanted} alone", arg.name.text);
        let has = count(decl.axes.len(), "axis", "axes");
        let here = format!("`{name}` has {has} and {}", count(needed, "argument", "arguments"));
        let d = Diagnostic::error("E0405", message, at, here);
        let d = d.label(decl.name.span, "declared here");
        self.sink.push(match decl.axes.len() == axes.len() {
            true => d.help(format!("bind its arguments: `{name}(…)`, without brackets")),
            false => d.help(format!("define a function of {wanted} that calls `{name}`")),
        });
        Err(Reported)
    }

    fn check_dtype(&mut self, t: &TensorVal, ty: &TypeExpr, at: Span) -> Eval<()> {
        let wanted = match ty.dtype.as_ref().map(|d| d.text.as_str()) {
            None | Some("f32") => DType::F32,
            Some("ids" | "i32") => DType::I32,
            Some("bool") => DType::Bool,
            Some(other) => {
                let message = format!("there is no element type `{other}`");
                let span = ty.dtype.as_ref().map_or(at, |d| d.span);
                let here = "element types are `f32`, `ids` and `bool`";
                return self.fail("E0401", message, span, here);
            }
        };
        self.want(t, wanted, at)
    }

    fn check_arg(&mut self, t: &TensorVal, ty: &TypeExpr, scope: &Scope, at: Span) -> Eval<()> {
        self.check_dtype(t, ty, at)?;
        if let Some(fault) = axes_differ(t, ty, scope) {
            let message = format!("an argument {fault}");
            let d = Diagnostic::error("E0301", message, at, format!("this is {}", t.show()));
            self.sink.push(d.label(ty.span, "the type that is wanted"));
            return Err(Reported);
        }
        self.check_sizes(t, ty, scope, at)
    }

    fn check_result(&mut self, t: &TensorVal, ty: &TypeExpr, scope: &Scope, at: Span) -> Eval<()> {
        self.check_dtype(t, ty, at)?;
        if let Some(fault) = axes_differ(t, ty, scope) {
            let message = format!("the result {fault}");
            let d = Diagnostic::error("E0303", message, at, format!("this is {}", t.show()));
            self.sink.push(d.label(ty.span, "the declared type"));
            return Err(Reported);
        }
        self.check_sizes(t, ty, scope, at)
    }

    fn check_sizes(&mut self, t: &TensorVal, ty: &TypeExpr, scope: &Scope, at: Span) -> Eval<()> {
        for axis in &ty.axes {
            let known = scope.axes.get(axis.name.text);
            let name = known.map_or(axis.name.text, |k| k.name);
            let Some(found) = t.axis(name).cloned() else { continue };
            let declared = match &axis.size {
                Some(e) => Some((size_of(self, e, scope)?, e.span)),
                None => known.and_then(|k| k.size.clone().map(|s| (s, k.origin))),
            };
            if let Some((size, origin)) = declared
                && !size.same(&found.size)
            {
                let declared = SymAxis { name, size, origin };
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
        self.open_frame(FrameKind::Call);
        let (mut inner, mut outer): (Vec<ValueId>, Vec<ValueId>) = (Vec::new(), Vec::new());
        for arg in &decl.args {
            let Some(Val::Tensor(t)) = scope.values.get(arg.name.text).cloned() else { continue };
            let own = self.frame().input(arg.name.text, t.dtype, t.axes);
            outer.push(t.id);
            inner.push(own.id);
            scope.values.insert(arg.name.text, Val::Tensor(own));
        }
        let axes = decl.axes.iter().filter_map(|a| Some(scope.axes.get(a.text)?.name)).collect();
        let result = self.run_fn(decl, scope).and_then(|val| self.laid_out(val, at));
        let frame = self.frames.pop().expect("pushed above");
        let results = result?;
        let depth = self.frames.len() - 1;
        for capture in &frame.captures {
            inner.push(capture.id);
            outer.push(self.capture(&capture.what, depth).0);
        }
        let outputs: Vec<ValueId> = results.iter().map(|t| t.id).collect();
        let ids = match frame.made {
            Made::Graph(builder) => {
                let body = builder.finish(outputs);
                let typed = |o: &ValueId| (decl.name.text, body.ty(*o).clone());
                let types = body.outputs.iter().map(typed).collect();
                let op = Op::Call { kernel, axes, body: Box::new(body) };
                self.builder().node(op, outer, types, place(at))
            }
            Made::Sketch(body) => self.sketched(&body, &outputs, inner.into_iter().zip(outer)),
        };
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
            let like = match &self.frame().made {
                Made::Graph(builder) => {
                    let (body, ty) = (&builder.body, builder.ty(t.id));
                    let like = body.inputs.iter().map(|i| body.ty(*i)).find(|x| x.same_axes(ty));
                    like.map(|x| mdl_ir::build::axis_names(&x.axes))
                }
                // Memory is nothing to a check, and the step counts.
                Made::Sketch(_) => Some(t.axes.iter().map(|a| a.name).collect()),
            };
            out.push(match like {
                Some(axes) => self.op(Op::Reorder { axes }, &[&t], &[], at)?,
                None => t,
            });
        }
        Ok(out)
    }
}

/// How a tensor's axes differ from the declared ones, in a clause.
fn axes_differ(t: &TensorVal, ty: &TypeExpr, scope: &Scope) -> Option<String> {
    let known = |n: Symbol| scope.axes.get(n).map_or(n, |a| a.name);
    let declared = || ty.axes.iter().map(|a| known(a.name.text));
    let listed = |names: Vec<Symbol>| {
        let axes = if names.len() == 1 { "axis" } else { "axes" };
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        format!("{axes} {}", names.join(" and "))
    };
    let missing: Vec<Symbol> = declared().filter(|d| t.axis(*d).is_none()).collect();
    if !missing.is_empty() {
        return Some(format!("lacks the {}", listed(missing)));
    }
    if ty.open {
        return None;
    }
    let own = t.axes.iter().map(|a| a.name);
    let extra: Vec<Symbol> = own.filter(|a| !declared().any(|d| d == *a)).collect();
    (!extra.is_empty()).then(|| format!("has the further {}", listed(extra)))
}

/// The size that an expression of sizes has in a scope.
pub fn size_of(e: &mut Elaborator<'_>, expr: &Expr, scope: &Scope) -> Eval<Size> {
    match e.expr(expr, scope)? {
        Val::Size(size) => Ok(size),
        other => {
            let here = format!("this is {}", shown(&other));
            e.fail("E0405", "an axis takes a size", expr.span, here)
        }
    }
}

/// A value for messages: its kind, and its name or type where it has one.
fn shown(val: &Val) -> String {
    match val {
        Val::Tensor(t) => format!("the tensor {}", t.show()),
        Val::Config(c) => format!("the configuration `{}`", c.name),
        other => other.kind().to_string(),
    }
}

/// What an argument takes, for messages.
fn wanted(ty: &ArgType) -> String {
    match ty {
        ArgType::Tensor(_) => "a tensor".into(),
        ArgType::Size => "a size".into(),
        ArgType::Real => "a number".into(),
        ArgType::Bool => "`true` or `false`".into(),
        ArgType::Function(axes) => format!("a function of {}", count(axes.len(), "axis", "axes")),
        ArgType::Config(n) if n.text == "text" => "a text".into(),
        ArgType::Config(n) => format!("a `{}`", n.text),
    }
}

/// `1 axis`, `2 axes`.
pub fn count(n: usize, one: &str, many: &str) -> String {
    match n {
        0 => format!("no {many}"),
        1 => format!("1 {one}"),
        n => format!("{n} {many}"),
    }
}
