//! From a model with a configuration to the graph of one entry, and from a standard function to its
//! body.

use crate::block::{Path, block_decl, method, method_scope, open_config};
use crate::call::Given;
use crate::config::Config;
use crate::elaborate::Elaborator;
use crate::frame::{Frame, FrameKind, Outside};
use crate::program::{ItemRef, Program};
use crate::size::Size;
use crate::value::{BlockVal, Eval, Scope, SymAxis, TensorVal, Val};
use mdl_ir::graph::{Body, Graph, InputRole, OutputRole, Param, Stage};
use mdl_ir::tensor_type::{DType, Type};
use mdl_syntax::ast::{ArgType, ItemKind};
use mdl_syntax::diag::Sink;
use mdl_syntax::span::Span;
use std::collections::BTreeMap;
use std::rc::Rc;

/// What a run decides about an entry.
#[derive(Clone, Debug)]
pub struct EntryOptions {
    /// Sizes of the axes that the model leaves to the run: B and T.
    pub sizes: Vec<(String, u64)>,
    /// Are sequences packed from several documents?
    pub documents: bool,
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
            let config = program.find(item.module, &name.text)?;
            Some(ModelRef { item, name: decl.name.text.clone(), config })
        }
        _ => None,
    })
}

fn elaborator<'a>(program: &'a Program, sink: &'a mut Sink, documents: bool) -> Elaborator<'a> {
    Elaborator {
        program,
        sink,
        params: Vec::new(),
        frames: vec![Frame::new(FrameKind::Graph)],
        origins: BTreeMap::new(),
        data: BTreeMap::new(),
        documents,
        depth: 0,
    }
}

fn instance(e: &mut Elaborator<'_>, model: &ModelRef, config: &Rc<Config>) -> Eval<Rc<BlockVal>> {
    let program = e.program;
    let decl = block_decl(program, model.item).expect("a model is a block");
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
    let mut e = elaborator(program, sink, false);
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
    let mut e = elaborator(program, sink, options.documents);
    let block = instance(&mut e, model, config).ok()?;
    let decl = block_decl(program, model.item).expect("a model is a block");
    let Some(function) = method(program, &block, entry).cloned() else {
        let message = format!("`{}` has no `{entry}`", model.name);
        let _: Eval<()> = e.fail("E0410", message, decl.name.span, "this model");
        return None;
    };
    let mut given = Vec::new();
    for arg in &function.args {
        let ArgType::Tensor(ty) = &arg.ty else {
            let message = "an entry of a model takes tensors";
            let _: Eval<()> = e.fail("E0405", message, arg.name.span, "this is none");
            return None;
        };
        let axes = ty.axes.iter().map(|a| run_axis(&a.name.text, a.name.span, options)).collect();
        e.data.insert(arg.name.text.clone(), axes);
        let t = e.outside(Outside::Data(arg.name.text.clone()));
        given.push(Given { name: None, val: Val::Tensor(t), span: arg.name.span });
    }
    let batch = ["B", "T"].map(|n| run_axis(n, decl.name.span, options));
    e.data.insert("documents".into(), batch.to_vec());
    let result = e.call_fn(&function, method_scope(&block), given, function.span).ok()?;
    let result = e.tensor(result, function.span).ok()?;
    Some(finish(e, model, entry, &result))
}

/// An axis of the run; axes that the run does not give a size are small.
fn run_axis(name: &str, origin: Span, options: &EntryOptions) -> SymAxis {
    let given = options.sizes.iter().find(|(n, _)| n == name);
    let size = Size::named(name, given.map_or(1, |(_, s)| *s));
    SymAxis { name: name.to_string(), size, origin }
}

fn finish(mut e: Elaborator<'_>, model: &ModelRef, entry: &str, result: &TensorVal) -> Graph {
    let frame = e.frames.pop().expect("the graph's frame");
    let inputs = frame
        .captures
        .iter()
        .map(|(what, _, _)| match what {
            Outside::Param(p) => InputRole::Param(*p),
            Outside::Data(name) => InputRole::Data(name.clone()),
        })
        .collect();
    Graph {
        name: format!("{}.{entry}", model.name),
        stage: Stage::Forward,
        params: e.params.into_iter().map(|p| p.param).collect(),
        inputs,
        outputs: vec![OutputRole::Value(entry.to_string())],
        body: frame.builder.finish(vec![result.id]),
    }
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
    let mut e = elaborator(program, sink, false);
    e.frames = vec![Frame::new(FrameKind::Call)];
    let mut given = Vec::new();
    let mut types = tensors.iter();
    for arg in &decl.args {
        let val = match (&arg.ty, reals.iter().find(|(n, _)| *n == arg.name.text)) {
            (_, Some((_, x))) => Val::Real(*x),
            _ => {
                let ty = types.next()?;
                let id = e.frame().builder.input(&arg.name.text, ty.clone());
                let axis = |a: &mdl_ir::tensor_type::Axis| SymAxis {
                    name: a.name.clone(),
                    size: Size::number(a.size),
                    origin: arg.name.span,
                };
                let axes = ty.axes.iter().map(axis).collect();
                Val::Tensor(TensorVal { id, dtype: DType::F32, axes })
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
    let frame = e.frames.pop().expect("the function's frame");
    Some(frame.builder.finish(ids.ok()?))
}
