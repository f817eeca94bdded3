//! Stores parameters and activations in bf16.
//!
//! Arithmetic stays f32: what reads a value in bf16 computes with the same number in f32. This pass
//! says what is rounded, by `cast{bf16}`: parameters, what contractions, gathers and attention read
//! and give, and what a region hands from one iteration to the next. A sum that ends a contraction
//! is rounded in its place, once. Losses, statistics of rows and numbers without axes stay f32.
//!
//! It wants a forward graph. Differentiation rounds the gradient of a value where the value is
//! rounded, so it comes after: all rounding points are known before anything is made again, moved
//! or fused, and none of that changes a bit.

use mdl_ir::build::Builder;
use mdl_ir::graph::{Body, Graph, InputRole, Node, ValueId};
use mdl_ir::op::{Binary, Class, Kernel, Op};
use mdl_ir::tensor_type::{Axis, DType, Type};
use std::collections::HashMap;

pub fn narrow(graph: &Graph) -> Result<Graph, String> {
    let mut out = graph.clone();
    for param in &mut out.params {
        param.ty = param.ty.of(DType::Bf16);
    }
    let types = graph.body.inputs.iter().zip(&graph.inputs).map(|(id, role)| {
        let ty = graph.body.ty(*id);
        match role {
            InputRole::Param(_) | InputRole::Grad(_) => ty.of(DType::Bf16),
            _ => ty.clone(),
        }
    });
    let mut n = Narrowing::of(&graph.body, types.collect());
    n.nodes(&graph.body.outputs)?;
    let outputs = graph.body.outputs.iter().map(|o| n.map[o]).collect();
    out.body = n.b.finish(outputs);
    Ok(out)
}

struct Narrowing<'a> {
    body: &'a Body,
    users: Vec<Vec<usize>>,
    b: Builder,
    map: HashMap<ValueId, ValueId>,
}

impl<'a> Narrowing<'a> {
    fn of(body: &'a Body, types: Vec<Type>) -> Self {
        let mut b = Builder::default();
        let inputs = body.inputs.iter().zip(types);
        let map = inputs.map(|(id, ty)| (*id, b.input(body.name(*id), ty))).collect();
        Narrowing { body, users: body.users(), b, map }
    }

    /// All nodes; contractions that are among `exact` are not rounded.
    fn nodes(&mut self, exact: &[ValueId]) -> Result<(), String> {
        let body = self.body;
        for node in &body.nodes {
            match &node.op {
                Op::Contract { .. } => {
                    self.computed(node)?;
                    if !exact.contains(&node.results[0]) && !self.ends_in_sum(node.results[0]) {
                        self.round(node)?;
                    }
                }
                Op::GroupedContract { .. } | Op::Gather { .. } => self.computed(node)?,
                Op::Binary(Binary::Add) if node.args.iter().any(|a| self.ends_in_sum(*a)) => {
                    self.b.copy_node(body, node, &mut self.map)?;
                    self.round(node)?;
                }
                Op::Concat { .. } => self.concat(node)?,
                Op::Call { .. } => self.call(node)?,
                Op::Repeat { .. } => self.region(node)?,
                _ => self.b.copy_node(body, node, &mut self.map)?,
            }
        }
        Ok(())
    }

    /// A kernel's operation on operands that are stored in bf16.
    fn computed(&mut self, node: &Node) -> Result<(), String> {
        let args: Vec<ValueId> =
            node.args.iter().map(|a| self.narrowed(self.map[a])).collect::<Result<_, _>>()?;
        let id = self.b.push(node.op.clone(), &args, node.span)?;
        self.enter(node.results[0], id);
        Ok(())
    }

    /// Is this a contraction whose one use is a sum, in whose place the sum is rounded?
    fn ends_in_sum(&self, id: ValueId) -> bool {
        let made = |n: &&Node| matches!(n.op, Op::Contract { .. }) && n.results.contains(&id);
        let [user] = self.users[id.index()][..] else { return false };
        self.body.nodes[user].op == Op::Binary(Binary::Add)
            && !self.body.outputs.contains(&id)
            && self.body.nodes[..user].iter().any(|n| made(&n))
    }

    /// From here on, the result of a node is what memory has of it.
    fn round(&mut self, node: &Node) -> Result<(), String> {
        let exact = self.map[&node.results[0]];
        let id = self.b.push(Op::Cast(DType::Bf16), &[exact], node.span)?;
        self.enter(node.results[0], id);
        Ok(())
    }

    fn enter(&mut self, old: ValueId, id: ValueId) {
        self.b.body.values[id.index()].name = self.body.name(old);
        self.map.insert(old, id);
    }

    /// A float as it is stored: rounded where it is computed, which may be behind views.
    fn narrowed(&mut self, id: ValueId) -> Result<ValueId, String> {
        if self.b.ty(id).dtype != DType::F32 {
            return Ok(id);
        }
        let moves = |op: &Op| match op {
            Op::Reorder { .. } => true,
            op => op.class() == Class::View,
        };
        let moved = self.b.op(id).filter(|n| moves(&n.op));
        let Some(Node { op, args, span, .. }) = moved.cloned() else {
            let (name, at) = (self.b.body.name(id), self.b.op(id).map(|n| n.span));
            let cast = self.b.push(Op::Cast(DType::Bf16), &[id], at.unwrap_or_default())?;
            self.b.name(cast, name);
            return Ok(cast);
        };
        let args: Vec<ValueId> =
            args.iter().map(|a| self.narrowed(*a)).collect::<Result<_, _>>()?;
        self.b.push(op, &args, span)
    }

    /// The parts have one type: where they differ, that which holds all of them.
    fn concat(&mut self, node: &Node) -> Result<(), String> {
        let mut args: Vec<ValueId> = node.args.iter().map(|a| self.map[a]).collect();
        let first = self.b.ty(args[0]).dtype;
        if args.iter().any(|a| self.b.ty(*a).dtype != first) {
            for a in &mut args {
                *a = self.b.push(Op::Cast(DType::F32), &[*a], node.span)?;
            }
        }
        let id = self.b.push(node.op.clone(), &args, node.span)?;
        self.enter(node.results[0], id);
        Ok(())
    }

    /// A function with a kernel reads bf16; attention's result is stored as such.
    fn call(&mut self, node: &Node) -> Result<(), String> {
        let Op::Call { kernel, axes, body } = &node.op else { return Err("a call".into()) };
        let mut args = Vec::new();
        for a in &node.args {
            let id = self.map[a];
            let stored = !self.b.ty(id).axes.is_empty();
            args.push(if stored { self.narrowed(id)? } else { id });
        }
        let types = args.iter().map(|a| self.b.ty(*a).clone()).collect();
        let mut inner = Narrowing::of(body, types);
        for n in &body.nodes {
            inner.b.copy_node(body, n, &mut inner.map)?;
        }
        let mut outputs: Vec<ValueId> = body.outputs.iter().map(|o| inner.map[o]).collect();
        if *kernel == Kernel::Attention {
            outputs[0] = inner.b.push(Op::Cast(DType::Bf16), &outputs[..1], node.span)?;
        }
        let types = outputs.iter().map(|o| inner.b.ty(*o).clone()).collect();
        let body = Box::new(inner.b.finish(outputs));
        self.replace(node, Op::Call { kernel: *kernel, axes: axes.clone(), body }, args, types);
        Ok(())
    }

    /// A region whose carries are stored in bf16, unless they are numbers without axes.
    fn region(&mut self, node: &Node) -> Result<(), String> {
        let Op::Repeat { axis, count, reverse, carries, consts, body } = &node.op else {
            return Err("a repeated region".into());
        };
        let mut args: Vec<ValueId> = node.args.iter().map(|a| self.map[a]).collect();
        for a in &mut args[..*carries] {
            if !self.b.ty(*a).axes.is_empty() {
                *a = self.narrowed(*a)?;
            }
        }
        let types = args.iter().enumerate().map(|(i, a)| {
            let ty = self.b.ty(*a);
            let sliced = usize::from(i >= carries + consts);
            Type::new(ty.dtype, ty.axes[sliced..].to_vec())
        });
        let mut inner = Narrowing::of(body, types.collect());
        inner.nodes(&[])?;
        let mut outputs: Vec<ValueId> = body.outputs.iter().map(|o| inner.map[o]).collect();
        for (output, arg) in outputs.iter_mut().zip(&args).take(*carries) {
            *output = match self.b.ty(*arg).dtype {
                DType::Bf16 => inner.narrowed(*output)?,
                dtype => inner.b.push(Op::Cast(dtype), &[*output], node.span)?,
            };
        }
        let types = outputs.iter().enumerate().map(|(k, o)| match inner.b.ty(*o) {
            ty if k < *carries => ty.clone(),
            ty => ty.stacked(Axis::new(axis, *count)),
        });
        let types = types.collect();
        let (axis, count, reverse) = (*axis, *count, *reverse);
        let (carries, consts) = (*carries, *consts);
        let body = Box::new(inner.b.finish(outputs));
        self.replace(node, Op::Repeat { axis, count, reverse, carries, consts, body }, args, types);
        Ok(())
    }

    fn replace(&mut self, node: &Node, op: Op, args: Vec<ValueId>, types: Vec<Type>) {
        let names = node.results.iter().map(|r| self.body.name(*r));
        let ids = self.b.node(op, args, names.zip(types).collect(), node.span);
        self.map.extend(node.results.iter().copied().zip(ids));
    }
}
