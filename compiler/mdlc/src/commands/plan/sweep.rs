//! `mdlc plan --sweep`: a plan for every combination of the values of some flags.

use super::timeline::mib;
use super::{Args, Report, grouped};
use crate::{Cli, Command, Failure, arguments};
use clap::{CommandFactory, Parser};
use serde_json::{Value, json};

/// Plans that one call makes at most.
const COMBINATIONS: usize = 1024;

fn asked(message: impl std::fmt::Display) -> Failure {
    Failure::coded("E0941", message)
}

/// A flag with its values: `train_batch_size=1,2,4`.
fn swept(text: &str) -> Result<(String, Vec<String>), Failure> {
    let wrong = || {
        asked(format!(
            "--sweep `{text}` is no flag with numbers; write --sweep train_batch_size=1,2,4"
        ))
    };
    let (flag, values) = text.split_once('=').ok_or_else(wrong)?;
    let values: Vec<String> = values.split(',').map(|v| v.trim().to_string()).collect();
    let number = |v: &String| v.parse::<f64>().is_ok_and(f64::is_finite);
    if flag.is_empty() || !values.iter().all(number) {
        return Err(wrong());
    }
    Ok((flag.trim_start_matches('-').replace('-', "_"), values))
}

/// The process's arguments without those of `--sweep`.
fn others() -> Vec<String> {
    let mut kept = Vec::new();
    let mut raw = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned());
    while let Some(arg) = raw.next() {
        match arg.as_str() {
            "--sweep" => drop(raw.next()),
            _ if arg.starts_with("--sweep=") => {}
            _ => kept.push(arg),
        }
    }
    kept
}

/// Every choice of one value for each flag; the last flag changes first.
fn combinations(flags: &[(String, Vec<String>)]) -> Vec<Vec<String>> {
    flags.iter().fold(vec![Vec::new()], |chosen, (_, values)| {
        let longer = |one: &Vec<String>| {
            let one = one.clone();
            values.iter().map(move |v| [one.clone(), vec![v.clone()]].concat()).collect::<Vec<_>>()
        };
        chosen.iter().flat_map(longer).collect()
    })
}

/// The command line with these flags, read as any other one.
fn with(others: &[String], flags: &[String]) -> Result<Box<Args>, Failure> {
    let raw = others.iter().chain(flags).cloned();
    let expanded = arguments::expanded(raw, &Cli::command())?;
    let cli = Cli::try_parse_from(expanded);
    let cli = cli.map_err(|e| arguments::refused(&e).unwrap_or_else(|| asked(e)))?;
    match cli.command {
        Command::Plan(args) => Ok(args),
        _ => Err(asked("--sweep belongs to `mdlc plan`")),
    }
}

/// One line for each combination.
struct Row {
    values: Vec<String>,
    report: Report,
}

/// The table of all combinations, or JSON of it.
pub fn run(sweeps: &[String], json: bool) -> Result<String, Failure> {
    let flags = sweeps.iter().map(|s| swept(s)).collect::<Result<Vec<_>, _>>()?;
    let others = others();
    for (i, (flag, _)) in flags.iter().enumerate() {
        let given = |arg: &String| {
            let name = arg.strip_prefix("--").and_then(|rest| rest.split('=').next());
            name.is_some_and(|name| name.replace('-', "_") == *flag)
        };
        if others.iter().any(given) || flags[..i].iter().any(|(other, _)| other == flag) {
            let message = format!("--{flag} has two sets of values; give it once, in --sweep");
            return Err(asked(message));
        }
    }
    let count = flags.iter().try_fold(1usize, |n, (_, values)| n.checked_mul(values.len()));
    if count.is_none_or(|n| n > COMBINATIONS) {
        return Err(asked(format!("a sweep has at most {COMBINATIONS} combinations; give fewer")));
    }
    let mut rows = Vec::new();
    for values in combinations(&flags) {
        let given: Vec<String> =
            flags.iter().zip(&values).map(|((flag, _), v)| format!("--{flag}={v}")).collect();
        let args = with(&others, &given)?;
        rows.push(Row { values, report: Report::of(&args)? });
    }
    let names: Vec<String> = flags.into_iter().map(|(flag, _)| flag).collect();
    match json {
        true => Ok(serde_json::to_string_pretty(&as_json(&names, &rows))? + "\n"),
        false => Ok(table(&names, &rows)),
    }
}

fn as_json(names: &[String], rows: &[Row]) -> Value {
    let row = |row: &Row| {
        let report = &row.report;
        // What was read as a number is one in JSON, as it was written.
        let number = |v: &String| {
            v.parse::<u64>().map_or_else(|_| json!(v.parse::<f64>().ok()), |n| json!(n))
        };
        let set = names.iter().cloned().zip(row.values.iter().map(number));
        json!({
            "flags": set.collect::<serde_json::Map<_, _>>(),
            "parameters": report.parameters,
            "needs_bytes": report.needs(),
            "fits": report.hardware.as_ref().map(|(_, machine)| report.fits(machine)),
            "flops_per_step": report.step.work().0,
            "tokens_per_step": report.settings.sequences() * report.settings.t,
        })
    };
    json!({ "sweep": names, "plans": rows.iter().map(row).collect::<Vec<_>>() })
}

fn table(names: &[String], rows: &[Row]) -> String {
    let mut lines = vec![names.to_vec()];
    let hardware = rows.first().and_then(|row| row.report.hardware.as_ref());
    lines[0].extend(["parameters", "device", "GFLOP per step"].map(String::from));
    lines[0].extend(hardware.map(|(name, _)| format!("fits {}", name.name())));
    for Row { values, report } in rows {
        let mut line = values.clone();
        line.push(grouped(report.parameters));
        line.push(mib(report.device_need()));
        line.push(format!("{:.2}", report.step.work().0 as f64 / 1e9));
        let fits = |m| if report.fits(m) { "yes" } else { "no" }.to_string();
        line.extend(report.hardware.as_ref().map(|(_, machine)| fits(machine)));
        lines.push(line);
    }
    let width = |c: usize| lines.iter().map(|l| l[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let mut out = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}"));
        out += &(cells.collect::<Vec<_>>().join("  ") + "\n");
    }
    out
}
