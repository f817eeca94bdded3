//! Adds the optimizer step: the global norm of all gradients, clipping, and AdamW on every
//! parameter.
//!
//! The formulas are those of `stdlib/optim.mdl`. One call takes all parameters, so that the kernel
//! is one pass over memory; its body is the function of the standard library applied to each
//! parameter in turn.
//!
//! Parameters in bf16 are too coarse to be added small steps to. So there is either a master copy
//! of them in f32, which the formula works on and which they are rounded from, or the new values
//! are rounded stochastically, and the moments with them: what a step adds is right on average.

use crate::request::Precision;
use crate::settle::settle;
use mdl_check::entry::function;
use mdl_check::program::Program;
use mdl_ir::build::Builder;
use mdl_ir::graph::{Body, Graph, InputRole, OutputRole, Param, Stage, ValueId};
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
    /// Moments, and whether parameters in bf16 have a master copy in f32.
    pub state: Precision,
}

/// In which bits a run keeps each part of the state, from the type of its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateTypes {
    /// Parameters and their gradients.
    pub params: DType,
    pub moments: DType,
    /// Is there a master copy of the parameters in f32?
    pub master: bool,
}

impl StateTypes {
    pub fn of(params: &[Param], state: Precision) -> StateTypes {
        let narrow = params.iter().any(|p| p.ty.dtype == DType::Bf16);
        let (params, stochastic) = match narrow {
            true => (DType::Bf16, state == Precision::Bf16),
            false => (DType::F32, false),
        };
        let moments = if stochastic { DType::Bf16 } else { DType::F32 };
        StateTypes { params, moments, master: narrow && !stochastic }
    }

    pub fn stochastic(&self) -> bool {
        self.moments == DType::Bf16
    }

    /// What is kept besides parameters and gradients, in the order of the state: how it is called,
    /// what it is, and its elements.
    pub(crate) fn kept(&self) -> Vec<Kept> {
        let mut kept: Vec<Kept> =
            vec![("m", InputRole::Moment1, self.moments), ("v", InputRole::Moment2, self.moments)];
        if self.master {
            kept.push(("master", InputRole::Master, DType::F32));
        }
        kept
    }
}

pub(crate) type Kept = (&'static str, fn(usize) -> InputRole, DType);

/// Names of the numbers that the host gives for each step, in the order in which a call of AdamW
/// takes them.
pub const SCALARS: [&str; 4] = ["clip", "lr", "correct1", "correct2"];
/// The whole number by which a step rounds stochastically.
pub const SEED: &str = "seed";

/// What an update writes, in the order of its results.
pub(crate) const UPDATED: [fn(usize) -> OutputRole; 4] =
    [OutputRole::Param, OutputRole::Moment1, OutputRole::Moment2, OutputRole::Master];
/// The same in names.
pub(crate) const NEW: [&str; 4] = ["new", "new.m", "new.v", "new.master"];

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
        grads.push(body.input(format!("g.{}", param.name), param.ty.clone()));
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
    let types = StateTypes::of(&graph.params, optimizer.state);
    let mut formulas = Formulas { program, optimizer, types, sink };
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
    let mut state = vec![params, grads.clone()];
    for (prefix, role, dtype) in types.kept() {
        let list = graph.params.iter().enumerate().map(|(p, param)| {
            out.inputs.push(role(p));
            b.input(format!("{prefix}.{}", param.name), param.ty.of(dtype))
        });
        state.push(list.collect());
    }
    let mut scalar = |name: &str, dtype: DType| {
        out.inputs.push(InputRole::Scalar(name.to_string()));
        b.input(name, Type::scalar(dtype))
    };
    let scalars: Vec<ValueId> = SCALARS.iter().map(|s| scalar(s, DType::F32)).collect();
    let seed = types.stochastic().then(|| scalar(SEED, DType::I32));
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
        args.extend(seed);
        for list in &state {
            args.extend(group.iter().map(|p| list[*p]));
        }
        let names: Vec<&str> = group.iter().map(|p| graph.params[*p].name.as_str()).collect();
        outputs.extend(formulas.adamw(&mut b, &names, args, decayed)?);
        for role in &UPDATED[..state.len() - 1] {
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
    pub types: StateTypes,
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

    /// One call for the sum of squares of all these gradients.
    pub fn squares(&mut self, b: &mut Builder, grads: &[ValueId]) -> Result<ValueId, String> {
        let at = Place::default();
        let mut inner = Builder::default();
        let mut total = inner.number(0.0, at);
        let types: Vec<Type> = grads.iter().map(|g| b.ty(*g).clone()).collect();
        let inputs: Vec<ValueId> = types.iter().map(|ty| inner.input("g", ty.clone())).collect();
        for (ty, input) in types.iter().zip(inputs) {
            let one = self.standard("sum_of_squares", &[ty.of(DType::F32)], &[])?;
            let square = inner.inline(&one, &[input])?[0];
            total = inner.binary(Binary::Add, total, square, at)?;
        }
        let body = Box::new(inner.finish(vec![total]));
        let op = Op::Call { kernel: Kernel::SumOfSquares, axes: Vec::new(), body };
        let results = vec![("sum_of_squares".to_string(), Type::scalar(DType::F32))];
        Ok(b.node(op, grads.to_vec(), results, at)[0])
    }

    /// One call for a group of parameters of these names: new values, then new moments, then new
    /// master copies. `args` are the numbers, then the parts of the state.
    pub fn adamw(
        &mut self,
        b: &mut Builder,
        names: &[&str],
        args: Vec<ValueId>,
        decayed: bool,
    ) -> Result<Vec<ValueId>, String> {
        let body = self.meaning(b, names.len(), &args, decayed)?;
        let named =
            NEW.iter().flat_map(|new| names.iter().map(move |name| format!("{new}.{name}")));
        let results = named.zip(body.outputs.iter().map(|o| body.ty(*o).clone())).collect();
        let op = Op::Call { kernel: Kernel::AdamW, axes: Vec::new(), body: Box::new(body) };
        Ok(b.node(op, args, results, Place::default()))
    }

    /// What the call for `n` parameters computes.
    fn meaning(
        &mut self,
        b: &Builder,
        n: usize,
        args: &[ValueId],
        decayed: bool,
    ) -> Result<Body, String> {
        let (optimizer, types) = (self.optimizer, self.types);
        let mut inner = Builder::default();
        let inputs: Vec<ValueId> =
            args.iter().map(|a| inner.input(b.body.name(*a), b.ty(*a).clone())).collect();
        let reals = [
            ("beta1", optimizer.beta1),
            ("beta2", optimizer.beta2),
            ("eps", optimizer.eps),
            ("decay", if decayed { optimizer.weight_decay } else { 0.0 }),
        ];
        let numbers = SCALARS.len() + usize::from(types.stochastic());
        let mut results = vec![Vec::new(); 3];
        let mut known: HashMap<Type, Body> = HashMap::new();
        for i in 0..n {
            let part = |k: usize| inputs[numbers + k * n + i];
            let ty = inner.ty(part(0)).of(DType::F32);
            if !known.contains_key(&ty) {
                let mut arguments = vec![ty.clone(); 4];
                arguments.extend(vec![Type::scalar(DType::F32); 4]);
                known.insert(ty.clone(), self.standard("adamw", &arguments, &reals)?);
            }
            let value = part(if types.master { 4 } else { 0 });
            let tensors = [value, part(1), part(2), part(3)];
            let all: Vec<ValueId> =
                tensors.into_iter().chain(inputs[..4].iter().copied()).collect();
            let new = inner.inline(&known[&ty], &all)?;
            for (k, id) in stored(&mut inner, new, types, inputs[4])?.into_iter().enumerate() {
                results.resize(results.len().max(k + 1), Vec::new());
                results[k].push(id);
            }
        }
        Ok(inner.finish(results.into_iter().flatten().collect()))
    }
}

/// What the formula gives, as the state has it.
fn stored(
    b: &mut Builder,
    new: Vec<ValueId>,
    types: StateTypes,
    seed: ValueId,
) -> Result<Vec<ValueId>, String> {
    let at = Place::default();
    if types.master {
        let rounded = b.push(Op::Cast(DType::Bf16), &new[..1], at)?;
        return Ok(vec![rounded, new[1], new[2], new[0]]);
    }
    if !types.stochastic() {
        return Ok(new);
    }
    let each = new.into_iter().zip(0..);
    each.map(|(id, stream)| b.push(Op::StochasticRound { stream }, &[id, seed], at)).collect()
}
