//! The reference interpreter: what every operation means, in f64, slow and obvious.

use crate::graph::{Body, Node};
use crate::op::{Binary, Op, Reduction, Unary};
use crate::rounding::{bf16_nearest, bf16_to_f32, stochastic_round};
use crate::tensor::{Tensor, walk};
use crate::tensor_type::{Axis, DType, Type};
use mdl_symbol::Symbol;

/// What the interpreter asks of its surroundings.
#[derive(Clone, Debug, Default)]
pub struct Env {
    /// Key of the random numbers: the run's seed and the parameter's name, mixed.
    pub random_key: u64,
    /// The element of the parameter that the first number is for.
    pub first: u64,
}

/// Outputs of `body` on these inputs (one for each body input, of its type).
pub fn run(body: &Body, inputs: Vec<Tensor>, env: &Env) -> Vec<Tensor> {
    let mut values: Vec<Option<Tensor>> = vec![None; body.values.len()];
    for (id, tensor) in body.inputs.iter().zip(inputs) {
        assert_eq!(&tensor.ty, body.ty(*id), "input `{}`", body.name(*id));
        values[id.index()] = Some(tensor);
    }
    let mut last_use = vec![usize::MAX; body.values.len()];
    for (i, node) in body.nodes.iter().enumerate() {
        node.args.iter().for_each(|a| last_use[a.index()] = i);
    }
    body.outputs.iter().for_each(|o| last_use[o.index()] = usize::MAX);
    for (i, node) in body.nodes.iter().enumerate() {
        let args: Vec<&Tensor> = node
            .args
            .iter()
            .map(|a| values[a.index()].as_ref().expect("made before it is used"))
            .collect();
        let results = eval(body, node, &args, env);
        for a in &node.args {
            if last_use[a.index()] == i {
                values[a.index()] = None;
            }
        }
        for (id, tensor) in node.results.iter().zip(results) {
            values[id.index()] = Some(tensor);
        }
    }
    let output =
        |id: &crate::graph::ValueId| values[id.index()].clone().expect("every output is made");
    body.outputs.iter().map(output).collect()
}

/// Value of an elementwise operation on constants, where it has one.
pub fn fold(op: &Op, args: &[f64]) -> Option<f64> {
    match op {
        Op::Unary(u) => Some(unary(*u, args[0])),
        Op::Binary(b) => Some(binary(*b, args[0], args[1])),
        Op::StopGradient => Some(args[0]),
        Op::Cast(DType::F32) => Some(args[0]),
        _ => None,
    }
}

fn eval(body: &Body, node: &Node, args: &[&Tensor], env: &Env) -> Vec<Tensor> {
    let types: Vec<Type> = node.results.iter().map(|r| body.ty(*r).clone()).collect();
    match &node.op {
        Op::Repeat { .. } => return repeat(node, args, types, env),
        Op::Call { body, .. } => {
            let inputs = args[..body.inputs.len()].iter().map(|t| (*t).clone()).collect();
            let mut results = run(body, inputs, env);
            results.extend(types.into_iter().skip(results.len()).map(Tensor::zeros));
            return results;
        }
        _ => {}
    }
    let ty = types.into_iter().next().expect("one result");
    let mut result = eval_one(&node.op, args, ty, env);
    if result.ty.dtype == DType::Bf16 {
        result.data.iter_mut().for_each(|x| *x = stored(*x));
    }
    vec![result]
}

/// A number as memory has it that holds bf16: what kernels compute in f32 is rounded once more.
fn stored(x: f64) -> f64 {
    f64::from(bf16_to_f32(bf16_nearest(x as f32)))
}

fn eval_one(op: &Op, args: &[&Tensor], ty: Type, env: &Env) -> Tensor {
    match op {
        Op::Const(c) => Tensor::new(ty, vec![*c]),
        Op::Position(axis) => Tensor::new(ty, (0..axis.size).map(|i| i as f64).collect()),
        Op::Random { stream, .. } => random(*stream, ty, env),
        Op::Unary(u) => map1(args[0], ty, |x| unary(*u, x)),
        Op::Binary(b) => map2(args[0], args[1], ty, |x, y| binary(*b, x, y)),
        Op::Select => select(args, ty),
        Op::StopGradient => map1(args[0], ty, |x| x),
        Op::Transfer { .. } | Op::Collective { .. } => map1(args[0], ty, |x| x),
        Op::Cast(DType::F32 | DType::Bf16) => map1(args[0], ty, |x| x),
        Op::Cast(DType::Bool) => map1(args[0], ty, |x| f64::from(x != 0.0)),
        Op::Cast(DType::I32) => map1(args[0], ty, f64::trunc),
        Op::StochasticRound { stream } => {
            let seed = args[1].data[0] as i32 as u32;
            map1(args[0], ty, |x| f64::from(bf16_to_f32(stochastic_round(x as f32, seed, *stream))))
        }
        Op::Broadcast { .. } | Op::Reorder { .. } => map1(args[0], ty, |x| x),
        Op::Rename { .. } | Op::Split { .. } | Op::Merge { .. } => {
            Tensor::new(ty, args[0].data.clone())
        }
        Op::Reduce { kind, .. } => reduce(*kind, args[0], ty),
        Op::Contract { axes } => contract(args[0], args[1], axes, ty),
        Op::GroupedContract { axis, axes } => grouped_contract(args, *axis, axes, ty),
        Op::GroupedOuter { .. } => grouped_outer(args, ty),
        Op::Slice { axis, start, into } => shift(args[0], ty, *axis, into.name, *start, false),
        Op::Pad { axis, start, into } => shift(args[0], ty, *axis, into.name, *start, true),
        Op::Concat { axis, into } => concat(args, ty, *axis, into.name),
        Op::Gather { axis } => gather(args[0], args[1], *axis, ty),
        Op::ScatterAdd { .. } => scatter_add(args, ty),
        Op::CacheWrite { axis } => cache_write(args, *axis, ty),
        Op::Repeat { .. } | Op::Call { .. } => unreachable!("handled by eval"),
    }
}

fn unary(op: Unary, x: f64) -> f64 {
    match op {
        Unary::Neg => -x,
        Unary::Exp => x.exp(),
        Unary::Log => x.ln(),
        Unary::Sqrt => x.sqrt(),
        Unary::Rsqrt => 1.0 / x.sqrt(),
        Unary::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Tanh => x.tanh(),
        Unary::Abs => x.abs(),
        Unary::Not => f64::from(x == 0.0),
    }
}

fn binary(op: Binary, x: f64, y: f64) -> f64 {
    match op {
        Binary::Add => x + y,
        Binary::Sub => x - y,
        Binary::Mul => x * y,
        Binary::Div => x / y,
        Binary::Min => x.min(y),
        Binary::Max => x.max(y),
        Binary::Lt => f64::from(x < y),
        Binary::Le => f64::from(x <= y),
        Binary::Eq => f64::from(x == y),
        Binary::And => f64::from(x != 0.0 && y != 0.0),
        Binary::Or => f64::from(x != 0.0 || y != 0.0),
    }
}

fn map1(a: &Tensor, ty: Type, f: impl Fn(f64) -> f64) -> Tensor {
    let strides = a.strides_along(&ty.axes);
    let mut out = Tensor::zeros(ty);
    let axes = out.ty.axes.clone();
    walk(&axes, [&strides], |i, [o]| out.data[i] = f(a.data[o]));
    out
}

fn map2(a: &Tensor, b: &Tensor, ty: Type, f: impl Fn(f64, f64) -> f64) -> Tensor {
    let (sa, sb) = (a.strides_along(&ty.axes), b.strides_along(&ty.axes));
    let mut out = Tensor::zeros(ty);
    let axes = out.ty.axes.clone();
    walk(&axes, [&sa, &sb], |i, [x, y]| out.data[i] = f(a.data[x], b.data[y]));
    out
}

fn select(args: &[&Tensor], ty: Type) -> Tensor {
    let s: Vec<Vec<usize>> = args.iter().map(|t| t.strides_along(&ty.axes)).collect();
    let mut out = Tensor::zeros(ty);
    let axes = out.ty.axes.clone();
    walk(&axes, [&s[0], &s[1], &s[2]], |i, [c, x, y]| {
        out.data[i] = if args[0].data[c] != 0.0 { args[1].data[x] } else { args[2].data[y] };
    });
    out
}

fn reduce(kind: Reduction, a: &Tensor, ty: Type) -> Tensor {
    let mut out = Tensor::zeros(ty);
    if kind == Reduction::Max {
        out.data.fill(f64::NEG_INFINITY);
    }
    let strides = out.strides_along(&a.ty.axes);
    walk(&a.ty.axes, [&strides], |i, [o]| {
        out.data[o] = match kind {
            Reduction::Sum => out.data[o] + a.data[i],
            Reduction::Max => out.data[o].max(a.data[i]),
        };
    });
    out
}

fn contract(a: &Tensor, b: &Tensor, over: &[Symbol], ty: Type) -> Tensor {
    let summed: Vec<Axis> = a.ty.axes.iter().filter(|x| over.contains(&x.name)).copied().collect();
    let (sa, sb) = (a.strides_along(&ty.axes), b.strides_along(&ty.axes));
    let (ka, kb) = (a.strides_along(&summed), b.strides_along(&summed));
    let mut pairs = Vec::new();
    walk(&summed, [&ka, &kb], |_, [x, y]| pairs.push((x, y)));
    let mut out = Tensor::zeros(ty);
    let axes = out.ty.axes.clone();
    walk(&axes, [&sa, &sb], |i, [x, y]| {
        out.data[i] = pairs.iter().map(|(p, q)| a.data[x + p] * b.data[y + q]).sum();
    });
    out
}

fn grouped_contract(args: &[&Tensor], axis: Symbol, over: &[Symbol], ty: Type) -> Tensor {
    let (a, table, ids) = (args[0], args[1], args[2]);
    let at = table.ty.index_of(axis).expect("verified");
    let (stride, groups) = (table.ty.strides()[at] as usize, table.ty.axes[at].size as f64);
    let summed: Vec<Axis> = a.ty.axes.iter().filter(|x| over.contains(&x.name)).copied().collect();
    let mut pairs = Vec::new();
    let (ka, kb) = (a.strides_along(&summed), table.strides_along(&summed));
    walk(&summed, [&ka, &kb], |_, [x, y]| pairs.push((x, y)));
    let strides = args.iter().map(|t| t.strides_along(&ty.axes)).collect::<Vec<_>>();
    let mut out = Tensor::zeros(ty);
    let axes = out.ty.axes.clone();
    walk(&axes, [&strides[0], &strides[1], &strides[2]], |i, [x, y, k]| {
        let id = ids.data[k];
        if (0.0..groups).contains(&id) {
            let y = y + id as usize * stride;
            out.data[i] = pairs.iter().map(|(p, q)| a.data[x + p] * table.data[y + q]).sum();
        }
    });
    out
}

fn grouped_outer(args: &[&Tensor], ty: Type) -> Tensor {
    let (a, b, ids) = (args[0], args[1], args[2]);
    let (stride, groups) = (ty.strides()[0] as usize, ty.axes[0].size as f64);
    let mut out = Tensor::zeros(ty);
    let own: Vec<Axis> = out.ty.axes[1..].to_vec();
    let (oa, ob) = (a.strides_along(&own), b.strides_along(&own));
    let rows = ids.ty.axes.clone();
    walk(&rows, [&a.strides_along(&rows), &b.strides_along(&rows)], |r, [x, y]| {
        let id = ids.data[r];
        if (0.0..groups).contains(&id) {
            let to = &mut out.data[id as usize * stride..][..stride];
            walk(&own, [&oa, &ob], |i, [p, q]| to[i] += a.data[x + p] * b.data[y + q]);
        }
    });
    out
}

/// Copies between a tensor and a longer one along an axis: from the longer (`Slice`) or into it
/// (`Pad`).
fn shift(a: &Tensor, ty: Type, axis: Symbol, into: Symbol, start: u64, pad: bool) -> Tensor {
    let mut out = Tensor::zeros(ty);
    let long = if pad { out.ty.clone() } else { a.ty.clone() };
    let at = long.index_of(if pad { into } else { axis }).expect("verified");
    let offset = start as usize * long.strides()[at] as usize;
    let short_axes = if pad { a.ty.axes.clone() } else { out.ty.axes.clone() };
    let strides: Vec<usize> = long.strides().iter().map(|s| *s as usize).collect();
    walk(&short_axes, [&strides], |i, [o]| {
        if pad {
            out.data[offset + o] = a.data[i];
        } else {
            out.data[i] = a.data[offset + o];
        }
    });
    out
}

fn concat(args: &[&Tensor], ty: Type, axis: Symbol, into: Symbol) -> Tensor {
    let mut out = Tensor::zeros(ty.clone());
    let mut start = 0;
    for part in args {
        let size = part.ty.axis(axis).expect("verified").size;
        let placed = shift(part, ty.clone(), axis, into, start, true);
        for (o, p) in out.data.iter_mut().zip(placed.data) {
            *o += p;
        }
        start += size;
    }
    out
}

fn gather(table: &Tensor, ids: &Tensor, axis: Symbol, ty: Type) -> Tensor {
    let at = table.ty.index_of(axis).expect("verified");
    let stride = table.ty.strides()[at] as usize;
    let (st, si) = (table.strides_along(&ty.axes), ids.strides_along(&ty.axes));
    let mut out = Tensor::zeros(ty);
    let axes = out.ty.axes.clone();
    walk(&axes, [&st, &si], |i, [t, k]| {
        out.data[i] = table.data[t + ids.data[k] as usize * stride];
    });
    out
}

fn scatter_add(args: &[&Tensor], ty: Type) -> Tensor {
    let (ids, g) = (args[0], args[1]);
    let mut out = args.get(2).map_or_else(|| Tensor::zeros(ty), |base| (*base).clone());
    let stride = out.ty.strides()[0] as usize;
    let (so, si) = (out.strides_along(&g.ty.axes), ids.strides_along(&g.ty.axes));
    walk(&g.ty.axes, [&so, &si], |i, [o, k]| {
        out.data[o + ids.data[k] as usize * stride] += g.data[i];
    });
    out
}

fn cache_write(args: &[&Tensor], axis: Symbol, ty: Type) -> Tensor {
    let (x, start) = (args[0], args[2].data[0] as usize);
    let mut out = Tensor::new(ty, args[1].data.clone());
    let at = out.ty.index_of(axis).expect("verified");
    let strides = out.strides_along(&x.ty.axes);
    let offset = start * out.ty.strides()[at] as usize;
    walk(&x.ty.axes, [&strides], |i, [o]| out.data[offset + o] = x.data[i]);
    out
}

/// Counter-based: a function of the key, the stream and the element's index alone.
fn random(stream: u32, ty: Type, env: &Env) -> Tensor {
    let n = ty.elements();
    let number = |i: u64| {
        let bits = mix(mix(env.random_key ^ (u64::from(stream) << 56)) ^ i) >> 11;
        (bits as f64 + 0.5) / (1u64 << 53) as f64
    };
    Tensor::new(ty, (env.first..env.first + n).map(number).collect())
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
pub fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn repeat(node: &Node, args: &[&Tensor], types: Vec<Type>, env: &Env) -> Vec<Tensor> {
    let Op::Repeat { count, reverse, carries, consts, body, .. } = &node.op else {
        unreachable!("a repeat node")
    };
    let mut carried: Vec<Tensor> = args[..*carries].iter().map(|t| (*t).clone()).collect();
    let mut stacked: Vec<Tensor> =
        types[*carries..].iter().map(|ty| Tensor::zeros(ty.clone())).collect();
    for i in 0..*count as usize {
        let l = if *reverse { *count as usize - 1 - i } else { i };
        let mut inputs = carried;
        inputs.extend(args[*carries..carries + consts].iter().map(|t| (*t).clone()));
        inputs.extend(args[carries + consts..].iter().map(|t| t.outer(l)));
        let mut outputs = run(body, inputs, env);
        for (stack, out) in stacked.iter_mut().zip(outputs.drain(*carries..)) {
            let n = out.data.len();
            stack.data[l * n..(l + 1) * n].copy_from_slice(&out.data);
        }
        carried = outputs;
    }
    carried.extend(stacked);
    carried
}
