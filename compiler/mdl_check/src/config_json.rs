//! What a configuration has to do with a `config.json`: which of its values are read, and the
//! values that give a bound configuration back.

use crate::config::{Binder, Config, Setting};
use crate::program::{ItemRef, Program};
use crate::size::Size;
use mdl_syntax::ast::{self, BinaryOp, Expr, ExprKind, FieldType, ItemKind};
use mdl_syntax::diag::Sink;
use mdl_syntax::span::Span;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The object of `config.json` that holds fields by their own names, one within the other where
/// configurations are: those that no key gives back, such as a size that a preset chose instead of
/// a computed default. Binding looks there first.
pub const OWN: &str = "mdl";

/// The value at `a.b`, unless something on the way is missing.
pub fn lookup<'j>(json: &'j Value, path: &str) -> Option<&'j Value> {
    path.split('.').try_fold(json, |value, key| value.get(key))
}

/// Every path that the configuration reads, those of configurations within it too.
pub fn reads(program: &Program, item: ItemRef) -> BTreeSet<String> {
    let (mut found, mut seen, mut left) = (BTreeSet::new(), BTreeSet::new(), vec![item]);
    while let Some(item) = left.pop() {
        let ItemKind::Config(decl) = &program.item(item).kind else { continue };
        if !seen.insert(item) {
            continue;
        }
        let defaults = decl.fields.iter().filter_map(|field| field.default.as_ref());
        for e in defaults.chain(&decl.asserts) {
            paths(e, &mut |path| {
                found.insert(path.to_owned());
            });
        }
        left.extend(decl.fields.iter().filter_map(|field| match &field.ty {
            FieldType::Config(name) => program.find(item.module, name.text),
            _ => None,
        }));
    }
    found
}

/// The paths behind every `from` of an expression.
pub(crate) fn paths(e: &Expr, found: &mut dyn FnMut(&str)) {
    match &e.kind {
        ExprKind::Call { .. } => from(e).into_iter().for_each(found),
        ExprKind::Unary(_, a) => paths(a, found),
        ExprKind::Binary(_, a, b) | ExprKind::Else(a, b) => {
            paths(a, found);
            paths(b, found);
        }
        _ => {}
    }
}

/// The `config.json` that binds to this configuration.
///
/// A value is written where the first alternative of its field reads it. `known` is the file that
/// the configuration was bound from, if it was: what no field reads stays as it is there, and so
/// does what is absent there and has the default here. An object whose values all are defaults says
/// nothing and is left out.
pub fn to_json(
    program: &Program,
    config: &Config,
    known: Option<&Map<String, Value>>,
) -> Map<String, Value> {
    let mut out = known.cloned().unwrap_or_default();
    out.remove(OWN);
    for path in reads(program, config.item) {
        remove(&mut out, &path);
    }
    let known = known.cloned().map(Value::Object);
    let mut writer = Writer { program, known, out, objects: BTreeMap::new() };
    writer.config(config);
    let Writer { mut out, objects, .. } = writer;
    for (name, _) in objects.iter().filter(|(_, tells)| !**tells) {
        out.remove(name);
    }
    let read = Value::Object(out.clone());
    let mut sink = Sink::default();
    let own = own_fields(&mut Binder::of_json(program, &read, &mut sink), config);
    if !own.is_empty() {
        out.insert(OWN.to_string(), Value::Object(own));
    }
    out
}

/// The value of a field under its own name; the path is that of the configurations around it.
pub fn own_value<'j>(json: &'j Value, path: &[String], field: &str) -> Option<&'j Value> {
    let mut value = json.get(OWN)?;
    for key in path {
        value = value.get(key)?;
    }
    value.get(field).filter(|v| !v.is_object())
}

fn plain(setting: &Setting) -> Value {
    match setting {
        Setting::Size(s) => json!(s.value()),
        Setting::Real(x) => json!(x),
        Setting::Bool(b) => json!(b),
        Setting::Text(t) => json!(t),
        Setting::Config(_) => Value::Null,
    }
}

/// The fields that the keys do not give back.
fn own_fields(binder: &mut Binder<'_, '_>, config: &Config) -> Map<String, Value> {
    let mut own = Map::new();
    let program = binder.program;
    let ItemKind::Config(decl) = &program.item(config.item).kind else { return own };
    for field in &decl.fields {
        let name = &field.name.text;
        match config.fields.get(name) {
            Some(Setting::Config(inner)) => {
                let within = own_fields(binder, inner);
                if !within.is_empty() {
                    own.insert(name.to_string(), Value::Object(within));
                }
            }
            Some(setting) if !gives_back(binder, field, config, setting) => {
                own.insert(name.to_string(), plain(setting));
            }
            _ => {}
        }
    }
    own
}

fn gives_back(
    binder: &mut Binder<'_, '_>,
    field: &ast::Field,
    config: &Config,
    setting: &Setting,
) -> bool {
    let default = field.default.as_ref();
    let value = default.and_then(|e| binder.eval(e, config)).flatten();
    let fitted = value.and_then(|v| binder.fit(field, v, field.span, Span::default()));
    match (&field.ty, fitted, setting) {
        (FieldType::Size, Some(Setting::Size(a)), Setting::Size(b)) => a.value() == b.value(),
        (_, Some(fitted), setting) => fitted == *setting,
        (_, None, _) => false,
    }
}

struct Writer<'p> {
    program: &'p Program,
    known: Option<Value>,
    out: Map<String, Value>,
    /// Objects that were written to, and whether that was something else than a default.
    objects: BTreeMap<String, bool>,
}

impl Writer<'_> {
    fn config(&mut self, config: &Config) {
        let ItemKind::Config(decl) = &self.program.item(config.item).kind else { return };
        for e in &decl.asserts {
            // `assert from("key") == value else true` is a value that the model takes for granted.
            if let ExprKind::Else(a, _) = &e.kind
                && let ExprKind::Binary(BinaryOp::Eq, key, value) = &a.kind
                && let (Some(path), Some(value)) = (from(key), literal(value))
            {
                self.set(path, value, e, true);
            }
        }
        for field in &decl.fields {
            let value = match config.fields.get(&field.name.text) {
                Some(Setting::Config(inner)) => {
                    self.config(inner);
                    continue;
                }
                Some(setting) => plain(setting),
                None => continue,
            };
            let Some(default) = &field.default else { continue };
            let mut alternatives = Vec::new();
            flatten(default, &mut alternatives);
            let last = alternatives.last().and_then(|e| literal(e));
            let is_default = last.is_some_and(|last| same(&last, &value));
            let is_limit = alternatives.last().is_some_and(|e| e.kind == ExprKind::Infinity);
            let value = if is_limit { whole(value) } else { value };
            let first = alternatives.iter().find_map(|e| turned_around(e, config, &value));
            if let Some((path, value)) = first {
                self.set(path, value, default, is_default);
            }
        }
    }

    /// Writes a value that this expression reads.
    fn set(&mut self, path: &str, value: Value, reader: &Expr, is_default: bool) {
        if let Some(known) = &self.known {
            let mut given = false;
            let mut look = |path: &str| given |= lookup(known, path).is_some_and(|v| !v.is_null());
            paths(reader, &mut look);
            if is_default && !given {
                return;
            }
        }
        if let Some((object, _)) = path.split_once('.') {
            *self.objects.entry(object.to_owned()).or_default() |= !is_default;
        }
        // What the file says stays as it is written there: 10000 or 10000.0.
        let known = self.known.as_ref().and_then(|known| lookup(known, path));
        let written = known.filter(|known| known.is_number() && same(known, &value));
        insert(&mut self.out, path, written.unwrap_or(&value).clone());
    }
}

/// A real whose default is infinite limits a count, such as the width of a window: readers of a
/// `config.json` want it without a point.
fn whole(value: Value) -> Value {
    match value.as_f64() {
        Some(x) if x.fract() == 0.0 && (0.0..2f64.powi(53)).contains(&x) => json!(x as u64),
        _ => value,
    }
}

/// The path of `from("path")`.
fn from(e: &Expr) -> Option<&str> {
    let ExprKind::Call { function, args, .. } = &e.kind else { return None };
    match (&function.kind, &args.first()?.value.kind) {
        (ExprKind::Name(name), ExprKind::Text(path)) if name.text == "from" => Some(path),
        _ => None,
    }
}

fn literal(e: &Expr) -> Option<Value> {
    match &e.kind {
        ExprKind::Bool(b) => Some(json!(b)),
        ExprKind::Text(text) => Some(json!(text)),
        ExprKind::Number(text) => match text.parse::<u64>() {
            Ok(n) => Some(json!(n)),
            Err(_) => text.parse::<f64>().ok().map(|x| json!(x)),
        },
        _ => None,
    }
}

/// Whether two values are equal, with 8 and 8.0 as one number.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// The alternatives of `a else b else c`, in order.
fn flatten<'e>(e: &'e Expr, out: &mut Vec<&'e Expr>) {
    match &e.kind {
        ExprKind::Else(a, b) => {
            flatten(a, out);
            flatten(b, out);
        }
        _ => out.push(e),
    }
}

/// The key and its value for `from("key")`, or for `from("key")` divided or multiplied by a number
/// or by a size of the configuration.
fn turned_around<'e>(e: &'e Expr, config: &Config, value: &Value) -> Option<(&'e str, Value)> {
    match &e.kind {
        ExprKind::Call { .. } => Some((from(e)?, value.clone())),
        ExprKind::Binary(op @ (BinaryOp::Div | BinaryOp::Mul), a, b) => {
            let (from, by) = match (number(a, config), number(b, config)) {
                (None, Some(by)) => (a, by),
                (Some(by), None) if *op == BinaryOp::Mul => (b, by),
                _ => return None,
            };
            let back = if *op == BinaryOp::Div { BinaryOp::Mul } else { BinaryOp::Div };
            let inner = match Size::number(value.as_u64()?).combine(back, &by)? {
                size if size.is_fraction() => json!(size.as_f64()),
                size => json!(size.value()?),
            };
            turned_around(from, config, &inner)
        }
        _ => None,
    }
}

/// A whole number, or a size of the configuration, as a number.
fn number(e: &Expr, config: &Config) -> Option<Size> {
    let n = match &e.kind {
        ExprKind::Number(text) => text.parse().ok()?,
        ExprKind::Name(name) => match config.fields.get(&name.text)? {
            Setting::Size(size) => size.value()?,
            _ => return None,
        },
        _ => return None,
    };
    (n > 0).then(|| Size::number(n))
}

pub(crate) fn insert(out: &mut Map<String, Value>, path: &str, value: Value) {
    match path.split_once('.') {
        None => {
            out.insert(path.to_string(), value);
        }
        Some((key, rest)) => {
            let inner = out.entry(key).or_insert(Value::Null);
            if !inner.is_object() {
                *inner = json!({});
            }
            if let Some(inner) = inner.as_object_mut() {
                insert(inner, rest, value);
            }
        }
    }
}

/// Takes away a value, and the objects that are empty without it. A null says that there is none
/// and stays.
pub(crate) fn remove(out: &mut Map<String, Value>, path: &str) {
    match path.split_once('.') {
        None if out.get(path).is_some_and(|value| !value.is_null()) => {
            out.remove(path);
        }
        None => {}
        Some((key, rest)) => {
            let Some(inner) = out.get_mut(key).and_then(Value::as_object_mut) else { return };
            remove(inner, rest);
            if inner.is_empty() {
                out.remove(key);
            }
        }
    }
}
