//! Opens local data sets: text files and JSON lines, plain, gzip or Zstandard, as a list of
//! documents.
//!
//! A name may be a file, a directory, a `*` pattern in the last part of a path, or several of
//! these with commas between. Each expands in sorted order, so the order of documents does not
//! depend on the file system. Only forms known to be something else are refused; everything
//! else is read as text, and what is not UTF-8 is an error with the byte where it stops being so.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;

use crate::zstandard::Frames;

/// A piece of text that is learnt as a whole: attention and prediction do not cross its ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub text: String,
    pub file: Arc<Path>,
    /// Line in a JSON lines file, from 1; `None` when the document is the whole file.
    pub line: Option<usize>,
}

/// What is trained on and what never is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    pub training: Vec<Document>,
    pub validation: Vec<Document>,
}

#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error(
        "data file `{path}` is not there; data sets are local files, directories or `*` patterns"
    )]
    NotFound { path: String },
    #[error("data file `{path}` cannot be read ({source}); check it with `ls -l`, or `gzip -t`")]
    Unreadable { path: String, source: io::Error },
    #[error("no file matches `{pattern}`; put quotes around a pattern and look with `ls`")]
    NoMatch { pattern: String },
    #[error("line {line} of `{path}` is not a JSON object with a text field: {reason}")]
    Line { path: String, line: usize, reason: String },
    #[error("`{path}` is not UTF-8 at byte {byte}; convert it, for instance with `iconv -t UTF-8`")]
    NotUtf8 { path: String, byte: u64 },
    #[error("the data set `{paths}` holds no text; name files that do")]
    Empty { paths: String },
    #[error("validation_split is {fraction}; give 0, or a fraction between 0 and 1")]
    Fraction { fraction: f64 },
    #[error(
        "no document is left for {part} at validation_split {fraction}; \
         change the fraction or name a validation data set"
    )]
    NothingLeft { part: &'static str, fraction: f64 },
    #[error(
        "the data set has {tokens} token ids and one sequence needs {needed}; \
         add text or lower the sequence length"
    )]
    TooShort { tokens: usize, needed: usize },
    #[error(
        "`{path}` is {form}, which is not read; convert it to .jsonl or .txt, plain, .gz or .zst"
    )]
    Form { path: String, form: &'static str },
}

impl DataError {
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } | Self::Unreadable { .. } | Self::NoMatch { .. } => "E0901",
            Self::Line { .. } => "E0902",
            Self::NotUtf8 { .. } => "E0903",
            Self::Empty { .. }
            | Self::Fraction { .. }
            | Self::NothingLeft { .. }
            | Self::TooShort { .. } => "E0904",
            Self::Form { .. } => "E0905",
        }
    }
}

/// Reads every document of `paths`, in order. Documents without text are left out.
pub fn documents(paths: &[String]) -> Result<Vec<Document>, DataError> {
    let mut res = Vec::new();
    for name in paths {
        for file in expand(name)? {
            read_file(&file, &mut res)?;
        }
    }
    if res.is_empty() {
        return Err(DataError::Empty { paths: paths.join(",") });
    }
    Ok(res)
}

/// Cuts the last part of each file off for validation: by bytes, at a character, for a text
/// file; by whole documents for JSON lines. A file of a single JSON document is trained on.
pub fn split(documents: Vec<Document>, fraction: f64) -> Result<Split, DataError> {
    if !(0.0..1.0).contains(&fraction) {
        return Err(DataError::Fraction { fraction });
    }
    if fraction == 0.0 {
        return Ok(Split { training: documents, validation: Vec::new() });
    }
    let mut res = Split::default();
    for of_file in documents.chunk_by(|a, b| Arc::ptr_eq(&a.file, &b.file)) {
        match of_file {
            [Document { text, file, line: None }] => {
                let wanted = (text.len() as f64 * (1.0 - fraction)).round() as usize;
                let (head, tail) = text.split_at(text.floor_char_boundary(wanted));
                for (part, text) in [(&mut res.training, head), (&mut res.validation, tail)] {
                    if !text.is_empty() {
                        let (text, file) = (text.to_owned(), file.clone());
                        part.push(Document { text, file, line: None });
                    }
                }
            }
            lines => {
                let n_validation = (lines.len() as f64 * fraction).ceil() as usize;
                let n_training = (lines.len() - n_validation.min(lines.len())).max(1);
                res.training.extend_from_slice(&lines[..n_training]);
                res.validation.extend_from_slice(&lines[n_training..]);
            }
        }
    }
    for (part, documents) in [("training", &res.training), ("validation", &res.validation)] {
        if documents.is_empty() {
            return Err(DataError::NothingLeft { part, fraction });
        }
    }
    Ok(res)
}

/// The files a name stands for. A path that exists is taken as it is, commas and stars included.
fn expand(name: &str) -> Result<Vec<PathBuf>, DataError> {
    let path = Path::new(name);
    if path.is_dir() {
        let mut files = Vec::new();
        walk(path, &mut files)?;
        return if files.is_empty() {
            Err(DataError::NoMatch { pattern: format!("{name}/*") })
        } else {
            Ok(files)
        };
    }
    if path.exists() {
        return Ok(vec![path.to_owned()]);
    }
    if name.contains(',') {
        let parts = name.split(',').map(str::trim).filter(|part| !part.is_empty());
        return parts.map(expand).collect::<Result<Vec<_>, _>>().map(|lists| lists.concat());
    }
    match path.file_name().and_then(|last| last.to_str()) {
        Some(pattern) if pattern.contains('*') => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let mut files = entries(parent.unwrap_or(Path::new(".")))?;
            files.retain(|file| {
                let last = file.file_name().unwrap_or_default().to_string_lossy();
                file.is_file() && !last.starts_with('.') && matches(pattern, &last)
            });
            if files.is_empty() {
                return Err(DataError::NoMatch { pattern: name.to_owned() });
            }
            Ok(files)
        }
        _ => Err(DataError::NotFound { path: name.to_owned() }),
    }
}

/// All files below a directory, sorted, without hidden ones.
fn walk(directory: &Path, files: &mut Vec<PathBuf>) -> Result<(), DataError> {
    for path in entries(directory)? {
        let hidden = path.file_name().is_some_and(|it| it.as_encoded_bytes().starts_with(b"."));
        if hidden || path.is_symlink() && path.is_dir() {
            continue; // a link to a directory may lead back up
        }
        if path.is_dir() {
            walk(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, DataError> {
    let listing = fs::read_dir(directory).map_err(|source| io_error(directory, source))?;
    let mut res = listing
        .map(|entry| entry.map(|it| it.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| io_error(directory, source))?;
    res.sort();
    Ok(res)
}

/// Whether `name` is `pattern` with something, or nothing, in the place of each `*`.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut name) = name.strip_prefix(head) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let tail = parts.pop().unwrap_or_default();
    for part in parts {
        // The leftmost place leaves most for the parts that follow.
        let Some(at) = name.find(part) else {
            return false;
        };
        name = &name[at + part.len()..];
    }
    name.ends_with(tail)
}

/// What a file's name says about its content.
fn refused_form(extension: &str) -> Option<&'static str> {
    Some(match extension {
        "parquet" => "a Parquet file",
        "arrow" | "feather" => "an Arrow file",
        "xz" | "bz2" | "lz4" | "zip" | "7z" => "compressed with something but gzip or zstd",
        "tar" | "tgz" => "an archive",
        "csv" | "tsv" => "a table",
        "bin" | "idx" | "npy" | "npz" | "pt" | "pkl" | "safetensors" => "a file of numbers",
        "pdf" | "doc" | "docx" | "epub" => "a formatted document",
        "png" | "jpg" | "jpeg" | "gif" | "webp" | "mp3" | "mp4" | "wav" => "not text",
        _ => return None,
    })
}

fn read_file(path: &Path, documents: &mut Vec<Document>) -> Result<(), DataError> {
    let extension =
        |path: &Path| path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let packed = extension(path);
    let form = match packed.as_str() {
        "gz" | "zst" | "zstd" => extension(&path.with_extension("")),
        plain => plain.to_string(),
    };
    if let Some(form) = refused_form(&form) {
        return Err(DataError::Form { path: path.display().to_string(), form });
    }
    let file = File::open(path).map_err(|source| io_error(path, source))?;
    let file = BufReader::new(file);
    let mut reader: Box<dyn BufRead> = match packed.as_str() {
        // Several gzip members in a row are one file, as `cat a.gz b.gz` makes them.
        "gz" => Box::new(BufReader::new(MultiGzDecoder::new(file))),
        "zst" | "zstd" => Box::new(BufReader::new(Frames::new(file))),
        _ => Box::new(file),
    };
    if matches!(form.as_str(), "jsonl" | "json" | "ndjson") {
        return read_lines(path, &mut *reader, documents);
    }
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).map_err(|source| io_error(path, source))?;
    let text = utf8(path, bytes, 0)?;
    let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
    if !text.is_empty() {
        documents.push(Document { text, file: Arc::from(path), line: None });
    }
    Ok(())
}

fn read_lines(
    path: &Path,
    reader: &mut dyn BufRead,
    documents: &mut Vec<Document>,
) -> Result<(), DataError> {
    #[derive(serde::Deserialize)]
    struct Row {
        text: String,
    }
    let file: Arc<Path> = Arc::from(path);
    let mut at_byte = 0;
    for line in 1.. {
        let mut bytes = Vec::new();
        let n_bytes = reader.read_until(b'\n', &mut bytes);
        let n_bytes = n_bytes.map_err(|source| io_error(path, source))?;
        if n_bytes == 0 {
            break;
        }
        let row = utf8(path, bytes, at_byte)?;
        at_byte += n_bytes as u64;
        let row = row.trim_start_matches('\u{feff}').trim();
        if row.is_empty() {
            continue;
        }
        let row: Row = serde_json::from_str(row).map_err(|error| DataError::Line {
            path: path.display().to_string(),
            line,
            // The parser sees a single line: its own line number would mislead.
            reason: error.to_string().replace(" at line 1 column", " at column"),
        })?;
        if !row.text.is_empty() {
            documents.push(Document { text: row.text, file: file.clone(), line: Some(line) });
        }
    }
    Ok(())
}

fn utf8(path: &Path, bytes: Vec<u8>, at_byte: u64) -> Result<String, DataError> {
    String::from_utf8(bytes).map_err(|error| DataError::NotUtf8 {
        path: path.display().to_string(),
        byte: at_byte + error.utf8_error().valid_up_to() as u64,
    })
}

fn io_error(path: &Path, source: io::Error) -> DataError {
    let path = path.display().to_string();
    match source.kind() {
        io::ErrorKind::NotFound => DataError::NotFound { path },
        _ => DataError::Unreadable { path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};
    use std::io::Write;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("mdl_dataset_{name}_{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("the temporary directory is writable");
        path
    }

    fn put(directory: &Path, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = directory.join(name);
        fs::write(&path, bytes).expect("the temporary directory is writable");
        path.display().to_string()
    }

    fn texts(paths: &[String]) -> Vec<String> {
        let documents = documents(paths).expect("the data set is readable");
        documents.into_iter().map(|it| it.text).collect()
    }

    fn failure(paths: &[String]) -> (&'static str, String) {
        let error = documents(paths).expect_err("the data set is wrong");
        (error.code(), error.to_string())
    }

    #[test]
    fn names_expand_in_sorted_order() {
        let dir = directory("expand");
        let b = put(&dir, "b.txt", "bb");
        let a = put(&dir, "a.md", "aa");
        put(&dir, ".hidden", "no");
        put(&dir, "c.jsonl", "{\"text\": \"c1\"}\n\n{\"text\": \"c2\", \"url\": \"x\"}");
        let whole = dir.display().to_string();
        assert_eq!(texts(std::slice::from_ref(&whole)), ["aa", "bb", "c1", "c2"]);
        assert_eq!(texts(&[format!("{whole}/*.*d*")]), ["aa"]);
        assert_eq!(texts(&[format!("{b},{a}")]), ["bb", "aa"]);
        assert_eq!(failure(&[format!("{whole}/*.rs")]).0, "E0901");
        assert_eq!(failure(&[format!("{whole}/none.txt")]).0, "E0901");
        assert!(matches("*a*b", "xaab") && !matches("a*a", "a") && matches("a*", "a"));
    }

    #[test]
    fn gzip_is_read_and_a_cut_one_is_an_error() {
        let dir = directory("gzip");
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(b"{\"text\":\"\\u00e9t\\u00e9\"}\n").expect("memory is writable");
        let bytes = gz.finish().expect("memory is writable");
        let path = put(&dir, "x.json.gz", &bytes);
        assert_eq!(texts(&[path]), ["été"]);
        let cut = put(&dir, "y.json.gz", &bytes[..bytes.len() - 9]);
        assert_eq!(failure(&[cut]).0, "E0901");
    }

    #[test]
    fn zstandard_is_read_and_a_cut_one_is_an_error() {
        let dir = directory("zstandard");
        let frame = |text: &str| compress_to_vec(text.as_bytes(), CompressionLevel::Fastest);
        let lines = "{\"text\":\"été\"}\n".repeat(20_000);
        let (one, two) = (frame(&lines), frame("{\"text\":\"z\"}"));
        let path = put(&dir, "x.jsonl.zst", [one.as_slice(), &two].concat());
        let found = texts(&[path]);
        assert_eq!((found.len(), found[0].as_str(), found[20_000].as_str()), (20_001, "été", "z"));
        for (name, bytes) in [("cut", &one[..one.len() - 9]), ("none", b"plain text")] {
            assert_eq!(failure(&[put(&dir, &format!("{name}.txt.zst"), bytes)]).0, "E0901");
        }
        assert_eq!(failure(&[put(&dir, "empty.txt.zst", "")]).0, "E0904");
    }

    #[test]
    fn errors_name_the_file_and_the_place() {
        let dir = directory("errors");
        let (code, text) = failure(&[put(&dir, "a.jsonl", "{\"text\": \"x\"}\n{\"text\": 3}\n")]);
        assert_eq!(code, "E0902");
        assert!(text.contains("line 2 of") && text.contains("a.jsonl"), "{text}");
        let (code, text) = failure(&[put(&dir, "b.jsonl", "{\"content\": \"x\"}\n")]);
        assert_eq!(code, "E0902");
        assert!(text.contains("missing field `text` at column 16"), "{text}");
        assert_eq!(failure(&[put(&dir, "nest.jsonl", "[".repeat(100_000))]).0, "E0902");
        let (code, text) = failure(&[put(&dir, "c.txt", b"ab\xffc")]);
        assert_eq!((code, text.contains("at byte 2")), ("E0903", true));
        assert_eq!(failure(&[put(&dir, "d.txt", "")]).0, "E0904");
        assert_eq!(failure(&[put(&dir, "e.parquet", "PAR1")]).0, "E0905");
    }

    #[test]
    fn the_last_part_of_each_file_is_for_validation() {
        let dir = directory("split");
        put(&dir, "a.txt", "0123456é9");
        put(&dir, "b.jsonl", "{\"text\":\"p\"}\n{\"text\":\"q\"}\n{\"text\":\"r\"}\n");
        let all = documents(&[dir.display().to_string()]).expect("the data set is readable");
        let parts = split(all.clone(), 0.2).expect("both parts have text");
        let texts = |it: &[Document]| it.iter().map(|it| it.text.clone()).collect::<Vec<_>>();
        assert_eq!(texts(&parts.training), ["0123456", "p", "q"]);
        assert_eq!(texts(&parts.validation), ["é9", "r"]);
        assert_eq!(split(all.clone(), 0.0).map(|it| it.training).ok(), Some(all.clone()));
        assert!(split(all.clone(), 1.0).is_err() && split(all, f64::NAN).is_err());
    }
}
