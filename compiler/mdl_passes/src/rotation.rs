//! Rotations as the end of the contraction whose result they turn.
//!
//! A rotary embedding takes the two halves of each head, turns every pair of an element of the
//! first and its counterpart in the second, and puts the halves together again. A contraction that
//! has both sums of a pair at hand does this before it stores them: what it would have stored
//! otherwise is read by nobody else.

use crate::layout::has_one_stride;
use mdl_ir::graph::{Body, Node, ValueId};
use mdl_ir::kernel::ContractBlocks;
use mdl_ir::op::{Binary, Class, Op};
use mdl_ir::tensor_type::{Axis, DType, Type};
use std::collections::HashMap;

/// Contractions by the number of their node, with the nodes that turn their results, in order. The
/// last of them makes what is stored.
pub fn rotations(body: &Body) -> HashMap<usize, Vec<usize>> {
    let finder = Finder { body, producers: body.producers(), users: body.users() };
    let contractions = (0..body.nodes.len()).filter_map(|i| finder.turned(i).map(|n| (i, n)));
    contractions.collect()
}

struct Finder<'a> {
    body: &'a Body,
    producers: Vec<Option<usize>>,
    users: Vec<Vec<usize>>,
}

impl Finder<'_> {
    fn turned(&self, contract: usize) -> Option<Vec<usize>> {
        let node = &self.body.nodes[contract];
        let head = self.pairs(node)?;
        let mut nodes = Vec::new();
        let mut whole = node.results[0];
        let slices = loop {
            let next = self.readers(whole)?;
            match next {
                [one] if self.changes(*one, whole, contract) => {
                    nodes.push(*one);
                    whole = self.body.nodes[*one].results[0];
                }
                [a, b] => break [*a, *b],
                _ => return None,
            }
        };
        let half = self.halves(slices, &head)?;
        nodes.extend(slices);
        let concat = self.turn(&mut nodes, self.half_type(node, &half), contract)?;
        nodes.push(concat);
        let result = self.body.nodes[concat].results[0];
        if let Some([one]) = self.readers(result)
            && self.body.nodes[*one].op == Op::Cast(DType::Bf16)
        {
            nodes.push(*one);
        }
        nodes.sort_unstable();
        Some(nodes)
    }

    /// The axis of a head, where kernels can have the columns of a contraction in pairs: it is the
    /// innermost one of the second operand's, whose matrix is read along what is summed, and there
    /// are rows enough for tiles.
    fn pairs(&self, node: &Node) -> Option<Axis> {
        let Op::Contract { axes: summed } = &node.op else { return None };
        let (a, b) = (self.body.ty(node.args[0]), self.body.ty(node.args[1]));
        let result = self.body.ty(node.results[0]);
        let head = result.axes.last()?;
        let rows: u64 = result.axes.iter().filter(|x| a.has(x.name)).map(|x| x.size).product();
        let batch = result.axes.iter().any(|x| a.has(x.name) && b.has(x.name));
        let along = b.axes.last().is_some_and(|x| summed.contains(&x.name));
        let fits = !a.has(head.name) && head.size.is_multiple_of(2);
        (fits && !batch && along && rows > ContractBlocks::SKINNY_ROWS).then_some(*head)
    }

    /// Who reads a value that stays inside.
    fn readers(&self, value: ValueId) -> Option<&[usize]> {
        (!self.body.outputs.contains(&value)).then(|| self.users[value.index()].as_slice())
    }

    /// Does this node change the result element by element, by nothing that depends on it?
    fn changes(&self, n: usize, whole: ValueId, contract: usize) -> bool {
        let node = &self.body.nodes[n];
        let others = node.args.iter().filter(|a| **a != whole);
        let same = self.body.ty(node.results[0]).axes == self.body.ty(whole).axes;
        same && is_simple(&node.op)
            && others.into_iter().all(|a| self.comes_in(*a, self.body.ty(whole), contract))
    }

    /// The axis of a half, where these two cut the axis `head` into its halves.
    fn halves(&self, slices: [usize; 2], head: &Axis) -> Option<Axis> {
        let cut = |n: usize| match &self.body.nodes[n].op {
            Op::Slice { axis, start, into } => Some((axis, *start, into)),
            _ => None,
        };
        let (a, b) = (cut(slices[0])?, cut(slices[1])?);
        let size = head.size / 2;
        let starts = [a.1.min(b.1), a.1.max(b.1)];
        let fits = a.0 == &head.name && b.0 == &head.name && a.2 == b.2 && a.2.size == size;
        (fits && starts == [0, size]).then_some(*a.2)
    }

    fn half_type(&self, node: &Node, half: &Axis) -> Vec<Axis> {
        let mut axes = self.body.ty(node.results[0]).axes.clone();
        axes.pop();
        axes.push(*half);
        axes
    }

    /// Adds the nodes between the slices and the concatenation of two halves, which it gives.
    fn turn(&self, nodes: &mut Vec<usize>, half: Vec<Axis>, contract: usize) -> Option<usize> {
        let ty = Type::new(DType::F32, half);
        let made = |nodes: &[usize], a: &ValueId| {
            self.producers[a.index()].is_some_and(|p| nodes.contains(&p))
        };
        let turning = nodes.len();
        let mut waiting: Vec<usize> = nodes[turning - 2..].to_vec();
        let mut concat = None;
        while let Some(n) = waiting.pop() {
            for u in self.readers(self.body.nodes[n].results[0])? {
                let node = &self.body.nodes[*u];
                if matches!(node.op, Op::Concat { .. }) {
                    let last = self.body.ty(node.results[0]).axes.last()?;
                    let fits = node.args.len() == 2 && last.size == 2 * ty.axes.last()?.size;
                    if !fits || concat.is_some_and(|c| c != *u) {
                        return None;
                    }
                    concat = Some(*u);
                } else if !nodes.contains(u) {
                    let same = self.body.ty(node.results[0]).axes == ty.axes;
                    if !same || !is_simple(&node.op) {
                        return None;
                    }
                    nodes.push(*u);
                    waiting.push(*u);
                }
            }
        }
        let concat = concat?;
        let inside = |n: &usize| {
            let args = self.body.nodes[*n].args.iter();
            args.into_iter().all(|a| made(nodes, a) || self.comes_in(*a, &ty, contract))
        };
        let halves = self.body.nodes[concat].args.iter().all(|a| made(nodes, a));
        (halves && nodes[turning..].iter().all(inside)).then_some(concat)
    }

    /// Can the kernel read this beside a value of this type? It must not depend on the contraction,
    /// and have one stride along the heads.
    fn comes_in(&self, value: ValueId, beside: &Type, contract: usize) -> bool {
        let own = self.body.ty(value);
        let b = self.body.ty(self.body.nodes[contract].args[1]);
        let (_, outer) = beside.axes.split_last().expect("a head");
        let heads: Vec<Axis> = outer.iter().filter(|x| b.has(x.name)).copied().collect();
        let known = own.axes.iter().all(|x| beside.axes.contains(x));
        known && has_one_stride(own, &[&heads]) && !self.depends(value, contract)
    }

    fn depends(&self, value: ValueId, on: usize) -> bool {
        match self.producers[value.index()] {
            Some(n) if n == on => true,
            Some(n) if n > on => self.body.nodes[n].args.iter().any(|a| self.depends(*a, on)),
            _ => false,
        }
    }
}

/// What epilogues compute on pairs: sums, products and rounding.
fn is_simple(op: &Op) -> bool {
    let computes = matches!(
        op,
        Op::Binary(Binary::Add | Binary::Sub | Binary::Mul) | Op::Cast(DType::F32 | DType::Bf16)
    );
    computes && op.class() == Class::Elementwise
}
