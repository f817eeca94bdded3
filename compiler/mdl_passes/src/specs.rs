//! Kernel specs of the calls other than regions: what is read off the types and bodies of a fused
//! graph.

use crate::layout::{Loc, collapsed, stride_word, word};
use crate::mask::recognise;
use crate::region::{elem, instr, operation, same_value};
use crate::specs_rotary::{RotaryWriter, head};
use mdl_ir::graph::{Body, Node, ValueId};
use mdl_ir::kernel::{
    AttentionSpec, ContractSpec, Dim, Instr, InstrOp, LinearCrossEntropySpec, Operand, Prologue,
    View,
};
use mdl_ir::op::Op;
use mdl_ir::tensor_type::{Axis, Type};
use mdl_symbol::Symbol;
use std::collections::HashMap;

type Spec<T> = Result<T, String>;

fn product<'a>(axes: impl IntoIterator<Item = &'a Axis>) -> Spec<u32> {
    word(axes.into_iter().map(|a| a.size).product())
}

/// The contraction with its prologue and epilogue; `locs` are the places of the call's arguments.
/// The result has the order of the call's arguments as the kernel wants them: a, b, then the inputs
/// of prologue and epilogue (numbers of the body's inputs).
pub fn contraction(body: &Body, locs: &[Loc]) -> Spec<(ContractSpec, Vec<usize>)> {
    let (before, node, after) = parts(body).ok_or("a contraction call holds a contraction")?;
    let Op::Contract { axes } = &node.op else {
        return Err("a contraction".into());
    };
    let whole = |n: usize| whole_input(body, node.args[n]).ok_or("a contraction reads memory");
    let (ia, ib) = (whole(0)?, whole(1)?);
    let (ta, tb) = (body.ty(body.inputs[ia]), body.ty(body.inputs[ib]));
    let result = body.ty(node.results[0]);
    let dim = |axis: &Axis| -> Spec<Dim> {
        Ok(Dim {
            size: word(axis.size)?,
            stride: stride_word(axis.size, locs[ia].stride(ta, axis.name))?,
            stride_b: stride_word(axis.size, locs[ib].stride(tb, axis.name))?,
        })
    };
    let along = |in_a: bool, in_b: bool| -> Vec<&Axis> {
        let here = |x: &&Axis| ta.has(x.name) == in_a && tb.has(x.name) == in_b;
        result.axes.iter().filter(here).collect()
    };
    let group = |axes: Vec<&Axis>| -> Spec<Vec<Dim>> { axes.into_iter().map(dim).collect() };
    let (m, n) = (along(true, false), along(false, true));
    let k: Vec<&Axis> = ta.axes.iter().filter(|x| axes.contains(&x.name)).collect();
    let mut order = vec![ia, ib];
    let mut program = ProgramWriter { body, locs, order: &mut order, inputs: vec![], code: vec![] };
    let prepared = before.last().map(|n| n.results[0]);
    let prologue = match prepared.and_then(|made| node.args.iter().position(|a| *a == made)) {
        Some(operand) => {
            let (operand, rows, input) =
                if operand == 0 { (Operand::A, &m, ia) } else { (Operand::B, &n, ib) };
            let of = [rows, &k].map(|axes| axes.iter().map(|a| **a).collect());
            let regs = program.write(body.inputs[input], &before, &of)?;
            let result = prepared.map_or(0, |made| regs[&made]);
            Some(Prologue { operand, inputs: program.inputs, program: program.code, result })
        }
        None => None,
    };
    let mut spec = ContractSpec {
        batch: group(along(true, true))?,
        n: group(n)?.into_iter().map(|d| Dim { stride: d.stride_b, ..d }).collect(),
        m: group(m)?,
        k: group(k)?,
        prologue,
        rotary: head(body, &after),
        epilogue_inputs: Vec::new(),
        epilogue: Vec::new(),
        a: elem(ta.dtype),
        b: elem(tb.dtype),
        outputs: body.outputs.iter().map(|o| elem(body.ty(*o).dtype)).collect(),
    };
    // A sum that is only rounded is rounded by being stored.
    let bare = after.iter().all(|n| same_value(body, n));
    let split = result.axes.iter().take_while(|a| ta.has(a.name)).count();
    let of = [result.axes[..split].to_vec(), result.axes[split..].to_vec()];
    if spec.rotary.is_some() {
        let mut w = RotaryWriter::new(body, locs, &mut order, node.results[0], of);
        w.write(&after)?;
        (spec.epilogue_inputs, spec.epilogue) = (w.inputs, w.code);
    } else if !bare || body.outputs.len() > 1 {
        let mut w = ProgramWriter { body, locs, order: &mut order, inputs: vec![], code: vec![] };
        let regs = w.write(node.results[0], &after, &of)?;
        let stores = body.outputs.iter().enumerate();
        w.code.extend(stores.map(|(i, o)| instr(InstrOp::Store(i as u16), 0, [regs[o], 0, 0])));
        (spec.epilogue_inputs, spec.epilogue) = (w.inputs, w.code);
    }
    Ok((spec, order))
}

/// A contraction call's nodes in order: its prologue, the contraction, and its epilogue.
pub fn parts(body: &Body) -> Option<(Vec<&Node>, &Node, Vec<&Node>)> {
    let node = body.nodes.iter().find(|n| matches!(n.op, Op::Contract { .. }))?;
    let mut needed: Vec<ValueId> = node.args.clone();
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for other in body.nodes.iter().rev().filter(|n| n.results != node.results) {
        if other.results.iter().any(|r| needed.contains(r)) {
            needed.extend(&other.args);
            before.insert(0, other);
        } else {
            after.insert(0, other);
        }
    }
    Some((before, node, after))
}

/// The input of a contraction call that this operand is, or is made from: the one of its size.
pub fn whole_input(body: &Body, operand: ValueId) -> Option<usize> {
    if let Some(i) = body.inputs.iter().position(|id| *id == operand) {
        return Some(i);
    }
    let node = body.nodes.iter().find(|n| n.results.contains(&operand))?;
    let size = |id: &ValueId| &body.ty(*id).axes;
    let same = node.args.iter().filter(|a| size(a) == size(&operand));
    same.filter_map(|a| whole_input(body, *a)).next()
}

/// Elementwise nodes as a program of a prologue or an epilogue.
struct ProgramWriter<'a> {
    body: &'a Body,
    locs: &'a [Loc],
    order: &'a mut Vec<usize>,
    inputs: Vec<View>,
    code: Vec<Instr>,
}

impl ProgramWriter<'_> {
    /// Writes the nodes, with `first` in register 0; what else they read lies along these axes.
    /// Gives the registers of their results.
    fn write(
        &mut self,
        first: ValueId,
        nodes: &[&Node],
        along: &[Vec<Axis>; 2],
    ) -> Spec<HashMap<ValueId, u16>> {
        let mut regs: HashMap<ValueId, u16> = HashMap::from([(first, 0)]);
        let mut next = 1;
        for node in nodes {
            let mut args = [0; 3];
            for (slot, a) in args.iter_mut().zip(&node.args) {
                if !regs.contains_key(a) {
                    let read = self.read(*a, along)?;
                    self.code.push(Instr { dst: next, ..read });
                    regs.insert(*a, next);
                    next += 1;
                }
                *slot = regs[a];
            }
            if same_value(self.body, node) {
                regs.insert(node.results[0], args[0]);
                continue;
            }
            self.code.push(instr(operation(&node.op)?, next, args));
            regs.insert(node.results[0], next);
            next += 1;
        }
        Ok(regs)
    }

    /// A constant that was made before these nodes, or an input.
    fn read(&mut self, id: ValueId, along: &[Vec<Axis>; 2]) -> Spec<Instr> {
        let constant = self.body.nodes.iter().find(|n| n.results.contains(&id));
        if let Some(Op::Const(c)) = constant.map(|n| &n.op) {
            return Ok(instr(InstrOp::Const(*c as f32), 0, [0; 3]));
        }
        let i = self.body.inputs.iter().position(|x| *x == id).ok_or("made or taken in")?;
        let (ty, loc) = (self.body.ty(id), &self.locs[i]);
        let part = |axes: &[Axis]| {
            let strides: Vec<u64> = axes.iter().map(|a| loc.stride(ty, a.name)).collect();
            collapsed(axes, &strides).ok_or_else(|| format!("{ty} does not lie along the result"))
        };
        let strides = vec![word(part(&along[0])?)?, word(part(&along[1])?)?];
        self.inputs.push(View { elem: elem(ty.dtype), offset: word(loc.offset)?, strides });
        self.order.push(i);
        Ok(instr(InstrOp::Load(self.inputs.len() as u16 - 1), 0, [0; 3]))
    }
}

/// Attention from the types of q and k and from the mask in the body; the same for its adjoint.
pub fn attention(body: &Body, axes: &[Symbol]) -> Spec<AttentionSpec> {
    let (q, k) = (body.ty(body.inputs[0]), body.ty(body.inputs[1]));
    let (scale, mask) =
        recognise(body, axes).ok_or("the attention kernel does not know this mask")?;
    let [t_axis, s_axis, head_axis] = axes else {
        return Err("attention is over T, S and head".into());
    };
    let t = q.index_of(*t_axis).ok_or("queries have a T")?;
    let s = k.index_of(*s_axis).ok_or("keys have an S")?;
    let last = |ty: &Type| ty.axes.last().is_some_and(|a| a.name == *head_axis);
    let heads = &q.axes[t + 1..q.axes.len() - 1];
    let shared = heads.iter().take_while(|a| k.has(a.name)).count();
    let kv = &k.axes[s + 1..k.axes.len() - 1];
    let fits = last(q)
        && last(k)
        && q.axes[..t] == k.axes[..s]
        && kv == &heads[..shared]
        && heads[shared..].iter().all(|a| !k.has(a.name));
    if !fits {
        return Err(format!("attention on {q} and {k} is laid out in another order"));
    }
    Ok(AttentionSpec {
        batch: product(&q.axes[..t])?,
        t: q.axes[t].size as u32,
        s: k.axes[s].size as u32,
        kv_heads: product(kv)?,
        group: product(&heads[shared..])?,
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
    axes: &[Symbol],
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
        rows: product(&x.axes[..x.axes.len() - 1])?,
        vocab: w.axes[0].size as u32,
        width: w.axes[1].size as u32,
        grad,
        weighted: more.clone().any(|ty| ty.axes.is_empty()),
        accumulate: grad && more.clone().any(|ty| ty == w),
        elem: elem(x.dtype),
        dw: elem(w.dtype),
    })
}
