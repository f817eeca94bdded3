//! Expressions and bodies. Operators are taken as a flat row and folded by precedence after.
//!
//! From loose to tight: `else`, `or`, `and`, comparisons, `+ -`, `* /`, then `-` and `not` before
//! a value, then what follows a value: calls, `.member` and changes of axes.

use chumsky::input::InputRef;
use chumsky::prelude::*;

use crate::ast::*;
use crate::lex::MAX_LIST;
use crate::parse_token::*;
use crate::token::{Kind, Token};

const CHAIN: Special = Special {
    code: "E0104",
    message: "comparisons do not chain",
    here: "this comparison has a comparison as its operand",
    help: "join two comparisons with `and`",
};
const CALL_AXIS: Special = Special {
    code: "E0105",
    message: "the brackets of a call hold axes, not changes of axes",
    here: "this is neither `axis` nor `new = old`",
    help: "change the axes of the argument instead, as in `f(x[a * b = c])`",
};
const NO_CHANGE: Special = Special {
    code: "E0106",
    message: "brackets after a value hold changes of axes",
    here: "this is not of the form `new = old`",
    help: "write `new = old`, or a `(` after the brackets if this is a call",
};
pub(crate) const LONG_LIST: Special = Special {
    code: "E0008",
    message: "a list has more than 65,536 elements",
    here: "this one has more",
    help: "split it into several",
};

/// The parsers for expressions and for bodies in braces, which hold each other.
pub(crate) fn expressions<'t>(cx: Cx<'t>) -> (Rule<'t, Expr>, Rule<'t, Body>) {
    let mut expr = Recursive::declare();
    let inner = expr.clone().boxed();
    let body = braces(cx, inner.clone());
    expr.define(operators(cx, inner, body.clone()));
    (expr.boxed(), body)
}

fn operators<'t>(
    cx: Cx<'t>,
    expr: Rule<'t, Expr>,
    body: Rule<'t, Body>,
) -> impl Parser<'t, In<'t>, Expr, Extra> + Clone + 't {
    let operand = before_value()
        .then(postfix(cx, expr, body))
        .map(move |(before, operand)| {
            before.into_iter().rev().fold(operand, |operand, token| {
                let op = if token.kind == Kind::Not { UnaryOp::Not } else { UnaryOp::Neg };
                let span = cx.token(token).to(operand.span);
                Expr { kind: ExprKind::Unary(op, Box::new(operand)), span }
            })
        })
        .boxed();
    let operator = accept(Wanted::OPERATOR, |token| {
        binding(token.kind).is_some() && !(token.kind == Kind::Minus && token.first_on_line)
    });
    operand
        .clone()
        .then(operator.then(operand).repeated().collect::<Vec<(Token, Expr)>>())
        .validate(|(first, rest), e, emitter| {
            let (folded, chains) = fold(first, rest);
            if chains {
                emitter.emit(Fault::special(e.span(), &CHAIN));
            }
            folded
        })
}

/// `-` and `not` before a value, any number of them.
fn before_value<'t>() -> impl Parser<'t, In<'t>, Vec<Token>, Extra> + Copy {
    custom(|inp: &mut InputRef<'t, '_, In<'t>, Extra>| {
        let mut before = Vec::new();
        while let Some(token) = inp.peek()
            && matches!(token.kind, Kind::Minus | Kind::Not)
        {
            inp.skip();
            before.push(token);
        }
        Ok(before)
    })
}

/// How tightly a binary operator binds.
fn binding(kind: Kind) -> Option<u8> {
    use Kind::*;
    match kind {
        Else => Some(0),
        Or => Some(1),
        And => Some(2),
        Equal | NotEqual | Less | LessEqual | Greater | GreaterEqual => Some(3),
        Plus | Minus => Some(4),
        Star | Slash => Some(5),
        _ => None,
    }
}

fn binary(kind: Kind) -> Option<BinaryOp> {
    match kind {
        Kind::Or => Some(BinaryOp::Or),
        Kind::And => Some(BinaryOp::And),
        Kind::Equal => Some(BinaryOp::Eq),
        Kind::NotEqual => Some(BinaryOp::Ne),
        Kind::Less => Some(BinaryOp::Lt),
        Kind::LessEqual => Some(BinaryOp::Le),
        Kind::Greater => Some(BinaryOp::Gt),
        Kind::GreaterEqual => Some(BinaryOp::Ge),
        Kind::Plus => Some(BinaryOp::Add),
        Kind::Minus => Some(BinaryOp::Sub),
        Kind::Star => Some(BinaryOp::Mul),
        Kind::Slash => Some(BinaryOp::Div),
        _ => None,
    }
}

/// Folds a row of operands to the left by precedence; also says whether comparisons chain.
fn fold(first: Expr, rest: Vec<(Token, Expr)>) -> (Expr, bool) {
    if rest.is_empty() {
        return (first, false);
    }
    let mut chains = false;
    let mut pending: Vec<(Expr, Kind)> = Vec::new();
    let mut value = first;
    for (token, operand) in rest {
        while let Some((_, waiting)) = pending.last()
            && binding(*waiting) >= binding(token.kind)
        {
            chains |= binding(*waiting) == Some(3) && binding(token.kind) == Some(3);
            let (left, op) = pending.pop().expect("one was just looked at");
            value = join(left, op, value);
        }
        pending.push((std::mem::replace(&mut value, operand), token.kind));
    }
    while let Some((left, op)) = pending.pop() {
        value = join(left, op, value);
    }
    (value, chains)
}

fn join(left: Expr, op: Kind, right: Expr) -> Expr {
    let span = left.span.to(right.span);
    let (left, right) = (Box::new(left), Box::new(right));
    let kind = match binary(op) {
        Some(op) => ExprKind::Binary(op, left, right),
        None => ExprKind::Else(left, right),
    };
    Expr { kind, span }
}

fn atom<'t>(cx: Cx<'t>) -> impl Parser<'t, In<'t>, Expr, Extra> + Copy {
    accept(Wanted::EXPRESSION, |token| {
        use Kind::*;
        token.kind.is_name() || matches!(token.kind, Number | String | True | False | Inf)
    })
    .map(move |token| {
        let kind = match token.kind {
            Kind::Number => ExprKind::Number(number(token.text(cx.text))),
            Kind::String => ExprKind::Text(unescape(token.text(cx.text))),
            Kind::True => ExprKind::Bool(true),
            Kind::False => ExprKind::Bool(false),
            Kind::Inf => ExprKind::Infinity,
            _ => ExprKind::Name(cx.name(token)),
        };
        Expr { kind, span: cx.token(token) }
    })
}

fn number(text: &str) -> String {
    text.replace('_', "")
}

/// The value of a text token; unknown escapes are kept as written, the lexer reported them.
pub(crate) fn unescape(token: &str) -> String {
    let inner = token.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or("");
    if !inner.contains('\\') {
        return inner.to_string();
    }
    let mut value = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (_, true) => match chars.next() {
                Some('n') => value.push('\n'),
                Some(other) => value.push(other),
                None => {}
            },
            _ => value.push(c),
        }
    }
    value
}

/// A value in its simplest form: an atom, a tuple or group, an `if`.
fn primary<'t>(
    cx: Cx<'t>,
    expr: Rule<'t, Expr>,
    body: Rule<'t, Body>,
) -> impl Parser<'t, In<'t>, Expr, Extra> + Clone + 't {
    let open = accept(Wanted::EXPRESSION, |token| token.kind == Kind::ParenOpen);
    let group = list(open, Kind::ParenClose, 1, expr.clone()).map_with(move |mut parts, e| {
        let span = cx.span(e.slice());
        match parts.len() {
            0 => Expr { kind: ExprKind::Error, span },
            1 => Expr { span, ..parts.remove(0) },
            _ => Expr { kind: ExprKind::Tuple(parts), span },
        }
    });
    let choose = accept(Wanted::EXPRESSION, |token| token.kind == Kind::If)
        .ignore_then(expr)
        .then(body.clone())
        .then_ignore(tok(Kind::Else))
        .then(body)
        .map_with(move |((condition, then), other), e| Expr {
            kind: ExprKind::If(Box::new(condition), Box::new(then), Box::new(other)),
            span: cx.span(e.slice()),
        });
    choice((atom(cx), group, choose))
}

enum Suffix {
    Call(Vec<AxisChange>, Vec<CallArg>),
    Changes(Vec<AxisChange>),
    Member(Name),
}

/// Whether a token goes on with the value before it. Most values end here, and one look says so
/// where three parsers would fail one after the other.
fn begins_suffix(token: Token) -> bool {
    let open = matches!(token.kind, Kind::ParenOpen | Kind::BracketOpen);
    token.kind == Kind::Dot || open && !token.first_on_line
}

fn postfix<'t>(
    cx: Cx<'t>,
    expr: Rule<'t, Expr>,
    body: Rule<'t, Body>,
) -> impl Parser<'t, In<'t>, Expr, Extra> + Clone + 't {
    let args = call_args(cx, expr.clone());
    let call = args.clone().map(|args| Suffix::Call(Vec::new(), args));
    let brackets = list(inline(Kind::BracketOpen), Kind::BracketClose, 0, change(cx, expr.clone()))
        .then(args.or_not())
        .validate(|(changes, args), e, emitter| match args {
            Some(args) => {
                if !changes.iter().all(is_axis_arg) {
                    emitter.emit(Fault::special(e.span(), &CALL_AXIS));
                }
                Suffix::Call(changes, args)
            }
            None => {
                if !changes.iter().all(|change| !change.old.is_empty()) {
                    emitter.emit(Fault::special(e.span(), &NO_CHANGE));
                }
                Suffix::Changes(changes)
            }
        });
    let member = accept(Wanted::OPERATOR, |token| token.kind == Kind::Dot)
        .ignore_then(name(cx))
        .map(Suffix::Member);
    let suffix = next_is(Wanted::OPERATOR, begins_suffix)
        .ignore_then(choice((call, brackets, member)))
        .boxed();
    primary(cx, expr, body).foldl_with(suffix.repeated(), move |value, suffix, e| {
        let value = Box::new(value);
        let kind = match suffix {
            Suffix::Call(axes, args) => {
                let axes = axes.into_iter().filter_map(axis_arg).collect();
                ExprKind::Call { function: value, axes, args }
            }
            Suffix::Changes(changes) => ExprKind::Reaxis(value, changes),
            Suffix::Member(name) => ExprKind::Member(value, name),
        };
        Expr { kind, span: cx.span(e.slice()) }
    })
}

fn is_axis_arg(change: &AxisChange) -> bool {
    change.new.len() == 1 && change.old.len() <= 1 && change.start.is_none()
}

fn axis_arg(mut change: AxisChange) -> Option<AxisArg> {
    let old = change.old.pop();
    change.new.pop().map(|name| AxisArg { name, old })
}

/// `(x, mask: causal)`.
pub(crate) fn call_args<'t>(cx: Cx<'t>, expr: Rule<'t, Expr>) -> Rule<'t, Vec<CallArg>> {
    // Most arguments have no label, so a name becomes one only when its colon is there.
    let label = accept(Wanted::NAME, |token| token.kind.is_name());
    let label = label.then_ignore(tok(Kind::Colon)).or_not();
    let arg = label.then(expr).map(move |(label, value)| {
        let name = label.map(|token| cx.name(token));
        CallArg { name, value }
    });
    list(inline(Kind::ParenOpen), Kind::ParenClose, 0, arg).boxed()
}

/// `T`, `S = T`, `hidden = a * b`, `half = head from 0`.
fn change<'t>(
    cx: Cx<'t>,
    expr: Rule<'t, Expr>,
) -> impl Parser<'t, In<'t>, AxisChange, Extra> + Clone {
    let product = name(cx).separated_by(tok(Kind::Star)).at_least(1);
    let product = product.collect::<Tight<Name>>().map(|names| names.0);
    let start = tok(Kind::From).ignore_then(expr).or_not();
    product.then(tok(Kind::Assign).ignore_then(product.then(start)).or_not()).map_with(
        move |(new, from), e| {
            let (old, start) = from.unwrap_or_default();
            AxisChange { new, old, start, span: cx.span(e.slice()) }
        },
    )
}

/// `{ lets… result }`. A statement that cannot be parsed is skipped up to the next `let` or
/// `axis` that is first on its line.
fn braces<'t>(cx: Cx<'t>, expr: Rule<'t, Expr>) -> Rule<'t, Body> {
    let starts = |token: Token, _: Option<Token>| matches!(token.kind, Kind::Let | Kind::Axis);
    let skip = junk(starts).map(|()| None);
    let statement = statement(cx, expr.clone()).map(Some).recover_with(via_parser(skip));
    let is_statement =
        accept(Wanted::default(), |token| matches!(token.kind, Kind::Let | Kind::Axis));
    let lets = is_statement.rewind().ignore_then(statement).repeated();
    let lets = lets.collect::<Tight<_>>().map(|lets| lets.0);
    let at_end = tok(Kind::BraceClose).rewind();
    let result = expr.map(Some).then_ignore(at_end).or(at_end.map(|_| None)).map(Some);
    let no_result = junk(|_, _| false).map(|()| None);
    let inner = lets
        .then(result.recover_with(via_parser(no_result)))
        .then(tok(Kind::BraceClose))
        .validate(move |((lets, result), close), e, emitter| {
            if lets.len() > MAX_LIST {
                emitter.emit(Fault::special(e.span(), &LONG_LIST));
            }
            // After a statement that was skipped, nothing is known of the result.
            let whole = lets.last().is_none_or(Option::is_some);
            if whole && result == Some(None) {
                emitter.emit(Fault::missing(e.span(), Wanted::EXPRESSION));
            }
            let lets: Vec<Let> = lets.into_iter().flatten().take(MAX_LIST).collect();
            let error = || Expr { kind: ExprKind::Error, span: cx.token(close) };
            let result = Box::new(result.flatten().unwrap_or_else(error));
            Body { lets, result }
        });
    tok(Kind::BraceOpen).ignore_then(inner).boxed()
}

fn statement<'t>(cx: Cx<'t>, expr: Rule<'t, Expr>) -> impl Parser<'t, In<'t>, Let, Extra> + Clone {
    let one = name(cx).map(|name| vec![name]);
    let names = one.or(list(tok(Kind::ParenOpen), Kind::ParenClose, 1, name(cx)));
    let value = tok(Kind::Let)
        .ignore_then(names)
        .then_ignore(tok(Kind::Assign))
        .then(expr.clone())
        .map(|(names, value)| Let::Value { names, value });
    let axis = tok(Kind::Axis)
        .ignore_then(name(cx))
        .then_ignore(tok(Kind::Assign))
        .then(expr)
        .map(|(name, size)| Let::Axis { name, size });
    value.or(axis)
}
