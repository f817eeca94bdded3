//! candle at the shapes of `mdlc bench gemm`, `attention` and `step`: JSON, as it prints.
//! `cargo run --release -- gemm --dtype f32 --runs 10 --threads 2`

#[path = "../../measure.rs"]
mod measure;
#[path = "../../model.rs"]
mod model;
mod step;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::attention::{AttnMask, flash_attn};
use measure::{SHAPES, median, number, row, seconds, word};
use model::{CHANNELS, HEADS, WIDTHS, attention_rows};

pub const PEER: &str = "candle 0.11";

fn main() -> Result<()> {
    let threads = number("--threads", 2);
    // candle asks the environment how many threads a product gets, and rayon for the others.
    // SAFETY: no other thread is running yet.
    unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
    match std::env::args().nth(1).as_deref() {
        Some("gemm") => gemm(),
        Some("attention") => attention(),
        Some("step") => step::run(),
        _ => panic!("gemm, attention or step?"),
    }
}

/// There is no product into a tensor that is there: memory of the result is part of the time.
fn gemm() -> Result<()> {
    let name = word("--dtype").unwrap_or("f32".into());
    let dtype = if name == "bf16" { DType::BF16 } else { DType::F32 };
    let numbers = |m, n| Tensor::randn(0f32, 1.0, (m, n), &Device::Cpu)?.to_dtype(dtype);
    let mut rows = Vec::new();
    for [m, n, k] in SHAPES {
        let (x, w, dy) = (numbers(m, k)?, numbers(n, k)?, numbers(m, n)?);
        let forms = [
            ("forward", [m, n, k], &x, &w.t()?),
            ("backward_x", [m, k, n], &dy, &w),
            ("backward_w", [n, k, m], &dy.t()?, &x),
        ];
        for (form, [m, n, k], a, b) in forms {
            let time = || seconds(|| drop(a.matmul(b).expect("shapes agree")));
            let taken = median(number("--runs", 10), time);
            rows.push(row(PEER, &[m, n, k], form, &name, 2.0 * (m * n * k) as f64 / taken / 1e9));
        }
    }
    println!("[\n{}\n]", rows.join(",\n"));
    Ok(())
}

/// Minus infinity above the diagonal.
pub fn mask(width: usize) -> Result<Tensor> {
    let bias = |at: usize| if at % width > at / width { f32::NEG_INFINITY } else { 0.0 };
    Tensor::from_iter((0..width * width).map(bias), &Device::Cpu)?.reshape((width, width))
}

/// Attention of [B, H, T, C] from operations that have gradients. Dividing after the product with
/// the values spares a pass over the scores in each direction.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let scale = (q.dim(D::Minus1)? as f64).powf(-0.5);
    let scores = (q * scale)?.matmul(&k.t()?)?.broadcast_add(mask)?;
    let most = scores.max_keepdim(D::Minus1)?.detach();
    let shares = scores.broadcast_sub(&most)?.exp()?;
    shares.matmul(v)?.broadcast_div(&shares.sum_keepdim(D::Minus1)?)
}

/// Forward as candle's own attention, which has no gradients; backward as `attend`.
fn attention() -> Result<()> {
    let runs = number("--runs", 10);
    let mut rows = Vec::new();
    for t in WIDTHS {
        for channels in CHANNELS {
            let numbers = || Var::randn(0f32, 1.0, (1, HEADS, t, channels), &Device::Cpu);
            let (q, k, v, dy) = (numbers()?, numbers()?, numbers()?, numbers()?.detach());
            let by_token = |x: &Var| x.detach().transpose(1, 2)?.contiguous();
            let [a, b, c] = [by_token(&q)?, by_token(&k)?, by_token(&v)?];
            let scale = (channels as f32).powf(-0.5);
            let forward = median(runs, || {
                let y = || flash_attn::<f32>(&a, &b, &c, scale, AttnMask::causal(), None, None);
                seconds(|| drop(y().expect("shapes agree")))
            });
            let y = (attend(&q, &k, &v, &mask(t)?)? * dy)?.sum_all()?;
            let backward =
                median(runs, || seconds(|| drop(y.backward().expect("it has gradients"))));
            rows.extend(attention_rows(PEER, t, channels, [forward, backward]));
        }
    }
    println!("[\n{}\n]", rows.join(",\n"));
    Ok(())
}
