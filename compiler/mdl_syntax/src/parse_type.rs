//! Tensor types, and the types of arguments and configuration fields.

use chumsky::prelude::*;

use crate::ast::{Arg, ArgType, AxisExpr, Expr, Field, FieldType, Name, TypeExpr};
use crate::parse_token::*;
use crate::token::{Kind, Token};

/// `hidden` or `inner = kv_heads * head`.
fn axis<'t>(cx: Cx<'t>, expr: Rule<'t, Expr>) -> impl Parser<'t, In<'t>, AxisExpr, Extra> + Clone {
    name(cx)
        .then(tok(Kind::Assign).ignore_then(expr).or_not())
        .map(|(name, size)| AxisExpr { name, size })
}

/// `[..]`, `[.., D]`, `[B, T]`: whether it is open, and its axes.
pub(crate) fn axes<'t>(cx: Cx<'t>, expr: Rule<'t, Expr>) -> Rule<'t, (bool, Vec<AxisExpr>)> {
    let some = axis(cx, expr).separated_by(tok(Kind::Comma)).allow_trailing();
    let some = some.collect::<Tight<_>>().map(|axes| axes.0);
    let open = tok(Kind::DotDot)
        .ignore_then(tok(Kind::Comma).ignore_then(some.clone()).or_not())
        .map(|axes| (true, axes.unwrap_or_default()));
    let inner = open.or(some.map(|axes| (false, axes))).then_ignore(tok(Kind::BracketClose));
    let skipped = junk(|_, _| false).or_not().then(tok(Kind::BracketClose));
    tok(Kind::BracketOpen)
        .ignore_then(inner.recover_with(via_parser(skipped.map(|_| (true, Vec::new())))))
        .boxed()
}

/// `[B, T]`, `f32[half]`.
pub(crate) fn tensor<'t>(cx: Cx<'t>, expr: Rule<'t, Expr>) -> Rule<'t, TypeExpr> {
    name(cx)
        .or_not()
        .then(axes(cx, expr))
        .map_with(move |(dtype, (open, axes)), e| TypeExpr {
            dtype,
            open,
            axes,
            span: cx.span(e.slice()),
        })
        .boxed()
}

/// `[T, S]` after the name of a function or block, or after `fn` in a type.
pub(crate) fn axis_names<'t>(cx: Cx<'t>) -> impl Parser<'t, In<'t>, Vec<Name>, Extra> + Clone {
    list(tok(Kind::BracketOpen), Kind::BracketClose, 0, name(cx))
}

fn word<'t>() -> impl Parser<'t, In<'t>, Token, Extra> + Copy {
    accept(Wanted::TYPE, |token| token.kind.is_name())
}

fn arg_type<'t>(cx: Cx<'t>, expr: Rule<'t, Expr>) -> Rule<'t, ArgType> {
    let function = tok(Kind::Fn).ignore_then(axis_names(cx)).map(ArgType::Function);
    let bare = axes(cx, expr.clone()).map_with(move |(open, axes), e| {
        let span = cx.span(e.slice());
        ArgType::Tensor(TypeExpr { dtype: None, open, axes, span })
    });
    let named = word().then(axes(cx, expr).or_not()).map_with(move |(word, axes), e| match axes {
        Some((open, axes)) => {
            let span = cx.span(e.slice());
            ArgType::Tensor(TypeExpr { dtype: Some(cx.name(word)), open, axes, span })
        }
        None => match word.kind {
            Kind::Size => ArgType::Size,
            Kind::Real => ArgType::Real,
            Kind::Bool => ArgType::Bool,
            _ => ArgType::Config(cx.name(word)),
        },
    });
    choice((bare, named, function)).boxed()
}

/// `x: [.., D]`, `eps: real = 1e-5`.
pub(crate) fn arg<'t>(cx: Cx<'t>, expr: Rule<'t, Expr>) -> Rule<'t, Arg> {
    name(cx)
        .then_ignore(tok(Kind::Colon))
        .then(arg_type(cx, expr.clone()))
        .then(tok(Kind::Assign).ignore_then(expr).or_not())
        .map(|((name, ty), default)| Arg { name, ty, default })
        .boxed()
}

/// `hidden: size = from("hidden_size")` of a configuration.
pub(crate) fn field<'t>(cx: Cx<'t>, expr: Rule<'t, Expr>) -> Rule<'t, Field> {
    let ty = word().map(move |word| match word.kind {
        Kind::Size => FieldType::Size,
        Kind::Real => FieldType::Real,
        Kind::Bool => FieldType::Bool,
        Kind::Text => FieldType::Text,
        _ => FieldType::Config(cx.name(word)),
    });
    name(cx)
        .then_ignore(tok(Kind::Colon))
        .then(ty)
        .then(tok(Kind::Assign).ignore_then(expr).or_not())
        .map_with(move |((name, ty), default), e| {
            let doc = cx.docs.take(name.span.start);
            Field { doc, name, ty, default, span: cx.span(e.slice()) }
        })
        .boxed()
}
