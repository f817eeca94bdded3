//! What a step of several micro-batches needs: the loss counts by a weight that the host gives, and
//! gradients are added to those of the micro-batches before.
//!
//! The sum goes as near to the gradient's kernel as it can: into the region that stacks a
//! gradient, to the base of a scatter, into the call that gives the gradient of the vocabulary's
//! matrix. There, the old gradient and the new one are the same memory, so that nothing of the
//! size of a parameter exists beside the gradients.

use crate::adjoint::accumulated;
use mdl_check::entry::AUXILIARY;
use mdl_ir::build::Builder;
use mdl_ir::graph::{Body, Graph, InputRole, Node, OutputRole, ValueId};
use mdl_ir::op::{Binary, Kernel, Op};
use mdl_ir::place::Place;
use mdl_ir::tensor_type::{DType, Type};

/// The number by which the loss of a micro-batch counts: its part of the step's valid targets.
pub const WEIGHT: &str = "weight";
/// The number by which auxiliary losses count, which are no means over targets: 1 / micro-batches.
pub const SHARE: &str = "share";

/// The forward graph with a loss of weight · loss + share · auxiliary losses.
pub fn weigh(graph: &Graph) -> Result<Graph, String> {
    let mut out = graph.clone();
    let mut b = Builder::resume(graph.body.clone());
    let mut number = |b: &mut Builder, name: &str| {
        out.inputs.push(InputRole::Scalar(name.to_string()));
        b.input(name, Type::scalar(DType::F32))
    };
    let mut weights = Weights { weight: number(&mut b, WEIGHT), auxiliary: None };
    if let Some(at) = graph.output(&OutputRole::Value(AUXILIARY.to_string())) {
        let share = number(&mut b, SHARE);
        weights.auxiliary = Some((graph.body.outputs[at], share));
    }
    let mut outputs = graph.body.outputs.clone();
    let name = graph.body.name(outputs[0]);
    outputs[0] = weights.loss(&mut b, outputs[0])?;
    b.body.values[outputs[0].index()].name = name;
    out.body = b.finish(outputs);
    Ok(out)
}

struct Weights {
    weight: ValueId,
    /// The value of the auxiliary losses, and by what it counts.
    auxiliary: Option<(ValueId, ValueId)>,
}

impl Weights {
    /// Sums count by their terms, and the loss of a vocabulary by an argument of its call: then its
    /// gradients need no visit of their own.
    fn loss(&self, b: &mut Builder, id: ValueId) -> Result<ValueId, String> {
        if let Some((value, share)) = self.auxiliary
            && value == id
        {
            return b.mul(id, share, Place::default());
        }
        match b.op(id).cloned() {
            Some(Node { op: Op::Binary(Binary::Add), args, span, .. }) => {
                let (x, y) = (self.loss(b, args[0])?, self.loss(b, args[1])?);
                b.binary(Binary::Add, x, y, span)
            }
            Some(Node { op: Op::Call { kernel, axes, body }, mut args, span, .. })
                if kernel == Kernel::LinearCrossEntropy =>
            {
                let mut inner = Builder::resume(*body);
                let weight = inner.input(WEIGHT, Type::scalar(DType::F32));
                let loss = inner.body.outputs[0];
                let loss = inner.mul(loss, weight, span)?;
                let ty = inner.ty(loss).clone();
                args.push(self.weight);
                let op = Op::Call { kernel, axes, body: Box::new(inner.finish(vec![loss])) };
                Ok(b.node(op, args, vec![(b.body.name(id), ty)], span)[0])
            }
            _ => b.mul(id, self.weight, Place::default()),
        }
    }
}

/// The graph with gradients as inputs, to which it adds its own.
pub fn accumulate(graph: &Graph) -> Result<Graph, String> {
    let mut out = graph.clone();
    let mut adding = Adding { first: &graph.body, b: Builder::resume(graph.body.clone()) };
    let mut outputs = graph.body.outputs.clone();
    for (output, role) in outputs.iter_mut().zip(&graph.outputs) {
        let OutputRole::Grad(p) = role else { continue };
        let (name, ty) = (graph.body.name(*output), graph.body.ty(*output).clone());
        let old = adding.b.input(format!("old.{name}"), ty);
        out.inputs.push(InputRole::Grad(*p));
        *output = adding.add(*output, old, None)?;
        adding.b.body.values[output.index()].name = name;
    }
    out.body = adding.b.finish(outputs);
    Ok(out)
}

/// A gradient added to the old one, as which it is stored: rounded once, and not before the sum.
fn summed(b: &mut Builder, g: ValueId, old: ValueId) -> Result<ValueId, String> {
    let (at, dtype) = (Place::default(), b.ty(old).dtype);
    let exact = match b.op(g) {
        Some(Node { op: Op::Cast(DType::Bf16), args, .. }) => args[0],
        _ => g,
    };
    let sum = accumulated(b, exact, old, at)?;
    b.push(Op::Cast(dtype), &[sum], at)
}

struct Adding<'a> {
    /// The body before anything was added.
    first: &'a Body,
    b: Builder,
}

impl Adding<'_> {
    /// `g + old`, where `user` is the one node that may read `g`.
    fn add(&mut self, g: ValueId, old: ValueId, user: Option<usize>) -> Result<ValueId, String> {
        let made = self.first.nodes.iter().position(|n| n.results.contains(&g));
        if let Some(i) = made
            && self.alone(g, user)
        {
            let node = self.first.nodes[i].clone();
            let result = node.results.iter().position(|r| *r == g).unwrap_or(0);
            match node.op {
                Op::Repeat { carries, .. } if result >= carries => {
                    return self.stacked(i, result, g, old);
                }
                Op::Call { kernel: Kernel::LinearCrossEntropyGrad, .. }
                    if self.first.ty(g) == self.first.ty(node.args[1]) && result == 2 =>
                {
                    return self.call(i, result, g, old);
                }
                Op::ScatterAdd { axis } => {
                    let base = match node.args.get(2) {
                        Some(base) => self.add(*base, old, Some(i))?,
                        None => old,
                    };
                    let args = [node.args[0], node.args[1], base];
                    return self.b.push(Op::ScatterAdd { axis }, &args, node.span);
                }
                _ => {}
            }
        }
        summed(&mut self.b, g, old)
    }

    /// Is this read by that node alone, or by nobody and once an output?
    fn alone(&self, id: ValueId, user: Option<usize>) -> bool {
        let nodes = self.first.nodes.iter().enumerate();
        let mut readers = nodes.filter(|(_, n)| n.args.contains(&id)).map(|(i, _)| i);
        let outputs = self.first.outputs.iter().filter(|o| **o == id).count();
        readers.all(|i| Some(i) == user) && outputs == usize::from(user.is_none())
    }

    /// The region takes slices of the old gradient and emits their sums.
    fn stacked(&mut self, i: usize, k: usize, g: ValueId, old: ValueId) -> Result<ValueId, String> {
        let node = &mut self.b.body.nodes[i];
        let Op::Repeat { body, .. } = &mut node.op else { return Err("a repeated region".into()) };
        let mut inner = Builder::resume((**body).clone());
        let mut outputs = inner.body.outputs.clone();
        let name = inner.body.name(outputs[k]);
        let ty = inner.ty(outputs[k]).clone();
        let slice = inner.input(format!("old.{name}"), ty);
        outputs[k] = summed(&mut inner, outputs[k], slice)?;
        inner.body.values[outputs[k].index()].name = name;
        **body = inner.finish(outputs);
        node.args.push(old);
        Ok(g)
    }

    /// The call takes the old gradient as its last argument.
    fn call(&mut self, i: usize, k: usize, g: ValueId, old: ValueId) -> Result<ValueId, String> {
        let node = &mut self.b.body.nodes[i];
        let Op::Call { body, .. } = &mut node.op else { return Err("a call".into()) };
        let mut inner = Builder::resume((**body).clone());
        let mut outputs = inner.body.outputs.clone();
        let base = inner.input("old", inner.ty(outputs[k]).clone());
        outputs[k] = summed(&mut inner, outputs[k], base)?;
        **body = inner.finish(outputs);
        node.args.push(old);
        Ok(g)
    }
}
