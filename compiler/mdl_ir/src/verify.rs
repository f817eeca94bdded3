//! The verifier: run after every pass, it holds a graph against what its stage promises.
//!
//! A body is in SSA form and in order: every value is made once, before it is used. Every node's
//! results have the types that `infer` gives. A graph has one role for each input and each output
//! of its body.

use crate::graph::Stage;
use crate::graph::{Body, Graph, InputRole, OutputRole, ValueId};
use crate::infer::infer;
use crate::op::{Class, Op};
use crate::tensor_type::Type;

/// Everything that is wrong with a graph, in plain words. A fault is an error of the compiler,
/// never of the user.
pub fn verify(graph: &Graph) -> Result<(), Vec<String>> {
    let mut faults = Vec::new();
    if graph.inputs.len() != graph.body.inputs.len() {
        faults.push("inputs and their roles differ in number".to_string());
    }
    if graph.outputs.len() != graph.body.outputs.len() {
        faults.push("outputs and their roles differ in number".to_string());
    }
    check_body(&graph.body, "graph", graph.stage, &mut faults);
    if faults.is_empty() {
        check_roles(graph, &mut faults);
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

fn check_body(body: &Body, place: &str, stage: Stage, faults: &mut Vec<String>) {
    let mut made = vec![false; body.values.len()];
    for id in &body.inputs {
        made[id.index()] = true;
    }
    for (i, node) in body.nodes.iter().enumerate() {
        let at = format!("{place}: node {i} `{}`", node.op.name());
        for a in &node.args {
            if !made.get(a.index()).copied().unwrap_or(false) {
                faults.push(format!("{at} uses %{} before it is made", a.0));
            }
        }
        for r in &node.results {
            if std::mem::replace(&mut made[r.index()], true) {
                faults.push(format!("{at} makes %{} again", r.0));
            }
        }
        let args: Vec<&Type> = node.args.iter().map(|a| body.ty(*a)).collect();
        match infer(&node.op, &args) {
            Err(fault) => faults.push(format!("{at}: {fault}")),
            Ok(types) => {
                let more = matches!(node.op, Op::Call { .. });
                let (made, due) = (node.results.len(), types.len());
                if made < due || (made > due && !more) {
                    faults.push(format!("{at} has {made} results, not {due}"));
                }
                for (r, ty) in node.results.iter().zip(&types) {
                    if body.ty(*r) != ty {
                        faults.push(format!("{at} gives {ty}, not {}", body.ty(*r)));
                    }
                }
            }
        }
        if stage == Stage::Fused {
            let loose = matches!(node.op.class(), Class::Elementwise | Class::Reduce);
            if loose || matches!(node.op, Op::Contract { .. }) {
                faults.push(format!("{at} is in no kernel"));
            }
        }
        match &node.op {
            Op::Repeat { body, .. } => check_body(body, &at, stage, faults),
            // A call's body is its meaning and stays as it was written.
            Op::Call { body, .. } => check_body(body, &at, Stage::Forward, faults),
            _ => {}
        }
    }
    for o in &body.outputs {
        if !made.get(o.index()).copied().unwrap_or(false) {
            faults.push(format!("{place}: output %{} is never made", o.0));
        }
    }
}

fn check_roles(graph: &Graph, faults: &mut Vec<String>) {
    // A parameter and its gradient have one type; moments and a master copy have its axes.
    let fits = |p: usize, id: ValueId, same: bool| {
        let (Some(param), ty) = (graph.params.get(p), graph.body.ty(id)) else { return false };
        param.ty.axes == ty.axes && if same { param.ty.dtype == ty.dtype } else { ty.is_float() }
    };
    for (id, role) in graph.body.inputs.iter().zip(&graph.inputs) {
        let fits = match role {
            InputRole::Param(p) | InputRole::Grad(p) => fits(*p, *id, true),
            InputRole::Moment1(p) | InputRole::Moment2(p) | InputRole::Master(p) => {
                fits(*p, *id, false)
            }
            _ => continue,
        };
        if !fits {
            faults.push(format!("input {role:?} is {}", graph.body.ty(*id)));
        }
    }
    for (id, role) in graph.body.outputs.iter().zip(&graph.outputs) {
        let fits = match role {
            OutputRole::Grad(p) | OutputRole::Param(p) => fits(*p, *id, true),
            OutputRole::Moment1(p) | OutputRole::Moment2(p) | OutputRole::Master(p) => {
                fits(*p, *id, false)
            }
            _ => continue,
        };
        if !fits {
            faults.push(format!("output {role:?} is {}", graph.body.ty(*id)));
        }
    }
}
