//! A bound configuration with some values of its `config.json` replaced.
//!
//! What a value means is in the model file alone: its clauses `from("…")` bind it, so a flag that
//! names a key of `config.json` works with every model that reads this key.

use crate::config::{Config, Setting, Source, bind};
use crate::config_json::{insert, paths, remove, to_json};
use crate::program::{ItemRef, Program};
use mdl_syntax::ast::{FieldType, ItemKind};
use mdl_syntax::diag::Sink;
use serde_json::{Map, Value};
use std::rc::Rc;

/// A value of `config.json` that a configuration reads.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath {
    /// Keys with dots between them, `rope_scaling.factor`.
    pub path: String,
    /// The first field that reads it.
    pub field: String,
    /// What that field is; never a configuration.
    pub kind: FieldType,
}

/// A field that two configurations bind to different values.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// With the fields that it is within: `rope.base`.
    pub field: String,
    pub value: Setting,
    /// The other configuration's value.
    pub instead_of: Setting,
}

/// What the configuration and those within it read, once each, in the order in which a binding asks
/// for it.
pub fn json_paths(program: &Program, item: ItemRef) -> Vec<JsonPath> {
    let mut found = Vec::new();
    enter_paths(program, item, &mut Vec::new(), &mut found);
    found
}

fn enter_paths(
    program: &Program,
    item: ItemRef,
    seen: &mut Vec<ItemRef>,
    found: &mut Vec<JsonPath>,
) {
    let ItemKind::Config(decl) = &program.item(item).kind else { return };
    if seen.contains(&item) {
        return;
    }
    seen.push(item);
    for field in &decl.fields {
        if let FieldType::Config(name) = &field.ty {
            if let Some(inner) = program.find(item.module, name.text) {
                enter_paths(program, inner, seen, found);
            }
            continue;
        }
        let mut enter = |path: &str| {
            if !found.iter().any(|p| p.path == path) {
                let (field, kind) = (field.name.text.to_string(), field.ty.clone());
                found.push(JsonPath { path: path.to_string(), field, kind });
            }
        };
        field.default.iter().for_each(|e| paths(e, &mut enter));
    }
}

/// The fewest values of `config.json` that give this configuration back: what follows from another
/// value is left out, so that it follows from a replaced one too. A head's size, for one, stays
/// `hidden / heads` where it was that. None where no `config.json` gives the configuration back.
pub fn least_json(program: &Program, config: &Rc<Config>) -> Option<Map<String, Value>> {
    let mut json = to_json(program, config, None);
    let gives_it_back = |json: &Map<String, Value>| {
        let json = Value::Object(json.clone());
        let at = program.item(config.item).span;
        let bound = bind(program, config.item, &Source::Json(&json), at, &mut Sink::default());
        bound.is_some_and(|bound| differences(&bound, config).is_empty())
    };
    if !gives_it_back(&json) {
        return None;
    }
    for known in json_paths(program, config.item) {
        let mut without = json.clone();
        remove(&mut without, &known.path);
        if gives_it_back(&without) {
            json = without;
        }
    }
    Some(json)
}

/// The configuration `item` bound by `json` with `values` in place of what it has. Problems are
/// reported as those of a `config.json`.
pub fn overridden(
    program: &Program,
    item: ItemRef,
    mut json: Map<String, Value>,
    values: &[(String, Value)],
    sink: &mut Sink,
) -> Option<Rc<Config>> {
    for (path, value) in values {
        insert(&mut json, path, value.clone());
    }
    let at = program.item(item).span;
    bind(program, item, &Source::Json(&Value::Object(json)), at, sink)
}

/// The fields in which `config` differs from another binding of the same configuration.
pub fn differences(config: &Config, other: &Config) -> Vec<Difference> {
    let mut found = Vec::new();
    for (name, value) in &config.fields {
        match (value, other.fields.get(name)) {
            (Setting::Config(a), Some(Setting::Config(b))) => {
                let within = differences(a, b).into_iter();
                found.extend(
                    within.map(|d| Difference { field: format!("{name}.{}", d.field), ..d }),
                );
            }
            (value, Some(instead_of)) if value != instead_of => found.push(Difference {
                field: name.to_string(),
                value: value.clone(),
                instead_of: instead_of.clone(),
            }),
            _ => {}
        }
    }
    found
}
