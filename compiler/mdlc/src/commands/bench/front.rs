//! `mdlc bench front`: lines of source a second through the lexer, the parser and the checker, and
//! what compiling each preset takes before any kernel.

use super::{Args, middle};
use crate::Failure;
use mdl_check::program::item_name;
use mdl_driver::embedded::{MODELS, STDLIB};
use mdl_driver::front::Front;
use mdl_syntax::ast::{Item, ItemKind};
use mdl_syntax::token::Kind;
use mdl_syntax::{FileId, Sink};
use mdl_train::model::{Model, front, source};
use mdl_train::session::executables;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Instant;

/// Copies of the embedded files in the text that is timed: about 2,600 items.
const COPIES: usize = 50;

/// Rows for the stages of the front end, then one for each preset.
pub fn rows(args: &Args) -> Result<Vec<Value>, Failure> {
    let flags = &args.flags;
    flags.note_without_effect(&crate::flags::run::RunFlags::names());
    let presets = presets(args)?;
    let mut rows = stages(&large(COPIES), args.runs)?;
    let (settings, target) = (flags.settings()?, flags.training.target());
    for (file, preset) in presets {
        let mut layers = None;
        let (mut open, mut plan) = (Vec::new(), Vec::new());
        for _ in 0..args.runs.max(1) {
            let start = Instant::now();
            let mut model = Model::open(&file, Some(&preset))?;
            open.push(start.elapsed().as_secs_f64());
            let start = Instant::now();
            executables(&mut model, &settings, target)?;
            plan.push(start.elapsed().as_secs_f64());
            layers = model.size("layers");
        }
        let (open, plan) = (middle(open), middle(plan));
        rows.push(json!({
            "model": file, "preset": preset, "layers": layers, "load_ms": open * 1e3,
            "plan_ms": plan * 1e3, "compile_ms": (open + plan) * 1e3,
        }));
    }
    Ok(rows)
}

pub fn line(row: &Value) -> String {
    let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
    let text = |key: &str| row[key].as_str().unwrap_or("").to_string();
    if row["what"].is_string() {
        let (ms, rate) = (number("ms"), number("lines_per_s"));
        return format!(
            "{:<16} {:>7} lines  {ms:>8.1} ms  {rate:>10.0} lines/s\n",
            text("what"),
            row["lines"]
        );
    }
    let layers = row["layers"].as_u64().map_or(String::new(), |n| format!("{n} layers"));
    format!(
        "{:<10} {:<16} {layers:>10}  {:>6.1} ms, {:.1} of them to load the file\n",
        text("model"),
        text("preset"),
        number("compile_ms"),
        number("load_ms")
    )
}

/// Which presets are compiled: those of --file or of all embedded models, or the one of --preset.
fn presets(args: &Args) -> Result<Vec<(String, String)>, Failure> {
    let files: Vec<String> = match &args.file {
        Some(file) => vec![file.clone()],
        None => MODELS.iter().map(|(name, _)| name.to_string()).collect(),
    };
    let only = args.flags.model.preset.as_deref();
    let mut found = Vec::new();
    for file in files {
        let (name, text) = source(&file)?;
        let all = front(&name, &text).presets().into_iter();
        let wanted = all.filter(|preset| only.is_none_or(|only| only == preset));
        found.extend(wanted.map(|preset| (file.clone(), preset)));
    }
    match (only, found.is_empty()) {
        (Some(only), true) => {
            let message = format!("no model has a preset `{only}`; leave out --preset for all");
            Err(Failure::coded("E0941", message))
        }
        _ => Ok(found),
    }
}

/// The stages on a text of many items. Parsing contains lexing; the last row is both stages as
/// `mdlc check` runs them, with the modules that are imported.
fn stages(text: &str, runs: usize) -> Result<Vec<Value>, Failure> {
    let [mut lex, mut parse, mut check, mut all] = [const { Vec::new() }; 4];
    for _ in 0..runs.max(1) {
        let mut sink = Sink::default();
        let start = Instant::now();
        let tokens = mdl_syntax::lex(FileId(0), text, &mut sink);
        lex.push(start.elapsed().as_secs_f64());
        drop(tokens);
        let start = Instant::now();
        let module = mdl_syntax::parse(FileId(0), text, &mut sink);
        parse.push(start.elapsed().as_secs_f64());
        drop(module);
        let whole = Instant::now();
        let mut front = Front::load("large.mdl", text, &|_| None);
        let start = Instant::now();
        front.check();
        check.push(start.elapsed().as_secs_f64());
        all.push(whole.elapsed().as_secs_f64());
        if front.failed() {
            return Err(Failure(front.report(false)));
        }
    }
    let lines = text.lines().count();
    let rows = [("lex", lex), ("parse", parse), ("check", check), ("parse and check", all)];
    let row = |(what, seconds): (&str, Vec<f64>)| {
        let seconds = middle(seconds);
        json!({
            "what": what, "lines": lines, "ms": seconds * 1e3,
            "lines_per_s": lines as f64 / seconds,
        })
    };
    Ok(rows.map(row).to_vec())
}

/// A module with the items of all embedded files, many times over, each with a name of its own.
/// It has no presets, which need a model, and so its models are blocks; kernels belong to the
/// standard library.
fn large(copies: usize) -> String {
    let mut imports = BTreeSet::new();
    let mut files = Vec::new();
    for (_, text) in MODELS.iter().chain(STDLIB) {
        let module = mdl_syntax::parse(FileId(0), text, &mut Sink::default());
        let mut names = BTreeSet::new();
        let mut body = String::new();
        for item in &module.items {
            match &item.kind {
                ItemKind::Use(u) => {
                    let path: Vec<&str> = u.path.iter().map(|n| &*n.text).collect();
                    let path = path.join(".");
                    imports.extend(u.names.iter().map(|n| format!("use {path}.{}\n", n.text)));
                }
                ItemKind::Preset(_) => {}
                ItemKind::Fn(f) if f.kernel.is_some() => {}
                _ => {
                    names.extend(item_name(item).map(|n| n.text.to_string()));
                    body.push_str(&own_text(item, text));
                }
            }
        }
        files.push((body, names));
    }
    let mut out: String = imports.into_iter().collect();
    for copy in 0..copies {
        for (i, (body, names)) in files.iter().enumerate() {
            rename(body, names, &format!("_{i}_{copy}"), &mut out);
        }
    }
    out
}

/// An item with its comment.
fn own_text(item: &Item, text: &str) -> String {
    let doc: String = item.doc.lines().map(|line| format!("/// {line}\n")).collect();
    let own = &text[item.span.start as usize..item.span.end as usize];
    let own = match item.kind {
        ItemKind::Model(_) => own.replacen("model", "block", 1),
        _ => own.to_string(),
    };
    format!("\n{doc}{own}\n")
}

/// Writes a text to `out` with `ending` behind each of these names.
fn rename(text: &str, names: &BTreeSet<String>, ending: &str, out: &mut String) {
    let mut written = 0;
    for token in mdl_syntax::lex(FileId(0), text, &mut Sink::default()).tokens {
        if token.kind == Kind::Name && names.contains(token.text(text)) {
            out.push_str(&text[written..token.end as usize]);
            out.push_str(ending);
            written = token.end as usize;
        }
    }
    out.push_str(&text[written..]);
}
