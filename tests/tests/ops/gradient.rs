//! Where gradients are compared with differences: samples of every operation, and bodies that join
//! several.
//!
//! Points are chosen so that nothing that has a corner (`abs`, `min`, `max`, comparisons) lies near
//! one.

use crate::tensors::{axis, bools, ids, names, some, ty};
use crate::{Sample, parameter};
use mdl_ir::build::Builder;
use mdl_ir::graph::{Body, Graph, InputRole, OutputRole, Stage, ValueId};
use mdl_ir::op::{Binary, Kernel, Op, Reduction, Unary};
use mdl_ir::place::Place;
use mdl_ir::tensor::Tensor;
use mdl_ir::tensor_type::DType;

/// What a gradient of an operation is held against.
pub enum Gradient {
    Samples(Vec<Sample>),
    /// Nothing goes through, whatever differences say.
    Zero(Sample),
    /// The operation has none: differentiation says so.
    Refused(Sample),
}

const SIGNED: (f64, f64) = (-1.5, 1.5);
const POSITIVE: (f64, f64) = (0.5, 1.5);

fn sample(op: &Op, args: Vec<Tensor>) -> Sample {
    Sample { op: op.clone(), args }
}

// tidy: table
pub fn of(kind: &Op) -> Gradient {
    let x = |axes: &str| some(axes, SIGNED, 1);
    let y = |axes: &str| some(axes, SIGNED, 2);
    let samples = match kind {
        Op::Const(_) => vec![sample(kind, vec![])],
        Op::Position(_) | Op::Random { .. } => vec![sample(kind, vec![])],
        Op::Unary(op) => unary(*op),
        Op::Binary(op) => binary(*op),
        Op::Select => select(kind),
        Op::Reduce { kind, .. } => reduce(*kind),
        Op::Contract { .. } => contract(),
        Op::Broadcast { .. } => {
            let op = Op::Broadcast { axes: vec![axis("B", 3), axis("A", 2), axis("C", 4)] };
            vec![
                sample(&op, vec![x("A=2")]),
                sample(&op, vec![x("C=4 B=3")]),
                sample(&op, vec![x("")]),
            ]
        }
        Op::Reorder { .. } => {
            vec![sample(&Op::Reorder { axes: names(&["C", "A", "B"]) }, vec![x("A=2 B=3 C=4")])]
        }
        Op::Cast(_) => {
            let truth = bools("A=2", &[1.0, 0.0]);
            vec![sample(kind, vec![x("A=2")]), sample(kind, vec![truth])]
        }
        Op::StochasticRound { .. } => {
            return Gradient::Zero(sample(kind, vec![x("A=2"), ids("", &[3.0])]));
        }
        Op::Rename { .. } => {
            let op = Op::Rename { from: "B".into(), to: "D".into() };
            vec![sample(&op, vec![x("A=2 B=3")])]
        }
        Op::Split { .. } => {
            let op = Op::Split { axis: "A".into(), into: vec![axis("C", 2), axis("D", 3)] };
            vec![sample(&op, vec![x("E=2 A=6 B=4")])]
        }
        Op::Merge { .. } => {
            let op = Op::Merge { axes: names(&["A", "B"]), into: "C".into() };
            vec![sample(&op, vec![x("E=2 A=3 B=4")])]
        }
        Op::Slice { .. } => {
            let op = Op::Slice { axis: "B".into(), start: 1, into: axis("C", 2) };
            vec![sample(&op, vec![x("A=2 B=4 E=3")])]
        }
        Op::Pad { .. } => {
            let op = Op::Pad { axis: "B".into(), start: 1, into: axis("C", 5) };
            vec![sample(&op, vec![x("A=2 B=3")])]
        }
        Op::Concat { .. } => {
            let op = Op::Concat { axis: "B".into(), into: axis("B", 5) };
            vec![sample(&op, vec![x("A=2 B=3"), y("A=2 B=2")])]
        }
        Op::Gather { .. } => {
            let at = ids("T=4", &[2.0, 0.0, 2.0, 1.0]);
            let outer = Op::Gather { axis: "V".into() };
            vec![
                sample(&outer, vec![x("V=3 D=2"), at.clone()]),
                sample(&outer, vec![x("D=2 V=3"), at]),
            ]
        }
        Op::GroupedContract { .. } => {
            // Group 1 has no row, and one row is in no group.
            let at = ids("T=2 C=2", &[2.0, 0.0, 2.0, 7.0]);
            let op = Op::GroupedContract { axis: "E".into(), axes: names(&["K"]) };
            vec![
                sample(&op, vec![x("T=2 K=3"), y("E=3 N=2 K=3"), at.clone()]),
                sample(&op, vec![x("T=2 C=2 K=3"), y("E=3 K=3 N=2"), at]),
            ]
        }
        Op::GroupedOuter { .. } => {
            let at = ids("T=2 C=2", &[2.0, 0.0, 2.0, 7.0]);
            let op = Op::GroupedOuter { axis: axis("E", 3) };
            vec![
                sample(&op, vec![x("T=2 M=3"), y("T=2 C=2 N=2"), at.clone()]),
                sample(&op, vec![x("T=2 C=2 M=3"), y("T=2 N=2"), at]),
            ]
        }
        Op::ScatterAdd { .. } => {
            let op = Op::ScatterAdd { axis: axis("V", 5) };
            let at = ids("B=2 T=3", &[2.0, 0.0, 2.0, 1.0, 4.0, 1.0]);
            let rows = x("B=2 T=3 D=4");
            vec![
                sample(&op, vec![at.clone(), rows.clone()]),
                sample(&op, vec![at, rows, y("V=5 D=4")]),
            ]
        }
        Op::StopGradient => return Gradient::Zero(sample(kind, vec![x("A=2 B=3")])),
        Op::Transfer { .. } | Op::Collective { .. } => {
            return Gradient::Refused(sample(kind, vec![x("A=2 B=3")]));
        }
        Op::CacheWrite { .. } => {
            let args = vec![x("B=2 S=1"), y("B=2 S=3"), ids("", &[1.0])];
            return Gradient::Refused(sample(&Op::CacheWrite { axis: "S".into() }, args));
        }
        Op::Repeat { .. } => vec![repeat(false), repeat(true)],
        Op::Call { kernel, .. } => return call(*kernel),
    };
    Gradient::Samples(samples)
}

fn unary(op: Unary) -> Vec<Sample> {
    let range = match op {
        Unary::Log | Unary::Sqrt | Unary::Rsqrt => POSITIVE,
        Unary::Neg | Unary::Exp | Unary::Sigmoid | Unary::Sin => SIGNED,
        Unary::Cos | Unary::Tanh | Unary::Abs => SIGNED,
        Unary::Not => {
            return vec![sample(&Op::Unary(op), vec![bools("A=2", &[1.0, 0.0])])];
        }
    };
    vec![sample(&Op::Unary(op), vec![some("A=2 B=3", range, 1)])]
}

fn binary(op: Binary) -> Vec<Sample> {
    if op.is_logic() {
        let (a, b) = (bools("A=2", &[0.0, 1.0]), bools("B=3", &[0.0, 1.0, 0.0]));
        return vec![sample(&Op::Binary(op), vec![a, b])];
    }
    let right = if op == Binary::Div { POSITIVE } else { SIGNED };
    let pair = |a: &str, b: &str| vec![some(a, SIGNED, 1), some(b, right, 2)];
    let shapes = [
        ("A=2 B=3", "A=2 B=3"),
        ("A=2 B=3", "B=3 A=2"),
        ("A=2 B=3", "B=3"),
        ("A=2", "A=2 B=3"),
        ("A=2", "B=3"),
        ("", "A=2 B=3"),
        ("A=2 C=4", "B=3 A=2"),
    ];
    shapes.map(|(a, b)| sample(&Op::Binary(op), pair(a, b))).to_vec()
}

fn select(op: &Op) -> Vec<Sample> {
    let args = |c: &str, data: &[f64], a: &str, b: &str| {
        let condition = Tensor::new(ty(DType::Bool, c), data.to_vec());
        sample(op, vec![condition, some(a, SIGNED, 1), some(b, SIGNED, 2)])
    };
    vec![
        args("A=2", &[1.0, 0.0], "A=2", "A=2"),
        args("A=2", &[1.0, 0.0], "B=3", "C=4 A=2"),
        args("A=2 B=3", &[1.0, 0.0, 1.0, 0.0, 0.0, 1.0], "", "B=3"),
        args("", &[1.0], "A=2", "B=3"),
    ]
}

fn reduce(kind: Reduction) -> Vec<Sample> {
    let x = || vec![some("A=2 B=3 C=4", SIGNED, 1)];
    let over = |axes: &[&str]| sample(&Op::Reduce { kind, axes: names(axes) }, x());
    vec![over(&["C"]), over(&["A"]), over(&["B"]), over(&["C", "A"]), over(&["A", "B", "C"])]
}

fn contract() -> Vec<Sample> {
    let over = |axes: &[&str], a: &str, b: &str| {
        let args = vec![some(a, SIGNED, 1), some(b, SIGNED, 2)];
        sample(&Op::Contract { axes: names(axes) }, args)
    };
    vec![
        over(&["K"], "M=2 K=3", "K=3 N=4"),
        over(&["K"], "K=3 M=2", "N=4 K=3"),
        over(&["K", "J"], "M=2 K=3 J=5", "J=5 N=4 K=3"),
        over(&["K"], "E=5 M=2 K=3", "K=3 E=5 N=4"),
        over(&["K"], "M=2 K=3", "K=3"),
        over(&["K"], "K=3", "K=3"),
        over(&["K"], "E=5 K=3", "E=5 K=3"),
        over(&["K"], "E=2 F=5 M=2 L=3 K=3", "F=5 K=3 E=2 N=4"),
    ]
}

/// Two carries, one of which becomes the sine of the other; an active and an idle const; stacked
/// parameters; and stacked results that also depend on everything.
fn repeat(reverse: bool) -> Sample {
    let mut b = Builder::default();
    let at = Place::default();
    let input = |b: &mut Builder, name: &str, dtype, axes: &str| b.input(name, ty(dtype, axes));
    let x = input(&mut b, "x", DType::F32, "A=2");
    let z = input(&mut b, "z", DType::F32, "B=3");
    let c = input(&mut b, "c", DType::F32, "A=2");
    let on = input(&mut b, "on", DType::Bool, "A=2");
    let w = input(&mut b, "w", DType::F32, "B=3 A=2");
    let v = input(&mut b, "v", DType::F32, "B=3");
    let (body, _) = ok(|| {
        let h = b.push(Op::Contract { axes: names(&["B"]) }, &[w, z], at)?;
        let s = b.unary(Unary::Sin, x, at)?;
        let sum = b.binary(Binary::Add, h, s, at)?;
        let scaled = b.mul(sum, c, at)?;
        let next = b.push(Op::Select, &[on, scaled, x], at)?;
        let wide = b.mul(w, next, at)?;
        let narrow = b.sum(wide, &names(&["A"]), at)?;
        let bent = b.unary(Unary::Tanh, narrow, at)?;
        let z2 = b.mul(bent, v, at)?;
        let emitted = b.mul(s, narrow, at)?;
        Ok((std::mem::take(&mut b).finish(vec![next, z2, emitted, x]), ()))
    });
    let op = Op::Repeat {
        axis: "L".into(),
        count: 4,
        reverse,
        carries: 2,
        consts: 2,
        body: Box::new(body),
    };
    let args = vec![
        some("A=2", SIGNED, 1),
        some("B=3", SIGNED, 2),
        some("A=2", SIGNED, 3),
        bools("A=2", &[1.0, 0.0]),
        some("L=4 B=3 A=2", SIGNED, 4),
        some("L=4 B=3", SIGNED, 5),
    ];
    sample(&op, args)
}

fn ok<T>(f: impl FnOnce() -> Result<T, String>) -> T {
    f().expect("the body is well typed")
}

/// Kernels with a gradient are checked on bodies that are simpler than the functions of the
/// standard library.
fn call(kernel: Kernel) -> Gradient {
    let at = Place::default();
    let mut b = Builder::default();
    let mut input = |name: &str, axes: &str| b.input(name, ty(DType::F32, axes));
    match kernel {
        Kernel::Attention => {
            let q = input("q", "T=3 G=2 H=4");
            let (k, v) = (input("k", "S=5 H=4"), input("v", "S=5 H=4"));
            let body = ok(|| {
                let scores = b.push(Op::Contract { axes: names(&["H"]) }, &[q, k], at)?;
                let bent = b.unary(Unary::Tanh, scores, at)?;
                let y = b.push(Op::Contract { axes: names(&["S"]) }, &[bent, v], at)?;
                Ok(std::mem::take(&mut b).finish(vec![y]))
            });
            let op = Op::Call { kernel, axes: names(&["T", "S", "H"]), body: Box::new(body) };
            let args = vec![
                some("T=3 G=2 H=4", SIGNED, 1),
                some("S=5 H=4", SIGNED, 2),
                some("S=5 H=4", SIGNED, 3),
            ];
            Gradient::Samples(vec![sample(&op, args)])
        }
        Kernel::LinearCrossEntropy => {
            let (x, w) = (input("x", "T=3 D=4"), input("w", "V=5 D=4"));
            let body = ok(|| {
                let logits = b.push(Op::Contract { axes: names(&["D"]) }, &[x, w], at)?;
                let bent = b.unary(Unary::Sigmoid, logits, at)?;
                let loss = b.sum(bent, &names(&["T", "V"]), at)?;
                Ok(std::mem::take(&mut b).finish(vec![loss]))
            });
            let op = Op::Call { kernel, axes: names(&["V", "D"]), body: Box::new(body) };
            let args = vec![some("T=3 D=4", SIGNED, 1), some("V=5 D=4", SIGNED, 2)];
            Gradient::Samples(vec![sample(&op, args)])
        }
        Kernel::AttentionGrad
        | Kernel::LinearCrossEntropyGrad
        | Kernel::SumOfSquares
        | Kernel::AdamW
        | Kernel::Contraction
        | Kernel::Region => {
            let x = input("x", "A=2");
            let body = ok(|| {
                let y = b.unary(Unary::Neg, x, at)?;
                Ok(std::mem::take(&mut b).finish(vec![y]))
            });
            let op = Op::Call { kernel, axes: vec![], body: Box::new(body) };
            Gradient::Refused(sample(&op, vec![some("A=2", SIGNED, 1)]))
        }
    }
}

type Written = (Builder, Vec<InputRole>, Vec<Tensor>);

fn parameter_input((b, roles, inputs): &mut Written, value: Tensor) -> ValueId {
    let n = roles.iter().filter(|r| matches!(r, InputRole::Param(_))).count();
    roles.push(InputRole::Param(n));
    inputs.push(value.clone());
    b.input(format!("p{n}"), value.ty)
}

fn data_input((b, roles, inputs): &mut Written, value: Tensor) -> ValueId {
    roles.push(InputRole::Data(format!("d{}", roles.len())));
    inputs.push(value.clone());
    b.input("data", value.ty)
}

fn finished((b, roles, inputs): Written, loss: ValueId) -> (Graph, Vec<Tensor>) {
    let body: Body = b.finish(vec![loss]);
    let trained = |(id, role): (&ValueId, &InputRole)| match role {
        InputRole::Param(p) => Some(parameter(&format!("p{p}"), body.ty(*id))),
        _ => None,
    };
    let params = body.inputs.iter().zip(&roles).filter_map(trained).collect();
    let outputs = vec![OutputRole::Value("loss".into())];
    let name = "body.loss".to_string();
    (Graph { name, stage: Stage::Forward, params, inputs: roles, outputs, body }, inputs)
}

/// Writes a body and gives the values that go into it.
type Make = fn() -> (Graph, Vec<Tensor>);

/// Bodies of several operations, each for something that single operations do not show.
pub fn bodies() -> Vec<(&'static str, Graph, Vec<Tensor>)> {
    let all: [(&'static str, Make); 5] = [
        ("a table that is gathered and contracted", tied),
        ("a parameter that nothing uses, and a stopped one", unused),
        ("a softmax with its maximum taken out", softmax),
        ("a region of which only one carry matters", half_used),
        ("two regions, the second on what the first emitted", regions),
    ];
    all.map(|(name, make)| {
        let (graph, inputs) = make();
        (name, graph, inputs)
    })
    .to_vec()
}

fn tied() -> (Graph, Vec<Tensor>) {
    let mut w = Written::default();
    let at = Place::default();
    let table = parameter_input(&mut w, some("V=5 D=3", SIGNED, 1));
    let tokens = data_input(&mut w, ids("T=4", &[1.0, 4.0, 1.0, 0.0]));
    let loss = ok(|| {
        let b = &mut w.0;
        let x = b.push(Op::Gather { axis: "V".into() }, &[table, tokens], at)?;
        let logits = b.push(Op::Contract { axes: names(&["D"]) }, &[x, table], at)?;
        let bent = b.unary(Unary::Tanh, logits, at)?;
        b.sum(bent, &names(&["T", "V"]), at)
    });
    finished(w, loss)
}

fn unused() -> (Graph, Vec<Tensor>) {
    let mut w = Written::default();
    let at = Place::default();
    let x = parameter_input(&mut w, some("A=3", SIGNED, 1));
    parameter_input(&mut w, some("B=2", SIGNED, 2));
    let loss = ok(|| {
        let b = &mut w.0;
        let square = b.mul(x, x, at)?;
        b.sum(square, &names(&["A"]), at)
    });
    finished(w, loss)
}

/// Σ position · softmax − log softmax over T and V: the maximum cancels, so it may be stopped.
fn softmax() -> (Graph, Vec<Tensor>) {
    let mut w = Written::default();
    let at = Place::default();
    let x = parameter_input(&mut w, some("T=3 V=4", SIGNED, 1));
    let over = names(&["V"]);
    let loss = ok(|| {
        let b = &mut w.0;
        let top = b.push(Op::Reduce { kind: Reduction::Max, axes: over.clone() }, &[x], at)?;
        let top = b.push(Op::StopGradient, &[top], at)?;
        let low = b.binary(Binary::Sub, x, top, at)?;
        let e = b.unary(Unary::Exp, low, at)?;
        let total = b.sum(e, &over, at)?;
        let share = b.binary(Binary::Div, e, total, at)?;
        let place = b.push(Op::Position(axis("V", 4)), &[], at)?;
        let weighted = b.mul(share, place, at)?;
        let log = b.unary(Unary::Log, total, at)?;
        let log = b.binary(Binary::Sub, log, low, at)?;
        let both = b.binary(Binary::Add, weighted, log, at)?;
        b.sum(both, &names(&["T", "V"]), at)
    });
    finished(w, loss)
}

/// x ← x·w, n ← n + 1 (an idle counter), k ← k (ids that only ride along).
fn half_used() -> (Graph, Vec<Tensor>) {
    let at = Place::default();
    let mut inner = Builder::default();
    let x = inner.input("x", ty(DType::F32, "A=2"));
    let n = inner.input("n", ty(DType::F32, ""));
    let k = inner.input("k", ty(DType::I32, "A=2"));
    let p = inner.input("w", ty(DType::F32, "A=2"));
    let body = ok(|| {
        let next = inner.mul(x, p, at)?;
        let next = inner.binary(Binary::Add, next, n, at)?;
        let one = inner.number(1.0, at);
        let counted = inner.binary(Binary::Add, n, one, at)?;
        Ok(std::mem::take(&mut inner).finish(vec![next, counted, k]))
    });
    let mut w = Written::default();
    let x = data_input(&mut w, some("A=2", SIGNED, 1));
    let n = data_input(&mut w, some("", SIGNED, 2));
    let k = data_input(&mut w, ids("A=2", &[1.0, 0.0]));
    let p = parameter_input(&mut w, some("L=3 A=2", SIGNED, 3));
    let op = Op::Repeat {
        axis: "L".into(),
        count: 3,
        reverse: false,
        carries: 3,
        consts: 0,
        body: Box::new(body),
    };
    let results = [("x", DType::F32, "A=2"), ("n", DType::F32, ""), ("k", DType::I32, "A=2")]
        .map(|(name, dtype, axes)| (name.to_string(), ty(dtype, axes)));
    let made = w.0.node(op, vec![x, n, k, p], results.to_vec(), at);
    let loss = ok(|| w.0.sum(made[0], &names(&["A"]), at));
    finished(w, loss)
}

/// h ← tanh(h·w) emits h; a second region sums c·h over what the first one emitted, last slice
/// first.
fn regions() -> (Graph, Vec<Tensor>) {
    let at = Place::default();
    let mut first = Builder::default();
    let h = first.input("h", ty(DType::F32, "A=2"));
    let p = first.input("w", ty(DType::F32, "A=2"));
    let one = ok(|| {
        let scaled = first.mul(h, p, at)?;
        let next = first.unary(Unary::Tanh, scaled, at)?;
        Ok(std::mem::take(&mut first).finish(vec![next, next]))
    });
    let mut second = Builder::default();
    let s = second.input("s", ty(DType::F32, ""));
    let c = second.input("c", ty(DType::F32, "A=2"));
    let e = second.input("e", ty(DType::F32, "A=2"));
    let two = ok(|| {
        let product = second.mul(c, e, at)?;
        let sum = second.sum(product, &names(&["A"]), at)?;
        let scaled = second.mul(s, sum, at)?;
        let next = second.binary(Binary::Add, scaled, sum, at)?;
        Ok(std::mem::take(&mut second).finish(vec![next]))
    });
    let mut w = Written::default();
    let h = parameter_input(&mut w, some("A=2", SIGNED, 1));
    let p = parameter_input(&mut w, some("L=3 A=2", SIGNED, 2));
    let c = parameter_input(&mut w, some("A=2", SIGNED, 3));
    let region = |reverse, consts, body| Op::Repeat {
        axis: "L".into(),
        count: 3,
        reverse,
        carries: 1,
        consts,
        body: Box::new(body),
    };
    let results = vec![
        ("h".to_string(), ty(DType::F32, "A=2")),
        ("emitted".to_string(), ty(DType::F32, "L=3 A=2")),
    ];
    let made = w.0.node(region(false, 0, one), vec![h, p], results, at);
    let zero = w.0.number(0.0, at);
    let sum = vec![("sum".to_string(), ty(DType::F32, ""))];
    let loss = w.0.node(region(true, 1, two), vec![zero, c, made[1]], sum, at)[0];
    finished(w, loss)
}
