//! Reads the files of a published tokenizer with care, and what they say of BOS and EOS.
//!
//! Sizes and nesting are limited before a parser sees a byte. Publishers state the special ids
//! in up to four files that do not always agree; the order here is that of generation.

use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Once;

use serde_json::Value;

use crate::tokenizer::TokenizerError;

pub(crate) const MAX_FILE_BYTES: u64 = 64 << 20;
pub(crate) const MAX_NESTING: usize = 64;
/// Ends of text, in case no file beside the tokenizer names one.
const USUAL_EOS: [&str; 5] = ["</s>", "<|end_of_text|>", "<|endoftext|>", "<eos>", "<|im_end|>"];
/// Likewise for the beginning.
const USUAL_BOS: [&str; 4] = ["<s>", "<|begin_of_text|>", "<|endoftext|>", "<bos>"];
/// Files beside `tokenizer.json` that say which ids begin and end a text, in order of precedence.
const BESIDE: [&str; 4] =
    ["generation_config.json", "config.json", "tokenizer_config.json", "special_tokens_map.json"];

/// The whole file, if it is small and flat enough to hand to a parser.
pub(crate) fn read_capped(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    let name = || path.display().to_string();
    let unreadable = |error: std::io::Error| TokenizerError::Unreadable {
        path: name(),
        reason: error.to_string(),
    };
    if !path.exists() {
        return Err(TokenizerError::NotFound { path: name() });
    }
    let mut json = Vec::new();
    // The limit is on what is read: pipes and devices have no size to ask for.
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut json).map_err(unreadable)?;
    if json.len() as u64 > MAX_FILE_BYTES {
        return Err(TokenizerError::TooLarge { path: name() });
    }
    if nesting(&json) > MAX_NESTING {
        return Err(TokenizerError::TooDeep { path: name() });
    }
    Ok(json)
}

/// Whatever the library is asked about a file's content. It panics on some malformed files, and on
/// some texts under them: that is an error of the file.
pub(crate) fn guarded<T>(
    call: impl FnOnce() -> Result<T, tokenizers::Error>,
) -> Result<T, tokenizers::Error> {
    static HOOK: Once = Once::new();
    thread_local! {
        static QUIET: Cell<bool> = const { Cell::new(false) };
    }
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                before(info);
            }
        }));
    });
    QUIET.set(true);
    let res = panic::catch_unwind(AssertUnwindSafe(call));
    QUIET.set(false);
    res.unwrap_or_else(|_| Err("its parts contradict each other".into()))
}

/// A tokenizer without padding and truncation, which would pad or cut every document in silence.
pub(crate) fn parse(json: &[u8]) -> Result<tokenizers::Tokenizer, tokenizers::Error> {
    serde_json::from_slice::<serde::de::IgnoredAny>(json)?;
    guarded(|| {
        let mut res = tokenizers::Tokenizer::from_bytes(json)?;
        res.with_padding(None).with_truncation(None)?;
        Ok(res)
    })
}

/// Deepest nesting of brackets outside strings.
fn nesting(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// What stands around a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) bos: Option<u32>,
    /// The first ends a document in training; generation ends at any of them.
    pub(crate) eos: Vec<u32>,
    /// What every text begins with: BOS, in families that add it.
    pub(crate) front: Vec<u32>,
}

/// BOS and EOS are those of the first file that names them: `generation_config.json`,
/// `config.json`, `tokenizer_config.json`, `special_tokens_map.json`; then the usual names.
/// Whether BOS is put in front says `add_bos_token` of `tokenizer_config.json`, and else the
/// post-processor of `tokenizer.json`.
pub(crate) fn ends(path: &Path, tokenizer: &tokenizers::Tokenizer) -> Result<Ends, TokenizerError> {
    let beside: Vec<Value> = BESIDE
        .iter()
        .map(|name| path.with_file_name(name))
        .filter(|path| path.is_file())
        .map(|path| read_json(&path))
        .collect::<Result<_, _>>()?;
    let stated = |key: &str, token: &str| {
        let found = |it: &Value| {
            let ids = ids_of(&it[key]);
            let token = it[token].as_str().or_else(|| it[token]["content"].as_str());
            let id = token.and_then(|token| tokenizer.token_to_id(token));
            if ids.is_empty() { id.into_iter().collect() } else { ids }
        };
        beside.iter().map(found).find(|ids: &Vec<u32>| !ids.is_empty()).unwrap_or_default()
    };
    let usual = |names: &[&str]| names.iter().find_map(|name| tokenizer.token_to_id(name));
    let mut eos = stated("eos_token_id", "eos_token");
    if eos.is_empty() {
        eos.extend(usual(&USUAL_EOS));
    }
    let in_front = put_in_front(tokenizer).map_err(|error| TokenizerError::Unreadable {
        path: path.display().to_string(),
        reason: error.to_string(),
    })?;
    let bos = stated("bos_token_id", "bos_token").first().copied();
    let bos = bos.or(in_front.first().copied()).or_else(|| usual(&USUAL_BOS));
    let front = match beside.iter().find_map(|it| it["add_bos_token"].as_bool()) {
        Some(true) if bos.is_some() => bos.into_iter().collect(),
        Some(false) => Vec::new(),
        _ => in_front,
    };
    Ok(Ends { bos, eos, front })
}

/// What the post-processor puts in front of a text, seen on a short one.
fn put_in_front(tokenizer: &tokenizers::Tokenizer) -> Result<Vec<u32>, tokenizers::Error> {
    let ids =
        |special: bool| guarded(|| tokenizer.encode("a", special)).map(|it| it.get_ids().to_vec());
    let (plain, full) = (ids(false)?, ids(true)?);
    let n_added = full.len().saturating_sub(plain.len());
    let n_front = (0..=n_added).find(|at| full[*at..].starts_with(&plain)).unwrap_or(0);
    Ok(full[..n_front].to_vec())
}

pub(crate) fn read_json(path: &Path) -> Result<Value, TokenizerError> {
    serde_json::from_slice(&read_capped(path)?).map_err(|error| TokenizerError::Unreadable {
        path: path.display().to_string(),
        reason: error.to_string(),
    })
}

/// An id or a list of ids.
pub(crate) fn ids_of(value: &Value) -> Vec<u32> {
    let id = |it: &Value| it.as_u64().and_then(|it| u32::try_from(it).ok());
    match value {
        Value::Array(list) => list.iter().filter_map(id).collect(),
        value => id(value).into_iter().collect(),
    }
}
