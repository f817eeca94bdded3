//! `mdlc dump`: the microscope; one stage of the compilation as text.

use super::say;
use crate::flags::TrainingFlags;
use crate::flags::request::RequestFlags;
use crate::{Failure, Outcome};
use clap::{Parser, ValueEnum};
use mdl_ir::graph::Stage as GraphStage;
use mdl_ir::print::print;
use mdl_passes::executable::{Executable, Launch, Step};
use mdl_syntax::diag::Sink;
use mdl_syntax::span::FileId;
use mdl_train::model::{Model, source};
use std::fmt::Write;

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Stage {
    /// The text as tokens
    Tokens,
    /// The text as a syntax tree
    Ast,
    /// Modules, names and the bound configuration
    Program,
    /// The graph of the loss
    Forward,
    /// That with gradients and the optimizer step
    Training,
    /// That with what all layers share moved out of them
    Placed,
    /// That with every node a kernel, a view or a repeated region
    Fused,
    /// The launches in order
    Schedule,
    /// The buffers with their offsets
    Plan,
    /// All of the executable as JSON
    Executable,
}

#[derive(Debug, Parser)]
pub struct Args {
    /// What to print, from the text to what runs
    stage: Stage,
    /// A path, or the name of an embedded model
    file: String,
    /// A preset of the file, needed from `program` on where it has several
    #[arg(long)]
    preset: Option<String>,
    #[command(flatten)]
    training: TrainingFlags,
    #[command(flatten)]
    request: RequestFlags,
}

pub fn run(args: &Args) -> Outcome {
    let (_, text) = source(&args.file)?;
    let mut sink = Sink::default();
    match args.stage {
        Stage::Tokens => {
            let tokens = mdl_syntax::lex(FileId(0), &text, &mut sink);
            say(&mdl_syntax::print_tokens(&tokens, &text));
            return Ok(());
        }
        Stage::Ast => {
            let module = mdl_syntax::parse(FileId(0), &text, &mut sink);
            say(&mdl_syntax::print_ast(&module));
            return Ok(());
        }
        _ => {}
    }
    let mut model = Model::open(&args.file, args.preset.as_deref())?;
    if args.stage == Stage::Program {
        say(&program(&model));
        return Ok(());
    }
    let settings = args.request.settings(&args.training);
    let trace = mdl_train::session::training_trace(&mut model, &settings)?;
    let graph = |stage| trace.at(stage).map(print).ok_or(Failure("no such stage".into()));
    let text = match args.stage {
        Stage::Forward => graph(GraphStage::Forward)?,
        Stage::Training => graph(GraphStage::Training)?,
        Stage::Placed => graph(GraphStage::Placed)?,
        Stage::Fused => graph(GraphStage::Fused)?,
        _ => {
            let target = args.training.target();
            let (_, step, _) = mdl_train::session::executables(&mut model, &settings, target)?;
            let executable = step.largest().clone();
            match args.stage {
                Stage::Schedule => schedule(&executable),
                Stage::Plan => plan(&executable),
                _ => serde_json::to_string_pretty(&executable)? + "\n",
            }
        }
    };
    say(&text);
    Ok(())
}

/// Signatures and the bound configuration.
fn program(model: &Model) -> String {
    let mut out = String::new();
    for module in &model.front.program.modules {
        let _ = writeln!(out, "module {}", module.path);
        for name in module.names.keys() {
            let _ = writeln!(out, "  {name}");
        }
    }
    let _ = writeln!(out, "config {}", model.config.name);
    for (name, value) in &model.config.fields {
        let _ = writeln!(out, "  {name} = {value:?}");
    }
    out
}

fn schedule(e: &Executable) -> String {
    let (flops, bytes) = e.work();
    let mut out = format!(
        "schedule {}  launches {}  flops {flops}  traffic {bytes} B\n",
        e.name,
        e.launches()
    );
    let mut n = 0;
    let mut row = |out: &mut String, l: &Launch, indent: &str| {
        let bytes: u64 = l.args.iter().map(|a| a.bytes).sum();
        let kind = format!("{:?}", e.specs[l.spec]);
        let kind = kind.split('(').next().unwrap_or("").to_string();
        let name = format!("{indent}{}", l.name);
        let _ = writeln!(out, "{n:>5}  {kind:<20} {name:<44} {bytes:>14} {:>16}", l.flops);
        n += 1;
    };
    let _ =
        writeln!(out, "    #  {:<20} {:<44} {:>14} {:>16}", "kernel", "result", "bytes", "flops");
    for step in &e.steps {
        match step {
            Step::Launch(l) => row(&mut out, l, ""),
            Step::Loop { count, body } => {
                let _ = writeln!(out, "       {count} times:");
                body.iter().for_each(|l| row(&mut out, l, "  "));
            }
        }
    }
    out
}

fn plan(e: &Executable) -> String {
    let mut out = format!(
        "plan {}  state {} B  work {} B  host {} B\n{:<44} {:<6} {:>14} {:>14}  live\n",
        e.name, e.state_bytes, e.work_bytes, e.host_bytes, "buffer", "space", "offset", "bytes"
    );
    for b in &e.buffers {
        let space = b.space.name();
        let _ = writeln!(
            out,
            "{:<44} {space:<6} {:>14} {:>14}  [{}, {}]",
            b.name, b.offset, b.bytes, b.first, b.last
        );
    }
    out
}
