//! One file for each command.

pub mod bench;
pub mod build;
pub mod check;
pub mod compare;
pub mod dump;
pub mod eval;
pub mod explain;
pub mod export;
pub mod fmt;
pub mod generate;
pub mod plan;
pub mod tokenizer;
pub mod train;

use std::io::Write;

/// How pages for a browser look.
pub const STYLE: &str = include_str!("commands/page.css");

/// Prints to standard output; a closed pipe ends the program quietly, as other tools do.
pub fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}
