//! burn at the shapes of `mdlc bench gemm`, `attention` and `step`: JSON, as it prints.
//! `cargo run --release -- gemm --dtype f32 --runs 10 --threads 2`

#[path = "../../measure.rs"]
mod measure;
#[path = "../../model.rs"]
mod model;
mod step;

use burn::tensor::module::attention as fused;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{DType, Device, Distribution, Tensor, TensorData};
use measure::{SHAPES, median, number, row, seconds, word};
use model::{CHANNELS, HEADS, WIDTHS, attention_rows};

pub const PEER: &str = "burn 0.22 flex";

fn main() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(number("--threads", 2)).build_global();
    pool.expect("there is no other pool");
    match std::env::args().nth(1).as_deref() {
        Some("gemm") => gemm(),
        Some("attention") => attention(),
        Some("step") => step::run(),
        _ => panic!("gemm, attention or step?"),
    }
}

/// Seconds until the result is there.
fn timed<T>(device: &Device, work: impl FnOnce() -> T) -> f64 {
    seconds(|| {
        let result = work();
        device.sync().expect("nothing failed");
        drop(result);
    })
}

/// There is no product into a tensor that is there: memory of the result is part of the time.
fn gemm() {
    let device = Device::default();
    let name = word("--dtype").unwrap_or("f32".into());
    let dtype = if name == "bf16" { DType::BF16 } else { DType::F32 };
    let numbers =
        |m, n| Tensor::<2>::random([m, n], Distribution::Normal(0.0, 1.0), &device).cast(dtype);
    let mut rows = Vec::new();
    for [m, n, k] in SHAPES {
        let (x, w, dy) = (numbers(m, k), numbers(n, k), numbers(m, n));
        let forms = [
            ("forward", [m, n, k], x.clone(), w.clone().transpose()),
            ("backward_x", [m, k, n], dy.clone(), w),
            ("backward_w", [n, k, m], dy.transpose(), x),
        ];
        for (form, [m, n, k], a, b) in forms {
            let time = || timed(&device, || a.clone().matmul(b.clone()));
            let taken = median(number("--runs", 10), time);
            rows.push(row(PEER, &[m, n, k], form, &name, 2.0 * (m * n * k) as f64 / taken / 1e9));
        }
    }
    println!("[\n{}\n]", rows.join(",\n"));
}

/// Minus infinity above the diagonal.
pub fn mask(width: usize, device: &Device) -> Tensor<4> {
    let bias = |at: usize| if at % width > at / width { f32::NEG_INFINITY } else { 0.0 };
    let values: Vec<f32> = (0..width * width).map(bias).collect();
    Tensor::from_data(TensorData::new(values, [1, 1, width, width]), device)
}

/// Attention of [B, H, T, C] from operations that have gradients. Dividing after the product with
/// the values spares a pass over the scores in each direction.
pub fn attend(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: Tensor<4>) -> Tensor<4> {
    let scale = (q.dims()[3] as f64).powf(-0.5);
    let scores = (q * scale).matmul(k.transpose()) + mask;
    let most = scores.clone().detach().max_dim(3);
    let shares = (scores - most).exp();
    shares.clone().matmul(v) / shares.sum_dim(3)
}

/// Forward as burn's own attention, which has no fused gradients; backward as `attend`.
fn attention() {
    let (runs, device) = (number("--runs", 10), Device::default());
    let mut rows = Vec::new();
    for t in WIDTHS {
        for channels in CHANNELS {
            let shape = [1, HEADS, t, channels];
            let numbers = || Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &device);
            let [q, k, v, dy] = [(); 4].map(|()| numbers());
            let forward = median(runs, || {
                let options = AttentionModuleOptions { is_causal: true, ..Default::default() };
                let (q, k, v) = (q.clone(), k.clone(), v.clone());
                timed(&device, || fused(q, k, v, None, None, options))
            });
            let [q, k, v] = [q, k, v].map(|x| x.autodiff().require_grad());
            let (dy, mask) = (dy.autodiff(), mask(t, &device).autodiff());
            let backward = median(runs, || {
                let y = attend(q.clone(), k.clone(), v.clone(), mask.clone());
                let y = (y * dy.clone()).sum();
                device.sync().expect("nothing failed");
                timed(&device, || y.backward())
            });
            rows.extend(attention_rows(PEER, t, channels, [forward, backward]));
        }
    }
    println!("[\n{}\n]", rows.join(",\n"));
}
