//! From the arguments of the process to the command line that is parsed: what a run file and a
//! hardware preset stand for is put in where the user's own flags do not say otherwise.

use crate::Failure;
use crate::hardware::Hardware;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command, ValueEnum};
use mdl_check::nearest::nearest;
use toml::de::{DeTable, DeValue};

/// `--train-batch-size` means `--train_batch_size`; values stay as they are.
fn underscored(arg: String) -> String {
    match arg.strip_prefix("--") {
        Some(rest) if !rest.is_empty() => match rest.split_once('=') {
            Some((name, value)) => format!("--{}={value}", name.replace('-', "_")),
            None => format!("--{}", rest.replace('-', "_")),
        },
        _ => arg,
    }
}

/// The arguments with those of `--config` and `--hardware` behind the name of the command, where a
/// flag of the same name is not given already: the command line wins over the run file, and that
/// over the hardware preset.
pub fn expanded(raw: impl Iterator<Item = String>, cli: &Command) -> Result<Vec<String>, Failure> {
    let mut args: Vec<String> = raw.map(underscored).collect();
    let command = args.get(1).and_then(|name| cli.find_subcommand(name));
    let Some(command) = command.filter(|c| find(c, "config").is_some()) else {
        return Ok(args);
    };
    let mut given: Vec<String> = args[2..]
        .iter()
        .take_while(|arg| *arg != "--")
        .filter_map(|arg| id(command, arg.strip_prefix("--")?.split('=').next()?))
        .collect();
    let mut more: Vec<(String, String)> = Vec::new();
    if let Some(path) = value(&args, "config") {
        more = run_file(&path, command)?;
        more.retain(|(flag, _)| !given.contains(flag));
        given.extend(more.iter().map(|(flag, _)| flag.clone()));
    }
    let in_file = more.iter().find(|(flag, _)| flag == "hardware").map(|(_, name)| name.clone());
    // The parser says what is wrong with a name that no machine has.
    let named = value(&args, "hardware").or(in_file);
    if let Some(hardware) = named.and_then(|name| Hardware::from_str(&name, false).ok()) {
        let flags = hardware.flags().iter().filter(|(flag, _)| !given.iter().any(|g| g == flag));
        more.extend(flags.map(|(flag, value)| (flag.to_string(), value.to_string())));
    }
    let more = more.into_iter().map(|(flag, value)| format!("--{flag}={value}"));
    args.splice(2..2, more);
    Ok(args)
}

/// The value of a flag in either of its forms, the last one.
fn value(args: &[String], flag: &str) -> Option<String> {
    let long = format!("--{flag}");
    let mut found = args.iter().enumerate().filter_map(|(i, arg)| {
        let rest = arg.strip_prefix(&long)?;
        match rest.strip_prefix('=') {
            Some(value) => Some(value.to_string()),
            None if rest.is_empty() => args.get(i + 1).cloned(),
            None => None,
        }
    });
    found.next_back()
}

/// The argument that a flag or one of its aliases names.
fn find<'c>(command: &'c Command, flag: &str) -> Option<&'c Arg> {
    command.get_arguments().find(|arg| {
        arg.get_long() == Some(flag) || arg.get_all_aliases().is_some_and(|a| a.contains(&flag))
    })
}

/// The name under which a flag is known, whatever alias was used.
fn id(command: &Command, flag: &str) -> Option<String> {
    find(command, flag).map(|arg| arg.get_id().to_string())
}

/// The flags of a run file with their values, in order. Tables are dots: `factor` of
/// `[rope_scaling]` is the flag `--rope_scaling.factor`.
fn run_file(path: &str, command: &Command) -> Result<Vec<(String, String)>, Failure> {
    let wrong = |message: String| Failure::coded("E0941", message);
    let text = std::fs::read_to_string(path)
        .map_err(|e| wrong(format!("run file `{path}` cannot be read: {e}")))?;
    let line = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
    let table = DeTable::parse(&text).map_err(|e| {
        let at = e.span().map_or(1, |span| line(span.start));
        wrong(format!("{path}:{at}: {}", e.message()))
    })?;
    let mut flags = Vec::new();
    enter(table.get_ref(), "", &mut flags);
    let mut known = Vec::new();
    for (name, values, at) in flags {
        let place = format!("{path}:{}", line(at));
        let name = name.replace('-', "_");
        let flag = id(command, &name).filter(|flag| flag != "config");
        let Some(flag) = flag else {
            let flags = command.get_arguments().filter_map(Arg::get_long);
            return Err(unknown(
                &format!("{place}: there is no flag `{name}`"),
                nearest(&name, flags),
            ));
        };
        let Some(values) = values else {
            return Err(wrong(format!(
                "{place}: `{name}` is no text, number, truth value or list"
            )));
        };
        known.extend(values.into_iter().map(|value| (flag.clone(), value)));
    }
    Ok(known)
}

/// A key of a run file: its name, its values where they are plain, and the byte where it stands.
type Entry = (String, Option<Vec<String>>, usize);

fn enter(table: &DeTable<'_>, within: &str, flags: &mut Vec<Entry>) {
    for (key, value) in table {
        let name = format!("{within}{}", key.get_ref());
        match value.get_ref() {
            DeValue::Table(inner) => enter(inner, &format!("{name}."), flags),
            DeValue::Array(list) => {
                let values = list.iter().map(|value| plain(value.get_ref())).collect();
                flags.push((name, values, key.span().start));
            }
            other => flags.push((name, plain(other).map(|v| vec![v]), key.span().start)),
        }
    }
}

/// A value as it would stand on a command line.
fn plain(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(n) => Some(n.to_string()),
        DeValue::Float(x) => Some(x.to_string()),
        DeValue::Boolean(b) => Some(u8::from(*b).to_string()),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

fn unknown(message: &str, near: Option<&str>) -> Failure {
    let help = near.map_or(String::new(), |near| format!("\n  help: write `{near}`"));
    Failure::coded("E0941", format!("{message}{help}"))
}

/// What the parser has to say: a flag that there is not is said as every other error is.
pub fn refused(error: &clap::Error) -> Option<Failure> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        Some(ContextValue::Strings(texts)) => texts.first().map(String::as_str),
        _ => None,
    };
    let name = text(ContextKind::InvalidArg)?;
    let name = name.split('=').next().unwrap_or(name);
    let message = match name.starts_with("--") {
        true => format!("there is no flag `{name}`"),
        false => format!("`{name}` is one argument too many"),
    };
    Some(unknown(&message, text(ContextKind::SuggestedArg)))
}
