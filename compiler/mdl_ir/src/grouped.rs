//! Grouped contractions: what a model writes as a contraction with gathered matrices.
//!
//! `sum[K](x * gather[E](w, ids))` means a matrix for every id, which nobody could store. Every
//! row of x is multiplied by the matrix of its group instead.

use crate::build::{Builder, axis_names};
use crate::graph::{Node, ValueId};
use crate::op::Op;
use crate::place::Place;
use crate::tensor_type::{Axis, Type};
use mdl_symbol::Symbol;

impl Builder {
    /// The contraction of `a` and `b` over `axes` by groups, where one of them is gathered and the
    /// other one has rows and summed axes alone.
    pub(crate) fn grouped(
        &mut self,
        a: ValueId,
        b: ValueId,
        axes: &[Symbol],
        span: Place,
    ) -> Option<ValueId> {
        [(a, b), (b, a)].into_iter().find_map(|(x, gathered)| {
            let Node { op: Op::Gather { axis }, args, .. } = self.op(gathered)? else {
                return None;
            };
            let (axis, table, ids) = (*axis, args[0], args[1]);
            let rows = self.ty(ids);
            let fits = !rows.axes.is_empty()
                && self.ty(x).axes.iter().all(|k| rows.has(k.name) || axes.contains(&k.name))
                && axes.iter().all(|k| self.ty(table).has(*k));
            if !fits {
                return None;
            }
            self.grouped_contract(x, table, ids, (axis, axes), span).ok()
        })
    }

    /// `Op::GroupedContract` with its operands laid out as the kernel reads them.
    pub fn grouped_contract(
        &mut self,
        a: ValueId,
        table: ValueId,
        ids: ValueId,
        (axis, over): (Symbol, &[Symbol]),
        span: Place,
    ) -> Result<ValueId, String> {
        let ty = self.ty(table).clone();
        let (summed, own): (Vec<Axis>, Vec<Axis>) = ty
            .axes
            .iter()
            .filter(|x| x.name != axis)
            .copied()
            .partition(|x| over.contains(&x.name));
        let a = self.rows_first(a, ids, &summed, span)?;
        let in_order = |first: &[Axis], second: &[Axis]| -> Vec<Symbol> {
            let names = axis_names(first).into_iter().chain(axis_names(second));
            std::iter::once(axis).chain(names).collect()
        };
        let (plain, transposed) = (in_order(&own, &summed), in_order(&summed, &own));
        let there = axis_names(&ty.axes);
        let table = match there == plain || there == transposed {
            true => table,
            false => self.push(Op::Reorder { axes: plain }, &[table], span)?,
        };
        let axes = axis_names(&summed);
        self.push(Op::GroupedContract { axis, axes }, &[a, table, ids], span)
    }

    /// `Op::GroupedOuter` with its operands laid out as the kernel reads them.
    pub fn grouped_outer(
        &mut self,
        a: ValueId,
        b: ValueId,
        ids: ValueId,
        axis: &Axis,
        span: Place,
    ) -> Result<ValueId, String> {
        let rows = self.ty(ids).clone();
        let own = |ty: &Type| -> Vec<Axis> {
            ty.axes.iter().filter(|x| !rows.has(x.name)).copied().collect()
        };
        let (own_a, own_b) = (own(self.ty(a)), own(self.ty(b)));
        let a = self.rows_first(a, ids, &own_a, span)?;
        let b = self.rows_first(b, ids, &own_b, span)?;
        self.push(Op::GroupedOuter { axis: *axis }, &[a, b, ids], span)
    }

    /// A value with its rows first, in the order of the ids. It may lack the innermost of them, and
    /// is repeated along any other that it lacks.
    fn rows_first(
        &mut self,
        value: ValueId,
        ids: ValueId,
        others: &[Axis],
        span: Place,
    ) -> Result<ValueId, String> {
        let (ty, rows) = (self.ty(value).clone(), self.ty(ids).axes.clone());
        let here = rows.iter().take_while(|x| ty.has(x.name)).count();
        let later = rows[here..].iter().any(|x| ty.has(x.name));
        let kept = if later { &rows[..] } else { &rows[..here] };
        let axes: Vec<Axis> = kept.iter().chain(others).copied().collect();
        if later {
            return self.push(Op::Broadcast { axes }, &[value], span);
        }
        self.push(Op::Reorder { axes: axis_names(&axes) }, &[value], span)
    }
}
