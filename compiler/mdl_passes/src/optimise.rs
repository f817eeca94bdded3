//! Adds the optimizer step: the global norm of all gradients, clipping, and AdamW on every
//! parameter.
//!
//! The formulas are those of `stdlib/optim.mdl`. One call takes all parameters, so that the kernel
//! is one pass over memory; its body is the function of the standard library applied to each
//! parameter in turn.

use crate::settle::settle;
use mdl_check::entry::function;
use mdl_check::program::Program;
use mdl_ir::build::Builder;
use mdl_ir::graph::{Body, Graph, InputRole, OutputRole, Stage, ValueId};
use mdl_ir::op::{Binary, Kernel, Op, Unary};
use mdl_ir::place::Place;
use mdl_ir::tensor_type::{DType, Type};
use mdl_syntax::diag::Sink;
use std::collections::HashMap;

/// What the run decides about the optimizer. Rates come in with every step.
#[derive(Clone, Debug)]
pub struct Optimizer {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// Decay only weights with two axes or more (`--decay matrices`), or all.
    pub matrices_only: bool,
    /// Gradients are never clipped, so each one may be used as soon as it is made.
    pub unclipped: bool,
}

/// Names of the numbers that the host gives for each step, in the order in which a call of AdamW
/// takes them.
pub const SCALARS: [&str; 4] = ["clip", "lr", "correct1", "correct2"];

/// Does weight decay apply to this parameter?
pub fn decays(graph: &Graph, param: usize, optimizer: &Optimizer) -> bool {
    let ty = graph.params[param].slice_type();
    !optimizer.matrices_only || ty.axes.len() >= 2
}

/// Parameters and their gradients as inputs and nothing computed: `optimise` makes the update of
/// them that follows several micro-batches.
pub fn gradients_of(graph: &Graph) -> Graph {
    let mut body = Builder::default();
    let mut inputs = Vec::new();
    for (p, param) in graph.params.iter().enumerate() {
        body.input(&param.name, param.ty.clone());
        inputs.push(InputRole::Param(p));
    }
    let mut grads = Vec::new();
    for (p, param) in graph.params.iter().enumerate() {
        grads.push(body.input(&format!("g.{}", param.name), param.ty.clone()));
        inputs.push(InputRole::Grad(p));
    }
    Graph {
        name: graph.name.clone(),
        stage: Stage::Forward,
        params: graph.params.clone(),
        inputs,
        outputs: (0..grads.len()).map(OutputRole::Grad).collect(),
        body: body.finish(grads),
    }
}

/// The graph with the optimizer step behind its gradients.
pub fn optimise(
    graph: &Graph,
    program: &Program,
    optimizer: &Optimizer,
    sink: &mut Sink,
) -> Result<Graph, String> {
    let mut formulas = Formulas { program, optimizer, sink };
    if optimizer.unclipped {
        return settle(graph, &mut formulas);
    }
    let mut b = Builder::resume(graph.body.clone());
    let mut out = graph.clone();
    let n = graph.params.len();
    let mut grads: Vec<ValueId> = Vec::new();
    for p in 0..n {
        let at = graph.output(&OutputRole::Grad(p)).ok_or("every parameter has a gradient")?;
        grads.push(graph.body.outputs[at]);
    }
    let params: Vec<ValueId> = (0..n)
        .map(|p| {
            let at = graph.inputs.iter().position(|r| *r == InputRole::Param(p));
            at.map(|i| graph.body.inputs[i]).ok_or("every parameter is used")
        })
        .collect::<Result<_, _>>()?;
    let mut moments = [Vec::new(), Vec::new()];
    for (k, role) in [InputRole::Moment1, InputRole::Moment2].into_iter().enumerate() {
        for p in 0..n {
            let name = format!("{}.{}", ["m", "v"][k], graph.params[p].name);
            moments[k].push(b.input(&name, graph.params[p].ty.clone()));
            out.inputs.push(role(p));
        }
    }
    let scalars: Vec<ValueId> = SCALARS
        .iter()
        .map(|s| {
            out.inputs.push(InputRole::Scalar(s.to_string()));
            b.input(s, Type::scalar(DType::F32))
        })
        .collect();
    let (scale, norm) = clip(&mut b, &mut formulas, &grads, scalars[0])?;
    let mut outputs = b.body.outputs.clone();
    outputs.push(norm);
    out.outputs.push(OutputRole::Value("grad_norm".into()));
    for decayed in [true, false] {
        let group: Vec<usize> =
            (0..n).filter(|p| decays(graph, *p, optimizer) == decayed).collect();
        if group.is_empty() {
            continue;
        }
        let mut args = vec![scale, scalars[1], scalars[2], scalars[3]];
        for list in [&params, &grads, &moments[0], &moments[1]] {
            args.extend(group.iter().map(|p| list[*p]));
        }
        let names: Vec<&str> = group.iter().map(|p| graph.params[*p].name.as_str()).collect();
        let ids = formulas.adamw(&mut b, &names, &args, decayed)?;
        outputs.extend(&ids);
        let roles = [OutputRole::Param, OutputRole::Moment1, OutputRole::Moment2];
        for role in roles {
            out.outputs.extend(group.iter().map(|p| role(*p)));
        }
    }
    out.body = b.finish(outputs);
    Ok(out)
}

/// The factor that clipping puts on every gradient, and the global norm.
fn clip(
    b: &mut Builder,
    formulas: &mut Formulas<'_>,
    grads: &[ValueId],
    limit: ValueId,
) -> Result<(ValueId, ValueId), String> {
    let squares = formulas.squares(b, grads)?;
    let norm = b.unary(Unary::Sqrt, squares, Place::default())?;
    let scalar = Type::scalar(DType::F32);
    let formula = formulas.standard("clip_scale", &[scalar.clone(), scalar], &[])?;
    let scale = b.inline(&formula, &[norm, limit])?[0];
    Ok((scale, norm))
}

/// Writes the calls that update parameters and that measure gradients.
pub(crate) struct Formulas<'a> {
    pub program: &'a Program,
    pub optimizer: &'a Optimizer,
    pub sink: &'a mut Sink,
}

impl Formulas<'_> {
    /// A function of `std.optim` on these types.
    fn standard(
        &mut self,
        name: &str,
        tensors: &[Type],
        reals: &[(&str, f64)],
    ) -> Result<Body, String> {
        function(self.program, "std.optim", name, tensors, reals, self.sink)
            .ok_or_else(|| format!("std.optim has no usable `{name}`"))
    }

    /// The sum of squares of all these gradients, for one call.
    pub fn squares(&mut self, b: &mut Builder, grads: &[ValueId]) -> Result<ValueId, String> {
        let at = Place::default();
        let mut inner = Builder::default();
        let mut total = inner.number(0.0, at);
        let types: Vec<Type> = grads.iter().map(|g| b.ty(*g).clone()).collect();
        let inputs: Vec<ValueId> = types.iter().map(|ty| inner.input("g", ty.clone())).collect();
        for (ty, input) in types.iter().zip(inputs) {
            let one = self.standard("sum_of_squares", std::slice::from_ref(ty), &[])?;
            let square = inner.inline(&one, &[input])?[0];
            total = inner.binary(Binary::Add, total, square, at)?;
        }
        let body = Box::new(inner.finish(vec![total]));
        let op = Op::Call { kernel: Kernel::SumOfSquares, axes: Vec::new(), body };
        let results = vec![("sum_of_squares".to_string(), Type::scalar(DType::F32))];
        Ok(b.node(op, grads.to_vec(), results, at)[0])
    }

    /// One call for a group of parameters of these names: new values, then new moments. `args` are
    /// the scale of gradients, the three other numbers, then parameters, gradients and moments.
    pub fn adamw(
        &mut self,
        b: &mut Builder,
        names: &[&str],
        args: &[ValueId],
        decays: bool,
    ) -> Result<Vec<ValueId>, String> {
        let optimizer = self.optimizer;
        let mut inner = Builder::default();
        let inputs: Vec<ValueId> =
            args.iter().map(|a| inner.input(b.body.name(*a), b.ty(*a).clone())).collect();
        let reals = [
            ("beta1", optimizer.beta1),
            ("beta2", optimizer.beta2),
            ("eps", optimizer.eps),
            ("decay", if decays { optimizer.weight_decay } else { 0.0 }),
        ];
        let mut results = [Vec::new(), Vec::new(), Vec::new()];
        let mut formulas: HashMap<Type, Body> = HashMap::new();
        let n = names.len();
        for i in 0..n {
            let ty = b.ty(args[4 + i]).clone();
            if !formulas.contains_key(&ty) {
                let mut types = vec![ty.clone(); 4];
                types.extend(vec![Type::scalar(DType::F32); 4]);
                formulas.insert(ty.clone(), self.standard("adamw", &types, &reals)?);
            }
            let tensors = (0..4).map(|k| inputs[4 + k * n + i]);
            let all: Vec<ValueId> = tensors.chain(inputs[..4].iter().copied()).collect();
            let new = inner.inline(&formulas[&ty], &all)?;
            results.iter_mut().zip(new).for_each(|(list, id)| list.push(id));
        }
        let outputs: Vec<ValueId> = results.into_iter().flatten().collect();
        let mut types = Vec::new();
        for prefix in ["new", "new.m", "new.v"] {
            for (i, name) in names.iter().enumerate() {
                types.push((format!("{prefix}.{name}"), b.ty(args[4 + i]).clone()));
            }
        }
        let body = Box::new(inner.finish(outputs));
        let op = Op::Call { kernel: Kernel::AdamW, axes: Vec::new(), body };
        Ok(b.node(op, args.to_vec(), types, Place::default()))
    }
}
