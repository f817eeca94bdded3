//! Random small graphs: fusion keeps their meaning, whatever comes out of it can be lowered and
//! planned, and a few of them give the same numbers on the CPU device.

use mdl_ir::build::Builder;
use mdl_ir::graph::{Graph, InputRole, OutputRole, Stage, ValueId};
use mdl_ir::interp::{Env, mix, run};
use mdl_ir::op::{Binary, Op, Reduction, Unary};
use mdl_ir::place::Place;
use mdl_ir::print::print;
use mdl_ir::read::read;
use mdl_ir::tensor::Tensor;
use mdl_ir::tensor_type::{Axis, DType, Type};
use mdl_ir::verify::verify;
use mdl_kernels::Device;
use mdl_passes::executable::Executable;
use mdl_passes::fuse::fuse;
use mdl_passes::optimise::StateTypes;
use mdl_passes::plan::{StateLayout, plan};
use mdl_passes::request::Precision;
use mdl_symbol::Symbol;
use mdl_train::machine::Machine;
use std::sync::Arc;

/// Both sides are f64 and differ by the order of sums alone.
const TOLERANCE: f64 = 1e-10;

/// f32 against f64, as a share of the largest element: some ten roundings of 6·10⁻⁸, each of which
/// a difference of near values may enlarge tenfold.
const DEVICE_TOLERANCE: f64 = 1e-5;

const ON_DEVICE: u64 = 40;
const GRAPHS: u64 = 2000;
const NODES: usize = 14;
const UNITS: u32 = 2;
const AXES: [(&str, u64); 4] = [("A", 2), ("B", 3), ("C", 5), ("D", 4)];

/// A stream of choices.
struct Choices(u64);

impl Choices {
    fn below(&mut self, n: usize) -> usize {
        self.0 = mix(self.0);
        (self.0 % n as u64) as usize
    }

    fn of<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }

    /// Some of these in a random order.
    fn some<T: Clone>(&mut self, list: &[T]) -> Vec<T> {
        let mut rest = list.to_vec();
        let mut taken = Vec::new();
        for _ in 0..self.below(list.len() + 1) {
            taken.push(rest.remove(self.below(rest.len())));
        }
        taken
    }
}

fn some_type(c: &mut Choices) -> Type {
    let axes = c.some(&AXES).into_iter().map(|(name, size)| Axis::new(name, size)).collect();
    Type::new(DType::F32, axes)
}

/// One more value from those that are there; nothing where the choice does not fit.
fn grow(b: &mut Builder, c: &mut Choices, known: &[ValueId]) -> Option<ValueId> {
    let at = Place::default();
    let (x, y) = (c.of(known), c.of(known));
    let names =
        |b: &Builder, id: ValueId| -> Vec<Symbol> { mdl_ir::build::axis_names(&b.ty(id).axes) };
    let made = match c.below(10) {
        0 | 1 => b.unary(c.of(&[Unary::Tanh, Unary::Sin, Unary::Neg, Unary::Abs]), x, at),
        2..=4 => b.binary(c.of(&[Binary::Add, Binary::Mul, Binary::Sub, Binary::Max]), x, y, at),
        5 => {
            let less = b.binary(Binary::Lt, x, y, at).ok()?;
            b.push(Op::Select, &[less, y, x], at)
        }
        6 | 7 => {
            let (all, kind) = (names(b, x), c.of(Reduction::ALL));
            let axes = c.some(&all);
            b.push(Op::Reduce { kind, axes }, &[x], at)
        }
        8 => {
            let shared: Vec<Symbol> =
                names(b, x).into_iter().filter(|a| b.ty(y).has(a.into())).collect();
            let axes = c.some(&shared);
            if axes.is_empty() {
                Err(String::new())
            } else {
                b.push(Op::Contract { axes }, &[x, y], at)
            }
        }
        _ => {
            let (name, size) = c.of(&AXES);
            let place = b.push(Op::Position(Axis::new(name, size)), &[], at).ok()?;
            b.binary(Binary::Mul, x, place, at)
        }
    };
    made.ok()
}

fn graph(seed: u64) -> Graph {
    let mut c = Choices(mix(seed));
    let mut b = Builder::default();
    let mut known: Vec<ValueId> =
        (0..3).map(|i| b.input(format!("x{i}"), some_type(&mut c))).collect();
    while known.len() < NODES {
        known.extend(grow(&mut b, &mut c, &known));
    }
    let outputs = known[known.len() - 3..].to_vec();
    let roles = ["first", "second", "third"].map(|n| OutputRole::Value(n.into())).to_vec();
    let inputs = (0..3).map(|i| InputRole::Scalar(format!("x{i}"))).collect();
    let body = b.finish(outputs);
    let name = format!("random.{seed}");
    Graph { name, stage: Stage::Forward, params: vec![], inputs, outputs: roles, body }
}

fn inputs(graph: &Graph) -> Vec<Tensor> {
    let value = |id: &ValueId| {
        let ty = graph.body.ty(*id).clone();
        // Eighths, which f32 holds exactly.
        let number = |i| (mix(i ^ (u64::from(id.0) << 8)) % 17) as f64 / 8.0 - 1.0;
        Tensor::new(ty.clone(), (0..ty.elements()).map(number).collect())
    };
    graph.body.inputs.iter().map(value).collect()
}

fn check(seed: u64) -> Result<Executable, String> {
    let graph = graph(seed);
    verify(&graph).map_err(|faults| faults.join("; "))?;
    let fused = fuse(&graph)?;
    verify(&fused).map_err(|faults| faults.join("; "))?;
    let again = read(&print(&fused))?;
    if print(&again) != print(&fused) {
        return Err("the text of the fused graph reads back as another one".into());
    }
    let exact = run(&graph.body, inputs(&graph), &Env::default());
    let got = run(&fused.body, inputs(&graph), &Env::default());
    for (e, g) in exact.iter().zip(&got) {
        let close = |(x, y): (&f64, &f64)| (x - y).abs() <= TOLERANCE * x.abs().max(1.0);
        if e.ty != g.ty || !e.data.iter().zip(&g.data).all(close) {
            return Err(format!("the fused graph gives {g:?}, not {e:?}"));
        }
    }
    let types = StateTypes::of(&[], Precision::F32);
    plan(&fused, &StateLayout::of(&[], types, |_| false), UNITS)
}

fn check_on_device(seed: u64, device: &Arc<Device>) -> Result<(), String> {
    let graph = graph(seed);
    let machine = Machine::new(device.clone(), check(seed)?);
    for (role, value) in graph.inputs.iter().zip(inputs(&graph)) {
        machine.write_input(role, &value.data.iter().map(|x| *x as f32).collect::<Vec<_>>());
    }
    machine.run();
    let exact = run(&graph.body, inputs(&graph), &Env::default());
    for (role, exact) in graph.outputs.iter().zip(&exact) {
        let got = machine.read_output(role).ok_or("an output has a slot")?;
        let largest = exact.data.iter().fold(1.0f64, |top, x| top.max(x.abs()));
        let close = |(x, y): (&f64, &f32)| (x - f64::from(*y)).abs() <= DEVICE_TOLERANCE * largest;
        if !exact.data.iter().zip(&got).all(close) {
            return Err(format!("the device gives {got:?} for {role:?}, not {exact:?}"));
        }
    }
    Ok(())
}

#[test]
fn random_graphs_keep_their_meaning_and_can_be_planned() {
    let failed = |seed: u64| check(seed).err().map(|fault| (seed, fault));
    let faults: Vec<(u64, String)> = (0..GRAPHS).filter_map(failed).collect();
    if let Some((seed, fault)) = faults.first() {
        let n = faults.len();
        panic!("{n} of {GRAPHS} graphs fail; the first, {seed}: {fault}\n{}", print(&graph(*seed)));
    }
}

#[test]
fn some_random_graphs_agree_on_the_device() {
    let device = Arc::new(Device::cpu(Some(UNITS)));
    for seed in 0..ON_DEVICE {
        if let Err(fault) = check_on_device(seed, &device) {
            let fused = fuse(&graph(seed)).expect("checked");
            panic!("graph {seed}: {fault}\n{}", print(&fused));
        }
    }
}
