//! The canonical form of a file. It is a function of the tokens and their tree alone, except that
//! comments keep their line, single blank lines stay, and presets keep their rows.
//!
//! The tree says where groups are; the texts come from the tokens in their order, so that no
//! token and no comment can be lost.

use crate::ast::{Expr, ExprKind};
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
pub(crate) enum Gap {
    Never,
    Keep,
    Force,
}

pub(crate) struct Fmt<'t> {
    pub text: &'t str,
    pub tokens: &'t [Token],
    pub at: usize,
    pub layout: Layout<'t>,
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
        if matches!(self.layout.ops.last(), Some(Op::Comment(_))) || self.is_after_comment() {
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

    /// Whether the last line that was written is a comment.
    fn is_after_comment(&self) -> bool {
        let last = self.layout.ops.iter().rev().find(|op| **op != Op::Hard);
        matches!(last, Some(Op::Text(text)) if text.starts_with("//"))
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
    pub fn lead(&mut self, gap: Gap) -> bool {
        let mut gap = gap;
        // A comment before a comma that was dropped is above this entry already.
        let mut joined = !self.is_after_comment();
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

    /// How many of the parentheses at this place are around the whole of `expr`.
    pub fn groups_around(&self, expr: &Expr) -> usize {
        let inner = inner_start(expr);
        let here = self.tokens[self.at..].iter().filter(|token| !token.kind.is_comment());
        let open = here.take_while(|token| token.kind == Kind::ParenOpen && token.start < inner);
        let own = usize::from(matches!(expr.kind, ExprKind::Tuple(_)));
        open.count() - own
    }
}
