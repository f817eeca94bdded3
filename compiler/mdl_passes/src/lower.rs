//! From a fused graph to launches on placed values: which buffer each value lies in, and who reads
//! and writes it.
//!
//! Values are placed from the end: outputs ask for their buffers, a concatenation asks for its
//! parts, a repeated region asks that its first carry lies in its first slot. What nobody asks for
//! gets a buffer of its own. A carry has two slots that iterations take in turn, or one for every
//! iteration where the region also emits the carry it was given: then the history is the emitted
//! value, and nothing is copied.

use crate::executable::{Index, Space};
use crate::layout::{Loc, aligned, slice_stride, slice_type, through};
use crate::region::region_spec;
use mdl_ir::build::Builder;
use mdl_ir::graph::{Body, Node, ValueId};
use mdl_ir::kernel::{KernelSpec, Target, workspace_bytes};
use mdl_ir::op::{Kernel, Op};
use mdl_ir::place::Place;
use mdl_ir::tensor_type::{DType, Type};
use std::collections::HashMap;

/// A buffer before it has an offset.
#[derive(Clone, Debug)]
pub struct Buffer {
    pub name: String,
    pub bytes: u64,
    pub space: Space,
    /// Fixed place, in the state space or with the host's part of the state.
    pub state: Option<u64>,
    /// Launches between which it is in use.
    pub first: usize,
    pub last: usize,
    /// Where the model file says what lies in it.
    pub place: Place,
    /// In which loop it was made, if in one.
    pub(crate) inside: Option<usize>,
    /// How it is divided among ranks, where it is a part of a divided state.
    pub(crate) pieces: Option<Pieces>,
}

/// What a rank has of a parameter, its gradient or a moment: a piece of each slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pieces {
    pub ranks: u64,
    pub slices: u64,
    pub stacked: bool,
    /// Elements of a slice, and of a piece.
    pub len: u64,
    pub piece: u64,
}

/// An argument in bytes: a buffer, where from its start, and the slot it takes in each iteration.
#[derive(Clone, Debug)]
pub struct Use {
    pub buffer: usize,
    pub offset: u64,
    pub bytes: u64,
    pub index: Option<Index>,
}

#[derive(Clone, Debug)]
pub struct Planned {
    pub name: String,
    pub place: Place,
    pub spec: KernelSpec,
    pub uses: Vec<Use>,
    pub flops: u64,
    /// See `executable::Launch`.
    pub ahead: u64,
}

#[derive(Clone, Debug)]
pub enum Item {
    Launch(Box<Planned>),
    Loop { count: u64, body: Vec<Planned> },
}

/// Memory that a launch reads or writes, in elements: those of a place are counted in its values'
/// own size up to here, and in bytes from here on. What is left of the offset in `loc` is below the
/// alignment of buffers.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub loc: Loc,
    pub base: u64,
    pub elements: u64,
    pub dtype: DType,
}

impl Access {
    fn in_bytes(&self) -> Use {
        let each = self.dtype.bytes();
        let index = self.loc.turn.map(|t| Index {
            stride: t.stride * each,
            start: t.start,
            step: t.step,
            slots: t.slots,
        });
        let (offset, bytes) = (self.base * each, self.elements * each);
        Use { buffer: self.loc.buffer, offset, bytes, index }
    }
}

pub(crate) fn trimmed(loc: &Loc, ty: &Type) -> Loc {
    Loc { offset: loc.offset % aligned(ty.dtype), ..loc.clone() }
}

pub(crate) fn access(loc: &Loc, ty: &Type) -> Access {
    let rest = trimmed(loc, ty);
    let (base, elements) = (loc.offset - rest.offset, extent(&rest, ty));
    Access { base, elements, loc: rest, dtype: ty.dtype }
}

pub type Places = HashMap<ValueId, Loc>;
pub(crate) type Done<T> = Result<T, String>;

/// The loop that is being written: iteration i sees slice `i`, or the slices from the last one on.
#[derive(Clone, Debug)]
pub(crate) struct Loop {
    pub number: usize,
    pub body: Vec<Planned>,
    /// Buffers from outside that are used in the loop.
    pub touched: Vec<usize>,
}

#[derive(Debug, Default)]
pub struct Lowering {
    pub target: Target,
    pub buffers: Vec<Buffer>,
    pub items: Vec<Item>,
    pub clock: usize,
    pub(crate) current: Option<Loop>,
    pub(crate) loops: usize,
    /// Where the model file says what is being lowered.
    pub(crate) here: Place,
}

impl Lowering {
    pub fn new(target: Target) -> Lowering {
        Lowering { target, ..Lowering::default() }
    }

    pub fn buffer(&mut self, name: &str, bytes: u64, state: Option<u64>) -> usize {
        self.buffers.push(Buffer {
            name: name.to_string(),
            bytes: bytes.max(4),
            space: if state.is_some() { Space::State } else { Space::Work },
            state,
            first: usize::MAX,
            last: 0,
            place: self.here,
            inside: self.current.as_ref().map(|l| l.number),
            pieces: None,
        });
        self.buffers.len() - 1
    }

    pub(crate) fn fresh(&mut self, name: &str, ty: &Type) -> Loc {
        Loc::dense(self.buffer(name, ty.bytes(), None), ty)
    }

    /// Marks a buffer as in use now.
    pub fn touch(&mut self, buffer: usize) {
        let clock = self.clock;
        let entry = &mut self.buffers[buffer];
        entry.first = entry.first.min(clock);
        entry.last = entry.last.max(clock);
        if let Some(l) = &mut self.current
            && entry.inside != Some(l.number)
        {
            l.touched.push(buffer);
        }
    }

    pub(crate) fn launch(&mut self, name: &str, spec: KernelSpec, args: &[Access], flops: u64) {
        let mut uses: Vec<Use> = args.iter().map(Access::in_bytes).collect();
        let workspace = workspace_bytes(&spec, self.target);
        if workspace > 0 {
            let buffer = self.buffer(&format!("{name}.workspace"), workspace, None);
            uses.push(Use { buffer, offset: 0, bytes: workspace, index: None });
        }
        for u in &uses {
            self.touch(u.buffer);
        }
        self.clock += 1;
        let (name, place) = (name.to_string(), self.here);
        let planned = Planned { name, place, spec, uses, flops, ahead: 0 };
        match &mut self.current {
            Some(l) => l.body.push(planned),
            None => self.items.push(Item::Launch(Box::new(planned))),
        }
    }

    /// Copies a value to another place.
    pub fn copy(&mut self, name: &str, ty: &Type, from: &Loc, to: &Loc) -> Done<()> {
        let mut body = Body::default();
        let value = mdl_ir::graph::Value { name: name.into(), ty: ty.clone() };
        body.values = vec![value.clone(), value];
        body.inputs = vec![ValueId(0)];
        body.outputs = vec![ValueId(1)];
        body.nodes = vec![Node {
            op: Op::StopGradient,
            args: vec![ValueId(0)],
            results: vec![ValueId(1)],
            span: Default::default(),
        }];
        let args = [access(from, ty), access(to, ty)];
        let locs = args.clone().map(|a| a.loc);
        let spec = region_spec(&body, &[], &locs[..1], &locs[1..])?;
        self.launch(&format!("{name}.copy"), KernelSpec::Region(spec), &args, 0);
        Ok(())
    }

    pub(crate) fn zeros(&mut self, name: &str, ty: &Type, to: &Loc) -> Done<()> {
        let mut b = Builder::default();
        let zero = b.number(0.0, Default::default());
        let broadcast = Op::Broadcast { axes: ty.axes.clone() };
        let zeros = b.push(broadcast, &[zero], Default::default())?;
        let zeros = b.push(Op::Cast(ty.dtype), &[zeros], Default::default())?;
        let to = access(to, ty);
        let spec = region_spec(&b.finish(vec![zeros]), &[], &[], std::slice::from_ref(&to.loc))?;
        self.launch(&format!("{name}.zeros"), KernelSpec::Region(spec), &[to], 0);
        Ok(())
    }

    /// A dense place of this value, copied if it lies otherwise.
    pub(crate) fn dense(&mut self, name: &str, ty: &Type, loc: &Loc) -> Done<Loc> {
        if trimmed(loc, ty).is_dense(ty) {
            return Ok(loc.clone());
        }
        let to = self.fresh(name, ty);
        self.copy(name, ty, loc, &to)?;
        Ok(to)
    }

    /// Lowers a body whose inputs are placed; outputs end up where `wanted` says, or anywhere.
    pub fn body(&mut self, body: &Body, places: &mut Places, mut wanted: Places) -> Done<()> {
        let carries = self.ask(body, places, &mut wanted);
        let asked = wanted.clone();
        for (i, node) in body.nodes.iter().enumerate() {
            self.node(body, node, i, places, &wanted, &carries)?;
        }
        for out in &body.outputs {
            if let Some(to) = asked.get(out)
                && places[out] != *to
            {
                let from = places[out].clone();
                self.copy(&body.name(*out), body.ty(*out), &from, to)?;
            }
        }
        Ok(())
    }

    fn node(
        &mut self,
        body: &Body,
        node: &Node,
        i: usize,
        places: &mut Places,
        wanted: &Places,
        carries: &HashMap<(usize, usize), usize>,
    ) -> Done<()> {
        self.here = node.span;
        match &node.op {
            Op::Repeat { .. } => return self.repeat(body, node, i, places, wanted, carries),
            Op::Transfer { to } => return self.transfer(body, node, *to, places, wanted),
            Op::Collective { kind, group } => {
                return self.collective(body, node, (*kind, *group), places, wanted);
            }
            Op::Rename { .. } | Op::Split { .. } | Op::Merge { .. } | Op::Slice { .. } => {
                let (from, ty) = (places[&node.args[0]].clone(), body.ty(node.args[0]));
                let loc = match through(&node.op, &from, ty) {
                    Some(loc) => loc,
                    None => {
                        let dense = self.dense(&body.name(node.args[0]), ty, &from)?;
                        through(&node.op, &dense, ty).ok_or("a dense tensor takes every view")?
                    }
                };
                places.insert(node.results[0], loc);
                return Ok(());
            }
            Op::Concat { axis, into } => {
                return self.concat(body, node, (*axis, into), places, wanted);
            }
            Op::Pad { start, into, .. } => return self.pad(body, node, (*start, into), places),
            _ => {}
        }
        if let Op::Call { kernel: Kernel::AdamW, body: inner, .. } = &node.op {
            return self.adamw(body, node, inner, places);
        }
        // Results first: a kernel that works in place finds its base there.
        let mut results = Vec::new();
        for r in &node.results {
            let ty = body.ty(*r);
            let loc = match wanted.get(r) {
                Some(loc) if trimmed(loc, ty).is_dense(ty) || is_region(&node.op) => loc.clone(),
                _ => self.fresh(&body.name(*r), ty),
            };
            results.push(loc);
        }
        if let Op::CacheWrite { .. } = &node.op {
            results[0] = places[&node.args[1]].clone();
        }
        self.kernel(body, node, &results, places)?;
        places.extend(node.results.iter().copied().zip(results));
        Ok(())
    }

    fn concat(
        &mut self,
        body: &Body,
        node: &Node,
        (axis, into): (mdl_symbol::Symbol, &mdl_ir::tensor_type::Axis),
        places: &mut Places,
        wanted: &Places,
    ) -> Done<()> {
        let whole = wanted[&node.results[0]].clone();
        let at = body.ty(node.results[0]).index_of(into.name).expect("verified");
        let mut start = 0;
        for a in &node.args {
            let mut part = whole.clone();
            part.offset += start * whole.strides[at];
            let ty = body.ty(*a);
            start += ty.axis(axis).expect("verified").size;
            if places[a] != part {
                let from = places[a].clone();
                self.copy(&body.name(*a), ty, &from, &part)?;
            }
        }
        places.insert(node.results[0], whole);
        Ok(())
    }

    /// Zeros first, then the argument in their middle.
    fn pad(
        &mut self,
        body: &Body,
        node: &Node,
        (start, into): (u64, &mdl_ir::tensor_type::Axis),
        places: &mut Places,
    ) -> Done<()> {
        let (result, argument) = (node.results[0], node.args[0]);
        let (name, ty) = (body.name(result), body.ty(result));
        let whole = self.fresh(&name, ty);
        self.zeros(&name, ty, &whole)?;
        let mut part = whole.clone();
        part.offset += start * whole.stride(ty, into.name);
        let from = places[&argument].clone();
        self.copy(&body.name(argument), body.ty(argument), &from, &part)?;
        places.insert(result, whole);
        Ok(())
    }
}

pub(crate) fn is_region(op: &Op) -> bool {
    matches!(op, Op::Call { kernel: Kernel::Region, .. })
}

/// A stacked value from the start of a buffer, its slices aligned.
pub fn stacked_loc(buffer: usize, ty: &Type) -> Loc {
    let slice = slice_type(ty);
    slices_loc(buffer, &slice, slice_stride(&slice))
}

/// Slices from the start of a buffer, so many elements from each to the next.
pub fn slices_loc(buffer: usize, slice: &Type, stride: u64) -> Loc {
    let mut strides = vec![stride];
    strides.extend(slice.strides());
    Loc { buffer, offset: 0, strides, turn: None }
}

/// Elements from the start of a value's buffer (or slot) to its end.
pub fn extent(loc: &Loc, ty: &Type) -> u64 {
    let last: u64 = ty.axes.iter().zip(&loc.strides).map(|(a, s)| (a.size - 1) * s).sum();
    loc.offset + last + 1
}
