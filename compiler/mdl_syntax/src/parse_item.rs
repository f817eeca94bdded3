//! Items: `use`, `config`, `fn`, `block`, `model`, `preset`, and what stands in their braces.
//!
//! Entries in braces have no separators, so recovery skips to what looks like the next entry: a
//! token that is first on its line and begins one.

use chumsky::prelude::*;

use crate::ast::*;
use crate::lex::MAX_LIST;
use crate::parse_expr::{LONG_LIST, call_args, expressions, unescape};
use crate::parse_token::*;
use crate::parse_type::{arg, axes, axis_names, field, tensor};
use crate::token::{Kind, Token};

const ANNOTATION: Special = Special {
    code: "E0107",
    message: "the only annotation is `@kernel(name)`",
    here: "this is another one",
    help: "write `@kernel(name)` with the name of a kernel, or remove the annotation",
};

/// One whole item; what follows it up to the end of the input is skipped with an error.
pub(crate) fn item<'t>(cx: Cx<'t>) -> Rule<'t, Item> {
    let (expr, body) = expressions(cx);
    let function = function(cx, expr.clone(), body);
    let block = block(cx, expr.clone(), function.clone());
    let kind = choice((
        function.map(ItemKind::Fn),
        tok_item(Kind::Block).ignore_then(block.clone()).map(ItemKind::Block),
        tok_item(Kind::Model).ignore_then(block).map(ItemKind::Model),
        config(cx, expr.clone()).map(ItemKind::Config),
        preset(cx, expr).map(ItemKind::Preset),
        import(cx).map(ItemKind::Use),
    ));
    let rest = junk(|_, _| false);
    kind.map_with(move |kind, e| {
        let span = cx.span(e.slice());
        let kind = with_keyword(kind, span);
        Item { doc: cx.docs.take(span.start), kind, span }
    })
    .then_ignore(end_of_input().recover_with(via_parser(rest)))
    .boxed()
}

/// A block is parsed after its keyword, which belongs to its span.
fn with_keyword(kind: ItemKind, span: crate::span::Span) -> ItemKind {
    match kind {
        ItemKind::Block(block) => ItemKind::Block(Block { span, ..block }),
        ItemKind::Model(block) => ItemKind::Model(Block { span, ..block }),
        other => other,
    }
}

fn tok_item<'t>(kind: Kind) -> impl Parser<'t, In<'t>, Token, Extra> + Copy {
    accept(Wanted::ITEM, move |token| token.kind == kind)
}

/// `use std.rope.{Rope, rotate}`.
fn import<'t>(cx: Cx<'t>) -> Rule<'t, Use> {
    let more = tok(Kind::Dot).ignore_then(name(cx)).repeated().collect::<Vec<Name>>();
    let names = list(tok(Kind::BraceOpen), Kind::BraceClose, 1, name(cx));
    let tail = tok(Kind::Dot).ignore_then(names).or_not();
    tok_item(Kind::Use)
        .ignore_then(name(cx))
        .then(more)
        .then(tail)
        .validate(|((first, more), names), e, emitter| {
            let mut path = vec![first];
            path.extend(more);
            if let Some(names) = names {
                return Use { path, names };
            }
            if path.len() == 1 {
                let at = e.span().end as u32;
                let wanted = Wanted::kind(Kind::Dot);
                emitter.emit(Fault { at, len: 1, wanted, special: None });
            }
            let names = path.pop().into_iter().collect();
            Use { path, names }
        })
        .boxed()
}

/// `@kernel(attention) fn f[T](x: [.., T]) -> [.., T] { … }`.
fn function<'t>(cx: Cx<'t>, expr: Rule<'t, Expr>, body: Rule<'t, Body>) -> Rule<'t, Fn> {
    let kernel = accept(Wanted::ITEM, |token| token.kind == Kind::At)
        .ignore_then(name(cx))
        .then_ignore(tok(Kind::ParenOpen))
        .then(name(cx))
        .then_ignore(tok(Kind::ParenClose))
        .validate(|(word, kernel), e, emitter| {
            if &*word.text != "kernel" {
                emitter.emit(Fault::special(e.span(), &ANNOTATION));
            }
            kernel
        });
    let args = list(tok(Kind::ParenOpen), Kind::ParenClose, 0, arg(cx, expr.clone()));
    let one = tensor(cx, expr.clone()).map(|ty| vec![ty]);
    let tuple = list(tok(Kind::ParenOpen), Kind::ParenClose, 1, tensor(cx, expr.clone()));
    let result = tok(Kind::Arrow).ignore_then(one.or(tuple)).or_not();
    let nothing = rest_of(starts_entry)
        .map_with(move |(), e| Expr { kind: ExprKind::Error, span: cx.span(e.slice()) });
    let short = tok(Kind::Assign)
        .ignore_then(expr.recover_with(via_parser(nothing)))
        .map(|result| Body { lets: Vec::new(), result: Box::new(result) });
    kernel
        .or_not()
        .then_ignore(tok_item(Kind::Fn))
        .then(name(cx))
        .then(axis_names(cx).or_not())
        .then(args)
        .then(result)
        .then(short.or(body))
        .map_with(move |(((((kernel, name), axes), args), result), body), e| Fn {
            kernel,
            name,
            axes: axes.unwrap_or_default(),
            args,
            result: result.unwrap_or_default(),
            body,
            span: cx.span(e.slice()),
        })
        .boxed()
}

/// Whether a token that is first on its line begins a member or a method.
fn starts_entry(token: Token, next: Option<Token>) -> bool {
    let member = token.kind.is_name() && next.is_some_and(|next| next.kind == Kind::Colon);
    member || matches!(token.kind, Kind::Fn | Kind::At)
}

/// `Attention(c: Llama) { members and methods }`, after its keyword.
fn block<'t>(cx: Cx<'t>, expr: Rule<'t, Expr>, function: Rule<'t, Fn>) -> Rule<'t, Block> {
    enum Entry {
        Member(Member),
        Method(Fn),
        Skipped,
    }
    let args = list(tok(Kind::ParenOpen), Kind::ParenClose, 0, arg(cx, expr.clone()));
    let method = function.map(move |method| {
        cx.docs.take(method.span.start);
        Entry::Method(method)
    });
    let entry = method.or(member(cx, expr).map(Entry::Member));
    let skipped = junk(starts_entry);
    let entries = entries(entry, skipped.map(|()| Entry::Skipped));
    name(cx)
        .then(axis_names(cx).or_not())
        .then(args)
        .then(entries)
        .map_with(move |(((name, axes), args), entries), e| {
            let (mut members, mut methods) = (Vec::new(), Vec::new());
            for entry in entries {
                match entry {
                    Entry::Member(member) => members.push(member),
                    Entry::Method(method) => methods.push(method),
                    Entry::Skipped => {}
                }
            }
            let (axes, span) = (axes.unwrap_or_default(), cx.span(e.slice()));
            Block { name, axes, args, members, methods, span }
        })
        .boxed()
}

/// `{ entries }` with recovery per entry.
fn entries<'t, O: 't>(
    entry: impl Parser<'t, In<'t>, O, Extra> + Clone + 't,
    skipped: impl Parser<'t, In<'t>, O, Extra> + Clone + 't,
) -> impl Parser<'t, In<'t>, Vec<O>, Extra> + Clone + 't {
    let entries = entry
        .then_ignore(tok(Kind::Comma).or_not())
        .recover_with(via_parser(skipped))
        .repeated()
        .collect::<Tight<O>>()
        .validate(|Tight(mut entries), e, emitter| {
            if entries.len() > MAX_LIST {
                emitter.emit(Fault::special(e.span(), &LONG_LIST));
                entries.truncate(MAX_LIST);
            }
            entries
        });
    tok(Kind::BraceOpen).ignore_then(entries).then_ignore(tok(Kind::BraceClose))
}

/// `wq: param[out, in] as "q.weight" init normal(0.02) = wk if c.tied`, or
/// `stack: Layer(c) * layers as "model.layers"`.
fn member<'t>(cx: Cx<'t>, expr: Rule<'t, Expr>) -> Rule<'t, Member> {
    let stored = tok(Kind::As)
        .ignore_then(tok(Kind::String))
        .map(move |token| (unescape(token.text(cx.text)), cx.token(token)))
        .or_not();
    let init = tok(Kind::Init).ignore_then(expr.clone()).or_not();
    let condition = tok(Kind::If).ignore_then(expr.clone()).or_not();
    let tied = tok(Kind::Assign).ignore_then(name(cx)).then(condition).or_not();
    let ty = axes(cx, expr.clone()).map_with(move |(open, axes), e| {
        let span = cx.span(e.slice());
        TypeExpr { dtype: None, open, axes, span }
    });
    let param = tok_type(Kind::Param)
        .ignore_then(ty)
        .then(stored)
        .then(init)
        .then(tied)
        .map(|(((ty, stored), init), tied)| (MemberKind::Param { ty, init, tied }, stored));
    let count = tok(Kind::Star).ignore_then(name(cx)).or_not();
    let instance = accept(Wanted::TYPE, |token| token.kind.is_name())
        .map(move |token| cx.name(token))
        .then(axis_names(cx).or_not())
        .then(call_args(cx, expr))
        .then(count)
        .then(stored)
        .map(|((((block, axes), args), count), stored)| {
            let axes = axes.unwrap_or_default();
            (MemberKind::Instance { block, axes, args, count }, stored)
        });
    name(cx)
        .then_ignore(tok(Kind::Colon))
        .then(param.or(instance))
        .map_with(move |(name, (kind, stored)), e| {
            let doc = cx.docs.take(name.span.start);
            Member { doc, name, kind, stored, span: cx.span(e.slice()) }
        })
        .boxed()
}

fn tok_type<'t>(kind: Kind) -> impl Parser<'t, In<'t>, Token, Extra> + Copy {
    accept(Wanted::TYPE, move |token| token.kind == kind)
}

/// `config Rope { base: real = 10_000 … assert base > 0 }`.
fn config<'t>(cx: Cx<'t>, expr: Rule<'t, Expr>) -> Rule<'t, Config> {
    let field = field(cx, expr.clone()).map(|field| Some((Some(field), None)));
    let assert = tok(Kind::Assert).ignore_then(expr).map(|assert| Some((None, Some(assert))));
    let skipped = junk(|token, next| {
        let field = token.kind.is_name() && next.is_some_and(|next| next.kind == Kind::Colon);
        field || token.kind == Kind::Assert
    });
    tok_item(Kind::Config)
        .ignore_then(name(cx))
        .then(entries(field.or(assert), skipped.map(|()| None)))
        .map(|(name, entries)| {
            let (fields, asserts): (Vec<_>, Vec<_>) = entries.into_iter().flatten().unzip();
            let fields = fields.into_iter().flatten().collect();
            let asserts = asserts.into_iter().flatten().collect();
            Config { name, fields, asserts }
        })
        .boxed()
}

/// `preset tiny: Llama { hidden = 64, layers = 2 … assert params == 1 }`.
fn preset<'t>(cx: Cx<'t>, expr: Rule<'t, Expr>) -> Rule<'t, Preset> {
    let binding = name(cx).then_ignore(tok(Kind::Assign)).then(expr.clone());
    let binding = binding.map(|binding| Some((Some(binding), None)));
    let assert = tok(Kind::Assert).ignore_then(expr).map(|assert| Some((None, Some(assert))));
    let skipped = junk(|token, next| {
        let binding = token.kind.is_name() && next.is_some_and(|next| next.kind == Kind::Assign);
        binding || token.kind == Kind::Assert
    });
    tok_item(Kind::Preset)
        .ignore_then(name(cx))
        .then_ignore(tok(Kind::Colon))
        .then(name(cx))
        .then(entries(binding.or(assert), skipped.map(|()| None)))
        .map(|((name, config), entries)| {
            let (bindings, asserts): (Vec<_>, Vec<_>) = entries.into_iter().flatten().unzip();
            let bindings = bindings.into_iter().flatten().collect();
            let asserts = asserts.into_iter().flatten().collect();
            Preset { name, config, bindings, asserts }
        })
        .boxed()
}
