//! What all parsers share: how a token is taken, what an error is, how junk is skipped.
//!
//! The input is a slice of tokens without comments, whose brackets are known to match. Errors are
//! a set of expectations in one word, so that a failed alternative costs nothing but an `or`.

use chumsky::error::{Error, LabelError};
use chumsky::prelude::*;
use chumsky::util::MaybeRef;
use chumsky::{DefaultExpected, input::InputRef};

use crate::ast::Name;
use crate::parse::Docs;
use crate::span::{FileId, Span};
use crate::token::{Kind, Token};

pub(crate) type In<'t> = &'t [Token];
pub(crate) type Extra = extra::Err<Fault>;
pub(crate) type Rule<'t, O> = chumsky::Boxed<'t, 't, In<'t>, O, Extra>;

/// Things the grammar can want at a place: token kinds, and groups of them from bit 80 on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted(u128);

const GROUPS: [(&str, u32); 5] =
    [("a name", 80), ("an expression", 81), ("a type", 82), ("an item", 83), ("an operator", 86)];

impl Wanted {
    pub const NAME: Wanted = Wanted(1 << 80);
    pub const EXPRESSION: Wanted = Wanted(1 << 81);
    pub const TYPE: Wanted = Wanted(1 << 82);
    pub const ITEM: Wanted = Wanted(1 << 83);
    /// What may follow any value; said only where nothing else is wanted.
    pub const OPERATOR: Wanted = Wanted(1 << 86);

    pub const fn kind(kind: Kind) -> Self {
        Wanted(1 << kind as u8)
    }

    pub fn has(self, other: Wanted) -> bool {
        self.0 & other.0 != 0
    }

    /// "`)` or `,`".
    pub fn describe(self) -> String {
        let mut words: Vec<String> = Vec::new();
        for (word, bit) in GROUPS {
            if self.0 >> bit & 1 == 1 && (bit != 86 || self.0 == Wanted::OPERATOR.0) {
                words.push(word.to_string());
            }
        }
        if self.has(Wanted::kind(Kind::String)) {
            words.push("a text in quotes".to_string());
        }
        // The start of a type goes without saying.
        let types = [Kind::BracketOpen, Kind::Fn, Kind::Param].map(Wanted::kind);
        let types = if self.has(Wanted::TYPE) { types } else { Default::default() };
        for (kind, text) in SPELLING {
            let said = types.contains(&Wanted::kind(*kind));
            if !said && self.has(Wanted::kind(*kind)) {
                words.push(format!("`{text}`"));
            }
        }
        match words.split_last() {
            None => "nothing more".to_string(),
            Some((last, [])) => last.clone(),
            Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        }
    }
}

const SPELLING: &[(Kind, &str)] = &[
    (Kind::ParenClose, ")"),
    (Kind::BracketClose, "]"),
    (Kind::BraceClose, "}"),
    (Kind::Comma, ","),
    (Kind::Colon, ":"),
    (Kind::Assign, "="),
    (Kind::Arrow, "->"),
    (Kind::ParenOpen, "("),
    (Kind::BracketOpen, "["),
    (Kind::BraceOpen, "{"),
    (Kind::Dot, "."),
    (Kind::DotDot, ".."),
    (Kind::Star, "*"),
    (Kind::At, "@"),
    (Kind::Let, "let"),
    (Kind::Axis, "axis"),
    (Kind::Fn, "fn"),
    (Kind::Else, "else"),
    (Kind::If, "if"),
    (Kind::As, "as"),
    (Kind::Assert, "assert"),
    (Kind::From, "from"),
    (Kind::Init, "init"),
];

/// A fact that the grammar cannot say as an expectation.
#[derive(Debug, PartialEq)]
pub(crate) struct Special {
    pub code: &'static str,
    pub message: &'static str,
    pub here: &'static str,
    pub help: &'static str,
}

/// A syntax error: the token it is at, what would have been right, or a special fact about
/// `len` tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub at: u32,
    pub len: u32,
    pub wanted: Wanted,
    pub special: Option<&'static Special>,
}

impl Fault {
    pub fn special(span: SimpleSpan, special: &'static Special) -> Self {
        let len = (span.end - span.start) as u32;
        let wanted = Wanted::default();
        Fault { at: span.start as u32, len, wanted, special: Some(special) }
    }

    /// Something is missing before the last token of `span`.
    pub fn missing(span: SimpleSpan, wanted: Wanted) -> Self {
        Fault { at: span.end.saturating_sub(1) as u32, len: 1, wanted, special: None }
    }
}

impl<'t> Error<'t, In<'t>> for Fault {
    fn merge(self, other: Self) -> Self {
        let wanted = Wanted(self.wanted.0 | other.wanted.0);
        Fault { wanted, special: self.special.or(other.special), ..self }
    }
}

impl<'t> LabelError<'t, In<'t>, DefaultExpected<'t, Token>> for Fault {
    fn expected_found<E: IntoIterator<Item = DefaultExpected<'t, Token>>>(
        _: E,
        _: Option<MaybeRef<'t, Token>>,
        span: SimpleSpan,
    ) -> Self {
        Fault { at: span.start as u32, len: 1, wanted: Wanted::default(), special: None }
    }
}

/// What turning tokens into nodes needs; copied into every parser that makes a node.
#[derive(Clone, Copy)]
pub(crate) struct Cx<'t> {
    pub file: FileId,
    pub text: &'t str,
    pub docs: &'t Docs,
}

impl<'t> Cx<'t> {
    pub fn name(self, token: Token) -> Name {
        Name { text: token.text(self.text).into(), span: self.token(token) }
    }

    pub fn token(self, token: Token) -> Span {
        Span { file: self.file, start: token.start, end: token.end }
    }

    /// The span of some tokens in a row.
    pub fn span(self, tokens: &[Token]) -> Span {
        let start = tokens.first().map_or(0, |token| token.start);
        let end = tokens.last().map_or(start, |token| token.end);
        Span { file: self.file, start, end }
    }
}

/// Takes one token for which `test` holds.
pub(crate) fn accept<'t, F>(wanted: Wanted, test: F) -> impl Parser<'t, In<'t>, Token, Extra> + Copy
where
    F: Fn(Token) -> bool + Copy + 't,
{
    custom(move |inp: &mut InputRef<'t, '_, In<'t>, Extra>| match inp.peek() {
        Some(token) if test(token) => {
            inp.skip();
            Ok(token)
        }
        _ => Err(Fault { at: *inp.cursor().inner() as u32, len: 1, wanted, special: None }),
    })
}

/// Holds before a token for which `test` holds, and takes nothing.
pub(crate) fn next_is<'t, F>(wanted: Wanted, test: F) -> impl Parser<'t, In<'t>, (), Extra> + Copy
where
    F: Fn(Token) -> bool + Copy + 't,
{
    custom(move |inp: &mut InputRef<'t, '_, In<'t>, Extra>| match inp.peek() {
        Some(token) if test(token) => Ok(()),
        _ => Err(Fault { at: *inp.cursor().inner() as u32, len: 1, wanted, special: None }),
    })
}

pub(crate) fn tok<'t>(kind: Kind) -> impl Parser<'t, In<'t>, Token, Extra> + Copy {
    accept(Wanted::kind(kind), move |token| token.kind == kind)
}

/// A token that continues a value, so it must not be first on its line.
pub(crate) fn inline<'t>(kind: Kind) -> impl Parser<'t, In<'t>, Token, Extra> + Copy {
    accept(Wanted::OPERATOR, move |token| token.kind == kind && !token.first_on_line)
}

pub(crate) fn name<'t>(cx: Cx<'t>) -> impl Parser<'t, In<'t>, Name, Extra> + Copy {
    accept(Wanted::NAME, |token| token.kind.is_name()).map(move |token| cx.name(token))
}

/// Holds at the end of the input.
pub(crate) fn end_of_input<'t>() -> impl Parser<'t, In<'t>, (), Extra> + Copy {
    custom(move |inp: &mut InputRef<'t, '_, In<'t>, Extra>| match inp.peek() {
        None => Ok(()),
        Some(_) => {
            let at = *inp.cursor().inner() as u32;
            Err(Fault { at, len: 1, wanted: Wanted::ITEM, special: None })
        }
    })
}

/// Skips what `junk` skips, or nothing.
pub(crate) fn rest_of<'t>(
    stop: fn(Token, Option<Token>) -> bool,
) -> impl Parser<'t, In<'t>, (), Extra> + Copy {
    skip(stop, true)
}

/// Skips whole bracketed groups until a token that `stop` knows by itself and its successor, or
/// the bracket that closes the present group. Skips one at least, and fails where there is none.
pub(crate) fn junk<'t>(
    stop: fn(Token, Option<Token>) -> bool,
) -> impl Parser<'t, In<'t>, (), Extra> + Copy {
    skip(stop, false)
}

fn skip<'t>(
    stop: fn(Token, Option<Token>) -> bool,
    or_nothing: bool,
) -> impl Parser<'t, In<'t>, (), Extra> + Copy {
    custom(move |inp: &mut InputRef<'t, '_, In<'t>, Extra>| {
        let mut depth = 0usize;
        let mut skipped = or_nothing;
        while let Some(token) = inp.peek() {
            if depth == 0 {
                if token.kind.is_close() {
                    break;
                }
                if skipped && token.first_on_line {
                    let before = inp.save();
                    inp.skip();
                    let next = inp.peek();
                    inp.rewind(before);
                    if stop(token, next) {
                        break;
                    }
                }
            }
            depth += usize::from(token.kind.is_open());
            depth -= usize::from(token.kind.is_close());
            inp.skip();
            skipped = true;
        }
        let at = *inp.cursor().inner() as u32;
        let wanted = Wanted::default();
        if skipped { Ok(()) } else { Err(Fault { at, len: 1, wanted, special: None }) }
    })
}

/// A list as long as what it holds: most of them have one element or two, where a `Vec` that grows
/// makes room for four.
pub(crate) struct Tight<T>(pub Vec<T>);

impl<T> FromIterator<T> for Tight<T> {
    fn from_iter<I: IntoIterator<Item = T>>(iter: I) -> Self {
        let mut iter = iter.into_iter();
        // After its end the iterator would parse again.
        let Some(first) = iter.next() else { return Tight(Vec::new()) };
        let Some(second) = iter.next() else { return Tight(vec![first]) };
        let mut all = vec![first, second];
        all.extend(iter);
        Tight(all)
    }
}

/// `open item, item close` with a comma allowed at the end; a broken list is skipped to its end.
pub(crate) fn list<'t, O: 't>(
    open: impl Parser<'t, In<'t>, Token, Extra> + Clone + 't,
    close: Kind,
    least: usize,
    item: impl Parser<'t, In<'t>, O, Extra> + Clone + 't,
) -> impl Parser<'t, In<'t>, Vec<O>, Extra> + Clone {
    let items = item
        .separated_by(tok(Kind::Comma))
        .at_least(least)
        .allow_trailing()
        .collect::<Tight<O>>()
        .map(|items| items.0)
        .then_ignore(tok(close));
    let skipped = junk(|_, _| false).or_not().then(tok(close)).map(|_| Vec::new());
    open.ignore_then(items.recover_with(via_parser(skipped)))
}
