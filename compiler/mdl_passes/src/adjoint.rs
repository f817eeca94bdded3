//! The gradient of every operation: what each argument receives from the gradient of the result.
//!
//! A gradient may lack axes of its value: it is then the same along them, and nothing is stored or
//! summed for that. A gradient is rounded where its value is.

use mdl_ir::build::{Builder, axis_names};
use mdl_ir::graph::{Node, ValueId};
use mdl_ir::op::{Binary, Op, Reduction, Unary};
use mdl_ir::place::Place;
use mdl_ir::tensor_type::{DType, Type};
use mdl_symbol::Symbol;

/// A node as the rules see it: its arguments and result as values of the body that is being
/// written.
#[derive(Debug)]
pub struct Primal<'a> {
    pub node: &'a Node,
    pub arg_types: &'a [Type],
    pub result_type: &'a Type,
}

/// Gives the primal value of an argument (`Ok(i)`) or of the result (`Err(())`) in the body being
/// written.
pub type Fetch<'f> = dyn FnMut(&mut Builder, Result<usize, ()>) -> Result<ValueId, String> + 'f;

type Grads = Result<Vec<Option<ValueId>>, String>;

/// Gradients of the arguments, in their order; None where there is none.
pub fn adjoint(b: &mut Builder, p: &Primal<'_>, g: ValueId, fetch: &mut Fetch<'_>) -> Grads {
    let at = p.node.span;
    match &p.node.op {
        Op::Unary(op) => Ok(vec![unary(b, *op, g, fetch, at)?]),
        Op::Binary(op) => binary(b, *op, p, g, fetch),
        Op::Select => {
            let condition = fetch(b, Ok(0))?;
            let zero = b.number(0.0, at);
            let yes = b.push(Op::Select, &[condition, g, zero], at)?;
            let no = b.push(Op::Select, &[condition, zero, g], at)?;
            Ok(vec![None, Some(sum_to(b, yes, p, 1)?), Some(sum_to(b, no, p, 2)?)])
        }
        Op::Reduce { kind: Reduction::Sum, .. } => Ok(vec![Some(g)]),
        Op::Reduce { kind: Reduction::Max, .. } => {
            let (x, y) = (fetch(b, Ok(0))?, fetch(b, Err(()))?);
            let chosen = b.binary(Binary::Eq, x, y, at)?;
            let zero = b.number(0.0, at);
            Ok(vec![Some(b.push(Op::Select, &[chosen, g, zero], at)?)])
        }
        Op::Contract { .. } => {
            let g = full(b, g, p.result_type, at)?;
            let (x, y) = (fetch(b, Ok(0))?, fetch(b, Ok(1))?);
            let dx = contract_to(b, g, y, &p.arg_types[0], at)?;
            let dy = contract_to(b, g, x, &p.arg_types[1], at)?;
            Ok(vec![Some(dx), Some(dy)])
        }
        Op::Broadcast { .. } => Ok(vec![Some(sum_to(b, g, p, 0)?)]),
        Op::Reorder { .. } => Ok(vec![Some(g)]),
        Op::Cast(_) => Ok(vec![p.arg_types[0].is_float().then_some(g)]),
        // The optimizer rounds so, and nobody differentiates a step.
        Op::StochasticRound { .. } => Ok(vec![None; 2]),
        Op::GroupedContract { .. } | Op::GroupedOuter { .. } => grouped(b, p, g, fetch),
        Op::Gather { .. } | Op::ScatterAdd { .. } => indexed(b, p, g, fetch),
        Op::StopGradient | Op::Const(_) | Op::Position(_) | Op::Random { .. } => {
            Ok(vec![None; p.node.args.len()])
        }
        Op::Rename { .. } | Op::Split { .. } | Op::Merge { .. } => view(b, p, g),
        Op::Slice { .. } | Op::Pad { .. } | Op::Concat { .. } => view(b, p, g),
        Op::Transfer { .. }
        | Op::Collective { .. }
        | Op::CacheWrite { .. }
        | Op::Repeat { .. }
        | Op::Call { .. } => Err(format!("`{}` has no gradient of its own", p.node.op.name())),
    }
}

fn unary(
    b: &mut Builder,
    op: Unary,
    g: ValueId,
    fetch: &mut Fetch<'_>,
    at: Place,
) -> Result<Option<ValueId>, String> {
    let factor = match op {
        Unary::Neg => return b.unary(Unary::Neg, g, at).map(Some),
        Unary::Not => return Ok(None),
        Unary::Exp => fetch(b, Err(()))?,
        Unary::Log => {
            let x = fetch(b, Ok(0))?;
            return b.binary(Binary::Div, g, x, at).map(Some);
        }
        Unary::Sqrt => {
            let (y, half) = (fetch(b, Err(()))?, b.number(0.5, at));
            b.binary(Binary::Div, half, y, at)?
        }
        Unary::Rsqrt => {
            // d x^(-1/2) = -1/2 · y³
            let (y, half) = (fetch(b, Err(()))?, b.number(-0.5, at));
            let square = b.mul(y, y, at)?;
            let cube = b.mul(square, y, at)?;
            b.mul(cube, half, at)?
        }
        Unary::Sigmoid => {
            let (y, one) = (fetch(b, Err(()))?, b.number(1.0, at));
            let rest = b.binary(Binary::Sub, one, y, at)?;
            b.mul(y, rest, at)?
        }
        Unary::Tanh => {
            let (y, one) = (fetch(b, Err(()))?, b.number(1.0, at));
            let square = b.mul(y, y, at)?;
            b.binary(Binary::Sub, one, square, at)?
        }
        Unary::Sin => {
            let x = fetch(b, Ok(0))?;
            b.unary(Unary::Cos, x, at)?
        }
        Unary::Cos => {
            let x = fetch(b, Ok(0))?;
            let sin = b.unary(Unary::Sin, x, at)?;
            b.unary(Unary::Neg, sin, at)?
        }
        Unary::Abs => {
            let (x, zero) = (fetch(b, Ok(0))?, b.number(0.0, at));
            let (minus, one) = (b.number(-1.0, at), b.number(1.0, at));
            let negative = b.binary(Binary::Lt, x, zero, at)?;
            b.push(Op::Select, &[negative, minus, one], at)?
        }
    };
    b.mul(g, factor, at).map(Some)
}

fn binary(b: &mut Builder, op: Binary, p: &Primal<'_>, g: ValueId, fetch: &mut Fetch<'_>) -> Grads {
    let at = p.node.span;
    let (dx, dy) = match op {
        Binary::Add => (g, g),
        Binary::Sub => (g, b.unary(Unary::Neg, g, at)?),
        Binary::Mul => {
            let (x, y) = (fetch(b, Ok(0))?, fetch(b, Ok(1))?);
            (b.mul(g, y, at)?, b.mul(g, x, at)?)
        }
        Binary::Div => {
            let (y, quotient) = (fetch(b, Ok(1))?, fetch(b, Err(()))?);
            let dx = b.binary(Binary::Div, g, y, at)?;
            let scaled = b.mul(dx, quotient, at)?;
            (dx, b.unary(Unary::Neg, scaled, at)?)
        }
        Binary::Min | Binary::Max => {
            let (x, y) = (fetch(b, Ok(0))?, fetch(b, Ok(1))?);
            let (low, high) = if op == Binary::Min { (x, y) } else { (y, x) };
            let first = b.binary(Binary::Le, low, high, at)?;
            let zero = b.number(0.0, at);
            let dx = b.push(Op::Select, &[first, g, zero], at)?;
            (dx, b.push(Op::Select, &[first, zero, g], at)?)
        }
        Binary::Lt | Binary::Le | Binary::Eq | Binary::And | Binary::Or => {
            return Ok(vec![None, None]);
        }
    };
    Ok(vec![Some(sum_to(b, dx, p, 0)?), Some(sum_to(b, dy, p, 1)?)])
}

fn indexed(b: &mut Builder, p: &Primal<'_>, g: ValueId, fetch: &mut Fetch<'_>) -> Grads {
    let at = p.node.span;
    let g = full(b, g, p.result_type, at)?;
    match &p.node.op {
        Op::Gather { axis } => {
            let ids = fetch(b, Ok(1))?;
            let table = &p.arg_types[0];
            let axis = *table.axis(*axis).expect("verified");
            let dtable = b.push(Op::ScatterAdd { axis }, &[ids, g], at)?;
            let axes = axis_names(&table.axes);
            Ok(vec![Some(b.push(Op::Reorder { axes }, &[dtable], at)?), None])
        }
        Op::ScatterAdd { axis } => {
            let ids = fetch(b, Ok(0))?;
            let rows = b.push(Op::Gather { axis: axis.name }, &[g, ids], at)?;
            let mut grads = vec![None, Some(rows)];
            grads.extend((p.node.args.len() > 2).then_some(Some(g)));
            Ok(grads)
        }
        _ => Ok(Vec::new()),
    }
}

/// Both grouped contractions have each other for gradients, by the same ids.
fn grouped(b: &mut Builder, p: &Primal<'_>, g: ValueId, fetch: &mut Fetch<'_>) -> Grads {
    let at = p.node.span;
    let g = full(b, g, p.result_type, at)?;
    let (x, y, ids) = (fetch(b, Ok(0))?, fetch(b, Ok(1))?, fetch(b, Ok(2))?);
    let [tx, ty, rows] = p.arg_types else { return Err("three arguments".into()) };
    let own = |t: &Type| -> Vec<Symbol> {
        axis_names(&t.axes).into_iter().filter(|a| !rows.has(*a)).collect()
    };
    let (dx, dy) = match &p.node.op {
        Op::GroupedContract { axis, axes } => {
            let groups = ty.axis(*axis).expect("verified");
            let kept: Vec<Symbol> =
                own(ty).into_iter().filter(|a| a != axis && !axes.contains(a)).collect();
            let dx = b.grouped_contract(g, y, ids, (*axis, &kept), at)?;
            let table = b.grouped_outer(g, x, ids, groups, at)?;
            (dx, b.push(Op::Reorder { axes: axis_names(&ty.axes) }, &[table], at)?)
        }
        Op::GroupedOuter { axis } => {
            let dx = b.grouped_contract(y, g, ids, (axis.name, &own(ty)), at)?;
            let dy = b.grouped_contract(x, g, ids, (axis.name, &own(tx)), at)?;
            let dy = b.sum(dy, &missing(rows, ty), at)?;
            (dx, b.push(Op::Reorder { axes: axis_names(&ty.axes) }, &[dy], at)?)
        }
        _ => return Ok(Vec::new()),
    };
    let dx = b.sum(dx, &missing(rows, tx), at)?;
    let dx = b.push(Op::Reorder { axes: axis_names(&tx.axes) }, &[dx], at)?;
    Ok(vec![Some(dx), Some(dy), None])
}

/// The axes of `all` that `ty` lacks.
fn missing(all: &Type, ty: &Type) -> Vec<Symbol> {
    axis_names(&all.axes).into_iter().filter(|a| !ty.has(*a)).collect()
}

fn view(b: &mut Builder, p: &Primal<'_>, g: ValueId) -> Grads {
    let at = p.node.span;
    if !p.node.args.is_empty() && matches!(p.node.op, Op::Rename { .. }) {
        let Op::Rename { from, to } = &p.node.op else {
            return Ok(Vec::new());
        };
        if !b.ty(g).has(*to) {
            return Ok(vec![Some(g)]);
        }
        let back = Op::Rename { from: *to, to: *from };
        return Ok(vec![Some(b.push(back, &[g], at)?)]);
    }
    let g = full(b, g, p.result_type, at)?;
    let grad = match &p.node.op {
        Op::Split { axis, into } => Op::Merge { axes: axis_names(into), into: *axis },
        Op::Merge { axes, into } => {
            let ty = &p.arg_types[0];
            let parts = axes.iter().filter_map(|a| ty.axis(*a).copied()).collect();
            Op::Split { axis: *into, into: parts }
        }
        Op::Slice { axis, start, into } => {
            let whole = *p.arg_types[0].axis(*axis).expect("verified");
            Op::Pad { axis: into.name, start: *start, into: whole }
        }
        Op::Pad { axis, start, into } => {
            let part = *p.arg_types[0].axis(*axis).expect("verified");
            Op::Slice { axis: into.name, start: *start, into: part }
        }
        Op::Concat { axis, into } => {
            let mut start = 0;
            let mut grads = Vec::new();
            for ty in p.arg_types {
                let part = *ty.axis(*axis).expect("verified");
                let size = part.size;
                let op = Op::Slice { axis: into.name, start, into: part };
                grads.push(Some(b.push(op, &[g], at)?));
                start += size;
            }
            return Ok(grads);
        }
        _ => return Ok(Vec::new()),
    };
    Ok(vec![Some(b.push(grad, &[g], at)?)])
}

/// Sums a gradient over the axes that the node's result has and argument `i` lacks.
fn sum_to(b: &mut Builder, g: ValueId, p: &Primal<'_>, i: usize) -> Result<ValueId, String> {
    let at = p.node.span;
    let extra: Vec<_> =
        p.result_type.axes.iter().filter(|a| !p.arg_types[i].has(a.name)).copied().collect();
    // A gradient that is the same along an axis sums to itself times the size.
    let (there, missing): (Vec<_>, Vec<_>) = extra.into_iter().partition(|a| b.ty(g).has(a.name));
    let g = b.sum(g, &axis_names(&there), at)?;
    if missing.is_empty() {
        return Ok(g);
    }
    let times: u64 = missing.iter().map(|a| a.size).product();
    let times = b.number(times as f64, at);
    b.mul(g, times, at)
}

/// A gradient with every axis of its value, laid out like it.
pub fn full(b: &mut Builder, g: ValueId, ty: &Type, at: Place) -> Result<ValueId, String> {
    if b.ty(g).same_axes(ty) {
        let g = rounded(b, g, ty, at)?;
        return b.push(Op::Reorder { axes: axis_names(&ty.axes) }, &[g], at);
    }
    let g = b.push(Op::Broadcast { axes: ty.axes.clone() }, &[g], at)?;
    rounded(b, g, ty, at)
}

/// A gradient in as many bits as its value, where those are few.
pub fn rounded(b: &mut Builder, g: ValueId, ty: &Type, at: Place) -> Result<ValueId, String> {
    match ty.dtype {
        DType::Bf16 => b.push(Op::Cast(DType::Bf16), &[g], at),
        _ => Ok(g),
    }
}

/// A gradient of exactly this type.
pub fn typed(b: &mut Builder, g: ValueId, ty: &Type, at: Place) -> Result<ValueId, String> {
    let g = full(b, g, ty, at)?;
    b.push(Op::Cast(ty.dtype), &[g], at)
}

/// Σ g·other over everything that the target lacks.
fn contract_to(
    b: &mut Builder,
    g: ValueId,
    other: ValueId,
    target: &Type,
    at: Place,
) -> Result<ValueId, String> {
    let (tg, to) = (b.ty(g).clone(), b.ty(other).clone());
    let summed = |t: &Type| -> Vec<Symbol> {
        axis_names(&t.axes).into_iter().filter(|a| !target.has(*a)).collect()
    };
    let (sg, so) = (summed(&tg), summed(&to));
    let both: Vec<Symbol> = sg.iter().filter(|a| so.contains(a)).copied().collect();
    if both.len() == sg.len() && both.len() == so.len() && !both.is_empty() {
        return b.push(Op::Contract { axes: both }, &[g, other], at);
    }
    let product = b.mul(g, other, at)?;
    let axes = summed(b.ty(product));
    b.sum(product, &axes, at)
}

/// The sum of two gradients. Rows scattered into a table are added to the other gradient in place.
pub(crate) fn accumulated(
    b: &mut Builder,
    x: ValueId,
    y: ValueId,
    at: Place,
) -> Result<ValueId, String> {
    for (scatter, base) in [(x, y), (y, x)] {
        let Some(Node { op: Op::ScatterAdd { axis }, args, .. }) = b.op(scatter) else {
            continue;
        };
        if args.len() == 2 && b.ty(scatter) == b.ty(base) {
            let (op, args) = (Op::ScatterAdd { axis: *axis }, [args[0], args[1], base]);
            return b.push(op, &args, at);
        }
    }
    b.binary(Binary::Add, x, y, at)
}
