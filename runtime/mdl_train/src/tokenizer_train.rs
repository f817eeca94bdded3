//! Trains a byte-level BPE tokenizer (Radford et al. 2019) on a data set.
//!
//! All 256 bytes are in the vocabulary, so any text has ids, and they give back exactly its
//! bytes. Text is cut into words as GPT-2 does; BOS has id 0 and EOS id 1 under the names of
//! Llama 3, and BOS stands in front of every text.

use std::fs;
use std::path::{Path, PathBuf};

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

use crate::dataset::Document;
use crate::tokenizer::TokenizerError;

pub const BOS: &str = "<|begin_of_text|>";
pub const EOS: &str = "<|end_of_text|>";
/// BOS, EOS and the bytes.
pub const MIN_VOCAB: usize = 258;
pub const MAX_VOCAB: usize = 1 << 20;
/// Bytes of text that are cut into words at a time.
const PIECE: usize = 1 << 16;

/// The files of a trained tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trained {
    pub tokenizer_json: String,
    /// What `tokenizer_config.json` says beside it.
    pub config_json: String,
    /// Ids in the vocabulary: fewer than asked for where the text has no pair left that occurs
    /// twice.
    pub n_ids: usize,
}

/// The same documents in the same order give the same bytes. `progress` gets the bytes of each
/// piece of text that has been counted; merging begins when all are.
pub fn train(
    documents: &[Document],
    vocab_size: usize,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Trained, TokenizerError> {
    if !(MIN_VOCAB..=MAX_VOCAB).contains(&vocab_size) {
        return Err(TokenizerError::VocabSize { vocab_size });
    }
    let failed = |error: tokenizers::Error| TokenizerError::Training { reason: error.to_string() };
    let special = [BOS, EOS].map(|name| AddedToken::from(name, true));
    let trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(special.to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut tokenizer = Tokenizer::new(BPE::default());
    let bytes = ByteLevel::new(false, true, true);
    tokenizer.with_pre_tokenizer(Some(bytes));
    tokenizer.with_decoder(Some(bytes));
    let words = documents.iter().flat_map(|document| pieces(&document.text));
    let words = words.inspect(|piece| progress(piece.len()));
    tokenizer.train(&mut TrainerWrapper::from(trainer), words).map_err(failed)?;
    let template = TemplateProcessing::builder()
        .try_single(format!("{BOS} $A"))
        .and_then(|it| it.try_pair(format!("{BOS} $A {BOS}:1 $B:1")))
        .map_err(|error| failed(error.into()))?
        .special_tokens(vec![(BOS, 0)])
        .build();
    tokenizer.with_post_processor(Some(template.map_err(|error| failed(error.into()))?));
    let config = serde_json::json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "clean_up_tokenization_spaces": false,
    });
    Ok(Trained {
        tokenizer_json: tokenizer.to_string(true).map_err(failed)?,
        config_json: format!("{config:#}\n"),
        n_ids: tokenizer.get_vocab_size(true),
    })
}

/// Writes into the directory `out`, or into that one file if its name ends in `.json`; the path
/// of the `tokenizer.json`.
pub fn write(out: &Path, trained: &Trained) -> Result<PathBuf, TokenizerError> {
    let failed = |source: std::io::Error| TokenizerError::Write {
        path: out.display().to_string(),
        reason: source.to_string(),
    };
    let is_file = out.extension().is_some_and(|it| it == "json") && !out.is_dir();
    let (directory, path) = match out.parent() {
        Some(parent) if is_file => (parent, out.to_owned()),
        _ => (out, out.join("tokenizer.json")),
    };
    fs::create_dir_all(directory).map_err(failed)?;
    fs::write(&path, &trained.tokenizer_json).map_err(failed)?;
    if !is_file {
        fs::write(out.join("tokenizer_config.json"), &trained.config_json).map_err(failed)?;
    }
    Ok(path)
}

/// The text in order, cut behind a line's end where there is one in reach. The words of a long
/// text take several times its memory, and pieces of it are counted in parallel.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let most = rest.floor_char_boundary(PIECE);
        let cut = match rest[..most].rfind('\n') {
            Some(at) if most < rest.len() => at + 1,
            _ => most,
        };
        let (head, tail) = rest.split_at(cut);
        rest = tail;
        (!head.is_empty()).then_some(head)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_up_the_text() {
        let lines = "é漢🦙 words\n".repeat(20_000);
        let one_line = lines.replace('\n', " ");
        for text in [lines.as_str(), one_line.as_str(), "", "a"] {
            let parts: Vec<&str> = pieces(text).collect();
            assert_eq!(parts.concat(), text);
            assert!(parts.iter().all(|part| part.len() <= PIECE));
        }
        assert!(pieces(&lines).all(|part| part.ends_with('\n')));
    }
}
