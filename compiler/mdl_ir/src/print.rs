//! The text form of a graph: one operation a line, types on the right, nested bodies indented.
//! `read` takes it back.
//!
//! Values are called by their names from the source; a name that is taken gets a number. Numbering
//! follows the order of printing, so the same graph always gives the same bytes.
//!
//! An operation with a body is a head line, then the body: `take inner = outer` for every argument,
//! the body's nodes, `give outer = inner` for every result. `also outer` is an argument and `keep
//! outer` a result that the body lacks. In all of them the left name is the one that is made. A
//! line that would be too long breaks before its type.

use crate::graph::{Body, Graph, InputRole, Node, OutputRole, ValueId};
use crate::op::{Group, Op};
use crate::tensor_type::{Axis, Type};
use mdl_symbol::joined;
use std::collections::{HashMap, HashSet};
use std::fmt::Write;

/// Column at which types start, where the left side is short enough.
const TYPE_COLUMN: usize = 64;

/// Longest line that is not broken.
const WIDTH: usize = 120;

/// The graph as text.
pub fn print(graph: &Graph) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "graph {} stage={}", graph.name, graph.stage.name());
    for param in &graph.params {
        let stored = std::iter::once(&param.stored).chain(&param.also_stored);
        let stored: Vec<String> = stored.map(|s| format!("{s:?}")).collect();
        let repeats = param.repeats.map_or(String::new(), |n| format!(" x{n}"));
        let parts = param.parts.map_or(String::new(), |n| format!(" by {n}"));
        let left = format!("param {}{repeats}{parts} {}", param.name, stored.join(" "));
        line(&mut out, 0, &left, &param.ty);
    }
    let names = Names::of(&graph.body);
    for (id, role) in graph.body.inputs.iter().zip(&graph.inputs) {
        let left = format!("input {} = {}", names.get(*id), input_role(role));
        line(&mut out, 0, &left, graph.body.ty(*id));
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
        InputRole::Grad(i) => format!("grad {i}"),
        InputRole::Moment1(i) => format!("moment1 {i}"),
        InputRole::Moment2(i) => format!("moment2 {i}"),
        InputRole::Master(i) => format!("master {i}"),
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
        OutputRole::Master(i) => format!("master {i}"),
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
            let base = printable(&body.name(*id));
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

/// A name without the characters that separate things in the text form.
fn printable(name: &str) -> String {
    let odd = |c: char| !(c.is_alphanumeric() || c == '_' || c == '.');
    if name.is_empty() { "_".to_string() } else { name.replace(odd, "_") }
}

fn line(out: &mut String, indent: usize, left: &str, ty: &Type) {
    let (pad, ty) = ("  ".repeat(indent), ty.to_string());
    let column = TYPE_COLUMN.min(WIDTH.saturating_sub(3 + ty.len()));
    let whole = format!("{:<column$} : {ty}", format!("{pad}{left}"));
    if whole.chars().count() <= WIDTH {
        let _ = writeln!(out, "{whole}");
    } else {
        let _ = writeln!(out, "{pad}{left}\n{pad}    : {ty}");
    }
}

fn print_nodes(out: &mut String, body: &Body, names: &Names, indent: usize) {
    for node in &body.nodes {
        let head = format!("{}{}", node.op.name(), attributes(&node.op));
        if let Op::Repeat { body: inner, .. } | Op::Call { body: inner, .. } = &node.op {
            let _ = writeln!(out, "{}{head}", "  ".repeat(indent));
            print_body(out, (body, names, node), inner, indent + 1);
            continue;
        }
        let args: Vec<&str> = node.args.iter().map(|a| names.get(*a)).collect();
        for result in &node.results {
            let left = format!("{} = {head} {}", names.get(*result), args.join(", "));
            line(out, indent, left.trim_end(), body.ty(*result));
        }
    }
}

/// The body of a node with what goes in and comes out, as lines of the surrounding body.
fn print_body(
    out: &mut String,
    (outer, outer_names, node): (&Body, &Names, &Node),
    body: &Body,
    indent: usize,
) {
    let names = Names::of(body);
    let pad = "  ".repeat(indent);
    for (id, arg) in body.inputs.iter().zip(&node.args) {
        let left = format!("take {} = {}", names.get(*id), outer_names.get(*arg));
        line(out, indent, &left, body.ty(*id));
    }
    for arg in node.args.iter().skip(body.inputs.len()) {
        let _ = writeln!(out, "{pad}also {}", outer_names.get(*arg));
    }
    print_nodes(out, body, &names, indent);
    for (id, result) in body.outputs.iter().zip(&node.results) {
        let left = format!("give {} = {}", outer_names.get(*result), names.get(*id));
        line(out, indent, &left, outer.ty(*result));
    }
    for result in node.results.iter().skip(body.outputs.len()) {
        line(out, indent, &format!("keep {}", outer_names.get(*result)), outer.ty(*result));
    }
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
        Op::Reduce { axes, .. } | Op::Contract { axes } | Op::Reorder { axes } => {
            joined(axes, ", ")
        }
        Op::Broadcast { axes: a } => axes(a),
        Op::Cast(dtype) => dtype.name().to_string(),
        Op::StochasticRound { stream } => stream.to_string(),
        Op::Transfer { to } => to.name().to_string(),
        Op::Collective { group: Group { ranks, stride }, .. } => format!("{ranks} by {stride}"),
        Op::Rename { from, to } => format!("{to} = {from}"),
        Op::Split { axis, into } => format!("{axis}; {}", axes(into)),
        Op::Merge { axes, into } => format!("{into} = {}", joined(axes, " * ")),
        Op::Slice { axis, start, into } | Op::Pad { axis, start, into } => {
            format!("{axis} at {start}; {}", axes(std::slice::from_ref(into)))
        }
        Op::Concat { axis, into } => format!("{axis}; {}", axes(std::slice::from_ref(into))),
        Op::Gather { axis } | Op::CacheWrite { axis } => axis.to_string(),
        Op::GroupedContract { axis, axes } => format!("{axis}; {}", joined(axes, ", ")),
        Op::ScatterAdd { axis } | Op::GroupedOuter { axis } => axes(std::slice::from_ref(axis)),
        Op::Repeat { axis, count, reverse, carries, consts, .. } => {
            let order = if *reverse { " reverse" } else { "" };
            format!("{axis}={count}{order}; {carries} carried, {consts} const")
        }
        Op::Call { kernel, axes, .. } if axes.is_empty() => kernel.name().to_string(),
        Op::Call { kernel, axes, .. } => format!("{}; {}", kernel.name(), joined(axes, ", ")),
        Op::Unary(_) | Op::Binary(_) | Op::Select | Op::StopGradient => return String::new(),
    };
    format!("{{{inner}}}")
}
