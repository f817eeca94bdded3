//! What a launch has to do at least: arithmetic, and bytes that go to and from memory. A kernel is
//! measured against this, however it works inside.
//!
//! Arithmetic is two FLOPs for each multiply-add and one for any other number that is computed;
//! loads, stores, constants, indices and roundings are none. Bytes are each element of a buffer
//! once, and twice where it is read and written; a workspace is the kernel's own affair and none.

use super::grouped::{GroupedContractSpec, GroupedOuterSpec};
use super::{AdamWSpec, AttentionSpec, ContractSpec, Dim, Elem, Instr, InstrOp, KernelSpec};
use super::{LinearCrossEntropySpec, MaskSpec, Operand, RegionSpec, ScatterAddSpec, View, Walk};
use crate::op::Collective;

/// FLOPs and bytes of one launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    pub flops: u64,
    pub bytes: u64,
}

/// Of AdamW, for each parameter: one to scale the gradient, three and four for the moments, and
/// nine from them to the parameter.
const ADAMW_FLOPS: u64 = 17;
/// A scalar, or an id.
const WORD: u64 = 4;

/// None for a transfer: how much it moves is the launch's, not the spec's.
pub fn work(spec: &KernelSpec) -> Option<Work> {
    Some(match spec {
        KernelSpec::Region(spec) => region(spec),
        KernelSpec::Contract(spec) => contract(spec),
        KernelSpec::ContractAdd(spec) => {
            // The sum is read, added to and written.
            let (alone, out) = (contract(spec), outer_size(spec));
            Work { flops: alone.flops + out, bytes: alone.bytes + out * Elem::F32.bytes() }
        }
        KernelSpec::Attention(spec) => {
            let [q, k, lse] = attention_tensors(spec);
            let flops = attention_flops(spec, false);
            Work { flops, bytes: 2 * q + 2 * k + lse + mask_bytes(spec) }
        }
        KernelSpec::AttentionGrad(spec) => {
            // q, y, dy, dq; k, v, dk, dv.
            let [q, k, lse] = attention_tensors(spec);
            let flops = attention_flops(spec, true);
            Work { flops, bytes: 4 * q + 4 * k + lse + mask_bytes(spec) }
        }
        KernelSpec::LinearCrossEntropy(spec) => linear_cross_entropy(spec),
        KernelSpec::Gather(spec) => {
            let rows = u64::from(spec.rows);
            let moved = rows * u64::from(spec.width) * spec.elem.bytes();
            Work { flops: 0, bytes: 2 * moved + rows * WORD }
        }
        KernelSpec::ScatterAdd(spec) => scatter_add(spec),
        KernelSpec::GroupedContract(spec) => grouped_contract(spec),
        KernelSpec::GroupedOuter(spec) => grouped_outer(spec),
        KernelSpec::CacheWrite(spec) => {
            let moved = product([spec.batch, spec.t, spec.width]) * spec.elem.bytes();
            Work { flops: 0, bytes: 2 * moved + WORD }
        }
        KernelSpec::SumOfSquares(spec) => {
            Work { flops: 2 * spec.len, bytes: spec.len * spec.elem.bytes() + WORD }
        }
        // The two numbers of the sum so far are read and written.
        KernelSpec::MoreSquares(spec) => {
            Work { flops: 2 * spec.len, bytes: spec.len * spec.elem.bytes() + 4 * WORD }
        }
        KernelSpec::AdamW(spec) => adamw(spec),
        KernelSpec::Collective(spec) => {
            // A rank adds up its own part.
            let (others, part) = (spec.group.ranks - 1, spec.len.div_ceil(spec.group.ranks));
            let adds = if spec.kind == Collective::AllGather { 0 } else { others * part };
            Work { flops: adds, bytes: 2 * spec.bytes() }
        }
        KernelSpec::Transfer => return None,
    })
}

/// FLOPs that a kernel spends where that is not what its body would: masked scores are skipped, and
/// gradients reuse the logits. None for all others.
pub fn kernel_flops(spec: &KernelSpec) -> Option<u64> {
    match spec {
        KernelSpec::Attention(a) => Some(attention_flops(a, false)),
        KernelSpec::AttentionGrad(a) => Some(attention_flops(a, true)),
        KernelSpec::LinearCrossEntropy(l) => Some(linear_cross_entropy_flops(l)),
        _ => None,
    }
}

fn product(sizes: impl IntoIterator<Item = u32>) -> u64 {
    sizes.into_iter().map(u64::from).product()
}

fn size(dims: &[Dim]) -> u64 {
    product(dims.iter().map(|dim| dim.size))
}

/// Results of instructions that compute something.
fn arithmetic(program: &[Instr]) -> u64 {
    use InstrOp::{Const, Index, Load, Round, Row, Store};
    let moves = |instr: &&Instr| {
        matches!(instr.op, Const(_) | Load(_) | Index(_) | Row(_) | Store(_) | Round)
    };
    (program.len() - program.iter().filter(moves).count()) as u64
}

fn loads(program: &[Instr], input: usize) -> bool {
    program.iter().any(|instr| instr.op == InstrOp::Load(input as u16))
}

/// Bytes of the elements that a view of these dims reaches: those along dims that it walks.
fn reached(view: &View, dims: &[u64]) -> u64 {
    let walked = view.strides.iter().zip(dims).filter(|(stride, _)| **stride > 0);
    walked.map(|(_, size)| *size).product::<u64>() * view.elem.bytes()
}

/// Every phase walks its rows once; of `Walk::Columns` the first phase runs at every index, and
/// what follows once for each column that is left.
fn region(spec: &RegionSpec) -> Work {
    let dims: Vec<u64> = spec.dims.iter().map(|size| u64::from(*size)).collect();
    let all: u64 = dims.iter().product();
    let last = dims.last().copied().unwrap_or(1);
    let once = match spec.walk {
        Walk::Rows => all / last.max(1),
        Walk::Columns { reduced } => {
            let before = dims.len().saturating_sub(1);
            let reduced = dims[before.saturating_sub(reduced as usize)..before].iter();
            all / reduced.product::<u64>().max(1)
        }
    };
    let flops = spec
        .phases
        .iter()
        .map(|phase| once * arithmetic(&phase.row) + all * arithmetic(&phase.cols));
    let views = spec.inputs.iter().chain(&spec.outputs);
    Work { flops: flops.sum(), bytes: views.map(|view| reached(view, &dims)).sum() }
}

/// Elements of a result.
fn outer_size(spec: &ContractSpec) -> u64 {
    size(&spec.batch) * size(&spec.m) * size(&spec.n)
}

/// 2 · batch · m · n · k, what the prologue does to each element of its operand and the epilogue to
/// each result; a, b, their inputs and the results once.
fn contract(spec: &ContractSpec) -> Work {
    let [batch, m, n, k] = [&spec.batch, &spec.m, &spec.n, &spec.k].map(|dims| size(dims));
    let out = outer_size(spec);
    let rows = |operand| if operand == Operand::A { m } else { n };
    let prepared = spec.prologue.iter().map(|p| rows(p.operand) * k * arithmetic(&p.program));
    // A program on pairs makes two results.
    let programs = if spec.rotary.is_some() { out / 2 } else { out };
    let flops = 2 * out * k + prepared.sum::<u64>() + programs * arithmetic(&spec.epilogue);
    let first = |dims: &[Dim]| product(dims.iter().filter(|d| d.stride > 0).map(|d| d.size));
    let second = |dims: &[Dim]| product(dims.iter().filter(|d| d.stride_b > 0).map(|d| d.size));
    let a = first(&spec.batch) * first(&spec.m) * first(&spec.k) * spec.a.bytes();
    let b = second(&spec.batch) * first(&spec.n) * second(&spec.k) * spec.b.bytes();
    let before = spec.prologue.iter().flat_map(|p| p.inputs.iter().map(move |v| (p.operand, v)));
    let before = before.map(|(operand, view)| reached(view, &[rows(operand), k]));
    let walked = match spec.rotary.map(u64::from) {
        None => vec![batch * m, n],
        Some(head) => {
            let rows = spec.m.iter().map(|dim| u64::from(dim.size));
            rows.chain([n / head, head / 2]).collect()
        }
    };
    let beside = |i: usize| match spec.rotary {
        // Both halves of a head are read, or one number for both.
        Some(_) => 1 + u64::from(loads(&spec.epilogue, 2 * i + 1)),
        None => 1,
    };
    let after = spec.epilogue_inputs.iter().enumerate();
    let after = after.map(|(i, view)| beside(i) * reached(view, &walked));
    let outputs = spec.outputs.iter().map(|elem| out * elem.bytes());
    Work { flops, bytes: a + b + before.sum::<u64>() + after.sum::<u64>() + outputs.sum::<u64>() }
}

/// Bytes of q, k and the log-sum-exp.
fn attention_tensors(spec: &AttentionSpec) -> [u64; 3] {
    let queries = product([spec.batch, spec.t, spec.kv_heads, spec.group]);
    let keys = product([spec.batch, spec.s, spec.kv_heads]);
    let row = u64::from(spec.head) * spec.elem.bytes();
    [queries * row, keys * row, queries * Elem::F32.bytes()]
}

fn mask_bytes(spec: &AttentionSpec) -> u64 {
    let documents = match spec.mask.documents {
        true => u64::from(spec.batch) * (u64::from(spec.t) + u64::from(spec.s)),
        false => 0,
    };
    WORD * (documents + u64::from(spec.mask.start))
}

/// Twice a head's size for each pair of a query and a key that it sees, once for q·k and once for
/// p·v; of the gradient the scores again, dp, dq, dk and dv. A causal query of a whole sequence
/// sees half of the keys, within a window at most those; documents are data, and not subtracted.
fn attention_flops(spec: &AttentionSpec, gradient: bool) -> u64 {
    let heads = product([spec.batch, spec.kv_heads, spec.group, spec.head]);
    let (t, s) = (u64::from(spec.t), u64::from(spec.s));
    let MaskSpec { causal, window, .. } = spec.mask;
    let twice_the_pairs = match window.map(u64::from) {
        Some(window) if causal && t == s && window < t => window * (2 * t - window),
        _ if causal && t == s => t * s,
        _ => 2 * t * s,
    };
    heads * twice_the_pairs * if gradient { 5 } else { 2 }
}

fn linear_cross_entropy_flops(spec: &LinearCrossEntropySpec) -> u64 {
    let once = 2 * product([spec.rows, spec.vocab, spec.width]);
    if spec.grad { 3 * once } else { once }
}

/// The logits, and with gradients dx and dw: one contraction each. What the softmax does to a logit
/// is little beside the `width` multiply-adds that made it, and not counted. No logits are stored.
fn linear_cross_entropy(spec: &LinearCrossEntropySpec) -> Work {
    let rows = u64::from(spec.rows);
    let x = product([spec.rows, spec.width]) * spec.elem.bytes();
    let table = product([spec.vocab, spec.width]);
    let numbers = WORD * (rows + 1 + u64::from(spec.weighted));
    let gradients = match (spec.grad, spec.accumulate) {
        (false, _) => 0,
        (true, false) => x + table * spec.dw.bytes(),
        (true, true) => x + 2 * table * spec.dw.bytes(),
    };
    let bytes = x + table * spec.elem.bytes() + numbers + gradients;
    Work { flops: linear_cross_entropy_flops(spec), bytes }
}

/// An addition for each element of g. The whole table is written, or with `accumulate` the rows
/// that have ids are read and written.
fn scatter_add(spec: &ScatterAddSpec) -> Work {
    let (rows, width) = (u64::from(spec.rows), u64::from(spec.width));
    let out = match spec.accumulate {
        true => 2 * rows.min(u64::from(spec.vocab)),
        false => u64::from(spec.vocab),
    };
    let g = rows * width * spec.elem.bytes();
    Work { flops: rows * width, bytes: rows * WORD + g + out * width * spec.out.bytes() }
}

/// 2 · rows · n · k; every matrix is read that rows may have.
fn grouped_contract(spec: &GroupedContractSpec) -> Work {
    let (rows, n, k) = (u64::from(spec.rows), u64::from(spec.n), u64::from(spec.k));
    let matrices = u64::from(spec.groups.min(spec.rows)) * n * k;
    let elements = rows / u64::from(spec.share.max(1)) * k + matrices + rows * n;
    Work { flops: 2 * rows * n * k, bytes: elements * spec.elem.bytes() + rows * WORD }
}

/// 2 · rows · m · n; every matrix is written.
fn grouped_outer(spec: &GroupedOuterSpec) -> Work {
    let (rows, m, n) = (u64::from(spec.rows), u64::from(spec.m), u64::from(spec.n));
    let a = rows / u64::from(spec.share_a.max(1)) * m;
    let b = rows / u64::from(spec.share_b.max(1)) * n;
    let out = product([spec.groups, spec.m, spec.n]) * spec.out.bytes();
    Work { flops: 2 * rows * m * n, bytes: (a + b) * spec.elem.bytes() + rows * WORD + out }
}

/// Gradients are read, moments and parameters read and written; with a master copy that is so for
/// it, and parameters are written.
fn adamw(spec: &AdamWSpec) -> Work {
    let parameters = match spec.master {
        true => 2 * Elem::F32.bytes() + spec.params.bytes(),
        false => 2 * spec.params.bytes(),
    };
    let numbers = WORD * (4 + u64::from(spec.stochastic));
    let each = spec.grads.bytes() + parameters + 4 * spec.moments.bytes();
    Work { flops: ADAMW_FLOPS * spec.len, bytes: each * spec.len + numbers }
}

#[cfg(test)]
mod tests;
