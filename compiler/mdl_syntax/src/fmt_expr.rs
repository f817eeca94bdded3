//! The canonical form of expressions. Operators of one precedence are one group; a line breaks
//! before an operator, but behind `-`, which must not be first on its line.

use crate::ast::*;
use crate::fmt::Fmt;
use crate::layout::Op;
use crate::token::Kind;

/// Where the first part of an expression starts, which is behind parentheses around the whole.
pub(crate) fn inner_start(expr: &Expr) -> u32 {
    match &expr.kind {
        ExprKind::Member(part, _) | ExprKind::Reaxis(part, _) => part.span.start,
        ExprKind::Call { function, .. } => function.span.start,
        ExprKind::Binary(_, left, _) | ExprKind::Else(left, _) => left.span.start,
        ExprKind::Tuple(parts) => parts.first().map_or(u32::MAX, |part| part.span.start),
        ExprKind::Number(_)
        | ExprKind::Text(_)
        | ExprKind::Bool(_)
        | ExprKind::Infinity
        | ExprKind::Name(_)
        | ExprKind::Unary(..)
        | ExprKind::If(..)
        | ExprKind::Error => u32::MAX,
    }
}

/// Operators with the same number are one group.
fn level(expr: &Expr) -> Option<u8> {
    use BinaryOp::*;
    match &expr.kind {
        ExprKind::Else(..) => Some(0),
        ExprKind::Binary(op, ..) => Some(match op {
            Or => 1,
            And => 2,
            Eq | Ne | Lt | Le | Gt | Ge => 3,
            Add | Sub => 4,
            Mul | Div => 5,
        }),
        _ => None,
    }
}

impl<'t> Fmt<'t> {
    pub fn expr(&mut self, expr: &Expr) {
        let groups = self.groups_around(expr);
        for _ in 0..groups {
            self.push(Op::Open);
            self.tok();
            self.push(Op::Indent);
            self.push(Op::Line(0));
        }
        self.bare(expr);
        for _ in 0..groups {
            self.drop_comma();
            self.comments();
            self.end(Op::Dedent);
            self.push(Op::Line(0));
            self.tok();
            self.end(Op::Close);
        }
    }

    /// An expression without the parentheses around it.
    fn bare(&mut self, expr: &Expr) {
        match &expr.kind {
            ExprKind::Member(owner, _) => {
                self.expr(owner);
                self.tok();
                self.tok();
            }
            ExprKind::Call { function, axes, args } => {
                self.expr(function);
                if self.next_is(Kind::BracketOpen) {
                    self.list(axes.len(), Op::Close, |fmt, at| {
                        fmt.tok();
                        if axes[at].old.is_some() {
                            fmt.spaced_tok();
                            fmt.tok();
                        }
                    });
                }
                self.call_args(args);
            }
            ExprKind::Reaxis(owner, changes) => {
                self.expr(owner);
                self.list(changes.len(), Op::Close, |fmt, at| fmt.change(&changes[at]));
            }
            ExprKind::Unary(op, operand) => {
                self.tok();
                if *op == UnaryOp::Not {
                    self.space();
                }
                self.expr(operand);
            }
            ExprKind::Binary(..) | ExprKind::Else(..) => {
                self.push(Op::Open);
                self.chain(expr, level(expr), true);
                self.end(Op::Dedent);
                self.end(Op::Close);
            }
            ExprKind::If(condition, then, other) => self.choice(condition, then, other),
            ExprKind::Tuple(parts) => {
                self.list(parts.len(), Op::Open, |fmt, at| fmt.expr(&parts[at]));
            }
            ExprKind::Number(_)
            | ExprKind::Text(_)
            | ExprKind::Bool(_)
            | ExprKind::Infinity
            | ExprKind::Name(_)
            | ExprKind::Error => self.tok(),
        }
    }

    /// Operands of one level, from the left. Lines behind the first are indented.
    fn chain(&mut self, expr: &Expr, at_level: Option<u8>, outermost: bool) {
        let (left, right) = match &expr.kind {
            ExprKind::Binary(_, left, right) | ExprKind::Else(left, right)
                if level(expr) == at_level && (outermost || self.groups_around(expr) == 0) =>
            {
                (left, right)
            }
            _ => {
                self.expr(expr);
                self.push(Op::Indent);
                return;
            }
        };
        self.chain(left, at_level, false);
        if self.next_is(Kind::Minus) {
            self.space();
            self.tok();
            self.push(Op::Line(1));
        } else {
            self.push(Op::Line(1));
            self.tok();
            self.space();
        }
        self.expr(right);
    }

    pub fn call_args(&mut self, args: &[CallArg]) {
        self.list(args.len(), Op::Open, |fmt, at| {
            if args[at].name.is_some() {
                fmt.tok();
                fmt.tok();
                fmt.space();
            }
            fmt.expr(&args[at].value);
        });
    }

    fn change(&mut self, change: &AxisChange) {
        self.product(change.new.len());
        if !change.old.is_empty() {
            self.spaced_tok();
            self.product(change.old.len());
        }
        if let Some(start) = &change.start {
            self.spaced_tok();
            self.expr(start);
        }
    }

    fn product(&mut self, len: usize) {
        self.tok();
        for _ in 1..len {
            self.spaced_tok();
            self.tok();
        }
    }

    fn choice(&mut self, condition: &Expr, then: &Body, other: &Body) {
        self.push(Op::Open);
        self.tok();
        self.space();
        self.expr(condition);
        self.space();
        self.branch(then);
        self.spaced_tok();
        self.branch(other);
        self.end(Op::Close);
    }

    /// A body in the braces of an `if`: on one line where it has no statements and fits.
    fn branch(&mut self, body: &Body) {
        self.tok();
        self.push(Op::Indent);
        self.push(Op::Line(1));
        for statement in &body.lets {
            self.statement(statement);
            self.push(Op::Hard);
        }
        self.expr(&body.result);
        self.comments();
        self.end(Op::Dedent);
        self.push(Op::Line(1));
        self.tok();
    }
}
