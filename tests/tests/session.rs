//! Sessions: resuming and threads do not change a bit.

use mdl_kernels::Device;
use mdl_passes::request::{MemoryRequest, Precision};
use mdl_train::checkpoint;
use mdl_train::model::Model;
use mdl_train::packing::Stream;
use mdl_train::session::{Session, Settings};
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
