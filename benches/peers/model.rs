//! What a framework in Rust needs as a peer: the model of llama_step.py, numbers that are the same
//! in each, so that losses can be compared, and what a step and attention report.

use crate::measure::{number, row, seconds, word};

/// Tokens of a sequence, heads, and channels of a head in `mdlc bench attention`. Gradients are of
/// whole score matrices here, which are too large at 8192 tokens.
pub const WIDTHS: [usize; 5] = [256, 512, 1024, 2048, 4096];
pub const HEADS: usize = 6;
pub const CHANNELS: [usize; 3] = [48, 64, 128];

/// As AdamW has them in llama_step.py.
pub const RATE: f64 = 1e-4;
pub const BETAS: [f64; 2] = [0.9, 0.95];
pub const ADAM_EPS: f64 = 1e-8;
pub const DECAY: f64 = 0.2;
pub const NORM_EPS: f64 = 1e-5;

pub struct Llama {
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub ffn: usize,
    pub vocab: usize,
    pub batch: usize,
    pub width: usize,
}

impl Llama {
    /// The one of `--shape`, `--batch` and `--width`.
    pub fn asked() -> Llama {
        let (batch, width) = (number("--batch", 8), number("--width", 256));
        match word("--shape").as_deref() {
            None | Some("llama_15m") => {
                Llama { hidden: 288, layers: 6, heads: 6, ffn: 768, vocab: 32000, batch, width }
            }
            Some("llama_110m") => {
                Llama { hidden: 768, layers: 12, heads: 12, ffn: 2048, vocab: 32000, batch, width }
            }
            Some(other) => panic!("`{other}` is neither llama_15m nor llama_110m"),
        }
    }

    /// Rows and columns of a block's matrices: q, k, v, o, gate, up, down, each [out, in].
    pub fn matrices(&self) -> [[usize; 2]; 7] {
        let (d, f) = (self.hidden, self.ffn);
        [[d, d], [d, d], [d, d], [d, d], [f, d], [f, d], [d, f]]
    }

    /// Cosines and sines of RoPE, [width, channels] each, the second half as the first.
    pub fn rope(&self) -> [Vec<f32>; 2] {
        let channels = self.hidden / self.heads;
        let angle = |at: usize| {
            let (t, c) = (at / channels, at % (channels / 2));
            t as f64 * 10000f64.powf(-2.0 * c as f64 / channels as f64)
        };
        let all = || 0..self.width * channels;
        [
            all().map(|i| angle(i).cos() as f32).collect(),
            all().map(|i| angle(i).sin() as f32).collect(),
        ]
    }
}

/// Numbers from a counter (splitmix64), the same in every implementation.
#[derive(Default)]
pub struct Numbers(u64);

impl Numbers {
    /// 24 bits.
    fn next(&mut self) -> u64 {
        self.0 += 1;
        let mut z = self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) >> 40
    }

    /// Uniform numbers with mean zero.
    pub fn uniform(&mut self, count: usize, deviation: f64) -> Vec<f32> {
        let step = 2.0 * deviation * 3f64.sqrt() / (1u64 << 24) as f64;
        (0..count).map(|_| ((self.next() as f64 - (1u64 << 23) as f64) * step) as f32).collect()
    }

    /// Inputs and targets of all sequences.
    pub fn tokens(&mut self, model: &Llama) -> [Vec<u32>; 2] {
        let row =
            |_| (0..=model.width).map(|_| (self.next() % model.vocab as u64) as u32).collect();
        let rows: Vec<Vec<u32>> = (0..model.batch).map(row).collect();
        let end = model.width;
        [
            rows.iter().flat_map(|r| r[..end].to_vec()).collect(),
            rows.iter().flat_map(|r| r[1..].to_vec()).collect(),
        ]
    }
}

/// The two rows of one shape: half of the scores are masked, two such products forward, five back.
pub fn attention_rows(peer: &str, t: usize, channels: usize, [y, dx]: [f64; 2]) -> [String; 2] {
    let product = (t * t * HEADS * channels) as f64 / 1e9;
    let shape = [1, t, HEADS, channels];
    [
        row(peer, &shape, "forward", "f32", 2.0 * product / y),
        row(peer, &shape, "backward", "f32", 5.0 * product / dx),
    ]
}

/// Times steps, of which each returns its loss, and prints what llama_step.py prints.
pub fn report_steps(peer: &str, model: &Llama, mut step: impl FnMut() -> f32) {
    let (warmup, steps) = (number("--warmup", 3), number("--steps", 10).max(1));
    let mut losses = Vec::new();
    let mut times: Vec<f64> =
        (0..warmup + steps).map(|_| seconds(|| losses.push(step()))).collect();
    times.drain(..warmup);
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    println!(
        "{{\"implementation\": \"{peer}\", \"tokens_per_s\": {:.1}, \"step_ms\": {:.2}, \
         \"steps\": {steps}, \"threads\": {}, \"losses\": {losses:?}}}",
        (model.batch * model.width) as f64 / median,
        median * 1e3,
        number("--threads", 2),
    );
}
