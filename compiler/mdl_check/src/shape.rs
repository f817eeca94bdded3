//! The axes of what an operation gives, in symbols: what a check knows of a value.
//!
//! `mdl_ir::infer` has the same rules for graphs. Callers have compared sizes as polynomials, which
//! are blind to one name with two numbers, so where numbers do not fit nothing is known here.

use crate::size::Size;
use crate::value::{SymAxis, TensorVal};
use mdl_ir::op::{Op, Unary};
use mdl_ir::tensor_type::DType;
use mdl_symbol::Symbol;
use mdl_syntax::span::Span;
use std::rc::Rc;

/// The element type and the axes of `op` on `args`, where `new` are the axes that it makes. None
/// where the operation is not one that a model file asks for, or does not fit.
pub fn result(
    op: &Op,
    args: &[&TensorVal],
    new: &[SymAxis],
    at: Span,
) -> Option<(DType, Rc<[SymAxis]>)> {
    let first = args.first();
    let like = || first.map(|t| (t.dtype, t.axes.clone()));
    let with = |axes: Vec<SymAxis>| first.map(|t| (t.dtype, axes.into()));
    match op {
        Op::Position(_) => Some((DType::F32, new.into())),
        Op::Random { axes, .. } => {
            let numbered = |name, size| SymAxis { name, size: Size::number(size), origin: at };
            Some((DType::F32, axes.iter().map(|a| numbered(a.name, a.size)).collect()))
        }
        Op::Unary(Unary::Not) | Op::StopGradient => like(),
        Op::Unary(_) => first.map(|t| (t.dtype.computed(), t.axes.clone())),
        Op::Cast(dtype) => first.map(|t| (*dtype, t.axes.clone())),
        Op::Binary(op) => Some((mdl_ir::infer::binary_dtype(*op), union(args)?)),
        Op::Select => Some((DType::F32, union(args)?)),
        Op::Reduce { axes, .. } => {
            let kept = first?.axes.iter().filter(|a| !axes.contains(&a.name));
            Some((first?.dtype.computed(), kept.cloned().collect()))
        }
        Op::Gather { axis } => {
            let others = first?.axes.iter().filter(|a| a.name != *axis);
            with(args.get(1)?.axes.iter().chain(others).cloned().collect())
        }
        Op::Reorder { axes } => {
            let found: Option<Vec<SymAxis>> =
                axes.iter().map(|name| first?.axis(*name).cloned()).collect();
            found.filter(|found| found.len() == first.map_or(0, |t| t.axes.len())).and_then(with)
        }
        Op::Rename { from, to } => match first?.axis(*to) {
            Some(_) => None,
            None => with(replaced(first?, *from, 1, new)?),
        },
        Op::Concat { axis, .. } => {
            let total = args.iter().map(|t| number(t.axis(*axis)?)).sum::<Option<u64>>()?;
            let others = |t: &TensorVal| {
                t.axes
                    .iter()
                    .all(|a| a.name == *axis || agrees(a, first.and_then(|f| f.axis(a.name))))
            };
            let fits = args.iter().all(|t| others(t)) && total == product(new)?;
            fits.then(|| replaced(first?, *axis, 1, new)).flatten().and_then(with)
        }
        Op::Split { axis, .. } => {
            let fits = product(new)? == number(first?.axis(*axis)?)?;
            fits.then(|| replaced(first?, *axis, 1, new)).flatten().and_then(with)
        }
        Op::Merge { axes, .. } => {
            let at = first?.axes.iter().position(|a| Some(&a.name) == axes.first())?;
            let merged = first?.axes.get(at..at + axes.len())?;
            let fits = product(merged)? == product(new)?;
            fits.then(|| replaced(first?, axes[0], axes.len(), new)).flatten().and_then(with)
        }
        Op::Slice { axis, start, into } => {
            let fits = start.saturating_add(into.size) <= number(first?.axis(*axis)?)?;
            fits.then(|| replaced(first?, *axis, 1, new)).flatten().and_then(with)
        }
        Op::Broadcast { .. } => with(new.to_vec()),
        _ => None,
    }
}

fn number(axis: &SymAxis) -> Option<u64> {
    axis.size.value()
}

fn product(axes: &[SymAxis]) -> Option<u64> {
    axes.iter().try_fold(1u64, |all, a| all.checked_mul(number(a)?))
}

/// Has an axis the number that another one of its name has, if there is one?
fn agrees(axis: &SymAxis, other: Option<&SymAxis>) -> bool {
    other.is_none_or(|other| number(other) == number(axis))
}

/// All axes of all arguments: those of the one with most, then what it lacks.
fn union(args: &[&TensorVal]) -> Option<Rc<[SymAxis]>> {
    let most = args.iter().map(|t| t.axes.len()).max().unwrap_or(0);
    let base = args.iter().find(|t| t.axes.len() == most)?;
    let mut lacking: Vec<&SymAxis> = Vec::new();
    for axis in args.iter().flat_map(|t| t.axes.iter()) {
        let found = lacking.iter().copied().find(|other| other.name == axis.name);
        match found.or(base.axis(axis.name)) {
            Some(known) if !agrees(axis, Some(known)) => return None,
            Some(_) => {}
            None => lacking.push(axis),
        }
    }
    Some(match lacking.is_empty() {
        true => base.axes.clone(),
        false => base.axes.iter().chain(lacking).cloned().collect(),
    })
}

/// The axes with `new` instead of `count` of them from `axis` on.
fn replaced(t: &TensorVal, axis: Symbol, count: usize, new: &[SymAxis]) -> Option<Vec<SymAxis>> {
    let at = t.axes.iter().position(|a| a.name == axis)?;
    let after = t.axes.get(at + count..)?;
    Some(t.axes[..at].iter().chain(new).chain(after).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mdl_ir::graph::ValueId;
    use mdl_ir::infer::infer;
    use mdl_ir::op::{Binary, Reduction};
    use mdl_ir::tensor_type::{Axis, Type};

    fn axes(list: &str) -> Vec<SymAxis> {
        let axis = |text: &str| {
            let (name, size) = text.split_once('=').expect("NAME=SIZE");
            let size = Size::number(size.parse().expect("a number"));
            SymAxis { name: name.into(), size, origin: Span::default() }
        };
        list.split_whitespace().map(axis).collect()
    }

    fn typed(dtype: DType, axes: &[SymAxis]) -> Type {
        let axis = |a: &SymAxis| Axis::new(a.name, a.size.value().expect("a whole number"));
        Type::new(dtype, axes.iter().map(axis).collect())
    }

    /// Operations with the types of their arguments and the axes that they make.
    fn samples() -> Vec<(Op, Vec<&'static str>, &'static str)> {
        let names = |list: &str| list.split_whitespace().map(Symbol::new).collect::<Vec<_>>();
        let made = |list: &str| typed(DType::F32, &axes(list)).axes;
        let one = |list: &str| made(list)[0];
        let (axis, from, to) = ("A".into(), "A".into(), "N".into());
        vec![
            (Op::Position(one("N=5")), vec![], "N=5"),
            (Op::Random { stream: 1, axes: made("A=2 B=3") }, vec![], ""),
            (Op::Unary(Unary::Exp), vec!["A=2 B=3"], ""),
            (Op::Unary(Unary::Not), vec!["A=2"], ""),
            (Op::StopGradient, vec!["A=2"], ""),
            (Op::Cast(DType::I32), vec!["A=2 B=3"], ""),
            (Op::Binary(Binary::Add), vec!["A=2 B=3", "B=3 A=2"], ""),
            (Op::Binary(Binary::Lt), vec!["A=2", "B=3"], ""),
            (Op::Binary(Binary::Mul), vec!["A=2", "C=4 B=3"], ""),
            (Op::Binary(Binary::Mul), vec!["A=2 B=3", "C=4 A=5"], ""),
            (Op::Select, vec!["A=2", "B=3", "C=4 A=2"], ""),
            (Op::Select, vec!["A=2", "B=3", "B=4"], ""),
            (Op::Reduce { kind: Reduction::Sum, axes: names("B A") }, vec!["A=2 B=3 C=4"], ""),
            (Op::Gather { axis: "B".into() }, vec!["A=2 B=3 C=4", "T=5 S=6"], ""),
            (Op::Reorder { axes: names("B A") }, vec!["A=2 B=3"], ""),
            (Op::Rename { from, to }, vec!["B=3 A=2"], "N=2"),
            (Op::Rename { from, to: from }, vec!["B=3 A=2"], "A=2"),
            (Op::Rename { from, to: "B".into() }, vec!["B=3 A=2"], "B=2"),
            (Op::Split { axis, into: made("N=2 M=3") }, vec!["B=3 A=6 C=2"], "N=2 M=3"),
            (Op::Split { axis, into: made("N=2 M=4") }, vec!["B=3 A=6 C=2"], "N=2 M=4"),
            (Op::Merge { axes: names("A B"), into: to }, vec!["C=4 A=2 B=3 D=2"], "N=6"),
            (Op::Slice { axis, start: 1, into: one("N=3") }, vec!["B=3 A=4"], "N=3"),
            (Op::Slice { axis, start: 2, into: one("N=3") }, vec!["B=3 A=4"], "N=3"),
            (Op::Concat { axis, into: one("N=5") }, vec!["B=3 A=2", "B=3 A=3"], "N=5"),
            (Op::Concat { axis, into: one("N=6") }, vec!["B=3 A=2", "B=3 A=3"], "N=6"),
            (Op::Concat { axis, into: one("N=5") }, vec!["B=3 A=2", "B=4 A=3"], "N=5"),
            (Op::Broadcast { axes: made("C=4 A=2") }, vec!["A=2"], "C=4 A=2"),
        ]
    }

    #[test]
    fn a_check_and_a_graph_have_the_same_axes() {
        for (op, args, new) in samples() {
            let dtype = if op == Op::Unary(Unary::Not) { DType::Bool } else { DType::F32 };
            let value = |list: &&str| TensorVal { id: ValueId(0), dtype, axes: axes(list).into() };
            let args: Vec<TensorVal> = args.iter().map(value).collect();
            let types: Vec<Type> = args.iter().map(|t| typed(t.dtype, &t.axes)).collect();
            let in_graph = infer(&op, &types.iter().collect::<Vec<_>>()).ok();
            let refs: Vec<&TensorVal> = args.iter().collect();
            let made = result(&op, &refs, &axes(new), Span::default());
            let in_check = made.map(|(dtype, axes)| vec![typed(dtype, &axes)]);
            assert_eq!(in_check, in_graph, "{op:?}");
        }
    }
}
