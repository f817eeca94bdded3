//! Text to the syntax tree. Never fails: what cannot be parsed is an `Error` node and a diagnostic.
//!
//! The tokens are first cut into items at the words that begin one, and each item is parsed alone.
//! So a broken item cannot spoil its neighbours, and brackets are matched here, where a bracket
//! without a partner is best explained; the parsers proper see only matched brackets.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use chumsky::Parser;

use crate::ast::{Item, ItemKind, Module};
use crate::diag::{Diagnostic, Sink};
use crate::lex::{MAX_LIST, lex};
use crate::parallel;
use crate::parse_item::item;
use crate::parse_token::{Cx, Fault, Rule, Wanted};
use crate::span::{FileId, Span};
use crate::token::{Kind, Token, Tokens};

/// Parses one file. The tree of a file that breaks a limit is empty.
pub fn parse(file: FileId, text: &str, sink: &mut Sink) -> Module {
    let tokens = lex(file, text, sink);
    parse_tokens(&tokens, text, sink)
}

/// Parses tokens that `lex` made from the same text.
pub(crate) fn parse_tokens(tokens: &Tokens, text: &str, sink: &mut Sink) -> Module {
    let mut module = Module::default();
    if !tokens.within_limits {
        return module;
    }
    let clean = !sink.has_errors();
    let docs = Docs::new(tokens, text);
    module.doc = docs.module.clone();
    let stream: Vec<Token> =
        tokens.tokens.iter().copied().filter(|token| !token.kind.is_comment()).collect();
    let cx = Cx { file: tokens.file, text, docs: &docs };
    parse_items(cx, &stream, &mut module, sink);
    if module.items.len() > MAX_LIST {
        let span = module.items[MAX_LIST].span;
        let message = "a file has more than 65,536 items";
        let help = "split the file into modules that import each other";
        sink.push(Diagnostic::error("E0008", message, span, "one item too many").help(help));
        module.items.truncate(MAX_LIST);
    }
    if clean && !sink.has_errors() {
        docs.report_unused(sink);
    }
    module
}

fn parse_items(cx: Cx<'_>, stream: &[Token], module: &mut Module, sink: &mut Sink) {
    // Each with what is wrong with its brackets.
    let mut chunks: Vec<Chunk> = Vec::new();
    for chunk in split(cx.text, stream, 0..stream.len(), false) {
        if unmatched(cx, &stream[chunk.clone()]).is_none() {
            chunks.push((chunk, None));
            continue;
        }
        for part in split(cx.text, stream, chunk, true) {
            let fault = unmatched(cx, &stream[part.clone()]);
            chunks.push((part, fault));
        }
    }
    // A file of a few items is parsed before a thread has started.
    let together = if chunks.len() < MANY { chunks.len() } else { PORTION };
    let portions: Vec<&[Chunk]> = chunks.chunks(together.max(1)).collect();
    let parsed = parallel::map(
        portions.len(),
        || item(cx),
        |parser, at| {
            let mut sink = Sink::default();
            let one = |chunk| parse_chunk(cx, stream, parser, chunk, &mut sink);
            (portions[at].iter().map(one).collect::<Vec<Item>>(), sink)
        },
    );
    for (items, faults) in parsed {
        module.items.extend(items);
        faults.diagnostics.into_iter().for_each(|fault| sink.push(fault));
    }
}

/// From how many items on a file is parsed in portions, and how many are in each.
const MANY: usize = 128;
const PORTION: usize = 32;

/// The tokens of an item, and what is wrong with its brackets.
type Chunk = (Range<usize>, Option<Diagnostic>);

fn parse_chunk<'t>(
    cx: Cx<'t>,
    stream: &'t [Token],
    parser: &Rule<'t, Item>,
    (chunk, fault): &Chunk,
    sink: &mut Sink,
) -> Item {
    let tokens = &stream[chunk.clone()];
    let error = Item { doc: String::new(), kind: ItemKind::Error, span: cx.span(tokens) };
    if let Some(diagnostic) = fault {
        sink.push(diagnostic.clone());
        return error;
    }
    let (parsed, faults) = parser.parse(tokens).into_output_errors();
    for fault in faults {
        if let Some(diagnostic) = explain(cx, fault, &stream[chunk.start..], stream) {
            sink.push(diagnostic);
        }
    }
    parsed.unwrap_or(error)
}

/// Cuts tokens at the words that begin an item. `fn` also begins a method, so inside brackets it
/// counts only in the first column, and in braces only where brackets do not match anyway.
fn split(text: &str, stream: &[Token], range: Range<usize>, loose: bool) -> Vec<Range<usize>> {
    let mut chunks = Vec::new();
    let (mut begin, mut depth, mut braces) = (range.start, 0usize, 0usize);
    let mut annotated = false;
    for at in range.clone() {
        let token = stream[at];
        let starts = match token.kind {
            Kind::Use | Kind::Config | Kind::Block | Kind::Model | Kind::Preset => {
                depth == 0 || token.first_on_line
            }
            Kind::Fn | Kind::At => {
                let column0 = token.start == 0
                    || text.as_bytes().get(token.start as usize - 1) == Some(&b'\n');
                let type_of_arg =
                    stream.get(at + 1).map(|next| next.kind) == Some(Kind::BracketOpen);
                let lost = loose || (depth > braces && !type_of_arg);
                let outside = depth == 0 || (column0 && lost);
                outside && !(annotated && token.kind == Kind::Fn)
            }
            _ => false,
        };
        if starts {
            if at > begin {
                chunks.push(begin..at);
            }
            (begin, depth, braces, annotated) = (at, 0, 0, false);
        }
        if depth == 0 && matches!(token.kind, Kind::Fn | Kind::At) {
            annotated = token.kind == Kind::At;
        }
        depth += usize::from(token.kind.is_open());
        depth = depth.saturating_sub(usize::from(token.kind.is_close()));
        braces += usize::from(token.kind == Kind::BraceOpen);
        braces = braces.saturating_sub(usize::from(token.kind == Kind::BraceClose)).min(depth);
    }
    if range.end > begin {
        chunks.push(begin..range.end);
    }
    chunks
}

/// The first bracket without a partner.
fn unmatched(cx: Cx<'_>, tokens: &[Token]) -> Option<Diagnostic> {
    let mut open: Vec<Token> = Vec::new();
    for token in tokens {
        if token.kind.is_open() {
            open.push(*token);
        } else if token.kind.is_close() {
            let close = token.text(cx.text);
            match open.pop() {
                Some(last) if last.kind.closer() == Some(token.kind) => {}
                Some(last) => {
                    let message = format!("`{}` is closed by `{close}`", last.text(cx.text));
                    let here = "this closes another kind of bracket";
                    let there = "the bracket that is open here";
                    return Some(
                        Diagnostic::error("E0103", message, cx.token(*token), here)
                            .label(cx.token(last), there),
                    );
                }
                None => {
                    let message = format!("`{close}` closes nothing");
                    let here = "no bracket is open here";
                    return Some(
                        Diagnostic::error("E0103", message, cx.token(*token), here)
                            .help(format!("remove this `{close}`")),
                    );
                }
            }
        }
    }
    let last = *open.last()?;
    let message = format!("`{}` is not closed", last.text(cx.text));
    let end = cx.span(&tokens[tokens.len() - 1..]);
    let end = Span { start: end.end, ..end };
    Some(
        Diagnostic::error("E0102", message, cx.token(last), "opened here")
            .label(end, "still open where the item ends"),
    )
}

/// A syntax error in plain English. Errors at bad bytes are left out, the lexer reported those.
/// `rest` starts at the item and goes on behind it, so that there is a token at every place.
fn explain(cx: Cx<'_>, fault: Fault, rest: &[Token], all: &[Token]) -> Option<Diagnostic> {
    let at = fault.at as usize;
    if let Some(special) = fault.special {
        let end = (at + fault.len as usize).clamp(at, rest.len());
        let span = cx.span(rest.get(at..end).unwrap_or(&[]));
        let diagnostic = Diagnostic::error(special.code, special.message, span, special.here);
        return Some(diagnostic.help(special.help));
    }
    let wanted = fault.wanted.describe();
    let Some(token) = rest.get(at) else {
        let end = all.last().map_or(0, |token| token.end);
        let span = Span { file: cx.file, start: end, end };
        let message = format!("expected {wanted}, found the end of the file");
        return Some(Diagnostic::error("E0101", message, span, format!("expected {wanted}")));
    };
    if matches!(token.kind, Kind::Error | Kind::OpenString) {
        return None;
    }
    let found: String = token.text(cx.text).chars().take(32).collect();
    let message = format!("expected {wanted}, found `{}`", found.escape_debug());
    let here = format!("expected {wanted}");
    let diagnostic = Diagnostic::error("E0101", message, cx.token(*token), here);
    Some(match help(*token, fault.wanted, &found) {
        Some(help) => diagnostic.help(help),
        None => diagnostic,
    })
}

fn help(found: Token, wanted: Wanted, text: &str) -> Option<String> {
    let continues = matches!(found.kind, Kind::Minus | Kind::ParenOpen | Kind::BracketOpen);
    if found.first_on_line && continues && wanted.has(Wanted::OPERATOR) {
        return Some(format!("write `{text}` on the line above if it continues that line"));
    }
    let word = text.bytes().all(|byte| byte.is_ascii_lowercase());
    if wanted.has(Wanted::NAME) && word && !found.first_on_line {
        return Some(format!("`{text}` is a word of the language; choose another name"));
    }
    None
}

/// The doc comments of a file, found by the token they stand before.
#[derive(Debug, Default)]
pub(crate) struct Docs {
    module: String,
    runs: Vec<DocRun>,
    /// Module docs behind the first item, and docs at the end of a line.
    misplaced: Vec<Span>,
}

#[derive(Debug)]
struct DocRun {
    /// Where the next token that is no comment starts.
    owner: u32,
    text: String,
    span: Span,
    used: AtomicBool,
}

impl Docs {
    fn new(tokens: &Tokens, text: &str) -> Self {
        let mut docs = Docs::default();
        let mut pending: Option<DocRun> = None;
        let mut begun = false;
        for token in &tokens.tokens {
            let line = token.text(text);
            match token.kind {
                Kind::Comment => {}
                Kind::ModuleDoc if !begun && token.first_on_line => {
                    if !docs.module.is_empty() {
                        docs.module.push('\n');
                    }
                    docs.module.push_str(content(line));
                }
                Kind::Doc if token.first_on_line => match &mut pending {
                    Some(run) => {
                        run.text.push('\n');
                        run.text.push_str(content(line));
                    }
                    None => {
                        let (text, span) = (content(line).to_string(), tokens.span(*token));
                        let used = AtomicBool::new(false);
                        pending = Some(DocRun { owner: u32::MAX, text, span, used });
                    }
                },
                Kind::Doc | Kind::ModuleDoc => docs.misplaced.push(tokens.span(*token)),
                _ => {
                    begun = true;
                    if let Some(run) = pending.take() {
                        docs.runs.push(DocRun { owner: token.start, ..run });
                    }
                }
            }
        }
        docs.runs.extend(pending);
        docs
    }

    /// The doc comment above the token that starts at `owner`, which is used by that.
    pub fn take(&self, owner: u32) -> String {
        match self.runs.binary_search_by_key(&owner, |run| run.owner) {
            Ok(at) => {
                self.runs[at].used.store(true, Ordering::Relaxed);
                self.runs[at].text.clone()
            }
            Err(_) => String::new(),
        }
    }

    fn report_unused(&self, sink: &mut Sink) {
        let unused =
            self.runs.iter().filter(|run| !run.used.load(Ordering::Relaxed)).map(|run| run.span);
        for span in unused.chain(self.misplaced.iter().copied()) {
            let message = "a doc comment documents nothing";
            let here = "no item, field, member or method follows this";
            let help = "write `//` for a comment";
            sink.push(Diagnostic::error("E0108", message, span, here).help(help));
        }
    }
}

/// The text of a doc comment after its slashes.
fn content(line: &str) -> &str {
    let text = line.trim_start_matches('/');
    let text = text.strip_prefix('!').unwrap_or(text);
    text.strip_prefix(' ').unwrap_or(text)
}
