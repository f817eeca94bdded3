//! Sessions: resuming and threads do not change a bit, and generation with caches is the full
//! forward pass.

use mdl_check::entry::EntryOptions;
use mdl_driver::pipeline::{Purpose, finish, state_layout};
use mdl_ir::graph::InputRole;
use mdl_kernels::Device;
use mdl_passes::request::{MemoryRequest, Precision};
use mdl_train::checkpoint;
use mdl_train::generate::Generator;
use mdl_train::machine::Machine;
use mdl_train::model::Model;
use mdl_train::packing::Stream;
use mdl_train::session::{Session, Settings};
use mdl_train::weights::Weights;
use std::path::PathBuf;
use std::sync::Arc;

fn settings() -> Settings {
    Settings {
        batch: 3,
        t: 37,
        val_batch: 2,
        max_steps: 8,
        lr: 1e-3,
        min_lr: 1e-4,
        lr_decay_style: "cosine".into(),
        lr_decay_iters: 8,
        warmup: 0.25,
        weight_decay: 0.1,
        matrices_only: true,
        beta1: 0.9,
        beta2: 0.95,
        grad_clip: 1.0,
        seed: 7,
        memory: MemoryRequest::default(),
        precision: Precision::default(),
    }
}

fn session(threads: u32) -> Session {
    let model = Model::open("llama", Some("tiny")).expect("an embedded preset");
    let device = Arc::new(Device::cpu(Some(threads)));
    Session::open(model, settings(), device).expect("compiles")
}

fn stream() -> Stream {
    let ids = |n: u32| (0..n).map(|i| (i * i + 3 * i) % 320).collect::<Vec<u32>>();
    Stream::new(&[ids(211), ids(97), ids(530)], 5)
}

/// Losses and gradient norms of `n` steps, as bits.
fn steps(session: &mut Session, n: usize) -> Vec<(u64, u64)> {
    let stream = stream();
    (0..n)
        .map(|_| {
            let (b, t) = (session.settings.batch as usize, session.settings.t as usize);
            let batch = stream.batch(session.cursor, b, t).expect("long enough");
            let report = session.step(&batch);
            (report.loss.to_bits(), report.grad_norm.to_bits())
        })
        .collect()
}

fn folder(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("mdl-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    dir
}

#[test]
fn losses_fall_and_do_not_depend_on_threads() {
    let one = steps(&mut session(1), 6);
    let two = steps(&mut session(2), 6);
    assert_eq!(one, two);
    assert!(f64::from_bits(one[5].0) < f64::from_bits(one[0].0));
}

#[test]
fn resuming_rejoins_the_curve_bit_for_bit() {
    let whole = steps(&mut session(2), 8);
    let dir = folder("resume");
    let mut first = session(2);
    steps(&mut first, 4);
    checkpoint::save(&dir, &first.snapshot(None, [None, None]), None).expect("saved");
    let mut second = session(2);
    second.resume(&checkpoint::open(&dir).expect("complete")).expect("the same model");
    assert_eq!(second.step, 4);
    assert_eq!(steps(&mut second, 4), whole[4..]);
    std::fs::remove_dir_all(&dir).expect("written above");
}

/// Sums in another order: attention over a cache and matrix–vector products against whole
/// contractions, f32.
const TOLERANCE_INCREMENTAL: f64 = 2e-5;

#[test]
fn generation_with_caches_is_the_full_forward_pass() {
    let dir = folder("generate");
    let mut trained = session(2);
    steps(&mut trained, 3);
    let step = checkpoint::save(&dir, &trained.snapshot(None, [None, None]), None).expect("saved");
    let weights = Weights::open(&step).expect("written above");
    let mut model = Model::of_checkpoint(&step).expect("its own model.mdl");
    let ids: Vec<u32> = (0..23).map(|i| (i * 37 + 11) % 320).collect();
    let device = Arc::new(Device::cpu(None));
    let mut generator =
        Generator::open(&mut model, &weights, 23, device.clone()).expect("has a step");
    let sizes = vec![("B".to_string(), 1), ("T".to_string(), 23)];
    let options = EntryOptions { sizes, documents: false, auxiliary: true };
    let trace = model.compile("logits", &options, &Purpose::Forward).expect("compiles");
    let state = state_layout(trace.last(), &Purpose::Forward);
    let executable = finish(trace.last(), &state, device.units()).expect("plans");
    let machine = Machine::new(device, executable);
    for (p, param) in trace.last().params.iter().enumerate() {
        let values = mdl_train::model::read_param(&weights, param).expect("there");
        machine.write_input(&InputRole::Param(p), &values);
    }
    let tokens: Vec<i32> = ids.iter().map(|i| *i as i32).collect();
    machine.write_data("tokens", &tokens);
    machine.run();
    let whole = machine.read_value("logits").expect("logits");
    for (i, id) in ids.iter().enumerate() {
        let step = generator.push(*id).expect("within the capacity");
        let row = &whole[i * 320..(i + 1) * 320];
        let norm: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
        let off: f64 = row.iter().zip(&step).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        assert!((off / norm).sqrt() < TOLERANCE_INCREMENTAL, "position {i}");
    }
    assert!(generator.push(0).is_none(), "the cache is full");
    std::fs::remove_dir_all(&dir).expect("written above");
}
