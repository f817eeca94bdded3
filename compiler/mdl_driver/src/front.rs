//! The front end on one model file: load, check, bind a configuration, build an entry.

use crate::embedded;
use mdl_check::check::{bind_preset, check, presets};
use mdl_check::config::{Config, Source, bind};
use mdl_check::config_json::reads;
use mdl_check::entry::{self, EntryOptions, ModelRef, find_model};
use mdl_check::program::{Program, Resolve, load};
use mdl_ir::graph::{Graph, Param};
use mdl_syntax::diag::{Diagnostic, Sink};
use mdl_syntax::source::SourceMap;
use mdl_syntax::span::Span;
use std::collections::BTreeSet;
use std::rc::Rc;

/// A loaded model file with all that it imports.
#[derive(Debug)]
pub struct Front {
    pub sources: SourceMap,
    pub program: Program,
    pub sink: Sink,
}

/// Standard modules that the compiler itself asks for.
const ALSO: &[&[&str]] = &[&["std", "optim"]];

impl Front {
    /// Loads a module; imports are embedded modules, or what `resolve` finds beside the file.
    pub fn load(name: &str, text: &str, resolve: &Resolve<'_>) -> Front {
        let mut sources = SourceMap::default();
        let mut sink = Sink::default();
        let both = |path: &[String]| match path.first().map(String::as_str) {
            Some("std") => embedded::module(path),
            _ => resolve(path).or_else(|| embedded::module(path)),
        };
        let program = load(name, text, ALSO, &mut sources, &both, &mut sink);
        Front { sources, program, sink }
    }

    pub fn failed(&self) -> bool {
        self.sink.has_errors()
    }

    pub fn check(&mut self) {
        if !self.failed() {
            check(&self.program, &mut self.sink);
        }
    }

    pub fn model(&mut self) -> Option<ModelRef> {
        let model = find_model(&self.program);
        if model.is_none() {
            let message = "this file has no model";
            let span = Span::default();
            self.sink.push(Diagnostic::error("E0410", message, span, "a model is needed here"));
        }
        model
    }

    pub fn presets(&self) -> Vec<String> {
        presets(&self.program)
    }

    pub fn preset(&mut self, name: &str) -> Option<Rc<Config>> {
        let known = self.presets();
        if !known.iter().any(|p| p == name) {
            let message = format!("there is no preset `{name}`");
            let here = "the presets of this file are looked for here";
            self.sink.push(
                Diagnostic::error("E0408", message, self.root_span(), here)
                    .help(format!("use one of: {}", known.join(", "))),
            );
            return None;
        }
        bind_preset(&self.program, name, &mut self.sink)
    }

    fn root_span(&self) -> Span {
        self.program.root_items().next().map_or(Span::default(), |(_, item)| item.span)
    }

    /// Binds the model's configuration from a `config.json`.
    pub fn config_json(&mut self, json: &serde_json::Value) -> Option<Rc<Config>> {
        let model = self.model()?;
        let at = self.program.item(model.config).span;
        bind(&self.program, model.config, &Source::Json(json), at, &mut self.sink)
    }

    /// Everything that the model's configuration reads of a `config.json`, as paths: `a.b`.
    pub fn config_reads(&mut self) -> BTreeSet<String> {
        let model = self.model();
        model.map_or_else(BTreeSet::new, |model| reads(&self.program, model.config))
    }

    /// The model's parameters, without a graph.
    pub fn params(&mut self, config: &Rc<Config>) -> Option<Vec<Param>> {
        let model = self.model()?;
        let params = entry::params(&self.program, &model, config, &mut self.sink)?;
        Some(params.into_iter().map(|(param, _)| param).collect())
    }

    /// Imported modules outside the standard library: path, as in `a.b`, and text.
    pub fn imports(&self) -> Vec<(String, String)> {
        let imported = &self.program.modules[..self.program.root()];
        let own = imported.iter().filter(|module| !module.path.starts_with("std."));
        own.filter_map(|module| {
            let text = self.sources.text(module.ast.items.first()?.span.file);
            Some((module.path.clone(), text.to_owned()))
        })
        .collect()
    }

    pub fn build(
        &mut self,
        config: &Rc<Config>,
        entry: &str,
        options: &EntryOptions,
    ) -> Option<Graph> {
        let model = self.model()?;
        entry::build(&self.program, &model, config, entry, options, &mut self.sink)
    }

    /// All diagnostics as text.
    pub fn report(&self, color: bool) -> String {
        let render = |d| mdl_syntax::render(d, &self.sources, color);
        self.sink.diagnostics.iter().map(render).collect::<Vec<_>>().join("\n")
    }
}
