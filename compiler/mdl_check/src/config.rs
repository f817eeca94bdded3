//! Configurations: the fields of a `config` item bound by a preset, by a `config.json`, or by
//! made-up numbers.

use crate::config_json::own_value;
use crate::nearest::nearest;
use crate::program::{ItemRef, Program, item_name, standard_home};
use crate::size::Size;
use mdl_symbol::Symbol;
use mdl_syntax::ast::{self, BinaryOp, Expr, ExprKind, FieldType, ItemKind, UnaryOp};
use mdl_syntax::diag::{Diagnostic, Sink};
use mdl_syntax::span::Span;
use std::collections::BTreeMap;
use std::rc::Rc;

/// A bound configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub item: ItemRef,
    pub name: Symbol,
    pub fields: BTreeMap<Symbol, Setting>,
    /// Where each size was declared.
    pub places: BTreeMap<Symbol, Span>,
}

impl Config {
    pub fn field(&self, name: &str) -> Option<&Setting> {
        self.fields.get(&Symbol::new(name))
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Setting {
    Size(Size),
    Real(f64),
    Bool(bool),
    Text(String),
    Config(Rc<Config>),
}

/// Where the values of fields come from.
#[derive(Clone, Debug)]
pub enum Source<'a> {
    /// Bindings of a preset, in the scope of this module.
    Preset(usize, &'a [(ast::Name, Expr)]),
    /// A `config.json`: `from("a.b")` finds its values here.
    Json(&'a serde_json::Value),
    /// Small numbers, so that a model without presets can be checked.
    Sample,
}

/// A field's value while it is worked out; `None` is absent.
type Partial = Option<Setting>;

/// Fields of one configuration with all that are within it.
const MAX_FIELDS: usize = 10_000;

pub(crate) struct Binder<'a, 'b> {
    pub(crate) program: &'a Program,
    sink: &'b mut Sink,
    json: Option<&'a serde_json::Value>,
    sample: bool,
    /// Numbers handed out so far in a sample.
    handed: u64,
    /// Configurations that are being bound, one within the other.
    open: Vec<ItemRef>,
    /// The fields that hold them.
    path: Vec<String>,
    /// Fields bound so far: configurations within each other could double at each level.
    fields: usize,
}

/// Binds the configuration `item`. Problems are reported; the result is None where a field has no
/// value.
pub fn bind(
    program: &Program,
    item: ItemRef,
    source: &Source<'_>,
    at: Span,
    sink: &mut Sink,
) -> Option<Rc<Config>> {
    let (json, sample) = match source {
        Source::Json(json) => (Some(*json), false),
        Source::Preset(..) => (None, false),
        Source::Sample => (None, true),
    };
    let mut binder = Binder { json, sample, ..Binder::new(program, sink) };
    let given: Vec<(&ast::Name, &Expr)> = match source {
        Source::Preset(_, bindings) => bindings.iter().map(|(n, e)| (n, e)).collect(),
        _ => Vec::new(),
    };
    let scope = match source {
        Source::Preset(module, _) => *module,
        _ => item.module,
    };
    binder.config(item, &given, scope, at)
}

impl<'a, 'b> Binder<'a, 'b> {
    fn new(program: &'a Program, sink: &'b mut Sink) -> Self {
        let (open, path) = (Vec::new(), Vec::new());
        Binder { program, sink, json: None, sample: false, handed: 0, open, path, fields: 0 }
    }

    pub(crate) fn of_json(
        program: &'a Program,
        json: &'a serde_json::Value,
        sink: &'b mut Sink,
    ) -> Self {
        Binder { json: Some(json), ..Binder::new(program, sink) }
    }

    fn fail<T>(&mut self, code: &'static str, message: String, at: Span, here: &str) -> Option<T> {
        self.sink.push(Diagnostic::error(code, message, at, here));
        None
    }

    fn config(
        &mut self,
        item: ItemRef,
        given: &[(&ast::Name, &Expr)],
        scope: usize,
        at: Span,
    ) -> Option<Rc<Config>> {
        let program = self.program;
        let ItemKind::Config(decl) = &program.item(item).kind else {
            let name = item_name(program.item(item)).map_or("", |n| &n.text);
            let message = format!("`{name}` is no configuration");
            return self.fail("E0405", message, at, "used as one here");
        };
        if self.open.contains(&item) {
            let message = format!("configuration `{}` holds itself", decl.name.text);
            return self.fail("E0412", message, decl.name.span, "this one");
        }
        self.fields += decl.fields.len();
        if self.fields > MAX_FIELDS {
            let message = format!("a configuration has more than {MAX_FIELDS} fields");
            return self.fail("E0411", message, decl.name.span, "with all that are within it");
        }
        self.open.push(item);
        let bound = self.fields_of(item, decl, given, scope, at);
        self.open.pop();
        bound
    }

    fn fields_of(
        &mut self,
        item: ItemRef,
        decl: &ast::Config,
        given: &[(&ast::Name, &Expr)],
        scope: usize,
        at: Span,
    ) -> Option<Rc<Config>> {
        let mut unknown = false;
        for (name, _) in given {
            if !decl.fields.iter().any(|f| f.name.text == name.text) {
                unknown = true;
                let message = format!("`{}` has no field `{}`", decl.name.text, name.text);
                let d = Diagnostic::error("E0403", message, name.span, "no such field")
                    .label(decl.name.span, "declared here");
                let known = decl.fields.iter().map(|f| f.name.text);
                self.sink.push(match nearest(&name.text, known) {
                    Some(near) => d.help(format!("write `{near}`")),
                    None => d,
                });
            }
        }
        let mut config =
            Config { item, name: decl.name.text, fields: BTreeMap::new(), places: BTreeMap::new() };
        let mut complete = true;
        for field in &decl.fields {
            let binding = given.iter().find(|(n, _)| n.text == field.name.text);
            if unknown && binding.is_none() && field.default.is_none() {
                // The unknown name may have been meant for this one.
                complete = false;
                continue;
            }
            match self.field(field, binding.map(|(_, e)| *e), &config, scope, at) {
                Some(setting) => {
                    config.places.insert(field.name.text, field.span);
                    config.fields.insert(field.name.text, setting);
                }
                None => complete = false,
            }
        }
        if !complete {
            return None;
        }
        for assertion in &decl.asserts {
            match self.eval(assertion, &config) {
                Some(Some(Setting::Bool(true))) => {}
                // Made-up numbers break promises between sizes.
                Some(Some(Setting::Bool(false))) if self.sample => {}
                Some(Some(Setting::Bool(false))) => {
                    let message = format!("an assertion of `{}` fails", config.name);
                    let here = format!("false for {}", self.bindings(assertion, &config));
                    self.sink.push(
                        Diagnostic::error("E0404", message, assertion.span, here)
                            .label(at, "for the values given here"),
                    );
                    return None;
                }
                Some(_) => {
                    let message = "an assertion is true or false".to_string();
                    return self.fail("E0405", message, assertion.span, "this is neither");
                }
                None => return None,
            }
        }
        Some(Rc::new(config))
    }

    /// The fields that an expression names and what it reads from `config.json`, with their values:
    /// `hidden = 64, heads = 3`.
    fn bindings(&self, e: &Expr, config: &Config) -> String {
        let mut names = Vec::new();
        crate::names::each_name(e, &mut |n| names.push(n.text));
        names.dedup();
        let values = names.iter().filter_map(|n| {
            let value = match config.fields.get(n)? {
                Setting::Size(s) => s.as_f64().to_string(),
                Setting::Real(x) => x.to_string(),
                Setting::Bool(b) => b.to_string(),
                Setting::Text(t) => format!("\"{}\"", t.chars().take(40).collect::<String>()),
                Setting::Config(_) => return None,
            };
            Some(format!("{n} = {value}"))
        });
        let mut paths = Vec::new();
        crate::config_json::paths(e, &mut |path| paths.push(path.to_owned()));
        let read = paths.iter().filter_map(|path| {
            let value = crate::config_json::lookup(self.json?, path)?;
            Some(format!("{path} = {}", value.to_string().chars().take(40).collect::<String>()))
        });
        values.chain(read).collect::<Vec<_>>().join(", ")
    }

    fn field(
        &mut self,
        field: &ast::Field,
        given: Option<&Expr>,
        so_far: &Config,
        scope: usize,
        at: Span,
    ) -> Option<Setting> {
        let name = &field.name.text;
        let (value, place) = match (given, &field.ty) {
            (Some(e), FieldType::Config(ty)) => return self.nested(ty, e, so_far, scope),
            (Some(e), _) => (self.eval(e, so_far)?, e.span),
            (None, FieldType::Config(ty)) => {
                let item = self.lookup(so_far.item.module, ty)?;
                self.path.push(name.to_string());
                let bound = self.config(item, &[], item.module, at);
                self.path.pop();
                return bound.map(Setting::Config);
            }
            (None, _) => match (self.own(name), &field.default) {
                (Some(value), _) => (self.plain(value, name, field.span)?, field.span),
                (None, Some(e)) => (self.eval(e, so_far)?, e.span),
                (None, None) => (None, field.span),
            },
        };
        let value = match value {
            None if self.sample => Some(self.made_up(&field.ty)),
            other => other,
        };
        let Some(value) = value else {
            let code = if self.json.is_some() { "E0406" } else { "E0402" };
            let (message, here) = match self.json.is_some() {
                true => (format!("config.json has no value for `{name}`"), "bound for this"),
                false => (format!("field `{name}` has no value"), "not bound here"),
            };
            let d = Diagnostic::error(code, message, at, here);
            let d = match at == field.span {
                true => d,
                false => d.label(field.span, "the field is declared here"),
            };
            let value = match &field.ty {
                FieldType::Size => "64",
                FieldType::Real => "1.0",
                FieldType::Bool => "false",
                _ => "\"\"",
            };
            self.sink.push(match self.json.is_some() {
                true => d.help(format!("add a default: `else {value}`")),
                false => d.help(format!("bind it, as in `{name} = {value}`")),
            });
            return None;
        };
        self.fit(field, value, place, at)
    }

    /// A value as the field's kind wants it; named sizes start their own polynomial here.
    pub(crate) fn fit(
        &mut self,
        field: &ast::Field,
        value: Setting,
        place: Span,
        at: Span,
    ) -> Option<Setting> {
        let name = &field.name.text;
        match (&field.ty, value) {
            (FieldType::Size, Setting::Size(size)) => match size.value() {
                None if self.sample && !size.is_number() => {
                    let Setting::Size(made_up) = self.made_up(&field.ty) else { return None };
                    Some(Setting::Size(Size::named(*name, made_up.value().unwrap_or(4))))
                }
                Some(n) if (1..1 << 31).contains(&n) => Some(Setting::Size(Size::named(*name, n))),
                None if size.is_fraction() => {
                    let message = format!("size `{name}` would be {}", size.explained());
                    let here = "this division leaves a remainder";
                    let d = Diagnostic::error("E0407", message, place, here);
                    self.sink.push(d.label(at, "for the values given here"));
                    None
                }
                _ => {
                    let message = format!("size `{name}` would be {}", size.explained());
                    self.fail("E0307", message, place, "sizes are 1 to 2147483647")
                }
            },
            // A fraction of a size, as `head * from("partial_rotary_factor")`, is a size where it
            // is a whole number.
            (FieldType::Size, Setting::Real(x)) if whole(x).is_some() => {
                let n = whole(x).unwrap_or(1);
                Some(Setting::Size(Size::named(*name, n)))
            }
            (FieldType::Real, Setting::Size(size)) => Some(Setting::Real(size.as_f64())),
            (FieldType::Real, Setting::Real(x)) if !x.is_nan() => Some(Setting::Real(x)),
            (FieldType::Real, Setting::Real(x)) => {
                let message = format!("`{name}` would be {x}, which is no number");
                self.fail("E0307", message, place, "out of range")
            }
            (FieldType::Bool, v @ Setting::Bool(_)) => Some(v),
            (FieldType::Text, v @ Setting::Text(_)) => Some(v),
            (FieldType::Config(_), v @ Setting::Config(_)) => Some(v),
            (ty, value) => {
                let wanted = match ty {
                    FieldType::Size => "a size",
                    FieldType::Real => "a number",
                    FieldType::Bool => "`true` or `false`",
                    FieldType::Text => "a text",
                    FieldType::Config(_) => "a configuration",
                };
                let message = format!("`{name}` takes {wanted}");
                // With a `config.json` the value is not in the text; the code says where to look.
                let code = if self.json.is_some() { "E0406" } else { "E0405" };
                let d =
                    Diagnostic::error(code, message, place, format!("this is {}", kind(&value)));
                self.sink.push(match place == field.span {
                    true => d,
                    false => d.label(field.span, "the field is declared here"),
                });
                None
            }
        }
    }

    fn nested(
        &mut self,
        ty: &ast::Name,
        given: &Expr,
        so_far: &Config,
        scope: usize,
    ) -> Option<Setting> {
        let ExprKind::Call { function, args, .. } = &given.kind else {
            let message = format!("this field takes `{}(…)`", ty.text);
            return self.fail("E0405", message, given.span, "not a configuration");
        };
        let ExprKind::Name(name) = &function.kind else {
            return self.fail("E0405", "a configuration is named here".into(), given.span, "here");
        };
        let item = self.lookup(scope, name)?;
        if self.program.find(so_far.item.module, ty.text) != Some(item) {
            let message = format!("this field takes `{}(…)`", ty.text);
            return self.fail("E0405", message, name.span, "this is another configuration");
        }
        let mut bindings = Vec::new();
        for arg in args {
            match &arg.name {
                Some(n) => bindings.push((n, &arg.value)),
                None => {
                    let message = "fields are given by name".to_string();
                    return self.fail("E0208", message, arg.value.span, "which field is this?");
                }
            }
        }
        self.config(item, &bindings, scope, given.span).map(Setting::Config)
    }

    fn lookup(&mut self, module: usize, name: &ast::Name) -> Option<ItemRef> {
        match self.program.find(module, name.text) {
            Some(item) => Some(item),
            None => {
                let message = format!("there is no `{}`", name.text);
                let d =
                    Diagnostic::error("E0201", message, name.span, "not defined or imported here");
                let known = self.program.names(module).into_iter().map(|(name, _)| name);
                let near = nearest(&name.text, known);
                self.sink.push(match (near, standard_home(self.program, &name.text)) {
                    (Some(near), _) => d.help(format!("write `{near}`")),
                    (None, Some(home)) => d.help(format!("import it: `use {home}.{}`", name.text)),
                    _ => d,
                });
                None
            }
        }
    }

    fn made_up(&mut self, ty: &FieldType) -> Setting {
        match ty {
            FieldType::Size => {
                self.handed += 1;
                Setting::Size(Size::number(made_up_size(self.handed as usize - 1)))
            }
            FieldType::Bool => Setting::Bool(false),
            FieldType::Text => Setting::Text(String::new()),
            FieldType::Real | FieldType::Config(_) => Setting::Real(1.0),
        }
    }

    /// Outer None: reported. Inner None: absent.
    pub(crate) fn eval(&mut self, e: &Expr, so_far: &Config) -> Option<Partial> {
        match &e.kind {
            ExprKind::Number(text) => Some(Some(self.number(text, e.span)?)),
            ExprKind::Text(t) => Some(Some(Setting::Text(t.clone()))),
            ExprKind::Bool(b) => Some(Some(Setting::Bool(*b))),
            ExprKind::Name(n) => match so_far.fields.get(&n.text) {
                Some(setting) => Some(Some(setting.clone())),
                None => {
                    let message = format!("there is no field `{}` above", n.text);
                    let d = Diagnostic::error("E0201", message, n.span, "unknown here");
                    let known = so_far.fields.keys();
                    self.sink.push(match nearest(&n.text, known) {
                        Some(near) => d.help(format!("write `{near}`")),
                        None => d,
                    });
                    None
                }
            },
            ExprKind::Infinity => Some(Some(Setting::Real(f64::INFINITY))),
            ExprKind::Unary(UnaryOp::Neg, inner) => match self.eval(inner, so_far)? {
                Some(Setting::Real(x)) => Some(Some(Setting::Real(-x))),
                Some(Setting::Size(s)) => Some(Some(Setting::Real(-s.as_f64()))),
                None => Some(None),
                Some(_) => self.fail("E0405", "a number is needed".into(), e.span, "negated here"),
            },
            ExprKind::Else(a, b) => match self.eval(a, so_far)? {
                None => self.eval(b, so_far),
                some => Some(some),
            },
            ExprKind::Binary(op, a, b) => {
                let (x, y) = (self.eval(a, so_far)?, self.eval(b, so_far)?);
                let (Some(x), Some(y)) = (x, y) else { return Some(None) };
                self.binary(*op, x, y, e.span).map(Some)
            }
            ExprKind::Call { function, args, .. } => match (&function.kind, args.as_slice()) {
                (ExprKind::Name(n), [arg]) if n.text == "from" => match &arg.value.kind {
                    ExprKind::Text(path) => self.json_value(path, arg.value.span),
                    _ => self.fail("E0405", "`from` takes a text".into(), arg.value.span, "here"),
                },
                _ => {
                    let message = "no such function here".to_string();
                    self.fail("E0201", message, e.span, "only `from(\"…\")`")
                }
            },
            _ => self.fail("E0405", "a field takes a plain value".into(), e.span, "this is none"),
        }
    }

    fn number(&mut self, text: &str, at: Span) -> Option<Setting> {
        if let Ok(n) = text.parse::<u64>() {
            return Some(Setting::Size(Size::number(n)));
        }
        match text.parse::<f64>() {
            Ok(x) if x.is_finite() => Some(Setting::Real(x)),
            _ => self.fail("E0307", format!("`{text}` is out of range"), at, "too large"),
        }
    }

    fn binary(&mut self, op: BinaryOp, x: Setting, y: Setting, at: Span) -> Option<Setting> {
        if let (BinaryOp::Div, Setting::Size(zero)) = (op, &y)
            && zero.value() == Some(0)
        {
            return self.fail("E0307", "a division by zero".into(), at, "the right side is 0");
        }
        let number = |s: &Setting| match s {
            Setting::Size(s) => Some(s.as_f64()),
            Setting::Real(x) => Some(*x),
            _ => None,
        };
        let result = match (op, &x, &y) {
            (BinaryOp::And, Setting::Bool(a), Setting::Bool(b)) => Some(Setting::Bool(*a && *b)),
            (BinaryOp::Or, Setting::Bool(a), Setting::Bool(b)) => Some(Setting::Bool(*a || *b)),
            (BinaryOp::Eq, Setting::Text(a), Setting::Text(b)) => Some(Setting::Bool(a == b)),
            (BinaryOp::Ne, Setting::Text(a), Setting::Text(b)) => Some(Setting::Bool(a != b)),
            (BinaryOp::Eq, Setting::Bool(a), Setting::Bool(b)) => Some(Setting::Bool(a == b)),
            (BinaryOp::Ne, Setting::Bool(a), Setting::Bool(b)) => Some(Setting::Bool(a != b)),
            (_, Setting::Size(a), Setting::Size(b)) => a.combine(op, b).map(Setting::Size),
            _ => None,
        };
        let result = result.or_else(|| arithmetic(op, number(&x)?, number(&y)?));
        match result {
            Some(value) => Some(value),
            None => {
                let message = "the two sides of an operator do not go together".to_string();
                let here = format!("{} and {}", kind(&x), kind(&y));
                self.fail("E0405", message, at, &here)
            }
        }
    }

    fn json_value(&mut self, path: &str, at: Span) -> Option<Partial> {
        let Some(root) = self.json else { return Some(None) };
        let mut value = root;
        for key in path.split('.') {
            match value.get(key) {
                Some(inner) => value = inner,
                None if value.is_object() || value.is_null() => return Some(None),
                None => {
                    let message = format!("`{path}` in config.json lies in something else");
                    return self.fail("E0406", message, at, &format!("`{key}` is looked for"));
                }
            }
        }
        self.plain(value, path, at)
    }

    /// What a `config.json` that this compiler wrote says of the field itself.
    fn own(&self, name: &str) -> Option<&'a serde_json::Value> {
        own_value(self.json?, &self.path, name)
    }

    fn plain(&mut self, value: &serde_json::Value, path: &str, at: Span) -> Option<Partial> {
        match value {
            serde_json::Value::Null => Some(None),
            serde_json::Value::Bool(b) => Some(Some(Setting::Bool(*b))),
            serde_json::Value::String(s) => Some(Some(Setting::Text(s.clone()))),
            serde_json::Value::Number(n) => Some(Some(match n.as_u64() {
                Some(whole) => Setting::Size(Size::number(whole)),
                None => Setting::Real(n.as_f64().unwrap_or(f64::NAN)),
            })),
            _ => {
                let message = format!("`{path}` in config.json is no plain value");
                self.fail("E0406", message, at, "read here")
            }
        }
    }
}

/// The number of the n-th size of a sample. Sizes are compared by their symbols, so that numbers
/// may agree; powers of two that fall let most divisions leave no remainder.
pub fn made_up_size(n: usize) -> u64 {
    4 << 6usize.saturating_sub(n)
}

/// The number of elements that a real stands for. Products of fractions that a text holds in
/// decimals, such as 0.29 · 100, miss their whole number by a few roundings of 10⁻¹⁶.
fn whole(x: f64) -> Option<u64> {
    let n = x.round();
    let near = (x - n).abs() <= 1e-9 * n.abs();
    (near && (1.0..2_147_483_648.0).contains(&n)).then_some(n as u64)
}

fn kind(value: &Setting) -> &'static str {
    match value {
        Setting::Size(_) => "a size",
        Setting::Real(_) => "a number with a fraction",
        Setting::Bool(_) => "a truth value",
        Setting::Text(_) => "a text",
        Setting::Config(_) => "a configuration",
    }
}

/// Comparisons and arithmetic on numbers.
pub fn arithmetic(op: BinaryOp, a: f64, b: f64) -> Option<Setting> {
    let real = |x| Some(Setting::Real(x));
    let truth = |x| Some(Setting::Bool(x));
    match op {
        BinaryOp::Add => real(a + b),
        BinaryOp::Sub => real(a - b),
        BinaryOp::Mul => real(a * b),
        BinaryOp::Div => real(a / b),
        BinaryOp::Eq => truth(a == b),
        BinaryOp::Ne => truth(a != b),
        BinaryOp::Lt => truth(a < b),
        BinaryOp::Le => truth(a <= b),
        BinaryOp::Gt => truth(a > b),
        BinaryOp::Ge => truth(a >= b),
        BinaryOp::And | BinaryOp::Or => None,
    }
}
