//! Diagnostics as text for people; the one place that knows the library that draws them.
//!
//! Only the lines between the first and the last label of a file are given to it, so that a
//! message about a large file costs what a small one costs. Control characters of the source are
//! shown as blanks: a model file must not be able to steer the terminal.

use std::collections::BTreeMap;
use std::ops::Range;

use ariadne::{Cache, Color, Config, IndexType, Label, LabelAttach, Report, ReportKind, Source};

use crate::diag::{Diagnostic, Severity};
use crate::source::SourceMap;
use crate::span::{FileId, Span};

/// The message, the places, at most one help, and where to read more.
pub fn render(diagnostic: &Diagnostic, sources: &SourceMap, color: bool) -> String {
    let (word, paint) = match diagnostic.severity {
        Severity::Error => ("error", "\u{1b}[31m"),
        Severity::Warning => ("warning", "\u{1b}[33m"),
    };
    let (paint, plain) = if color { (paint, "\u{1b}[0m") } else { ("", "") };
    let message = clean(&diagnostic.message);
    let mut out = format!("{paint}{word}[{}]:{plain} {message}\n", diagnostic.code);
    let drawn = picture(diagnostic, sources, color);
    out.push_str(&drawn.unwrap_or_else(|| places(diagnostic, sources)));
    if let Some(help) = &diagnostic.help {
        out.push_str(&format!("  help: {}\n", clean(help)));
    }
    out.push_str(&format!("  see: mdlc explain {}\n", diagnostic.code));
    out
}

/// The labels alone, where the source is too long to be drawn.
fn places(diagnostic: &Diagnostic, sources: &SourceMap) -> String {
    let place = |label: &crate::diag::Label| {
        let (line, column) = sources.position(label.span.file, label.span.start);
        let name = clean(sources.name(label.span.file));
        format!("  {name}:{line}:{column}: {}\n", clean(&label.text))
    };
    diagnostic.labels.iter().map(place).collect()
}

/// The lines of the source with the labels below them.
fn picture(diagnostic: &Diagnostic, sources: &SourceMap, color: bool) -> Option<String> {
    let mut windows = Windows::new(diagnostic, sources)?;
    let config = Config::default()
        .with_index_type(IndexType::Byte)
        .with_label_attach(LabelAttach::Start)
        .with_compact(true)
        .with_color(color);
    let main = windows.place(diagnostic.labels.first()?.span)?;
    let mut report = Report::build(ReportKind::Error, main).with_config(config);
    for (at, label) in diagnostic.labels.iter().enumerate() {
        let Some(place) = windows.place(label.span) else {
            continue;
        };
        let shade = if at == 0 { Color::Red } else { Color::Blue };
        let text = clean(&label.text);
        // From top to bottom, so that the labels of one file are in one frame.
        let order = place.1.start as i32;
        report = report
            .with_label(Label::new(place).with_message(text).with_color(shade).with_order(order));
    }
    let mut bytes = Vec::new();
    report.finish().write(&mut windows, &mut bytes).ok()?;
    let drawn = String::from_utf8(bytes).ok()?;
    // The first line is the message, which is written in our own form; the last closes the frame.
    let lines: Vec<&str> = drawn.lines().skip(1).collect();
    let body = lines.iter().map(|line| line.trim_end()).filter(|line| !line.is_empty());
    Some(body.map(|line| format!("{line}\n")).collect())
}

const MAX_STAND_INS: usize = 200_000;
const MAX_WINDOW_BYTES: usize = 256 << 10;

/// A part of a file that holds all labels in it.
struct Window {
    name: String,
    start: usize,
    /// How many empty lines stand before it.
    lines: usize,
    source: Source<String>,
}

struct Windows(BTreeMap<FileId, Window>);

impl Windows {
    /// Nothing where a window would be so large that drawing it takes long.
    fn new(diagnostic: &Diagnostic, sources: &SourceMap) -> Option<Self> {
        let mut spans: BTreeMap<FileId, Span> = BTreeMap::new();
        for label in &diagnostic.labels {
            let span = spans.entry(label.span.file).or_insert(label.span);
            *span = span.to(label.span);
        }
        let window = |(file, span): (FileId, Span)| {
            let (first, _) = sources.position(file, span.start);
            let (last, _) = sources.position(file, span.end);
            let start = sources.line_range(file, first).start;
            let end = sources.line_range(file, last).end;
            if end - start > MAX_WINDOW_BYTES {
                return None;
            }
            let text = sources.text(file).get(start..end).unwrap_or("");
            // The margin counts lines from the start of the text, so empty ones stand in for what
            // is before the window; in a file with very many, the margin counts from the window.
            let lines = (first - 1).min(MAX_STAND_INS);
            let source = Source::from("\n".repeat(lines) + &blank_controls(text))
                .with_display_line_offset(first - 1 - lines);
            let name = clean(sources.name(file));
            Some((file, Window { name, start, lines, source }))
        };
        spans.into_iter().map(window).collect::<Option<_>>().map(Windows)
    }

    /// A span as bytes of its window.
    fn place(&self, span: Span) -> Option<(FileId, Range<usize>)> {
        let window = self.0.get(&span.file)?;
        let place = |at: u32| (at as usize).saturating_sub(window.start) + window.lines;
        Some((span.file, place(span.start)..place(span.end)))
    }
}

impl Cache<FileId> for &mut Windows {
    type Storage = String;

    fn fetch(&mut self, id: &FileId) -> Result<&Source<String>, impl std::fmt::Debug> {
        self.0.get(id).map(|window| &window.source).ok_or("no such file")
    }

    fn display<'a>(&self, id: &'a FileId) -> Option<impl std::fmt::Display + 'a> {
        self.0.get(id).map(|window| window.name.clone())
    }
}

/// Whether a character could move the cursor or turn the direction of the text.
fn is_control(c: char) -> bool {
    let direction = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}');
    c.is_control() || direction || matches!(c, '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// The text with as many bytes as before, but without control characters.
fn blank_controls(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_control(c) && c != '\n' && c != '\t' {
            out.extend(std::iter::repeat_n(' ', c.len_utf8()));
        } else {
            out.push(c);
        }
    }
    out
}

fn clean(text: &str) -> String {
    if !text.contains(is_control) {
        return text.to_string();
    }
    text.chars().flat_map(|c| escape(c).into_iter()).collect()
}

fn escape(c: char) -> Vec<char> {
    if is_control(c) && c != '\n' { c.escape_unicode().collect() } else { vec![c] }
}
