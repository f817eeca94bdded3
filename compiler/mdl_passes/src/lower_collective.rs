//! Collectives: pieces of the state on one side, whole slices on the other.
//!
//! In a loop a whole slice has two slots that iterations take in turn, as what is transferred has,
//! and is gathered one iteration ahead. Outside of loops, what a region would see by slices goes
//! slice by slice.

use crate::layout::{Loc, Turn};
use crate::lower::{Access, Done, Lowering, Pieces, Places, access};
use crate::region::elem;
use mdl_ir::graph::{Body, Node};
use mdl_ir::kernel::KernelSpec;
use mdl_ir::kernel::collective::CollectiveSpec;
use mdl_ir::op::{Collective, Group};
use mdl_ir::tensor_type::{DType, Type};

/// A run of elements from an element of a place on.
fn run(loc: &Loc, elements: u64, dtype: DType) -> Access {
    let place = Loc { offset: 0, strides: vec![1], ..loc.clone() };
    Access { loc: place, base: loc.offset, elements, dtype }
}

/// Slice after slice, `stride` elements apart.
fn by_slices(loc: &Loc, stride: u64) -> Loc {
    Loc { turn: Some(Turn { stride, start: 0, step: 1, slots: 0 }), ..loc.clone() }
}

impl Lowering {
    pub(crate) fn collective(
        &mut self,
        body: &Body,
        node: &Node,
        (kind, group): (Collective, Group),
        places: &mut Places,
        wanted: &Places,
    ) -> Done<()> {
        let result = node.results[0];
        let place = match kind {
            Collective::AllGather => self.all_gather(body, node, group, places, wanted)?,
            Collective::ReduceScatter => self.reduce_scatter(body, node, group, places, wanted)?,
            Collective::AllReduce => self.all_reduce(body, node, group, places, wanted)?,
        };
        places.insert(result, place);
        Ok(())
    }

    fn pieces(&self, loc: &Loc) -> Done<Pieces> {
        self.buffers[loc.buffer].pieces.ok_or_else(|| "a piece is a part of the state".into())
    }

    /// Whole slices, from this rank's piece and those of the others.
    fn all_gather(
        &mut self,
        body: &Body,
        node: &Node,
        group: Group,
        places: &Places,
        wanted: &Places,
    ) -> Done<Loc> {
        let (value, result) = (node.args[0], node.results[0]);
        let (name, from) = (body.name(result), places[&value].clone());
        let dtype = body.ty(value).dtype;
        let pieces = self.pieces(&from)?;
        let whole = group.ranks * pieces.piece;
        let spec = spec(Collective::AllGather, group, pieces, dtype);
        if self.current.is_some() {
            let to = wanted.get(&result).ok_or("what is gathered in a loop has slots")?;
            let args = [run(&from, pieces.piece, dtype), run(to, whole, dtype)];
            self.moving_launch(&name, spec, &args, 1);
            return Ok(to.clone());
        }
        let buffer = self.buffer(&name, pieces.slices * whole * dtype.bytes(), None);
        let to = Loc { buffer, offset: 0, strides: from.strides.clone(), turn: None };
        if !pieces.stacked {
            let args = [run(&from, pieces.piece, dtype), run(&to, whole, dtype)];
            self.moving_launch(&name, spec, &args, 0);
            return Ok(to);
        }
        let begin = self.open_loop();
        let from = by_slices(&from, pieces.piece);
        let each = run(&by_slices(&to, whole), whole, dtype);
        self.moving_launch(&name, spec, &[run(&from, pieces.piece, dtype), each], 0);
        self.close_loop(pieces.slices, begin)?;
        Ok(Loc { strides: [&[whole], &to.strides[1..]].concat(), ..to })
    }

    /// A rank's piece of the sum of all ranks' slices.
    fn reduce_scatter(
        &mut self,
        body: &Body,
        node: &Node,
        group: Group,
        places: &Places,
        wanted: &Places,
    ) -> Done<Loc> {
        let (value, result) = (node.args[0], node.results[0]);
        let (name, ty) = (body.name(result), body.ty(value));
        let to = wanted.get(&result).ok_or("what is reduced has a place")?.clone();
        let pieces = self.pieces(&to)?;
        let spec = spec(Collective::ReduceScatter, group, pieces, ty.dtype);
        if self.current.is_some() {
            let from = self.lasting(body, value, places, wanted)?;
            let args = [run(&from, pieces.len, ty.dtype), run(&to, pieces.piece, ty.dtype)];
            self.moving_launch(&name, spec, &args, 0);
            return Ok(to);
        }
        let from = places[&value].clone();
        if !pieces.stacked {
            let from = self.dense(&name, ty, &from)?;
            let args = [run(&from, pieces.len, ty.dtype), run(&to, pieces.piece, ty.dtype)];
            self.moving_launch(&name, spec, &args, 0);
            return Ok(to);
        }
        let slice = Type::new(ty.dtype, ty.axes[1..].to_vec());
        let from = match from.strides[1..] == slice.strides() {
            true => from,
            false => self.dense(&name, ty, &from)?,
        };
        let begin = self.open_loop();
        let each = run(&by_slices(&from, from.strides[0]), pieces.len, ty.dtype);
        let piece = run(&by_slices(&to, pieces.piece), pieces.piece, ty.dtype);
        self.moving_launch(&name, spec, &[each, piece], 0);
        self.close_loop(pieces.slices, begin)?;
        Ok(to)
    }

    /// The sum of what all ranks have, in its place.
    fn all_reduce(
        &mut self,
        body: &Body,
        node: &Node,
        group: Group,
        places: &Places,
        wanted: &Places,
    ) -> Done<Loc> {
        let (value, result) = (node.args[0], node.results[0]);
        let (name, ty, from) = (body.name(result), body.ty(value), places[&value].clone());
        let place = wanted.get(&result).unwrap_or(&from).clone();
        if place != from {
            self.copy(&name, ty, &from, &place)?;
        }
        let all = match self.buffers[place.buffer].pieces {
            Some(p) if self.current.is_some() => run(&place, p.piece, ty.dtype),
            Some(p) => run(&place, p.slices * p.piece, ty.dtype),
            None => access(&place, ty),
        };
        let (len, piece) = (all.elements, all.elements);
        let kind = Collective::AllReduce;
        let spec = CollectiveSpec { kind, group, elem: elem(ty.dtype), len, piece };
        self.moving_launch(&name, KernelSpec::Collective(spec), &[all], 0);
        Ok(place)
    }
}

fn spec(
    kind: Collective,
    group: Group,
    Pieces { len, piece, .. }: Pieces,
    dtype: DType,
) -> KernelSpec {
    KernelSpec::Collective(CollectiveSpec { kind, group, elem: elem(dtype), len, piece })
}
