//! What a run reports: the line that log monitors read, and the loss curve as JSON lines.
//!
//! The JSON file holds one record for each logged step and no step twice: a run that resumes
//! first removes the records of the steps that it is going to repeat. A file that is not such
//! a curve is refused, so that a wrong name costs nobody a file.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("log file `{path}` cannot be read or written: {source}; change --log_json")]
    Io { path: String, source: io::Error },
    #[error("line {line} of `{path}` is no record of a run; name another file for --log_json")]
    NotALog { path: String, line: usize },
}

impl LogError {
    pub fn code(&self) -> &'static str {
        "E0931"
    }
}

/// The line of a batch; cluster monitors look for `Loss:`.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    pub batch: u64,
    /// Mean over tokens, in nats.
    pub loss: f64,
    pub samples_per_s: f64,
    pub tokens_per_s: f64,
    /// 10^12 operations a second of one device, counting what runs.
    pub tflops_per_device: f64,
    /// Share of the device's peak, from 0 to 1.
    pub mfu: f64,
    pub lr: f64,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Batch {} Loss: {:.5}, Speed: {:.2} samples/sec, Tokens/s: {:.0}, \
             TFLOPS/GPU: {:.1}, MFU: {:.3}, lr: {:.6}",
            self.batch,
            self.loss,
            self.samples_per_s,
            self.tokens_per_s,
            self.tflops_per_device,
            self.mfu,
            self.lr
        )
    }
}

/// A point of the loss curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub step: u64,
    /// Mean over tokens, in nats.
    pub loss: f64,
    pub lr: f64,
    pub grad_norm: f64,
    pub tokens_per_s: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
    /// Number of targets behind `val_loss`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_tokens: Option<u64>,
    /// Bytes that the memory plan has; in the last record of a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planned_bytes: Option<u64>,
    /// The most bytes that the process took at one time for the run, without `runtime_bytes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_bytes: Option<u64>,
    /// What the runtime keeps for itself: `resident::RUNTIME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_bytes: Option<u64>,
}

/// A file of records that grows.
#[derive(Debug)]
pub struct JsonLog {
    path: PathBuf,
    file: File,
}

impl JsonLog {
    /// Opens the file, or creates it, for the records after `step`: 0 for a run that begins.
    /// Records of later steps that it holds are removed.
    pub fn open(path: &Path, step: u64) -> Result<Self, LogError> {
        let failed = |source| LogError::Io { path: path.display().to_string(), source };
        let mut text = String::new();
        if path.exists() {
            for record in read(path)?.into_iter().filter(|it| it.step <= step) {
                text += &line(&record);
            }
        }
        replace(path, &text).map_err(failed)?;
        let file = OpenOptions::new().append(true).open(path).map_err(failed)?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Adds a record; the file is a valid curve after each call.
    pub fn append(&mut self, record: &Record) -> Result<(), LogError> {
        self.file
            .write_all(line(record).as_bytes())
            .map_err(|source| LogError::Io { path: self.path.display().to_string(), source })
    }
}

/// Every record of a file, in order. A last line without its end, as a kill leaves it, and
/// records whose loss is not a number are left out.
pub fn read(path: &Path) -> Result<Vec<Record>, LogError> {
    let failed = |source| LogError::Io { path: path.display().to_string(), source };
    let bytes = fs::read(path).map_err(failed)?;
    let mut res = Vec::new();
    for (i, row) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        match serde_json::from_slice::<Record>(row) {
            Ok(record) => res.push(record),
            Err(_) if i > 0 && !row.ends_with(b"\n") || is_record(row) => {}
            Err(_) if row.trim_ascii().is_empty() => {}
            Err(_) => {
                return Err(LogError::NotALog { path: path.display().to_string(), line: i + 1 });
            }
        }
    }
    Ok(res)
}

/// Puts text in the place of a file at once: readers see the whole old or the whole new one.
pub(crate) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".tmp-{}", std::process::id()));
    let temporary = path.with_file_name(name);
    fs::write(&temporary, text)?;
    fs::rename(&temporary, path).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

fn line(record: &Record) -> String {
    let json = serde_json::to_string(record).expect("a record is plain numbers");
    json + "\n"
}

/// Whether a row is a record with values, like a loss of `null`, that are not numbers.
fn is_record(row: &[u8]) -> bool {
    let row: serde_json::Value = serde_json::from_slice(row).unwrap_or_default();
    row["step"].is_u64() && row.get("loss").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("mdl_log_{name}_{}", std::process::id()));
        let _ = fs::remove_file(&path);
        path
    }

    fn record(step: u64) -> Record {
        Record {
            step,
            loss: 3.25 - step as f64 * 0.1,
            lr: 1e-4,
            grad_norm: 0.7,
            tokens_per_s: 1000.5,
            val_loss: (step == 4).then_some(2.9),
            val_tokens: (step == 4).then_some(4096),
            planned_bytes: None,
            observed_bytes: None,
            runtime_bytes: None,
        }
    }

    #[test]
    fn the_line_is_what_monitors_expect() {
        let line = Line {
            batch: 12,
            loss: 3.251004,
            samples_per_s: 4.88,
            tokens_per_s: 19988.2,
            tflops_per_device: 41.2,
            mfu: 0.417,
            lr: 1e-4,
        };
        assert_eq!(
            line.to_string(),
            "Batch 12 Loss: 3.25100, Speed: 4.88 samples/sec, Tokens/s: 19988, \
             TFLOPS/GPU: 41.2, MFU: 0.417, lr: 0.000100"
        );
    }

    #[test]
    fn a_resumed_run_repeats_no_step() {
        let path = file("resume");
        let mut log = JsonLog::open(&path, 0).expect("writable");
        (1..=6).for_each(|step| log.append(&record(step)).expect("writable"));
        // A kill in the middle of a record.
        log.file.write_all(b"{\"step\":7,\"lo").expect("writable");
        assert_eq!(read(&path).expect("a log").len(), 6);
        let mut log = JsonLog::open(&path, 4).expect("writable");
        log.append(&record(5)).expect("writable");
        assert_eq!(read(&path).expect("a log"), (1..=5).map(record).collect::<Vec<_>>());
        JsonLog::open(&path, 0).expect("writable");
        assert_eq!(read(&path).expect("a log"), []);
    }

    #[test]
    fn a_loss_that_is_not_finite_can_be_logged() {
        let path = file("nan");
        let mut log = JsonLog::open(&path, 0).expect("writable");
        log.append(&Record { loss: f64::NAN, ..record(1) }).expect("writable");
        log.append(&record(2)).expect("writable");
        assert_eq!(read(&path).expect("a log"), [record(2)]);
    }

    #[test]
    fn other_files_are_not_touched() {
        let path = file("other");
        for text in ["precious", "{\"a\": 1}\n", "\n\nprecious\nmore\n"] {
            fs::write(&path, text).expect("writable");
            assert_eq!(JsonLog::open(&path, 0).expect_err("no log").code(), "E0931");
            assert_eq!(fs::read_to_string(&path).ok().as_deref(), Some(text));
        }
    }
}
