//! Functions, blocks and configurations on their own, with made-up sizes: what no preset's model
//! has come by, such as every item of a module without a model.

use crate::block::{Path, block_decl, method_scope, open_config};
use crate::call::{Given, size_of};
use crate::check::unused_param;
use crate::config::{Source, bind, made_up_size};
use crate::elaborate::Elaborator;
use crate::entry::{ModelRef, elaborator};
use crate::frame::FrameKind;
use crate::program::{ItemRef, Program};
use crate::size::Size;
use crate::value::{AxisVal, Eval, FunctionVal, Reported, Scope, SymAxis, TensorVal, Val};
use crate::work::{Reached, Work};
use mdl_ir::tensor_type::{Axis, DType};
use mdl_symbol::{Symbol, SymbolSet};
use mdl_syntax::ast::{self, ArgType, ItemKind, TypeExpr};
use mdl_syntax::diag::Sink;
use mdl_syntax::span::Span;
use std::collections::BTreeSet;
use std::rc::Rc;

/// The axis that stands for those which `..` leaves open.
const OPEN: &str = "..";

/// The root module, and what its presets say something about.
pub struct Items<'p> {
    program: &'p Program,
    model: Option<ItemRef>,
    bound: SymbolSet,
}

impl<'p> Items<'p> {
    pub fn of(program: &'p Program, model: Option<&ModelRef>) -> Items<'p> {
        let bound = bound_by_presets(program);
        Items { program, model: model.map(|m| m.config), bound }
    }

    /// Checks these items, but for those that were reached: by this work, or as `known` says.
    pub fn check(
        &self,
        items: impl Iterator<Item = (ItemRef, &'p ast::Item)>,
        known: Option<&Reached>,
        (sink, work): (&mut Sink, &mut Work),
    ) {
        for (item, it) in items {
            let reached = |name: &ast::Name| known.unwrap_or(&work.reached).contains(&name.span);
            let alone = match &it.kind {
                // What is wrong with a configuration that is bound elsewhere is said there.
                ItemKind::Config(decl) => {
                    self.model != Some(item) && !self.bound.contains(&decl.name.text)
                }
                ItemKind::Fn(decl) => !reached(&decl.name),
                ItemKind::Block(decl) | ItemKind::Model(decl) => {
                    // After a mistake in the model, a block that it has come to is not looked at
                    // again.
                    let all = reached(&decl.name) && decl.methods.iter().all(|m| reached(&m.name));
                    !(all || sink.has_errors() && reached(&decl.name))
                }
                _ => false,
            };
            if alone {
                self.alone(item, it, (&mut *sink, &mut *work));
            }
        }
    }

    /// What is reported is in the sink.
    fn alone(&self, item: ItemRef, it: &ast::Item, (sink, work): (&mut Sink, &mut Work)) {
        if let ItemKind::Config(decl) = &it.kind {
            bind(self.program, item, &Source::Sample, decl.name.span, sink);
            return;
        }
        let mut e = elaborator(self.program, sink, work, false);
        e.sample = true;
        let _: Eval<()> = match &it.kind {
            ItemKind::Fn(decl) => function(&mut e, item, decl),
            ItemKind::Block(decl) | ItemKind::Model(decl) => block(&mut e, item, decl),
            _ => Ok(()),
        };
    }
}

/// Names of the configurations that presets bind.
fn bound_by_presets(program: &Program) -> SymbolSet {
    let presets = program.root_items().filter_map(|(_, it)| match &it.kind {
        ItemKind::Preset(p) => Some(p.config.text),
        _ => None,
    });
    presets.collect()
}

/// Calls a function with made-up arguments.
fn function(e: &mut Elaborator<'_>, item: ItemRef, decl: &ast::Fn) -> Eval<()> {
    let plain = |a: &ast::Arg| !matches!(a.ty, ArgType::Tensor(_));
    let open = decl.result.first().is_some_and(|ty| ty.open);
    if decl.axes.is_empty() && open && decl.args.iter().all(plain) {
        // Such a function gives the initial values of a parameter.
        let axes = [Axis::new(OPEN, made_up_size(0))];
        e.frames.clear();
        e.open_frame(FrameKind::Init(axes.into()));
    }
    let scope = Scope { module: item.module, ..Scope::default() };
    call(e, decl, scope).map(|_| ())
}

fn call(e: &mut Elaborator<'_>, decl: &ast::Fn, mut scope: Scope) -> Eval<Val> {
    for (i, axis) in decl.axes.iter().enumerate() {
        scope.axes.insert(axis.text, made_up_axis(axis, i));
    }
    let given = arguments(e, &decl.args, &mut scope.clone())?;
    e.call_fn(decl, scope, given, decl.name.span)
}

fn made_up_axis(name: &ast::Name, n: usize) -> AxisVal {
    let size = Size::named(name.text, made_up_size(n));
    AxisVal { name: name.text, size: Some(size), origin: name.span }
}

/// Arguments that are what their declarations say. `scope` learns the axes on the way.
fn arguments(e: &mut Elaborator<'_>, args: &[ast::Arg], scope: &mut Scope) -> Eval<Vec<Given>> {
    let mut given = Vec::new();
    for arg in args {
        let val = match &arg.ty {
            ArgType::Tensor(ty) => Val::Tensor(tensor(e, arg.name.text, ty, scope)?),
            ArgType::Size => Val::Size(Size::named(arg.name.text, made_up_size(given.len()))),
            ArgType::Real => Val::Real(2.0),
            ArgType::Bool => Val::Bool(true),
            ArgType::Function(axes) => mask(e.program, axes.len())?,
            ArgType::Config(name) if name.text == "text" => Val::Text(String::new()),
            ArgType::Config(name) => config(e, name, scope.module)?,
        };
        let known = Given { name: None, val, span: arg.name.span };
        scope.values.insert(arg.name.text, known.val.clone());
        given.push(known);
    }
    Ok(given)
}

fn config(e: &mut Elaborator<'_>, name: &ast::Name, module: usize) -> Eval<Val> {
    let program = e.program;
    let item = program.find(module, name.text);
    let is_config = |item: &ItemRef| matches!(program.item(*item).kind, ItemKind::Config(_));
    let Some(item) = item.filter(is_config) else {
        let message = format!("there is no configuration `{}`", name.text);
        return e.fail("E0201", message, name.span, "not defined or imported here");
    };
    if let Some(known) = e.work.memo.as_ref().and_then(|memo| memo.configs.get(&item)) {
        return Ok(Val::Config(known.clone()));
    }
    let bound = bind(program, item, &Source::Sample, name.span, e.sink).ok_or(Reported)?;
    if let Some(memo) = &mut e.work.memo {
        memo.configs.insert(item, bound.clone());
    }
    Ok(Val::Config(bound))
}

/// Some function over this many axes; without one, what takes it is not looked into.
fn mask(program: &Program, axes: usize) -> Eval<Val> {
    // Those that are imported come first: a function of the root may use what takes it.
    let modules = program.modules.iter().enumerate();
    let items = modules.flat_map(|(module, m)| {
        let refs = (0..m.ast.items.len()).map(move |item| ItemRef { module, item });
        refs.zip(&m.ast.items)
    });
    let fits = |it: &ast::Item| match &it.kind {
        ItemKind::Fn(f) => f.axes.len() == axes && f.args.is_empty(),
        _ => false,
    };
    let found = items.into_iter().find(|(_, it)| fits(it));
    let function = |item| Val::Function(Rc::new(FunctionVal { item, bound: Vec::new() }));
    found.map(|(item, _)| function(item)).ok_or(Reported)
}

fn tensor(
    e: &mut Elaborator<'_>,
    name: Symbol,
    ty: &TypeExpr,
    scope: &mut Scope,
) -> Eval<TensorVal> {
    let mut axes: Vec<SymAxis> = Vec::new();
    if ty.open {
        let size = Size::named(OPEN.into(), made_up_size(3));
        axes.push(SymAxis { name: OPEN.into(), size, origin: ty.span });
    }
    for axis in &ty.axes {
        let known = scope.axes.get(axis.name.text).cloned();
        let val = match (&axis.size, known) {
            (Some(size), _) => {
                let origin = size.span;
                let size = size_of(e, size, scope)?;
                AxisVal { name: axis.name.text, size: Some(size), origin }
            }
            (None, Some(known)) => known,
            (None, None) => made_up_axis(&axis.name, scope.axes.len()),
        };
        let size = val.size.clone().unwrap_or(Size::number(1));
        e.whole(&axis.name.text, &size, val.origin)?;
        axes.push(SymAxis { name: val.name, size, origin: val.origin });
        if !scope.axes.has(axis.name.text) {
            scope.axes.insert(axis.name.text, val);
        }
    }
    let dtype = match ty.dtype.as_ref().map(|d| d.text.as_str()) {
        Some("ids" | "i32") => DType::I32,
        Some("bool") => DType::Bool,
        _ => DType::F32,
    };
    Ok(e.frame().input(name, dtype, axes.into()))
}

/// Makes an instance and calls its methods.
fn block(e: &mut Elaborator<'_>, item: ItemRef, decl: &ast::Block) -> Eval<()> {
    let mut scope = Scope { module: item.module, ..Scope::default() };
    for (i, axis) in decl.axes.iter().enumerate() {
        scope.axes.insert(axis.text, made_up_axis(axis, i));
    }
    let given = arguments(e, &decl.args, &mut scope.clone())?;
    for (arg, given) in decl.args.iter().zip(&given) {
        e.bind_arg(arg, given, &mut scope)?;
        open_config(arg, &mut scope);
    }
    let instance = e.instantiate(item, scope, &Path::default(), decl.name.span)?;
    let mut results = Vec::new();
    let mut whole = !decl.methods.is_empty();
    for method in &decl.methods {
        match call(e, method, method_scope(&instance)) {
            Ok(val) => whole &= keep(e, val, method.name.span, &mut results).is_ok(),
            Err(Reported) => whole = false,
        }
    }
    let Some(frame) = e.frames.pop() else { return Ok(()) };
    if !whole || block_decl(e.program, item).is_none() {
        return Ok(());
    }
    let used: BTreeSet<usize> = frame.weights(results).into_iter().collect();
    for p in (0..e.params.len()).filter(|p| !used.contains(p)) {
        let (name, span) = (e.params[p].param.name.clone(), e.params[p].span);
        unused_param(&name, span, e.sink);
    }
    Ok(())
}

fn keep(
    e: &mut Elaborator<'_>,
    val: Val,
    at: Span,
    results: &mut Vec<mdl_ir::graph::ValueId>,
) -> Eval<()> {
    match val {
        Val::Tuple(vals) => vals.into_iter().try_for_each(|v| keep(e, v, at, results)),
        Val::Tensor(t) => {
            results.push(t.id);
            Ok(())
        }
        Val::Param(_) => {
            results.push(e.tensor(val, at)?.id);
            Ok(())
        }
        _ => Ok(()),
    }
}
