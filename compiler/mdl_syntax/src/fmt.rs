//! The canonical form of a file. It is a function of the tokens and their tree alone, except that
//! comments keep their line, single blank lines stay, and presets keep their rows.
//!
//! The tree says where groups are; the texts come from the tokens in their order, so that no
//! token and no comment can be lost. Members and fields are aligned in columns: a column goes on
//! as long as neighbouring lines have it.

use crate::ast::*;
use crate::diag::Sink;
use crate::fmt_expr::inner_start;
use crate::layout::{Layout, Op};
use crate::lex::lex;
use crate::parse::parse_tokens;
use crate::span::FileId;
use crate::token::{Kind, Token};

/// Formats a file, or says why it cannot be parsed; spans are of `FileId(0)`.
pub fn fmt(text: &str) -> Result<String, Sink> {
    let mut sink = Sink::default();
    let tokens = lex(FileId(0), text, &mut sink);
    let module = parse_tokens(&tokens, text, &mut sink);
    if sink.has_errors() {
        return Err(sink);
    }
    let mut fmt = Fmt { text, tokens: &tokens.tokens, at: 0, layout: Layout::default() };
    fmt.module(&module);
    Ok(fmt.layout.print())
}

/// Whether a blank line goes before an entry.
#[derive(Clone, Copy, PartialEq)]
enum Gap {
    Never,
    Keep,
    Force,
}

/// A line of a list in columns: the width of each cell with the break that follows it.
struct Row {
    joined: bool,
    cells: Vec<(Option<usize>, usize)>,
}

pub(crate) struct Fmt<'t> {
    pub text: &'t str,
    tokens: &'t [Token],
    at: usize,
    layout: Layout<'t>,
}

impl<'t> Fmt<'t> {
    pub fn push(&mut self, op: Op<'t>) {
        self.layout.push(op);
    }

    pub fn end(&mut self, op: Op<'t>) {
        self.layout.end(op);
    }

    /// The next token that is no comment.
    pub fn peek(&self) -> Option<Token> {
        self.tokens[self.at..].iter().copied().find(|token| !token.kind.is_comment())
    }

    pub fn next_is(&self, kind: Kind) -> bool {
        self.peek().is_some_and(|token| token.kind == kind)
    }

    /// Writes the next token, with the comments before it and the one behind it.
    pub fn tok(&mut self) {
        self.comments();
        if let Some(token) = self.tokens.get(self.at) {
            self.push(Op::Text(token.text(self.text)));
            self.at += 1;
            self.comment_behind();
        }
    }

    /// Leaves out the next token, a comma, but not the comments around it.
    pub fn drop_comma(&mut self) {
        if self.next_is(Kind::Comma) {
            self.comments();
            self.at += 1;
            self.comment_behind();
        }
    }

    /// A line has room for one comment: where a comma between two is dropped, the second one
    /// gets a line of its own.
    fn comment_behind(&mut self) {
        if matches!(self.layout.ops.last(), Some(Op::Comment(_))) {
            return self.comments();
        }
        if let Some(token) = self.tokens.get(self.at)
            && token.kind.is_comment()
            && !token.first_on_line
        {
            self.push(Op::Comment(token.text(self.text)));
            self.at += 1;
        }
    }

    /// Writes the comments before the next token on lines of their own.
    pub fn comments(&mut self) {
        while let Some(token) = self.tokens.get(self.at).filter(|token| token.kind.is_comment()) {
            self.push(Op::Hard);
            self.push(Op::Text(token.text(self.text)));
            self.push(Op::Hard);
            self.at += 1;
        }
    }

    pub fn space(&mut self) {
        self.push(Op::Space(1));
    }

    /// A token with a space before and one behind.
    pub fn spaced_tok(&mut self) {
        self.space();
        self.tok();
        self.space();
    }

    /// Whether a blank line stands before the next token or comment.
    fn blank_before(&self) -> bool {
        let Some(next) = self.tokens.get(self.at) else {
            return false;
        };
        let last = self.at.checked_sub(1).map_or(0, |last| self.tokens[last].end);
        let gap = self.text.get(last as usize..next.start as usize).unwrap_or("");
        gap.bytes().filter(|byte| *byte == b'\n').count() > 1
    }

    /// Starts an entry: comments above it, and blank lines. Says whether it follows directly.
    fn lead(&mut self, gap: Gap) -> bool {
        let mut gap = gap;
        // A comment before a comma that was dropped is above this entry already.
        let last = self.layout.ops.iter().rev().find(|op| **op != Op::Hard);
        let mut joined = !matches!(last, Some(Op::Text(text)) if text.starts_with("//"));
        loop {
            let keeps = gap == Gap::Keep && self.blank_before();
            if keeps || gap == Gap::Force {
                self.push(Op::Blank);
                joined = false;
            }
            let Some(token) = self.tokens.get(self.at).filter(|token| token.kind.is_comment())
            else {
                return joined;
            };
            self.push(Op::Text(token.text(self.text)));
            self.push(Op::Hard);
            self.at += 1;
            joined = false;
            let next = self.tokens.get(self.at).map(|token| token.kind);
            gap = match token.kind {
                Kind::ModuleDoc if next.is_some_and(|next| next != Kind::ModuleDoc) => Gap::Force,
                Kind::Doc | Kind::ModuleDoc => Gap::Never,
                _ => Gap::Keep,
            };
        }
    }

    fn module(&mut self, module: &Module) {
        let mut last: Option<&ItemKind> = None;
        for item in &module.items {
            let gap = match (last, &item.kind) {
                (None, _) => Gap::Never,
                (Some(ItemKind::Use(_)), ItemKind::Use(_)) => Gap::Keep,
                _ => Gap::Force,
            };
            self.lead(gap);
            self.item(&item.kind);
            self.push(Op::Hard);
            last = Some(&item.kind);
        }
        self.lead(if last.is_none() { Gap::Never } else { Gap::Keep });
    }

    fn item(&mut self, item: &ItemKind) {
        match item {
            ItemKind::Use(import) => self.import(import),
            ItemKind::Config(config) => self.config(config),
            ItemKind::Fn(function) => self.function(function),
            ItemKind::Block(block) | ItemKind::Model(block) => self.block(block),
            ItemKind::Preset(preset) => self.preset(preset),
            ItemKind::Error => {}
        }
    }

    fn import(&mut self, import: &Use) {
        self.tok();
        self.space();
        self.tok();
        while self.next_is(Kind::Dot) {
            self.tok();
            if self.next_is(Kind::BraceOpen) {
                self.list(import.names.len(), Op::OpenFill, |fmt, _| fmt.tok());
            } else {
                self.tok();
            }
        }
    }

    /// `open item, item close`. How the items break is the kind of their group; those in an
    /// `Op::Close` stay on one line.
    pub fn list(&mut self, len: usize, group: Op<'t>, mut item: impl FnMut(&mut Self, usize)) {
        let breaks = group != Op::Close && len > 0;
        self.push(Op::Open);
        self.tok();
        self.push(Op::Indent);
        if breaks {
            self.push(Op::Line(0));
        }
        // In a group of its own, so that the breaks at the brackets do not depend on it.
        self.push(if group == Op::OpenFill { group } else { Op::Open });
        for at in 0..len {
            item(self, at);
            if at + 1 < len {
                self.tok();
                self.push(if breaks { Op::Line(1) } else { Op::Space(1) });
            } else {
                self.drop_comma();
            }
        }
        self.comments();
        self.end(Op::Close);
        self.end(Op::Dedent);
        if breaks {
            self.push(Op::Line(0));
        }
        self.tok();
        self.end(Op::Close);
    }

    fn tensor(&mut self, ty: &TypeExpr) {
        if ty.dtype.is_some() {
            self.tok();
        }
        self.axes(ty.open, &ty.axes);
    }

    fn axes(&mut self, open: bool, axes: &[AxisExpr]) {
        let offset = usize::from(open);
        self.list(axes.len() + offset, Op::Close, |fmt, at| {
            fmt.tok();
            if let Some(size) = at.checked_sub(offset).and_then(|at| axes[at].size.as_ref()) {
                fmt.spaced_tok();
                fmt.expr(size);
            }
        });
    }

    fn args(&mut self, args: &[Arg]) {
        self.list(args.len(), Op::OpenFill, |fmt, at| {
            let arg = &args[at];
            fmt.tok();
            fmt.tok();
            fmt.space();
            match &arg.ty {
                ArgType::Tensor(ty) => fmt.tensor(ty),
                ArgType::Function(axes) => {
                    fmt.tok();
                    fmt.names(axes);
                }
                ArgType::Size | ArgType::Real | ArgType::Bool | ArgType::Config(_) => fmt.tok(),
            }
            if let Some(default) = &arg.default {
                fmt.spaced_tok();
                fmt.expr(default);
            }
        });
    }

    /// `[T, S]` or nothing.
    fn names(&mut self, names: &[Name]) {
        if self.next_is(Kind::BracketOpen) {
            self.list(names.len(), Op::Close, |fmt, _| fmt.tok());
        }
    }

    fn function(&mut self, function: &Fn) {
        if function.kernel.is_some() {
            for _ in 0..5 {
                self.tok();
            }
            self.push(Op::Hard);
        }
        self.push(Op::Open);
        self.tok();
        self.space();
        self.tok();
        self.names(&function.axes);
        self.args(&function.args);
        if self.next_is(Kind::Arrow) {
            self.spaced_tok();
            match &function.result[..] {
                [one] if !self.next_is(Kind::ParenOpen) => self.tensor(one),
                several => self.list(several.len(), Op::Close, |fmt, at| fmt.tensor(&several[at])),
            }
        }
        self.space();
        if self.next_is(Kind::Assign) {
            self.tok();
            self.push(Op::Indent);
            self.push(Op::Line(1));
            self.expr(&function.body.result);
            self.end(Op::Dedent);
        } else {
            self.braces(|fmt| fmt.body(&function.body));
        }
        self.end(Op::Close);
    }

    /// `{`, entries on lines of their own, `}`.
    fn braces(&mut self, entries: impl FnOnce(&mut Self)) {
        self.tok();
        self.push(Op::Indent);
        if !self.tokens.get(self.at).is_some_and(|token| token.kind == Kind::BraceClose) {
            self.push(Op::Hard);
            entries(self);
            self.lead(Gap::Keep);
            self.push(Op::Hard);
        }
        self.end(Op::Dedent);
        self.tok();
    }

    fn body(&mut self, body: &Body) {
        for (at, statement) in body.lets.iter().enumerate() {
            self.lead(if at == 0 { Gap::Never } else { Gap::Keep });
            self.statement(statement);
            self.push(Op::Hard);
        }
        self.lead(if body.lets.is_empty() { Gap::Never } else { Gap::Keep });
        self.expr(&body.result);
        self.push(Op::Hard);
    }

    pub fn statement(&mut self, statement: &Let) {
        self.tok();
        self.space();
        let value = match statement {
            Let::Value { names, value } => {
                if self.next_is(Kind::ParenOpen) {
                    self.list(names.len(), Op::Close, |fmt, _| fmt.tok());
                } else {
                    self.tok();
                }
                value
            }
            Let::Axis { size, .. } => {
                self.tok();
                size
            }
        };
        self.spaced_tok();
        self.expr(value);
    }

    fn config(&mut self, config: &Config) {
        self.tok();
        self.space();
        self.tok();
        self.space();
        self.braces(|fmt| {
            let mut rows: Vec<Row> = Vec::new();
            let (mut fields, mut asserts) = (config.fields.iter(), config.asserts.iter());
            let mut gap = Gap::Never;
            while let Some(next) = fmt.peek().filter(|next| next.kind != Kind::BraceClose) {
                let joined = fmt.lead(gap);
                gap = Gap::Keep;
                if next.kind == Kind::Assert {
                    fmt.assert(asserts.next());
                    rows.push(Row { joined, cells: Vec::new() });
                } else if let Some(field) = fields.next() {
                    rows.push(fmt.field(field, joined));
                }
                fmt.drop_comma();
                fmt.push(Op::Hard);
            }
            fmt.align(&rows);
        });
    }

    fn assert(&mut self, assert: Option<&Expr>) {
        self.tok();
        self.space();
        if let Some(assert) = assert {
            self.expr(assert);
        }
    }

    fn field(&mut self, field: &Field, joined: bool) -> Row {
        let mut row = Row { joined, cells: Vec::new() };
        let start = self.layout.ops.len();
        self.tok();
        self.tok();
        let start = self.cell(&mut row, start, Op::Space(1));
        self.tok();
        if let Some(default) = &field.default {
            self.cell(&mut row, start, Op::Space(1));
            self.tok();
            self.space();
            self.expr(default);
        }
        row
    }

    /// Ends the cell that began at `start` with a gap, which `align` widens; gives where the next
    /// cell begins.
    fn cell(&mut self, row: &mut Row, start: usize, gap: Op<'t>) -> usize {
        let end = self.layout.ops.len();
        row.cells.push((self.layout.flat_width(start..end), end));
        self.push(gap);
        end + 1
    }

    /// Widens the breaks behind cells, so that the next cells of neighbouring rows align.
    fn align(&mut self, rows: &[Row]) {
        let columns = rows.iter().map(|row| row.cells.len()).max().unwrap_or(0);
        for column in 0..columns {
            let cell = |row: &Row| row.cells.get(column).and_then(|(width, at)| Some(((*width)?, *at)));
            let mut at = 0;
            while at < rows.len() {
                let more = rows[at + 1..].iter();
                let run = 1 + more.take_while(|row| row.joined && cell(row).is_some()).count();
                let cells: Vec<_> = rows[at..at + run].iter().filter_map(cell).collect();
                let widest = cells.iter().map(|(width, _)| *width).max().unwrap_or(0);
                for (width, line) in cells {
                    let gap = widest - width + 1;
                    let op = &mut self.layout.ops[line];
                    *op = if matches!(op, Op::Line(_)) { Op::Line(gap) } else { Op::Space(gap) };
                }
                at += run;
            }
        }
    }

    fn block(&mut self, block: &Block) {
        self.tok();
        self.space();
        self.tok();
        self.names(&block.axes);
        self.args(&block.args);
        self.space();
        self.braces(|fmt| {
            let mut rows: Vec<Row> = Vec::new();
            let (mut members, mut methods) = (block.members.iter(), block.methods.iter());
            let mut gap = Gap::Never;
            while let Some(next) = fmt.peek().filter(|next| next.kind != Kind::BraceClose) {
                let is_method = matches!(next.kind, Kind::Fn | Kind::At);
                let forced = is_method && gap != Gap::Never;
                let joined = fmt.lead(if forced { Gap::Force } else { gap });
                gap = if is_method { Gap::Force } else { Gap::Keep };
                if let Some(method) = if is_method { methods.next() } else { None } {
                    fmt.function(method);
                    rows.push(Row { joined, cells: Vec::new() });
                } else if let Some(member) = members.next() {
                    rows.push(fmt.member(member, joined));
                }
                fmt.drop_comma();
                fmt.push(Op::Hard);
            }
            fmt.align(&rows);
        });
    }

    fn member(&mut self, member: &Member, joined: bool) -> Row {
        let mut row = Row { joined, cells: Vec::new() };
        self.push(Op::OpenFill);
        let start = self.layout.ops.len();
        self.tok();
        self.tok();
        self.push(Op::Indent);
        let mut start = self.cell(&mut row, start, Op::Space(1));
        self.tok();
        match &member.kind {
            MemberKind::Param { ty, .. } => self.axes(ty.open, &ty.axes),
            MemberKind::Instance { axes, args, count, .. } => {
                self.names(axes);
                self.call_args(args);
                if count.is_some() {
                    self.spaced_tok();
                    self.tok();
                }
            }
        }
        if member.stored.is_some() {
            start = self.cell(&mut row, start, Op::Line(1));
            self.tok();
            self.space();
            self.tok();
        }
        if let MemberKind::Param { init, tied, .. } = &member.kind {
            if let Some(init) = init {
                start = self.cell(&mut row, start, Op::Line(1));
                self.tok();
                self.space();
                self.expr(init);
            }
            if let Some((_, condition)) = tied {
                self.cell(&mut row, start, Op::Line(1));
                self.tok();
                self.space();
                self.tok();
                if let Some(condition) = condition {
                    self.spaced_tok();
                    self.expr(condition);
                }
            }
        }
        self.end(Op::Dedent);
        self.end(Op::Close);
        row
    }

    fn preset(&mut self, preset: &Preset) {
        for at in 0..4 {
            self.tok();
            if at != 1 {
                self.space();
            }
        }
        self.braces(|fmt| {
            let (mut bindings, mut asserts) = (preset.bindings.iter(), preset.asserts.iter());
            let mut gap = Gap::Never;
            while fmt.next_is(Kind::Assert) || bindings.len() > 0 {
                fmt.lead(gap);
                gap = Gap::Keep;
                if fmt.next_is(Kind::Assert) {
                    fmt.assert(asserts.next());
                    fmt.drop_comma();
                } else {
                    fmt.preset_row(&mut bindings);
                }
                fmt.push(Op::Hard);
            }
        });
    }

    /// The bindings of one line, up to the one that starts the next line.
    fn preset_row(&mut self, bindings: &mut std::slice::Iter<'_, (Name, Expr)>) {
        self.push(Op::OpenFill);
        while let Some((_, value)) = bindings.next() {
            self.tok();
            self.spaced_tok();
            self.expr(value);
            let mut breaks = self.peek().is_none_or(|next| next.first_on_line);
            self.drop_comma();
            breaks |= self.peek().is_none_or(|next| next.first_on_line || !next.kind.is_name());
            if breaks {
                break;
            }
            self.push(Op::CommaLine);
        }
        self.end(Op::Close);
    }

    /// How many of the parentheses at this place are around the whole of `expr`.
    pub fn groups_around(&self, expr: &Expr) -> usize {
        let inner = inner_start(expr);
        let here = self.tokens[self.at..].iter().filter(|token| !token.kind.is_comment());
        let open = here.take_while(|token| token.kind == Kind::ParenOpen && token.start < inner);
        let own = usize::from(matches!(expr.kind, ExprKind::Tuple(_)));
        open.count() - own
    }
}
