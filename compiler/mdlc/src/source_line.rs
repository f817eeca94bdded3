//! The line of a model file that something in a plan comes from.

use mdl_ir::place::Place;
use mdl_syntax::source::SourceMap;
use mdl_syntax::span::FileId;
use serde_json::{Value, json};

/// Where something stands in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceLine<'a> {
    pub file: &'a str,
    pub number: usize,
    pub text: &'a str,
}

impl<'a> SourceLine<'a> {
    /// The line of the model file, or of the module that it imports, where this stands; None for
    /// what no file says, such as a batch's tokens.
    pub fn of(sources: &'a SourceMap, place: Place) -> Option<SourceLine<'a>> {
        if place.end <= place.start {
            return None;
        }
        let file = FileId(place.file);
        let (number, _) = sources.position(file, place.start);
        let range = sources.line_range(file, number);
        let text = sources.text(file).get(range)?.trim();
        Some(SourceLine { file: sources.name(file), number, text })
    }

    pub fn json(&self) -> Value {
        json!({ "file": self.file, "line": self.number, "text": self.text })
    }
}
