//! Which nodes go into one kernel: the grouping that `fuse` writes down.

use crate::fuse::Unit;
use crate::layout::has_one_stride;
use crate::prologue::{Prepared, prologues};
use crate::rotation::rotations;
use mdl_ir::build::axis_names;
use mdl_ir::graph::{Body, ValueId};
use mdl_ir::op::{Class, Op};
use mdl_ir::tensor_type::{Axis, DType, Type};
use mdl_symbol::Symbol;
use std::collections::HashSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Elementwise work alone; the last axis is walked.
    Elementwise,
    /// With reductions over the innermost axes, which are walked.
    Rows,
    /// With reductions over outer axes.
    Columns,
    /// A contraction with its prologue and epilogue.
    Contraction,
    /// A contraction with its prologue, whose epilogue turns pairs of its sums and nothing else.
    Rotary,
}

#[derive(Clone, Debug)]
pub struct Group {
    pub kind: Kind,
    pub space: Vec<Axis>,
    /// The axes that are walked (`Rows`) or reduced (`Columns`).
    pub walked: Vec<Symbol>,
    /// Nodes in order.
    pub nodes: Vec<usize>,
}

impl Group {
    fn row(&self) -> Vec<Axis> {
        match self.kind {
            Kind::Elementwise => self.space[..self.space.len().saturating_sub(1)].to_vec(),
            _ => self.space.iter().filter(|a| !self.walked.contains(&a.name)).copied().collect(),
        }
    }
}

#[derive(Debug)]
pub struct Groups {
    groups: Vec<Option<Group>>,
    /// Group of each node.
    of: Vec<Option<usize>>,
    /// Nodes of prologues and rotations, which no other rule looks at.
    taken: HashSet<usize>,
}

impl Groups {
    pub fn of(body: &Body) -> Groups {
        let n = body.nodes.len();
        let prologues = prologues(body);
        let mut rotations = rotations(body);
        // What turns pairs of columns takes the second operand as it is.
        let as_it_is = |i: &usize, p: &Prepared| p.operand != body.nodes[*i].args[1];
        rotations.retain(|i, _| prologues.get(i).is_none_or(|p| as_it_is(i, p)));
        let before = prologues.values().flat_map(|p| &p.nodes);
        let taken = before.chain(rotations.values().flatten()).copied().collect();
        let mut groups = Groups { groups: Vec::new(), of: vec![None; n], taken };
        let users = body.users();
        for i in (0..n).filter(|i| !groups.taken.contains(i)).collect::<Vec<usize>>() {
            match &body.nodes[i].op {
                Op::Contract { .. } => {
                    let after = rotations.get(&i);
                    let kind = if after.is_some() { Kind::Rotary } else { Kind::Contraction };
                    groups.start(body, i, kind, Vec::new());
                    let before = prologues.get(&i).map(|p| &p.nodes);
                    groups.surround(before.into_iter().chain(after).flatten());
                }
                Op::Reduce { axes, .. } => groups.reduction(body, i, axes),
                op if op.class() == Class::Elementwise => groups.elementwise(body, &users, i),
                _ => {}
            }
        }
        groups.attach(body, &users);
        groups
    }

    fn start(&mut self, body: &Body, i: usize, kind: Kind, walked: Vec<Symbol>) {
        let node = &body.nodes[i];
        let of = if matches!(node.op, Op::Reduce { .. }) { node.args[0] } else { node.results[0] };
        let space = body.ty(of).axes.clone();
        self.of[i] = Some(self.groups.len());
        self.groups.push(Some(Group { kind, space, walked, nodes: vec![i] }));
    }

    /// These nodes go into the group that was started last.
    fn surround<'n>(&mut self, nodes: impl Iterator<Item = &'n usize>) {
        let g = self.groups.len() - 1;
        for n in nodes {
            self.of[*n] = Some(g);
            self.groups[g].as_mut().expect("started last").nodes.push(*n);
        }
        self.groups[g].as_mut().expect("started last").nodes.sort_unstable();
    }

    fn group(&self, g: usize) -> &Group {
        self.groups[g].as_ref().expect("a live group")
    }

    /// Groups that make this node's arguments, latest first.
    fn behind(&self, body: &Body, i: usize) -> Vec<usize> {
        let producers = body.producers();
        let mut found: Vec<usize> =
            body.nodes[i].args.iter().filter_map(|a| self.of[producers[a.index()]?]).collect();
        found.sort_unstable_by(|a, b| b.cmp(a));
        found.dedup();
        found
    }

    fn reduction(&mut self, body: &Body, i: usize, axes: &[Symbol]) {
        let ty = body.ty(body.nodes[i].args[0]);
        let tail = axis_names(&ty.axes[ty.axes.len() - axes.len()..]);
        let rows = axes.iter().all(|a| tail.contains(a));
        if !rows {
            self.start(body, i, Kind::Columns, axes.to_vec());
            self.pull(body, i);
            return;
        }
        for g in self.behind(body, i) {
            let group = self.group(g);
            let fits = match group.kind {
                Kind::Elementwise => group.space == ty.axes && self.rows_allow(body, g, &tail),
                Kind::Rows => group.space == ty.axes && group.walked == tail,
                Kind::Columns | Kind::Contraction | Kind::Rotary => false,
            };
            if fits && self.can_join(body, i, g) {
                let group = self.groups[g].as_mut().expect("a live group");
                group.kind = Kind::Rows;
                group.walked = tail;
                group.nodes.push(i);
                self.of[i] = Some(g);
                return;
            }
        }
        self.start(body, i, Kind::Rows, tail);
    }

    /// Do the values that a group has below its whole space fit rows without these axes?
    fn rows_allow(&self, body: &Body, g: usize, walked: &[Symbol]) -> bool {
        let group = self.group(g);
        let row: Vec<Axis> =
            group.space.iter().filter(|a| !walked.contains(&a.name)).copied().collect();
        group.nodes.iter().all(|n| {
            let ty = body.ty(body.nodes[*n].results[0]);
            let shaped = ty.axes == group.space || ty.axes == row;
            shaped && walks_as_one(body, &group.nodes, &group.space, walked, *n)
        })
    }

    /// The copied elementwise input of a column sum belongs to it alone.
    fn pull(&mut self, body: &Body, i: usize) {
        let g = self.of[i].expect("started above");
        let producers = body.producers();
        let users = body.users();
        let mut stack = body.nodes[i].args.clone();
        let mut members: HashSet<usize> = HashSet::from([i]);
        while let Some(v) = stack.pop() {
            let Some(p) = producers[v.index()] else {
                continue;
            };
            let own = users[v.index()].iter().all(|u| members.contains(u));
            let leaves = body.outputs.contains(&v);
            if body.nodes[p].op.class() != Class::Elementwise || !own || leaves {
                continue;
            }
            if let Some(old) = self.of[p] {
                self.leave(p, old);
            }
            members.insert(p);
            self.of[p] = Some(g);
            stack.extend(&body.nodes[p].args);
        }
        let mut nodes: Vec<usize> = members.into_iter().collect();
        nodes.sort_unstable();
        self.groups[g].as_mut().expect("a live group").nodes = nodes;
    }

    fn leave(&mut self, node: usize, g: usize) {
        let group = self.groups[g].as_mut().expect("a live group");
        group.nodes.retain(|n| *n != node);
        if group.nodes.is_empty() {
            self.groups[g] = None;
        }
    }

    fn elementwise(&mut self, body: &Body, users: &[Vec<usize>], i: usize) {
        let ty = body.ty(body.nodes[i].results[0]).clone();
        let mut joined = None;
        let mut candidates = self.behind(body, i);
        candidates.extend(self.siblings(body, users, i));
        for g in candidates {
            match joined {
                None if self.fits(body, users, i, &ty, g) && self.can_join(body, i, g) => {
                    let group = self.groups[g].as_mut().expect("a live group");
                    if ty.axes.len() > group.space.len() {
                        group.space = ty.axes.clone();
                    }
                    group.nodes.push(i);
                    self.of[i] = Some(g);
                    joined = Some(g);
                }
                Some(into) if into != g && self.groups[g].is_some() => {
                    self.try_merge(body, into, g);
                }
                _ => {}
            }
        }
        if joined.is_none() {
            self.start(body, i, Kind::Elementwise, Vec::new());
        }
    }

    /// Groups that read a value which this node reads too.
    fn siblings(&self, body: &Body, users: &[Vec<usize>], i: usize) -> Vec<usize> {
        let read = body.nodes[i].args.iter().filter(|a| !body.ty(**a).axes.is_empty());
        let mut found: Vec<usize> = read
            .flat_map(|a| &users[a.index()])
            .filter(|u| **u < i)
            .filter_map(|u| self.of[*u])
            .filter(|g| matches!(self.group(*g).kind, Kind::Elementwise | Kind::Rows))
            .collect();
        found.sort_unstable_by(|a, b| b.cmp(a));
        found.dedup();
        found
    }

    fn fits(&self, body: &Body, users: &[Vec<usize>], i: usize, ty: &Type, g: usize) -> bool {
        let group = self.group(g);
        match group.kind {
            // A sum is rounded by being stored, where nobody reads it as it was.
            Kind::Columns => {
                let (node, sum) = (&body.nodes[i], body.nodes[i].args[0]);
                node.op == Op::Cast(DType::Bf16)
                    && group.nodes.iter().any(|n| body.nodes[*n].results.contains(&sum))
                    && matches!(
                        body.nodes[group.nodes[group.nodes.len() - 1]].op,
                        Op::Reduce { .. }
                    )
                    && users[sum.index()] == [i]
                    && !body.outputs.contains(&sum)
            }
            // A contraction's result that has other readers is stored anyway: nothing would be won.
            Kind::Contraction => {
                ty.axes == group.space
                    && lies_along(body, &group.nodes, i)
                    && body.nodes[i].args.iter().any(|a| {
                        let of_group =
                            group.nodes.iter().any(|n| body.nodes[*n].results.contains(a));
                        of_group && users[a.index()] == [i]
                    })
            }
            Kind::Rotary => false,
            Kind::Rows => {
                (ty.axes == group.space || ty.axes == group.row())
                    && walks_as_one(body, &group.nodes, &group.space, &group.walked, i)
            }
            Kind::Elementwise => {
                let grown = ty.axes.len() == group.space.len() + 1
                    && ty.axes[..group.space.len()] == group.space
                    && group
                        .nodes
                        .iter()
                        .all(|n| body.ty(body.nodes[*n].results[0]).axes == group.space);
                ty.axes == group.space || grown || (!ty.axes.is_empty() && ty.axes == group.row())
            }
        }
    }

    /// Would node `i` in group `g` depend on the group through something outside?
    fn can_join(&self, body: &Body, i: usize, g: usize) -> bool {
        let producers = body.producers();
        let outside = body.nodes[i]
            .args
            .iter()
            .filter_map(|a| producers[a.index()])
            .filter(|p| self.of[*p] != Some(g))
            .collect();
        !self.depends(body, outside, &[g])
    }

    /// Does anything in `from` depend on a node of these groups?
    fn depends(&self, body: &Body, from: Vec<usize>, on: &[usize]) -> bool {
        let producers = body.producers();
        let mut seen = vec![false; body.nodes.len()];
        let mut stack = from;
        while let Some(n) = stack.pop() {
            if std::mem::replace(&mut seen[n], true) {
                continue;
            }
            let members = match self.of[n] {
                Some(g) if on.contains(&g) => return true,
                Some(g) => self.group(g).nodes.clone(),
                None => vec![n],
            };
            for m in members {
                seen[m] = true;
                let args = body.nodes[m].args.iter();
                stack.extend(args.filter_map(|a| producers[a.index()]).filter(|p| !seen[*p]));
            }
        }
        false
    }

    /// Puts group `g` into `into` where their shapes agree and no cycle comes of it.
    fn try_merge(&mut self, body: &Body, into: usize, g: usize) -> bool {
        let (a, b) = (self.group(into), self.group(g));
        let plain = |k: Kind| k == Kind::Elementwise;
        let kind = match (a.kind, b.kind) {
            (x, y) if x == y && matches!(x, Kind::Elementwise | Kind::Rows) => x,
            (Kind::Contraction, y) | (y, Kind::Contraction) if plain(y) => Kind::Contraction,
            (Kind::Rows, y) | (y, Kind::Rows) if plain(y) => Kind::Rows,
            _ => return false,
        };
        let walked = if a.walked.is_empty() { b.walked.clone() } else { a.walked.clone() };
        if a.space != b.space || (!b.walked.is_empty() && b.walked != walked) {
            return false;
        }
        let merged = Group { kind, space: a.space.clone(), walked, nodes: Vec::new() };
        let row = merged.row();
        let nodes: Vec<usize> = a.nodes.iter().chain(&b.nodes).copied().collect();
        let level = |n: &usize| {
            let node = &body.nodes[*n];
            let ty = body.ty(node.results[0]);
            ty.axes == merged.space || (kind != Kind::Contraction && ty.axes == row)
        };
        let along = |n: &usize| match kind {
            Kind::Contraction => lies_along(body, &nodes, *n),
            Kind::Rows => walks_as_one(body, &nodes, &merged.space, &merged.walked, *n),
            Kind::Elementwise | Kind::Columns | Kind::Rotary => true,
        };
        let fits = |n: &usize| self.taken.contains(n) || level(n) && along(n);
        if !nodes.iter().all(fits) || self.would_cycle(body, &nodes, &[into, g]) {
            return false;
        }
        let mut nodes = nodes;
        nodes.sort_unstable();
        for n in &nodes {
            self.of[*n] = Some(into);
        }
        self.groups[g] = None;
        self.groups[into] = Some(Group { nodes, ..merged });
        true
    }

    fn would_cycle(&self, body: &Body, nodes: &[usize], groups: &[usize]) -> bool {
        let producers = body.producers();
        let outside = nodes
            .iter()
            .flat_map(|n| &body.nodes[*n].args)
            .filter_map(|a| producers[a.index()])
            .filter(|p| !self.of[*p].is_some_and(|g| groups.contains(&g)))
            .collect();
        self.depends(body, outside, groups)
    }

    /// An elementwise group that is the only reader of a contraction's result becomes its epilogue.
    fn attach(&mut self, body: &Body, users: &[Vec<usize>]) {
        for g in 0..self.groups.len() {
            let Some(group) = &self.groups[g] else {
                continue;
            };
            if group.kind != Kind::Elementwise {
                continue;
            }
            for c in self.contractions_of(body, users, g) {
                if self.try_merge(body, c, g) {
                    break;
                }
            }
        }
    }

    fn contractions_of(&self, body: &Body, users: &[Vec<usize>], g: usize) -> Vec<usize> {
        let producers = body.producers();
        let mut found = Vec::new();
        for n in &self.group(g).nodes {
            for a in &body.nodes[*n].args {
                let Some(c) = producers[a.index()].and_then(|p| self.of[p]) else {
                    continue;
                };
                let alone = users[a.index()].iter().all(|u| self.of[*u] == Some(g));
                let contraction = self.group(c).kind == Kind::Contraction;
                if contraction && alone && !body.outputs.contains(a) {
                    found.push(c);
                }
            }
        }
        found.sort_unstable_by(|a, b| b.cmp(a));
        found.dedup();
        found
    }

    /// Groups and single nodes in an order in which everything is made before it is used; as in the
    /// body otherwise.
    pub fn order(&self, body: &Body) -> Vec<Unit<'_>> {
        let producers = body.producers();
        let mut done = vec![false; body.nodes.len()];
        let mut order = Vec::new();
        for i in 0..body.nodes.len() {
            self.visit(body, &producers, i, &mut done, &mut order);
        }
        order
    }

    fn visit<'g>(
        &'g self,
        body: &Body,
        producers: &[Option<usize>],
        i: usize,
        done: &mut [bool],
        order: &mut Vec<Unit<'g>>,
    ) {
        if done[i] {
            return;
        }
        let members: &[usize] = match self.of[i] {
            Some(g) => &self.group(g).nodes,
            None => &[i],
        };
        members.iter().for_each(|m| done[*m] = true);
        for m in members {
            for a in &body.nodes[*m].args {
                if let Some(p) = producers[a.index()] {
                    self.visit(body, producers, p, done, order);
                }
            }
        }
        order.push(match self.of[i] {
            Some(g) => Unit::Group(self.group(g)),
            None => Unit::Node(i),
        });
    }
}

/// Can a contraction's epilogue read what node `i` takes from outside? It walks the result as a
/// matrix: the axes of the first operand are the rows, the others the columns, and a tensor must
/// have one stride along each.
fn lies_along(body: &Body, group: &[usize], i: usize) -> bool {
    let contract = group.iter().map(|n| &body.nodes[*n]);
    let Some(node) = contract.into_iter().find(|n| matches!(n.op, Op::Contract { .. })) else {
        return false;
    };
    if matches!(body.nodes[i].op, Op::Contract { .. }) {
        return true;
    }
    let (first, space) = (body.ty(node.args[0]), &body.ty(node.results[0]).axes);
    let split = space.iter().take_while(|a| first.has(a.name)).count();
    one_stride(body, group, &[&space[..split], &space[split..]], i)
}

/// Has what node `i` takes from outside one stride along the walked axes, which a kernel walks as a
/// single one?
fn walks_as_one(body: &Body, group: &[usize], space: &[Axis], walked: &[Symbol], i: usize) -> bool {
    let axes: Vec<Axis> = space.iter().filter(|a| walked.contains(&a.name)).copied().collect();
    axes.len() < 2 || one_stride(body, group, &[&axes], i)
}

fn one_stride(body: &Body, group: &[usize], along: &[&[Axis]], i: usize) -> bool {
    let made = |id: &ValueId| group.iter().any(|n| body.nodes[*n].results.contains(id));
    body.nodes[i].args.iter().filter(|a| !made(a)).all(|a| has_one_stride(body.ty(*a), along))
}
