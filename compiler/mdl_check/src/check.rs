//! Checks a whole program: every preset's configuration and assertions, every model with every
//! preset.

use crate::block::block_decl;
use crate::config::{Config, Setting, Source, arithmetic, bind};
use crate::entry::{EntryOptions, ModelRef, find_model, params, wanted_entry, weights};
use crate::names::check_names;
use crate::nearest::nearest;
use crate::program::{ItemRef, Program, item_name};
use crate::sample::Items;
use crate::work::{MAX_STEPS, Work};
use mdl_syntax::ast::{Arg, ArgType, Expr, ExprKind, Item, ItemKind, Name, Preset};
use mdl_syntax::diag::{Diagnostic, Label, Sink};
use mdl_syntax::parallel;
use mdl_syntax::span::Span;
use std::collections::BTreeSet;
use std::rc::Rc;

/// Names of the root module's presets, in order.
pub fn presets(program: &Program) -> Vec<String> {
    preset_items(program).into_iter().map(|(_, p)| p.name.text.to_string()).collect()
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
    let (item, preset) = preset_items(program).into_iter().find(|(_, p)| *p.name.text == *name)?;
    let config = program.find(item.module, preset.config.text).or_else(|| {
        unknown_config(program, item.module, &preset.config, sink);
        None
    })?;
    let source = Source::Preset(item.module, &preset.bindings);
    bind(program, config, &source, preset.name.span, sink)
}

/// Everything that can be said about the program without running it.
pub fn check(program: &Program, sink: &mut Sink) {
    check_names(program, sink);
    if !sink.has_errors() && !nothing_wrong(program) {
        // With a memo it is only known that something is wrong.
        expand(program, sink);
    }
}

/// What is said of names that are right, where everything is expanded however often it is called.
pub fn expand(program: &Program, sink: &mut Sink) {
    let mut work = Work::default();
    let model = walk_model(program, sink, &mut work);
    // What no preset's model has come by is checked on its own, with made-up sizes.
    Items::of(program, model.as_ref()).check(program.root_items(), None, (sink, &mut work));
}

/// From how many items on a module is checked in portions, and how many are in each.
const MANY: usize = 256;
const PORTION: usize = 64;

/// Has nobody anything to say? What an item reaches depends on those before it, so in a portion
/// all is looked at alone but what the model has reached: at least what `expand` looks at.
fn nothing_wrong(program: &Program) -> bool {
    let (mut sink, mut work) = (Sink::default(), Work::with_memo());
    let model = walk_model(program, &mut sink, &mut work);
    let own = Items::of(program, model.as_ref());
    let items: Vec<(ItemRef, &Item)> = program.root_items().collect();
    if items.len() < MANY {
        own.check(items.into_iter(), None, (&mut sink, &mut work));
        return sink.diagnostics.is_empty();
    }
    let portions: Vec<&[(ItemRef, &Item)]> = items.chunks(PORTION).collect();
    let (before, reached) = (work.steps(), work.reached);
    let clean = parallel::map(portions.len(), Work::with_memo, |work, at| {
        let (mut sink, before) = (Sink::default(), work.steps());
        own.check(portions[at].iter().copied(), Some(&reached), (&mut sink, work));
        sink.diagnostics.is_empty().then(|| work.steps() - before)
    });
    // All of it together has to be little enough.
    let steps: Option<usize> = clean.into_iter().sum();
    sink.diagnostics.is_empty() && steps.is_some_and(|steps| before + steps <= MAX_STEPS)
}

/// Checks the module's model with every preset.
fn walk_model(program: &Program, sink: &mut Sink, work: &mut Work) -> Option<ModelRef> {
    let model = declared_model(program, sink);
    if let Some(model) = &model {
        check_presets(program, model, (sink, work));
    } else {
        for (_, preset) in preset_items(program) {
            if let Some(config) = bind_preset(program, &preset.name.text, sink) {
                check_assertions(None, &config, preset, sink);
            }
        }
    }
    model
}

/// The root module's first model, if its one argument is a configuration.
fn declared_model(program: &Program, sink: &mut Sink) -> Option<ModelRef> {
    let (item, decl) = program.root_items().find_map(|(item, it)| match &it.kind {
        ItemKind::Model(decl) => Some((item, decl)),
        _ => None,
    })?;
    let ([arg], []) = (decl.args.as_slice(), decl.axes.as_slice()) else {
        let message = format!("model `{}` takes one argument, its configuration", decl.name.text);
        let d = Diagnostic::error("E0208", message, decl.name.span, "declared with others");
        sink.push(d.help(format!("write `model {}(c: Config)`", decl.name.text)));
        return None;
    };
    let ArgType::Config(name) = &arg.ty else {
        let message = format!("model `{}` takes a configuration", decl.name.text);
        sink.push(Diagnostic::error("E0405", message, arg.name.span, "this is another kind"));
        return None;
    };
    let found = program.find(item.module, name.text);
    match found.map(|c| &program.item(c).kind) {
        Some(ItemKind::Config(_)) => find_model(program),
        _ => {
            unknown_config(program, item.module, name, sink);
            None
        }
    }
}

fn unknown_config(program: &Program, module: usize, name: &Name, sink: &mut Sink) {
    let names = program.names(module).into_iter();
    let is_config = |item: &ItemRef| matches!(program.item(*item).kind, ItemKind::Config(_));
    let known = names.filter(|(_, item)| is_config(item)).map(|(name, _)| name);
    let message = format!("there is no configuration `{}`", name.text);
    let d = Diagnostic::error("E0201", message, name.span, "not defined or imported here");
    sink.push(match nearest(&name.text, known) {
        Some(near) => d.help(format!("write `{near}`")),
        None => d,
    });
}

fn check_presets(program: &Program, model: &ModelRef, (sink, work): (&mut Sink, &mut Work)) {
    let presets = preset_items(program);
    let mut fits = true;
    let mut tried = false;
    for (_, preset) in &presets {
        let Some(config) = bind_preset(program, &preset.name.text, sink) else { continue };
        // A model that fails with one preset fails with the next one in the same way.
        if config.item != model.config || !fits {
            continue;
        }
        let before = sink.diagnostics.len();
        tried = true;
        fits = check_model(program, model, &config, (sink, work));
        for diagnostic in &mut sink.diagnostics[before..] {
            if matches!(diagnostic.code, "E0302" | "E0304" | "E0307" | "E0407") {
                let text = "the numbers are those of this preset".to_string();
                diagnostic.labels.push(Label { span: preset.name.span, text });
            }
        }
        if fits {
            let params = params(program, model, &config, sink);
            let elements = params.iter().flatten().map(|(p, _)| p.ty.elements());
            let count = elements.fold(0, u64::saturating_add);
            check_assertions(Some(count), &config, preset, sink);
        }
    }
    let at = item_name(program.item(model.item)).map_or(Span::default(), |n| n.span);
    if !tried
        && presets.is_empty()
        && let Some(config) = bind(program, model.config, &Source::Sample, at, sink)
    {
        check_model(program, model, &config, (sink, work));
    }
}

/// Walks both entries, with documents and without; gives whether that worked.
fn check_model(
    program: &Program,
    model: &ModelRef,
    config: &Rc<Config>,
    (sink, work): (&mut Sink, &mut Work),
) -> bool {
    let mut used = BTreeSet::new();
    let mut built = true;
    // Training has documents, and generation has none.
    for documents in [true, false] {
        let sizes = vec![("B".into(), 2), ("T".into(), 3)];
        let options = EntryOptions { sizes, documents, auxiliary: true };
        for entry in ["logits", "loss"] {
            let fits = check_entry(program, model, entry, sink);
            match weights(program, model, config, entry, &options, (sink, work)) {
                Some(weights) => {
                    used.extend(weights);
                    built &= fits;
                }
                None => built = false,
            }
        }
        if !built {
            return false;
        }
    }
    let all = params(program, model, config, sink).unwrap_or_default();
    for (i, (param, span)) in all.iter().enumerate() {
        if !used.contains(&i) {
            unused_param(&param.name, *span, sink);
        }
    }
    true
}

pub fn unused_param(name: &str, span: Span, sink: &mut Sink) {
    let message = format!("parameter `{name}` is never used");
    let d = Diagnostic::error("E0206", message, span, "no result depends on it");
    sink.push(d.help("use it in `forward`, or remove it"));
}

/// The run gives an entry what it declares, so it has to declare what a run has.
fn check_entry(program: &Program, model: &ModelRef, entry: &str, sink: &mut Sink) -> bool {
    let Some(decl) = block_decl(program, model.item) else { return false };
    // The walk says that it is missing.
    let Some(method) = decl.methods.iter().find(|m| *m.name.text == *entry) else { return true };
    let names: &[&str] = if entry == "loss" { &["tokens", "targets"] } else { &["tokens"] };
    let is_ids = |arg: &Arg| match &arg.ty {
        ArgType::Tensor(ty) => {
            let dtype = ty.dtype.as_ref().map(|d| d.text.as_str());
            let axes: Vec<&str> = ty.axes.iter().map(|a| a.name.text.as_str()).collect();
            matches!(dtype, Some("ids" | "i32")) && !ty.open && axes == ["B", "T"]
        }
        _ => false,
    };
    let wrong = method
        .args
        .iter()
        .enumerate()
        .find(|(i, arg)| names.get(*i) != Some(&arg.name.text.as_str()) || !is_ids(arg));
    let (at, here) = match wrong {
        Some((_, arg)) => (arg.name.span, "a run does not have this"),
        None if method.args.len() < names.len() => (method.name.span, "an argument is missing"),
        None if !method.axes.is_empty() => (method.axes[0].span, "a run does not name axes"),
        None => return true,
    };
    let message = format!("`{entry}` of a model has other arguments than a run gives");
    let d = Diagnostic::error("E0413", message, at, here);
    sink.push(d.help(format!("declare `{}`", wanted_entry(entry))));
    false
}

fn check_assertions(count: Option<u64>, config: &Config, preset: &Preset, sink: &mut Sink) {
    for assertion in &preset.asserts {
        let ExprKind::Binary(op, a, b) = &assertion.kind else {
            let message = "an assertion compares two numbers";
            sink.push(Diagnostic::error("E0405", message, assertion.span, "this does not"));
            continue;
        };
        let (Some(x), Some(y)) = (number(a, config, count), number(b, config, count)) else {
            let message = "an assertion is about `params` and the numbers of its preset";
            let at = if number(a, config, count).is_none() { a.span } else { b.span };
            sink.push(Diagnostic::error("E0405", message, at, "this is neither"));
            continue;
        };
        let holds = arithmetic(*op, x, y);
        if !matches!(holds, Some(Setting::Bool(_))) {
            let message = "an assertion compares two numbers";
            sink.push(Diagnostic::error("E0405", message, assertion.span, "this does not"));
        }
        if let Some(Setting::Bool(false)) = holds {
            let message = format!("an assertion of preset `{}` fails", preset.name.text);
            sink.push(
                Diagnostic::error("E0404", message, a.span, format!("this is {x}"))
                    .label(b.span, format!("this is {y}")),
            );
        }
    }
}

fn number(e: &Expr, config: &Config, count: Option<u64>) -> Option<f64> {
    match &e.kind {
        ExprKind::Number(text) => text.parse().ok(),
        ExprKind::Name(n) if n.text == "params" => count.map(|n| n as f64),
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
