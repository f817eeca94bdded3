//! The commands as they are called: the binary with arguments, its exit status and what it says.

mod accumulation;
mod cache;
mod emit;
mod flags;
mod from_checkpoint;
mod front;
mod guide;
mod mesh;
mod presets;
mod roofline;
mod timeline;
mod tune;

use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;

/// What a call of `mdlc` came to.
struct Called {
    status: i32,
    /// Standard output: the result.
    out: String,
    /// Standard error: notes and errors.
    err: String,
}

/// Runs `mdlc` with these arguments.
fn mdlc<S: AsRef<str>>(args: &[S]) -> Called {
    let args = args.iter().map(|arg| arg.as_ref());
    let output = Command::new(env!("CARGO_BIN_EXE_mdlc")).args(args).output();
    let output = output.expect("the binary was built with this test");
    Called {
        status: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).expect("text"),
        err: String::from_utf8(output.stderr).expect("text"),
    }
}

/// What `mdlc plan --json` says, with its notes.
fn plan<S: AsRef<str>>(args: &[S]) -> (Value, String) {
    let args = args.iter().map(|arg| arg.as_ref());
    let called = mdlc(&["plan", "--json"].into_iter().chain(args).collect::<Vec<_>>());
    assert_eq!(called.status, 0, "{}", called.err);
    (serde_json::from_str(&called.out).expect("one JSON object"), called.err)
}

/// A file with this text in the folder for temporary files.
fn file(name: &str, text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("mdl-{}-{name}", std::process::id()));
    std::fs::write(&path, text).expect("the temporary folder is writable");
    path
}
