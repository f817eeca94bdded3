//! `demo`: a small byte-level Llama learns this repository's sources, then writes some.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::process::{cargo, in_words, root, run_or_stop};
use crate::setup::{self, Prefer};

/// What the model reads: every file with this ending under this directory.
const SOURCES: [(&str, &str); 9] = [
    ("compiler", "rs"),
    ("compiler", "md"),
    ("runtime", "rs"),
    ("tests", "rs"),
    ("benches", "rs"),
    ("xtask", "rs"),
    ("stdlib", "mdl"),
    ("models", "mdl"),
    ("docs", "md"),
];

const TRAIN: &str = "train llama --preset bytes_small --tokenizer bytes \
    --dataset target/demo/text.txt --validation_split 0.1 --max_context_width 256 \
    --train_batch_size 8 --max_steps 800 --lr 2e-3 --warmup 0.05 --validation_freq 200 \
    --logging_freq 20 --checkpoint_dir target/demo/checkpoints --log_json target/demo/log.jsonl";
const EVALUATE: &str = "eval target/demo/checkpoints \
    --dataset target/demo/text.txt --validation_split 0.1 --max_context_width 256";
const GENERATE: &str =
    "generate target/demo/checkpoints --max_tokens 200 --temperature 0.8 --seed 1";

pub fn demo() -> Result<(), String> {
    let start = Instant::now();
    setup::setup(Prefer::Download)?;
    // One package alone would resolve other features, and `cargo xtask test` would build all again.
    run_or_stop(cargo().args(["build", "--release", "--workspace", "--bin", "mdlc"]))?;

    let place = root().join("target/demo");
    collect_text(&place)?;
    let training = run_or_stop(&mut mdlc(TRAIN))?;
    run_or_stop(&mut mdlc(EVALUATE))?;
    run_or_stop(mdlc(GENERATE).args(["--prompt", "fn "]))?;

    let losses = read_losses(&place.join("log.jsonl"))?;
    print!("\n{}", chart(&losses));
    if let (Some(first), Some(last)) = (losses.first(), losses.last()) {
        println!(
            "The chart is the training loss in nats per byte: it starts near ln 256 = 5.5, where \
             every byte is as likely as\nany other, and fell from {first:.2} to {last:.2} in {}. \
             The text above it is what the model now writes after `fn `.",
            in_words(training)
        );
    }
    for svg in files_with_ending(&place, "svg")? {
        println!("The loss curve: {}", shown(&svg));
    }
    println!("The whole demo took {}. Its files are in target/demo/.", in_words(start.elapsed()));
    Ok(())
}

fn mdlc(args: &str) -> Command {
    let mut command = Command::new(root().join("target/release/mdlc"));
    command.current_dir(root()).args(args.split_whitespace());
    command
}

/// Writes `target/demo/text.txt`, in a fresh directory so that no earlier run is resumed.
fn collect_text(place: &Path) -> Result<(), String> {
    if place.exists() {
        fs::remove_dir_all(place).map_err(|error| cannot("be emptied", place, &error))?;
    }
    fs::create_dir_all(place).map_err(|error| cannot("be made", place, &error))?;
    let mut paths = Vec::new();
    for (folder, ending) in SOURCES {
        paths.extend(files_with_ending(&root().join(folder), ending)?);
    }
    // By name, not by folder: the end of the text is held back for validation, and has to look
    // like the rest.
    paths.sort_by_key(|path| (path.file_name().map(ToOwned::to_owned), path.clone()));
    let mut text = String::new();
    for path in &paths {
        let file = fs::read_to_string(path).map_err(|error| cannot("be read", path, &error))?;
        text.push_str(&file);
        text.push('\n');
    }
    let target = place.join("text.txt");
    fs::write(&target, &text).map_err(|error| cannot("be written", &target, &error))?;
    println!("demo: {} files, {} kB of text in {}", paths.len(), text.len() / 1000, shown(&target));
    Ok(())
}

/// All files under `folder` with this ending; none where the folder does not exist.
fn files_with_ending(folder: &Path, ending: &str) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        if !folder.is_dir() {
            continue;
        }
        let entries = fs::read_dir(&folder).map_err(|error| cannot("be read", &folder, &error))?;
        for entry in entries {
            let path = entry.map_err(|error| cannot("be read", &folder, &error))?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == ending) {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// The training losses of a log of JSON lines; lines of validation carry none.
fn read_losses(log: &Path) -> Result<Vec<f64>, String> {
    let text = fs::read_to_string(log).map_err(|error| cannot("be read", log, &error))?;
    let losses = text.lines().filter(|line| !line.contains("\"validation")).filter_map(|line| {
        let (_, rest) = line.split_once("\"loss\":")?;
        let number = rest.split([',', '}']).next()?;
        number.trim().parse().ok()
    });
    Ok(losses.collect())
}

/// The losses as a chart of eight lines, sixty columns, each column the mean of its steps.
fn chart(losses: &[f64]) -> String {
    const ROWS: usize = 8;
    const COLUMNS: usize = 60;
    if losses.is_empty() {
        return String::new();
    }
    let columns = COLUMNS.min(losses.len());
    let means: Vec<f64> = (0..columns)
        .map(|column| {
            let from = column * losses.len() / columns;
            let to = (column + 1) * losses.len() / columns;
            losses[from..to].iter().sum::<f64>() / (to - from) as f64
        })
        .collect();
    let high = means.iter().copied().fold(f64::MIN, f64::max);
    let low = means.iter().copied().fold(f64::MAX, f64::min);
    let step = ((high - low) / (ROWS - 1) as f64).max(f64::MIN_POSITIVE);
    let mut picture = String::new();
    for row in 0..ROWS {
        let line: String = means
            .iter()
            .map(|mean| if ((high - mean) / step).round() as usize == row { '*' } else { ' ' })
            .collect();
        let level = high - row as f64 * step;
        picture.push_str(&format!("{level:6.2} | {}\n", line.trim_end()));
    }
    picture.push_str(&format!("       +-{}\n", "-".repeat(columns)));
    picture.push_str(&format!("        step 1 to {}\n", losses.len()));
    picture
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> String {
    format!("{} cannot {what}: {error}", shown(path))
}

#[cfg(test)]
mod tests {
    use super::chart;

    #[test]
    fn the_chart_falls_with_the_loss() {
        let losses: Vec<f64> = (0..120).map(|step| 5.0 - step as f64 / 40.0).collect();
        let picture = chart(&losses);
        let lines: Vec<&str> = picture.lines().collect();
        assert_eq!(lines.len(), 10);
        assert!(lines[0].starts_with("  4.99 | ***"), "{picture}");
        assert!(lines[7].ends_with("***"), "{picture}");
    }

    #[test]
    fn an_even_loss_is_a_line_at_the_top() {
        assert!(chart(&[2.0; 5]).starts_with("  2.00 | *****\n"));
        assert_eq!(chart(&[]), "");
    }
}
