//! Sessions: resuming and threads do not change a bit.

use mdl_driver::embedded;
use mdl_kernels::Device;
use mdl_train::checkpoint;
use mdl_train::export::{Options, export};
use mdl_train::generate::{Generator, Room};
use mdl_train::import;
use mdl_train::machine::Machine;
use mdl_train::model::Model;
use mdl_train::packing::Stream;
use mdl_train::session::{Session, Settings};
use mdl_train::weights::Weights;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn settings() -> Settings {
    mdl_tests::settings(3, 37)
}

fn session(threads: u32) -> Session {
    session_of(threads, settings())
}

fn session_of(threads: u32, settings: Settings) -> Session {
    let model = Model::open("llama", Some("tiny")).expect("an embedded preset");
    let device = Arc::new(Device::cpu(Some(threads)));
    Session::open(model, settings, device).expect("compiles")
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
            let (b, t) = (session.settings.sequences() as usize, session.settings.t as usize);
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
    for gradient_accumulation in [1, 3] {
        let open = || session_of(2, Settings { gradient_accumulation, ..settings() });
        let whole = steps(&mut open(), 8);
        let dir = folder("resume");
        let mut first = open();
        steps(&mut first, 4);
        checkpoint::save(&dir, &first.snapshot(None, [None, None]), None).expect("saved");
        let mut second = open();
        let checkpoint = checkpoint::open(&dir).expect("complete");
        second.resume(&checkpoint).expect("the same model");
        assert_eq!((second.step, second.cursor), (4, 4 * 3 * gradient_accumulation));
        assert_eq!(steps(&mut second, 4), whole[4..]);
        let run = checkpoint.text("run.json").expect("a file of the checkpoint");
        let run: Settings = serde_json::from_str(&run).expect("settings");
        assert_eq!(run.gradient_accumulation, gradient_accumulation);
        assert_eq!(checkpoint.manifest.gradient_accumulation, gradient_accumulation);
        std::fs::remove_dir_all(&dir).expect("written above");
    }
}

/// A model file of one's own and a module in a folder beside it.
fn own_model(dir: &Path) -> PathBuf {
    let text = |path: &[&str]| {
        let path: Vec<String> = path.iter().map(|part| part.to_string()).collect();
        embedded::module(&path).expect("a part of the compiler").1
    };
    let own = text(&["llama"]).replace("use std.mlp.SwiGlu", "use parts.mlp.SwiGlu");
    std::fs::create_dir_all(dir.join("parts")).expect("writable");
    std::fs::write(dir.join("parts/mlp.mdl"), text(&["std", "mlp"])).expect("writable");
    std::fs::write(dir.join("own.mdl"), own).expect("writable");
    dir.join("own.mdl")
}

#[test]
fn a_checkpoint_has_the_modules_that_its_model_imports() {
    let (dir, source) = (folder("own"), folder("own-source"));
    let file = own_model(&source).display().to_string();
    let open = || {
        let model = Model::open(&file, Some("tiny")).expect("a model with a module beside it");
        Session::open(model, settings(), Arc::new(Device::cpu(Some(2)))).expect("compiles")
    };
    let mut trained = open();
    steps(&mut trained, 2);
    let step = checkpoint::save(&dir, &trained.snapshot(None, [None, None]), None).expect("saved");
    assert!(step.join("parts/mlp.mdl").is_file());
    let whole = checkpoint::open(&dir).expect("complete");
    let mut again = open();
    again.resume(&whole).expect("the same model");
    std::fs::remove_dir_all(&source).expect("written above");
    let mut model = Model::of_checkpoint(&step).expect("model.mdl and what it imports");
    let weights = Weights::open(&step).expect("written above");
    let device = Arc::new(Device::cpu(None));
    let room = Room { batch: 1, capacity: 2, chunk: None };
    let load = |machine: &Machine| Ok(import::load(machine, &weights, &machine.executable.params)?);
    let mut generator = Generator::open(&mut model, room, device, load).expect("the same model");
    assert!(generator.push(&[7]).is_ok_and(|logits| logits.iter().all(|x| x.is_finite())));
    let again = Model::open(&step.join("model.mdl").display().to_string(), Some("tiny"));
    assert_eq!(again.expect("a run can go on from its step").imports().len(), 1);
    let to = folder("own-export");
    let options = Options { dtype: None, shard_bytes: u64::MAX, force: false };
    let done = export(&dir, &to, &options).expect("whole");
    assert!(to.join("parts/mlp.mdl").is_file() && done.notes.len() == 2, "{:?}", done.notes);
    std::fs::write(step.join("parts/mlp.mdl"), "").expect("writable");
    assert_eq!(checkpoint::open(&step).expect_err("another module").code(), "E0922");
    let _ = (std::fs::remove_dir_all(&dir), std::fs::remove_dir_all(&to));
}
