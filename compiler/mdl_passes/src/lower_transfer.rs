//! Transfers between the device's memory and the host's, with the slots of device memory that they
//! fill and empty.
//!
//! A value that leaves in an iteration, or comes back for one, lies in two slots that iterations
//! take in turn: while kernels work on one of them, the transfer of a neighbouring iteration has
//! the other. What comes back is asked for one iteration ahead.

use crate::executable::Space;
use crate::layout::{Loc, Turn, aligned, piece, slice_bytes, slice_type};
use crate::lower::{Access, Done, Lowering, Places, access, extent, stacked_loc, trimmed};
use mdl_ir::graph::{Body, Node, ValueId};
use mdl_ir::kernel::KernelSpec;
use mdl_ir::op::{Collective, Memory, Op};
use mdl_ir::tensor_type::{DType, Type};

/// Slots of what is transferred: one that kernels use and one on its way.
pub const SLOTS: u64 = 2;

impl Lowering {
    /// A stacked value in the host's memory.
    pub(crate) fn host(&mut self, name: &str, ty: &Type) -> Loc {
        let buffer = self.buffer(name, slice_bytes(ty.axes[0].size, &slice_type(ty)), None);
        self.buffers[buffer].space = Space::Host;
        stacked_loc(buffer, ty)
    }

    /// Slots for this many elements, of which each iteration has one.
    pub(crate) fn slots(&mut self, name: &str, elements: u64, dtype: DType) -> Access {
        let stride = elements.next_multiple_of(aligned(dtype));
        let buffer = self.buffer(name, SLOTS * stride * dtype.bytes(), None);
        let turn = Some(Turn { stride, start: 0, step: 1, slots: SLOTS });
        Access { loc: Loc { buffer, offset: 0, strides: vec![1], turn }, base: 0, elements, dtype }
    }

    /// Asks, before the loop over this body begins, for the device's side of its transfers. Carries
    /// have slots already, and so has what is emitted besides. What comes from where something
    /// leaves to is what that is added to, in the same slots.
    pub(crate) fn stage(&mut self, body: &Body, inside: &Places, asked: &mut Places) {
        let mut brought: Vec<(Loc, Loc)> = Vec::new();
        for node in &body.nodes {
            let value = match node.op {
                Op::Transfer { to: Memory::Host } => node.args[0],
                Op::Transfer { to: Memory::Device } => node.results[0],
                Op::Collective { kind: Collective::ReduceScatter, .. } => node.args[0],
                Op::Collective { kind: Collective::AllGather, .. } => node.results[0],
                _ => continue,
            };
            if inside.contains_key(&value) || asked.contains_key(&value) {
                continue;
            }
            let (name, ty) = (body.name(value), body.ty(value));
            let there = asked.get(&node.results[0]);
            if let Some((_, slots)) = brought.iter().find(|(from, _)| Some(from) == there) {
                asked.insert(value, slots.clone());
                continue;
            }
            let elements = match node.op {
                Op::Collective { group, .. } => group.ranks * piece(ty, group.ranks),
                _ => ty.elements(),
            };
            let slots = Loc { strides: ty.strides(), ..self.slots(&name, elements, ty.dtype).loc };
            if let Some(from) = inside.get(&node.args[0]) {
                brought.push((from.clone(), slots.clone()));
            }
            asked.insert(value, slots);
        }
    }

    pub(crate) fn transfer(
        &mut self,
        body: &Body,
        node: &Node,
        to: Memory,
        places: &mut Places,
        wanted: &Places,
    ) -> Done<()> {
        let (value, result) = (node.args[0], node.results[0]);
        let (name, ty) = (body.name(result), body.ty(value));
        if self.current.is_none() {
            return self.transfer_whole(body, node, to, places, wanted);
        }
        let from = match to {
            Memory::Host => self.lasting(body, value, places, wanted)?,
            Memory::Device => places[&value].clone(),
        };
        let there = wanted.get(&result).ok_or("a transfer has a place in the other memory")?;
        let args = [access(&from, ty), access(there, ty)];
        self.transfer_launch(&name, args, u64::from(to == Memory::Device));
        places.insert(result, there.clone());
        Ok(())
    }

    /// Where a value leaves from in a loop: its slots, unless it lasts where it is.
    pub(crate) fn lasting(
        &mut self,
        body: &Body,
        value: ValueId,
        places: &Places,
        wanted: &Places,
    ) -> Done<Loc> {
        let (from, ty) = (places[&value].clone(), body.ty(value));
        // The memory of a value that only its iteration knows would be taken before it is copied.
        if self.buffers[from.buffer].inside.is_none() && trimmed(&from, ty).is_dense(ty) {
            return Ok(from);
        }
        let slots = wanted.get(&value).ok_or("what leaves a loop has slots")?;
        self.copy(&body.name(value), ty, &from, slots)?;
        Ok(slots.clone())
    }

    /// A transfer outside loops, of all of a value.
    fn transfer_whole(
        &mut self,
        body: &Body,
        node: &Node,
        to: Memory,
        places: &mut Places,
        wanted: &Places,
    ) -> Done<()> {
        let (value, result) = (node.args[0], node.results[0]);
        let (name, ty) = (body.name(result), body.ty(value));
        let from = places[&value].clone();
        let like = |low: &mut Lowering, there: &Loc| {
            let buffer =
                low.buffer(&name, extent(&trimmed(there, ty), ty) * ty.dtype.bytes(), None);
            Loc { buffer, offset: 0, strides: there.strides.clone(), turn: None }
        };
        let (from, there) = match to {
            Memory::Device => {
                let there = like(self, &from);
                (from, there)
            }
            Memory::Host => {
                let there = wanted.get(&result).ok_or("what leaves has a place")?.clone();
                if from.strides == there.strides && trimmed(&from, ty).offset == 0 {
                    (from, there)
                } else {
                    let staged = like(self, &there);
                    self.copy(&name, ty, &from, &staged)?;
                    (staged, there)
                }
            }
        };
        self.transfer_launch(&name, [access(&from, ty), access(&there, ty)], 0);
        places.insert(result, there);
        Ok(())
    }

    /// One transfer, issued this many iterations ahead where it is in a loop.
    pub(crate) fn transfer_launch(&mut self, name: &str, args: [Access; 2], ahead: u64) {
        self.moving_launch(name, KernelSpec::Transfer, &args, ahead);
    }

    /// One launch of the queue that moves bytes.
    pub(crate) fn moving_launch(
        &mut self,
        name: &str,
        spec: KernelSpec,
        args: &[Access],
        ahead: u64,
    ) {
        self.launch(name, spec, args, 0);
        if let Some(planned) = self.current.as_mut().and_then(|l| l.body.last_mut()) {
            planned.ahead = ahead;
        }
    }
}
