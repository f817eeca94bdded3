//! Blocks: instances with their weights, and their calls, repeated ones as one region.

use crate::auxiliary::{Named, lay_out};
use crate::bindings::Bindings;
use crate::call::{Given, count, size_of};
use crate::elaborate::{Elaborator, MAX_TENSOR_BYTES, ParamInfo, concrete, place};
use crate::frame::{Frame, FrameKind, Made};
use crate::nearest::nearest;
use crate::program::{ItemRef, Program, item_name, standard_home};
use crate::size::Size;
use crate::value::{AxisVal, BlockVal, Eval, MemberVal, Reported, Scope, SymAxis, TensorVal, Val};
use mdl_ir::graph::{Body, Param, ValueId};
use mdl_ir::op::Op;
use mdl_ir::tensor_type::{Axis, DType, Type};
use mdl_symbol::{Symbol, joined};
use mdl_syntax::ast::{self, ArgType, ItemKind, Member, MemberKind};
use mdl_syntax::diag::Diagnostic;
use mdl_syntax::span::Span;
use std::borrow::Cow;
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
    block_decl(program, block.item)?.methods.iter().find(|m| *m.name.text == *name)
}

/// What a method sees: the block's arguments and axes, its members, and its other methods.
pub fn method_scope(block: &Rc<BlockVal>) -> Scope {
    let mut scope = block.scope.clone();
    scope.owner = Some(block.clone());
    scope
}

/// Where an instance stands in the model.
#[derive(Clone, Debug, Default)]
pub struct Path {
    /// `stack.attend`; empty where nobody asks for the weights.
    pub members: String,
    /// `model.layers.{}.self_attn`
    pub stored: String,
    /// The repeat that the instance is inside of.
    pub repeat: Option<(Symbol, Size)>,
    /// The axis of which a checkpoint has one tensor for each index.
    pub part: Option<String>,
}

impl Path {
    fn join(&self, member: &Member, named: bool) -> Path {
        let dot = |a: &str, b: &str| match (a.is_empty(), b.is_empty()) {
            (true, _) => b.to_string(),
            (_, true) => a.to_string(),
            _ => [a, ".", b].concat(),
        };
        let stored = member.stored.as_ref().map_or(member.name.text.as_str(), |(s, _)| s);
        let (stored, part) = numbered(stored);
        Path {
            members: if named { dot(&self.members, &member.name.text) } else { String::new() },
            stored: dot(&self.stored, &stored),
            repeat: self.repeat.clone(),
            part,
        }
    }
}

/// `experts.{experts}.w1.weight` names a tensor for each index of an axis: the name with `{}` for
/// the index, and the axis.
fn numbered(stored: &str) -> (Cow<'_, str>, Option<String>) {
    let parts = stored.split_once('{').and_then(|(before, rest)| {
        let (axis, after) = rest.split_once('}')?;
        Some((Cow::from(format!("{before}{{}}{after}")), axis.to_string()))
    });
    parts.map_or((stored.into(), None), |(name, axis)| (name, Some(axis)))
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
        if self.open.len() >= crate::elaborate::MAX_CALL_DEPTH {
            return self.fail("E0411", "blocks are nested more than 64 deep", at, "made here");
        }
        self.enter(&decl.name, at)?;
        let instance = self.members(item, decl, scope, path);
        self.open.pop();
        instance
    }

    fn members(
        &mut self,
        item: ItemRef,
        decl: &ast::Block,
        mut scope: Scope,
        path: &Path,
    ) -> Eval<Rc<BlockVal>> {
        let (shape, first) = (self.shape(decl, &scope), self.params.len());
        let mut members = Bindings::default();
        let mut complete = true;
        for member in &decl.members {
            let stored = member.stored.as_ref().map_or(0, |(name, _)| name.len());
            // An instance copies its scope and takes the names of all its owners.
            let copied = scope.values.own_len() + scope.axes.own_len() + path.stored.len() + stored;
            self.step(50 + copied / 4, member.span)?;
            let path = path.join(member, !self.sketching());
            match self.member_of(member, shape, &members, &scope, path) {
                Ok(val) => {
                    members.insert(member.name.text, val);
                }
                Err(Reported) => complete = false,
            }
        }
        if !complete {
            return Err(Reported);
        }
        let values = members.iter().map(|(name, member)| (name, member_value(member)));
        scope.values.extend(values);
        scope.values = scope.values.shared();
        scope.axes = scope.axes.shared();
        let layers = path.repeat.as_ref().map(|(axis, _)| *axis);
        let shape = shape.map(|(shape, _)| shape);
        Ok(Rc::new(BlockVal { item, shape, first, layers, scope, members, repeat: None }))
    }

    fn member_of(
        &mut self,
        member: &Member,
        shape: Option<(usize, bool)>,
        above: &Bindings<MemberVal>,
        scope: &Scope,
        mut path: Path,
    ) -> Eval<MemberVal> {
        match &member.kind {
            MemberKind::Param { ty, init, tied } => {
                let axes = self.param_axes(ty, scope)?;
                if let Some((other, condition)) = tied
                    && self.holds(condition.as_ref(), scope)?
                {
                    return self.tie(other, &axes, above, &path, member.span);
                }
                self.check_part(member, &axes, &path)?;
                let whole = usize::from(path.part.is_some());
                let init = match init {
                    Some(expr) => {
                        self.init_of(shape, expr.span, |e| e.init(expr, &axes[whole..], scope))?
                    }
                    None => None,
                };
                Ok(MemberVal::Param(self.add_param(member, axes, init, path)?))
            }
            MemberKind::Instance { block, axes, args, count } => {
                self.check_part(member, &[], &path)?;
                let Some(item) = self.program.find(scope.module, block.text) else {
                    return self.no_block(block, scope.module);
                };
                let mut inner = self.instance_scope(item, block, axes, args, scope)?;
                inner.module = item.module;
                let mut repeat = None;
                if let Some(count) = count {
                    let at = count.span;
                    let axis = self.axis(count.text, at, scope, &[])?;
                    let Some(size) = axis.size.clone() else {
                        let message = format!("the size of `{}` is not known here", count.text);
                        return self.fail("E0204", message, at, "the number of layers");
                    };
                    if path.repeat.is_some() {
                        let message = "a repeated block inside a repeated block is not supported";
                        return self.fail("E0308", message, at, "repeated again here");
                    }
                    repeat = Some((axis.name, size));
                    path.repeat = repeat.clone();
                    path.stored.push_str(".{}");
                }
                let mut instance = self.instantiate(item, inner, &path, member.span)?;
                if repeat.is_some() {
                    Rc::make_mut(&mut instance).repeat = repeat;
                }
                Ok(MemberVal::Instance(instance))
            }
        }
    }

    /// The axis that a stored name counts is the outermost one of its parameter.
    fn check_part(&mut self, member: &Member, axes: &[SymAxis], path: &Path) -> Eval<()> {
        let (Some(part), Some((_, at))) = (&path.part, &member.stored) else { return Ok(()) };
        match axes.first() {
            Some(first) if *first.name == **part && axes.len() > 1 => Ok(()),
            Some(first) => {
                let message = format!("`{{{part}}}` is not the outermost axis of this parameter");
                let d = Diagnostic::error("E0204", message, *at, "one tensor for each index");
                self.sink.push(d.help(format!("write `{{{}}}`", first.name)));
                Err(Reported)
            }
            None => {
                let message = "only the name of a parameter counts an axis";
                self.fail("E0204", message, *at, "this names no tensor")
            }
        }
    }

    fn no_block<T>(&mut self, name: &ast::Name, module: usize) -> Eval<T> {
        let program = self.program;
        let names = program.names(module).into_iter();
        let blocks = names.filter(|(_, item)| block_decl(program, *item).is_some());
        let message = format!("there is no block `{}`", name.text);
        let here = "not defined or imported here";
        let d = Diagnostic::error("E0201", message, name.span, here);
        let near = nearest(&name.text, blocks.map(|(name, _)| name));
        self.sink.push(match (near, standard_home(program, &name.text)) {
            (Some(near), _) => d.help(format!("write `{near}`")),
            (None, Some(home)) => d.help(format!("import it: `use {home}.{}`", name.text)),
            _ => d,
        });
        Err(Reported)
    }

    fn holds(&mut self, condition: Option<&ast::Expr>, scope: &Scope) -> Eval<bool> {
        let Some(condition) = condition else { return Ok(true) };
        match self.expr(condition, scope)? {
            Val::Bool(b) => Ok(b),
            other => {
                let message = "a parameter is tied where a condition holds";
                let here = format!("this is {}, not `true` or `false`", other.kind());
                self.fail("E0405", message, condition.span, here)
            }
        }
    }

    /// The parameter of another member, which must have the same axes.
    fn tie(
        &mut self,
        other: &ast::Name,
        axes: &[SymAxis],
        above: &Bindings<MemberVal>,
        path: &Path,
        at: Span,
    ) -> Eval<MemberVal> {
        let Some(MemberVal::Param(p)) = above.get(other.text) else {
            let message = format!("there is no parameter `{}` above", other.text);
            return self.fail("E0207", message, other.span, "tied to this");
        };
        let whole = &self.params[*p];
        let theirs = &whole.axes[usize::from(whole.repeat.is_some())..];
        let named = |axes: &[SymAxis]| {
            let names: Vec<Symbol> = axes.iter().map(|a| a.name).collect();
            format!("[{}]", joined(&names, ", "))
        };
        let (mine, other_type) = (named(axes), named(theirs));
        if mine != other_type {
            let message = format!("a parameter {mine} is tied to one that is {other_type}");
            let d = Diagnostic::error("E0301", message, at, format!("this is {mine}"));
            self.sink.push(d.label(whole.span, format!("`{}` is {other_type}", other.text)));
            return Err(Reported);
        }
        let differ = axes.iter().zip(theirs).find(|(a, b)| !a.size.same(&b.size));
        if let Some((a, b)) = differ.map(|(a, b)| (a.clone(), b.clone())) {
            return self.sizes_differ(&a, &b, at);
        }
        self.params[*p].param.also_stored.push(path.stored.clone());
        Ok(MemberVal::Param(*p))
    }

    fn param_axes(&mut self, ty: &ast::TypeExpr, scope: &Scope) -> Eval<Vec<SymAxis>> {
        let mut axes: Vec<SymAxis> = Vec::new();
        for axis in &ty.axes {
            let known = scope.axes.get(axis.name.text).cloned();
            let name = known.as_ref().map_or(axis.name.text, |k| k.name);
            let origin = axis.size.as_ref().map_or(axis.name.span, |e| e.span);
            let size = match (&axis.size, known) {
                (Some(e), _) => size_of(self, e, scope)?,
                (None, Some(AxisVal { size: Some(size), .. })) => size,
                _ => {
                    return self.no_axis(axis.name.text, axis.name.span, scope, &[]);
                }
            };
            self.whole(&name, &size, origin)?;
            if axes.iter().any(|a| a.name == name) {
                let message = format!("axis `{name}` stands twice in this type");
                return self.fail("E0306", message, axis.name.span, "stands here again");
            }
            axes.push(SymAxis { name, size, origin });
        }
        if axes.len() + 1 > mdl_ir::infer::MAX_AXES {
            // A repeated block adds one.
            let message = format!("a parameter has {} axes, and 7 is the most", axes.len());
            return self.fail("E0305", message, ty.span, "merge some into one");
        }
        Ok(axes)
    }

    fn add_param(
        &mut self,
        member: &Member,
        mut axes: Vec<SymAxis>,
        init: Option<Body>,
        path: Path,
    ) -> Eval<usize> {
        if let Some(other) = self.stored.get(&path.stored).map(|p| &self.params[*p]) {
            let message = format!("two parameters are stored as `{}`", path.stored);
            let d = match other.span == member.span {
                true => {
                    let here = "two instances of this block have one name";
                    Diagnostic::error("E0409", message, member.span, here)
                }
                false => Diagnostic::error("E0409", message, member.span, "this one")
                    .label(other.span, "and this one"),
            };
            self.sink.push(d);
            return Err(Reported);
        }
        let parts = path.part.as_ref().and_then(|_| axes.first()?.size.value());
        let mut repeats = None;
        if let Some((name, size)) = &path.repeat {
            repeats = size.value();
            if axes.iter().any(|a| a.name == *name) {
                let message = format!("axis `{name}` stands twice in this parameter");
                let here = "the repeated block already stacks it along this axis";
                return self.fail("E0306", message, member.span, here);
            }
            let axis = SymAxis { name: *name, size: size.clone(), origin: member.span };
            axes.insert(0, axis);
        }
        let mut bytes: u64 = 4;
        for axis in &axes {
            bytes = match bytes.checked_mul(axis.size.value().unwrap_or(1)) {
                Some(b) if b <= MAX_TENSOR_BYTES => b,
                _ => {
                    let message = format!("`{}` is larger than 2^48 bytes", member.name.text);
                    return self.fail("E0307", message, member.span, "this parameter");
                }
            };
        }
        // A check knows a weight by its number.
        let (stored, known) = match self.sketching() {
            true => (String::new(), Vec::new()),
            false => (path.stored.clone(), axes.iter().map(concrete).collect()),
        };
        let ty = Type::new(DType::F32, known);
        let (name, also_stored) = (path.members, Vec::new());
        let param = Param { name, stored, also_stored, ty, repeats, parts, init };
        let repeat = path.repeat.as_ref().map(|(name, _)| *name);
        self.stored.insert(path.stored, self.params.len());
        self.params.push(ParamInfo { param, axes: axes.into(), repeat, span: member.span });
        Ok(self.params.len() - 1)
    }

    /// The body that gives one tensor's initial values; none where nobody asks for one.
    fn init(&mut self, e: &ast::Expr, axes: &[SymAxis], scope: &Scope) -> Eval<Option<Body>> {
        let types: Rc<[Axis]> = axes.iter().map(concrete).collect();
        self.open_frame(FrameKind::Init(types.clone()));
        let result = self.expr(e, scope).and_then(|val| {
            let t = self.tensor(val, e.span)?;
            if let Some(extra) = t.axes.iter().find(|a| !axes.iter().any(|b| b.name == a.name)) {
                let message = format!("an initial value has the further axis `{}`", extra.name);
                let here = format!("this is {}", t.show());
                return self.fail("E0301", message, e.span, here);
            }
            // Random numbers know the axes by their numbers alone, so only those are compared.
            for x in t.axes.iter() {
                let own = axes.iter().find(|a| a.name == x.name);
                if let Some(own) = own.filter(|own| own.size.value() != x.size.value()) {
                    return self.sizes_differ(own, x, e.span);
                }
            }
            self.want(&t, DType::F32, e.span)?;
            self.op(Op::Broadcast { axes: types.to_vec() }, &[&t], axes, e.span)
        });
        let frame = self.frames.pop().expect("pushed above");
        Ok(frame.finish(vec![result?.id]))
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
        if axes.len() != decl.axes.len() {
            let wanted = count(decl.axes.len(), "axis", "axes");
            let message = format!("`{}` takes {wanted} in brackets", name.text);
            let here = format!("{} given", count(axes.len(), "axis is", "axes are"));
            let d = Diagnostic::error("E0208", message, name.span, here);
            self.sink.push(d.label(decl.name.span, "declared here"));
            return Err(Reported);
        }
        let mut inner = Scope { module: item.module, ..Scope::default() };
        for (own, given) in decl.axes.iter().zip(axes) {
            let axis = self.axis(given.text, given.span, scope, &[])?;
            inner.axes.insert(own.text, axis);
        }
        let mut given = Vec::new();
        for arg in args {
            let val = self.expr(&arg.value, scope)?;
            given.push(Given { name: arg.name, val, span: arg.value.span });
        }
        let given = self.match_args(&decl.name, &decl.args, given, &inner, name.span)?;
        for (arg, given) in decl.args.iter().zip(&given) {
            self.bind_arg(arg, given, &mut inner)?;
            open_config(arg, &mut inner);
        }
        Ok(inner)
    }

    /// `block(x)`: its `forward`, once, or as a region that is repeated.
    pub fn call_block(&mut self, block: &Rc<BlockVal>, given: Vec<Given>, at: Span) -> Eval<Val> {
        let Some(forward) = method(self.program, block, "forward") else {
            let decl = item_name(self.program.item(block.item));
            let name = decl.map_or("this block", |n| &n.text);
            let message = format!("`{name}` has no `forward`");
            let d = Diagnostic::error("E0207", message, at, "called here");
            self.sink.push(match decl {
                Some(n) => d.label(n.span, "declared here"),
                None => d,
            });
            return Err(Reported);
        };
        match &block.repeat {
            None => self.forward(block, forward, given, at),
            Some((axis, count)) => self.call_repeated(block, forward, given, (*axis, count), at),
        }
    }

    fn call_repeated(
        &mut self,
        block: &Rc<BlockVal>,
        forward: &ast::Fn,
        given: Vec<Given>,
        (axis, size): (Symbol, &Size),
        at: Span,
    ) -> Eval<Val> {
        let count = size.value().unwrap_or(1);
        let [first] = given.as_slice() else {
            let message = "a repeated block takes one tensor and gives it back";
            return self.fail("E0308", message, at, "called here");
        };
        let x = self.tensor(first.val.clone(), first.span)?;
        self.open_frame(FrameKind::Repeat(axis));
        let own = self.frame().input("x".into(), x.dtype, x.axes.clone());
        let carried = Given { name: None, val: Val::Tensor(own.clone()), span: first.span };
        let result = self.forward(block, forward, vec![carried], at);
        let result = result.and_then(|val| self.tensor(val, at));
        let result = result.and_then(|y| self.same_shape(&x, y, (forward, at)));
        let frame = self.frames.pop().expect("pushed above");
        let y = TensorVal { id: result?, ..own.clone() };
        let (ids, named) = self.close_repeat(frame, [&x, &own, &y], Axis::new(axis, count), at);
        self.name_stacked(named, &ids[1..], (axis, size), at);
        Ok(Val::Tensor(TensorVal { id: ids[0], ..x }))
    }

    /// The region must give back what it takes, in the same order of memory.
    fn same_shape(
        &mut self,
        x: &TensorVal,
        y: TensorVal,
        (forward, at): (&ast::Fn, Span),
    ) -> Eval<ValueId> {
        self.agree(&[x, &y], at)?;
        // One name may have two numbers, which `agree` does not see.
        let found = |a: &SymAxis| y.axis(a.name).is_some_and(|b| a.size.value() == b.size.value());
        let same = x.axes.len() == y.axes.len() && x.axes.iter().all(found);
        if !same || x.dtype != y.dtype {
            let (takes, gives) = (x.show(), y.show());
            let message = format!("a repeated block takes {takes} and gives {gives}");
            let here = format!("each layer feeds the next: the first one takes {takes}");
            let declared = match forward.result.as_slice() {
                [ty] => ty.span,
                _ => forward.name.span,
            };
            let d = Diagnostic::error("E0308", message, at, here);
            self.sink.push(d.label(declared, format!("it gives {gives}")));
            return Err(Reported);
        }
        let axes = x.axes.iter().map(|a| a.name).collect();
        self.op(Op::Reorder { axes }, &[&y], &[], at).map(|t| t.id)
    }

    /// The region of a repeated block, with what it takes and gives: outside, within, and at its
    /// end. Its inputs are in the order carries, consts, stacked.
    fn close_repeat(
        &mut self,
        frame: Frame,
        [x, carry, y]: [&TensorVal; 3],
        layers: Axis,
        at: Span,
    ) -> (Vec<ValueId>, Vec<Named>) {
        let Frame { made, captures, mut named, .. } = frame;
        let (stacked, consts): (Vec<_>, Vec<_>) = captures.into_iter().partition(|c| c.sliced);
        let (mut inner, mut outer) = (vec![carry.id], vec![x.id]);
        let depth = self.frames.len() - 1;
        for capture in consts.iter().chain(&stacked) {
            inner.push(capture.id);
            outer.push(self.capture(&capture.what, depth).0);
        }
        let ids = match made {
            Made::Graph(mut builder) => {
                builder.body.inputs = inner;
                let outputs = lay_out(&mut builder, &mut named);
                let outputs = std::iter::once(y.id).chain(outputs).collect();
                let (axis, count) = (layers.name, layers.size);
                let (carries, consts) = (1, consts.len());
                let body = Box::new(builder.finish(outputs));
                let op = Op::Repeat { axis, count, reverse: false, carries, consts, body };
                let ty = |t: &TensorVal| Type::new(t.dtype, t.axes.iter().map(concrete).collect());
                let mut results = vec![("x".into(), ty(x))];
                let named = named.iter().flat_map(|n| &n.values);
                results.extend(named.map(|(name, t)| (*name, ty(t).stacked(layers))));
                self.builder().node(op, outer, results, place(at))
            }
            Made::Sketch(body) => {
                let named = named.iter().flat_map(|n| &n.values).map(|(_, t)| t.id);
                let outputs: Vec<ValueId> = std::iter::once(y.id).chain(named).collect();
                self.sketched(&body, &outputs, inner.into_iter().zip(outer))
            }
        };
        (ids, named)
    }
}

/// The sizes of a configuration are axes by their own names in the block that takes it.
pub fn open_config(arg: &ast::Arg, scope: &mut Scope) {
    let (ArgType::Config(_), Some(Val::Config(config))) =
        (&arg.ty, scope.values.get(arg.name.text))
    else {
        return;
    };
    let config = config.clone();
    for (name, setting) in &config.fields {
        if let crate::config::Setting::Size(size) = setting {
            let origin = config.places.get(name).copied().unwrap_or(arg.name.span);
            scope.axes.insert(*name, AxisVal { name: *name, size: Some(size.clone()), origin });
        }
    }
}
