//! `mdlc bench tune`: tiles and blocks of contractions beside those of the cost model, and the
//! table of those that were faster.

use super::{Args, Buffers, Outcome, TOGETHER, contraction, forms, shapes};
use crate::Failure;
use crate::commands::say;
use mdl_ir::kernel::{Elem, KernelSpec};
use mdl_kernels::{Blocks, Class, Device, Products, Rows, Table, Tuned};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

/// m, n and k of the forward forms that the tuner multiplies.
const SHAPES: &[[u64; 3]] = &[
    [768, 768, 768],
    [1024, 1024, 1024],
    [2048, 288, 288],
    [2048, 768, 288],
    [2048, 2048, 768],
    [2048, 768, 2048],
];
/// Changes that are made one after the other, at most.
const CHANGES: usize = 4;
/// A row has to be worth its line, however quiet the machine is.
const LEAST_GAIN: f64 = 0.005;

/// One contraction on its buffers.
struct Work {
    spec: KernelSpec,
    buffers: Buffers,
}

impl Work {
    /// Seconds of a launch, of so many that are waited for together.
    fn seconds(&self, device: &Device, times: usize) -> f64 {
        let args = self.buffers.slices();
        let start = Instant::now();
        (0..times).for_each(|_| device.launch(&self.spec, &args));
        device.sync();
        start.elapsed().as_secs_f64() / times as f64
    }
}

/// How many times as fast, and how far apart two runs of the same are.
struct Ratio {
    ratio: f64,
    noise: f64,
}

impl Ratio {
    fn is_faster(&self) -> bool {
        self.ratio > 1.0 + self.noise.max(LEAST_GAIN)
    }
}

pub fn run(device: &Device, args: &Args) -> Outcome {
    if device.class() != Class::Cpu {
        return Err(Failure::coded("E0952", "blocks are tuned on CPUs; leave out --device"));
    }
    let mut table = args.out.as_deref().map_or(Ok(Table::default()), read)?;
    let fastest = device.products();
    let kinds = [Products::Widened, fastest];
    let kinds = if fastest == Products::Widened { &kinds[..1] } else { &kinds };
    let mut found = Vec::new();
    let mut rows = Vec::new();
    for products in kinds {
        for a in [Rows::InPlace, Rows::Packed] {
            found.extend(tuned(device, args, *products, a, &mut rows));
        }
    }
    table.replace(&Device::cpu_name(), found);
    if args.json {
        say(&format!("{}\n", serde_json::to_string_pretty(&rows)?));
    } else if args.out.is_none() {
        say(&format!("\nrows for a table, which --out FILE writes:\n{}", table.text()));
    }
    match &args.out {
        Some(path) => std::fs::write(path, table.text()).map_err(|e| unusable(path, e)),
        None => Ok(()),
    }
}

fn unusable(path: &Path, why: impl std::fmt::Display) -> Failure {
    let message = format!("the table `{}` cannot be used: {why}", path.display());
    Failure::coded("E0981", message)
}

/// The table that is to be changed. None is an empty one, which is written at once: measuring for
/// minutes in vain would be worse.
fn read(path: &Path) -> Result<Table, Failure> {
    let text = match std::fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let empty = Table::default();
            return std::fs::write(path, empty.text())
                .map_or_else(|e| Err(unusable(path, e)), |()| Ok(empty));
        }
        read => read.map_err(|e| unusable(path, e))?,
    };
    Table::read(&text).map_err(|why| unusable(path, why))
}

/// Looks from the model's blocks for faster ones, change by change, and measures what it ends with
/// against the model's once more.
fn tuned(
    device: &Device,
    args: &Args,
    products: Products,
    a: Rows,
    rows: &mut Vec<Value>,
) -> Option<Tuned> {
    let work = work(device, args, products, a);
    let model = Blocks::model(device.as_cpu(), products);
    let mut measured = |best: &Blocks, blocks: &Blocks, what: &str| {
        let ratio = compare(device, &work, (products, a), [best, blocks], args.runs);
        let place = if a == Rows::Packed { "packed" } else { "in place" };
        if !args.json {
            say(&format!(
                "{:<8} {place:<9} {:<48} {:>6.3} ± {:.3}  {what}\n",
                products.to_string(),
                blocks.to_string(),
                ratio.ratio,
                ratio.noise,
            ));
        }
        rows.push(json!({
            "products": products, "a": a, "blocks": blocks, "beside": best,
            "ratio": ratio.ratio, "noise": ratio.noise, "faster": ratio.is_faster(),
        }));
        ratio
    };
    let mut best = model;
    for _ in 0..CHANGES {
        let tried: Vec<(Ratio, Blocks)> = around(device, products, &best)
            .into_iter()
            .map(|blocks| (measured(&best, &blocks, ""), blocks))
            .collect();
        let faster = tried.into_iter().filter(|(ratio, _)| ratio.is_faster());
        match faster.max_by(|(a, _), (b, _)| a.ratio.total_cmp(&b.ratio)) {
            Some((_, blocks)) => best = blocks,
            None => break,
        }
    }
    if best == model {
        return None;
    }
    let gain = measured(&model, &best, "beside the model's");
    let (cpu, width) = (Device::cpu_name(), device.vector_width());
    let gained = (gain.ratio * 1e3).round() / 1e3;
    gain.is_faster().then_some(Tuned { cpu, width, products, a, blocks: best, gain: gained })
}

/// The contractions that read a like this, each form of the shapes.
fn work(device: &Device, args: &Args, products: Products, a: Rows) -> Vec<Work> {
    let elem = if products == Products::Widened { Elem::F32 } else { Elem::Bf16 };
    let forms = shapes(args, SHAPES).into_iter().flat_map(forms);
    forms
        .filter(|(form, ..)| (*form == "backward_w") == (a == Rows::Packed))
        .map(|(_, shape, a, b)| {
            let (spec, lengths) = contraction(elem, shape, a, b);
            let buffers = Buffers::new(device, &spec, elem, &lengths);
            Work { spec, buffers }
        })
        .collect()
}

/// Each one change away.
fn around(device: &Device, products: Products, from: &Blocks) -> Vec<Blocks> {
    let registers = device.vector_registers();
    let mut all = Vec::new();
    for tile_rows in [4, 6, 8, 12, 16] {
        for tile_vectors in [2, 3, 4, 6] {
            let sums = tile_rows * tile_vectors;
            if 2 * sums >= registers && sums + tile_vectors < registers {
                let rows = from.rows.next_multiple_of(tile_rows);
                all.push(Blocks { tile_rows, tile_vectors, rows, ..*from });
            }
        }
    }
    for (num, den) in [(1, 2), (3, 2), (2, 1)] {
        let scaled = |size: usize, of: usize| (size * num / den / of * of).max(of);
        all.push(Blocks { depth: scaled(from.depth, 16), ..*from });
        all.push(Blocks { columns: scaled(from.columns, 192), ..*from });
        all.push(Blocks { rows: scaled(from.rows, from.tile_rows), ..*from });
    }
    let width = device.vector_width();
    all.retain(|blocks| blocks != from && blocks.fault(products, width).is_none());
    all
}

/// The second blocks beside the first: alternately, each contraction in turn, so that whatever else
/// happens on the machine happens to both. The least times count, which other work touches last.
fn compare(
    device: &Device,
    work: &[Work],
    (products, a): (Products, Rows),
    blocks: [&Blocks; 2],
    runs: usize,
) -> Ratio {
    let devices = blocks.map(|blocks| {
        let cpu = Device::cpu(Some(device.units())).with_products(device.products());
        cpu.with_blocks(products, a, *blocks)
    });
    let (mut ratio, mut noise) = (0.0, 0.0);
    for work in work {
        for device in &devices {
            work.seconds(device, 1);
        }
        let times = (TOGETHER / work.seconds(&devices[0], 1)).clamp(1.0, 1000.0) as usize;
        let mut least = [f64::MAX; 3];
        for _ in 0..runs.max(1) {
            for (least, which) in least.iter_mut().zip([0, 1, 0]) {
                *least = work.seconds(&devices[which], times).min(*least);
            }
        }
        let [before, between, after] = least;
        ratio += (before.min(after) / between).ln();
        noise += (before / after).ln().abs();
    }
    let mean = |sum: f64| (sum / work.len() as f64).exp();
    Ratio { ratio: mean(ratio), noise: mean(noise) - 1.0 }
}
