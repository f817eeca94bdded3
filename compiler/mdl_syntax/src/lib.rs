//! Text to tokens to syntax tree, the formatter, and everything about diagnostics.
//!
//! Nothing here fails: lexing and parsing return a value for any input and push diagnostics to a
//! `Sink`. A value made from a text with errors has `Error` nodes where recovery skipped something.

pub mod ast;
pub mod codes;
pub mod diag;
mod fmt;
mod fmt_expr;
mod fmt_item;
mod layout;
mod lex;
pub mod parallel;
mod parse;
mod parse_expr;
mod parse_item;
mod parse_token;
mod parse_type;
mod print;
mod render;
pub mod source;
pub mod span;
pub mod token;

pub use ast::Module;
pub use diag::{Diagnostic, Label, Severity, Sink};
pub use fmt::fmt;
pub use lex::lex;
pub use parse::parse;
pub use print::{print_ast, print_tokens};
pub use render::render;
pub use source::SourceMap;
pub use span::{FileId, Span};
pub use token::Tokens;
