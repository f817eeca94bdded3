//! A memory budget: plans keep to it, the least one is exact, more bytes are never slower, and what
//! is chosen does not change a bit.

use mdl_kernels::Device;
use mdl_passes::executable::Speed;
use mdl_passes::request::{Budget, MemoryRequest};
use mdl_train::model::Model;
use mdl_train::packing::Stream;
use mdl_train::session::{Session, Settings, executables};
use std::sync::Arc;

const THREADS: u32 = 2;
const SPEED: Speed = Speed { flops: 4e11, bytes: 2e10, host: 5e9 };

fn settings(batch: u64, t: u64, memory: MemoryRequest) -> Settings {
    Settings { memory, val_batch: 1, ..mdl_tests::settings(batch, t) }
}

fn within(device: u64) -> MemoryRequest {
    let budget =
        Budget { device, host: None, target: THREADS.into(), speed: SPEED, or_least: false };
    let budget = Some(budget);
    MemoryRequest { budget, ..MemoryRequest::default() }
}

/// Bytes and seconds of the planned step, or why there is none.
fn planned(file: &str, preset: &str, t: u64, memory: MemoryRequest) -> Result<(u64, f64), String> {
    let mut model = Model::open(file, Some(preset)).expect("an embedded preset");
    let (_, step, _) = executables(&mut model, &settings(2, t, memory), THREADS)
        .map_err(|error| error.to_string())?;
    Ok((step.state_bytes() + step.work_bytes(), step.seconds(&SPEED)))
}

/// The number of bytes that a refusal names.
fn named(error: &str) -> u64 {
    assert!(error.starts_with("error[E0953]: the budget of "), "{error}");
    let (_, after) = error.split_once("needs ").expect("what is needed");
    after.split(' ').next().and_then(|n| n.parse().ok()).expect("a number of bytes")
}

#[test]
fn plans_keep_to_the_budget_and_the_least_one_is_exact() {
    for (file, preset, t) in
        [("llama", "tiny", 64), ("llama", "llama_15m", 1024), ("mixtral", "tiny", 64)]
    {
        let (all, fastest) = planned(file, preset, t, MemoryRequest::default()).expect("planned");
        let refused = planned(file, preset, t, within(1)).expect_err("one byte is too little");
        assert!(refused.contains(&format!("models/{file}.mdl:")), "{refused}");
        let least = named(&refused);
        assert!(least < all, "{file} {preset}: something can be computed again");
        let below = planned(file, preset, t, within(least - 1)).expect_err("below the least");
        assert_eq!(named(&below), least, "{file} {preset}");
        let (bytes, mut before) = planned(file, preset, t, within(least)).expect("the least");
        assert_eq!(bytes, least, "{file} {preset}");
        for tenth in 1..=10 {
            let budget = least + (all - least) * tenth / 10;
            let (bytes, seconds) = planned(file, preset, t, within(budget)).expect("above it");
            assert!(bytes <= budget, "{file} {preset}: {bytes} of {budget}");
            assert!(seconds <= before, "{file} {preset}: more bytes are slower");
            before = seconds;
        }
        assert_eq!(before, fastest, "{file} {preset}: everything fits");
    }
}

/// A micro-batch does not see the moments, and they count for it all the same.
#[test]
fn micro_batches_keep_to_the_budget_of_the_step() {
    let planned = |memory| {
        let mut model = Model::open("llama", Some("tiny")).expect("an embedded preset");
        let settings = Settings { gradient_accumulation: 3, ..settings(2, 64, memory) };
        let planned = executables(&mut model, &settings, THREADS);
        planned.map(|(_, step, _)| step.state_bytes() + step.work_bytes())
    };
    let all = planned(MemoryRequest::default()).expect("planned");
    let least = named(&planned(within(1)).expect_err("too little").to_string());
    assert!(least < all);
    assert!(planned(within(least - 1)).is_err());
    for budget in [least, (least + all) / 2, all] {
        let bytes = planned(within(budget)).expect("fits");
        assert!(bytes <= budget, "{bytes} of {budget}");
    }
}

/// Validation runs in the step's work space, and counts where it needs more of it.
#[test]
fn validation_counts_too() {
    let step = |val_batch, memory| {
        let mut model = Model::open("llama", Some("tiny")).expect("an embedded preset");
        let settings = Settings { val_batch, ..settings(1, 64, memory) };
        let planned = executables(&mut model, &settings, THREADS);
        planned.map(|(_, step, _)| step.state_bytes() + step.work_bytes())
    };
    let small = step(1, MemoryRequest::default()).expect("planned");
    let large = step(64, MemoryRequest::default()).expect("planned");
    assert!(large > small);
    let refused = step(64, within(small)).expect_err("validation is above the budget");
    assert!(refused.to_string().contains("--val_batch_size"), "{refused}");
}

/// Bounds on both memories.
fn spaces(device: u64, host: u64) -> MemoryRequest {
    let (host, target) = (Some(host), THREADS.into());
    let budget = Some(Budget { device, host, target, speed: SPEED, or_least: false });
    MemoryRequest { budget, ..MemoryRequest::default() }
}

/// With memory in the host the device needs less, more of either is never slower, and the least of
/// the device is exact for what the host has.
#[test]
fn the_host_takes_what_the_device_lacks() {
    for (file, preset, t) in [("llama", "tiny", 64), ("llama", "llama_15m", 1024)] {
        let alone = named(&planned(file, preset, t, within(1)).expect_err("too little"));
        let (all, _) = planned(file, preset, t, MemoryRequest::default()).expect("planned");
        let mut before = alone;
        for host in [0, 1 << 20, 1 << 40] {
            let refused = planned(file, preset, t, spaces(1, host)).expect_err("too little");
            let least = named(&refused);
            assert!(least <= before, "{file} {preset}: {host} bytes of the host");
            assert_eq!(planned(file, preset, t, spaces(least, host)).expect("fits").0, least);
            assert!(planned(file, preset, t, spaces(least - 1, host)).is_err());
            before = least;
        }
        // What few tokens save is less than what the vocabulary's loss works with in any case.
        let waits = preset == "tiny" || before < alone;
        assert!(waits, "{file} {preset}: something waits in the host");
        let mut seconds = f64::INFINITY;
        for tenth in 0..=10 {
            let device = before + (all - before) * tenth / 10;
            let (bytes, now) = planned(file, preset, t, spaces(device, 1 << 40)).expect("fits");
            assert!(bytes <= device && now <= seconds, "{file} {preset}: {bytes}, {now}");
            let alone = planned(file, preset, t, within(device));
            assert!(alone.is_err() || now <= alone.expect("planned").1, "{file} {preset}");
            seconds = now;
        }
    }
}

/// Losses and gradient norms of some steps, as bits, and a digest of the weights after them.
fn trained(file: &str, memory: MemoryRequest) -> (Vec<(u64, u64)>, Vec<u32>) {
    let model = Model::open(file, Some("tiny")).expect("an embedded preset");
    let device = Arc::new(Device::cpu(Some(THREADS)));
    let mut session = Session::open(model, settings(2, 33, memory), device).expect("compiles");
    let ids = |n: u32| (0..n).map(|i| (i * i + 3 * i) % 250).collect::<Vec<u32>>();
    let stream = Stream::new(&[ids(211), ids(97), ids(530)], 5);
    let steps = (0..4).map(|_| {
        let batch = stream.batch(session.cursor, 2, 33).expect("long enough");
        let report = session.step(&batch);
        (report.loss.to_bits(), report.grad_norm.to_bits())
    });
    let steps = steps.collect();
    let snapshot = session.snapshot(None, [None, None]);
    let weights = snapshot.parameters.iter().flat_map(|p| p.value.iter().map(|x| x.to_bits()));
    (steps, weights.collect())
}

#[test]
fn what_is_computed_again_has_the_same_bits() {
    for file in ["llama", "mistral", "mixtral"] {
        let plain = trained(file, MemoryRequest::default());
        let layers = MemoryRequest { activation_checkpointing: true, ..MemoryRequest::default() };
        assert_eq!(trained(file, layers), plain, "{file}: whole layers");
        let least = named(&planned(file, "tiny", 33, within(1)).expect_err("too little"));
        let (all, _) = planned(file, "tiny", 33, MemoryRequest::default()).expect("planned");
        for budget in [least, (least + all) / 2] {
            assert_eq!(trained(file, within(budget)), plain, "{file}: {budget} bytes");
        }
        let least = named(&planned(file, "tiny", 33, spaces(1, 1 << 30)).expect_err("too little"));
        for budget in [least, (least + all) / 2] {
            let away = spaces(budget, 1 << 30);
            assert_eq!(trained(file, away), plain, "{file}: {budget} bytes, and the host");
        }
    }
}
