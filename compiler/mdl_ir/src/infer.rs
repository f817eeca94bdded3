//! The type rule of every operation.

use crate::op::{Binary, Op, Unary};
use crate::tensor_type::{Axis, DType, Type};
use mdl_symbol::Symbol;

/// Axes per tensor, as the language limits them.
pub const MAX_AXES: usize = 8;

/// Types of the results of `op` on arguments of these types, or what is wrong in one clause.
pub fn infer(op: &Op, args: &[&Type]) -> Result<Vec<Type>, String> {
    check_count(op, args.len())?;
    let one = |ty: Type| Ok(vec![ty]);
    match op {
        Op::Const(_) => one(Type::scalar(DType::F32)),
        Op::Position(axis) => one(Type::new(DType::F32, vec![*axis])),
        Op::Random { axes, .. } => one(Type::new(DType::F32, axes.clone())),
        Op::Unary(Unary::Not) => one(args[0].clone()),
        Op::Unary(_) => one(args[0].of(args[0].dtype.computed())),
        Op::StopGradient | Op::Transfer { .. } | Op::Collective { .. } => one(args[0].clone()),
        Op::Binary(b) => one(Type::new(binary_dtype(*b), union(args)?)),
        Op::Select => one(Type::new(DType::F32, union(args)?)),
        Op::Reduce { axes, .. } => {
            need_axes(args[0], axes)?;
            let ty = args[0].without(axes);
            one(ty.of(ty.dtype.computed()))
        }
        Op::Contract { axes } => one(contract(args[0], args[1], axes)?),
        Op::GroupedContract { axis, axes } => one(grouped_contract(args, *axis, axes)?),
        Op::GroupedOuter { axis } => one(grouped_outer(args, axis)?),
        Op::Broadcast { axes } => {
            let missing = args[0].axes.iter().find(|a| !axes.contains(a));
            match missing {
                Some(a) => Err(format!("broadcast drops axis `{}`", a.name)),
                None => one(Type::new(args[0].dtype, axes.clone())),
            }
        }
        Op::Reorder { axes } => one(reorder(args[0], axes)?),
        Op::Cast(dtype) => one(args[0].of(*dtype)),
        Op::StochasticRound { .. } => match args[1] == &Type::scalar(DType::I32) {
            true => one(args[0].of(DType::Bf16)),
            false => Err(format!("the seed is {}, not a whole number", args[1])),
        },
        Op::Rename { from, to } => one(rename(args[0], *from, *to)?),
        Op::Split { axis, into } => one(split(args[0], *axis, into)?),
        Op::Merge { axes, into } => one(merge(args[0], axes, *into)?),
        Op::Slice { axis, start, into } => {
            let old = find(args[0], *axis)?;
            if start.saturating_add(into.size) > old.size {
                return Err(format!("slice ends beyond axis `{axis}` of size {}", old.size));
            }
            one(replace(args[0], *axis, into)?)
        }
        Op::Pad { axis, start, into } => {
            let old = find(args[0], *axis)?;
            if start.saturating_add(old.size) > into.size {
                return Err(format!("pad ends beyond axis `{}`", into.name));
            }
            one(replace(args[0], *axis, into)?)
        }
        Op::Concat { axis, into } => one(concat(args, *axis, into)?),
        Op::Gather { axis } => {
            find(args[0], *axis)?;
            let mut axes = args[1].axes.clone();
            axes.extend(args[0].without(std::slice::from_ref(axis)).axes);
            one(Type::new(args[0].dtype, axes))
        }
        Op::ScatterAdd { axis } => one(scatter_add(args, axis)?),
        Op::CacheWrite { axis } => {
            find(args[0], *axis)?;
            one(args[1].clone())
        }
        Op::Repeat { axis, count, carries, consts, body, .. } => {
            repeat(args, *axis, *count, *carries, *consts, body)
        }
        Op::Call { body, .. } => Ok(body.outputs.iter().map(|o| body.ty(*o).clone()).collect()),
    }
}

fn check_count(op: &Op, count: usize) -> Result<(), String> {
    let fits = match op {
        Op::Const(_) | Op::Position(_) | Op::Random { .. } => count == 0,
        Op::Binary(_) | Op::Contract { .. } | Op::Gather { .. } => count == 2,
        Op::StochasticRound { .. } => count == 2,
        Op::Select | Op::CacheWrite { .. } => count == 3,
        Op::GroupedContract { .. } | Op::GroupedOuter { .. } => count == 3,
        Op::ScatterAdd { .. } => count == 2 || count == 3,
        Op::Concat { .. } => count >= 1,
        Op::Repeat { body, .. } => count == body.inputs.len(),
        Op::Call { body, .. } => count >= body.inputs.len(),
        _ => count == 1,
    };
    if fits { Ok(()) } else { Err(format!("`{}` does not take {count} arguments", op.name())) }
}

pub fn binary_dtype(op: Binary) -> DType {
    if op.is_comparison() || op.is_logic() { DType::Bool } else { DType::F32 }
}

/// All axes of all arguments: the order of the argument with most axes, then what it lacks.
pub fn union(args: &[&Type]) -> Result<Vec<Axis>, String> {
    let most = args.iter().map(|t| t.axes.len()).max().unwrap_or(0);
    let base = args.iter().find(|t| t.axes.len() == most).map_or(&[][..], |t| &t.axes[..]);
    let mut axes = base.to_vec();
    for ty in args {
        for axis in &ty.axes {
            match axes.iter().find(|a| a.name == axis.name) {
                None => axes.push(*axis),
                Some(a) if a.size != axis.size => {
                    return Err(format!(
                        "axis `{}` is {} here and {} there",
                        a.name, a.size, axis.size
                    ));
                }
                Some(_) => {}
            }
        }
    }
    if axes.len() > MAX_AXES {
        return Err(format!("a tensor with {} axes, and {MAX_AXES} is the most", axes.len()));
    }
    Ok(axes)
}

fn find(ty: &Type, axis: Symbol) -> Result<&Axis, String> {
    ty.axis(axis).ok_or_else(|| format!("no axis `{axis}` in {ty}"))
}

fn need_axes(ty: &Type, axes: &[Symbol]) -> Result<(), String> {
    axes.iter().try_for_each(|a| find(ty, *a).map(|_| ()))
}

fn contract(a: &Type, b: &Type, over: &[Symbol]) -> Result<Type, String> {
    need_axes(a, over)?;
    need_axes(b, over)?;
    union(&[a, b])?;
    let kept = |axis: &&Axis| !over.contains(&axis.name);
    let shared = a.axes.iter().filter(kept).filter(|x| b.has(x.name));
    let only_a = a.axes.iter().filter(kept).filter(|x| !b.has(x.name));
    let only_b = b.axes.iter().filter(kept).filter(|x| !a.has(x.name));
    let axes: Vec<Axis> = shared.chain(only_a).chain(only_b).copied().collect();
    Ok(Type::new(DType::F32, axes))
}

/// Rows are added up as what they are, or as what the base is.
fn scatter_add(args: &[&Type], axis: &Axis) -> Result<Type, String> {
    let ids = crate::build::axis_names(&args[0].axes);
    need_axes(args[1], &ids)?;
    let ty = args[1].without(&ids).stacked(*axis);
    Ok(ty.of(args.get(2).map_or(ty.dtype, |base| base.dtype)))
}

fn grouped_contract(args: &[&Type], axis: Symbol, over: &[Symbol]) -> Result<Type, String> {
    let (a, table, ids) = (args[0], args[1], args[2]);
    need_axes(a, over)?;
    need_axes(table, over)?;
    union(&[a, table])?;
    rows_of(a, ids, over)?;
    find(table, axis)?;
    let kept = |x: &&Axis| x.name != axis && !over.contains(&x.name);
    let own: Vec<Axis> = table.axes.iter().filter(kept).copied().collect();
    if let Some(twice) = own.iter().find(|x| ids.has(x.name)) {
        return Err(format!("axis `{}` is of the rows and of the groups", twice.name));
    }
    Ok(Type::new(one_dtype(a, table)?, ids.axes.iter().copied().chain(own).collect()))
}

/// Grouped contractions have one element type for what they read and what they store.
fn one_dtype(a: &Type, b: &Type) -> Result<DType, String> {
    match a.dtype == b.dtype {
        true => Ok(a.dtype),
        false => Err(format!("the operands are {} and {}", a.dtype.name(), b.dtype.name())),
    }
}

/// A grouped operand has rows and the axes `others`, and nothing else.
fn rows_of(ty: &Type, ids: &Type, others: &[Symbol]) -> Result<(), String> {
    union(&[ty, ids])?;
    match ty.axes.iter().find(|x| !ids.has(x.name) && !others.contains(&x.name)) {
        Some(x) => Err(format!("axis `{}` is neither of the rows nor summed", x.name)),
        None => Ok(()),
    }
}

fn grouped_outer(args: &[&Type], axis: &Axis) -> Result<Type, String> {
    let (a, b, ids) = (args[0], args[1], args[2]);
    let own =
        |ty: &Type| -> Vec<Axis> { ty.axes.iter().filter(|x| !ids.has(x.name)).copied().collect() };
    rows_of(a, ids, &crate::build::axis_names(&own(a)))?;
    rows_of(b, ids, &crate::build::axis_names(&own(b)))?;
    let mut axes = vec![*axis];
    for x in own(a).into_iter().chain(own(b)) {
        if axes.iter().any(|y| y.name == x.name) {
            return Err(format!("axis `{}` would stand twice", x.name));
        }
        axes.push(x);
    }
    if axes.len() > MAX_AXES {
        return Err(format!("a tensor with {} axes, and {MAX_AXES} is the most", axes.len()));
    }
    Ok(Type::new(one_dtype(a, b)?, axes))
}

fn reorder(ty: &Type, names: &[Symbol]) -> Result<Type, String> {
    let axes: Result<Vec<Axis>, String> = names.iter().map(|n| find(ty, *n).cloned()).collect();
    let out = Type::new(ty.dtype, axes?);
    if out.same_axes(ty) { Ok(out) } else { Err("reorder drops an axis".into()) }
}

fn rename(ty: &Type, from: Symbol, to: Symbol) -> Result<Type, String> {
    let size = find(ty, from)?.size;
    if ty.has(to) {
        return Err(format!("axis `{to}` stands twice"));
    }
    replace(ty, from, &Axis::new(to, size))
}

fn replace(ty: &Type, axis: Symbol, new: &Axis) -> Result<Type, String> {
    let at = ty.index_of(axis).ok_or_else(|| format!("no axis `{axis}` in {ty}"))?;
    let mut out = ty.clone();
    out.axes[at] = *new;
    Ok(out)
}

fn split(ty: &Type, axis: Symbol, into: &[Axis]) -> Result<Type, String> {
    let at = ty.index_of(axis).ok_or_else(|| format!("no axis `{axis}` in {ty}"))?;
    let product: u64 = into.iter().map(|a| a.size).product();
    if product != ty.axes[at].size {
        return Err(format!("axis `{axis}` is {}, the product {product}", ty.axes[at].size));
    }
    let mut out = ty.clone();
    out.axes.splice(at..=at, into.iter().copied());
    Ok(out)
}

fn merge(ty: &Type, axes: &[Symbol], into: Symbol) -> Result<Type, String> {
    let first = axes.first().ok_or("merge of no axes")?;
    let at = ty.index_of(*first).ok_or_else(|| format!("no axis `{first}` in {ty}"))?;
    let names = crate::build::axis_names(&ty.axes[at..]);
    if !names.starts_with(axes) {
        return Err("merged axes are not adjacent".into());
    }
    let size = ty.axes[at..at + axes.len()].iter().map(|a| a.size).product();
    let mut out = ty.clone();
    out.axes.splice(at..at + axes.len(), [Axis::new(into, size)]);
    Ok(out)
}

fn concat(args: &[&Type], axis: Symbol, into: &Axis) -> Result<Type, String> {
    let mut total = 0;
    for ty in args {
        total += find(ty, axis)?.size;
        if ty.without(&[axis]).axes != args[0].without(&[axis]).axes {
            return Err("concatenated tensors differ in another axis".into());
        }
        if ty.dtype != args[0].dtype {
            return Err("concatenated tensors differ in their element type".into());
        }
    }
    if total != into.size {
        return Err(format!("axis `{}` is {}, the parts make {total}", into.name, into.size));
    }
    replace(args[0], axis, into)
}

fn repeat(
    args: &[&Type],
    axis: Symbol,
    count: u64,
    carries: usize,
    consts: usize,
    body: &crate::graph::Body,
) -> Result<Vec<Type>, String> {
    for (i, arg) in args.iter().enumerate() {
        let inner = body.ty(body.inputs[i]);
        let expected = if i < carries + consts {
            inner.clone()
        } else {
            inner.stacked(Axis::new(axis, count))
        };
        if **arg != expected {
            return Err(format!("argument {i} is {arg}, the region takes {expected}"));
        }
    }
    let mut results = Vec::new();
    for (i, out) in body.outputs.iter().enumerate() {
        let ty = body.ty(*out);
        if i < carries {
            if ty != body.ty(body.inputs[i]) {
                return Err(format!("carry {i} goes in as {} and comes out as {ty}", args[i]));
            }
            results.push(ty.clone());
        } else {
            results.push(ty.stacked(Axis::new(axis, count)));
        }
    }
    Ok(results)
}
