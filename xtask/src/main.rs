//! The repository's own commands: `cargo xtask setup`, `demo` and `test`.

mod check;
mod demo;
mod gpu_tools;
mod process;
mod setup;
mod system_llvm;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask: the commands of this repository.

  cargo xtask setup [--system-llvm | --gpu]
      Makes this machine able to build: a C++ compiler, and the LLVM that the CPU
      runtime compiles kernels with. That LLVM is normally downloaded by a build script;
      where the download is out of reach, setup installs the distribution's LLVM and
      puts it in its place. Running it again changes nothing.
      --system-llvm takes the distribution's LLVM without trying the download.
      --gpu brings what the tests of GPU kernels need besides, on a machine without a GPU:
      a Vulkan in software, and NVIDIA's assembler.

  cargo xtask demo
      Builds mdlc, trains a small Llama on this repository's own sources, evaluates it
      and lets it write. Everything it makes is under target/demo/. About ten minutes
      on two cores, most of it the first build.

  cargo xtask test [--bless] [ARGS]
      What CI runs: setup, formatting, lints, then every test. ARGS go to `cargo test`:
      `cargo xtask test fuse` runs the tests whose name contains `fuse`.
      --bless rewrites the golden files from what the compiler prints
      (it sets MDL_BLESS=1 for the tests); read the difference before you commit it.

A first visit: `cargo xtask setup`, then `cargo xtask demo`.
Everything builds with --release: a second profile would build the CPU runtime twice.
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.first().map(String::as_str) {
        Some("setup") => setup_command(&args[1..]),
        Some("demo") => no_arguments("demo", &args[1..]).and_then(|()| demo::demo()),
        Some("test") => check::test(&args[1..]),
        None | Some("help" | "--help" | "-h") => {
            print!("{HELP}");
            Ok(())
        }
        Some(other) => Err(format!(
            "there is no command `{other}`; the commands are setup, demo and test \
             (`cargo xtask help` explains them)"
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn setup_command(args: &[String]) -> Result<(), String> {
    match args {
        [] => setup::setup(setup::Prefer::Download),
        [flag] if flag == "--system-llvm" => setup::setup(setup::Prefer::System),
        [flag] if flag == "--gpu" => gpu_tools::install(),
        _ => Err("`cargo xtask setup` knows the flags --system-llvm and --gpu".to_string()),
    }
}

fn no_arguments(command: &str, args: &[String]) -> Result<(), String> {
    match args.first() {
        None => Ok(()),
        Some(arg) => Err(format!("`cargo xtask {command}` takes no arguments; found `{arg}`")),
    }
}
