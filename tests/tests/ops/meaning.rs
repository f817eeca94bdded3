//! What operations give on a few numbers, worked out by hand.

use crate::Sample;
use crate::tensors::{axis, bf16s, bools, f32s, ids, names, ty};
use mdl_ir::build::Builder;
use mdl_ir::graph::Body;
use mdl_ir::op::{Binary, Kernel, Op, Reduction, Unary};
use mdl_ir::place::Place;
use mdl_ir::rounding::{bf16_to_f32, stochastic_round};
use mdl_ir::tensor::Tensor;
use mdl_ir::tensor_type::{DType, Type};
use std::f64::consts::{FRAC_1_SQRT_2, LN_2, SQRT_2};

type Known = Vec<(Sample, Vec<Tensor>)>;

fn one(op: &Op, args: Vec<Tensor>, result: Tensor) -> (Sample, Vec<Tensor>) {
    (Sample { op: op.clone(), args }, vec![result])
}

const INF: f64 = f64::INFINITY;

/// Examples of this kind of operation with their results.
// tidy: table
pub fn known(kind: &Op) -> Known {
    let number = |x: f64| f32s("", &[x]);
    let matrix = || f32s("A=2 B=3", &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    match kind {
        Op::Const(_) => [2.5, -INF, 1e-30].map(|c| one(&Op::Const(c), vec![], number(c))).to_vec(),
        Op::Position(_) => {
            vec![one(&Op::Position(axis("A", 3)), vec![], f32s("A=3", &[0.0, 1.0, 2.0]))]
        }
        Op::Random { .. } => random(),
        Op::Unary(op) => unary(*op),
        Op::Binary(op) => binary(*op),
        Op::Select => {
            let args = vec![bools("A=2", &[1.0, 0.0]), f32s("B=3", &[1.0, 2.0, 3.0]), number(-1.0)];
            vec![one(kind, args, f32s("A=2 B=3", &[1.0, 2.0, 3.0, -1.0, -1.0, -1.0]))]
        }
        Op::Reduce { kind, .. } => reduce(*kind),
        Op::Contract { .. } => contract(),
        Op::Broadcast { .. } => {
            let op = Op::Broadcast { axes: vec![axis("B", 2), axis("A", 2)] };
            vec![one(&op, vec![f32s("A=2", &[1.0, 2.0])], f32s("B=2 A=2", &[1.0, 2.0, 1.0, 2.0]))]
        }
        Op::Reorder { .. } => {
            let turned = f32s("B=3 A=2", &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
            vec![one(&Op::Reorder { axes: names(&["B", "A"]) }, vec![matrix()], turned)]
        }
        Op::Cast(_) => vec![
            one(&Op::Cast(DType::F32), vec![bools("A=2", &[1.0, 0.0])], f32s("A=2", &[1.0, 0.0])),
            one(&Op::Cast(DType::I32), vec![f32s("A=2", &[1.75, -1.75])], ids("A=2", &[1.0, -1.0])),
            one(&Op::Cast(DType::Bool), vec![f32s("A=2", &[3.0, 0.0])], bools("A=2", &[1.0, 0.0])),
            // A bf16 has eight bits: ties go to the even neighbour, and back is exact.
            one(
                &Op::Cast(DType::Bf16),
                vec![f32s("A=4", &[257.0, 259.0, -1.75, 1.0 / 3.0])],
                bf16s("A=4", &[256.0, 260.0, -1.75, 0.333984375]),
            ),
            one(&Op::Cast(DType::F32), vec![bf16s("A=1", &[-1.75])], f32s("A=1", &[-1.75])),
        ],
        // What is a bf16 stays, and what lies between two becomes one of them.
        Op::StochasticRound { .. } => (0..3)
            .map(|stream| {
                let (x, seed) = (257.25f32, 11);
                let chosen = f64::from(bf16_to_f32(stochastic_round(x, seed, stream)));
                assert!([256.0, 258.0].contains(&chosen), "{x} becomes {chosen}");
                let args = vec![f32s("A=3", &[1.5, -2.0, x.into()]), ids("", &[seed.into()])];
                one(&Op::StochasticRound { stream }, args, bf16s("A=3", &[1.5, -2.0, chosen]))
            })
            .collect(),
        Op::Rename { .. } => {
            let op = Op::Rename { from: "B".into(), to: "C".into() };
            vec![one(&op, vec![matrix()], f32s("A=2 C=3", &matrix().data))]
        }
        Op::Split { .. } => {
            let op = Op::Split { axis: "A".into(), into: vec![axis("B", 2), axis("C", 3)] };
            vec![one(&op, vec![f32s("A=6", &matrix().data)], f32s("B=2 C=3", &matrix().data))]
        }
        Op::Merge { .. } => {
            let op = Op::Merge { axes: names(&["A", "B"]), into: "C".into() };
            vec![one(&op, vec![matrix()], f32s("C=6", &matrix().data))]
        }
        Op::Slice { .. } => {
            let op = Op::Slice { axis: "B".into(), start: 1, into: axis("C", 2) };
            vec![one(&op, vec![matrix()], f32s("A=2 C=2", &[2.0, 3.0, 5.0, 6.0]))]
        }
        Op::Pad { .. } => {
            let op = Op::Pad { axis: "B".into(), start: 1, into: axis("C", 4) };
            let padded = f32s("A=1 C=4", &[0.0, 7.0, 8.0, 0.0]);
            vec![one(&op, vec![f32s("A=1 B=2", &[7.0, 8.0])], padded)]
        }
        Op::Concat { .. } => {
            let op = Op::Concat { axis: "B".into(), into: axis("C", 4) };
            let args = vec![matrix(), f32s("A=2 B=1", &[7.0, 8.0])];
            vec![one(&op, args, f32s("A=2 C=4", &[1.0, 2.0, 3.0, 7.0, 4.0, 5.0, 6.0, 8.0]))]
        }
        Op::Gather { .. } => vec![
            one(
                &Op::Gather { axis: "A".into() },
                vec![matrix(), ids("T=3", &[1.0, 0.0, 1.0])],
                f32s("T=3 B=3", &[4.0, 5.0, 6.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            ),
            one(
                &Op::Gather { axis: "B".into() },
                vec![matrix(), ids("T=1", &[2.0])],
                f32s("T=1 A=2", &[3.0, 6.0]),
            ),
        ],
        Op::GroupedContract { .. } => {
            let op = Op::GroupedContract { axis: "E".into(), axes: names(&["K"]) };
            let table = f32s("E=2 N=1 K=2", &[1.0, 2.0, 3.0, 4.0]);
            let args = vec![
                f32s("T=2 K=2", &[1.0, 10.0, 2.0, 20.0]),
                table,
                ids("T=2 C=2", &[1.0, 0.0, 5.0, 1.0]),
            ];
            vec![one(&op, args, f32s("T=2 C=2 N=1", &[43.0, 21.0, 0.0, 86.0]))]
        }
        Op::GroupedOuter { .. } => {
            let op = Op::GroupedOuter { axis: axis("E", 3) };
            let args = vec![
                f32s("T=2 M=2", &[1.0, 10.0, 2.0, 20.0]),
                f32s("T=2 N=1", &[3.0, 5.0]),
                ids("T=2", &[2.0, 2.0]),
            ];
            vec![one(&op, args, f32s("E=3 M=2 N=1", &[0.0, 0.0, 0.0, 0.0, 13.0, 130.0]))]
        }
        Op::ScatterAdd { .. } => scatter(),
        Op::StopGradient | Op::Transfer { .. } | Op::Collective { .. } => {
            vec![one(kind, vec![matrix()], matrix())]
        }
        Op::CacheWrite { .. } => {
            let cache = f32s("B=2 S=3", &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
            let args = vec![f32s("B=2 S=1", &[7.0, 8.0]), cache, ids("", &[1.0])];
            let written = f32s("B=2 S=3", &[1.0, 7.0, 3.0, 4.0, 8.0, 6.0]);
            vec![one(&Op::CacheWrite { axis: "S".into() }, args, written)]
        }
        Op::Repeat { .. } => vec![repeat(false), repeat(true)],
        Op::Call { kernel, .. } => vec![call(*kernel)],
    }
}

/// The first two numbers of stream 0 under key 0: the definition by SplitMix64, evaluated apart.
fn random() -> Known {
    let op = Op::Random { stream: 0, axes: vec![axis("A", 2)] };
    vec![one(&op, vec![], f32s("A=2", &RANDOM))]
}

const RANDOM: [f64; 2] = [0.652_448_486_374_032_3, 0.034_011_701_304_346_44];

fn unary(op: Unary) -> Known {
    let x = [0.25, 2.0];
    let y = match op {
        Unary::Neg => [-0.25, -2.0],
        Unary::Exp => [1.2840254167, 7.3890560989],
        Unary::Log => [-1.3862943611, LN_2],
        Unary::Sqrt => [0.5, SQRT_2],
        Unary::Rsqrt => [2.0, FRAC_1_SQRT_2],
        Unary::Sigmoid => [0.5621765009, 0.8807970780],
        Unary::Sin => [0.2474039593, 0.9092974268],
        Unary::Cos => [0.9689124217, -0.4161468365],
        Unary::Tanh => [0.2449186624, 0.9640275801],
        Unary::Abs => [0.25, 2.0],
        Unary::Not => {
            let (a, b) = (bools("A=2", &[1.0, 0.0]), bools("A=2", &[0.0, 1.0]));
            return vec![one(&Op::Unary(op), vec![a], b)];
        }
    };
    let mut known = vec![one(&Op::Unary(op), vec![f32s("A=2", &x)], f32s("A=2", &y))];
    if op == Unary::Abs {
        known.push(one(&Op::Unary(op), vec![f32s("A=1", &[-3.0])], f32s("A=1", &[3.0])));
    }
    known
}

/// x = (1, 2) along A against y = (2, 4, 1) along B, then a number on either side.
fn binary(op: Binary) -> Known {
    let table = match op {
        Binary::Add => [3.0, 5.0, 2.0, 4.0, 6.0, 3.0],
        Binary::Sub => [-1.0, -3.0, 0.0, 0.0, -2.0, 1.0],
        Binary::Mul => [2.0, 4.0, 1.0, 4.0, 8.0, 2.0],
        Binary::Div => [0.5, 0.25, 1.0, 1.0, 0.5, 2.0],
        Binary::Min => [1.0, 1.0, 1.0, 2.0, 2.0, 1.0],
        Binary::Max => [2.0, 4.0, 1.0, 2.0, 4.0, 2.0],
        Binary::Lt => [1.0, 1.0, 0.0, 0.0, 1.0, 0.0],
        Binary::Le => [1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
        Binary::Eq => [0.0, 0.0, 1.0, 1.0, 0.0, 0.0],
        Binary::And | Binary::Or => {
            let (a, b) = (bools("A=2", &[0.0, 1.0]), bools("B=2", &[0.0, 1.0]));
            let last = if op == Binary::And { [0.0, 0.0, 0.0, 1.0] } else { [0.0, 1.0, 1.0, 1.0] };
            return vec![one(&Op::Binary(op), vec![a, b], bools("A=2 B=2", &last))];
        }
    };
    let result = |axes: &str, data: &[f64]| {
        let dtype = if op.is_comparison() { DType::Bool } else { DType::F32 };
        Tensor::new(ty(dtype, axes), data.to_vec())
    };
    let (x, y) = (f32s("A=2", &[1.0, 2.0]), f32s("B=3", &[2.0, 4.0, 1.0]));
    let (whole, one_side) = (f32s("A=2 B=3", &[1.0, 1.0, 1.0, 2.0, 2.0, 2.0]), y.clone());
    let row = f32s("", &[1.0]);
    vec![
        one(&Op::Binary(op), vec![x, y], result("A=2 B=3", &table)),
        one(&Op::Binary(op), vec![whole, one_side.clone()], result("A=2 B=3", &table)),
        one(&Op::Binary(op), vec![row, one_side], result("B=3", &table[..3])),
    ]
}

fn reduce(kind: Reduction) -> Known {
    let x = f32s("A=2 B=3", &[1.0, -2.0, 3.0, 4.0, 5.0, -6.0]);
    let (over_a, over_b, both) = match kind {
        Reduction::Sum => ([5.0, 3.0, -3.0], [2.0, 3.0], [5.0]),
        Reduction::Max => ([4.0, 5.0, 3.0], [3.0, 5.0], [5.0]),
    };
    let op = |axes: &[&str]| Op::Reduce { kind, axes: names(axes) };
    vec![
        one(&op(&["A"]), vec![x.clone()], f32s("B=3", &over_a)),
        one(&op(&["B"]), vec![x.clone()], f32s("A=2", &over_b)),
        one(&op(&["A", "B"]), vec![x], f32s("", &both)),
    ]
}

fn contract() -> Known {
    let a = f32s("M=2 K=2", &[1.0, 2.0, 3.0, 4.0]);
    let b = f32s("K=2 N=1", &[10.0, 100.0]);
    let batched = f32s("E=2 K=2", &[1.0, 2.0, 3.0, 4.0]);
    let other = f32s("K=2 N=2 E=2", &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    let op = Op::Contract { axes: names(&["K"]) };
    vec![
        one(&op, vec![a, b], f32s("M=2 N=1", &[210.0, 430.0])),
        // E=0: 1·(1, 3) + 2·(5, 7); E=1: 3·(2, 4) + 4·(6, 8)
        one(&op, vec![batched, other], f32s("E=2 N=2", &[11.0, 17.0, 30.0, 44.0])),
    ]
}

fn scatter() -> Known {
    let op = Op::ScatterAdd { axis: axis("V", 3) };
    let (at, rows) =
        (ids("T=3", &[2.0, 0.0, 2.0]), f32s("T=3 D=2", &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
    let base = f32s("V=3 D=2", &[10.0, 10.0, 20.0, 20.0, 30.0, 30.0]);
    vec![
        one(&op, vec![at.clone(), rows.clone()], f32s("V=3 D=2", &[3.0, 4.0, 0.0, 0.0, 6.0, 8.0])),
        one(&op, vec![at, rows, base], f32s("V=3 D=2", &[13.0, 14.0, 20.0, 20.0, 36.0, 38.0])),
    ]
}

/// carry ← carry · const + slice, emitting what went in: 1 → 1·10 + 2 = 12 → 12·10 + 3 = 123, or
/// the other way round.
fn repeat(reverse: bool) -> (Sample, Vec<Tensor>) {
    let mut b = Builder::default();
    let scalar = Type::scalar(DType::F32);
    let (x, c, w) =
        (b.input("x", scalar.clone()), b.input("c", scalar.clone()), b.input("w", scalar));
    let at = Place::default();
    let scaled = b.mul(x, c, at).expect("numbers");
    let sum = b.binary(Binary::Add, scaled, w, at).expect("numbers");
    let body = Box::new(b.finish(vec![sum, x]));
    let op = Op::Repeat { axis: "L".into(), count: 2, reverse, carries: 1, consts: 1, body };
    let args = vec![f32s("", &[1.0]), f32s("", &[10.0]), f32s("L=2", &[2.0, 3.0])];
    let results = if reverse {
        vec![f32s("", &[132.0]), f32s("L=2", &[13.0, 1.0])]
    } else {
        vec![f32s("", &[123.0]), f32s("L=2", &[1.0, 12.0])]
    };
    (Sample { op, args }, results)
}

/// Whatever the kernel, a call means its body.
fn call(kernel: Kernel) -> (Sample, Vec<Tensor>) {
    let mut b = Builder::default();
    let x = b.input("x", ty(DType::F32, "A=2"));
    let y = b.unary(Unary::Neg, x, Place::default()).expect("a tensor");
    let body: Box<Body> = Box::new(b.finish(vec![y]));
    let op = Op::Call { kernel, axes: names(&["A"]), body };
    (Sample { op, args: vec![f32s("A=2", &[1.0, 2.0])] }, vec![f32s("A=2", &[-1.0, -2.0])])
}
