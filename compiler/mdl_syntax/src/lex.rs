//! Text to tokens. Every byte is in a token or blank, and the limits on hostile input are here.
//!
//! Whatever breaks a limit clears `within_limits`: the parser recurses along brackets, and a tree
//! is as deep as its operators are many, so both are bounded before anything recurses.

use logos::Logos;

use crate::diag::{Diagnostic, Sink};
use crate::span::{FileId, Span};
use crate::token::{Kind, Token, Tokens};

pub const MAX_FILE_BYTES: usize = 16 << 20;
pub const MAX_TOKENS: usize = 4_000_000;
pub const MAX_NAME_BYTES: usize = 256;
pub const MAX_NESTING: usize = 64;
/// Operators, calls and members that one expression may hold, with those of what is around it.
pub const MAX_OPERATORS: usize = 256;
pub const MAX_LIST: usize = 65_536;

/// Splits a text into tokens. Never fails: bad bytes become `Kind::Error` and a diagnostic.
pub fn lex(file: FileId, text: &str, sink: &mut Sink) -> Tokens {
    let mut scan = Scan::new(file, text, sink);
    if text.len() > MAX_FILE_BYTES {
        let here = format!("{} bytes, where {MAX_FILE_BYTES} are allowed", text.len());
        let help = "split the file into modules that import each other";
        let message = "the file is larger than 16 MiB";
        scan.limit(Diagnostic::error("E0004", message, scan.span(0, 0), here).help(help));
        return scan.out;
    }
    scan.out.tokens.reserve(text.len() / 5);
    let mut lexer = Kind::lexer(text);
    while let Some(kind) = lexer.next() {
        let range = lexer.span();
        if scan.out.tokens.len() == MAX_TOKENS {
            let span = scan.span(range.start, range.end);
            let message = "the file has more than 4,000,000 tokens";
            let here = "this one is beyond the limit";
            let help = "split the file into modules that import each other";
            scan.limit(Diagnostic::error("E0005", message, span, here).help(help));
            break;
        }
        scan.push(kind.unwrap_or(Kind::Error), range.start, range.end);
    }
    scan.report_errors();
    scan.out
}

/// What is counted per open bracket; the bottom level is the file.
#[derive(Default)]
struct Level {
    commas: usize,
    operators: usize,
}

struct Scan<'a> {
    text: &'a str,
    sink: &'a mut Sink,
    out: Tokens,
    levels: Vec<Level>,
    /// Sum of `operators` over the levels.
    operators: usize,
    last_end: usize,
    has_errors: bool,
}

impl<'a> Scan<'a> {
    fn new(file: FileId, text: &'a str, sink: &'a mut Sink) -> Self {
        Scan {
            text,
            sink,
            out: Tokens { file, tokens: Vec::new(), within_limits: true },
            levels: vec![Level::default()],
            operators: 0,
            last_end: 0,
            has_errors: false,
        }
    }

    fn span(&self, start: usize, end: usize) -> Span {
        Span::new(self.out.file, start, end)
    }

    fn limit(&mut self, diagnostic: Diagnostic) {
        self.sink.push(diagnostic);
        self.out.within_limits = false;
    }

    fn push(&mut self, kind: Kind, start: usize, end: usize) {
        let gap = &self.text.as_bytes()[self.last_end..start];
        let first_on_line = self.out.tokens.is_empty() || gap.contains(&b'\n');
        self.last_end = end;
        let (kind, end) = match kind {
            Kind::Comment => self.classify_comment(start, end),
            _ => (kind, end),
        };
        self.has_errors |= matches!(kind, Kind::Error | Kind::OpenString);
        match kind {
            Kind::Error => {
                if let Some(last) = self.out.tokens.last_mut()
                    && last.kind == Kind::Error
                    && last.end as usize == start
                {
                    last.end = end as u32;
                    return;
                }
            }
            Kind::Name => self.check_name(start, end),
            Kind::String if self.text[start..end].contains('\\') => self.check_text(start, end),
            _ => {}
        }
        let token = Token { kind, first_on_line, start: start as u32, end: end as u32 };
        self.out.tokens.push(token);
        if self.out.within_limits {
            self.count(token);
        }
    }

    fn classify_comment(&self, start: usize, end: usize) -> (Kind, usize) {
        let text = self.text[start..end].trim_end();
        let kind = if text.starts_with("//!") {
            Kind::ModuleDoc
        } else if text.starts_with("///") && !text.starts_with("////") {
            Kind::Doc
        } else {
            Kind::Comment
        };
        (kind, start + text.len())
    }

    fn check_name(&mut self, start: usize, end: usize) {
        if end - start > MAX_NAME_BYTES {
            let message = "a name is longer than 256 bytes";
            let here = format!("{} bytes", end - start);
            let span = self.span(start, end);
            self.limit(Diagnostic::error("E0006", message, span, here).help("shorten the name"));
        }
    }

    fn check_text(&mut self, start: usize, end: usize) {
        let mut chars = self.text[start..end].char_indices();
        while let Some((at, c)) = chars.next() {
            if c != '\\' {
                continue;
            }
            let Some((_, escaped)) = chars.next() else {
                break;
            };
            if !matches!(escaped, '"' | '\\' | 'n') {
                let from = start + at;
                let span = self.span(from, from + 1 + escaped.len_utf8());
                let message = "a text has an escape that does not exist";
                let here = r#"the escapes are `\"`, `\\` and `\n`"#;
                let help = r"write `\\` for a backslash";
                self.sink.push(Diagnostic::error("E0003", message, span, here).help(help));
            }
        }
    }

    /// Counts brackets, operators and commas against their limits.
    fn count(&mut self, token: Token) {
        use Kind::*;
        match token.kind {
            ParenOpen | BracketOpen | BraceOpen => {
                self.operator(token);
                self.levels.push(Level::default());
                if self.levels.len() > MAX_NESTING + 1 {
                    let message = "brackets are nested more than 64 deep";
                    let help = "give an inner part a name with `let`";
                    let span = self.out.span(token);
                    let here = "this one is the 65th that is open";
                    self.limit(Diagnostic::error("E0007", message, span, here).help(help));
                }
            }
            ParenClose | BracketClose | BraceClose if self.levels.len() > 1 => {
                let level = self.levels.pop().expect("there are at least two levels");
                self.operators -= level.operators;
            }
            Comma => self.comma(token),
            Plus | Minus | Star | Slash | Equal | NotEqual | Less | LessEqual | Greater
            | GreaterEqual | And | Or | Not | Else | If | Dot => self.operator(token),
            Assign | Colon | Arrow | Let | Axis | Use | Config | Fn | Block | Model | Preset
            | Assert | As => self.reset(),
            _ => {}
        }
    }

    fn level(&mut self) -> &mut Level {
        self.levels.last_mut().expect("the level of the file stays")
    }

    fn reset(&mut self) {
        let here = std::mem::take(&mut self.level().operators);
        self.operators -= here;
    }

    fn comma(&mut self, token: Token) {
        self.reset();
        self.level().commas += 1;
        if self.level().commas == MAX_LIST {
            let message = "a list has more than 65,536 elements";
            let here = "the elements after this comma are too many";
            let span = self.out.span(token);
            self.limit(Diagnostic::error("E0008", message, span, here));
        }
    }

    fn operator(&mut self, token: Token) {
        self.level().operators += 1;
        self.operators += 1;
        if self.operators == MAX_OPERATORS + 1 {
            let message = "an expression has more than 256 operators";
            let here = "this one is the 257th, with those around its brackets";
            let help = "give a part of the expression a name with `let`";
            let span = self.out.span(token);
            self.limit(Diagnostic::error("E0009", message, span, here).help(help));
        }
    }

    /// After the scan, because neighbouring bad characters are one token by then.
    fn report_errors(&mut self) {
        if !self.has_errors {
            return;
        }
        for token in &self.out.tokens {
            let span = self.out.span(*token);
            if token.kind == Kind::Error {
                let shown: String = token.text(self.text).chars().take(16).collect();
                let message = format!("`{}` is not part of the language", shown.escape_debug());
                let mut diagnostic = Diagnostic::error("E0001", message, span, "not a token");
                if shown.starts_with(';') {
                    diagnostic = diagnostic.help("remove it: a line end separates statements");
                }
                self.sink.push(diagnostic);
            } else if token.kind == Kind::OpenString {
                let message = "a text has no closing quote";
                let here = "opened here, and a text ends on its line";
                let help = "close it with `\"`";
                self.sink.push(Diagnostic::error("E0002", message, span, here).help(help));
            }
        }
    }
}
