//! `mdlc bench decode`: tokens per second of generation, beside the time that reading the weights
//! takes by itself.

use super::{Args, chosen, median, middle};
use crate::Failure;
use mdl_ir::kernel::{Elem, KernelSpec, SumOfSquaresSpec, workspace_bytes};
use mdl_kernels::Device;
use mdl_train::generate::{Generator, Room};
use mdl_train::initial::initial;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

/// Positions at which single tokens are timed.
const POSITIONS: [usize; 2] = [40, 400];
const CHUNK: u64 = 64;

/// One row for the prompt and one for each position; the cost of a position beside the first is in
/// its row.
pub fn rows(device: &Arc<Device>, args: &Args) -> Result<Vec<Value>, Failure> {
    let chosen = chosen(args)?;
    let (preset, mut model) = (chosen.preset, chosen.model);
    let vocab = model.size("vocab").unwrap_or(256);
    let runs = args.runs.max(1);
    let capacity = (POSITIONS[1] + runs + 2) as u64;
    let room = Room { batch: 1, capacity, chunk: Some(CHUNK) };
    let mut generator = Generator::open(&mut model, room, device.clone(), |machine| {
        machine.write_params(|p| initial(p, 1));
        Ok(())
    })?;
    let prompt: Vec<u32> =
        (0..POSITIONS[1] as u64 + 1).map(|i| (i * 7919 % vocab) as u32).collect();
    generator.prefill(&[&prompt])?;
    let spent = generator.prefill;
    let mut rows = vec![json!({
        "preset": preset, "what": "prefill", "threads": device.units(),
        "tokens_per_s": spent.tokens as f64 / spent.seconds,
        "first_run_s": spent.first_seconds,
    })];
    let weights = 4 * generator.parameters();
    let mut first = None;
    for position in POSITIONS {
        generator.rewind();
        generator.prefill(&[&prompt[..=position]])?;
        // What is left of the prompt, and the compilation of the step.
        while generator.position() < position as u64 {
            generator.push(&[prompt[position]])?;
        }
        // One by one: each run is a position further on, and there is room for so many.
        let mut seconds = Vec::new();
        for _ in 0..=runs {
            let start = Instant::now();
            generator.push(&[prompt[position]])?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        let seconds = middle(seconds.split_off(1));
        let bandwidth = read_bandwidth(device, runs);
        let first = *first.get_or_insert(seconds);
        rows.push(json!({
            "preset": preset, "what": format!("token {position}"),
            "threads": device.units(), "tokens_per_s": 1.0 / seconds, "ms": seconds * 1e3,
            "weights_ms": weights as f64 / bandwidth * 1e3,
            "bandwidth_gb_per_s": bandwidth / 1e9, "cost_beside_first": seconds / first,
        }));
    }
    Ok(rows)
}

/// Bytes per second that a kernel reads which does little else.
fn read_bandwidth(device: &Device, runs: usize) -> f64 {
    // Far beyond what caches hold.
    let len = 1u64 << 26;
    let spec = KernelSpec::SumOfSquares(SumOfSquaresSpec { elem: Elem::F32, len });
    let workspace = workspace_bytes(&spec, device.target());
    let arena = device.alloc(4 * len + 256 + workspace);
    let args =
        [arena.slice(0, 4 * len), arena.slice(4 * len, 4), arena.slice(4 * len + 256, workspace)];
    (4 * len) as f64 / median(device, runs, || device.launch(&spec, &args))
}

pub fn line(row: &Value) -> String {
    let number = |key: &str| row[key].as_f64();
    let what = row["what"].as_str().unwrap_or("");
    let rate = number("tokens_per_s").unwrap_or(f64::NAN);
    let rest = match (number("ms"), number("weights_ms"), number("cost_beside_first")) {
        (Some(ms), Some(weights), Some(cost)) => {
            format!("  {ms:.1} ms, {weights:.1} to read the weights; {cost:.2} of the first row")
        }
        _ => String::new(),
    };
    format!("{what:<12} {rate:>9.1} tokens/s{rest}\n")
}
