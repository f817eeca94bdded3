//! Reverse-mode differentiation: a forward graph whose first output is a scalar gets the gradient
//! of every parameter.
//!
//! A repeated region becomes two: the forward one also emits what its gradient needs, stacked along
//! its axis, and a reversed one carries the gradients back. Elementwise values are made again in
//! the reversed region unless they are stored anyway (operands of contractions and calls, and sums
//! that a contraction ends in). Calls stay calls: attention is paired with an adjoint call and
//! keeps its log-sum-exp; a call with a scalar result computes its gradients in the forward visit.
//!
//! The gradient of a value in bf16 is rounded to bf16, once it is all there: so the rounding points
//! of the forward graph are those of its gradients.

use crate::adjoint::{Primal, accumulated, adjoint, rounded, typed};
use crate::prologue::{is_stored, prologues};
use mdl_ir::build::{Builder, remove_dead};
use mdl_ir::graph::{Body, Graph, InputRole, Node, OutputRole, Stage, ValueId};
use mdl_ir::op::{Binary, Class, Kernel, Op};
use mdl_ir::place::Place;
use mdl_ir::tensor_type::{DType, Type};
use mdl_symbol::Symbol;
use std::collections::{HashMap, HashSet};

/// The training graph's first part: the outputs as they were, then the gradient of every parameter.
pub fn differentiate(graph: &Graph) -> Result<Graph, String> {
    let body = &graph.body;
    let active: Vec<bool> = graph.inputs.iter().map(|r| matches!(r, InputRole::Param(_))).collect();
    let mut fwd = Forward::default();
    let ids: Vec<ValueId> =
        body.inputs.iter().map(|i| fwd.b.input(body.name(*i), body.ty(*i).clone())).collect();
    fwd.run(body, &ids, &active)?;
    let one = fwd.b.number(1.0, Place::default());
    let mut bwd = Backward::same(&mut fwd);
    bwd.add(body.outputs[0], one, Place::default())?;
    bwd.run(body)?;
    let mut outputs: Vec<ValueId> = body.outputs.iter().map(|o| bwd.fwd.map[o]).collect();
    let mut roles = graph.outputs.clone();
    for (i, role) in graph.inputs.iter().enumerate() {
        let InputRole::Param(p) = role else { continue };
        let input = body.inputs[i];
        let g = bwd.input_gradient(input, body.ty(input))?;
        let name = format!("g.{}", body.name(input));
        bwd.writer().body.values[g.index()].name = name.into();
        outputs.push(g);
        roles.push(OutputRole::Grad(*p));
    }
    drop(bwd);
    Ok(Graph {
        name: graph.name.clone(),
        stage: Stage::Training,
        params: graph.params.clone(),
        inputs: graph.inputs.clone(),
        outputs: roles,
        body: fwd.b.finish(outputs),
    })
}

/// How the gradient of a kernel is had.
enum Style {
    /// An adjoint call, which reads the result and residuals of these types.
    Paired(Kernel, Vec<Type>),
    /// The call gives the gradients of its arguments for a result gradient of one.
    InForward(Kernel),
}

fn style(kernel: Kernel, axes: &[Symbol], result: &Type) -> Option<Style> {
    match kernel {
        Kernel::Attention => {
            let lse = result.without(&axes[2..3]).of(DType::F32);
            Some(Style::Paired(Kernel::AttentionGrad, vec![lse]))
        }
        Kernel::LinearCrossEntropy => Some(Style::InForward(Kernel::LinearCrossEntropyGrad)),
        Kernel::AttentionGrad
        | Kernel::LinearCrossEntropyGrad
        | Kernel::SumOfSquares
        | Kernel::AdamW
        | Kernel::Contraction
        | Kernel::Region => None,
    }
}

/// What the forward part of a node left for its gradient, as values of the forward body.
#[derive(Debug)]
enum Kept {
    /// Residuals of a paired call.
    Residuals(Vec<ValueId>),
    /// Gradients of the arguments that have one, for a result gradient of one.
    Unit(Vec<(usize, ValueId)>),
    Region(Box<RegionBackward>),
}

/// The reversed region of a repeated one, complete but for its arguments.
#[derive(Debug)]
struct RegionBackward {
    body: Body,
    /// Carries of floats and active constants, by argument number.
    carries: Vec<usize>,
    consts: Vec<usize>,
    /// Stacked arguments whose gradient the region gives, in the order of its stacked results.
    stacked: Vec<usize>,
    /// Stacked results whose gradient the region takes as its last stacked arguments.
    emitted: Vec<usize>,
    /// Forward values for the region's own const and stacked inputs.
    const_args: Vec<ValueId>,
    stacked_args: Vec<ValueId>,
}

#[derive(Debug, Default)]
struct Forward {
    b: Builder,
    /// Value of the primal body → value of the forward body.
    map: HashMap<ValueId, ValueId>,
    active: HashSet<ValueId>,
    kept: HashMap<usize, Kept>,
}

impl Forward {
    fn run(&mut self, body: &Body, inputs: &[ValueId], active: &[bool]) -> Result<(), String> {
        for ((id, to), on) in body.inputs.iter().zip(inputs).zip(active) {
            self.map.insert(*id, *to);
            if *on && body.ty(*id).is_float() {
                self.active.insert(*id);
            }
        }
        for (i, node) in body.nodes.iter().enumerate() {
            let on = node.args.iter().any(|a| self.active.contains(a))
                && !matches!(node.op, Op::StopGradient);
            if on {
                let floats = node.results.iter().filter(|r| body.ty(**r).is_float());
                self.active.extend(floats);
            }
            match &node.op {
                Op::Call { kernel, axes, body: inner } if on => {
                    self.call(body, i, (*kernel, axes, inner))?;
                }
                Op::Repeat { .. } if on => self.repeat(body, i)?,
                _ => self.b.copy_node(body, node, &mut self.map)?,
            }
        }
        Ok(())
    }

    fn call(
        &mut self,
        body: &Body,
        i: usize,
        (kernel, axes, inner): (Kernel, &[Symbol], &Body),
    ) -> Result<(), String> {
        let node = &body.nodes[i];
        let result = body.ty(node.results[0]).clone();
        let Some(style) = style(kernel, axes, &result) else {
            return Err(format!("kernel `{}` has no gradient", kernel.name()));
        };
        let args: Vec<ValueId> = node.args.iter().map(|a| self.map[a]).collect();
        let name = |s: &str| format!("{}.{s}", body.name(node.results[0]));
        let mut results = vec![(body.name(node.results[0]), result)];
        match style {
            Style::Paired(_, residuals) => {
                results.extend(residuals.into_iter().map(|ty| (name("kept").into(), ty)));
                let ids = self.b.node(node.op.clone(), args, results, node.span);
                self.map.insert(node.results[0], ids[0]);
                self.kept.insert(i, Kept::Residuals(ids[1..].to_vec()));
            }
            Style::InForward(with_grad) => {
                let wanted: Vec<usize> =
                    (0..args.len()).filter(|a| self.active.contains(&node.args[*a])).collect();
                let inner = with_gradients(inner, &wanted)?;
                for (a, out) in wanted.iter().zip(&inner.outputs[1..]) {
                    let name = format!("g.{}", body.name(node.args[*a]));
                    results.push((name.into(), inner.ty(*out).clone()));
                }
                let op = Op::Call { kernel: with_grad, axes: axes.to_vec(), body: Box::new(inner) };
                let ids = self.b.node(op, args, results, node.span);
                self.map.insert(node.results[0], ids[0]);
                let unit = wanted.into_iter().zip(ids[1..].iter().copied()).collect();
                self.kept.insert(i, Kept::Unit(unit));
            }
        }
        Ok(())
    }

    /// Writes the region with residuals, and its reversed region.
    fn repeat(&mut self, body: &Body, i: usize) -> Result<(), String> {
        let node = &body.nodes[i];
        let Op::Repeat { axis, count, reverse, carries, consts, body: inner } = &node.op else {
            return Err("a repeated region".into());
        };
        let on: Vec<bool> = node.args.iter().map(|a| self.active.contains(a)).collect();
        let mut fwd = Forward::default();
        let ids: Vec<ValueId> = inner
            .inputs
            .iter()
            .map(|v| fwd.b.input(inner.name(*v), inner.ty(*v).clone()))
            .collect();
        // A carry that becomes active in the body is active from the start.
        let mut active = on.clone();
        active[..*carries].fill(true);
        fwd.run(inner, &ids, &active)?;
        let mut residuals: Vec<ValueId> = Vec::new();
        let mut plan = reversed(&mut fwd, inner, (*carries, *consts), &active, &mut residuals)?;
        let args: Vec<ValueId> = node.args.iter().map(|a| self.map[a]).collect();
        let mut outputs: Vec<ValueId> = inner.outputs.iter().map(|o| fwd.map[o]).collect();
        outputs.extend(&residuals);
        let new_axis = mdl_ir::tensor_type::Axis::new(axis, *count);
        let mut results: Vec<(Symbol, Type)> =
            node.results.iter().map(|r| (body.name(*r), body.ty(*r).clone())).collect();
        for r in &residuals {
            let ty = fwd.b.ty(*r).stacked(new_axis);
            results.push((fwd.b.body.name(*r), ty));
        }
        let fwd_body = fwd.b.finish(outputs);
        let op = Op::Repeat {
            axis: *axis,
            count: *count,
            reverse: *reverse,
            carries: *carries,
            consts: *consts,
            body: Box::new(fwd_body),
        };
        let ids = self.b.node(op, args.clone(), results, node.span);
        self.map.extend(node.results.iter().copied().zip(ids.iter().copied()));
        let saved = &ids[node.results.len()..];
        // Placeholders of the plan become values of this body.
        for arg in plan.const_args.iter_mut() {
            *arg = args[arg.index()];
        }
        for arg in plan.stacked_args.iter_mut() {
            let n = arg.index();
            *arg = if n < args.len() { args[n] } else { saved[n - args.len()] };
        }
        self.kept.insert(i, Kept::Region(Box::new(plan)));
        Ok(())
    }
}

/// A body that also gives the gradients of some inputs, for a gradient of one of its only output.
fn with_gradients(body: &Body, wanted: &[usize]) -> Result<Body, String> {
    let mut fwd = Forward::default();
    let ids: Vec<ValueId> =
        body.inputs.iter().map(|v| fwd.b.input(body.name(*v), body.ty(*v).clone())).collect();
    let active: Vec<bool> = (0..ids.len()).map(|i| wanted.contains(&i)).collect();
    fwd.run(body, &ids, &active)?;
    let one = fwd.b.number(1.0, Place::default());
    let mut outputs = vec![fwd.map[&body.outputs[0]]];
    let mut bwd = Backward::same(&mut fwd);
    bwd.add(body.outputs[0], one, Place::default())?;
    bwd.run(body)?;
    for i in wanted {
        let input = body.inputs[*i];
        outputs.push(bwd.input_gradient(input, body.ty(input))?);
    }
    drop(bwd);
    Ok(fwd.b.finish(outputs))
}

/// The body of an adjoint call: inputs are those of the call, its result, its residuals, and the
/// result's gradient.
fn adjoint_body(body: &Body, residuals: &[Type], wanted: &[usize]) -> Result<Body, String> {
    let mut fwd = Forward::default();
    let ids: Vec<ValueId> =
        body.inputs.iter().map(|v| fwd.b.input(body.name(*v), body.ty(*v).clone())).collect();
    let out = body.outputs[0];
    fwd.b.input("y", body.ty(out).clone());
    for ty in residuals {
        fwd.b.input("kept", ty.clone());
    }
    let dy = fwd.b.input("dy", body.ty(out).clone());
    let active: Vec<bool> = (0..ids.len()).map(|i| wanted.contains(&i)).collect();
    fwd.run(body, &ids, &active)?;
    let mut bwd = Backward::same(&mut fwd);
    bwd.add(out, dy, Place::default())?;
    bwd.run(body)?;
    let mut outputs = Vec::new();
    for i in wanted {
        let input = body.inputs[*i];
        outputs.push(bwd.input_gradient(input, body.ty(input))?);
    }
    drop(bwd);
    Ok(fwd.b.finish(outputs))
}

/// The reversed region of `inner`. Its const and stacked arguments are argument numbers of the
/// node, and residuals are numbers beyond those.
fn reversed(
    fwd: &mut Forward,
    inner: &Body,
    (carries, consts): (usize, usize),
    active: &[bool],
    residuals: &mut Vec<ValueId>,
) -> Result<RegionBackward, String> {
    let stored = stored_anyway(&fwd.b.body);
    let mut bwd = Backward::split(fwd, stored);
    let active_consts: Vec<usize> = (carries..carries + consts).filter(|i| active[*i]).collect();
    let mut inputs = Vec::new();
    let float = |id: ValueId| inner.ty(id).is_float();
    let floats: Vec<usize> = (0..carries).filter(|i| float(inner.inputs[*i])).collect();
    for i in &floats {
        let ty = inner.ty(inner.inputs[*i]).clone();
        let name = format!("g.{}", inner.name(inner.inputs[*i]));
        let g = bwd.writer().input(&name, ty);
        inputs.push(g);
        bwd.add(inner.outputs[*i], g, Place::default())?;
    }
    // What is added up over iterations is rounded when it is all there.
    let mut sums = Vec::new();
    for i in &active_consts {
        let ty = inner.ty(inner.inputs[*i]).of(DType::F32);
        let g = bwd.writer().input(format!("g.{}", inner.name(inner.inputs[*i])), ty);
        inputs.push(g);
        sums.push(g);
    }
    let emitted: Vec<usize> = (carries..inner.outputs.len())
        .filter(|i| bwd.fwd.active.contains(&inner.outputs[*i]))
        .collect();
    let mut emitted_in = Vec::new();
    for i in &emitted {
        let out = inner.outputs[*i];
        let g = bwd.writer().input(format!("g.{}", inner.name(out)), inner.ty(out).clone());
        emitted_in.push(g);
        bwd.add(out, g, Place::default())?;
    }
    bwd.run(inner)?;
    let mut outputs = Vec::new();
    for i in &floats {
        let input = inner.inputs[*i];
        outputs.push(bwd.input_gradient(input, inner.ty(input))?);
    }
    for (i, sum) in active_consts.iter().zip(sums) {
        let input = inner.inputs[*i];
        let g = bwd.input_gradient(input, &inner.ty(input).of(DType::F32))?;
        let total = bwd.writer().binary(Binary::Add, sum, g, Place::default())?;
        outputs.push(total);
    }
    let stacked: Vec<usize> =
        (carries + consts..inner.inputs.len()).filter(|i| active[*i]).collect();
    for i in &stacked {
        let input = inner.inputs[*i];
        let g = bwd.input_gradient(input, inner.ty(input))?;
        let name = format!("g.{}", inner.name(input));
        bwd.writer().body.values[g.index()].name = name.into();
        outputs.push(g);
    }
    let mut plan = bwd.close(inner, (carries, consts), (inputs, emitted_in), outputs, residuals)?;
    plan.carries = floats;
    plan.consts = active_consts;
    plan.stacked = stacked;
    plan.emitted = emitted;
    Ok(plan)
}

/// Elementwise values that are in memory whatever happens: operands of contractions and calls, sums
/// that end a contraction, and what is rounded, since that is done for memory. Of an operand that
/// contractions prepare for themselves it is what they make it from.
fn stored_anyway(body: &Body) -> HashSet<ValueId> {
    let producers = body.producers();
    let prologues = prologues(body);
    let prepared: HashSet<ValueId> = prologues.values().map(|p| p.operand).collect();
    let mut stored: HashSet<ValueId> = prologues.values().flat_map(|p| &p.small).copied().collect();
    for node in &body.nodes {
        if node.op.class() == Class::Kernel {
            stored.extend(node.args.iter().filter(|a| !prepared.contains(a)));
        }
        if is_stored(body, &producers, node) && !prepared.contains(&node.results[0]) {
            stored.extend(&node.results);
        }
    }
    stored
}

/// Where a value of a split body comes from.
#[derive(Debug)]
struct Split {
    b: Builder,
    stored: HashSet<ValueId>,
    fetched: HashMap<ValueId, ValueId>,
    /// Forward values that came in as inputs of the reversed region.
    taken: Vec<(ValueId, ValueId)>,
}

impl Split {
    /// The finished body with inputs in the order carried, taken, emitted; and of the taken ones
    /// those that it uses, since rules fetch what an inactive argument would have needed.
    fn finish(
        mut self,
        carried: &[ValueId],
        emitted: &[ValueId],
        outputs: Vec<ValueId>,
    ) -> (Body, Vec<(ValueId, ValueId)>) {
        let taken = self.taken.iter().map(|(_, id)| *id);
        self.b.body.inputs =
            carried.iter().copied().chain(taken).chain(emitted.iter().copied()).collect();
        let body = self.b.finish(outputs);
        let args = body.nodes.iter().flat_map(|n| &n.args);
        let used: HashSet<ValueId> = args.chain(&body.outputs).copied().collect();
        let inputs = body.inputs[carried.len()..].iter().copied();
        let taken = self.taken.iter().map(|(from, _)| *from).zip(inputs);
        let taken = taken.filter(|(_, id)| used.contains(id)).collect();
        (body, taken)
    }
}

#[derive(Debug)]
struct Backward<'a> {
    fwd: &'a mut Forward,
    /// The reversed region's own body; None where gradients are written behind the forward nodes.
    split: Option<Split>,
    grads: HashMap<ValueId, ValueId>,
}

impl<'a> Backward<'a> {
    fn same(fwd: &'a mut Forward) -> Self {
        Backward { fwd, split: None, grads: HashMap::new() }
    }

    fn split(fwd: &'a mut Forward, stored: HashSet<ValueId>) -> Self {
        let split =
            Split { b: Builder::default(), stored, fetched: HashMap::new(), taken: Vec::new() };
        Backward { fwd, split: Some(split), grads: HashMap::new() }
    }

    fn writer(&mut self) -> &mut Builder {
        match &mut self.split {
            Some(split) => &mut split.b,
            None => &mut self.fwd.b,
        }
    }

    /// Adds to the gradient of a primal value.
    fn add(&mut self, value: ValueId, g: ValueId, at: Place) -> Result<(), String> {
        let sum = match self.grads.get(&value).copied() {
            None => g,
            Some(old) => accumulated(self.writer(), old, g, at)?,
        };
        self.grads.insert(value, sum);
        Ok(())
    }

    /// The gradient of an input with its full type; zeros where nothing reaches it.
    fn input_gradient(&mut self, input: ValueId, ty: &Type) -> Result<ValueId, String> {
        let at = Place::default();
        let g = match self.grads.get(&input) {
            Some(g) => *g,
            None => self.writer().number(0.0, at),
        };
        typed(self.writer(), g, ty, at)
    }

    /// A forward value in the body being written.
    fn fetch(&mut self, id: ValueId) -> Result<ValueId, String> {
        let Some(split) = &mut self.split else {
            return Ok(id);
        };
        fetch_split(split, &self.fwd.b, id)
    }

    fn run(&mut self, body: &Body) -> Result<(), String> {
        for (i, node) in body.nodes.iter().enumerate().rev() {
            if !node.results.iter().any(|r| self.fwd.active.contains(r)) {
                continue;
            }
            match &node.op {
                Op::Call { kernel, axes, body: inner } => {
                    self.call(body, i, (*kernel, axes, inner))?;
                }
                Op::Repeat { axis, count, reverse, .. } => {
                    self.repeat(body, i, (*axis, *count, *reverse))?;
                }
                _ => self.node(body, node)?,
            }
        }
        Ok(())
    }

    fn node(&mut self, body: &Body, node: &Node) -> Result<(), String> {
        let Some(g) = self.grads.get(&node.results[0]).copied() else {
            return Ok(());
        };
        let g = rounded(self.writer(), g, body.ty(node.results[0]), node.span)?;
        let arg_types: Vec<Type> = node.args.iter().map(|a| body.ty(*a).clone()).collect();
        let primal = Primal { node, arg_types: &arg_types, result_type: body.ty(node.results[0]) };
        let args: Vec<ValueId> = node.args.iter().map(|a| self.fwd.map[a]).collect();
        let result = self.fwd.map[&node.results[0]];
        let pick = |which: Result<usize, ()>| which.map_or(result, |i| args[i]);
        let grads = match &mut self.split {
            None => adjoint(&mut self.fwd.b, &primal, g, &mut |_, which| Ok(pick(which)))?,
            Some(split) => {
                // The builder is taken out while the rules write to it, and lent back for each
                // fetch.
                let fwd = &self.fwd.b;
                let mut b = std::mem::take(&mut split.b);
                let grads = adjoint(&mut b, &primal, g, &mut |b, which| {
                    std::mem::swap(b, &mut split.b);
                    let found = fetch_split(split, fwd, pick(which));
                    std::mem::swap(b, &mut split.b);
                    found
                });
                split.b = b;
                grads?
            }
        };
        for (a, g) in node.args.iter().zip(grads) {
            if let (Some(g), true) = (g, self.fwd.active.contains(a)) {
                self.add(*a, g, node.span)?;
            }
        }
        Ok(())
    }

    fn call(
        &mut self,
        body: &Body,
        i: usize,
        (kernel, axes, inner): (Kernel, &[Symbol], &Body),
    ) -> Result<(), String> {
        let node = &body.nodes[i];
        let Some(g) = self.grads.get(&node.results[0]).copied() else {
            return Ok(());
        };
        let unit = match &self.fwd.kept[&i] {
            Kept::Unit(unit) => Some(unit.clone()),
            _ => None,
        };
        if let Some(unit) = unit {
            for (a, d) in unit {
                let d = self.fetch(d)?;
                let unit = self.writer().constant(g) == Some(1.0);
                let scaled = if unit { d } else { self.writer().mul(d, g, node.span)? };
                self.add(node.args[a], scaled, node.span)?;
            }
            return Ok(());
        }
        let Kept::Residuals(residuals) = &self.fwd.kept[&i] else {
            return Err("a call keeps residuals or gradients".into());
        };
        let residuals = residuals.clone();
        let ty = body.ty(node.results[0]).clone();
        let Some(Style::Paired(adjoint, types)) = style(kernel, axes, &ty) else {
            return Err("a paired kernel".into());
        };
        let wanted: Vec<usize> =
            (0..node.args.len()).filter(|a| self.fwd.active.contains(&node.args[*a])).collect();
        let inner = adjoint_body(inner, &types, &wanted)?;
        let mut args = Vec::new();
        for a in node.args.iter().chain(&node.results[..1]) {
            let id = self.fwd.map[a];
            args.push(self.fetch(id)?);
        }
        for r in residuals {
            args.push(self.fetch(r)?);
        }
        args.push(typed(self.writer(), g, &ty, node.span)?);
        let results = wanted
            .iter()
            .zip(&inner.outputs)
            .map(|(a, o)| (format!("g.{}", body.name(node.args[*a])), inner.ty(*o).clone()))
            .collect();
        let op = Op::Call { kernel: adjoint, axes: axes.to_vec(), body: Box::new(inner) };
        let ids = self.writer().node(op, args, results, node.span);
        for (a, g) in wanted.into_iter().zip(ids) {
            self.add(node.args[a], g, node.span)?;
        }
        Ok(())
    }

    fn repeat(
        &mut self,
        body: &Body,
        i: usize,
        (axis, count, reverse): (Symbol, u64, bool),
    ) -> Result<(), String> {
        let node = &body.nodes[i];
        if self.split.is_some() {
            return Err("a repeated region inside a repeated region has no gradient yet".into());
        }
        let Some(Kept::Region(plan)) = self.fwd.kept.remove(&i) else {
            return Err("a region keeps its reversed one".into());
        };
        let mut args = Vec::new();
        for c in &plan.carries {
            args.push(self.input_gradient(node.results[*c], body.ty(node.results[*c]))?);
        }
        let zero = self.writer().number(0.0, node.span);
        for c in &plan.consts {
            let ty = body.ty(node.args[*c]).of(DType::F32);
            args.push(typed(self.writer(), zero, &ty, node.span)?);
        }
        let carries = args.len();
        args.extend(&plan.const_args);
        args.extend(&plan.stacked_args);
        for e in &plan.emitted {
            args.push(self.input_gradient(node.results[*e], body.ty(node.results[*e]))?);
        }
        let summed = plan.carries.iter().chain(&plan.consts);
        let targets: Vec<usize> = summed.chain(&plan.stacked).copied().collect();
        let result = |t: &usize| {
            let ty = body.ty(node.args[*t]);
            let ty = if plan.consts.contains(t) { ty.of(DType::F32) } else { ty.clone() };
            (format!("g.{}", body.name(node.args[*t])), ty)
        };
        let results = targets.iter().map(result).collect();
        let op = Op::Repeat {
            axis,
            count,
            reverse: !reverse,
            carries,
            consts: plan.const_args.len(),
            body: Box::new(plan.body),
        };
        let ids = self.writer().node(op, args, results, node.span);
        for (t, g) in targets.into_iter().zip(ids) {
            if self.fwd.active.contains(&node.args[t]) {
                self.add(node.args[t], g, node.span)?;
            }
        }
        Ok(())
    }

    /// Finishes a reversed region: inputs in the order carries, consts, stacked.
    fn close(
        self,
        inner: &Body,
        (carries, consts): (usize, usize),
        (carried, emitted): (Vec<ValueId>, Vec<ValueId>),
        outputs: Vec<ValueId>,
        residuals: &mut Vec<ValueId>,
    ) -> Result<RegionBackward, String> {
        let split = self.split.ok_or("a reversed region has a body of its own")?;
        let n_args = inner.inputs.len();
        let number = |fwd_id: ValueId| inner.inputs.iter().position(|v| self.fwd.map[v] == fwd_id);
        let (mut body, fetched) = split.finish(&carried, &emitted, outputs);
        let (mut const_in, mut stacked_in) = (Vec::new(), Vec::new());
        for (fwd_id, id) in fetched {
            match number(fwd_id) {
                Some(n) if n >= carries + consts => stacked_in.push((n, id)),
                Some(n) if n >= carries => const_in.push((n, id)),
                _ => {
                    stacked_in.push((n_args + residuals.len(), id));
                    residuals.push(fwd_id);
                }
            }
        }
        let between = const_in.iter().chain(&stacked_in).map(|(_, id)| *id);
        let ends = body.inputs.len() - emitted.len();
        body.inputs = body.inputs[..carried.len()]
            .iter()
            .copied()
            .chain(between)
            .chain(body.inputs[ends..].iter().copied())
            .collect();
        remove_dead(&mut body);
        let args = |list: &[(usize, ValueId)]| {
            list.iter().map(|(n, _)| ValueId(*n as u32)).collect::<Vec<_>>()
        };
        Ok(RegionBackward {
            const_args: args(&const_in),
            stacked_args: args(&stacked_in),
            body,
            carries: Vec::new(),
            consts: Vec::new(),
            stacked: Vec::new(),
            emitted: Vec::new(),
        })
    }
}

/// A forward value in the reversed region: made again where that is cheap, taken in otherwise.
fn fetch_split(split: &mut Split, fwd: &Builder, id: ValueId) -> Result<ValueId, String> {
    if let Some(found) = split.fetched.get(&id) {
        return Ok(*found);
    }
    let again = fwd.op(id).filter(|node| match node.op.class() {
        Class::Source => true,
        Class::Elementwise => !split.stored.contains(&id),
        Class::View => !matches!(node.op, Op::Concat { .. }),
        Class::Reduce | Class::Kernel | Class::Repeat => false,
    });
    let there = match again {
        Some(node) => {
            let args: Result<Vec<ValueId>, String> =
                node.args.iter().map(|a| fetch_split(split, fwd, *a)).collect();
            split.b.push(node.op.clone(), &args?, node.span)?
        }
        None => {
            let there = split.b.input(fwd.body.name(id), fwd.ty(id).clone());
            split.taken.push((id, there));
            there
        }
    };
    split.fetched.insert(id, there);
    Ok(there)
}
