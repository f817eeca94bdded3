//! The loss over a vocabulary and its gradients against f64.

use mdl_ir::kernel::{Elem, KernelSpec, LinearCrossEntropySpec, workspace_bytes};
use mdl_kernels::Device;

/// Relative to the largest gradient: rounding of logits of size about 3 passes into the
/// probabilities as it is (3·2⁻²⁴ = 2·10⁻⁷), exp and the division add about 2⁻²³, sums of a few
/// hundred terms √300·2⁻²⁴/2 = 5·10⁻⁷.
const GRADIENT_TOLERANCE: f64 = 1e-6;
/// dx sums over the vocabulary, in blocks of at most 512: (√512 + √196)·2⁻²⁴ for 10⁵ terms.
const LONG_SUM_TOLERANCE: f64 = 2.2e-6;
const LOSS_TOLERANCE: f64 = 1e-6;
/// What a weighted case weighs, and what its gradient of w is added to.
const WEIGHT: f32 = 0.375;
const OLD: f32 = 0.015625;

fn numbers(len: usize, seed: u32, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2654435761).wrapping_add(12345);
    let mut next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next() * scale).collect()
}

struct Case {
    spec: LinearCrossEntropySpec,
    x: Vec<f32>,
    w: Vec<f32>,
    targets: Vec<i32>,
}

fn case(rows: u32, vocab: u32, width: u32, ignore: impl Fn(u32) -> bool) -> Case {
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
    let words = [case.x.len(), case.w.len(), case.targets.len(), 1, case.x.len(), case.w.len()];
    let mut sizes: Vec<u64> = words.iter().map(|words| *words as u64 * 4).collect();
    if !case.spec.grad {
        sizes.truncate(4);
    }
    sizes.push(workspace_bytes(&spec, device.units()));
    let weight = sizes.len();
    sizes.push(4);
    let mut offsets = vec![0u64];
    for bytes in &sizes {
        offsets.push((offsets[offsets.len() - 1] + bytes).next_multiple_of(256));
    }
    let arena = device.alloc(offsets[sizes.len()]);
    let write = |i: usize, data: &[u8]| device.write(&arena, offsets[i], data).expect("inside");
    write(0, bytemuck::cast_slice(&case.x));
    write(1, bytemuck::cast_slice(&case.w));
    write(2, bytemuck::cast_slice(&case.targets));
    write(weight, bytemuck::cast_slice(&[WEIGHT]));
    if case.spec.accumulate {
        write(5, bytemuck::cast_slice(&vec![OLD; case.w.len()]));
    }
    let mut args: Vec<_> = (0..sizes.len()).map(|i| arena.slice(offsets[i], sizes[i])).collect();
    let weight = args.pop().expect("the last one");
    if case.spec.weighted {
        args.insert(3, weight);
    }
    device.launch(&spec, &args);
    let read = |i: usize| -> Vec<f32> {
        let bytes = device.read(&arena, offsets[i], sizes[i]).expect("inside");
        bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    if case.spec.grad { (read(3)[0], read(4), read(5)) } else { (read(3)[0], vec![], vec![]) }
}

/// loss, dx, dw in f64.
fn reference(case: &Case) -> (f64, Vec<f64>, Vec<f64>) {
    let (vocab, width) = (case.spec.vocab as usize, case.spec.width as usize);
    let valid = case.targets.iter().filter(|target| **target >= 0).count().max(1) as f64;
    let (mut loss, mut dx) = (0.0, vec![0.0; case.x.len()]);
    let mut dw = vec![0.0; case.w.len()];
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
            let d = ((logits[v] - top).exp() / sum - own) / valid;
            for c in 0..width {
                dx[i * width + c] += d * f64::from(case.w[v * width + c]);
                dw[v * width + c] += d * f64::from(x[c]);
            }
        }
    }
    (loss / valid, dx, dw)
}

fn check(case: &Case, tolerance: f64) {
    let device = Device::cpu(None);
    let (loss, dx, dw) = launch(&device, case);
    let (want_loss, want_dx, want_dw) = reference(case);
    let error = (f64::from(loss) - want_loss).abs() / want_loss.abs().max(1.0);
    assert!(error <= LOSS_TOLERANCE, "loss {loss} for {want_loss}");
    for (name, got, want) in [("dx", &dx, &want_dx), ("dw", &dw, &want_dw)] {
        let largest = want.iter().fold(0.0f64, |most, x| most.max(x.abs())).max(1e-30);
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let error = (f64::from(*got) - want).abs() / largest;
            assert!(error <= tolerance, "{name}[{i}]: {got} for {want}, {error:e}");
        }
    }
    let forward = Case {
        spec: LinearCrossEntropySpec { grad: false, ..case.spec.clone() },
        x: case.x.clone(),
        w: case.w.clone(),
        targets: case.targets.clone(),
    };
    assert_eq!(launch(&device, &forward).0, loss, "the loss alone is the same loss");
}

#[test]
fn loss_and_gradients() {
    check(&case(40, 300, 64, |_| false), GRADIENT_TOLERANCE);
    check(&case(133, 517, 67, |i| i % 3 == 0), GRADIENT_TOLERANCE);
    check(&case(5, 1, 8, |_| false), GRADIENT_TOLERANCE);
    check(&case(7, 33, 5, |i| i == 2), GRADIENT_TOLERANCE);
}

#[test]
fn several_blocks_of_rows() {
    // 2^24 logits at most: 160 rows at a time with this vocabulary.
    check(&case(330, 100_000, 3, |i| i % 5 == 4), LONG_SUM_TOLERANCE);
}

#[test]
fn a_weight_scales_and_old_gradients_stay() {
    let plain = case(133, 517, 67, |i| i % 3 == 0);
    let spec = LinearCrossEntropySpec { weighted: true, accumulate: true, ..plain.spec.clone() };
    let weighted = Case { spec, ..case(133, 517, 67, |i| i % 3 == 0) };
    let device = Device::cpu(None);
    let (one, other) = (launch(&device, &plain), launch(&device, &weighted));
    let close = |got: f32, want: f32, most: f32| {
        let error = (f64::from(got) - f64::from(want)).abs() / f64::from(most);
        assert!(error <= GRADIENT_TOLERANCE, "{got} for {want}");
    };
    let most = |all: &[f32]| all.iter().fold(OLD, |most, x| most.max(x.abs()));
    close(other.0, one.0 * WEIGHT, one.0);
    one.1.iter().zip(&other.1).for_each(|(x, y)| close(*y, x * WEIGHT, most(&one.1)));
    one.2.iter().zip(&other.2).for_each(|(x, y)| close(*y, x * WEIGHT + OLD, most(&one.2)));
}

#[test]
fn nothing_valid() {
    let (loss, dx, dw) = launch(&Device::cpu(None), &case(20, 50, 16, |_| true));
    assert_eq!(loss, 0.0);
    assert!(dx.iter().chain(&dw).all(|d| *d == 0.0));
}

#[test]
fn results_do_not_depend_on_the_units() {
    let case = case(70, 1000, 40, |i| i % 4 == 1);
    let one = launch(&Device::cpu(Some(1)), &case);
    assert_eq!(one, launch(&Device::cpu(Some(2)), &case));
    assert_eq!(one, launch(&Device::cpu(Some(3)), &case));
}
