//! Prints what contractions reach of the device's multiply-add peak: `gemm [units [shape]]`.
//!
//! Each is the best of several runs, and the peak is measured again beside each shape, because
//! other work on the machine moves both.

use mdl_ir::kernel::{ContractSpec, Dim, Elem, KernelSpec, workspace_bytes};
use mdl_kernels::{Device, Slice, measure_fma_peak, measure_triad};
use std::time::Instant;

const SHAPES: [(u32, u32, u32); 18] = [
    (512, 512, 512),
    (768, 768, 768),
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (2048, 288, 288),
    (2048, 768, 288),
    (2048, 288, 768),
    (2048, 32000, 288),
    (2048, 768, 768),
    (2048, 2048, 768),
    (2048, 768, 2048),
    (288, 288, 2048),
    (1, 2048, 2048),
    (1, 32000, 288),
    (8, 2048, 2048),
    (4, 2048, 2048),
    (1, 288, 288),
    (16, 16, 16),
];

fn dim(size: u32, stride: u32, stride_b: u32) -> Dim {
    Dim { size, stride, stride_b }
}

fn spec(m: u32, n: u32, k: u32, form: &str) -> ContractSpec {
    let (am, ak) = if form.starts_with('T') { (1, m) } else { (k, 1) };
    let (bn, bk) = if form.ends_with('T') { (k, 1) } else { (1, n) };
    ContractSpec {
        a: Elem::F32,
        b: Elem::F32,
        outputs: vec![Elem::F32],
        batch: vec![],
        m: vec![dim(m, am, 0)],
        n: vec![dim(n, bn, 0)],
        k: vec![dim(k, ak, bk)],
        prologue: None,
        rotary: None,
        epilogue_inputs: vec![],
        epilogue: vec![],
    }
}

/// Seconds of one launch, the best of `runs` groups of `launches`.
fn seconds(device: &Device, spec: &KernelSpec, args: &[Slice], launches: u32, runs: u32) -> f64 {
    device.launch(spec, args);
    device.sync();
    let mut best = f64::INFINITY;
    for _ in 0..runs {
        let start = Instant::now();
        for _ in 0..launches {
            device.launch(spec, args);
        }
        device.sync();
        best = best.min(start.elapsed().as_secs_f64() / f64::from(launches));
    }
    best
}

fn main() {
    let units = std::env::args().nth(1).map(|units| units.parse().expect("a number of units"));
    let device = Device::cpu(units);
    println!("{device:?}, {:.1} GB/s", measure_triad(&device));
    let wanted = std::env::args().nth(2).unwrap_or_default();
    for (m, n, k) in SHAPES {
        if !format!("{m}x{n}x{k}").contains(&wanted) {
            continue;
        }
        for form in ["NN", "NT", "TN"] {
            let spec = KernelSpec::Contract(spec(m, n, k, form));
            let bytes = [m * k, k * n, m * n].map(|elements| u64::from(elements) * 4);
            let scratch = workspace_bytes(&spec, device.units());
            let arena = device.alloc(bytes.iter().sum::<u64>() + scratch + 1024);
            let mut end = 0;
            let mut args = Vec::new();
            for bytes in bytes.into_iter().chain([scratch]) {
                args.push(arena.slice(end, bytes));
                end = (end + bytes).next_multiple_of(256);
            }
            let flops = 2.0 * f64::from(m) * f64::from(n) * f64::from(k);
            let launches = (2e8 / flops).clamp(1.0, 20.0) as u32;
            let time = seconds(&device, &spec, &args, launches, 20);
            let peak = measure_fma_peak(&device);
            let rate = flops / time / 1e9;
            let traffic = (bytes[0] + bytes[1] + bytes[2]) as f64 / time / 1e9;
            println!(
                "{m:5} {n:5} {k:5} {form}: {rate:7.1} GFLOP/s, {:3.0} % of {peak:.0}, \
                 {traffic:5.1} GB/s, {:.0} us",
                100.0 * rate / peak,
                time * 1e6
            );
        }
    }
}
