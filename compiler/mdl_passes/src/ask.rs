//! Where values should be made, asked for from the end of a body.
//!
//! Whoever needs a value at a certain place says so before it is made: the parts of a
//! concatenation, the argument of a view, the base of a scatter, the first carry of a region.

use crate::layout::{Loc, back, slice_bytes};
use crate::lower::{Lowering, Places};
use crate::lower_repeat::history;
use mdl_ir::graph::{Body, Node, ValueId};
use mdl_ir::op::{Collective, Kernel, Op};
use std::collections::HashMap;

/// Buffers of carries: node and number of the carry.
pub type Carries = HashMap<(usize, usize), usize>;

struct Asking<'a> {
    body: &'a Body,
    producers: Vec<Option<usize>>,
    users: Vec<Vec<usize>>,
    places: &'a Places,
    wanted: &'a mut Places,
}

impl Lowering {
    /// Walks the nodes from the end and notes where values should be made. Gives the buffers of
    /// carries.
    pub(crate) fn ask(&mut self, body: &Body, places: &Places, wanted: &mut Places) -> Carries {
        let (producers, users) = (body.producers(), body.users());
        let mut asking = Asking { body, producers, users, places, wanted };
        let mut carries = Carries::new();
        for (i, node) in body.nodes.iter().enumerate().rev() {
            self.here = node.span;
            match &node.op {
                Op::Concat { .. } => asking.concat(self, node),
                Op::Rename { .. } | Op::Split { .. } | Op::Merge { .. } => asking.view(node),
                Op::ScatterAdd { .. } if node.args.len() == 3 => asking.scatter(self, node),
                Op::Collective { kind: Collective::AllReduce, .. } => asking.in_place(node),
                Op::Repeat { .. } => asking.carries(self, i, node, &mut carries),
                _ => {}
            }
        }
        carries
    }
}

impl Asking<'_> {
    fn made_by_kernel(&self, v: ValueId) -> bool {
        self.producers[v.index()]
            .is_some_and(|p| matches!(self.body.nodes[p].op, Op::Call { .. } | Op::Gather { .. }))
    }

    /// Asks for a value at a place, if nobody did and one kernel makes it for this one use.
    fn for_one_use(&mut self, v: ValueId, to: Loc) {
        let alone = self.users[v.index()].len() == 1 && !self.body.outputs.contains(&v);
        if alone && self.made_by_kernel(v) && !self.wanted.contains_key(&v) {
            self.wanted.insert(v, to);
        }
    }

    fn concat(&mut self, low: &mut Lowering, node: &Node) {
        let Op::Concat { axis, into } = &node.op else { return };
        let (body, result) = (self.body, node.results[0]);
        let whole = self.wanted.entry(result);
        let whole = whole.or_insert_with(|| low.fresh(&body.name(result), body.ty(result))).clone();
        let at = body.ty(result).index_of(into.name).expect("verified");
        let mut start = 0;
        for a in &node.args {
            let mut part = whole.clone();
            part.offset += start * whole.strides[at];
            start += body.ty(*a).axis(*axis).expect("verified").size;
            let free = !self.wanted.contains_key(a) && !self.places.contains_key(a);
            // Only regions write with strides.
            let region = self.producers[a.index()].is_some_and(|p| {
                matches!(body.nodes[p].op, Op::Call { kernel: Kernel::Region, .. })
            });
            if free && region {
                self.wanted.insert(*a, part);
            }
        }
    }

    fn view(&mut self, node: &Node) {
        let a = node.args[0];
        let (ty, result) = (self.body.ty(a), self.body.ty(node.results[0]));
        if let Some(to) = self.wanted.get(&node.results[0])
            && !self.wanted.contains_key(&a)
            && self.made_by_kernel(a)
            && let Some(loc) = back(&node.op, to, ty, result)
        {
            self.wanted.insert(a, loc);
        }
    }

    /// An all-reduce is in place.
    fn in_place(&mut self, node: &Node) {
        if let Some(to) = self.wanted.get(&node.results[0])
            && !self.places.contains_key(&node.args[0])
        {
            let to = to.clone();
            self.wanted.entry(node.args[0]).or_insert(to);
        }
    }

    /// A scatter adds to its base in place.
    fn scatter(&mut self, low: &mut Lowering, node: &Node) {
        let (base, result) = (node.args[2], node.results[0]);
        let to = match self.wanted.get(&result) {
            Some(to) => to.clone(),
            None => low.fresh(&self.body.name(result), self.body.ty(base)),
        };
        self.wanted.insert(result, to.clone());
        self.for_one_use(base, to);
    }

    fn carries(&mut self, low: &mut Lowering, i: usize, node: &Node, carries: &mut Carries) {
        let Op::Repeat { count, carries: n, body: inner, reverse, .. } = &node.op else { return };
        for j in 0..*n {
            let first = node.args[j];
            let ty = self.body.ty(first).clone();
            let slots = if history(inner, j, *n, *reverse) { count + 1 } else { 2 };
            let name = self.body.name(node.results[j]);
            let buffer = low.buffer(&name, slice_bytes(slots, &ty), None);
            carries.insert((i, j), buffer);
            self.for_one_use(first, Loc::dense(buffer, &ty));
        }
    }
}
