//! Blocks: instances with their weights, and their calls, repeated ones as one region.

use crate::call::{Given, size_of};
use crate::elaborate::{Elaborator, ParamInfo, concrete, place};
use crate::frame::{Frame, FrameKind};
use crate::program::{ItemRef, Program};
use crate::size::Size;
use crate::value::{AxisVal, BlockVal, Eval, MemberVal, Reported, Scope, SymAxis, TensorVal, Val};
use mdl_ir::graph::{Body, Param, ValueId};
use mdl_ir::op::Op;
use mdl_ir::tensor_type::{Axis, DType, Type};
use mdl_syntax::ast::{self, ArgType, ItemKind, Member, MemberKind};
use mdl_syntax::diag::Diagnostic;
use mdl_syntax::span::Span;
use std::collections::BTreeMap;
use std::rc::Rc;

pub fn member_value(member: &MemberVal) -> Val {
    match member {
        MemberVal::Param(p) => Val::Param(*p),
        MemberVal::Instance(b) => Val::Block(b.clone()),
    }
}

pub fn block_decl(program: &Program, item: ItemRef) -> Option<&ast::Block> {
    match &program.item(item).kind {
        ItemKind::Block(b) | ItemKind::Model(b) => Some(b),
        _ => None,
    }
}

/// A method of an instance by name.
pub fn method<'p>(program: &'p Program, block: &BlockVal, name: &str) -> Option<&'p ast::Fn> {
    block_decl(program, block.item)?.methods.iter().find(|m| m.name.text == name)
}

/// What a method sees: the block's arguments and axes, its members, and its other methods.
pub fn method_scope(block: &Rc<BlockVal>) -> Scope {
    let mut scope = block.scope.clone();
    scope.values.extend(block.members.iter().map(|(n, m)| (n.clone(), member_value(m))));
    scope.owner = Some(block.clone());
    scope
}

/// Where an instance stands in the model.
#[derive(Clone, Debug, Default)]
pub struct Path {
    /// `stack.attend`
    pub members: String,
    /// `model.layers.{}.self_attn`
    pub stored: String,
    /// The repeat that the instance is inside of.
    pub repeat: Option<(String, Size)>,
}

impl Path {
    fn join(&self, member: &Member) -> Path {
        let dot = |a: &str, b: &str| match (a.is_empty(), b.is_empty()) {
            (true, _) => b.to_string(),
            (_, true) => a.to_string(),
            _ => format!("{a}.{b}"),
        };
        let stored = member.stored.as_ref().map_or(member.name.text.as_str(), |(s, _)| s.as_str());
        Path {
            members: dot(&self.members, &member.name.text),
            stored: dot(&self.stored, stored),
            repeat: self.repeat.clone(),
        }
    }
}

impl Elaborator<'_> {
    /// Makes an instance: its weights enter `params`, its inner instances follow.
    pub fn instantiate(
        &mut self,
        item: ItemRef,
        scope: Scope,
        path: &Path,
        at: Span,
    ) -> Eval<Rc<BlockVal>> {
        let program = self.program;
        let Some(decl) = block_decl(program, item) else {
            return self.fail("E0405", "this is no block", at, "used as one here");
        };
        if path.members.matches('.').count() > crate::elaborate::MAX_CALL_DEPTH {
            return self.fail("E0412", "this block holds itself", at, "instance made here");
        }
        let mut members: BTreeMap<String, MemberVal> = BTreeMap::new();
        let mut complete = true;
        for member in &decl.members {
            if members.contains_key(&member.name.text) {
                let message = format!("`{}` is defined twice", member.name.text);
                let _: Eval<()> = self.fail("E0202", message, member.name.span, "again here");
            }
            match self.member_of(member, &members, &scope, &path.join(member)) {
                Ok(val) => {
                    members.insert(member.name.text.clone(), val);
                }
                Err(Reported) => complete = false,
            }
        }
        if !complete {
            return Err(Reported);
        }
        Ok(Rc::new(BlockVal { item, scope, members, repeat: None }))
    }

    fn member_of(
        &mut self,
        member: &Member,
        above: &BTreeMap<String, MemberVal>,
        scope: &Scope,
        path: &Path,
    ) -> Eval<MemberVal> {
        match &member.kind {
            MemberKind::Param { ty, init, tied } => {
                let axes = self.param_axes(ty, scope)?;
                if let Some((other, condition)) = tied
                    && self.holds(condition.as_ref(), scope)?
                {
                    return self.tie(other, above, path);
                }
                let init = match init {
                    Some(e) => Some(self.init(e, &axes, scope)?),
                    None => None,
                };
                Ok(MemberVal::Param(self.add_param(member, axes, init, path)?))
            }
            MemberKind::Instance { block, axes, args, count } => {
                let Some(item) = self.program.find(scope.module, &block.text) else {
                    let message = format!("there is no block `{}`", block.text);
                    return self.fail("E0201", message, block.span, "not defined or imported");
                };
                let mut inner = self.instance_scope(item, block, axes, args, scope)?;
                inner.module = item.module;
                let mut path = path.clone();
                let mut repeat = None;
                if let Some(count) = count {
                    let at = count.span;
                    let axis = self.axis(&count.text, at, scope, &[])?;
                    let Some(size) = axis.size.clone() else {
                        return self.fail("E0204", "the count has no size", at, "here");
                    };
                    if path.repeat.is_some() {
                        let message = "a repeated block inside a repeated block is not supported";
                        return self.fail("E0308", message, at, "repeated again here");
                    }
                    repeat = Some((axis.name, size));
                    path.repeat = repeat.clone();
                    path.stored.push_str(".{}");
                }
                let instance = self.instantiate(item, inner, &path, member.span)?;
                let instance = BlockVal { repeat, ..(*instance).clone() };
                Ok(MemberVal::Instance(Rc::new(instance)))
            }
        }
    }

    fn holds(&mut self, condition: Option<&ast::Expr>, scope: &Scope) -> Eval<bool> {
        let Some(condition) = condition else { return Ok(true) };
        match self.expr(condition, scope)? {
            Val::Bool(b) => Ok(b),
            other => {
                let message = format!("a condition is needed, and this is {}", other.kind());
                self.fail("E0405", message, condition.span, "here")
            }
        }
    }

    fn tie(
        &mut self,
        other: &ast::Name,
        above: &BTreeMap<String, MemberVal>,
        path: &Path,
    ) -> Eval<MemberVal> {
        match above.get(&other.text) {
            Some(MemberVal::Param(p)) => {
                self.params[*p].param.also_stored.push(path.stored.clone());
                Ok(MemberVal::Param(*p))
            }
            _ => {
                let message = format!("there is no parameter `{}` above", other.text);
                self.fail("E0207", message, other.span, "tied to this")
            }
        }
    }

    fn param_axes(&mut self, ty: &ast::TypeExpr, scope: &Scope) -> Eval<Vec<SymAxis>> {
        let mut axes: Vec<SymAxis> = Vec::new();
        for axis in &ty.axes {
            let known = scope.axes.get(&axis.name.text).cloned();
            let name = known.as_ref().map_or(axis.name.text.clone(), |k| k.name.clone());
            let origin = axis.size.as_ref().map_or(axis.name.span, |e| e.span);
            let size = match (&axis.size, known) {
                (Some(e), _) => size_of(self, e, scope)?,
                (None, Some(AxisVal { size: Some(size), .. })) => size,
                _ => {
                    let message = format!("there is no axis `{}` here", axis.name.text);
                    return self.fail("E0204", message, axis.name.span, "unknown axis");
                }
            };
            match size.value() {
                Some(n) if (1..1 << 31).contains(&n) => {}
                Some(_) => {
                    let message = format!("axis `{name}` would be {}", size.explained());
                    return self.fail("E0307", message, origin, "out of range");
                }
                None => {
                    let message = format!("axis `{name}` would be {}", size.explained());
                    return self.fail("E0407", message, origin, "leaves a remainder");
                }
            }
            if axes.iter().any(|a| a.name == name) {
                let message = format!("axis `{name}` stands twice in this type");
                return self.fail("E0306", message, axis.name.span, "again here");
            }
            axes.push(SymAxis { name, size, origin });
        }
        if axes.len() + 1 > mdl_ir::infer::MAX_AXES {
            return self.fail("E0305", "a parameter has at most 7 axes", ty.span, "here");
        }
        Ok(axes)
    }

    fn add_param(
        &mut self,
        member: &Member,
        mut axes: Vec<SymAxis>,
        init: Option<Body>,
        path: &Path,
    ) -> Eval<usize> {
        if let Some(other) = self.params.iter().find(|p| p.param.stored == path.stored) {
            let message = format!("two parameters are stored as `{}`", path.stored);
            let d = Diagnostic::error("E0409", message, member.span, "this one");
            let d = d.label(other.span, "and this one");
            self.sink.push(d);
            return Err(Reported);
        }
        let mut repeats = None;
        if let Some((name, size)) = &path.repeat {
            repeats = size.value();
            let axis = SymAxis { name: name.clone(), size: size.clone(), origin: member.span };
            axes.insert(0, axis);
        }
        let ty = Type::new(DType::F32, axes.iter().map(concrete).collect());
        let mut bytes: u64 = 4;
        for axis in &ty.axes {
            bytes = match bytes.checked_mul(axis.size) {
                Some(b) if b <= 1 << 48 => b,
                _ => {
                    let message = format!("`{}` is larger than 2^48 bytes", member.name.text);
                    return self.fail("E0307", message, member.span, "this parameter");
                }
            };
        }
        let param = Param {
            name: path.members.clone(),
            stored: path.stored.clone(),
            also_stored: Vec::new(),
            ty,
            repeats,
            init,
        };
        let repeat = path.repeat.as_ref().map(|(name, _)| name.clone());
        self.params.push(ParamInfo { param, axes, repeat, span: member.span });
        Ok(self.params.len() - 1)
    }

    /// The body that gives one tensor's initial values.
    fn init(&mut self, e: &ast::Expr, axes: &[SymAxis], scope: &Scope) -> Eval<Body> {
        let types: Vec<Axis> = axes.iter().map(concrete).collect();
        self.frames.push(Frame::new(FrameKind::Init(types.clone())));
        let result = self.expr(e, scope).and_then(|val| {
            let t = self.tensor(val, e.span)?;
            self.op(Op::Broadcast { axes: types }, &[&t], axes, e.span)
        });
        let frame = self.frames.pop().expect("pushed above");
        Ok(frame.builder.finish(vec![result?.id]))
    }

    /// Arguments and axes of an instance, as its members and methods see them.
    fn instance_scope(
        &mut self,
        item: ItemRef,
        name: &ast::Name,
        axes: &[ast::Name],
        args: &[ast::CallArg],
        scope: &Scope,
    ) -> Eval<Scope> {
        let program = self.program;
        let Some(decl) = block_decl(program, item) else {
            let message = format!("`{}` is no block", name.text);
            return self.fail("E0405", message, name.span, "used as one here");
        };
        if axes.len() != decl.axes.len() || args.len() != decl.args.len() {
            let message = format!(
                "`{}` takes {} axes and {} arguments",
                name.text,
                decl.axes.len(),
                decl.args.len()
            );
            let here = format!("{} and {} given", axes.len(), args.len());
            let d = Diagnostic::error("E0208", message, name.span, here);
            self.sink.push(d.label(decl.name.span, "declared here"));
            return Err(Reported);
        }
        let mut inner = Scope { module: item.module, ..Scope::default() };
        for (own, given) in decl.axes.iter().zip(axes) {
            let axis = self.axis(&given.text, given.span, scope, &[])?;
            inner.axes.insert(own.text.clone(), axis);
        }
        for (arg, given) in decl.args.iter().zip(args) {
            let val = self.expr(&given.value, scope)?;
            let given = Given { name: None, val, span: given.value.span };
            self.bind_arg(arg, &given, &mut inner)?;
            open_config(arg, &mut inner);
        }
        Ok(inner)
    }

    /// `block(x)`: its `forward`, once, or as a region that is repeated.
    pub fn call_block(&mut self, block: &Rc<BlockVal>, given: Vec<Given>, at: Span) -> Eval<Val> {
        let Some(forward) = method(self.program, block, "forward").cloned() else {
            return self.fail("E0207", "this block has no `forward`", at, "called here");
        };
        match &block.repeat {
            None => self.call_fn(&forward, method_scope(block), given, at),
            Some((axis, count)) => {
                let count = count.value().expect("sizes of axes are whole");
                self.call_repeated(block, &forward, given, (axis, count), at)
            }
        }
    }

    fn call_repeated(
        &mut self,
        block: &Rc<BlockVal>,
        forward: &ast::Fn,
        given: Vec<Given>,
        (axis, count): (&str, u64),
        at: Span,
    ) -> Eval<Val> {
        let [first] = given.as_slice() else {
            let message = "a repeated block takes one tensor and gives it back";
            return self.fail("E0308", message, at, "called here");
        };
        let x = self.tensor(first.val.clone(), first.span)?;
        let ty = self.frame().builder.ty(x.id).clone();
        self.frames.push(Frame::new(FrameKind::Repeat(axis.to_string())));
        let id = self.frame().builder.input("x", ty.clone());
        let carried =
            Given { name: None, val: Val::Tensor(TensorVal { id, ..x.clone() }), span: first.span };
        let result = self.call_fn(forward, method_scope(block), vec![carried], at);
        let result = result.and_then(|val| self.tensor(val, at));
        let result = result.and_then(|y| self.same_shape(&x, y, &ty, at));
        let frame = self.frames.pop().expect("pushed above");
        let y = result?;
        let (body, outer) = self.close_repeat(frame, y, x.id);
        let consts = outer.1;
        let op = Op::Repeat {
            axis: axis.to_string(),
            count,
            reverse: false,
            carries: 1,
            consts,
            body: Box::new(body),
        };
        let results = vec![("x".to_string(), ty)];
        let ids = self.frame().builder.node(op, outer.0, results, place(at));
        Ok(Val::Tensor(TensorVal { id: ids[0], ..x }))
    }

    /// The region must give back what it takes, in the same order of memory.
    fn same_shape(&mut self, x: &TensorVal, y: TensorVal, ty: &Type, at: Span) -> Eval<ValueId> {
        let own = self.frame().builder.ty(y.id).clone();
        if !own.same_axes(ty) {
            let message = format!("a repeated block takes {} and gives {}", x.show(), y.show());
            return self.fail("E0308", message, at, "each layer feeds the next");
        }
        let axes = mdl_ir::build::axis_names(&ty.axes);
        self.op(Op::Reorder { axes }, &[&y], &[], at).map(|t| t.id)
    }

    /// Body inputs in the order carries, consts, stacked, and the outer values for them with the
    /// number of consts.
    fn close_repeat(
        &mut self,
        frame: Frame,
        y: ValueId,
        x: ValueId,
    ) -> (Body, (Vec<ValueId>, usize)) {
        let Frame { mut builder, captures, .. } = frame;
        let carry = builder.body.inputs[0];
        let (stacked, consts): (Vec<_>, Vec<_>) =
            captures.into_iter().partition(|(_, _, sliced)| *sliced);
        builder.body.inputs = std::iter::once(carry)
            .chain(consts.iter().chain(&stacked).map(|(_, id, _)| *id))
            .collect();
        let depth = self.frames.len() - 1;
        let mut outer = vec![x];
        for (what, _, _) in consts.iter().chain(&stacked) {
            outer.push(self.capture(what, depth).0);
        }
        (builder.finish(vec![y]), (outer, consts.len()))
    }
}

/// The sizes of a configuration are axes by their own names in the block that takes it.
pub fn open_config(arg: &ast::Arg, scope: &mut Scope) {
    let (ArgType::Config(_), Some(Val::Config(config))) =
        (&arg.ty, scope.values.get(&arg.name.text))
    else {
        return;
    };
    let config = config.clone();
    for (name, setting) in &config.fields {
        if let crate::config::Setting::Size(size) = setting {
            let axis = AxisVal {
                name: name.clone(),
                size: Some(size.clone()),
                origin: config.places[name],
            };
            scope.axes.insert(name.clone(), axis);
        }
    }
}
