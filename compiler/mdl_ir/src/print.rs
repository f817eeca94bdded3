//! The text form of a graph: one operation a line, types on the right, nested bodies indented. `read` takes it back.
//!
//! Values are called by their names from the source; a name that is taken gets a number. Numbering follows the order
//! of printing, so the same graph always gives the same bytes.

use crate::graph::{Body, Graph, InputRole, OutputRole, ValueId};
use crate::op::Op;
use crate::tensor_type::{Axis, Type};
use std::collections::{HashMap, HashSet};
use std::fmt::Write;

/// Column at which types start, where the left side is short enough.
const TYPE_COLUMN: usize = 64;

/// The graph as text.
pub fn print(graph: &Graph) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "graph {} stage={}", graph.name, graph.stage.name());
    for param in &graph.params {
        let stored = std::iter::once(&param.stored).chain(&param.also_stored);
        let stored: Vec<String> = stored.map(|s| format!("{s:?}")).collect();
        let repeats = param.repeats.map_or(String::new(), |n| format!(" x{n}"));
        let left = format!("param {}{repeats} {}", param.name, stored.join(" "));
        line(&mut out, 0, &left, &[&param.ty]);
    }
    let names = Names::of(&graph.body);
    for (id, role) in graph.body.inputs.iter().zip(&graph.inputs) {
        let left = format!("input {} = {}", names.get(*id), input_role(role));
        line(&mut out, 0, &left, &[graph.body.ty(*id)]);
    }
    print_nodes(&mut out, &graph.body, &names, 0);
    for (id, role) in graph.body.outputs.iter().zip(&graph.outputs) {
        let _ = writeln!(out, "output {} = {}", output_role(role), names.get(*id));
    }
    out
}

pub fn input_role(role: &InputRole) -> String {
    match role {
        InputRole::Param(i) => format!("param {i}"),
        InputRole::Moment1(i) => format!("moment1 {i}"),
        InputRole::Moment2(i) => format!("moment2 {i}"),
        InputRole::Data(name) => format!("data {name}"),
        InputRole::Scalar(name) => format!("scalar {name}"),
        InputRole::Cache(i) => format!("cache {i}"),
    }
}

pub fn output_role(role: &OutputRole) -> String {
    match role {
        OutputRole::Value(name) => format!("value {name}"),
        OutputRole::Grad(i) => format!("grad {i}"),
        OutputRole::Param(i) => format!("param {i}"),
        OutputRole::Moment1(i) => format!("moment1 {i}"),
        OutputRole::Moment2(i) => format!("moment2 {i}"),
        OutputRole::Cache(i) => format!("cache {i}"),
    }
}

/// Unique printed names of a body's values.
#[derive(Debug)]
pub struct Names(HashMap<ValueId, String>);

impl Names {
    pub fn of(body: &Body) -> Names {
        let mut taken: HashSet<String> = HashSet::new();
        let mut map = HashMap::new();
        let made = body.nodes.iter().flat_map(|n| &n.results);
        for id in body.inputs.iter().chain(made) {
            let base: String = body.name(*id).replace(char::is_whitespace, "_");
            let mut name = base.clone();
            let mut n = 2;
            while !taken.insert(name.clone()) {
                name = format!("{base}.{n}");
                n += 1;
            }
            map.insert(*id, name);
        }
        Names(map)
    }

    pub fn get(&self, id: ValueId) -> &str {
        self.0.get(&id).map_or("?", String::as_str)
    }
}

fn line(out: &mut String, indent: usize, left: &str, types: &[&Type]) {
    let types: Vec<String> = types.iter().map(|t| t.to_string()).collect();
    let left = format!("{}{left}", "  ".repeat(indent));
    let _ = writeln!(out, "{left:<TYPE_COLUMN$} : {}", types.join(", "));
}

fn print_nodes(out: &mut String, body: &Body, names: &Names, indent: usize) {
    for node in &body.nodes {
        let list = |ids: &[ValueId]| {
            ids.iter().map(|i| names.get(*i).to_string()).collect::<Vec<_>>().join(", ")
        };
        let attrs = attributes(&node.op);
        let types: Vec<&Type> = node.results.iter().map(|r| body.ty(*r)).collect();
        let left = format!("{} = {}{attrs} {}", list(&node.results), node.op.name(), list(&node.args));
        line(out, indent, left.trim_end(), &types);
        if let Op::Repeat { body, .. } | Op::Call { body, .. } = &node.op {
            print_body(out, body, indent + 1);
        }
    }
}

fn print_body(out: &mut String, body: &Body, indent: usize) {
    let names = Names::of(body);
    for id in &body.inputs {
        line(out, indent, &format!("take {}", names.get(*id)), &[body.ty(*id)]);
    }
    print_nodes(out, body, &names, indent);
    let outputs: Vec<&str> = body.outputs.iter().map(|o| names.get(*o)).collect();
    let _ = writeln!(out, "{}give {}", "  ".repeat(indent), outputs.join(", "));
}

fn axes(axes: &[Axis]) -> String {
    axes.iter().map(|a| format!("{}={}", a.name, a.size)).collect::<Vec<_>>().join(", ")
}

/// What stands in braces after the operation's name.
pub fn attributes(op: &Op) -> String {
    let inner = match op {
        Op::Const(c) => format!("{c:?}"),
        Op::Position(axis) => axes(std::slice::from_ref(axis)),
        Op::Random { stream, axes: a } => format!("{stream}; {}", axes(a)),
        Op::Reduce { axes, .. } | Op::Contract { axes } | Op::Reorder { axes } => axes.join(", "),
        Op::Broadcast { axes: a } => axes(a),
        Op::Cast(dtype) => dtype.name().to_string(),
        Op::Rename { from, to } => format!("{to} = {from}"),
        Op::Split { axis, into } => format!("{axis}; {}", axes(into)),
        Op::Merge { axes, into } => format!("{into} = {}", axes.join(" * ")),
        Op::Slice { axis, start, into } | Op::Pad { axis, start, into } => {
            format!("{axis} at {start}; {}", axes(std::slice::from_ref(into)))
        }
        Op::Concat { axis, into } => format!("{axis}; {}", axes(std::slice::from_ref(into))),
        Op::Gather { axis } | Op::CacheWrite { axis } => axis.clone(),
        Op::ScatterAdd { axis } => axes(std::slice::from_ref(axis)),
        Op::Repeat { axis, count, reverse, carries, consts, .. } => {
            let order = if *reverse { " reverse" } else { "" };
            format!("{axis}={count}{order}; {carries} carried, {consts} const")
        }
        Op::Call { kernel, axes, .. } => format!("{}; {}", kernel.name(), axes.join(", ")),
        Op::Unary(_) | Op::Binary(_) | Op::Select | Op::StopGradient => return String::new(),
    };
    format!("{{{inner}}}")
}
