//! Diagnostics as data, and the sink that collects them. Only `render` knows ariadne.

use crate::span::Span;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Error,
    Warning,
}

/// A place and what it has to do with the message.
#[derive(Clone, Debug, PartialEq)]
pub struct Label {
    pub span: Span,
    pub text: String,
}

/// One message: a code of `codes::CODES`, a lower-case clause without a full stop, a primary
/// label, others, and at most one help, which is an edit that the user can make.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagnostic {
    pub code: &'static str,
    pub severity: Severity,
    pub message: String,
    pub labels: Vec<Label>,
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error at `span`; `here` says what is wrong at this very place.
    pub fn error(
        code: &'static str,
        message: impl Into<String>,
        span: Span,
        here: impl Into<String>,
    ) -> Self {
        Diagnostic {
            code,
            severity: Severity::Error,
            message: message.into(),
            labels: vec![Label { span, text: here.into() }],
            help: None,
        }
    }

    pub fn warning(
        code: &'static str,
        message: impl Into<String>,
        span: Span,
        here: impl Into<String>,
    ) -> Self {
        Diagnostic { severity: Severity::Warning, ..Self::error(code, message, span, here) }
    }

    /// Adds a place where another fact comes from.
    pub fn label(mut self, span: Span, text: impl Into<String>) -> Self {
        self.labels.push(Label { span, text: text.into() });
        self
    }

    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }
}

/// At most so many errors are kept, and so many warnings, which may not hide an error; a broken
/// file is not a flood.
pub const MAX_DIAGNOSTICS: usize = 100;

/// Where the front end puts its diagnostics.
#[derive(Clone, Debug, Default)]
pub struct Sink {
    pub diagnostics: Vec<Diagnostic>,
}

impl Sink {
    pub fn push(&mut self, diagnostic: Diagnostic) {
        let repeated = self.diagnostics.contains(&diagnostic);
        if !self.full(diagnostic.severity) && !repeated {
            self.diagnostics.push(diagnostic);
        }
    }

    /// Would one more of these be dropped?
    pub fn full(&self, severity: Severity) -> bool {
        let least = self.diagnostics.len() >= MAX_DIAGNOSTICS;
        let same = |d: &&Diagnostic| d.severity == severity;
        least && self.diagnostics.iter().filter(same).count() >= MAX_DIAGNOSTICS
    }

    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|d| d.severity == Severity::Error)
    }
}
