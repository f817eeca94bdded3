//! `mdlc fmt`: the canonical format.

use crate::{Failure, Outcome};
use clap::Parser;
use mdl_syntax::source::SourceMap;

#[derive(Debug, Parser)]
pub struct Args {
    /// Change nothing; fail where a file is not in the canonical format
    #[arg(long)]
    check: bool,
    #[arg(required = true)]
    files: Vec<String>,
}

pub fn run(args: &Args) -> Outcome {
    let mut wrong = Vec::new();
    let mut reports = String::new();
    for file in &args.files {
        let text = std::fs::read_to_string(file)
            .map_err(|e| Failure(format!("`{file}` cannot be read: {e}")))?;
        match mdl_syntax::fmt(&text) {
            Ok(formatted) if formatted == text => {}
            Ok(_) if args.check => wrong.push(file.clone()),
            Ok(formatted) => std::fs::write(file, formatted)
                .map_err(|e| Failure(format!("`{file}` cannot be written: {e}")))?,
            Err(sink) => {
                let mut sources = SourceMap::default();
                sources.add(file.as_str(), text.as_str());
                for d in &sink.diagnostics {
                    reports.push_str(&mdl_syntax::render(d, &sources, false));
                }
            }
        }
    }
    if !reports.is_empty() {
        return Err(Failure(reports));
    }
    if !wrong.is_empty() {
        return Err(Failure(format!("not formatted (run `mdlc fmt`): {}", wrong.join(", "))));
    }
    Ok(())
}
