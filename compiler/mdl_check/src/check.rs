//! Checks a whole program: every preset's configuration and assertions, every model with every
//! preset.

use crate::config::{Config, Setting, Source, arithmetic, bind};
use crate::entry::{EntryOptions, ModelRef, build, find_model, params};
use crate::program::{ItemRef, Program};
use mdl_syntax::ast::{Expr, ExprKind, ItemKind, Preset};
use mdl_syntax::diag::{Diagnostic, Sink};
use mdl_syntax::span::Span;
use std::rc::Rc;

/// Names of the root module's presets, in order.
pub fn presets(program: &Program) -> Vec<String> {
    preset_items(program).into_iter().map(|(_, p)| p.name.text.clone()).collect()
}

fn preset_items(program: &Program) -> Vec<(ItemRef, &Preset)> {
    program
        .root_items()
        .filter_map(|(item, it)| match &it.kind {
            ItemKind::Preset(p) => Some((item, p)),
            _ => None,
        })
        .collect()
}

/// Binds a preset by name; problems are reported.
pub fn bind_preset(program: &Program, name: &str, sink: &mut Sink) -> Option<Rc<Config>> {
    let (item, preset) = preset_items(program).into_iter().find(|(_, p)| p.name.text == name)?;
    let config = program.find(item.module, &preset.config.text).or_else(|| {
        let message = format!("there is no configuration `{}`", preset.config.text);
        let at = preset.config.span;
        sink.push(Diagnostic::error("E0201", message, at, "not defined or imported here"));
        None
    })?;
    let source = Source::Preset(item.module, &preset.bindings);
    bind(program, config, &source, preset.name.span, sink)
}

/// Everything that can be said about the program without running it.
pub fn check(program: &Program, sink: &mut Sink) {
    let Some(model) = find_model(program) else {
        check_loose(program, sink);
        return;
    };
    let presets = preset_items(program);
    if presets.is_empty()
        && let Some(config) = bind(program, model.config, &Source::Sample, Span::default(), sink)
    {
        check_model(program, &model, &config, sink);
    }
    for (_, preset) in &presets {
        if let Some(config) = bind_preset(program, &preset.name.text, sink) {
            check_model(program, &model, &config, sink);
            check_assertions(program, &model, &config, preset, sink);
        }
    }
}

/// A module without a model, such as one of the standard library: its configurations are bound.
fn check_loose(program: &Program, sink: &mut Sink) {
    for (item, it) in program.root_items() {
        if matches!(it.kind, ItemKind::Config(_)) {
            bind(program, item, &Source::Sample, it.span, sink);
        }
    }
}

fn check_model(program: &Program, model: &ModelRef, config: &Rc<Config>, sink: &mut Sink) {
    let options = EntryOptions { sizes: vec![("B".into(), 2), ("T".into(), 3)], documents: true };
    let mut used = std::collections::BTreeSet::new();
    let mut built = true;
    for entry in ["logits", "loss"] {
        match build(program, model, config, entry, &options, sink) {
            Some(graph) => used.extend(graph.inputs.into_iter().filter_map(|r| match r {
                mdl_ir::graph::InputRole::Param(p) => Some(p),
                _ => None,
            })),
            None => built = false,
        }
    }
    if !built {
        return;
    }
    let all = params(program, model, config, sink).unwrap_or_default();
    for (i, (param, span)) in all.iter().enumerate() {
        if !used.contains(&i) {
            let message = format!("parameter `{}` is never used", param.name);
            sink.push(
                Diagnostic::error("E0206", message, *span, "declared here")
                    .help("use it in `forward`, or remove it"),
            );
        }
    }
}

fn check_assertions(
    program: &Program,
    model: &ModelRef,
    config: &Rc<Config>,
    preset: &Preset,
    sink: &mut Sink,
) {
    let Some(params) = params(program, model, config, sink) else { return };
    let count: u64 = params.iter().map(|(p, _)| p.ty.elements()).sum();
    for assertion in &preset.asserts {
        let ExprKind::Binary(op, a, b) = &assertion.kind else {
            let message = "an assertion compares two numbers";
            sink.push(Diagnostic::error("E0405", message, assertion.span, "this does not"));
            continue;
        };
        let (Some(x), Some(y)) = (number(a, config, count), number(b, config, count)) else {
            let message = "an assertion is about `params` and the sizes of its preset";
            sink.push(Diagnostic::error("E0405", message, assertion.span, "not known here"));
            continue;
        };
        if let Some(Setting::Bool(false)) = arithmetic(*op, x, y) {
            let message = format!("an assertion of preset `{}` fails", preset.name.text);
            sink.push(
                Diagnostic::error("E0404", message, assertion.span, "this is false")
                    .label(a.span, format!("{x} here"))
                    .label(b.span, format!("{y} here")),
            );
        }
    }
}

fn number(e: &Expr, config: &Config, count: u64) -> Option<f64> {
    match &e.kind {
        ExprKind::Number(text) => text.parse().ok(),
        ExprKind::Name(n) if n.text == "params" => Some(count as f64),
        ExprKind::Name(n) => match config.fields.get(&n.text)? {
            Setting::Size(s) => Some(s.as_f64()),
            Setting::Real(x) => Some(*x),
            _ => None,
        },
        ExprKind::Binary(op, a, b) => {
            match arithmetic(*op, number(a, config, count)?, number(b, config, count)?)? {
                Setting::Real(x) => Some(x),
                _ => None,
            }
        }
        _ => None,
    }
}
