//! Steps of several micro-batches: however the sequences of a step are cut, its loss, gradients and
//! new parameters are the same to rounding.

use mdl_ir::graph::{InputRole, OutputRole};
use mdl_kernels::Device;
use mdl_passes::executable::Space;
use mdl_train::model::Model;
use mdl_train::packing::Batch;
use mdl_train::session::{Session, Settings, StepReport, executables};
use std::sync::Arc;

const T: u64 = 24;
const SEQUENCES: usize = 8;
const VOCAB: usize = 256;
const STEPS: usize = 3;

/// Two sums of the same f32 terms in another order, a few hundred terms deep and through two
/// layers: some ten roundings of 6e-8 add up, for a loss and for the norm of a difference beside
/// that of a gradient.
const GRADIENT_TOLERANCE: f64 = 2e-6;
/// AdamW's first steps divide gradients by their own size, so that the error of a gradient that is
/// itself rounding becomes a part of a step: steps of 1e-3 on weights of 0.02, for one element in
/// ten thousand, are √1e-4 · 1e-3 / 0.02 of the norm.
const PARAMETER_TOLERANCE: f64 = 5e-4;

fn settings(batch: u64, gradient_accumulation: u64) -> Settings {
    Settings {
        gradient_accumulation,
        val_batch: 1,
        lr_decay_style: "constant".into(),
        warmup: 0.0,
        ..mdl_tests::settings(batch, T)
    }
}

fn session(model: &str, preset: &str, settings: Settings) -> Session {
    let model = Model::open(model, Some(preset)).expect("an embedded preset");
    Session::open(model, settings, Arc::new(Device::cpu(Some(2)))).expect("compiles")
}

/// Sequences with very different numbers of targets: the first has none, the second has one.
fn batch(step: usize, sequences: usize) -> Batch {
    let t = T as usize;
    let id = |i: usize| ((i * i * 7 + i * 13 + step * 31) % VOCAB) as i32;
    let target = |i: usize| match i / t {
        0 => -1,
        1 if i % t != 5 => -1,
        row if row % 3 == 2 && i % t > row => -1,
        _ => id(i + 1),
    };
    let all = sequences * t;
    Batch {
        tokens: (0..all).map(id).collect(),
        targets: (0..all).map(target).collect(),
        documents: (0..all).map(|i| (i % t / 10) as i32).collect(),
        batch_size: sequences,
        t,
    }
}

fn gradients(session: &Session) -> Vec<f32> {
    let machine = match &session.train.further {
        Some((accumulate, _)) => accumulate,
        None => &session.train.first,
    };
    let n = session.graph.params.len();
    (0..n).flat_map(|p| machine.read_output(&OutputRole::Grad(p)).expect("an output")).collect()
}

fn parameters(session: &Session) -> Vec<f32> {
    let n = session.graph.params.len();
    (0..n).flat_map(|p| session.train.read_input(&InputRole::Param(p))).collect()
}

/// Reports of the steps, gradients of the first one, parameters after the last one.
struct Run {
    reports: Vec<StepReport>,
    gradients: Vec<f32>,
    parameters: Vec<f32>,
}

fn run(mut session: Session, batches: &[Batch]) -> Run {
    let mut reports = vec![session.step(&batches[0])];
    let gradients = gradients(&session);
    reports.extend(batches[1..].iter().map(|batch| session.step(batch)));
    Run { reports, gradients, parameters: parameters(&session) }
}

/// ‖a − b‖ / ‖b‖.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let norm: f64 = b.iter().map(|x| square(f64::from(*x))).sum();
    let apart: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    (apart / norm).sqrt()
}

fn same(what: &str, one: &Run, other: &Run) {
    let apart = distance(&other.gradients, &one.gradients);
    assert!(apart <= GRADIENT_TOLERANCE, "{what}: gradients are {apart:e} apart");
    for (i, (a, b)) in one.reports.iter().zip(&other.reports).enumerate() {
        // Later losses are those of parameters that differ.
        let tolerance = if i == 0 { GRADIENT_TOLERANCE } else { PARAMETER_TOLERANCE };
        for (a, b) in [(a.loss, b.loss), (a.grad_norm, b.grad_norm)] {
            let apart = (a - b).abs() / a.abs();
            assert!(apart <= tolerance, "{what}: {b} for {a} in step {i}");
        }
    }
    let apart = distance(&other.parameters, &one.parameters);
    assert!(apart <= PARAMETER_TOLERANCE, "{what}: parameters are {apart:e} apart");
}

#[test]
fn a_step_does_not_depend_on_how_its_sequences_are_cut() {
    let batches: Vec<Batch> = (0..STEPS).map(|step| batch(step, SEQUENCES)).collect();
    let none = |n: usize| batches[0].split(n)[0].n_targets() == 0;
    assert!(none(8) && !none(4), "one micro-batch of eight has nothing to predict");
    // A matrix of its own for the vocabulary, and one that is the embedding too.
    let cuts: [(&str, &[(u64, u64)]); 2] =
        [("tiny", &[(4, 2), (2, 4), (1, 8)]), ("bytes_small", &[(2, 4)])];
    for (preset, cuts) in cuts {
        let open = |batch, n| session("llama", preset, settings(batch, n));
        let whole = run(open(8, 1), &batches);
        for &(batch, n) in cuts {
            same(&format!("{preset} {batch} × {n}"), &whole, &run(open(batch, n), &batches));
        }
    }
}

/// A router's loss is no mean over targets, so another cut is another loss; but the same
/// micro-batch twice is what it is once.
#[test]
fn the_same_micro_batch_twice_is_a_step_of_one() {
    for model in ["llama", "mistral", "mixtral"] {
        let once: Vec<Batch> = (0..STEPS).map(|step| batch(step, 3)).collect();
        let twice = |ids: &[i32]| [ids, ids].concat();
        let double = |batch: &Batch| Batch {
            tokens: twice(&batch.tokens),
            targets: twice(&batch.targets),
            documents: twice(&batch.documents),
            batch_size: 6,
            t: batch.t,
        };
        let doubled: Vec<Batch> = once.iter().map(double).collect();
        let one = run(session(model, "tiny", settings(3, 1)), &once);
        same(model, &one, &run(session(model, "tiny", settings(3, 2)), &doubled));
    }
}

#[test]
fn a_router_is_balanced_though_a_micro_batch_has_no_targets() {
    let mut batch = batch(0, 2);
    batch.targets.fill(-1);
    let mut session = session("mixtral", "tiny", settings(1, 2));
    let report = session.step(&batch);
    assert!(report.loss > 0.0 && report.grad_norm > 0.0, "{report:?}");
}

/// There is one section of gradients, and what stands beside it does not grow with the number of
/// micro-batches.
#[test]
fn gradients_are_added_up_where_they_are() {
    let planned = |model: &str, preset: &str, n: u64| {
        let mut model = Model::open(model, Some(preset)).expect("an embedded preset");
        let settings = Settings { t: 1024, ..settings(1, n) };
        executables(&mut model, &settings, 2).expect("compiles").1
    };
    for (model, preset) in [("llama", "llama_110m"), ("llama", "llama3_2_1b"), ("mistral", "tiny")]
    {
        let (one, two) = (planned(model, preset, 1), planned(model, preset, 2));
        let eight = planned(model, preset, 8);
        assert_eq!(one.state_bytes(), two.state_bytes(), "{preset}");
        assert_eq!(two.work_bytes(), eight.work_bytes(), "{preset}");
        // Beside what a step of one has: scalars of the step, and vectors of single layers.
        let more = two.work_bytes().saturating_sub(one.work_bytes());
        assert!(more <= 1 << 20, "{preset}: {more} bytes more");
        let accumulate = &two.further.as_ref().expect("two micro-batches").accumulate;
        for (role, slot) in &accumulate.outputs {
            let OutputRole::Grad(p) = role else { continue };
            let old = accumulate.input(&InputRole::Grad(*p)).expect("gradients come in");
            assert_eq!((old.space, old.offset), (Space::State, slot.offset));
        }
    }
}
