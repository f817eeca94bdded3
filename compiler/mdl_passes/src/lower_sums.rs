//! Sums that do not know how a state is divided among ranks: the gradient norm, and partial sums of
//! gradients over micro-batches.

use crate::layout::{Loc, Turn, aligned, parts_of_a_piece};
use crate::lower::{Access, Done, Lowering, access};
use crate::lower_state::{chunk, loops};
use crate::plan::{Section, StateLayout};
use crate::region::{elem, region_spec};
use mdl_ir::build::Builder;
use mdl_ir::graph::{Body, ValueId};
use mdl_ir::kernel::{KernelSpec, SumOfSquaresSpec};
use mdl_ir::op::{Binary, Op};
use mdl_ir::place::Place;
use mdl_ir::tensor_type::{Axis, DType, Type};

/// Terms of one type, added up in a binary tree and stored as they are.
fn tree(ty: &Type, terms: usize) -> Done<Body> {
    let mut b = Builder::default();
    let mut sums: Vec<ValueId> = (0..terms).map(|_| b.input("term", ty.clone())).collect();
    while sums.len() > 1 {
        let add = |pair: &[ValueId]| match pair {
            [x, y] => {
                let sum = b.binary(Binary::Add, *x, *y, Place::default())?;
                b.push(Op::Cast(ty.dtype), &[sum], Place::default())
            }
            _ => Ok(pair[0]),
        };
        sums = sums.chunks(2).map(add).collect::<Result<_, _>>()?;
    }
    Ok(b.finish(sums))
}

impl Lowering {
    /// The sum of squares of what a rank has of each gradient. Parts of slices are summed up by
    /// themselves, then in a binary tree that goes on over the ranks: its bits do not depend on how
    /// many those are.
    pub(crate) fn squares_in_parts(
        &mut self,
        name: &str,
        gradients: &[Access],
        to: &Access,
    ) -> Done<()> {
        let pieces: Option<Vec<_>> =
            gradients.iter().map(|a| self.buffers[a.loc.buffer].pieces).collect();
        let pieces = pieces.ok_or("every gradient of a divided state has pieces")?;
        let pair = Type::new(DType::F32, vec![Axis::new("pair", 2)]);
        let mut sums = Vec::new();
        for _ in 0..parts_of_a_piece(pieces[0].ranks) {
            let loc = self.fresh(name, &pair);
            self.zeros(name, &pair, &loc)?;
            sums.push(access(&loc, &pair));
        }
        for (gradient, pieces) in gradients.iter().zip(pieces) {
            let len = pieces.piece / sums.len() as u64;
            let turn = Some(Turn { stride: pieces.piece, start: 0, step: 1, slots: 0 });
            let loc = Loc { turn, offset: 0, strides: vec![1], ..gradient.loc.clone() };
            let begin = self.open_loop();
            for (part, sum) in sums.iter().enumerate() {
                let (base, dtype) = (part as u64 * len, gradient.dtype);
                let part = Access { loc: loc.clone(), base, elements: len, dtype };
                let spec = SumOfSquaresSpec { len, elem: elem(dtype) };
                let spec = KernelSpec::MoreSquares(spec);
                self.launch(name, spec, &[part, sum.clone()], 2 * len);
            }
            self.close_loop(pieces.slices, begin)?;
        }
        self.sum_in_a_tree(name, &sums, to)
    }

    /// The first numbers of pairs, added up to one.
    fn sum_in_a_tree(&mut self, name: &str, pairs: &[Access], to: &Access) -> Done<()> {
        let scalar = Type::scalar(DType::F32);
        let first = |a: &Access| Loc { strides: Vec::new(), ..a.loc.clone() };
        let terms: Vec<Loc> = pairs.iter().map(first).collect();
        let to = first(to);
        if let [only] = &terms[..] {
            return self.copy(name, &scalar, only, &to);
        }
        let body = tree(&scalar, terms.len())?;
        let spec = region_spec(&body, &[], &terms, std::slice::from_ref(&to))?;
        let args: Vec<Access> = terms.iter().chain([&to]).map(|l| access(l, &scalar)).collect();
        self.launch(name, KernelSpec::Region(spec), &args, terms.len() as u64 - 1);
        Ok(())
    }

    /// Adds sections of gradients to others, as the layout says.
    pub(crate) fn add_sections(&mut self, state: &StateLayout) -> Done<()> {
        let elements = state.len;
        for (from, to) in &state.sums {
            let (_, dtype) = state.section(*to);
            let mut section = |section: Section| {
                let at = state.bytes_of(state.section(section).0);
                let buffer = self.buffer("partial sums", elements * dtype.bytes(), Some(at));
                let loc = Loc { buffer, offset: 0, strides: vec![1], turn: None };
                Access { loc, base: 0, elements, dtype }
            };
            let (from, to) = (section(*from), section(*to));
            for (len, count, start) in loops(elements, aligned(dtype)) {
                let ty = Type::new(dtype, vec![Axis::new("chunk", len)]);
                let (from, to) = (chunk(&from, len, start), chunk(&to, len, start));
                let locs = [from.loc.clone(), to.loc.clone()];
                let spec = region_spec(&tree(&ty, 2)?, &[], &locs, &locs[1..])?;
                let begin = self.open_loop();
                let args = [from, to.clone(), to];
                self.launch("partial sums", KernelSpec::Region(spec), &args, len);
                self.close_loop(count, begin)?;
            }
        }
        Ok(())
    }
}
