//! Tokens: what kind, which bytes, and whether they come first on their line.
//!
//! The language has no separators between statements, so `(`, `[` and `-` that come first on a
//! line never continue the line above. That is what `first_on_line` is for.

use logos::Logos;

use crate::span::{FileId, Span};

/// What a token is. Words that have a meaning in one place only (`param`, `from`, `size` …) have
/// a kind of their own but are names everywhere else, see `Kind::is_name`.
#[derive(Logos, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[logos(skip r"[ \t\r\n]+")]
#[repr(u8)]
pub enum Kind {
    #[token("use")]
    Use,
    #[token("config")]
    Config,
    #[token("fn")]
    Fn,
    #[token("block")]
    Block,
    #[token("model")]
    Model,
    #[token("preset")]
    Preset,
    #[token("let")]
    Let,
    #[token("axis")]
    Axis,
    #[token("if")]
    If,
    #[token("else")]
    Else,
    #[token("and")]
    And,
    #[token("or")]
    Or,
    #[token("not")]
    Not,
    #[token("true")]
    True,
    #[token("false")]
    False,
    #[token("inf")]
    Inf,
    #[token("as")]
    As,
    #[token("assert")]
    Assert,
    #[token("from")]
    From,
    #[token("init")]
    Init,
    #[token("param")]
    Param,
    #[token("size")]
    Size,
    #[token("real")]
    Real,
    #[token("bool")]
    Bool,
    #[token("text")]
    Text,
    #[regex(r"[A-Za-z_][A-Za-z0-9_]*", priority = 1)]
    Name,
    #[regex(r"[0-9][0-9_]*(\.[0-9][0-9_]*)?([eE][+-]?[0-9]+)?")]
    Number,
    #[regex(r#""([^"\\\n]|\\[^\n])*""#)]
    String,
    /// A text without its closing quote; ends with the line.
    #[regex(r#""([^"\\\n]|\\[^\n])*"#)]
    OpenString,
    #[regex(r"//[^\n]*", allow_greedy = true)]
    Comment,
    /// `/// …`; the lexer tells it from a comment.
    Doc,
    /// `//! …`; the lexer tells it from a comment.
    ModuleDoc,
    #[token("(")]
    ParenOpen,
    #[token(")")]
    ParenClose,
    #[token("[")]
    BracketOpen,
    #[token("]")]
    BracketClose,
    #[token("{")]
    BraceOpen,
    #[token("}")]
    BraceClose,
    #[token(",")]
    Comma,
    #[token(":")]
    Colon,
    #[token(".")]
    Dot,
    #[token("..")]
    DotDot,
    #[token("->")]
    Arrow,
    #[token("@")]
    At,
    #[token("=")]
    Assign,
    #[token("==")]
    Equal,
    #[token("!=")]
    NotEqual,
    #[token("<")]
    Less,
    #[token("<=")]
    LessEqual,
    #[token(">")]
    Greater,
    #[token(">=")]
    GreaterEqual,
    #[token("+")]
    Plus,
    #[token("-")]
    Minus,
    #[token("*")]
    Star,
    #[token("/")]
    Slash,
    /// Bytes that belong to no token.
    Error,
}

impl Kind {
    /// Whether the token may stand where a name is wanted.
    pub fn is_name(self) -> bool {
        use Kind::*;
        matches!(self, Name | From | Init | Param | Size | Real | Bool | Text)
    }

    pub fn is_comment(self) -> bool {
        matches!(self, Kind::Comment | Kind::Doc | Kind::ModuleDoc)
    }

    pub fn is_open(self) -> bool {
        matches!(self, Kind::ParenOpen | Kind::BracketOpen | Kind::BraceOpen)
    }

    pub fn is_close(self) -> bool {
        matches!(self, Kind::ParenClose | Kind::BracketClose | Kind::BraceClose)
    }

    /// The bracket that closes this one.
    pub fn closer(self) -> Option<Kind> {
        match self {
            Kind::ParenOpen => Some(Kind::ParenClose),
            Kind::BracketOpen => Some(Kind::BracketClose),
            Kind::BraceOpen => Some(Kind::BraceClose),
            _ => None,
        }
    }
}

/// One token of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub kind: Kind,
    pub first_on_line: bool,
    pub start: u32,
    pub end: u32,
}

impl Token {
    pub fn text(self, source: &str) -> &str {
        source.get(self.start as usize..self.end as usize).unwrap_or("")
    }
}

/// The tokens of one file with its comments; all bytes between two tokens are blank.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    pub file: FileId,
    pub tokens: Vec<Token>,
    /// False where a limit is broken, so that nothing may look at the tokens any further.
    pub within_limits: bool,
}

impl Tokens {
    pub fn span(&self, token: Token) -> Span {
        Span { file: self.file, start: token.start, end: token.end }
    }
}
