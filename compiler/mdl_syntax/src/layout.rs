//! Breaks a row of pieces into lines: groups stay on one line where they fit, and break if not.
//!
//! The widths of all groups are known before the first line is written, so the whole is linear.
//! A comment ends its line wherever it stands; what follows goes on in the next one.

use std::fmt::Write;

pub(crate) const WIDTH: usize = 120;
const INDENT: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Op<'t> {
    Text(&'t str),
    /// Dropped at the start of a line.
    Space(usize),
    /// So many spaces, or a line break.
    Line(usize),
    /// `, `, or a line break.
    CommaLine,
    Hard,
    /// One empty line.
    Blank,
    /// A comment behind the code of its line.
    Comment(&'t str),
    /// A group that breaks at all of its lines.
    Open,
    /// A group that breaks at those of its lines where the next piece does not fit.
    OpenFill,
    Close,
    Indent,
    Dedent,
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Flat,
    Broken,
    Fill,
}

/// Pieces in the order of the text.
#[derive(Default)]
pub(crate) struct Layout<'t> {
    pub ops: Vec<Op<'t>>,
}

impl<'t> Layout<'t> {
    pub fn push(&mut self, op: Op<'t>) {
        self.ops.push(op);
    }

    /// Ends a group or an indentation; a comment at the very end moves out of it.
    pub fn end(&mut self, op: Op<'t>) {
        let comments = self.ops.iter().rev().take_while(|op| matches!(op, Op::Comment(_))).count();
        self.ops.insert(self.ops.len() - comments, op);
    }

    /// The width of pieces on one line, if they can be on one line.
    pub fn flat_width(&self, range: std::ops::Range<usize>) -> Option<usize> {
        let ops = &self.ops[range];
        let breaks = ops.iter().any(|op| matches!(op, Op::Hard | Op::Blank | Op::Comment(_)));
        (!breaks).then(|| ops.iter().map(|op| width(*op)).sum())
    }

    pub fn print(&self) -> String {
        let measures = Measures::new(&self.ops);
        let mut page = Page::default();
        let mut modes = vec![Mode::Broken];
        for (at, op) in self.ops.iter().enumerate() {
            let mode = *modes.last().expect("groups are balanced");
            match *op {
                Op::Text(text) => page.text(text),
                Op::Space(count) => page.space(count),
                Op::Line(spaces) => {
                    if measures.breaks(mode, at, page.column()) {
                        page.newline = true;
                    } else {
                        page.space(spaces);
                    }
                }
                Op::CommaLine => {
                    if measures.breaks(mode, at, page.column()) || page.newline {
                        page.newline = true;
                    } else {
                        page.text(",");
                        page.space(1);
                    }
                }
                Op::Hard => page.newline = true,
                Op::Blank => {
                    page.newline = true;
                    page.blank = true;
                }
                Op::Comment(text) => {
                    page.comment = Some(text);
                    page.newline = true;
                }
                Op::Open | Op::OpenFill => modes.push(match op {
                    _ if mode == Mode::Flat || measures.fits(at, page.column()) => Mode::Flat,
                    Op::OpenFill => Mode::Fill,
                    _ => Mode::Broken,
                }),
                Op::Close => {
                    modes.pop();
                }
                Op::Indent => page.indent += 1,
                Op::Dedent => page.indent -= 1,
            }
        }
        page.finish()
    }
}

fn width(op: Op<'_>) -> usize {
    match op {
        Op::Text(text) => text.chars().count(),
        Op::Space(count) | Op::Line(count) => count,
        Op::CommaLine => 2,
        _ => 0,
    }
}

/// Distances between pieces, for deciding in constant time what fits.
struct Measures {
    /// Flat width of all pieces before one.
    before: Vec<usize>,
    /// Forced line breaks before one.
    forced: Vec<usize>,
    /// For the start of a group: its end. For a line: the next line of its group, or its end.
    next: Vec<usize>,
    /// The first place from here on where a line may end.
    line_end: Vec<usize>,
}

impl Measures {
    fn new(ops: &[Op<'_>]) -> Self {
        let n = ops.len();
        let (mut before, mut forced) = (vec![0; n + 1], vec![0; n + 1]);
        let (mut next, mut line_end) = (vec![n; n + 1], vec![n; n + 1]);
        let mut open: Vec<(usize, Option<usize>)> = vec![(n, None)];
        for (at, op) in ops.iter().enumerate() {
            let breaks = matches!(op, Op::Hard | Op::Blank | Op::Comment(_));
            before[at + 1] = before[at] + width(*op);
            forced[at + 1] = forced[at] + usize::from(breaks);
            match op {
                Op::Open | Op::OpenFill => open.push((at, None)),
                Op::Close => {
                    if let Some((start, line)) = open.pop() {
                        next[start] = at;
                        next[line.unwrap_or(start)] = at;
                    }
                }
                Op::Line(_) | Op::CommaLine => {
                    if let Some((_, line)) = open.last_mut()
                        && let Some(line) = line.replace(at)
                    {
                        next[line] = at;
                    }
                }
                _ => {}
            }
        }
        for at in (0..n).rev() {
            let ends = matches!(
                ops[at],
                Op::Line(_) | Op::CommaLine | Op::Hard | Op::Blank | Op::Comment(_)
            );
            line_end[at] = if ends { at } else { line_end[at + 1] };
        }
        Measures { before, forced, next, line_end }
    }

    /// Whether the group that starts at `at`, with what cannot be parted from it, fits.
    fn fits(&self, at: usize, column: usize) -> bool {
        let end = self.next[at];
        let last = self.line_end[end];
        self.forced[end] == self.forced[at] && column + self.before[last] - self.before[at] <= WIDTH
    }

    fn breaks(&self, mode: Mode, at: usize, column: usize) -> bool {
        let last = self.line_end[self.next[at]];
        match mode {
            Mode::Flat => false,
            Mode::Broken => true,
            Mode::Fill => column + self.before[last] - self.before[at] > WIDTH,
        }
    }
}

/// Lines as they are written; breaks are owed until the next text, so that they do not add up.
#[derive(Default)]
struct Page<'t> {
    /// Indentation, code and comment of each line that is done.
    lines: Vec<(usize, String, Option<&'t str>)>,
    line: String,
    /// The comment behind `line`.
    comment: Option<&'t str>,
    line_indent: usize,
    columns: usize,
    indent: usize,
    spaces: usize,
    newline: bool,
    blank: bool,
}

impl<'t> Page<'t> {
    fn column(&self) -> usize {
        if self.newline || self.line.is_empty() {
            return self.indent * INDENT;
        }
        self.columns + self.spaces
    }

    fn space(&mut self, count: usize) {
        self.spaces = self.spaces.max(count);
    }

    fn text(&mut self, text: &str) {
        if self.newline {
            self.end_line();
        }
        if self.line.is_empty() {
            self.line_indent = self.indent * INDENT;
            self.columns = self.line_indent;
        } else {
            let _ = write!(self.line, "{:1$}", "", self.spaces);
            self.columns += self.spaces;
        }
        self.spaces = 0;
        self.line.push_str(text);
        self.columns += text.chars().count();
    }

    fn end_line(&mut self) {
        if !self.line.is_empty() || self.comment.is_some() {
            let line = std::mem::take(&mut self.line);
            self.lines.push((self.line_indent, line, self.comment.take()));
            if self.blank {
                self.lines.push((0, String::new(), None));
            }
        }
        (self.newline, self.blank, self.spaces) = (false, false, 0);
    }

    /// Joins the lines; comments behind neighbouring lines start in one column.
    fn finish(mut self) -> String {
        self.blank = false;
        self.end_line();
        let mut out = String::new();
        let mut at = 0;
        while at < self.lines.len() {
            let (indent, _, comment) = &self.lines[at];
            let run = match comment {
                Some(_) => self.lines[at..]
                    .iter()
                    .take_while(|line| line.0 == *indent && line.2.is_some())
                    .count(),
                None => 1,
            };
            let rows = &self.lines[at..at + run];
            let widest = rows.iter().map(|row| row.1.chars().count()).max().unwrap_or(0);
            for (indent, code, comment) in rows {
                if !code.is_empty() {
                    let _ = write!(out, "{:indent$}{code}", "");
                }
                if let Some(comment) = comment {
                    let gap = widest - code.chars().count() + 2;
                    let _ = write!(out, "{:gap$}{comment}", "");
                }
                out.push('\n');
            }
            at += run;
        }
        out
    }
}
