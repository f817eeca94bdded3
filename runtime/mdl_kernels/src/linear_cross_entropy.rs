//! The loss of a linear layer over a vocabulary and its gradients; all logits are never stored.
//!
//! # What it computes
//!
//! loss = Σ_{targets[i] ≥ 0} (log Σ_v exp(x[i]·w[v]) − x[i]·w[targets[i]]) / max(valid, 1) for
//! x [rows, width], w [vocab, width]. Rows are visited in blocks: logits, then in their place
//! (softmax − onehot)/valid, times the weight where there is one, then that block's dx and its part
//! of dw. 2·rows·vocab·width operations, three times as many with gradients; besides x and w about
//! 24 bytes per logit move. What takes the logits' place has the elements of x: where those are
//! bf16, it fills the first half of each row.
//! The loss of each row is stored, and one unit sums them in order with compensation.

use crate::device::{Class, Device, Slice};
use crate::gpu::cross_entropy as gpu;
use crate::vector_io::{load, store, store_as, store_one};
use cubecl::prelude::*;
use mdl_ir::kernel::{
    ContractSpec, Elem, Instr, InstrOp, KernelSpec, LinearCrossEntropyParts,
    LinearCrossEntropySpec, View,
};

/// Independent partial sums, to hide the latency of additions and to keep each one short.
const CHAINS: usize = 4;
/// Vectors added to one partial sum before it joins the total.
const STEPS: usize = 32;

/// scale = 1 / max(number of valid targets, 1)
#[cube(launch_unchecked)]
fn count_valid(targets: &[i32], scale: &mut [f32]) {
    if UNIT_POS == 0 {
        let mut valid = 0u32;
        for i in 0..targets.len() {
            if targets[i] >= 0 {
                valid += 1u32;
            }
        }
        scale[0] = 1.0 / f32::cast_from(max(valid, 1u32));
    }
}

/// scale = weight · scale
#[cube(launch_unchecked)]
fn weigh(weight: &[f32], scale: &mut [f32]) {
    if UNIT_POS == 0 {
        scale[0] *= weight[0];
    }
}

/// For each row of a block: its loss, and with `grad` the logits become their gradients.
#[cube(launch_unchecked)]
fn softmax_rows<N: Size>(
    logits: &mut [f32],
    targets: &[i32],
    scale: &[f32],
    losses: &mut [f32],
    _unaligned: &[f32],
    #[comptime] vocab: usize,
    #[comptime] elem: Elem,
    #[comptime] grad: bool,
) {
    let rows = targets.len();
    let unit = UNIT_POS as usize;
    let units = CUBE_DIM as usize;
    for row in rows * unit / units..rows * (unit + 1) / units {
        let at = row * vocab;
        let target = targets[row];
        let top = row_max::<N>(&*logits, at, vocab);
        if target >= 0 {
            let index = at + usize::cast_from(target);
            let own = logits[index];
            let sum = row_exp_sum::<N>(logits, at, top, vocab, grad);
            losses[row] = (top - own) + sum.ln();
            if comptime!(grad) {
                let factor = scale[0] / sum;
                let own = logits[index] * factor - scale[0];
                let to = row_scale::<N>(logits, at, factor, vocab, elem);
                store_one(logits, to + usize::cast_from(target), own, elem);
            }
        } else {
            losses[row] = 0.0;
            if comptime!(grad) {
                row_clear::<N>(logits, at, vocab);
            }
        }
    }
}

#[cube]
fn row_max<N: Size>(logits: &[f32], at: usize, #[comptime] vocab: usize) -> f32 {
    let step = comptime!(CHAINS) * N::value();
    let mut tops = Array::<Vector<f32, N>>::new(CHAINS);
    #[unroll]
    for i in 0..CHAINS {
        tops[i] = Vector::new(f32::min_value());
    }
    for v in 0..vocab / step {
        #[unroll]
        for i in 0..CHAINS {
            let here = at + v * step + i * N::value();
            tops[i] = tops[i].max(load::<f32, N>(logits, here));
        }
    }
    let mut top = f32::min_value();
    #[unroll]
    for i in 0..CHAINS {
        #[unroll]
        for lane in 0..N::value() {
            top = max(top, tops[i].extract(lane));
        }
    }
    for v in vocab / step * step..vocab {
        top = max(top, logits[at + v]);
    }
    top
}

/// Σ exp(logit − top); with `keep` the exponentials take the logits' place. Summed in two levels,
/// so that rounding grows with the square root of the vocabulary at most.
#[cube]
fn row_exp_sum<N: Size>(
    logits: &mut [f32],
    at: usize,
    top: f32,
    #[comptime] vocab: usize,
    #[comptime] keep: bool,
) -> f32 {
    let step = comptime!(CHAINS) * N::value();
    let steps = vocab / step;
    let mut total = Vector::<f32, N>::new(0.0);
    for level in 0..steps.div_ceil(STEPS) {
        let mut sums = Array::<Vector<f32, N>>::new(CHAINS);
        for v in level * STEPS..min((level + 1) * STEPS, steps) {
            #[unroll]
            for i in 0..CHAINS {
                let here = at + v * step + i * N::value();
                let value = (load::<f32, N>(&*logits, here) - Vector::new(top)).exp();
                sums[i] += value;
                if comptime!(keep) {
                    store::<f32, N>(logits, here, value);
                }
            }
        }
        #[unroll]
        for i in 0..CHAINS {
            total += sums[i];
        }
    }
    let mut sum = 0.0f32.runtime();
    #[unroll]
    for lane in 0..N::value() {
        sum += total.extract(lane);
    }
    for v in steps * step..vocab {
        let value = (logits[at + v] - top).exp();
        sum += value;
        if comptime!(keep) {
            logits[at + v] = value;
        }
    }
    sum
}

/// Puts a row of gradients, the logits' exponentials times `factor`, in their place, and gives the
/// element where it begins: each vector goes where those before it have been read.
#[cube]
fn row_scale<N: Size>(
    logits: &mut [f32],
    at: usize,
    factor: f32,
    #[comptime] vocab: usize,
    #[comptime] elem: Elem,
) -> usize {
    let to = at * comptime!((Elem::F32.bytes() / elem.bytes()) as usize);
    for v in 0..vocab / N::value() {
        let c = v * N::value();
        let value = load::<f32, N>(&*logits, at + c) * Vector::new(factor);
        store_as::<N>(logits, to + c, value, elem);
    }
    for c in vocab / N::value() * N::value()..vocab {
        let value = logits[at + c] * factor;
        store_one(logits, to + c, value, elem);
    }
    to
}

/// Zeros are the same bits whatever the elements are.
#[cube]
fn row_clear<N: Size>(logits: &mut [f32], at: usize, #[comptime] vocab: usize) {
    for v in 0..vocab / N::value() {
        store::<f32, N>(logits, at + v * N::value(), Vector::new(0.0));
    }
    for v in vocab / N::value() * N::value()..vocab {
        logits[at + v] = 0.0;
    }
}

/// loss = scale · Σ losses, by Kahan's compensated sum.
#[cube(launch_unchecked)]
fn sum_losses(losses: &[f32], scale: &[f32], loss: &mut [f32]) {
    if UNIT_POS == 0 {
        let mut sum = 0.0f32.runtime();
        let mut lost = 0.0f32.runtime();
        for i in 0..losses.len() {
            let term = losses[i] - lost;
            let next = sum + term;
            lost = (next - sum) - term;
            sum = next;
        }
        loss[0] = sum * scale[0];
    }
}

pub(crate) fn launch(device: &Device, spec: &LinearCrossEntropySpec, args: &[Slice]) {
    let parts = LinearCrossEntropyParts::of(spec, device.target());
    let (rows, vocab, width) = (spec.rows as u64, spec.vocab as u64, spec.width as u64);
    let (weight, results) = args[3..].split_at(usize::from(spec.weighted));
    let (x, w, targets, loss) = (&args[0], &args[1], &args[2], &results[0]);
    let workspace = args.last().expect("invariant: the workspace comes last");
    let losses = workspace.part(parts.losses, rows * 4);
    let scale = workspace.part(parts.scale, 4);
    let scratch = workspace.part(parts.scratch, parts.end - parts.scratch);
    count(device, &targets.part(0, rows * 4), &scale);
    if let [weight] = weight {
        weigh_scale(device, weight, &scale);
    }
    let mut first = 0;
    while first < rows {
        let count = (rows - first).min(u64::from(parts.block_rows));
        let [to_logits, to_dx, to_dw] = spec.contractions(count as u32);
        let rows_of = |slice: &Slice<'_>, bytes: u64| -> (u64, u64) {
            assert!(slice.bytes >= rows * bytes, "a row for every row of x");
            (first * bytes, count * bytes)
        };
        let row = width * spec.elem.bytes();
        let (at, bytes) = rows_of(x, row);
        let x_block = x.part(at, bytes);
        let logits = workspace.part(parts.logits, count * vocab * 4);
        contract(device, to_logits, &[x_block, *w, logits, scratch]);
        let (at, bytes) = rows_of(targets, 4);
        softmax(device, &[logits, targets.part(at, bytes), scale, losses.part(at, bytes)], spec);
        if spec.grad {
            let (at, bytes) = rows_of(&results[1], row);
            let dx_block = results[1].part(at, bytes);
            contract(device, to_dx, &[logits, *w, dx_block, scratch]);
            let dw = [logits, x_block, results[2], scratch];
            if first == 0 && !spec.accumulate {
                contract(device, to_dw, &dw);
            } else {
                add(device, to_dw, &dw);
            }
        }
        first += count;
    }
    total(device, &losses, &scale, loss);
}

fn contract(device: &Device, spec: ContractSpec, args: &[Slice]) {
    device.launch(&KernelSpec::Contract(spec), args);
}

/// A contraction added to what its output holds; where that is bf16, the sum is rounded once.
fn add(device: &Device, mut spec: ContractSpec, args: &[Slice; 4]) {
    if spec.is_plain_sum() {
        return device.launch(&KernelSpec::ContractAdd(spec), args);
    }
    let columns = spec.n.iter().map(|dim| dim.size).product();
    let instr = |op, dst, a, b| Instr { op, dst, a, b, c: 0 };
    spec.epilogue_inputs =
        vec![View { elem: spec.outputs[0], offset: 0, strides: vec![columns, 1] }];
    spec.epilogue = vec![
        instr(InstrOp::Load(0), 1, 0, 0),
        instr(InstrOp::Add, 2, 0, 1),
        instr(InstrOp::Store(0), 0, 2, 0),
    ];
    let [a, b, out, scratch] = *args;
    contract(device, spec, &[a, b, out, out, scratch]);
}

fn count(device: &Device, targets: &Slice, scale: &Slice) {
    if device.class() != Class::Cpu {
        return gpu::count(device, targets, scale);
    }
    // SAFETY: `scale` has one element.
    unsafe {
        count_valid::launch_unchecked(
            device.client(),
            CubeCount::new_single(),
            CubeDim::new_1d(1),
            device.buffer(targets),
            device.buffer(scale),
        );
    }
    device.launched();
}

fn weigh_scale(device: &Device, weight: &Slice, scale: &Slice) {
    // SAFETY: both have one element.
    unsafe {
        weigh::launch_unchecked(
            device.client(),
            CubeCount::new_single(),
            CubeDim::new_1d(1),
            device.buffer(weight),
            device.buffer(scale),
        );
    }
    device.launched();
}

fn softmax(device: &Device, buffers: &[Slice; 4], spec: &LinearCrossEntropySpec) {
    if device.class() != Class::Cpu {
        return gpu::softmax(device, buffers, spec);
    }
    // SAFETY: targets below the vocabulary are the caller's promise; rows come from the slices.
    unsafe {
        softmax_rows::launch_unchecked(
            device.client(),
            CubeCount::new_single(),
            device.cube_dim(),
            device.vector_width(),
            device.buffer(&buffers[0]),
            device.buffer(&buffers[1]),
            device.buffer(&buffers[2]),
            device.buffer(&buffers[3]),
            device.unaligned(&buffers[0], [Elem::F32, spec.elem]),
            spec.vocab as usize,
            spec.elem,
            spec.grad,
        );
    }
    device.launched();
}

fn total(device: &Device, losses: &Slice, scale: &Slice, loss: &Slice) {
    if device.class() != Class::Cpu {
        return gpu::total(device, losses, scale, loss);
    }
    // SAFETY: `loss` and `scale` have one element.
    unsafe {
        sum_losses::launch_unchecked(
            device.client(),
            CubeCount::new_single(),
            CubeDim::new_1d(1),
            device.buffer(losses),
            device.buffer(scale),
            device.buffer(loss),
        );
    }
    device.launched();
}
