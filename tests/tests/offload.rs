//! Activations that wait in host memory: not a bit of training changes, the plan says what moves,
//! and what moves is gone from the device.

use mdl_kernels::Device;
use mdl_passes::executable::{Arg, Executable, Launch, Space, Step};
use mdl_passes::offload::{Saved, saved};
use mdl_passes::plan::ALIGNMENT;
use mdl_passes::request::MemoryRequest;
use mdl_train::model::Model;
use mdl_train::packing::{Evaluation, Stream};
use mdl_train::session::{Session, Settings, executables, training_trace};
use std::sync::Arc;

const STEPS: usize = 5;

/// Slots of the device through which the slices of a value go, one way at a time.
const SLOTS: u64 = 2;

fn settings(activation_checkpointing: bool, offload_activations: bool) -> Settings {
    let memory =
        MemoryRequest { activation_checkpointing, offload_activations, ..Default::default() };
    Settings { memory, ..mdl_tests::settings(3, 37) }
}

/// Files and presets: embedded models, and those of `tests/models` with more layers than slots.
fn models() -> Vec<(String, String)> {
    let dir = std::env::temp_dir().join(format!("mdl-offload-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("the temporary folder is writable");
    let mut found: Vec<_> = ["llama", "mixtral"].map(|m| (m.into(), "tiny".into())).to_vec();
    for (name, text) in mdl_tests::models() {
        let path = dir.join(name);
        std::fs::write(&path, text.replace("layers = 2", "layers = 5")).expect("writable");
        found.push((path.display().to_string(), "ragged".into()));
    }
    found
}

fn open((file, preset): &(String, String)) -> Model {
    Model::open(file, Some(preset)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// Losses and gradient norms of some steps, and all parameters and moments after them, as bits.
fn trained(session: &mut Session) -> (Vec<[u64; 2]>, Vec<Vec<u32>>) {
    let ids: Vec<u32> = (0..700).map(|i| (i * i + 3 * i) % 61).collect();
    let stream = Stream::new(&[ids], 5);
    let step = |session: &mut Session| {
        let batch = stream.batch(session.cursor, 3, 37).expect("long enough");
        let report = session.step(&batch);
        [report.loss.to_bits(), report.grad_norm.to_bits()]
    };
    let steps = (0..STEPS).map(|_| step(session)).collect();
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
    let parameters = session.snapshot(None, [None, None]).parameters;
    (steps, parameters.into_iter().map(|p| bits([p.value, p.m, p.v].concat())).collect())
}

/// Bytes of the device that a run's plan has: state and work.
fn planned(name: &(String, String), settings: &Settings) -> (u64, u64) {
    let (_, step, _) = executables(&mut open(name), settings, 2).expect("compiles");
    (step.state_bytes(), step.work_bytes())
}

/// What the pass finds to move.
fn found(model: &mut Model, settings: &Settings) -> Vec<Saved> {
    let trace = training_trace(model, settings).expect("compiles");
    let before = trace.stages.iter().rev().find(|(name, _, _)| *name == "recompute");
    saved(&before.expect("a pass of the pipeline").1)
}

/// The most bytes of the work space that are in use at one time.
fn peak(e: &Executable) -> u64 {
    let work = || e.buffers.iter().filter(|b| b.space == Space::Work);
    let live = |at| work().filter(|b| b.first <= at && at <= b.last).map(|b| b.bytes).sum();
    work().map(|b| live(b.first)).max().unwrap_or(0)
}

#[test]
fn training_is_the_same_to_the_bit_and_the_device_needs_less() {
    let device = Arc::new(Device::cpu(Some(2)));
    for name in models() {
        let (file, _) = &name;
        for again in [false, true] {
            let moved = found(&mut open(&name), &settings(again, false));
            let bytes: u64 = moved.iter().map(|m| m.bytes).sum();
            let staged: u64 = moved.iter().map(|m| SLOTS * m.slice).sum();
            assert!(bytes > 0, "{file}: every gradient needs something");
            let session = |offload| {
                let settings = settings(again, offload);
                Session::open(open(&name), settings, device.clone()).expect("compiles")
            };
            let (mut kept, mut away) = (session(false), session(true));
            let (k, a) = (&kept.train.first.executable, &away.train.first.executable);
            assert_eq!(
                (k.host_bytes, a.host_bytes),
                (0, bytes),
                "{file}: the plan is what is said"
            );
            assert_eq!(
                (kept.train.first.host_allocated(), away.train.first.host_allocated()),
                (0, bytes)
            );
            assert_eq!(planned(&name, &settings(again, true)), away.train.allocated());
            assert!(peak(a) + bytes <= peak(k) + staged, "{file}: {bytes} bytes are moved");
            assert!(a.work_bytes + bytes <= k.work_bytes + staged, "{file}: {bytes} bytes");
            let same = trained(&mut kept) == trained(&mut away);
            assert!(same, "{file}: training differs, checkpointing {again}");
        }
    }
}

/// Settings with the whole state in host memory.
fn state_away(again: bool, offload_activations: bool) -> Settings {
    let mut settings = settings(again, offload_activations);
    settings.memory.cpu_offload = true;
    settings
}

/// Bytes of the parameters of one layer, of those of no layer, and of all.
fn sizes(e: &Executable) -> [u64; 3] {
    let mut sizes = [0; 3];
    for p in &e.params {
        let slice = p.slice_type().bytes().next_multiple_of(ALIGNMENT);
        sizes[usize::from(p.repeats.is_none())] += slice;
        sizes[2] += slice * p.repeats.unwrap_or(1);
    }
    sizes
}

/// Mean loss over some windows, as bits.
fn validated(session: &Session) -> (u64, u64) {
    let ids: Vec<u32> = (0..400).map(|i| (i * 7 + i * i) % 61).collect();
    let (loss, targets) = session.validate(&Evaluation::new(vec![ids], 37), 2);
    (loss.to_bits(), targets)
}

#[test]
fn a_state_in_host_memory_trains_the_same_to_the_bit() {
    let device = Arc::new(Device::cpu(Some(2)));
    for name in models() {
        let (file, _) = &name;
        let open = |settings| Session::open(open(&name), settings, device.clone());
        let open = |settings| open(settings).expect("compiles");
        let (mut kept, mut away) = (open(settings(false, false)), open(state_away(false, false)));
        let (k, a) = (&kept.train.first.executable, &away.train.first.executable);
        let [layer, unrepeated, all] = sizes(k);
        assert_eq!((k.state_bytes, a.state_bytes), (4 * all, 0), "{file}: it is elsewhere");
        assert_eq!((a.host_bytes, a.host_state_bytes), (4 * all, 4 * all), "{file}");
        let needed = planned(&name, &state_away(false, false));
        assert_eq!(needed, away.train.allocated(), "{file}: the arenas are that small");
        assert_eq!(a.host_bytes, away.train.first.host_allocated());
        // Slices of parameters come in, those of gradients leave, and of what is in no layer both
        // may be there at one time.
        let staged = 2 * SLOTS * layer + 2 * unrepeated;
        assert!(peak(a) <= peak(k) + staged, "{file}: {} and {}", peak(a), peak(k));
        let before = (trained(&mut kept), validated(&kept));
        let after = (trained(&mut away), validated(&away));
        assert!(before == after, "{file}: training differs");
        let again = trained(&mut open(settings(true, false)));
        let all = trained(&mut open(state_away(true, true)));
        assert!(again == all, "{file}: with activations, and layers computed again");
    }
}

/// With everything away that can be, the device has some layers, whatever the depth.
#[test]
fn the_devices_memory_does_not_grow_with_the_layers() {
    let with = |layers: usize| {
        let text = mdl_tests::models().into_iter().find(|(name, _)| name == "parallel.mdl");
        let (name, text) = text.expect("a model of tests/models");
        let deep = format!("layers = {layers}");
        let path = std::env::temp_dir().join(format!("mdl-deep-{layers}-{name}"));
        std::fs::write(&path, text.replace("layers = 2", &deep)).expect("writable");
        let mut model = open(&(path.display().to_string(), "ragged".into()));
        let (_, e, _) = executables(&mut model, &state_away(true, true), 2).expect("compiles");
        (e.state_bytes(), e.work_bytes(), e.host_bytes())
    };
    let (shallow, deep) = (with(4), with(12));
    assert_eq!((shallow.0, shallow.1), (deep.0, deep.1), "the device's bytes");
    assert!(deep.2 > 2 * shallow.2, "the host's bytes");
}

/// A launch of a loop in an iteration, in the order in which they are issued.
fn issued(count: u64, body: &[Launch]) -> Vec<(usize, u64)> {
    let mut all: Vec<(i64, usize, u64)> = (0..count)
        .flat_map(|i| body.iter().enumerate().map(move |(p, l)| (i as i64 - l.ahead as i64, p, i)))
        .collect();
    all.sort_unstable();
    all.into_iter().map(|(_, p, i)| (p, i)).collect()
}

fn meet(a: &Arg, i: u64, b: &Arg, j: u64) -> bool {
    let range = |a: &Arg, i| {
        let from = a.offset + a.index.map_or(0, |index| index.at(i));
        from..from + a.bytes
    };
    let (x, y) = (range(a, i), range(b, j));
    a.space == b.space && x.start < y.end && y.start < x.end
}

/// Holds every kernel of a loop against every transfer: of two that touch the same bytes, the later
/// one knows that the earlier one has ended, by what it or one before it in its queue waits for.
fn check_waits(e: &Executable, count: u64, body: &[Launch]) -> usize {
    let transfer = |p: usize| e.specs[body[p].spec] == mdl_ir::kernel::KernelSpec::Transfer;
    let order = issued(count, body);
    let place = |p: usize, i: u64| order.iter().position(|x| *x == (p, i));
    let mut met = 0;
    // The last of the other queue that each queue knows to have ended, kernels first.
    let mut known: [Option<usize>; 2] = [None; 2];
    for (now, (p, i)) in order.iter().enumerate() {
        let queue = usize::from(transfer(*p));
        for wait in &body[*p].wait {
            let other = u64::try_from(*i as i64 - wait.lag).ok();
            let waited = other.and_then(|j| place(wait.launch, j));
            assert!(waited.is_none_or(|w| w < now), "{}: waits for what comes later", e.name);
            known[queue] = known[queue].max(waited);
        }
        for (before, (q, j)) in order[..now].iter().enumerate() {
            let touch = |a| body[*q].args.iter().any(|b| meet(a, *i, b, *j));
            if transfer(*q) != transfer(*p) && body[*p].args.iter().any(touch) {
                met += 1;
                let sure = known[queue].is_some_and(|k| before <= k);
                assert!(sure, "{} in {i} meets {} in {j}", body[*p].name, body[*q].name);
            }
        }
    }
    met
}

#[test]
fn kernels_and_transfers_wait_for_each_other() {
    for name in models() {
        let (_, step, _) =
            executables(&mut open(&name), &state_away(true, true), 2).expect("compiles");
        let (e, mut met) = (step.first, 0);
        for step in &e.steps {
            if let Step::Loop { count, body } = step {
                met += check_waits(&e, *count, body);
            }
        }
        assert!(met > 0, "{}: nothing is transferred", name.0);
    }
}

#[test]
fn what_comes_back_is_asked_for_one_layer_ahead() {
    let model = ("llama".to_string(), "tiny".to_string());
    let (_, step, _) = executables(&mut open(&model), &settings(false, true), 2).expect("compiles");
    let loops = step.first.steps.iter().filter_map(|s| match s {
        Step::Loop { body, .. } => Some(body),
        Step::Launch(_) => None,
    });
    let ahead: Vec<Vec<(u64, Space)>> = loops
        .map(|body| {
            let transfers = body.iter().filter(|l| {
                l.args[0].space == Space::Host
                    || l.args.last().is_some_and(|a| a.space == Space::Host)
            });
            transfers.map(|l| (l.ahead, l.args[1].space)).collect()
        })
        .collect();
    assert_eq!(ahead.len(), 2, "a forward and a reversed region");
    assert!(ahead[0].iter().all(|x| *x == (0, Space::Host)) && !ahead[0].is_empty());
    assert!(ahead[1].iter().all(|x| *x == (1, Space::Work)) && !ahead[1].is_empty());
}

/// Fifty steps with everything away, in a budget, and with several micro-batches: the gradients of
/// those before come in for each of them.
#[test]
fn fifty_steps_are_the_same_to_the_bit() {
    let device = Arc::new(Device::cpu(Some(2)));
    let run = |settings: Settings| {
        let model = open(&("llama".to_string(), "tiny".to_string()));
        let mut session = Session::open(model, settings, device.clone()).expect("compiles");
        let ids: Vec<u32> = (0..900).map(|i| (i * i + 5 * i) % 250).collect();
        let stream = Stream::new(&[ids], 3);
        let step = |session: &mut Session| {
            let n = session.settings.sequences() as usize;
            let batch = stream.batch(session.cursor, n, 37).expect("long enough");
            let report = session.step(&batch);
            [report.loss.to_bits(), report.grad_norm.to_bits()]
        };
        (0..50).map(|_| step(&mut session)).collect::<Vec<_>>()
    };
    for gradient_accumulation in [1, 3] {
        let kept = Settings { max_steps: 50, gradient_accumulation, ..settings(false, false) };
        let away = Settings { max_steps: 50, gradient_accumulation, ..state_away(true, true) };
        assert_eq!(run(kept), run(away), "{gradient_accumulation} micro-batches");
    }
}
