//! A body under construction: types are inferred, what is known is folded, what was made before is
//! used again.

use crate::graph::{Body, Node, Value, ValueId};
use crate::infer::infer;
use crate::interp::fold;
use crate::op::{Binary, Class, Op, Reduction, Unary};
use crate::place::Place;
use crate::tensor_type::{Axis, DType, Type};
use mdl_symbol::{Quick, Symbol};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

#[derive(Debug, Default)]
pub struct Builder {
    pub body: Body,
    /// Nodes that would compute the same thing again, by a hash of the operation and its arguments.
    known: HashMap<u64, ValueId, BuildHasherDefault<Quick>>,
    /// The node that makes a value; what is beyond the end is made by none.
    producer: Vec<Option<usize>>,
}

impl Builder {
    /// Continues a body that is already there.
    pub fn resume(body: Body) -> Builder {
        let producer = body.producers();
        Builder { body, known: HashMap::default(), producer }
    }

    pub fn input(&mut self, name: impl Into<Symbol>, ty: Type) -> ValueId {
        let id = self.value(name, ty);
        self.body.inputs.push(id);
        id
    }

    pub fn value(&mut self, name: impl Into<Symbol>, ty: Type) -> ValueId {
        let id = ValueId(self.body.values.len() as u32);
        self.body.values.push(Value { name: name.into(), ty });
        id
    }

    pub fn ty(&self, id: ValueId) -> &Type {
        self.body.ty(id)
    }

    /// The operation that makes a value, if it is not an input.
    pub fn op(&self, id: ValueId) -> Option<&Node> {
        self.producer.get(id.index()).copied().flatten().map(|n| &self.body.nodes[n])
    }

    /// Gives a value the name that the source has for it, unless it already has one.
    pub fn name(&mut self, id: ValueId, name: Symbol) {
        let unnamed = self.op(id).is_some_and(|n| self.body.name(id) == n.op.name());
        if unnamed {
            self.body.values[id.index()].name = name;
        }
    }

    pub fn constant(&self, id: ValueId) -> Option<f64> {
        match self.op(id)?.op {
            Op::Const(c) => Some(c),
            _ => None,
        }
    }

    pub fn number(&mut self, value: f64, span: Place) -> ValueId {
        self.push(Op::Const(value), &[], span).expect("a constant has a type")
    }

    /// Adds a node with one result, or finds the value that already is this.
    pub fn push(&mut self, op: Op, args: &[ValueId], span: Place) -> Result<ValueId, String> {
        let types: Vec<&Type> = args.iter().map(|a| self.ty(*a)).collect();
        let mut results = infer(&op, &types)?;
        let ty = results.pop().ok_or("the operation has no result")?;
        if let Some(simple) = self.simplify(&op, args, &ty, span) {
            return Ok(simple);
        }
        let pure = !matches!(op.class(), Class::Kernel | Class::Repeat)
            || matches!(
                op,
                Op::Contract { .. }
                    | Op::Gather { .. }
                    | Op::GroupedContract { .. }
                    | Op::GroupedOuter { .. }
            );
        let key = pure.then(|| key(&op, args));
        if let Some(id) = key.and_then(|key| self.known.get(&key))
            && self.op(*id).is_some_and(|n| n.op.same(&op) && n.args == args)
        {
            return Ok(*id);
        }
        let name = op.name();
        let id = self.node(op, args.to_vec(), vec![(name, ty)], span)[0];
        if let Some(key) = key {
            self.known.insert(key, id);
        }
        Ok(id)
    }

    /// Adds a node as it is, with results of these names and types.
    pub fn node(
        &mut self,
        op: Op,
        args: Vec<ValueId>,
        results: Vec<(impl Into<Symbol>, Type)>,
        span: Place,
    ) -> Vec<ValueId> {
        let ids: Vec<ValueId> = results.into_iter().map(|(n, ty)| self.value(n, ty)).collect();
        self.producer.resize(self.body.values.len(), None);
        for id in &ids {
            self.producer[id.index()] = Some(self.body.nodes.len());
        }
        self.body.nodes.push(Node { op, args, results: ids.clone(), span });
        ids
    }

    pub fn unary(&mut self, op: Unary, a: ValueId, span: Place) -> Result<ValueId, String> {
        self.push(Op::Unary(op), &[a], span)
    }

    pub fn binary(
        &mut self,
        op: Binary,
        a: ValueId,
        b: ValueId,
        span: Place,
    ) -> Result<ValueId, String> {
        self.push(Op::Binary(op), &[a, b], span)
    }

    pub fn mul(&mut self, a: ValueId, b: ValueId, span: Place) -> Result<ValueId, String> {
        self.binary(Binary::Mul, a, b, span)
    }

    /// Sum over these axes, outermost walk last: axes at the end of memory first, as kernels want
    /// them.
    pub fn sum(&mut self, a: ValueId, axes: &[Symbol], span: Place) -> Result<ValueId, String> {
        self.push(Op::Reduce { kind: Reduction::Sum, axes: axes.to_vec() }, &[a], span)
    }

    /// A value that is already there for this operation, if the operation is known to give it.
    fn simplify(&mut self, op: &Op, args: &[ValueId], ty: &Type, span: Place) -> Option<ValueId> {
        if !args.is_empty() && ty.axes.is_empty() && ty.dtype == DType::F32 {
            let known: Option<Vec<f64>> = args.iter().map(|a| self.constant(*a)).collect();
            if let Some(value) = known.and_then(|known| fold(op, &known)) {
                return Some(self.number(value, span));
            }
        }
        let same = |id: ValueId, b: &Self| b.ty(id) == ty;
        if let Some(kept) = self.neutral(op, args)
            && self.ty(kept).axes == ty.axes
            && self.ty(kept).is_float()
        {
            // What is stored in fewer bits is the same number in f32.
            return self.push(Op::Cast(DType::F32), &[kept], span).ok();
        }
        match op {
            Op::Binary(Binary::Add) => self.join_pads(args, span),
            Op::Broadcast { .. } | Op::Reorder { .. } if same(args[0], self) => Some(args[0]),
            Op::Cast(_) | Op::Rename { .. } if same(args[0], self) => Some(args[0]),
            Op::Cast(DType::Bf16) => self.widened(args[0]),
            // No kernel has a cast to truth values: x.bool is x != 0.
            Op::Cast(DType::Bool) => {
                let zero = self.number(0.0, span);
                let is_zero = self.binary(Binary::Eq, args[0], zero, span).ok()?;
                self.unary(Unary::Not, is_zero, span).ok()
            }
            Op::Reduce { axes, .. } if axes.is_empty() => Some(args[0]),
            Op::Reduce { kind: Reduction::Sum, axes } => self.contraction(args[0], axes, span),
            _ => None,
        }
    }

    /// The argument of a sum or a product that the other one leaves as it is.
    fn neutral(&self, op: &Op, args: &[ValueId]) -> Option<ValueId> {
        let (first, second) = match op {
            Op::Binary(Binary::Mul) => (Some(1.0), Some(1.0)),
            Op::Binary(Binary::Add) => (Some(0.0), Some(0.0)),
            Op::Binary(Binary::Div) => (None, Some(1.0)),
            Op::Binary(Binary::Sub) => (None, Some(0.0)),
            _ => return None,
        };
        match args {
            [a, b] if first.is_some() && self.constant(*a) == first => Some(*b),
            [a, b] if self.constant(*b) == second => Some(*a),
            _ => None,
        }
    }

    /// What this was in bf16 before it was widened, if it was.
    fn widened(&self, id: ValueId) -> Option<ValueId> {
        let node = self.op(id).filter(|n| n.op == Op::Cast(DType::F32))?;
        (self.ty(node.args[0]).dtype == DType::Bf16).then(|| node.args[0])
    }

    /// Σ(a·b) is a contraction where each factor has an axis of its own.
    fn contraction(&mut self, sum_of: ValueId, axes: &[Symbol], span: Place) -> Option<ValueId> {
        let product = self.op(sum_of)?;
        let (Op::Binary(Binary::Mul), [a, b]) = (&product.op, product.args[..].as_ref()) else {
            return None;
        };
        let (a, b) = (*a, *b);
        let (ta, tb) = (self.ty(a), self.ty(b));
        let both = axes.iter().all(|x| ta.has(*x) && tb.has(*x));
        // What is multiplied by gathered matrices has no axis of its own.
        if both && let Some(grouped) = self.grouped(a, b, axes, span) {
            return Some(grouped);
        }
        let (ta, tb) = (self.ty(a), self.ty(b));
        let own = |x: &Type, y: &Type| x.axes.iter().any(|axis| !y.has(axis.name));
        if !both || !own(ta, tb) || !own(tb, ta) {
            return None;
        }
        self.push(Op::Contract { axes: axes.to_vec() }, &[a, b], span).ok()
    }

    /// Two paddings that fill an axis between them are a concatenation.
    fn join_pads(&mut self, args: &[ValueId], span: Place) -> Option<ValueId> {
        let pad = |id: ValueId| match self.op(id) {
            Some(Node { op: Op::Pad { axis, start, into }, args, .. }) => {
                let size = self.ty(args[0]).axis(*axis)?.size;
                Some((args[0], *axis, *start, *into, size))
            }
            _ => None,
        };
        let (x, y) = (pad(args[0])?, pad(args[1])?);
        let (x, y) = if x.2 <= y.2 { (x, y) } else { (y, x) };
        let fills = x.2 == 0 && y.2 == x.4 && y.2 + y.4 == x.3.size;
        if !fills || x.3 != y.3 {
            return None;
        }
        // The parts may have been cut under two names.
        let second = match x.1 == y.1 {
            true => y.0,
            false => self.push(Op::Rename { from: y.1, to: x.1 }, &[y.0], span).ok()?,
        };
        self.push(Op::Concat { axis: x.1, into: x.3 }, &[x.0, second], span).ok()
    }

    /// Copies a body's nodes into this one with `args` for its inputs; gives its outputs.
    pub fn inline(&mut self, body: &Body, args: &[ValueId]) -> Result<Vec<ValueId>, String> {
        let map = self.inline_all(body, args)?;
        Ok(body.outputs.iter().map(|o| map[o]).collect())
    }

    /// As `inline`, but gives where every value of the body went.
    pub fn inline_all(
        &mut self,
        body: &Body,
        args: &[ValueId],
    ) -> Result<HashMap<ValueId, ValueId>, String> {
        let mut map: HashMap<ValueId, ValueId> =
            body.inputs.iter().copied().zip(args.iter().copied()).collect();
        for node in &body.nodes {
            self.copy_node(body, node, &mut map)?;
        }
        Ok(map)
    }

    /// Copies one node whose arguments are in `map`, and enters its results there.
    pub fn copy_node(
        &mut self,
        body: &Body,
        node: &Node,
        map: &mut HashMap<ValueId, ValueId>,
    ) -> Result<(), String> {
        let args: Vec<ValueId> = node.args.iter().map(|a| map[a]).collect();
        if node.results.len() == 1 && !matches!(node.op, Op::Repeat { .. } | Op::Call { .. }) {
            let before = self.body.values.len();
            let id = self.push(node.op.clone(), &args, node.span)?;
            if id.index() >= before {
                self.body.values[id.index()].name = body.values[node.results[0].index()].name;
            }
            map.insert(node.results[0], id);
            return Ok(());
        }
        let results = node.results.iter().map(|r| body.values[r.index()].clone());
        let results = results.map(|v| (v.name, v.ty)).collect();
        let ids = self.node(node.op.clone(), args, results, node.span);
        map.extend(node.results.iter().copied().zip(ids));
        Ok(())
    }

    /// Copies a repeated region with another body of the same inputs and outputs.
    pub fn copy_region(
        &mut self,
        outer: &Body,
        node: &Node,
        inner: Body,
        map: &mut HashMap<ValueId, ValueId>,
    ) -> Result<(), String> {
        let mut op = node.op.clone();
        let Op::Repeat { body, .. } = &mut op else { return Err("a repeated region".into()) };
        **body = inner;
        let args = node.args.iter().map(|a| map[a]).collect();
        let results = node.results.iter().map(|r| outer.values[r.index()].clone());
        let ids = self.node(op, args, results.map(|v| (v.name, v.ty)).collect(), node.span);
        map.extend(node.results.iter().copied().zip(ids));
        Ok(())
    }

    /// The finished body with these outputs and without nodes that no output needs.
    pub fn finish(mut self, outputs: Vec<ValueId>) -> Body {
        self.body.outputs = outputs;
        remove_dead(&mut self.body);
        self.body
    }
}

fn key(op: &Op, args: &[ValueId]) -> u64 {
    let mut hasher = Quick::default();
    (op, args).hash(&mut hasher);
    hasher.finish()
}

/// Drops nodes that no output needs, and values that nothing mentions.
pub fn remove_dead(body: &mut Body) {
    let mut needed = vec![false; body.values.len()];
    for o in &body.outputs {
        needed[o.index()] = true;
    }
    let mut kept = Vec::new();
    for node in std::mem::take(&mut body.nodes).into_iter().rev() {
        if node.results.iter().any(|r| needed[r.index()]) {
            for a in &node.args {
                needed[a.index()] = true;
            }
            kept.push(node);
        }
    }
    kept.reverse();
    body.nodes = kept;
    compact(body);
}

/// Renumbers values in the order in which they appear.
fn compact(body: &mut Body) {
    let mut map: HashMap<ValueId, ValueId> = HashMap::new();
    let mut values = Vec::new();
    let mut enter = |id: ValueId, old: &[Value]| {
        map.entry(id).or_insert_with(|| {
            values.push(old[id.index()].clone());
            ValueId(values.len() as u32 - 1)
        });
    };
    for id in body.inputs.iter().chain(body.nodes.iter().flat_map(|n| &n.results)) {
        enter(*id, &body.values);
    }
    for id in &mut body.inputs {
        *id = map[id];
    }
    for node in &mut body.nodes {
        node.args.iter_mut().chain(&mut node.results).for_each(|id| *id = map[id]);
    }
    for id in &mut body.outputs {
        *id = map[id];
    }
    body.values = values;
}

/// `names` of these axes.
pub fn axis_names(axes: &[Axis]) -> Vec<Symbol> {
    axes.iter().map(|a| a.name).collect()
}
