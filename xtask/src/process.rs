//! Runs other programs: echoed, timed, and with an error that says what was run.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The repository's root.
pub fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_path_buf()
}

/// The cargo that started this program, so that a toolchain override stays in force.
pub fn cargo() -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command.current_dir(root());
    command
}

/// Runs `command` with its output passed through; returns whether it succeeded and its time.
pub fn run(command: &mut Command) -> Result<(bool, Duration), String> {
    println!("$ {}", describe(command));
    let start = Instant::now();
    let status = command
        .status()
        .map_err(|error| format!("`{}` did not start: {error}", describe(command)))?;
    Ok((status.success(), start.elapsed()))
}

/// As `run`, for a command that has to succeed.
pub fn run_or_stop(command: &mut Command) -> Result<Duration, String> {
    match run(command)? {
        (true, time) => Ok(time),
        (false, _) => Err(format!("`{}` failed; its output is above", describe(command))),
    }
}

/// What a command prints, or `None` where it does not exist or fails. Not echoed.
pub fn answer(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a program can be started at all.
pub fn exists(program: &str) -> bool {
    answer(program, &["--version"]).is_some()
}

/// `12 s`, `3 min 04 s`.
pub fn in_words(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 60 {
        format!("{seconds} s")
    } else {
        format!("{} min {:02} s", seconds / 60, seconds % 60)
    }
}

/// The command as one would type it: no directories before the program, quotes where needed.
fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
    let mut words = vec![name.into_owned()];
    for arg in command.get_args() {
        let arg = arg.to_string_lossy();
        let plain = !arg.is_empty() && !arg.contains([' ', '*', '"']);
        words.push(if plain { arg.into_owned() } else { format!("'{arg}'") });
    }
    words.join(" ")
}
