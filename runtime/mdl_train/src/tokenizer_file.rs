//! Reads the files of a published tokenizer with care, and what they say of BOS and EOS.
//!
//! Sizes and nesting are limited before a parser sees a byte. Publishers state the special ids
//! in up to four files that do not always agree; the order here is that of generation.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::tokenizer::TokenizerError;

pub(crate) const MAX_FILE_BYTES: u64 = 64 << 20;
pub(crate) const MAX_NESTING: usize = 64;
/// Ends of text, in case no file beside the tokenizer names one.
const USUAL_EOS: [&str; 5] = ["</s>", "<|end_of_text|>", "<|endoftext|>", "<eos>", "<|im_end|>"];

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
    let bytes = fs::metadata(path).map_err(unreadable)?.len();
    if bytes > MAX_FILE_BYTES {
        return Err(TokenizerError::TooLarge { path: name(), bytes });
    }
    let json = fs::read(path).map_err(unreadable)?;
    if nesting(&json) > MAX_NESTING {
        return Err(TokenizerError::TooDeep { path: name() });
    }
    Ok(json)
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

/// (BOS, all EOS, whether BOS is put in front), from the first place that says so:
/// generation_config.json, config.json, tokenizer_config.json, tokenizer.json, usual names.
pub(crate) fn begin_and_end(
    path: &Path,
    tokenizer: &tokenizers::Tokenizer,
) -> Result<(Option<u32>, Vec<u32>, bool), TokenizerError> {
    let beside: Vec<Value> = ["generation_config.json", "config.json", "tokenizer_config.json"]
        .iter()
        .map(|name| path.with_file_name(name))
        .filter(|path| path.is_file())
        .map(|path| read_json(&path))
        .collect::<Result<_, _>>()?;
    let ids = |key: &str, token: &str| {
        let found = |it: &Value| {
            let ids = ids_of(&it[key]);
            let token = it[token].as_str().or_else(|| it[token]["content"].as_str());
            let id = token.and_then(|token| tokenizer.token_to_id(token));
            if ids.is_empty() { id.into_iter().collect() } else { ids }
        };
        beside.iter().map(found).find(|ids: &Vec<u32>| !ids.is_empty()).unwrap_or_default()
    };
    let added = |error: tokenizers::Error| TokenizerError::Unreadable {
        path: path.display().to_string(),
        reason: error.to_string(),
    };
    // What the file itself puts around a text shows on an empty one.
    let around = tokenizer.encode("", true).map_err(added)?.get_ids().to_vec();
    let mut eos = ids("eos_token_id", "eos_token");
    if eos.is_empty() {
        eos.extend(USUAL_EOS.iter().find_map(|name| tokenizer.token_to_id(name)));
    }
    let in_front = around.first().copied().filter(|id| !eos.contains(id));
    let bos = ids("bos_token_id", "bos_token").first().copied().or(in_front);
    let said = beside.iter().find_map(|it| it["add_bos_token"].as_bool());
    let adds_bos = bos.is_some() && said.unwrap_or(in_front.is_some());
    Ok((bos, eos, adds_bos))
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
