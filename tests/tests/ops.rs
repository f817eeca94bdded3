//! Every primitive operation: its meaning, its gradient and its text form.
//!
//! Operations are enrolled by existing: `after` and the tables match on `Op` without a catch-all
//! arm, so an operation that is added does not compile without its cases.

#[path = "ops/gradient.rs"]
mod gradient;
#[path = "ops/meaning.rs"]
mod meaning;
#[path = "ops/tensors.rs"]
mod tensors;

use gradient::Gradient;
use mdl_ir::build::Builder;
use mdl_ir::graph::{Body, Graph, InputRole, Node, OutputRole, Param, Stage, Value, ValueId};
use mdl_ir::infer::infer;
use mdl_ir::interp::{Env, run};
use mdl_ir::op::{Binary, Collective, Group, Kernel, Memory, Op, Reduction, Unary};
use mdl_ir::place::Place;
use mdl_ir::print::{Names, print};
use mdl_ir::read::read;
use mdl_ir::tensor::Tensor;
use mdl_ir::tensor_type::{Axis, DType, Type};
use mdl_ir::verify::verify;
use mdl_passes::differentiate::differentiate;
use mdl_symbol::Symbol;
use std::collections::HashMap;

/// Meanings are worked out by hand to seven digits.
const MEANING_TOLERANCE: f64 = 1e-7;

/// Distance between the points of a difference.
const STEP: f64 = 1.0 / 1024.0;

/// The central difference over four points is off by h⁴/30 · f⁽⁵⁾, which is 3·10⁻¹⁴ · f⁽⁵⁾, and by
/// rounding, which is 1.5 · ε/h · f = 3·10⁻¹³ · f. At the points of the table the fifth derivatives
/// stay below 10⁵.
const GRADIENT_TOLERANCE: f64 = 1e-8;

/// The next kind of operation, by an example; the kinds with a name of their own are listed by
/// their `ALL`.
fn after(op: &Op) -> Option<Op> {
    let axis = || Symbol::new("A");
    let own = |size| Axis::new("A", size);
    Some(match op {
        Op::Const(_) => Op::Position(own(2)),
        Op::Position(_) => Op::Random { stream: 0, axes: vec![own(2)] },
        Op::Random { .. } => Op::Unary(Unary::ALL[0]),
        Op::Unary(_) => Op::Binary(Binary::ALL[0]),
        Op::Binary(_) => Op::Select,
        Op::Select => Op::Reduce { kind: Reduction::Sum, axes: vec![] },
        Op::Reduce { .. } => Op::Contract { axes: vec![] },
        Op::Contract { .. } => Op::GroupedContract { axis: axis(), axes: vec![] },
        Op::GroupedContract { .. } => Op::GroupedOuter { axis: own(2) },
        Op::GroupedOuter { .. } => Op::Broadcast { axes: vec![] },
        Op::Broadcast { .. } => Op::Reorder { axes: vec![] },
        Op::Reorder { .. } => Op::Cast(DType::F32),
        Op::Cast(_) => Op::StochasticRound { stream: 0 },
        Op::StochasticRound { .. } => Op::Rename { from: axis(), to: axis() },
        Op::Rename { .. } => Op::Split { axis: axis(), into: vec![] },
        Op::Split { .. } => Op::Merge { axes: vec![], into: axis() },
        Op::Merge { .. } => Op::Slice { axis: axis(), start: 0, into: own(2) },
        Op::Slice { .. } => Op::Pad { axis: axis(), start: 0, into: own(2) },
        Op::Pad { .. } => Op::Concat { axis: axis(), into: own(2) },
        Op::Concat { .. } => Op::Gather { axis: axis() },
        Op::Gather { .. } => Op::ScatterAdd { axis: own(2) },
        Op::ScatterAdd { .. } => Op::StopGradient,
        Op::StopGradient => Op::Transfer { to: Memory::ALL[0] },
        Op::Transfer { .. } => {
            let group = Group { ranks: 4, stride: 2 };
            Op::Collective { kind: Collective::ALL[0], group }
        }
        Op::Collective { .. } => Op::CacheWrite { axis: axis() },
        Op::CacheWrite { .. } => Op::Repeat {
            axis: axis(),
            count: 1,
            reverse: false,
            carries: 0,
            consts: 0,
            body: Box::default(),
        },
        Op::Repeat { .. } => {
            let kernel = Kernel::Attention;
            Op::Call { kernel, axes: vec![], body: Box::default() }
        }
        Op::Call { .. } => return None,
    })
}

/// One example of every kind, with every named kind.
fn kinds() -> Vec<Op> {
    let mut kinds = Vec::new();
    let mut next = Some(Op::Const(0.0));
    while let Some(op) = next {
        next = after(&op);
        match &op {
            Op::Unary(_) => kinds.extend(Unary::ALL.iter().map(|u| Op::Unary(*u))),
            Op::Binary(_) => kinds.extend(Binary::ALL.iter().map(|b| Op::Binary(*b))),
            Op::Reduce { axes, .. } => kinds.extend(
                Reduction::ALL.iter().map(|kind| Op::Reduce { kind: *kind, axes: axes.clone() }),
            ),
            Op::Call { axes, body, .. } => kinds.extend(Kernel::ALL.map(|kernel| Op::Call {
                kernel,
                axes: axes.clone(),
                body: body.clone(),
            })),
            Op::Transfer { .. } => {
                kinds.extend(Memory::ALL.iter().map(|to| Op::Transfer { to: *to }))
            }
            Op::Collective { group, .. } => kinds.extend(
                Collective::ALL.iter().map(|kind| Op::Collective { kind: *kind, group: *group }),
            ),
            _ => kinds.push(op),
        }
    }
    kinds
}

/// An operation on these arguments.
#[derive(Clone, Debug)]
pub struct Sample {
    pub op: Op,
    pub args: Vec<Tensor>,
}

/// A body that holds the sample's operation alone; all results are outputs.
fn alone(sample: &Sample) -> Body {
    let types: Vec<&Type> = sample.args.iter().map(|t| &t.ty).collect();
    let results = infer(&sample.op, &types)
        .unwrap_or_else(|fault| panic!("{} has a type: {fault}", sample.op.name()));
    let mut body = Body::default();
    let mut enter = |name: &str, ty: &Type| {
        body.values.push(Value { name: name.into(), ty: ty.clone() });
        ValueId(body.values.len() as u32 - 1)
    };
    let inputs: Vec<ValueId> = types.iter().map(|ty| enter("x", ty)).collect();
    let outputs: Vec<ValueId> = results.iter().map(|ty| enter("y", ty)).collect();
    body.inputs = inputs.clone();
    body.outputs = outputs.clone();
    let span = Place::default();
    body.nodes = vec![Node { op: sample.op.clone(), args: inputs, results: outputs, span }];
    body
}

#[test]
fn every_operation_means_what_is_worked_out_by_hand() {
    for kind in kinds() {
        let known = meaning::known(&kind);
        assert!(!known.is_empty(), "`{}` has no example", kind.name());
        for (sample, expected) in known {
            assert_eq!(sample.op.name(), kind.name());
            let results = run(&alone(&sample), sample.args.clone(), &Env::default());
            assert_eq!(results.len(), expected.len(), "results of {:?}", sample.op);
            for (result, expected) in results.iter().zip(&expected) {
                assert_eq!(&result.ty, &expected.ty, "type of {:?}", sample.op);
                let close = |(x, y): (&f64, &f64)| x == y || (x - y).abs() < MEANING_TOLERANCE;
                let fits = result.data.iter().zip(&expected.data).all(close);
                assert!(fits, "{:?} gives {:?}, not {:?}", sample.op, result.data, expected.data);
            }
        }
    }
}

/// How the results of a sample become one number, so that gradients of every form arise: with all
/// axes, with some of them, with none.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Weighted,
    FirstAxis,
    Plain,
}

/// Σ weight · result over all results as a graph: f32 arguments are parameters, others are data.
fn loss(sample: &Sample, ending: Ending) -> (Graph, Vec<Tensor>) {
    let mut b = Builder::default();
    let mut inputs = sample.args.clone();
    let (mut params, mut roles) = (Vec::new(), Vec::new());
    let mut ids = Vec::new();
    for (i, arg) in sample.args.iter().enumerate() {
        ids.push(b.input(format!("x{i}"), arg.ty.clone()));
        if arg.ty.dtype == DType::F32 {
            roles.push(InputRole::Param(params.len()));
            params.push(parameter(&format!("x{i}"), &arg.ty));
        } else {
            roles.push(InputRole::Data(format!("x{i}")));
        }
    }
    let types: Vec<&Type> = sample.args.iter().map(|t| &t.ty).collect();
    let results = infer(&sample.op, &types).expect("the sample is well typed");
    let named = results.iter().map(|ty| ("y".to_string(), ty.clone())).collect();
    let at = Place::default();
    let made = b.node(sample.op.clone(), ids, named, at);
    let mut total = b.number(0.0, at);
    for (i, (id, ty)) in made.into_iter().zip(&results).enumerate() {
        let axes = match ending {
            Ending::Weighted => ty.axes.clone(),
            Ending::FirstAxis => ty.axes.iter().take(1).cloned().collect(),
            Ending::Plain => Vec::new(),
        };
        let weights = tensors::spread(&Type::new(DType::F32, axes), (0.5, 1.5), 100 + i as u64);
        roles.push(InputRole::Data(format!("weights{i}")));
        let w = b.input(format!("weights{i}"), weights.ty.clone());
        inputs.push(weights);
        let id = if ty.dtype == DType::F32 { id } else { cast(&mut b, id) };
        let product = b.mul(id, w, at).expect("the same axes");
        let axes = mdl_ir::build::axis_names(&ty.axes);
        let sum = b.sum(product, &axes, at).expect("its own axes");
        total = b.binary(Binary::Add, total, sum, at).expect("two numbers");
    }
    let graph = Graph {
        name: "sample.loss".into(),
        stage: Stage::Forward,
        params,
        inputs: roles,
        outputs: vec![OutputRole::Value("loss".into())],
        body: b.finish(vec![total]),
    };
    (graph, inputs)
}

fn cast(b: &mut Builder, id: ValueId) -> ValueId {
    b.push(Op::Cast(DType::F32), &[id], Place::default()).expect("anything can be cast")
}

fn parameter(name: &str, ty: &Type) -> Param {
    Param {
        name: name.into(),
        stored: format!("{name}.weight"),
        also_stored: vec!["tied \"name\"".into()],
        ty: ty.clone(),
        repeats: None,
        parts: None,
        init: None,
    }
}

/// Compares every gradient of a graph with central differences.
fn check_gradients(what: &str, graph: &Graph, inputs: &[Tensor]) {
    let trained = differentiate(graph).unwrap_or_else(|fault| panic!("{what}: {fault}"));
    verify(&trained).unwrap_or_else(|faults| panic!("{what}: {faults:?}\n{}", print(&trained)));
    round_trips(&trained);
    let env = Env::default();
    let value = |at: Vec<Tensor>| run(&graph.body, at, &env)[0].data[0];
    let results = run(&trained.body, inputs.to_vec(), &env);
    assert_eq!(results[0].data[0], value(inputs.to_vec()), "{what}: the loss is the same");
    for (role, gradient) in trained.outputs.iter().zip(&results) {
        let OutputRole::Grad(p) = role else { continue };
        let at = graph.inputs.iter().position(|r| *r == InputRole::Param(*p));
        let at = at.expect("a parameter comes in");
        for (e, exact) in gradient.data.iter().enumerate() {
            let moved = |by: f64| {
                let mut inputs = inputs.to_vec();
                inputs[at].data[e] += by;
                value(inputs)
            };
            let wide = |by: f64| moved(by) - moved(-by);
            let slope = (8.0 * wide(STEP) - wide(2.0 * STEP)) / (12.0 * STEP);
            let off = (slope - exact).abs() / exact.abs().max(1.0);
            assert!(
                off < GRADIENT_TOLERANCE,
                "{what}: gradient {e} of input {at} is {exact}, differences give {slope}\n{}",
                print(&trained)
            );
        }
    }
}

#[test]
fn gradients_agree_with_central_differences() {
    for kind in kinds() {
        match gradient::of(&kind) {
            Gradient::Samples(samples) => {
                assert!(!samples.is_empty(), "`{}` has no example", kind.name());
                for sample in samples {
                    assert_eq!(sample.op.name(), kind.name());
                    for ending in [Ending::Weighted, Ending::FirstAxis, Ending::Plain] {
                        let (graph, inputs) = loss(&sample, ending);
                        let what = format!("{:?} {ending:?}", sample.op);
                        check_gradients(&what, &graph, &inputs);
                    }
                }
            }
            Gradient::Zero(sample) => {
                let (graph, inputs) = loss(&sample, Ending::Weighted);
                let trained = differentiate(&graph).expect("a gradient of zero is one");
                let results = run(&trained.body, inputs, &Env::default());
                let zero = |t: &Tensor| t.data.iter().all(|g| *g == 0.0);
                assert!(results[1..].iter().all(zero), "`{}` lets nothing through", kind.name());
            }
            Gradient::Refused(sample) => {
                let (graph, _) = loss(&sample, Ending::Weighted);
                assert!(differentiate(&graph).is_err(), "`{}` has no gradient", kind.name());
            }
        }
    }
}

#[test]
fn gradients_of_bodies_agree_with_central_differences() {
    for (name, graph, inputs) in gradient::bodies() {
        verify(&graph).unwrap_or_else(|faults| panic!("{name}: {faults:?}"));
        check_gradients(name, &graph, &inputs);
    }
}

/// The graph with values numbered in order of appearance and called by their printed names.
fn canonical(graph: &Graph) -> Graph {
    let params = graph.params.iter().map(|p| Param { init: None, ..p.clone() }).collect();
    Graph { params, body: canonical_body(&graph.body), ..graph.clone() }
}

fn canonical_body(body: &Body) -> Body {
    let names = Names::of(body);
    let mut map: HashMap<ValueId, ValueId> = HashMap::new();
    let mut values = Vec::new();
    for id in body.inputs.iter().chain(body.nodes.iter().flat_map(|n| &n.results)) {
        map.insert(*id, ValueId(values.len() as u32));
        values.push(Value { name: names.get(*id).into(), ty: body.ty(*id).clone() });
    }
    let all = |ids: &[ValueId]| ids.iter().map(|id| map[id]).collect::<Vec<_>>();
    let nodes = body.nodes.iter().map(|node| {
        let mut op = node.op.clone();
        if let Op::Repeat { body, .. } | Op::Call { body, .. } = &mut op {
            **body = canonical_body(body);
        }
        let span = Place::default();
        Node { op, args: all(&node.args), results: all(&node.results), span }
    });
    let nodes = nodes.collect();
    Body { values, inputs: all(&body.inputs), nodes, outputs: all(&body.outputs) }
}

fn round_trips(graph: &Graph) {
    let text = print(graph);
    let again = read(&text).unwrap_or_else(|fault| panic!("{fault}\n{text}"));
    assert_eq!(print(&again), text);
    assert_eq!(again, canonical(graph), "{text}");
}

#[test]
fn every_operation_comes_back_from_its_text() {
    for kind in kinds() {
        for (sample, _) in meaning::known(&kind) {
            let body = alone(&sample);
            round_trips(&Graph {
                name: "sample".into(),
                stage: Stage::Training,
                params: vec![parameter("x", &Type::scalar(DType::F32))],
                inputs: body.inputs.iter().map(|_| InputRole::Data("x".into())).collect(),
                outputs: body.outputs.iter().map(|_| OutputRole::Value("y".into())).collect(),
                body,
            });
        }
    }
}

#[test]
fn unreadable_text_is_refused_with_its_line() {
    let faults = [
        ("", "line 0: a graph starts with `graph`"),
        ("graph g stage=late", "line 1: there is no such stage"),
        ("graph g stage=forward\ny = exp x : f32[]", "line 2: no value `x` is made here"),
        ("graph g stage=forward\nx = const{1.0} : f64[]", "line 2: `f64[]` is not a type"),
        ("graph g stage=forward\nx = konst{1.0} : f32[]", "line 2: there is no operation `konst`"),
        (
            "graph g stage=forward\n  x = const{1.0} : f32[]",
            "line 2: this line is indented too far",
        ),
    ];
    for (text, fault) in faults {
        assert_eq!(read(text).expect_err("the text is no graph"), fault);
    }
}
