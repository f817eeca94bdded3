//! Reads the text form of `print` back: everything but source places and the bodies that initialise
//! parameters.
//!
//! A value's name is the printed one and its number the order of appearance, so printing gives the
//! same text again.

use crate::graph::{Body, Graph, InputRole, Node, OutputRole, Param, Stage, Value, ValueId};
use crate::op::{Binary, Collective, Group, Kernel, Memory, Op, Reduction, Unary};
use crate::place::Place;
use crate::tensor_type::{Axis, DType, Type};
use mdl_symbol::Symbol;
use std::collections::HashMap;

/// The graph that this text describes, or the first line that describes none.
pub fn read(text: &str) -> Result<Graph, String> {
    let mut lines = Lines::of(text)?;
    lines.graph().map_err(|fault| format!("line {}: {fault}", lines.number()))
}

/// A logical line: a broken one is whole again.
#[derive(Debug)]
struct Line {
    number: usize,
    indent: usize,
    /// What stands left of the type.
    left: String,
    ty: Option<String>,
}

#[derive(Debug)]
struct Lines {
    lines: Vec<Line>,
    at: usize,
}

impl Lines {
    fn of(text: &str) -> Result<Lines, String> {
        let mut lines: Vec<Line> = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let trimmed = line.trim();
            if trimmed.is_empty() {
                continue;
            }
            if let Some(ty) = trimmed.strip_prefix(": ") {
                let last = lines.last_mut().filter(|l| l.ty.is_none());
                let last = last.ok_or_else(|| format!("line {}: a type of nothing", i + 1))?;
                last.ty = Some(ty.to_string());
                continue;
            }
            let (left, ty) = match trimmed.rsplit_once(" : ") {
                Some((left, ty)) => (left.trim_end(), Some(ty.to_string())),
                None => (trimmed, None),
            };
            let indent = line.len() - line.trim_start().len();
            lines.push(Line { number: i + 1, indent, left: left.to_string(), ty });
        }
        Ok(Lines { lines, at: 0 })
    }

    /// Number of the line that is being read, or of the last one.
    fn number(&self) -> usize {
        self.lines.get(self.at).or(self.lines.last()).map_or(0, |l| l.number)
    }

    fn peek(&self) -> Option<&Line> {
        self.lines.get(self.at)
    }

    /// What follows `word` on the next line, if it is of the body at this indentation; with its
    /// type if it has one.
    fn next_after(&self, word: &str, indent: usize) -> Option<(String, Option<String>)> {
        let line = self.peek().filter(|line| line.indent == indent)?;
        let rest = line.left.strip_prefix(word)?.strip_prefix(' ')?;
        // `take = add x, y` makes a value of that name.
        let made = rest.starts_with("= ");
        (!made).then(|| (rest.to_string(), line.ty.clone()))
    }

    fn graph(&mut self) -> Result<Graph, String> {
        let (head, _) = self.next_after("graph", 0).ok_or("a graph starts with `graph`")?;
        let (name, stage) = head.split_once(" stage=").ok_or("a graph has a stage")?;
        let stage = Stage::ALL.into_iter().find(|s| s.name() == stage);
        let mut graph = Graph {
            name: name.to_string(),
            stage: stage.ok_or("there is no such stage")?,
            params: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            body: Body::default(),
        };
        self.at += 1;
        while let Some((rest, ty)) = self.next_after("param", 0) {
            graph.params.push(param(&rest, tensor_type(&ty)?)?);
            self.at += 1;
        }
        let mut scope = Scope::default();
        while let Some((rest, ty)) = self.next_after("input", 0) {
            let (name, role) = rest.split_once(" = ").ok_or("an input has a role")?;
            let id = scope.make(name, tensor_type(&ty)?)?;
            scope.body.inputs.push(id);
            graph.inputs.push(input_role(role)?);
            self.at += 1;
        }
        self.nodes(&mut scope, 0)?;
        while let Some((rest, _)) = self.next_after("output", 0) {
            let (role, name) = rest.split_once(" = ").ok_or("an output has a value")?;
            let id = scope.get(name)?;
            scope.body.outputs.push(id);
            graph.outputs.push(output_role(role)?);
            self.at += 1;
        }
        if self.at < self.lines.len() {
            return Err("nothing follows the outputs".into());
        }
        graph.body = scope.body;
        Ok(graph)
    }

    /// Nodes at this indentation, up to what ends the body.
    fn nodes(&mut self, scope: &mut Scope, indent: usize) -> Result<(), String> {
        while let Some(line) = self.peek() {
            if line.indent < indent {
                break;
            }
            if line.indent > indent {
                return Err("this line is indented too far".into());
            }
            let left = line.left.clone();
            if ["repeat{", "call{"].iter().any(|head| left.starts_with(head)) {
                self.at += 1;
                self.with_body(scope, &left, indent)?;
                continue;
            }
            if ["give", "keep", "output"].iter().any(|word| self.next_after(word, indent).is_some())
            {
                break;
            }
            let ty = tensor_type(&line.ty)?;
            let (name, right) = left.split_once(" = ").ok_or("a node makes a value")?;
            let (word, attrs, args) = operation(right)?;
            let op = read_op(word, attrs)?;
            let args = names(args).map(|a| scope.get(a)).collect::<Result<_, _>>()?;
            let results = vec![scope.make(name, ty)?];
            scope.body.nodes.push(Node { op, args, results, span: Place::default() });
            self.at += 1;
        }
        Ok(())
    }

    /// A repeated region or a call: its arguments, its body, its results.
    fn with_body(&mut self, outer: &mut Scope, head: &str, indent: usize) -> Result<(), String> {
        let indent = self.peek().map_or(indent, |l| l.indent).max(indent + 1);
        let mut inner = Scope::default();
        let mut args = Vec::new();
        while let Some((rest, ty)) = self.next_after("take", indent) {
            let (name, arg) = rest.split_once(" = ").ok_or("an argument has a value")?;
            let id = inner.make(name, tensor_type(&ty)?)?;
            inner.body.inputs.push(id);
            args.push(outer.get(arg)?);
            self.at += 1;
        }
        while let Some((arg, _)) = self.next_after("also", indent) {
            args.push(outer.get(&arg)?);
            self.at += 1;
        }
        self.nodes(&mut inner, indent)?;
        let mut results = Vec::new();
        while let Some((rest, ty)) = self.next_after("give", indent) {
            let (name, value) = rest.split_once(" = ").ok_or("a result has a value")?;
            results.push(outer.make(name, tensor_type(&ty)?)?);
            let value = inner.get(value)?;
            inner.body.outputs.push(value);
            self.at += 1;
        }
        while let Some((name, ty)) = self.next_after("keep", indent) {
            results.push(outer.make(&name, tensor_type(&ty)?)?);
            self.at += 1;
        }
        let (word, attrs, _) = operation(head)?;
        let op = with_body(word, attrs, inner.body)?;
        outer.body.nodes.push(Node { op, args, results, span: Place::default() });
        Ok(())
    }
}

/// A body being read, with its names.
#[derive(Debug, Default)]
struct Scope {
    body: Body,
    names: HashMap<String, ValueId>,
}

impl Scope {
    fn make(&mut self, name: &str, ty: Type) -> Result<ValueId, String> {
        let id = ValueId(self.body.values.len() as u32);
        if self.names.insert(name.to_string(), id).is_some() {
            return Err(format!("`{name}` is made twice"));
        }
        self.body.values.push(Value { name: name.into(), ty });
        Ok(id)
    }

    fn get(&self, name: &str) -> Result<ValueId, String> {
        self.names.get(name).copied().ok_or_else(|| format!("no value `{name}` is made here"))
    }
}

fn names(list: &str) -> impl Iterator<Item = &str> {
    list.split(", ").filter(|s| !s.is_empty())
}

fn symbols(list: &str) -> Vec<Symbol> {
    names(list).map(Symbol::new).collect()
}

/// `name{attributes} arguments`, taken apart.
fn operation(text: &str) -> Result<(&str, &str, &str), String> {
    let word = text.split([' ', '{']).next().unwrap_or_default();
    let rest = &text[word.len()..];
    let (attrs, args) = match rest.strip_prefix('{') {
        Some(open) => open.split_once('}').ok_or("a brace is not closed")?,
        None => ("", rest),
    };
    Ok((word, attrs, args.trim()))
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.trim().parse().map_err(|_| format!("`{text}` is not the number that belongs here"))
}

fn axis(text: &str) -> Result<Axis, String> {
    let (name, size) = text.split_once('=').ok_or_else(|| format!("`{text}` is not an axis"))?;
    Ok(Axis::new(name, number(size)?))
}

fn axes(text: &str) -> Result<Vec<Axis>, String> {
    names(text).map(axis).collect()
}

fn tensor_type(text: &Option<String>) -> Result<Type, String> {
    let text = text.as_deref().ok_or("a type is missing")?;
    let fault = || format!("`{text}` is not a type");
    let (dtype, rest) = text.split_once('[').ok_or_else(fault)?;
    let inner = rest.strip_suffix(']').ok_or_else(fault)?;
    Ok(Type::new(DType::from_name(dtype).ok_or_else(fault)?, axes(inner)?))
}

/// `name x2 by 8 "stored" "also stored"`.
fn param(text: &str, ty: Type) -> Result<Param, String> {
    let (head, rest) = text.split_once(" \"").ok_or("a parameter has a stored name")?;
    let count = |text: &str| number(text).map(Some);
    let (head, parts) = match head.split_once(" by ") {
        Some((head, n)) => (head, count(n)?),
        None => (head, None),
    };
    let (name, repeats) = match head.split_once(" x") {
        Some((name, n)) => (name, count(n)?),
        None => (head, None),
    };
    let body = rest.strip_suffix('"').ok_or("a stored name ends with a quote")?;
    let mut stored = body.split("\" \"").map(unescape);
    Ok(Param {
        name: name.to_string(),
        stored: stored.next().unwrap_or_default(),
        also_stored: stored.collect(),
        ty,
        repeats,
        parts,
        init: None,
    })
}

/// Takes back what printing in quotes did to quotes and backslashes.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

fn input_role(text: &str) -> Result<InputRole, String> {
    let (word, rest) = text.split_once(' ').ok_or("a role has a name or a number")?;
    Ok(match word {
        "param" => InputRole::Param(number(rest)?),
        "grad" => InputRole::Grad(number(rest)?),
        "moment1" => InputRole::Moment1(number(rest)?),
        "moment2" => InputRole::Moment2(number(rest)?),
        "master" => InputRole::Master(number(rest)?),
        "data" => InputRole::Data(rest.to_string()),
        "scalar" => InputRole::Scalar(rest.to_string()),
        "cache" => InputRole::Cache(number(rest)?),
        _ => return Err(format!("`{word}` is no role of an input")),
    })
}

fn output_role(text: &str) -> Result<OutputRole, String> {
    let (word, rest) = text.split_once(' ').ok_or("a role has a name or a number")?;
    Ok(match word {
        "value" => OutputRole::Value(rest.to_string()),
        "grad" => OutputRole::Grad(number(rest)?),
        "param" => OutputRole::Param(number(rest)?),
        "moment1" => OutputRole::Moment1(number(rest)?),
        "moment2" => OutputRole::Moment2(number(rest)?),
        "master" => OutputRole::Master(number(rest)?),
        "cache" => OutputRole::Cache(number(rest)?),
        _ => return Err(format!("`{word}` is no role of an output")),
    })
}

fn halves<'t>(attrs: &'t str, by: &str) -> Result<(&'t str, &'t str), String> {
    attrs.split_once(by).ok_or_else(|| format!("`{{{attrs}}}` lacks `{by}`"))
}

/// `axis at start; into=size`.
fn part(attrs: &str) -> Result<(Symbol, u64, Axis), String> {
    let (place, into) = halves(attrs, "; ")?;
    let (name, start) = halves(place, " at ")?;
    Ok((name.into(), number(start)?, axis(into)?))
}

/// An operation without a body.
fn read_op(word: &str, attrs: &str) -> Result<Op, String> {
    if let Some(op) = Unary::from_name(word) {
        return Ok(Op::Unary(op));
    }
    if let Some(op) = Binary::from_name(word) {
        return Ok(Op::Binary(op));
    }
    if let Some(kind) = Collective::from_name(word) {
        let (ranks, stride) = halves(attrs, " by ")?;
        let group = Group { ranks: number(ranks)?, stride: number(stride)? };
        return Ok(Op::Collective { kind, group });
    }
    Ok(match word {
        "const" => Op::Const(number(attrs)?),
        "position" => Op::Position(axis(attrs)?),
        "random" => {
            let (stream, list) = halves(attrs, "; ")?;
            Op::Random { stream: number(stream)?, axes: axes(list)? }
        }
        "select" => Op::Select,
        "reduce_sum" => Op::Reduce { kind: Reduction::Sum, axes: symbols(attrs) },
        "reduce_max" => Op::Reduce { kind: Reduction::Max, axes: symbols(attrs) },
        "contract" => Op::Contract { axes: symbols(attrs) },
        "broadcast" => Op::Broadcast { axes: axes(attrs)? },
        "reorder" => Op::Reorder { axes: symbols(attrs) },
        "cast" => Op::Cast(DType::from_name(attrs).ok_or("there is no such element type")?),
        "stochastic_round" => Op::StochasticRound { stream: number(attrs)? },
        "rename" => {
            let (to, from) = halves(attrs, " = ")?;
            Op::Rename { from: from.into(), to: to.into() }
        }
        "split" => {
            let (name, into) = halves(attrs, "; ")?;
            Op::Split { axis: name.into(), into: axes(into)? }
        }
        "merge" => {
            let (into, list) = halves(attrs, " = ")?;
            let axes = list.split(" * ").map(Symbol::new).collect();
            Op::Merge { axes, into: into.into() }
        }
        "slice" => part(attrs).map(|(axis, start, into)| Op::Slice { axis, start, into })?,
        "pad" => part(attrs).map(|(axis, start, into)| Op::Pad { axis, start, into })?,
        "concat" => {
            let (name, into) = halves(attrs, "; ")?;
            Op::Concat { axis: name.into(), into: axis(into)? }
        }
        "gather" => Op::Gather { axis: attrs.into() },
        "grouped_contract" => {
            let (axis, over) = halves(attrs, "; ")?;
            Op::GroupedContract { axis: axis.into(), axes: symbols(over) }
        }
        "grouped_outer" => Op::GroupedOuter { axis: axis(attrs)? },
        "scatter_add" => Op::ScatterAdd { axis: axis(attrs)? },
        "stop_gradient" => Op::StopGradient,
        "transfer" => {
            Op::Transfer { to: Memory::from_name(attrs).ok_or("there is no such memory")? }
        }
        "cache_write" => Op::CacheWrite { axis: attrs.into() },
        _ => return Err(format!("there is no operation `{word}`")),
    })
}

/// `repeat{layers=2 reverse; 1 carried, 1 const}` or `call{attention; T, S, head}`.
fn with_body(word: &str, attrs: &str, body: Body) -> Result<Op, String> {
    let body = Box::new(body);
    let (head, rest) = attrs.split_once("; ").unwrap_or((attrs, ""));
    if word == "call" {
        let kernel = Kernel::from_name(head).ok_or_else(|| format!("no kernel `{head}`"))?;
        return Ok(Op::Call { kernel, axes: symbols(rest), body });
    }
    let reverse = head.ends_with(" reverse");
    let Axis { name, size } = axis(head.trim_end_matches(" reverse"))?;
    let (carries, consts) = halves(rest, " carried, ")?;
    let consts = consts.strip_suffix(" const").ok_or("a region says how many are const")?;
    let (carries, consts) = (number(carries)?, number(consts)?);
    Ok(Op::Repeat { axis: name, count: size, reverse, carries, consts, body })
}
