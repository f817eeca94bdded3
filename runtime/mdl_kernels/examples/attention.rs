//! Prints GFLOP/s of attention and of its gradient beside the peak measured in the same process.
//!
//! Only pairs that the causal mask lets through are counted: 4·head flops forward, 10·head back.

use mdl_ir::kernel::{AttentionSpec, Elem, KernelSpec, MaskSpec, workspace_bytes};
use mdl_kernels::{Arena, Device, Slice, measure_fma_peak};
use std::time::Instant;

const HEADS: u32 = 8;
const REPEATS: usize = 7;

fn best_seconds(device: &Device, spec: &KernelSpec, args: &[Slice]) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        let start = Instant::now();
        device.launch(spec, args);
        device.sync();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

/// Slices one behind another.
fn slices(arena: &Arena, sizes: &[u64]) -> Vec<(u64, u64)> {
    let mut end = 0;
    let place = |&bytes: &u64| {
        let at = end;
        end = (end + bytes).next_multiple_of(256);
        assert!(end <= arena.bytes(), "the arena holds all buffers");
        (at, bytes)
    };
    sizes.iter().map(place).collect()
}

fn measure(device: &Device, t: u32, head: u32, peak: f64) {
    let mask = MaskSpec { causal: true, ..MaskSpec::default() };
    let scale = 1.0 / (head as f32).sqrt();
    let spec = AttentionSpec {
        elem: Elem::F32,
        batch: 1,
        t,
        s: t,
        kv_heads: HEADS,
        group: 1,
        head,
        scale,
        mask,
    };
    let forward = KernelSpec::Attention(spec.clone());
    let backward = KernelSpec::AttentionGrad(spec);
    let rows = u64::from(t * HEADS);
    let tensor = rows * u64::from(head) * 4;
    let workspace = [&forward, &backward]
        .map(|spec| workspace_bytes(spec, device.units()))
        .into_iter()
        .max()
        .unwrap_or(0);
    let arena = device.alloc(10 * (tensor + 256) + workspace + rows * 4);
    let noise: Vec<f32> =
        (0..3 * tensor / 4).map(|i| (i * 7919 % 1009) as f32 / 504.5 - 1.0).collect();
    device.write(&arena, 0, bytemuck::cast_slice(&noise)).expect("fits");
    // q, k, v, y, log-sum-exp, dy, dq, dk, dv, workspace
    let mut sizes = vec![tensor; 9];
    sizes[4] = rows * 4;
    sizes.push(workspace);
    let places = slices(&arena, &sizes);
    let all: Vec<Slice> = places.iter().map(|&(at, bytes)| arena.slice(at, bytes)).collect();
    let pairs = f64::from(HEADS) * f64::from(t) * f64::from(t + 1) / 2.0 * f64::from(head);
    let mut args = all[..5].to_vec();
    args.push(all[9]);
    let fwd = 4.0 * pairs / best_seconds(device, &forward, &args) / 1e9;
    let bwd = 10.0 * pairs / best_seconds(device, &backward, &all) / 1e9;
    println!(
        "t {t:5} head {head:3} GFLOP/s: forward {fwd:.1} ({:2.0} %), backward {bwd:6.1} ({:2.0} %)",
        100.0 * fwd / peak,
        100.0 * bwd / peak
    );
}

fn main() {
    let device = Device::cpu(None);
    let peak = measure_fma_peak(&device);
    println!("peak {peak:.1} GFLOP/s on {} units", device.units());
    for head in [48, 64] {
        for t in [256, 1024, 2048] {
            measure(&device, t, head, peak);
        }
    }
}
