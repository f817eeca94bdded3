//! Prints what the loss over a vocabulary reaches of the device's multiply-add peak.

use mdl_ir::kernel::{Elem, KernelSpec, LinearCrossEntropySpec, workspace_bytes};
use mdl_kernels::{Device, measure_fma_peak};
use std::time::Instant;

const SHAPES: [(u32, u32, u32); 4] =
    [(2048, 512, 64), (2048, 4096, 288), (1024, 32000, 288), (1024, 32000, 768)];
const RUNS: usize = 8;

fn main() {
    let units = std::env::args().nth(1).map(|units| units.parse().expect("a number of units"));
    let device = Device::cpu(units);
    for (rows, vocab, width) in SHAPES {
        for grad in [false, true] {
            let spec = LinearCrossEntropySpec {
                elem: Elem::F32,
                dw: Elem::F32,
                rows,
                vocab,
                width,
                grad,
                weighted: false,
                accumulate: false,
            };
            let spec = KernelSpec::LinearCrossEntropy(spec);
            let (x, w) = (u64::from(rows * width) * 4, u64::from(vocab * width) * 4);
            let mut sizes = vec![x, w, u64::from(rows) * 4, 4];
            sizes.extend(if grad { vec![x, w] } else { vec![] });
            sizes.push(workspace_bytes(&spec, device.units()));
            let arena = device.alloc(sizes.iter().sum::<u64>() + 256 * sizes.len() as u64);
            let mut end = 0;
            let mut args = Vec::new();
            for bytes in sizes {
                args.push(arena.slice(end, bytes));
                end = (end + bytes).next_multiple_of(256);
            }
            let mut best = f64::INFINITY;
            for _ in 0..RUNS {
                let start = Instant::now();
                device.launch(&spec, &args);
                device.sync();
                best = best.min(start.elapsed().as_secs_f64());
            }
            let products = if grad { 3.0 } else { 1.0 };
            let flops = products * 2.0 * f64::from(rows) * f64::from(vocab) * f64::from(width);
            let (rate, peak) = (flops / best / 1e9, measure_fma_peak(&device));
            println!(
                "{rows:5} {vocab:6} {width:4} grad {grad:5}: {rate:6.1} GFLOP/s, \
                 {:3.0} % of {peak:.0}, {:.1} ms",
                100.0 * rate / peak,
                best * 1e3
            );
        }
    }
}
