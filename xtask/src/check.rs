//! `test`: formatting, lints, build and tests, each timed, with one line at the end.

use std::process::Command;
use std::time::Duration;

use crate::gpu_tools;
use crate::process::{cargo, in_words, run};
use crate::setup::{self, Prefer};

/// The tests rewrite their golden files where this variable is set.
const BLESS: &str = "MDL_BLESS";
/// The test of PTX says that it was skipped where this variable is set, and why.
const WITHOUT_ASSEMBLER: &str = "MDL_WITHOUT_PTXAS";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    Skipped,
}

#[derive(Debug)]
struct Stage {
    name: &'static str,
    outcome: Outcome,
    time: Duration,
}

pub fn test(args: &[String]) -> Result<(), String> {
    let bless = args.iter().any(|arg| arg == "--bless");
    let args: Vec<&String> = args.iter().filter(|arg| *arg != "--bless").collect();
    setup::setup(Prefer::Download)?;
    gpu_tools::install_vulkan()?;
    let without = gpu_tools::install_assembler().err();
    if let Some(reason) = &without {
        println!("WARNING: NVIDIA's assembler is not here ({reason}), so its test is SKIPPED");
    }

    let mut stages = vec![format_stage()?, lint_stage()?];
    // Building first tells a build that fails, which ends the run, from tests that fail.
    let build = stage("build", test_command().arg("--no-run"))?;
    let builds = build.outcome == Outcome::Passed;
    stages.push(build);
    if builds {
        let mut command = test_command();
        command.arg("--no-fail-fast").args(args);
        if let Some(reason) = without {
            command.env(WITHOUT_ASSEMBLER, reason);
        }
        if bless {
            command.env(BLESS, "1");
        }
        stages.push(stage("test", &mut command)?);
    }
    summary(&stages)
}

fn format_stage() -> Result<Stage, String> {
    if !has_component("fmt") {
        return Ok(skipped("fmt", "rustfmt"));
    }
    stage("fmt", cargo().args(["fmt", "--all", "--check"]))
}

fn lint_stage() -> Result<Stage, String> {
    if !has_component("clippy") {
        return Ok(skipped("clippy", "clippy"));
    }
    let args = ["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"];
    stage("clippy", cargo().args(args))
}

fn test_command() -> Command {
    let mut command = cargo();
    command.args(["test", "--release", "--workspace"]);
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // Vulkan's loader complains for each device that it looks for displays of.
        command.env("XDG_RUNTIME_DIR", std::env::temp_dir());
    }
    command
}

fn stage(name: &'static str, command: &mut Command) -> Result<Stage, String> {
    let (passed, time) = run(command)?;
    let outcome = if passed { Outcome::Passed } else { Outcome::Failed };
    println!("{name}: {} after {}", outcome.word(), in_words(time));
    Ok(Stage { name, outcome, time })
}

fn has_component(subcommand: &str) -> bool {
    cargo().args([subcommand, "--version"]).output().is_ok_and(|output| output.status.success())
}

fn skipped(name: &'static str, component: &str) -> Stage {
    println!(
        "WARNING: {component} is not installed, so {name} is SKIPPED; \
         `rustup component add {component}` brings it"
    );
    Stage { name, outcome: Outcome::Skipped, time: Duration::ZERO }
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Outcome::Passed => "ok",
            Outcome::Failed => "FAILED",
            Outcome::Skipped => "SKIPPED",
        }
    }
}

fn summary(stages: &[Stage]) -> Result<(), String> {
    let words: Vec<String> = stages
        .iter()
        .map(|stage| format!("{} {} ({})", stage.name, stage.outcome.word(), in_words(stage.time)))
        .collect();
    println!("summary: {}", words.join(", "));
    let failed: Vec<&str> =
        stages.iter().filter(|s| s.outcome == Outcome::Failed).map(|s| s.name).collect();
    if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", "))) }
}
