//! What the peers written in Rust share: flags, the shapes of `mdlc bench gemm`, times and rows.

use std::fmt::Display;
use std::time::Instant;

/// m, n, k of the forward form, as compiler/mdlc/src/commands/bench.rs has them.
pub const SHAPES: [[usize; 3]; 12] = [
    [512, 512, 512],
    [768, 768, 768],
    [1024, 1024, 1024],
    [2048, 2048, 2048],
    [2048, 288, 288],
    [2048, 768, 288],
    [2048, 288, 768],
    [2048, 32000, 288],
    [2048, 768, 768],
    [2048, 2048, 768],
    [2048, 768, 2048],
    [2048, 32000, 768],
];

/// The word behind a flag.
pub fn word(flag: &str) -> Option<String> {
    std::env::args().skip_while(|arg| arg != flag).nth(1)
}

/// The number behind a flag.
pub fn number(flag: &str, otherwise: usize) -> usize {
    word(flag).and_then(|word| word.parse().ok()).unwrap_or(otherwise)
}

pub fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// Runs of a small kernel follow each other until so many seconds have passed, as in `mdlc bench`.
const TOGETHER: f64 = 0.01;

/// The median of `runs` means of what `time` says, after a warm-up.
pub fn median(runs: usize, mut time: impl FnMut() -> f64) -> f64 {
    time();
    let times = (TOGETHER / time()).clamp(1.0, 1000.0) as usize;
    let mut mean = || (0..times).map(|_| time()).sum::<f64>() / times as f64;
    let mut means: Vec<f64> = (0..runs.max(1)).map(|_| mean()).collect();
    means.sort_by(f64::total_cmp);
    means[means.len() / 2]
}

/// One row as `mdlc bench` prints it.
pub fn row(peer: &str, shape: &[usize], form: &str, dtype: impl Display, gflops: f64) -> String {
    let threads = number("--threads", 2);
    format!(
        "  {{\"implementation\": \"{peer}\", \"shape\": {shape:?}, \"form\": \"{form}\", \
         \"dtype\": \"{dtype}\", \"threads\": {threads}, \"gflops\": {gflops}}}"
    )
}
