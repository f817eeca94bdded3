//! Placeholder.
use crate::{Diagnostic, SourceMap};
pub fn render(diagnostic: &Diagnostic, _sources: &SourceMap, _color: bool) -> String { { let _ = diagnostic; String::new() } }
