//! From a model with a configuration to the graph of one entry, and from a standard function to its
//! body.

use crate::block::{Path, block_decl, method, method_scope, open_config};
use crate::call::Given;
use crate::config::Config;
use crate::elaborate::Elaborator;
use crate::frame::{Frame, FrameKind, Outside};
use crate::memo::Trail;
use crate::program::{ItemRef, Program};
use crate::size::Size;
use crate::value::{BlockVal, Eval, Reported, Scope, SymAxis, TensorVal, Val};
use crate::work::Work;
use mdl_ir::graph::{Body, Graph, InputRole, OutputRole, Param, Stage};
use mdl_ir::op::{Binary, Op};
use mdl_ir::tensor_type::{DType, Type};
use mdl_symbol::SymbolMap;
use mdl_syntax::ast::{ArgType, ItemKind};
use mdl_syntax::diag::{Diagnostic, Sink};
use mdl_syntax::span::Span;
use std::collections::HashMap;
use std::rc::Rc;

/// The output of a loss that has it: the part of it that blocks added.
pub const AUXILIARY: &str = "auxiliary";

/// What a run decides about an entry.
#[derive(Clone, Debug)]
pub struct EntryOptions {
    /// Sizes of the axes that the model leaves to the run: B and T.
    pub sizes: Vec<(String, u64)>,
    /// Are sequences packed from several documents?
    pub documents: bool,
    /// Does the loss include the auxiliary losses of the model's blocks?
    pub auxiliary: bool,
}

/// A model of the root module.
#[derive(Clone, Debug)]
pub struct ModelRef {
    pub item: ItemRef,
    pub name: String,
    /// The configuration that its first argument takes.
    pub config: ItemRef,
}

/// The first model of the root module with its configuration.
pub fn find_model(program: &Program) -> Option<ModelRef> {
    program.root_items().find_map(|(item, it)| match &it.kind {
        ItemKind::Model(decl) => {
            let ArgType::Config(name) = &decl.args.first()?.ty else { return None };
            let config = program.find(item.module, name.text)?;
            Some(ModelRef { item, name: decl.name.text.to_string(), config })
        }
        _ => None,
    })
}

pub(crate) fn elaborator<'a>(
    program: &'a Program,
    sink: &'a mut Sink,
    work: &'a mut Work,
    documents: bool,
) -> Elaborator<'a> {
    let sketch = work.memo.is_some();
    Elaborator {
        program,
        sink,
        params: Vec::new(),
        frames: vec![Frame::new(FrameKind::Graph, sketch)],
        origins: SymbolMap::default(),
        data: SymbolMap::default(),
        documents,
        sample: false,
        depth: 0,
        nesting: 0,
        open: Vec::new(),
        stored: HashMap::default(),
        watches: Vec::new(),
        work,
        trail: Trail::default(),
    }
}

fn instance(e: &mut Elaborator<'_>, model: &ModelRef, config: &Rc<Config>) -> Eval<Rc<BlockVal>> {
    let program = e.program;
    let Some(decl) = block_decl(program, model.item) else { return Err(Reported) };
    let mut scope = Scope { module: model.item.module, ..Scope::default() };
    let given = Given { name: None, val: Val::Config(config.clone()), span: decl.name.span };
    for arg in decl.args.iter().take(1) {
        e.bind_arg(arg, &given, &mut scope)?;
        open_config(arg, &mut scope);
    }
    e.instantiate(model.item, scope, &Path::default(), decl.name.span)
}

/// The model's parameters, in the order in which they are declared.
pub fn params(
    program: &Program,
    model: &ModelRef,
    config: &Rc<Config>,
    sink: &mut Sink,
) -> Option<Vec<(Param, Span)>> {
    let mut work = Work::default();
    let mut e = elaborator(program, sink, &mut work, false);
    instance(&mut e, model, config).ok()?;
    Some(e.params.into_iter().map(|p| (p.param, p.span)).collect())
}

/// The graph of a method of the model, such as `loss`. None where problems were reported.
pub fn build(
    program: &Program,
    model: &ModelRef,
    config: &Rc<Config>,
    entry: &str,
    options: &EntryOptions,
    sink: &mut Sink,
) -> Option<Graph> {
    let mut work = Work::default();
    let mut e = elaborator(program, sink, &mut work, options.documents);
    let outputs = outputs(&mut e, model, config, entry, options)?;
    finish(e, model, entry, &outputs)
}

/// The weights that an entry depends on, by their numbers among `params`, as a part of some work.
pub(crate) fn weights(
    program: &Program,
    model: &ModelRef,
    config: &Rc<Config>,
    entry: &str,
    options: &EntryOptions,
    (sink, work): (&mut Sink, &mut Work),
) -> Option<Vec<usize>> {
    let mut e = elaborator(program, sink, work, options.documents);
    let outputs = outputs(&mut e, model, config, entry, options)?;
    let frame = e.frames.pop()?;
    Some(frame.weights(outputs.into_iter().map(|(_, t)| t.id).collect()))
}

/// What an entry gives, by names.
fn outputs<'n>(
    e: &mut Elaborator<'_>,
    model: &ModelRef,
    config: &Rc<Config>,
    entry: &'n str,
    options: &EntryOptions,
) -> Option<Vec<(&'n str, TensorVal)>> {
    let program = e.program;
    let block = instance(e, model, config).ok()?;
    let decl = block_decl(program, model.item)?;
    let Some(function) = method(program, &block, entry) else {
        let message = format!("`{}` has no `{entry}`", model.name);
        let d = Diagnostic::error("E0410", message, decl.name.span, "this model");
        e.sink.push(d.help(format!("add `{}`", wanted_entry(entry))));
        return None;
    };
    let mut given = Vec::new();
    for arg in &function.args {
        let ArgType::Tensor(ty) = &arg.ty else {
            let message = format!("`{entry}` of a model takes tensors alone");
            let d = Diagnostic::error("E0413", message, arg.name.span, "this is none");
            e.sink.push(d.help(format!("declare `{}`", wanted_entry(entry))));
            return None;
        };
        let axes = ty.axes.iter().map(|a| run_axis(&a.name.text, a.name.span, options)).collect();
        e.data.insert(arg.name.text, axes);
        let t = e.outside(Outside::Data(arg.name.text));
        given.push(Given { name: None, val: Val::Tensor(t), span: arg.name.span });
    }
    let batch = ["B", "T"].map(|n| run_axis(n, decl.name.span, options));
    e.data.insert("documents".into(), batch.into());
    let result = e.call_fn(function, method_scope(&block), given, function.span).ok()?;
    let result = e.tensor(result, function.span).ok()?;
    let mut outputs = vec![(entry, result)];
    if options.auxiliary
        && entry == "loss"
        && let Some(extra) = e.auxiliary().ok()?
    {
        let add = Op::Binary(Binary::Add);
        outputs[0].1 = e.op(add, &[&outputs[0].1, &extra], &[], function.span).ok()?;
        outputs.push((AUXILIARY, extra));
    }
    Some(outputs)
}

/// How an entry is declared.
pub fn wanted_entry(entry: &str) -> &'static str {
    match entry {
        "loss" => "fn loss(tokens: ids[B, T], targets: ids[B, T]) -> f32[]",
        _ => "fn logits(tokens: ids[B, T]) -> [B, T, vocab]",
    }
}

/// An axis of the run; axes that the run does not give a size are small.
fn run_axis(name: &str, origin: Span, options: &EntryOptions) -> SymAxis {
    let given = options.sizes.iter().find(|(n, _)| n == name);
    let size = Size::named(name.into(), given.map_or(1, |(_, s)| *s));
    SymAxis { name: name.into(), size, origin }
}

fn finish(
    mut e: Elaborator<'_>,
    model: &ModelRef,
    entry: &str,
    outputs: &[(&str, TensorVal)],
) -> Option<Graph> {
    let frame = e.frames.pop()?;
    let role = |what: &Outside| match what {
        Outside::Param(p) => InputRole::Param(*p),
        Outside::Data(name) => InputRole::Data(name.to_string()),
    };
    let inputs = frame.captures.iter().map(|c| role(&c.what)).collect();
    Some(Graph {
        name: format!("{}.{entry}", model.name),
        stage: Stage::Forward,
        params: e.params.into_iter().map(|p| p.param).collect(),
        inputs,
        outputs: outputs.iter().map(|(n, _)| OutputRole::Value(n.to_string())).collect(),
        body: frame.finish(outputs.iter().map(|(_, t)| t.id).collect())?,
    })
}

/// The body of a function of a standard module on tensors of these types and these numbers, without
/// kernels.
pub fn function(
    program: &Program,
    path: &str,
    name: &str,
    tensors: &[Type],
    reals: &[(&str, f64)],
    sink: &mut Sink,
) -> Option<Body> {
    let item = program.find_in(path, name)?;
    let ItemKind::Fn(decl) = &program.item(item).kind else { return None };
    let mut work = Work::default();
    let mut e = elaborator(program, sink, &mut work, false);
    e.frames = vec![Frame::new(FrameKind::Call, false)];
    let mut given = Vec::new();
    let mut types = tensors.iter();
    for arg in &decl.args {
        let val = match (&arg.ty, reals.iter().find(|(n, _)| arg.name.text == *n)) {
            (_, Some((_, x))) => Val::Real(*x),
            _ => {
                let ty = types.next()?;
                let axis = |a: &mdl_ir::tensor_type::Axis| SymAxis {
                    name: a.name,
                    size: Size::number(a.size),
                    origin: arg.name.span,
                };
                let axes = ty.axes.iter().map(axis).collect();
                let t = e.frame().input(arg.name.text, ty.dtype, axes);
                Val::Tensor(TensorVal { dtype: DType::F32, ..t })
            }
        };
        given.push(Given { name: None, val, span: arg.name.span });
    }
    let scope = Scope { module: item.module, ..Scope::default() };
    let result = e.call_fn(decl, scope, given, decl.span).ok()?;
    let outputs = match result {
        Val::Tuple(vals) => vals,
        one => vec![one],
    };
    let ids: Eval<Vec<_>> =
        outputs.into_iter().map(|v| e.tensor(v, decl.span).map(|t| t.id)).collect();
    let frame = e.frames.pop()?;
    frame.finish(ids.ok()?)
}
