//! `mdlc bench`: kernels and the training step against this machine's measured limits, and the
//! speed of the compiler itself.

mod decode;
mod front;
mod kernels;
mod page;
mod report;
mod roofline;
mod spec_name;
mod table;
mod tune;

use super::say;
use crate::choose::{Chosen, choose};
use crate::flags::run::RunFlags;
use crate::flags::{ModelFlags, StepFlags};
use crate::hardware::{measured_peak, speed_of};
use crate::{Failure, Outcome};
use clap::{Parser, ValueEnum};
use mdl_ir::kernel::{
    AttentionSpec, ContractSpec, Dim, Elem, KernelSpec, MaskSpec, workspace_bytes,
};
use mdl_kernels::{Arena, Device, Slice};
use mdl_passes::request::Precision;
use mdl_train::model::within_memory;
use mdl_train::packing::Batch;
use mdl_train::resident;
use mdl_train::session::Session;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// What the first argument names.
#[derive(Clone, Debug)]
enum Subject {
    Suite(What),
    /// A model file, or the name of an embedded model.
    Model(String),
}

impl Subject {
    fn of(text: &str) -> Result<Subject, String> {
        let suite = What::from_str(text, false);
        Ok(suite.map_or_else(|_| Subject::Model(text.to_string()), Subject::Suite))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Contractions of the Llama shapes, forward and both backward forms
    Gemm,
    /// Attention forward and backward
    Attention,
    /// The whole training step of a model
    Step,
    /// Generation with a model: prompts in chunks, then one token at a time
    Decode,
    /// The compiler: lines of source a second, and each preset up to its plan
    Front,
    /// Tiles and blocks of contractions on this CPU, beside those of the cost model
    Tune,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Dtype {
    F32,
    Bf16,
}

impl Dtype {
    fn elem(self) -> Elem {
        match self {
            Dtype::F32 => Elem::F32,
            Dtype::Bf16 => Elem::Bf16,
        }
    }

    fn precision(self) -> Precision {
        match self {
            Dtype::F32 => Precision::F32,
            Dtype::Bf16 => Precision::Bf16,
        }
    }
}

#[derive(Debug, Parser)]
#[command(after_help = EXAMPLE)]
pub struct Args {
    /// A model file, or the name of an embedded model: every kernel of its training step. Or a
    /// suite: gemm, attention, step, decode, front or tune
    #[arg(value_name = "FILE|SUITE", value_parser = Subject::of)]
    what: Option<Subject>,
    /// Model of the suites `step`, `decode` and `front`: a path, or the name of an embedded model
    /// [default: llama_15m of llama; for `front` all embedded models]
    #[arg(long)]
    file: Option<String>,
    /// Operands and results of `gemm` and `attention` [default: f32]
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// Only these m, n and k of the forward form of `gemm` and `tune`, which need not be among
    /// their shapes
    #[arg(long, value_name = "M,N,K", value_delimiter = ',')]
    shape: Vec<u64>,
    /// Write what `tune` finds into this table, in place of its rows for this CPU
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Timed runs; the median counts
    #[arg(long, default_value_t = 10)]
    runs: usize,
    /// Print JSON: one object for a model, one array for a suite
    #[arg(long)]
    json: bool,
    /// Write a page for a browser with the roofline of a model's kernels; it needs no network
    #[arg(long, value_name = "REPORT.html")]
    html: Option<PathBuf>,
    #[command(flatten)]
    flags: StepFlags,
}

const EXAMPLE: &str = "\
Which kernels of my model are far from what this machine can do, and what would be won?
  mdlc bench llama --preset llama_15m --train_batch_size 8 --max_context_width 256
  mdlc bench my_model.mdl --preset small --bf16 1 --html roofline.html
Suites, which need no model file of one's own:
  mdlc bench gemm        contractions of the Llama shapes, forward and both backward forms
  mdlc bench attention   attention forward and backward
  mdlc bench step        the whole training step of --file and --preset
  mdlc bench decode      generation: prompts in chunks, then one token at a time
  mdlc bench front       the compiler: lines of source a second, and each preset up to its plan
  mdlc bench tune        tiles and blocks of contractions beside those of the cost model
Make the table of tuned blocks again that ships with the kernels, for the CPU of this machine:
  mdlc bench tune --runs 15 --out runtime/mdl_kernels/tuned.json
A file that is called like a suite is named with its folder, such as ./gemm.";

pub fn run(args: &Args) -> Outcome {
    // Opened only where something is measured on it.
    let device = || args.flags.training.device.open(args.flags.training.threads);
    let suite = match &args.what {
        Some(Subject::Suite(suite)) => Some(*suite),
        _ => None,
    };
    refuse_flags_of_others(suite, args)?;
    let Some(suite) = suite else { return model(&device()?, args) };
    shape_fits(&args.shape)?;
    let rows = match suite {
        What::Tune => return tune::run(device()?.as_ref(), args),
        What::Gemm => gemm(device()?.as_ref(), args),
        What::Attention => attention(device()?.as_ref(), args),
        What::Step => step(&device()?, args)?,
        What::Decode => decode::rows(&device()?, args)?,
        What::Front => front::rows(args)?,
    };
    if args.json {
        say(&format!("{}\n", serde_json::to_string_pretty(&rows)?));
        return Ok(());
    }
    for row in rows {
        match suite {
            What::Decode => say(&decode::line(&row)),
            What::Front => say(&front::line(&row)),
            What::Gemm | What::Attention | What::Step | What::Tune => say(&kernel_line(&row)),
        }
    }
    Ok(())
}

/// A flag that would be without effect belongs to another suite, or to a model.
fn refuse_flags_of_others(suite: Option<What>, args: &Args) -> Outcome {
    let of = |all: &[What]| suite.is_some_and(|suite| all.contains(&suite));
    let (gemm, tune) = (of(&[What::Gemm]), of(&[What::Tune]));
    let typed = of(&[What::Gemm, What::Attention]);
    let html = "--html is the roofline of a model's kernels; name a model in place of the suite, \
                such as `mdlc bench llama --preset llama_15m --html roofline.html`";
    let dtype = "--dtype is of `mdlc bench gemm` and `attention`; a model's step takes --bf16 1";
    let sizes = args.shape.iter().all(|size| (1..1 << 31).contains(size));
    let wrong = [
        (args.html.is_some() && suite.is_some(), html),
        (
            args.file.is_some() && of(&[What::Gemm, What::Attention, What::Tune]),
            "--file is the model of `mdlc bench step`, `decode` and `front`",
        ),
        (args.out.is_some() && !tune, "--out is the table of `mdlc bench tune`"),
        (args.dtype.is_some() && !typed, dtype),
        (!args.shape.is_empty() && !gemm && !tune, "--shape is of `mdlc bench gemm` and `tune`"),
        (
            !matches!(args.shape.len(), 0 | 3) || !sizes,
            "--shape has three sizes from 1 to 2147483647, such as 2048,768,288",
        ),
    ];
    match wrong.into_iter().find(|(wrong, _)| *wrong) {
        Some((_, message)) => Err(Failure::coded("E0941", message)),
        None => Ok(()),
    }
}

/// Both operands and the result of a product of this shape, in f32.
fn shape_fits(shape: &[u64]) -> Outcome {
    if let [m, n, k] = *shape {
        let elements = [m * k, n * k, m * n].into_iter().fold(0, u64::saturating_add);
        within_memory(elements.saturating_mul(4), "give smaller sizes to --shape")?;
    }
    Ok(())
}

/// A row of kernels or of the step.
fn kernel_line(row: &Value) -> String {
    let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
    let form = row["form"].as_str().unwrap_or("");
    format!(
        "{:<28} {form:<10} {:>9.1} GFLOP/s  {:>5.1} % of the peak {:.0}{}\n",
        row["shape"].to_string(),
        number("gflops"),
        100.0 * number("fraction_of_peak"),
        number("peak_gflops"),
        row["tokens_per_s"].as_f64().map_or(String::new(), |t| format!("  {t:.0} tokens/s")),
    )
}

/// Every kernel of a model's training step.
fn model(device: &Arc<Device>, args: &Args) -> Outcome {
    let file = match (&args.what, &args.file) {
        (Some(Subject::Model(name)), Some(file)) => {
            let message = format!("`{name}` and --file {file} are two models; drop one");
            return Err(Failure::coded("E0941", message));
        }
        (Some(Subject::Model(file)), None) | (_, Some(file)) => Some(file.as_str()),
        _ => None,
    };
    let named = file.is_some() || args.flags.model.preset.is_some();
    if !named && args.flags.model.model_type.is_none() {
        let message = "name a model FILE, such as `mdlc bench llama --preset llama_15m`, or a \
                       suite: gemm, attention, step, decode, front or tune";
        return Err(Failure::coded("E0941", message));
    }
    let report = kernels::report(device, args, file)?;
    if let Some(path) = &args.html {
        std::fs::write(path, page::page(&report)).map_err(|e| {
            let path = path.display();
            Failure::coded("E0941", format!("--html `{path}` cannot be written: {e}"))
        })?;
        eprintln!("note: the report is in {}", path.display());
    }
    match args.json {
        true => say(&format!("{}\n", serde_json::to_string_pretty(&report.json())?)),
        false => say(&table::text(&report)),
    }
    Ok(())
}

/// Runs of a small kernel follow each other, as launches of a step do, until so many seconds have
/// passed; only then is waited for them.
const TOGETHER: f64 = 0.01;

/// Median seconds of a run, of `runs` that are timed after a warm-up.
fn median(device: &Device, runs: usize, mut f: impl FnMut()) -> f64 {
    let mut timed = |times: usize| {
        let start = Instant::now();
        for _ in 0..times {
            f();
        }
        device.sync();
        start.elapsed().as_secs_f64() / times as f64
    };
    timed(1);
    let times = (TOGETHER / timed(1)).clamp(1.0, 1000.0) as usize;
    middle((0..runs.max(1)).map(|_| timed(times)).collect())
}

/// The median of these seconds.
fn middle(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// A row of the report. The peak is measured right beside the run, since other work shares the
/// machine.
fn row(
    device: &Device,
    (shape, form): (&[u64], &str),
    precision: Precision,
    flops: f64,
    seconds: f64,
) -> Value {
    let peak = measured_peak(device, precision);
    let dtype = if precision == Precision::Bf16 { "bf16" } else { "f32" };
    let gflops = flops / seconds / 1e9;
    json!({
        "implementation": "mdl", "shape": shape, "form": form, "dtype": dtype,
        "threads": device.units(), "gflops": gflops, "peak_gflops": peak,
        "fraction_of_peak": gflops / peak,
    })
}

/// m, n, k of the forward contractions: cubes, then those of llama_15m (batch 8 × 256) and
/// llama_110m (2 × 1024).
const SHAPES: &[[u64; 3]] = &[
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

/// A form's name, and its m, n and k with the strides of a over m and k, and of b over k and n.
type Form = (&'static str, [u64; 3], [u64; 2], [u64; 2]);

/// What each of the three forms computes, of the forward one's m, n and k.
///
/// y[m, n] = x[m, k] · w[n, k]; dx[m, k] = dy[m, n] · w[n, k]; dw[n, k] = dyᵀ[n, m] · x[m, k]
fn forms([m, n, k]: [u64; 3]) -> [Form; 3] {
    [
        ("forward", [m, n, k], [k, 1], [1, k]),
        ("backward_x", [m, k, n], [n, 1], [k, 1]),
        ("backward_w", [n, k, m], [1, n], [k, 1]),
    ]
}

/// A contraction with operands and results of one type, and the lengths of its buffers.
fn contraction(
    elem: Elem,
    [m, n, k]: [u64; 3],
    a: [u64; 2],
    b: [u64; 2],
) -> (KernelSpec, [u64; 3]) {
    let dim = |size: u64, stride: u64, stride_b: u64| {
        vec![Dim { size: size as u32, stride: stride as u32, stride_b: stride_b as u32 }]
    };
    let spec = ContractSpec {
        a: elem,
        b: elem,
        outputs: vec![elem],
        batch: Vec::new(),
        m: dim(m, a[0], 0),
        n: dim(n, b[1], 0),
        k: dim(k, a[1], b[0]),
        prologue: None,
        rotary: None,
        epilogue_inputs: Vec::new(),
        epilogue: Vec::new(),
    };
    (KernelSpec::Contract(spec), [m * k, n * k, m * n])
}

/// The shapes that are asked for.
fn shapes(args: &Args, all: &[[u64; 3]]) -> Vec<[u64; 3]> {
    args.shape[..].try_into().map_or_else(|_| all.to_vec(), |shape| vec![shape])
}

fn gemm(device: &Device, args: &Args) -> Vec<Value> {
    let dtype = args.dtype.unwrap_or(Dtype::F32);
    let elem = dtype.elem();
    let mut rows = Vec::new();
    for shape in shapes(args, SHAPES) {
        for (form, shape, a, b) in forms(shape) {
            let (spec, lengths) = contraction(elem, shape, a, b);
            let seconds = time(device, &spec, elem, &lengths, args.runs);
            let flops = 2.0 * shape.iter().product::<u64>() as f64;
            let mut row = row(device, (&shape, form), dtype.precision(), flops, seconds);
            if let Dtype::Bf16 = dtype {
                row["products"] = json!(device.products().to_string());
            }
            rows.push(row);
        }
    }
    rows
}

/// Buffers of these lengths (in elements) and a kernel's workspace, one after the other.
struct Buffers {
    arena: Arena,
    parts: Vec<(u64, u64)>,
}

impl Buffers {
    fn new(device: &Device, spec: &KernelSpec, elem: Elem, lengths: &[u64]) -> Buffers {
        let workspace = workspace_bytes(spec, device.target());
        let bytes = lengths.iter().map(|l| l * elem.bytes());
        let mut end = 0;
        let placed = bytes.chain((workspace > 0).then_some(workspace)).map(|bytes| {
            let at = end;
            end += bytes.next_multiple_of(256);
            (at, bytes)
        });
        let parts = placed.collect();
        Buffers { arena: device.alloc(end), parts }
    }

    fn slices(&self) -> Vec<Slice<'_>> {
        self.parts.iter().map(|(at, bytes)| self.arena.slice(*at, *bytes)).collect()
    }
}

/// Times one kernel on buffers of these lengths (in elements) and its workspace.
fn time(device: &Device, spec: &KernelSpec, elem: Elem, lengths: &[u64], runs: usize) -> f64 {
    let buffers = Buffers::new(device, spec, elem, lengths);
    let args = buffers.slices();
    median(device, runs, || device.launch(spec, &args))
}

fn attention(device: &Device, args: &Args) -> Vec<Value> {
    let dtype = args.dtype.unwrap_or(Dtype::F32);
    let (elem, precision) = (dtype.elem(), dtype.precision());
    let mut rows = Vec::new();
    for t in [256u32, 512, 1024, 2048, 4096, 8192] {
        for head in [48u32, 64, 128] {
            let spec = AttentionSpec {
                elem,
                batch: 1,
                t,
                s: t,
                kv_heads: 6,
                group: 1,
                head,
                scale: 1.0 / (head as f32).sqrt(),
                mask: MaskSpec { causal: true, ..MaskSpec::default() },
            };
            // One f32 for each row of a head, whatever the elements are.
            let (x, lse) = (u64::from(t * 6 * head), u64::from(t * 6) * 4 / elem.bytes());
            // Half of the scores are masked: q·k and p·v forward, five such products backward.
            let product = f64::from(t) * f64::from(t) * f64::from(6 * head);
            let forward = KernelSpec::Attention(spec.clone());
            let seconds = time(device, &forward, elem, &[x, x, x, x, lse], args.runs);
            let shape = [1, u64::from(t), 6, u64::from(head)];
            rows.push(row(device, (&shape, "forward"), precision, 2.0 * product, seconds));
            let backward = KernelSpec::AttentionGrad(spec);
            let lengths = [x, x, x, x, lse, x, x, x, x];
            let seconds = time(device, &backward, elem, &lengths, args.runs);
            rows.push(row(device, (&shape, "backward"), precision, 5.0 * product, seconds));
        }
    }
    rows
}

/// The model of `step` and `decode`.
fn chosen(args: &Args) -> Result<Chosen, Failure> {
    let mut which = args.flags.model.clone();
    if let (None, ModelFlags { preset: preset @ None, model_type: None, .. }) =
        (&args.file, &mut which)
    {
        *preset = Some("llama_15m".to_string());
    }
    let chosen = choose(args.file.as_deref(), &which)?;
    chosen.note_differences();
    Ok(chosen)
}

/// A batch of all the sequences of a step, of one document each.
fn some_batch(session: &Session) -> Batch {
    let vocab = session.model.size("vocab").unwrap_or(256);
    let (b, t) = (session.settings.sequences() as usize, session.settings.t as usize);
    let ids: Vec<i32> = (0..b * t).map(|i| (i as u64 * 7919 % vocab) as i32).collect();
    Batch {
        targets: ids.iter().map(|i| (i + 1) % vocab as i32).collect(),
        tokens: ids,
        documents: vec![0; b * t],
        batch_size: b,
        t,
    }
}

fn step(device: &Arc<Device>, args: &Args) -> Result<Vec<Value>, Failure> {
    let flags = &args.flags;
    flags.note_without_effect(&RunFlags::names());
    let chosen = chosen(args)?;
    let (preset, model) = (chosen.preset, chosen.model);
    let mut session = Session::open(model, flags.settings()?, device.clone())?;
    let batch = some_batch(&session);
    let (b, t) = (batch.batch_size, batch.t);
    let flops = session.train.flops as f64;
    session.step(&batch);
    // All kernels have been compiled, and what that took is no part of a step.
    resident::forget_peak();
    let seconds = median(device, args.runs, || {
        session.step(&batch);
    });
    let precision = session.settings.precision;
    let mut row = row(device, (&[b as u64, t as u64], "step"), precision, flops, seconds);
    row["preset"] = json!(preset);
    row["tokens_per_s"] = json!((b * t) as f64 / seconds);
    row["step_ms"] = json!(seconds * 1e3);
    let predicted = |speed| session.train.first.executable.seconds(&speed) * 1e3;
    row["predicted_ms"] = json!(speed_of(device).map(predicted));
    let (planned, observed) = session.memory();
    row["planned_bytes"] = json!(planned);
    row["observed_bytes"] = json!(observed);
    Ok(vec![row])
}
