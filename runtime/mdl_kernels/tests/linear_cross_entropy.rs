//! The loss over a vocabulary and its gradients against f64.

use mdl_ir::kernel::{
    Elem, KernelSpec, LinearCrossEntropyParts, LinearCrossEntropySpec, workspace_bytes,
};
use mdl_kernels::{Class, Device};
use std::sync::OnceLock;

mod elements;
use elements::{from_bytes, nearest, storing_error, to_bytes};

/// Relative to the largest gradient: rounding of logits of size about 3 passes into the
/// probabilities as it is (3·2⁻²⁴ = 2·10⁻⁷), exp and the division add about 2⁻²³, sums of a few
/// hundred terms √300·2⁻²⁴/2 = 5·10⁻⁷.
const GRADIENT_TOLERANCE: f64 = 1e-6;
/// dx sums over the vocabulary, in blocks of at most 512: (√512 + √196)·2⁻²⁴ for 10⁵ terms.
const LONG_SUM_TOLERANCE: f64 = 2.2e-6;
const LOSS_TOLERANCE: f64 = 1e-6;
/// Steps of k that a GPU adds up in one run.
const BLOCK: u32 = 512;
/// What a weighted case weighs, and what its gradient of w is added to.
const WEIGHT: f32 = 0.375;
const OLD: f32 = 0.015625;
/// Of x, w and dx, and of dw.
const ELEMS: [[Elem; 2]; 3] =
    [[Elem::F32, Elem::F32], [Elem::Bf16, Elem::Bf16], [Elem::Bf16, Elem::F32]];

fn numbers(len: usize, seed: u32, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2654435761).wrapping_add(12345);
    let mut next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next() * scale).collect()
}

#[derive(Clone)]
struct Case {
    spec: LinearCrossEntropySpec,
    x: Vec<f32>,
    w: Vec<f32>,
    targets: Vec<i32>,
}

/// The case in every element type.
fn cases(rows: u32, vocab: u32, width: u32, ignore: fn(u32) -> bool) -> Vec<Case> {
    let with = |[elem, dw]: [Elem; 2]| {
        let case = case(rows, vocab, width, ignore);
        let (x, w) = (nearest(elem, case.x), nearest(elem, case.w));
        Case { spec: LinearCrossEntropySpec { elem, dw, ..case.spec }, x, w, ..case }
    };
    ELEMS.map(with).into_iter().collect()
}

fn case(rows: u32, vocab: u32, width: u32, ignore: fn(u32) -> bool) -> Case {
    let scale = 4.0 / (width as f32).sqrt();
    Case {
        spec: LinearCrossEntropySpec {
            elem: Elem::F32,
            dw: Elem::F32,
            rows,
            vocab,
            width,
            grad: true,
            weighted: false,
            accumulate: false,
        },
        x: numbers((rows * width) as usize, 3, 1.0),
        w: numbers((vocab * width) as usize, 4, scale),
        targets: (0..rows)
            .map(|i| if ignore(i) { -1 } else { (i * 7919 % vocab) as i32 })
            .collect(),
    }
}

/// loss, dx, dw on the device.
fn launch(device: &Device, case: &Case) -> (f32, Vec<f32>, Vec<f32>) {
    let spec = KernelSpec::LinearCrossEntropy(case.spec.clone());
    let (elem, dw) = (case.spec.elem, case.spec.dw);
    let elems = [elem, elem, Elem::I32, Elem::F32, elem, dw];
    let lens = [case.x.len(), case.w.len(), case.targets.len(), 1, case.x.len(), case.w.len()];
    let mut sizes: Vec<u64> =
        lens.iter().zip(elems).map(|(len, elem)| *len as u64 * elem.bytes()).collect();
    if !case.spec.grad {
        sizes.truncate(4);
    }
    sizes.push(workspace_bytes(&spec, device.target()));
    let weight = sizes.len();
    sizes.push(4);
    let mut offsets = vec![0u64];
    for bytes in &sizes {
        offsets.push((offsets[offsets.len() - 1] + bytes).next_multiple_of(256));
    }
    let arena = device.alloc(offsets[sizes.len()]);
    let write = |i: usize, data: &[u8]| device.write(&arena, offsets[i], data).expect("inside");
    write(0, &to_bytes(elem, &case.x));
    write(1, &to_bytes(elem, &case.w));
    write(2, bytemuck::cast_slice(&case.targets));
    write(weight, bytemuck::cast_slice(&[WEIGHT]));
    if case.spec.accumulate {
        write(5, &to_bytes(dw, &vec![OLD; case.w.len()]));
    }
    let mut args: Vec<_> = (0..sizes.len()).map(|i| arena.slice(offsets[i], sizes[i])).collect();
    let weight = args.pop().expect("the last one");
    if case.spec.weighted {
        args.insert(3, weight);
    }
    device.launch(&spec, &args);
    let read = |i: usize| -> Vec<f32> {
        let bytes = device.read(&arena, offsets[i], sizes[i]).expect("inside");
        from_bytes(elems[i], &bytes)
    };
    if case.spec.grad { (read(3)[0], read(4), read(5)) } else { (read(3)[0], vec![], vec![]) }
}

/// What a result should be, and how far rounding of the logits' gradients may move it.
#[derive(Clone, Copy, Default)]
struct Want {
    value: f64,
    rounding: f64,
}

impl Want {
    /// Adds d·factor, where d is stored in an element of x before it is multiplied.
    fn add(&mut self, elem: Elem, d: f64, factor: f32) {
        self.value += d * f64::from(factor);
        self.rounding += storing_error(elem, d) * f64::from(factor.abs());
    }
}

/// loss, dx, dw in f64.
fn reference(case: &Case) -> (f64, Vec<Want>, Vec<Want>) {
    let (vocab, width) = (case.spec.vocab as usize, case.spec.width as usize);
    let valid = case.targets.iter().filter(|target| **target >= 0).count().max(1) as f64;
    let weight = if case.spec.weighted { f64::from(WEIGHT) } else { 1.0 };
    let (mut loss, mut dx) = (0.0, vec![Want::default(); case.x.len()]);
    let mut dw = vec![Want::default(); case.w.len()];
    for (i, target) in case.targets.iter().enumerate().filter(|(_, target)| **target >= 0) {
        let x = &case.x[i * width..(i + 1) * width];
        let rows = || case.w.chunks_exact(width);
        let dot = |w: &[f32]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
        let logits: Vec<f64> = rows().map(dot).collect();
        let top = logits.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = logits.iter().map(|logit| (logit - top).exp()).sum();
        loss += top + sum.ln() - logits[*target as usize];
        for v in 0..vocab {
            let own = if v == *target as usize { 1.0 } else { 0.0 };
            let d = ((logits[v] - top).exp() / sum - own) / valid * weight;
            for c in 0..width {
                dx[i * width + c].add(case.spec.elem, d, case.w[v * width + c]);
                dw[v * width + c].add(case.spec.elem, d, x[c]);
            }
        }
    }
    let old = if case.spec.accumulate { f64::from(OLD) } else { 0.0 };
    dw.iter_mut().for_each(|want| want.value += old);
    (loss / valid * weight, dx, dw)
}

/// Of dw over blocks of rows; sums of some of the blocks are at most twice the largest of all.
fn storing_error_of_blocks(case: &Case, device: &Device, largest: f64, want: f64) -> f64 {
    let rows = LinearCrossEntropyParts::of(&case.spec, device.target()).block_rows;
    match case.spec.rows.div_ceil(rows) {
        1 => storing_error(case.spec.dw, want),
        blocks => f64::from(blocks) * storing_error(case.spec.dw, 2.0 * largest),
    }
}

fn check(case: &Case, tolerance: f64) {
    static ALL: OnceLock<Vec<Device>> = OnceLock::new();
    let alone = std::env::var_os("MDL_GPUS_ALONE").is_some();
    let takes = |device: &&Device| {
        let wanted = !alone || device.class() != Class::Cpu;
        wanted && device.takes(case.spec.elem) && device.takes(case.spec.dw)
    };
    for device in ALL.get_or_init(Device::all).iter().filter(takes) {
        check_on(device, case, tolerance);
    }
}

/// What a GPU adds, relative to the largest gradient. It sums within a block in one run and not by
/// vectors, over the width for a logit and over the vocabulary or the rows for a gradient:
/// √k·2⁻²⁴. Tensor cores cut off where they add: up to 2⁻²³ of the sum in each of three products of
/// eight steps, of 32 steps at a time where there are more than a block; these sums are rounded as
/// units round theirs.
fn of_gpu(device: &Device, spec: &LinearCrossEntropySpec) -> f64 {
    let lengths = [spec.width, spec.vocab.max(spec.rows)];
    let rounded = |k: &u32| f64::from(*k).sqrt() * 2f64.powi(-24);
    let cut = |k: &u32| {
        let in_one_run = if *k > BLOCK { 32 } else { *k };
        3.0 * f64::from(in_one_run.div_ceil(8)) * 2f64.powi(-23)
    };
    match device.class() {
        Class::Cpu => 0.0,
        Class::Wgpu => {
            let block = |k: &u32| f64::from((*k).min(BLOCK)).sqrt() * 2f64.powi(-24);
            lengths.iter().map(block).sum()
        }
        Class::Cuda => lengths.iter().map(|k| cut(k) + rounded(k)).sum(),
    }
}

fn check_on(device: &Device, case: &Case, tolerance: f64) {
    let class = device.class();
    let tolerance = tolerance + of_gpu(device, &case.spec);
    let (loss, dx, dw) = launch(device, case);
    let (want_loss, want_dx, want_dw) = reference(case);
    let error = (f64::from(loss) - want_loss).abs() / want_loss.abs().max(1.0);
    let tolerance_of_loss = LOSS_TOLERANCE + of_gpu(device, &case.spec);
    assert!(error <= tolerance_of_loss, "{class:?}: loss {loss} for {want_loss}");
    let stored_dx = |_, want| storing_error(case.spec.elem, want);
    let stored_dw = |largest, want| storing_error_of_blocks(case, device, largest, want);
    let stored: [&dyn Fn(f64, f64) -> f64; 2] = [&stored_dx, &stored_dw];
    let both = [("dx", &dx, &want_dx), ("dw", &dw, &want_dw)];
    for ((name, got, want), stored) in both.into_iter().zip(stored) {
        let largest = want.iter().fold(0.0f64, |most, x| most.max(x.value.abs())).max(1e-30);
        for (i, (got, Want { value: want, rounding })) in got.iter().zip(want).enumerate() {
            // Rounding the result acts on what rounding the logits' gradients has made of it.
            let off = rounding + stored(largest, want.abs() + rounding);
            let error = ((f64::from(*got) - want).abs() - off) / largest;
            assert!(error <= tolerance, "{class:?}, {name}[{i}]: {got} for {want}, {error:e}");
        }
    }
    let spec = LinearCrossEntropySpec { grad: false, accumulate: false, ..case.spec.clone() };
    let forward = Case { spec, ..case.clone() };
    assert_eq!(launch(device, &forward).0, loss, "the loss alone is the same loss");
}

fn check_all(cases: &[Case], tolerance: f64) {
    cases.iter().for_each(|case| check(case, tolerance));
}

#[test]
fn loss_and_gradients() {
    check_all(&cases(40, 300, 64, |_| false), GRADIENT_TOLERANCE);
    check_all(&cases(133, 517, 67, |i| i % 3 == 0), GRADIENT_TOLERANCE);
    check_all(&cases(5, 1, 8, |_| false), GRADIENT_TOLERANCE);
    check_all(&cases(7, 33, 5, |i| i == 2), GRADIENT_TOLERANCE);
}

#[test]
fn several_blocks_of_rows() {
    // 2^24 logits at most: 160 rows at a time with this vocabulary.
    check_all(&cases(330, 100_000, 3, |i| i % 5 == 4), LONG_SUM_TOLERANCE);
}

#[test]
fn a_weight_scales_and_old_gradients_stay() {
    for case in cases(133, 517, 67, |i| i % 3 == 0) {
        let spec = LinearCrossEntropySpec { weighted: true, accumulate: true, ..case.spec.clone() };
        check(&Case { spec, ..case }, GRADIENT_TOLERANCE);
    }
}

#[test]
fn nothing_valid() {
    for case in cases(20, 50, 16, |_| true) {
        let (loss, dx, dw) = launch(&Device::cpu(None), &case);
        assert_eq!(loss, 0.0);
        assert!(dx.iter().chain(&dw).all(|d| *d == 0.0));
    }
}

#[test]
fn results_do_not_depend_on_the_units() {
    for case in cases(70, 1000, 40, |i| i % 4 == 1) {
        let one = launch(&Device::cpu(Some(1)), &case);
        assert_eq!(one, launch(&Device::cpu(Some(2)), &case));
        assert_eq!(one, launch(&Device::cpu(Some(3)), &case));
    }
}
