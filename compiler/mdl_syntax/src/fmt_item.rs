//! The canonical form of items. Members and fields are aligned in columns: a column goes on as
//! long as neighbouring lines have it.

use crate::ast::*;
use crate::fmt::{Fmt, Gap};
use crate::layout::Op;
use crate::token::Kind;

/// A line of a list in columns: the width of each cell with the break that follows it.
struct Row {
    joined: bool,
    cells: Vec<(Option<usize>, usize)>,
}

impl<'t> Fmt<'t> {
    pub fn module(&mut self, module: &Module) {
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
            let cell =
                |row: &Row| row.cells.get(column).and_then(|(width, at)| Some(((*width)?, *at)));
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
        for (_, value) in bindings.by_ref() {
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
}
