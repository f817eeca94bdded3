//! Gradients of whole models in f64 against differences of the loss, at a few elements of every
//! parameter.
//!
//! This holds differentiation of repeated regions and of calls with a kernel against nothing but
//! the forward graph.

use mdl_check::entry::EntryOptions;
use mdl_driver::embedded;
use mdl_driver::front::Front;
use mdl_ir::graph::{Graph, InputRole, OutputRole, ValueId};
use mdl_ir::interp::{Env, mix, run};
use mdl_ir::tensor::Tensor;
use mdl_ir::tensor_type::Type;
use mdl_passes::differentiate::differentiate;

/// Distance between the points of a difference.
const STEP: f64 = 1.0 / 1024.0;

/// The four-point difference is off by h⁴/30 · f⁽⁵⁾ = 3·10⁻¹⁴ · f⁽⁵⁾, and the fifth derivative of
/// these losses along one weight stays below 10⁷.
const TOLERANCE: f64 = 3e-7;

/// Elements of a parameter that are moved.
const ELEMENTS: u64 = 3;

const B: u64 = 2;
const T: u64 = 5;

const SMALL: &str = "
preset small: Llama {
    hidden = 10, layers = 3, kv_heads = 2, group = 3, head = 4, ffn = 7, vocab = 11
}

preset small_tied: Llama {
    hidden = 6, layers = 2, kv_heads = 1, group = 2, head = 2, ffn = 5, vocab = 13, tied = true
}
";

fn noise(seed: u64, i: u64) -> f64 {
    (mix(mix(seed) ^ i) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

fn input(graph: &Graph, id: ValueId, role: &InputRole) -> Tensor {
    let ty = graph.body.ty(id).clone();
    let vocab = graph.params.iter().find_map(|p| p.ty.axis("vocab".into())).map_or(2, |a| a.size);
    let value = |i: u64| match role {
        InputRole::Param(p) if is_gain(graph, *p) => 1.0 + 0.3 * noise(*p as u64, i),
        InputRole::Param(p) => 0.5 * noise(*p as u64, i),
        InputRole::Data(name) if name == "documents" => (i % T / 3) as f64,
        InputRole::Data(name) if name == "targets" && i % 4 == 3 => -1.0,
        _ => (mix(i) % vocab) as f64,
    };
    Tensor::new(ty.clone(), (0..ty.elements()).map(value).collect())
}

fn is_gain(graph: &Graph, param: usize) -> bool {
    let ty: Type = graph.params[param].slice_type();
    ty.axes.len() < 2
}

/// The loss of a preset and everything that goes into it.
fn loss(file: &str, text: &str, preset: &str) -> (Graph, Vec<Tensor>) {
    let mut front = Front::load(file, text, &|_| None);
    let config = front.preset(preset).unwrap_or_else(|| panic!("{}", front.report(false)));
    let options = EntryOptions {
        sizes: vec![("B".into(), B), ("T".into(), T)],
        documents: true,
        auxiliary: true,
    };
    let graph = front.build(&config, "loss", &options);
    let graph = graph.unwrap_or_else(|| panic!("{}", front.report(false)));
    let roles = graph.body.inputs.iter().zip(&graph.inputs);
    let inputs = roles.map(|(id, role)| input(&graph, *id, role)).collect();
    (graph, inputs)
}

fn check(file: &str, text: &str, preset: &str) {
    let (graph, inputs) = loss(file, text, preset);
    let trained = differentiate(&graph).expect("the loss has a gradient");
    let env = Env::default();
    let results = run(&trained.body, inputs.clone(), &env);
    let value = |at: Vec<Tensor>| run(&graph.body, at, &env)[0].data[0];
    for (role, gradient) in trained.outputs.iter().zip(&results) {
        let OutputRole::Grad(p) = role else { continue };
        let at = graph.inputs.iter().position(|r| *r == InputRole::Param(*p));
        let at = at.expect("a parameter comes in");
        for k in 0..ELEMENTS {
            let e = (mix(k) % gradient.ty.elements()) as usize;
            let moved = |by: f64| {
                let mut inputs = inputs.clone();
                inputs[at].data[e] += by;
                value(inputs)
            };
            let wide = |by: f64| moved(by) - moved(-by);
            let slope = (8.0 * wide(STEP) - wide(2.0 * STEP)) / (12.0 * STEP);
            let (exact, name) = (gradient.data[e], &graph.params[*p].name);
            let off = (slope - exact).abs() / exact.abs().max(1.0);
            assert!(
                off < TOLERANCE,
                "{file}, {preset}: gradient {e} of {name} is {exact}, differences give {slope}"
            );
        }
    }
}

#[test]
fn gradients_of_a_llama_agree_with_differences() {
    let text = embedded::model("llama").expect("llama is part of the compiler").to_string();
    let text = text + SMALL;
    check("models/llama.mdl", &text, "small");
    check("models/llama.mdl", &text, "small_tied");
}

#[test]
fn gradients_of_other_architectures_agree_with_differences() {
    for (file, text) in mdl_tests::models() {
        check(&file, &text, "small");
    }
}
