//! `mdlc explain`: the page of an error code.

use super::say;
use crate::{Failure, Outcome};
use clap::Parser;
use mdl_syntax::codes::{CODES, find};

#[derive(Debug, Parser)]
pub struct Args {
    /// Such as E0302; without one, all codes are listed
    code: Option<String>,
}

pub fn run(args: &Args) -> Outcome {
    match &args.code {
        None => {
            let rows: Vec<String> =
                CODES.iter().map(|c| format!("{}  {}\n", c.id, c.title)).collect();
            say(&rows.concat());
            Ok(())
        }
        Some(id) => match find(&id.to_uppercase()) {
            Some(code) => {
                say(code.page);
                Ok(())
            }
            None => {
                Err(Failure(format!("there is no code `{id}`; `mdlc explain` lists all of them")))
            }
        },
    }
}
