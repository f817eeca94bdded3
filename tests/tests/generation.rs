//! Generation with caches is the full forward pass: in chunks and single steps, for every length
//! of a prompt, alone and in a batch.

use mdl_check::entry::EntryOptions;
use mdl_driver::front::Front;
use mdl_driver::pipeline::{Purpose, finish, state_layout};
use mdl_ir::build::Builder;
use mdl_ir::graph::{Graph, InputRole, Node, OutputRole, Param, Stage};
use mdl_ir::interp::{self, Env};
use mdl_ir::op::Op;
use mdl_ir::tensor::Tensor;
use mdl_ir::tensor_type::{Axis, DType, Type};
use mdl_kernels::Device;
use mdl_passes::incremental::{START, caches_only, incremental};
use mdl_train::generate::{Batch, Event, Finish, GenerateError, Generator, Room, Sampling};
use mdl_train::import;
use mdl_train::initial::initial;
use mdl_train::machine::Machine;
use mdl_train::model::{Model, ModelError};
use mdl_train::tokenizer::Tokenizer;
use mdl_train::weights::Weights;
use std::path::Path;
use std::sync::Arc;

/// ‖difference‖ / ‖exact‖ of a row of logits. Both ways are in f32 and differ in the order of
/// their sums: a sum of k ≤ 400 products loses √k roundings of 6·10⁻⁸, 1.2·10⁻⁶, either way, and
/// the errors of some forty kernels in a row add up like a random walk: 1.1·10⁻⁵.
const TOLERANCE: f64 = 1.5e-5;

/// One of several models: an embedded one, and those that `tests/models` has.
const MODELS: [(&str, &str); 4] = [
    ("llama", "tiny"),
    ("models/learned.mdl", "ragged"),
    ("models/odd.mdl", "ragged"),
    ("models/windowed.mdl", "ragged"),
];

fn open(name: &str, preset: &str) -> Model {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let file = if here.exists() { here.display().to_string() } else { name.to_string() };
    Model::open(&file, Some(preset)).expect("a model of this repository")
}

/// Initial values, ten times as large where they are small: then positions and tokens make a
/// difference that rounding cannot hide.
fn values(param: &Param) -> Vec<f32> {
    let values = initial(param, 3);
    let small = values.iter().all(|x| x.abs() < 0.3);
    values.into_iter().map(|x| if small { 10.0 * x } else { x }).collect()
}

fn filled(machine: &Machine) -> Result<(), ModelError> {
    machine.write_params(values);
    Ok(())
}

fn generator(model: &mut Model, room: Room) -> Generator {
    let device = Arc::new(Device::cpu(None));
    Generator::open(model, room, device, filled).expect("has a step")
}

fn tokens(n: usize, seed: usize, vocab: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * i * 7 + i * (13 + seed) + seed) % vocab) as u32).collect()
}

/// Logits of all positions, from one forward pass.
fn whole(model: &mut Model, ids: &[u32]) -> Vec<f32> {
    let sizes = vec![("B".to_string(), 1), ("T".to_string(), ids.len() as u64)];
    let options = EntryOptions { sizes, documents: false, auxiliary: false };
    let trace = model.compile("logits", &options, &Purpose::Forward).expect("compiles");
    let state = state_layout(trace.last(), &Purpose::Forward);
    let device = Arc::new(Device::cpu(None));
    let executable = finish(trace.last(), &state, device.units()).expect("plans");
    let machine = Machine::new(device, executable);
    for (p, param) in trace.last().params.iter().enumerate() {
        machine.write_input(&InputRole::Param(p), &values(param));
    }
    machine.write_data("tokens", &ids.iter().map(|i| *i as i32).collect::<Vec<_>>());
    machine.run();
    machine.read_value("logits").expect("a model has logits")
}

fn assert_close(got: &[f32], exact: &[f32], what: &str) {
    let norm: f64 = exact.iter().map(|x| f64::from(*x).powi(2)).sum();
    let off: f64 = got.iter().zip(exact).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let error = (off / norm).sqrt();
    assert!(error < TOLERANCE, "{what}: {error:.1e}");
}

#[test]
fn chunks_and_single_steps_are_the_full_forward_pass() {
    for (name, preset) in MODELS {
        let mut model = open(name, preset);
        let vocab = model.size("vocab").expect("a vocabulary") as usize;
        // No model has to know positions behind its table of them.
        let most = model.size("positions").unwrap_or(200) as usize;
        let ids = tokens(135.min(most), 5, vocab);
        let exact = whole(&mut model, &ids);
        let room = Room { batch: 1, capacity: ids.len() as u64, chunk: Some(64) };
        let mut generator = generator(&mut model, room);
        for length in [1, 2, 63, 64, 65, 130, 36, 5] {
            if length + 4 > ids.len() {
                continue;
            }
            // The caches are as the longer prompt before left them.
            generator.rewind();
            generator.prefill(&[&ids[..length]]).expect("the caches have room");
            let from = generator.position() as usize;
            assert!(from < length && length - from <= 4, "logits of the last token are wanted");
            for (at, id) in ids.iter().enumerate().take(length + 4).skip(from) {
                let got = generator.push(&[*id]).expect("the caches have room");
                let row = &exact[at * vocab..(at + 1) * vocab];
                assert_close(&got, row, &format!("{name}, prompt of {length}, position {at}"));
            }
        }
    }
}

/// What each prompt goes on with, and why it ends.
fn continued(
    generator: &mut Generator,
    prompts: &[&[u32]],
    sampling: Sampling,
    is_end: impl Fn(u32) -> bool,
) -> Vec<(Vec<u32>, Option<Finish>)> {
    let mut found = vec![(Vec::new(), None); prompts.len()];
    let mut batch = Batch::new(generator, prompts, sampling, 20).expect("there is room");
    while !batch.finished() {
        for event in batch.step(&is_end).expect("finite logits") {
            match event {
                Event::Token(i, id) => found[i].0.push(id),
                Event::Finished(i, why) => found[i].1 = Some(why),
            }
        }
    }
    found
}

#[test]
fn a_batch_continues_each_prompt_as_if_it_were_alone() {
    let prompts = [tokens(9, 1, 320), tokens(40, 2, 320), tokens(7, 3, 320), tokens(7, 4, 320)];
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let mut model = open("llama", "tiny");
    let room = Room { batch: 5, capacity: 60, chunk: Some(10) };
    let mut together = generator(&mut model, room);
    let mut alone = generator(&mut model, Room { batch: 1, chunk: None, ..room });
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let sampled = Sampling { top_k: Some(100), top_p: Some(0.95), seed: 9, ..Sampling::default() };
    for sampling in [greedy, sampled] {
        // A third of all ids end a sequence in the second round.
        for ends in [0, 3] {
            let is_end = |id: u32| ends > 0 && id.is_multiple_of(ends);
            let found = continued(&mut together, &prompts, sampling, is_end);
            for (i, prompt) in prompts.iter().enumerate() {
                let expected = continued(&mut alone, &[prompt], sampling, is_end);
                assert_eq!(found[i], expected[0], "prompt {i}, {sampling:?}, ends {ends}");
                let (ids, finish) = &found[i];
                assert!(ids.iter().all(|id| !is_end(*id)));
                assert_eq!(*finish == Some(Finish::Length), ids.len() == 20);
            }
        }
    }
    let other = Sampling { seed: 10, ..sampled };
    let (a, b) = (
        continued(&mut alone, &prompts[..1], sampled, |_| false),
        continued(&mut alone, &prompts[..1], other, |_| false),
    );
    assert_ne!(a, b, "seeds differ");
}

/// One of its caches is in no repeated region, and no multiple of any block.
#[test]
fn a_window_in_a_batch_is_the_window_alone() {
    let prompts = [tokens(9, 1, 331), tokens(23, 2, 331), tokens(7, 3, 331)];
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let mut model = open("models/windowed.mdl", "ragged");
    let room = Room { batch: 3, capacity: 49, chunk: Some(7) };
    let mut together = generator(&mut model, room);
    let mut alone = generator(&mut model, Room { batch: 1, chunk: None, ..room });
    let sampling = Sampling { top_p: Some(0.9), ..Sampling::default() };
    let found = continued(&mut together, &prompts, sampling, |_| false);
    for (i, prompt) in prompts.iter().enumerate() {
        let expected = continued(&mut alone, &[prompt], sampling, |_| false);
        assert_eq!(found[i], expected[0], "prompt {i}");
    }
}

#[test]
fn what_there_is_no_room_for_is_an_error() {
    let mut model = open("llama", "tiny");
    let mut generator = generator(&mut model, Room { batch: 2, capacity: 6, chunk: None });
    for _ in 0..6 {
        let logits = generator.push(&[1, 2]).expect("there is room");
        assert_eq!(logits.len(), 2 * 320);
    }
    let full = generator.push(&[1, 2]);
    assert!(matches!(full, Err(GenerateError::Full { position: 6, capacity: 6 })));
    generator.rewind();
    assert!(matches!(generator.push(&[1]), Err(GenerateError::Batch { given: 1, batch: 2 })));
    let id = generator.push(&[1, 320]);
    assert!(matches!(id, Err(GenerateError::Vocabulary { id: 320, vocab: 320 })));
    let sampling = Sampling::default();
    let empty = Batch::new(&mut generator, &[&[1], &[]], sampling, 1).err();
    assert!(matches!(empty, Some(GenerateError::Empty(1))));
    let many = Batch::new(&mut generator, &[&[1], &[1], &[1]], sampling, 1).err();
    assert!(matches!(many, Some(GenerateError::Batch { given: 3, batch: 2 })));
    let huge = Room { batch: 1, capacity: 1 << 40, chunk: None };
    let device = Arc::new(Device::cpu(None));
    let error = Generator::open(&mut model, huge, device, filled).err();
    assert!(error.is_some_and(|e| e.to_string().contains("error[E0941]")));
}

#[test]
fn weights_that_are_no_numbers_end_a_continuation() {
    let mut model = open("llama", "tiny");
    let room = Room { batch: 1, capacity: 4, chunk: None };
    let device = Arc::new(Device::cpu(None));
    let nan = |machine: &Machine| {
        machine.write_params(|p| vec![f32::NAN; p.ty.elements() as usize]);
        Ok(())
    };
    let mut generator = Generator::open(&mut model, room, device, nan).expect("has a step");
    let prompt = [1, 2];
    let mut batch =
        Batch::new(&mut generator, &[&prompt], Sampling::default(), 2).expect("there is room");
    assert!(batch.step(|_| false).expect("a prompt's logits are not looked at").is_empty());
    let error = batch.step(|_| false).expect_err("no token follows");
    assert!(error.to_string().starts_with("error[E0962]"), "{error}");
}

/// A matrix for each kind of token, behind attention that is written out.
const GROUPED: &str = "
config Kinds { hidden: size = from(\"hidden\"), vocab: size = from(\"vocab\") }

fn attend[T, S, D](x: [.., T, D], k: [.., S, D]) -> [.., T, D] {
    let seen = position[S]() <= position[T]()
    sum[S](where(seen, sum[D](x * k), 0) * k)
}

model KindsModel(c: Kinds) {
    embed: param[vocab, hidden]
    own:   param[vocab, wide = hidden, hidden]

    fn features(tokens: ids[B, T]) -> [B, T, wide] {
        let x = gather[vocab](embed, tokens)
        let y = attend[T, S, hidden](x, x[S = T])
        sum[hidden](y * gather[vocab](own, tokens))
    }

    fn logits(tokens: ids[B, T]) -> [B, T, vocab] =
        sum[wide](features(tokens) * embed[wide = hidden])

    fn loss(tokens: ids[B, T], targets: ids[B, T]) -> f32[] =
        total(logits(tokens) * (targets >= 0).f32)
}

preset one: Kinds { hidden = 6, vocab = 11 }
";

/// Attention with a window that is open to the future.
const FORESEEING: &str = "
use std.attention.attention

config Kinds { hidden: size = from(\"hidden\"), vocab: size = from(\"vocab\") }

fn near[T, S]() -> bool[T, S] = position[T]() - position[S]() < 4

model KindsModel(c: Kinds) {
    embed: param[vocab, heads = hidden, hidden]

    fn logits(tokens: ids[B, T]) -> [B, T, vocab] {
        let x = gather[vocab](embed, tokens)
        let y = attention[T, S, hidden](x, x[S = T], x[S = T], mask: near)
        sum[heads, hidden](y * embed)
    }

    fn loss(tokens: ids[B, T], targets: ids[B, T]) -> f32[] = total(logits(tokens))
}

preset one: Kinds { hidden = 6, vocab = 11 }
";

fn graph(text: &str, t: u64) -> Graph {
    let mut front = Front::load("kinds.mdl", text, &|_| None);
    let config = front.preset("one").unwrap_or_else(|| panic!("{}", front.report(false)));
    let sizes = vec![("B".to_string(), 2), ("T".to_string(), t)];
    let options = EntryOptions { sizes, documents: false, auxiliary: false };
    let built = front.build(&config, "logits", &options);
    built.unwrap_or_else(|| panic!("{}", front.report(false)))
}

/// Runs a graph whose inputs are set by role; caches start as `caches` has them, and end there.
fn interpret(graph: &Graph, ids: &[u32], start: usize, caches: &mut Vec<Tensor>) -> Vec<f64> {
    let input = |(id, role): (_, &InputRole)| {
        let ty = graph.body.ty(id).clone();
        let data = match role {
            InputRole::Param(p) => (0..ty.elements())
                .map(|i| (((i * i + 7 * i) % 17 + *p as u64) as f64 - 9.0) / 11.0)
                .collect(),
            InputRole::Cache(c) => match caches.get(*c) {
                Some(cache) => cache.data.clone(),
                None => vec![0.0; ty.elements() as usize],
            },
            InputRole::Data(name) if name == START => vec![start as f64],
            _ => ids.iter().map(|id| f64::from(*id)).collect(),
        };
        Tensor::new(ty, data)
    };
    let inputs = graph.body.inputs.iter().copied().zip(&graph.inputs).map(input).collect();
    let outputs = interp::run(&graph.body, inputs, &Env::default());
    caches.clear();
    let mut logits = Vec::new();
    for (role, out) in graph.outputs.iter().zip(outputs) {
        match role {
            OutputRole::Cache(_) => caches.push(out),
            _ => logits = out.data,
        }
    }
    logits
}

/// Sums of six products in f64, two of them in a row: far fewer than 10⁴ roundings of 10⁻¹⁶.
const TOLERANCE_EXACT: f64 = 1e-12;

#[test]
fn matrices_by_token_have_an_incremental_form() {
    let rows = [tokens(9, 1, 11), tokens(9, 4, 11)];
    let at = |range: std::ops::Range<usize>| -> Vec<u32> {
        rows.iter().flat_map(|row| row[range.clone()].to_vec()).collect()
    };
    let exact = interpret(&graph(GROUPED, 9), &at(0..9), 0, &mut Vec::new());
    let chunk = incremental(&graph(GROUPED, 6), "T", 9).expect("nothing sums over time");
    let step = incremental(&graph(GROUPED, 1), "T", 9).expect("nothing sums over time");
    let chunk = caches_only(chunk);
    assert!(chunk.outputs.iter().all(|role| matches!(role, OutputRole::Cache(_))));
    assert!(chunk.body.nodes.len() < step.body.nodes.len(), "logits are not computed");
    let mut caches = Vec::new();
    assert!(interpret(&chunk, &at(0..6), 0, &mut caches).is_empty());
    for position in 4..9 {
        let got = interpret(&step, &at(position..position + 1), position, &mut caches);
        for (row, got) in got.chunks(11).enumerate() {
            let from = (row * 9 + position) * 11;
            for (a, b) in got.iter().zip(&exact[from..from + 11]) {
                assert!((a - b).abs() < TOLERANCE_EXACT, "position {position}: {a} for {b}");
            }
        }
    }
}

/// Rows with the matrices of their groups; `rows` are the axes of the ids, `over` is summed.
fn grouped(rows: &[&str], over: &str) -> Graph {
    let axes = |names: &[&str]| names.iter().map(|n| Axis::new(*n, 3)).collect::<Vec<_>>();
    let mut b = Builder::default();
    let ids = b.input("ids", Type::new(DType::I32, axes(rows)));
    let x = b.input("x", Type::new(DType::F32, axes(&[rows, &[over]].concat())));
    let w = b.input("w", Type::new(DType::F32, axes(&["E", "N", over])));
    let y = b.grouped_contract(x, w, ids, ("E".into(), &[over.into()]), Default::default());
    let inputs = ["ids", "x", "w"].map(|name| InputRole::Data(name.into())).to_vec();
    Graph {
        name: "grouped".into(),
        stage: Stage::Forward,
        params: Vec::new(),
        inputs,
        outputs: vec![OutputRole::Value("y".into())],
        body: b.finish(vec![y.expect("the types agree")]),
    }
}

#[test]
fn grouped_contractions_pass_unless_they_sum_over_time() {
    let step = incremental(&grouped(&["B", "T"], "K"), "T", 9).expect("rows are positions");
    let kept = |n: &Node| matches!(n.op, Op::GroupedContract { .. });
    assert!(step.body.nodes.iter().any(kept));
    let fault = incremental(&grouped(&["B"], "T"), "T", 9).expect_err("sums over time");
    assert!(fault.contains("mixes positions along `T`"), "{fault}");
}

#[test]
fn what_mixes_or_foresees_positions_is_refused() {
    let summed = GROUPED.replace("(y * gather", "((y + sum[T](x)) * gather");
    for (text, reason) in
        [(summed.as_str(), "mixes positions along `T`"), (FORESEEING, "sees later positions")]
    {
        let fault = incremental(&graph(text, 5), "T", 9).expect_err("has no incremental form");
        assert!(fault.contains(reason), "{fault}");
    }
}

#[test]
fn a_pretrained_model_writes_what_it_is_known_to() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/assets/stories260k");
    if !path.exists() {
        println!("SKIPPED: {} is absent, nothing was generated", path.display());
        return;
    }
    let text = std::fs::read_to_string(path.join("expected.json")).expect("readable");
    let expected: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let ids: Vec<u32> =
        serde_json::from_value(expected["greedy_ids"].clone()).expect("a list of ids");
    let mut model = Model::of_checkpoint(&path).expect("a Llama");
    let weights = Weights::open(&path).expect("weights");
    let device = Arc::new(Device::cpu(None));
    let room = Room { batch: 1, capacity: ids.len() as u64, chunk: Some(32) };
    let load = |machine: &Machine| Ok(import::load(machine, &weights, &machine.executable.params)?);
    let mut generator = Generator::open(&mut model, room, device, load).expect("opens");
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    // From BOS alone, and from a prompt of which two chunks and four tokens are taken.
    for length in [1, 69] {
        let mut got = ids[..length].to_vec();
        let most = (ids.len() - length) as u64;
        let mut batch =
            Batch::new(&mut generator, &[&ids[..length]], greedy, most).expect("there is room");
        while !batch.finished() {
            for event in batch.step(|_| false).expect("finite logits") {
                if let Event::Token(_, id) = event {
                    got.push(id);
                }
            }
        }
        assert_eq!(got, ids, "a prompt of {length}");
    }
    let tokenizer = Tokenizer::open(&path.display().to_string(), 512).expect("its own");
    let text = tokenizer.decode(&ids, true).expect("ids have a text");
    assert_eq!(Some(text.as_str()), expected["greedy_text"].as_str());
}
