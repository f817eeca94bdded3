//! Operands that a contraction prepares for itself, instead of reading what another kernel stored.
//!
//! A normalised value is the value as it was, times a number for its row, times one for its column.
//! A contraction that computes this while it takes the operand in reads what it would have read
//! anyway, and the operand is never in memory: not for the forward part, and not for the gradient
//! of the matrix, which prepares it again. That is so where an operand is made by a few sums and
//! products from one value of its own size, which is in memory for others too, and from smaller
//! ones that lie along its rows and columns.

use crate::layout::has_one_stride;
use mdl_ir::build::{Builder, remove_dead};
use mdl_ir::graph::{Body, Node, ValueId};
use mdl_ir::op::{Binary, Class, Op};
use mdl_ir::tensor_type::{Axis, DType};
use std::collections::{HashMap, HashSet};

/// Each reader does the work again, so it has to be little.
const MOST_OPERATIONS: usize = 8;

/// An operand of a contraction with what makes it.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub operand: ValueId,
    /// The nodes that make it, in order.
    pub nodes: Vec<usize>,
    /// The value of its size, and the smaller ones.
    whole: Option<ValueId>,
    pub small: Vec<ValueId>,
}

/// Contractions by the number of their node, with the one operand that each prepares. An operand is
/// here only if nobody else reads it.
pub fn prologues(body: &Body) -> HashMap<usize, Prepared> {
    let finder = Finder { body, producers: body.producers(), users: body.users() };
    let mut found = HashMap::new();
    for (i, node) in body.nodes.iter().enumerate() {
        let one = node.args.iter().find_map(|a| finder.prepared(node, *a));
        found.extend(one.map(|prepared| (i, prepared)));
    }
    let everywhere = |p: &Prepared| {
        let reads = |u: &usize| found.get(u).is_some_and(|q| q.operand == p.operand);
        finder.users[p.operand.index()].iter().all(reads) && !body.outputs.contains(&p.operand)
    };
    let kept: HashSet<ValueId> =
        found.values().filter(|p| everywhere(p)).map(|p| p.operand).collect();
    found.retain(|_, p| kept.contains(&p.operand));
    found
}

struct Finder<'a> {
    body: &'a Body,
    producers: Vec<Option<usize>>,
    users: Vec<Vec<usize>>,
}

impl Finder<'_> {
    fn prepared(&self, node: &Node, operand: ValueId) -> Option<Prepared> {
        let Op::Contract { axes: summed } = &node.op else { return None };
        let result = self.body.ty(node.results[0]);
        let of_both = |a: &Axis| result.has(a.name) && node.args.iter().all(|x| self.has(*x, a));
        let ty = self.body.ty(operand);
        if ty.axes.iter().any(of_both) || node.args[0] == node.args[1] {
            return None;
        }
        let mut made = Prepared { operand, nodes: Vec::new(), whole: None, small: Vec::new() };
        self.gather(operand, &mut made)?;
        made.nodes.sort_unstable();
        made.nodes.dedup();
        let whole = made.whole?;
        let outside = |u: &usize| !made.nodes.contains(u);
        let given = self.producers[whole.index()].is_none();
        let stored = given
            || self.body.outputs.contains(&whole)
            || self.users[whole.index()].iter().any(outside) && !self.is_elementwise(whole)
            || self.is_stored(whole);
        let (k, rows): (Vec<Axis>, Vec<Axis>) =
            ty.axes.iter().copied().partition(|a| summed.contains(&a.name));
        let along = |v: &ValueId| has_one_stride(self.body.ty(*v), &[&rows, &k]);
        let fits = stored
            && self.body.ty(whole).dtype == ty.dtype
            && made.nodes.len() <= MOST_OPERATIONS
            && made.small.iter().all(along);
        fits.then_some(made)
    }

    fn has(&self, value: ValueId, axis: &Axis) -> bool {
        self.body.ty(value).has(axis.name)
    }

    fn producer(&self, value: ValueId) -> Option<&Node> {
        self.producers[value.index()].map(|n| &self.body.nodes[n])
    }

    fn is_elementwise(&self, value: ValueId) -> bool {
        self.producer(value).is_some_and(|n| n.op.class() == Class::Elementwise)
    }

    fn is_stored(&self, value: ValueId) -> bool {
        self.producer(value).is_some_and(|n| is_stored(self.body, &self.producers, n))
    }

    /// Collects what makes a value of the operand's size, down to what is in memory; None where
    /// that is more than one value of this size, or more than sums and products.
    fn gather(&self, value: ValueId, made: &mut Prepared) -> Option<()> {
        let (top, ty) = (value == made.operand, self.body.ty(value));
        let size = &self.body.ty(made.operand).axes;
        if ty.axes != *size {
            let smaller = ty.axes.len() < size.len() && ty.axes.iter().all(|a| size.contains(a));
            if smaller && !made.small.contains(&value) {
                made.small.push(value);
            }
            return smaller.then_some(());
        }
        let node = self.producers[value.index()].filter(|_| self.is_elementwise(value));
        match node.filter(|_| top || !self.is_stored(value)) {
            Some(n) => {
                let node = &self.body.nodes[n];
                let cheap = matches!(
                    node.op,
                    Op::Binary(Binary::Add | Binary::Sub | Binary::Mul)
                        | Op::Cast(DType::F32 | DType::Bf16)
                );
                made.nodes.push(n);
                node.args.iter().filter(|_| cheap).try_for_each(|a| self.gather(*a, made))?;
                cheap.then_some(())
            }
            None => {
                let whole = *made.whole.get_or_insert(value);
                (!top && whole == value).then_some(())
            }
        }
    }
}

/// Is the result of this elementwise node in memory all the same? Sums that end a contraction are,
/// and what is rounded, since that is done for memory.
pub fn is_stored(body: &Body, producers: &[Option<usize>], node: &Node) -> bool {
    let made = |a: &ValueId| producers[a.index()].map(|n| &body.nodes[n].op);
    match node.op {
        Op::Cast(DType::Bf16) => true,
        Op::Binary(Binary::Add) => {
            node.args.iter().any(|a| matches!(made(a), Some(Op::Contract { .. })))
        }
        _ => false,
    }
}

/// Gives each contraction the nodes of its prologue for itself, right before it.
pub fn own_operands(body: &Body) -> Result<Body, String> {
    let found = prologues(body);
    if found.is_empty() {
        return Ok(body.clone());
    }
    let stored: HashSet<ValueId> = found.values().map(|p| p.operand).collect();
    let mut b = Builder::default();
    let mut map: HashMap<ValueId, ValueId> = HashMap::new();
    for input in &body.inputs {
        map.insert(*input, b.input(body.name(*input), body.ty(*input).clone()));
    }
    for (i, node) in body.nodes.iter().enumerate() {
        if node.results.iter().any(|r| stored.contains(r)) {
            continue;
        }
        let Some(prepared) = found.get(&i) else {
            b.copy_node(body, node, &mut map)?;
            continue;
        };
        let mut own = map.clone();
        for n in prepared.nodes.iter().chain([&i]) {
            let node = &body.nodes[*n];
            let args = node.args.iter().map(|a| own[a]).collect();
            let value = &body.values[node.results[0].index()];
            let result = vec![(value.name, value.ty.clone())];
            own.insert(node.results[0], b.node(node.op.clone(), args, result, node.span)[0]);
        }
        map.insert(node.results[0], own[&node.results[0]]);
    }
    let mut body = b.finish(body.outputs.iter().map(|o| map[o]).collect());
    remove_dead(&mut body);
    Ok(body)
}
