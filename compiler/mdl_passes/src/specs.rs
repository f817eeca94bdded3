//! Kernel specs of the calls other than regions: what is read off the types and bodies of a fused
//! graph.

use crate::layout::{Loc, collapsed};
use crate::mask::recognise;
use crate::region::{elem, instr, operation, same_value};
use mdl_ir::graph::{Body, Node, ValueId};
use mdl_ir::kernel::{
    AttentionSpec, ContractSpec, Dim, Instr, InstrOp, LinearCrossEntropySpec, View,
};
use mdl_ir::op::Op;
use mdl_ir::tensor_type::{Axis, Type};
use std::collections::HashMap;

type Spec<T> = Result<T, String>;

fn product<'a>(axes: impl IntoIterator<Item = &'a Axis>) -> u32 {
    axes.into_iter().map(|a| a.size).product::<u64>() as u32
}

/// The contraction with its epilogue; `locs` are the places of the call's arguments. The result has
/// the order of the call's arguments as the kernel wants them: a, b, then the epilogue's inputs
/// (numbers of the body's inputs).
pub fn contraction(body: &Body, locs: &[Loc]) -> Spec<(ContractSpec, Vec<usize>)> {
    let node = body.nodes.iter().find(|n| matches!(n.op, Op::Contract { .. }));
    let node = node.ok_or("a contraction call holds a contraction")?;
    let Op::Contract { axes } = &node.op else {
        return Err("a contraction".into());
    };
    let input = |id: ValueId| {
        let found = body.inputs.iter().position(|i| *i == id);
        found.ok_or("a contraction reads memory")
    };
    let (ia, ib) = (input(node.args[0])?, input(node.args[1])?);
    let (ta, tb) = (body.ty(node.args[0]), body.ty(node.args[1]));
    let result = body.ty(node.results[0]);
    let dim = |axis: &Axis| Dim {
        size: axis.size as u32,
        stride: locs[ia].stride(ta, &axis.name) as u32,
        stride_b: locs[ib].stride(tb, &axis.name) as u32,
    };
    let group = |in_a: bool, in_b: bool| -> Vec<Dim> {
        let here = |x: &&Axis| ta.has(&x.name) == in_a && tb.has(&x.name) == in_b;
        result.axes.iter().filter(here).map(dim).collect()
    };
    let n = group(false, true).into_iter().map(|d| Dim { stride: d.stride_b, ..d }).collect();
    let k = ta.axes.iter().filter(|x| axes.contains(&x.name)).map(dim).collect();
    let mut spec = ContractSpec {
        batch: group(true, true),
        m: group(true, false),
        n,
        k,
        prologue_inputs: Vec::new(),
        prologue: Vec::new(),
        prologue_result: 0,
        epilogue_inputs: Vec::new(),
        epilogue: Vec::new(),
        a: elem(ta.dtype),
        b: elem(tb.dtype),
        outputs: body.outputs.iter().map(|o| elem(body.ty(*o).dtype)).collect(),
    };
    let mut order = vec![ia, ib];
    // A sum that is only rounded is rounded by being stored.
    let bare = body.nodes.iter().all(|n| n.op == node.op || same_value(body, n));
    if !bare || body.outputs.len() > 1 {
        epilogue(body, node, (ta, result), locs, &mut spec, &mut order)?;
    }
    Ok((spec, order))
}

/// Writes the elementwise nodes after the contraction as its epilogue.
fn epilogue(
    body: &Body,
    contract: &Node,
    (ta, result): (&Type, &Type),
    locs: &[Loc],
    spec: &mut ContractSpec,
    order: &mut Vec<usize>,
) -> Spec<()> {
    let split = result.axes.iter().take_while(|a| ta.has(&a.name)).count();
    let mut regs: HashMap<ValueId, u16> = HashMap::from([(contract.results[0], 0)]);
    let mut next = 1;
    let load = |id: ValueId, spec: &mut ContractSpec, order: &mut Vec<usize>| -> Spec<Instr> {
        let i = body.inputs.iter().position(|x| *x == id).ok_or("made or taken in")?;
        let (ty, loc) = (body.ty(id), &locs[i]);
        let part = |axes: &[Axis]| {
            let strides: Vec<u64> = axes.iter().map(|a| loc.stride(ty, &a.name)).collect();
            collapsed(axes, &strides).ok_or_else(|| format!("{ty} does not lie along the result"))
        };
        let strides =
            vec![part(&result.axes[..split])? as u32, part(&result.axes[split..])? as u32];
        spec.epilogue_inputs.push(View {
            elem: elem(ty.dtype),
            offset: loc.offset as u32,
            strides,
        });
        order.push(i);
        Ok(instr(InstrOp::Load(spec.epilogue_inputs.len() as u16 - 1), 0, [0; 3]))
    };
    for node in &body.nodes {
        if matches!(node.op, Op::Contract { .. }) {
            continue;
        }
        let mut args = [0; 3];
        for (slot, a) in args.iter_mut().zip(&node.args) {
            if !regs.contains_key(a) {
                let load = load(*a, spec, order)?;
                spec.epilogue.push(Instr { dst: next, ..load });
                regs.insert(*a, next);
                next += 1;
            }
            *slot = regs[a];
        }
        if same_value(body, node) {
            regs.insert(node.results[0], args[0]);
            continue;
        }
        spec.epilogue.push(instr(operation(&node.op)?, next, args));
        regs.insert(node.results[0], next);
        next += 1;
    }
    for (i, out) in body.outputs.iter().enumerate() {
        spec.epilogue.push(instr(InstrOp::Store(i as u16), 0, [regs[out], 0, 0]));
    }
    Ok(())
}

/// Attention from the types of q and k and from the mask in the body; the same for its adjoint.
pub fn attention(body: &Body, axes: &[String]) -> Spec<AttentionSpec> {
    let (q, k) = (body.ty(body.inputs[0]), body.ty(body.inputs[1]));
    let (scale, mask) =
        recognise(body, axes).ok_or("the attention kernel does not know this mask")?;
    let [t_axis, s_axis, head_axis] = axes else {
        return Err("attention is over T, S and head".into());
    };
    let t = q.index_of(t_axis).ok_or("queries have a T")?;
    let s = k.index_of(s_axis).ok_or("keys have an S")?;
    let last = |ty: &Type| ty.axes.last().is_some_and(|a| a.name == *head_axis);
    let heads = &q.axes[t + 1..q.axes.len() - 1];
    let shared = heads.iter().take_while(|a| k.has(&a.name)).count();
    let kv = &k.axes[s + 1..k.axes.len() - 1];
    let fits = last(q)
        && last(k)
        && q.axes[..t] == k.axes[..s]
        && kv == &heads[..shared]
        && heads[shared..].iter().all(|a| !k.has(&a.name));
    if !fits {
        return Err(format!("attention on {q} and {k} is laid out in another order"));
    }
    Ok(AttentionSpec {
        batch: product(&q.axes[..t]),
        t: q.axes[t].size as u32,
        s: k.axes[s].size as u32,
        kv_heads: product(kv),
        group: product(&heads[shared..]),
        head: q.axes[q.axes.len() - 1].size as u32,
        scale,
        mask,
        elem: elem(q.dtype),
    })
}

/// Rows, vocabulary and width from the types of x and w; behind those and the targets, a weight and
/// an old gradient of w may come in.
pub fn linear_cross_entropy(
    body: &Body,
    axes: &[String],
    grad: bool,
) -> Spec<LinearCrossEntropySpec> {
    let (x, w) = (body.ty(body.inputs[0]), body.ty(body.inputs[1]));
    let [vocab, width] = axes else {
        return Err("over V and D".into());
    };
    let ordered = x.axes.last().is_some_and(|a| a.name == *width)
        && w.axes.len() == 2
        && w.axes[0].name == *vocab;
    if !ordered {
        return Err(format!("cross-entropy of {x} and {w} is laid out in another order"));
    }
    let more = body.inputs.iter().skip(3).map(|id| body.ty(*id));
    Ok(LinearCrossEntropySpec {
        rows: product(&x.axes[..x.axes.len() - 1]),
        vocab: w.axes[0].size as u32,
        width: w.axes[1].size as u32,
        grad,
        weighted: more.clone().any(|ty| ty.axes.is_empty()),
        accumulate: grad && more.clone().any(|ty| ty == w),
        elem: elem(x.dtype),
        dw: elem(w.dtype),
    })
}
