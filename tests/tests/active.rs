//! Active parameters: a token uses the groups that it is sent to, and all of what is read as a
//! whole.

use mdl_ir::active::active_params;
use mdl_ir::build::Builder;
use mdl_ir::graph::{Graph, InputRole, OutputRole, Param, Stage, ValueId};
use mdl_ir::op::Op;
use mdl_ir::place::Place;
use mdl_ir::tensor_type::{Axis, DType, Type};

const LAYERS: u64 = 3;
const EXPERTS: u64 = 8;
const CHOSEN: u64 = 2;
/// Numbers of one expert's matrix, which is `ffn` × `hidden`.
const MATRIX: u64 = 6 * 4;

fn ty(dtype: DType, axes: &[(&str, u64)]) -> Type {
    Type::new(dtype, axes.iter().map(|(name, size)| Axis::new(*name, *size)).collect())
}

fn param(name: &str, ty: Type) -> Param {
    let (name, stored) = (name.to_string(), format!("layers.{{}}.experts.{{}}.{name}"));
    let also_stored = Vec::new();
    let (repeats, parts) = (Some(LAYERS), Some(EXPERTS));
    Param { name, stored, also_stored, ty, repeats, parts, init: None }
}

fn push(b: &mut Builder, op: Op, args: &[ValueId]) -> ValueId {
    b.push(op, args, Place::default()).expect("the operands fit")
}

/// Layers that send every token to `CHOSEN` of `EXPERTS` experts: up, down, and the sum of both.
/// Where `whole` is set, something else looks at all of `up` as well.
fn mixture(whole: bool) -> Graph {
    let hidden = ty(DType::F32, &[("B", 2), ("T", 5), ("hidden", 4)]);
    let routes = ty(DType::I32, &[("B", 2), ("T", 5), ("K", CHOSEN)]);
    let up = [("experts", EXPERTS), ("ffn", 6), ("hidden", 4)];
    let down = [("experts", EXPERTS), ("hidden", 4), ("ffn", 6)];
    let mut b = Builder::default();
    let x = b.input("x", hidden.clone());
    let ids = b.input("ids", routes.clone());
    let w1 = b.input("up", ty(DType::F32, &up));
    let w2 = b.input("down", ty(DType::F32, &down));
    let at = Place::default();
    let contract = |b: &mut Builder, x, w, axis: &str| {
        let over = [axis.into()];
        b.grouped_contract(x, w, ids, ("experts".into(), &over), at).expect("the operands fit")
    };
    let h = contract(&mut b, x, w1, "hidden");
    let y = contract(&mut b, h, w2, "ffn");
    let mut y = b.sum(y, &["K".into()], at).expect("an axis of the result");
    if whole {
        let all = ["experts".into(), "ffn".into()];
        let sums = b.sum(w1, &all, at).expect("axes of the parameter");
        y = b.mul(y, sums, at).expect("both are numbers");
    }
    let layer = b.finish(vec![y]);
    let stacked = |axes: &[(&str, u64)]| ty(DType::F32, &[&[("layers", LAYERS)], axes].concat());
    let params = vec![
        param("up", stacked(&up)),
        param("down", stacked(&down)),
        param("table", ty(DType::F32, &[("vocab", 10), ("hidden", 4)])),
    ];
    let mut b = Builder::default();
    let tokens = b.input("tokens", ty(DType::I32, &[("B", 2), ("T", 5)]));
    let ids = b.input("ids", routes);
    let [w1, w2, table] = [0, 1, 2].map(|p: usize| b.input("w", params[p].ty.clone()));
    let x = push(&mut b, Op::Gather { axis: "vocab".into() }, &[table, tokens]);
    let op = Op::Repeat {
        axis: "layers".into(),
        count: LAYERS,
        reverse: false,
        carries: 1,
        consts: 1,
        body: Box::new(layer),
    };
    let y = push(&mut b, op, &[x, ids, w1, w2]);
    let data = ["tokens", "ids"].map(|name| InputRole::Data(name.to_string()));
    Graph {
        name: "Mixture.logits".to_string(),
        stage: Stage::Forward,
        params,
        inputs: data.into_iter().chain([0, 1, 2].map(InputRole::Param)).collect(),
        outputs: vec![OutputRole::Value("logits".to_string())],
        body: b.finish(vec![y]),
    }
}

/// Numbers of the embedding, all of which count.
const TABLE: u64 = 10 * 4;

#[test]
fn a_token_uses_the_experts_that_it_is_sent_to() {
    let graph = mixture(false);
    mdl_ir::verify::verify(&graph).expect("a graph of the compiler's form");
    assert_eq!(graph.param_count(), TABLE + 2 * LAYERS * EXPERTS * MATRIX);
    assert_eq!(active_params(&graph), TABLE + 2 * LAYERS * CHOSEN * MATRIX);
}

#[test]
fn what_is_read_as_a_whole_counts_as_a_whole() {
    let graph = mixture(true);
    assert_eq!(active_params(&graph), TABLE + LAYERS * (EXPERTS + CHOSEN) * MATRIX);
}
