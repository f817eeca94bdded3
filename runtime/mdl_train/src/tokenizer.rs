//! Text to token ids and back: raw bytes, or a `tokenizer.json`.
//!
//! Which ids begin and end a text is not in `tokenizer.json` alone: the files beside it that a
//! model is published with come first. Whatever a tokenizer could produce is compared with the
//! model's vocabulary when it is opened, because an id that is too high would read a row that
//! the embedding does not have. Special tokens that stand in a text are read as such.

use std::path::Path;

use tokenizers::models::ModelWrapper;

use crate::decoding::Decoding;
use crate::tokenizer_file::{Ends, MAX_FILE_BYTES, MAX_NESTING, ends, guarded, parse, read_capped};
use crate::tokenizer_train::{MAX_VOCAB, MIN_VOCAB};

#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error(
        "tokenizer `{path}` is not there; give `bytes`, a tokenizer.json, or the directory of one"
    )]
    NotFound { path: String },
    #[error("tokenizer file `{path}` cannot be read: {reason}; fetch it again from its source")]
    Unreadable { path: String, reason: String },
    #[error(
        "tokenizer file `{path}` has more than {MAX_FILE_BYTES} bytes; is it a tokenizer.json?"
    )]
    TooLarge { path: String },
    #[error("tokenizer file `{path}` nests deeper than {MAX_NESTING} brackets")]
    TooDeep { path: String },
    #[error("the tokenizer cannot encode or decode this text: {reason}")]
    Text { reason: String },
    #[error(
        "token id {id} (`{token}`) of tokenizer `{path}` is not below the model's vocabulary of \
         {vocab}; set vocab to at least {}, or use the model's own tokenizer", id + 1
    )]
    Vocabulary { path: String, id: u32, token: String, vocab: usize },
    #[error(
        "--vocab_size is {vocab_size}; give {MIN_VOCAB} (BOS, EOS and 256 bytes) to {MAX_VOCAB}"
    )]
    VocabSize { vocab_size: usize },
    #[error("no tokenizer can be trained on this data set: {reason}")]
    Training { reason: String },
    #[error("the tokenizer cannot be written to `{path}`: {reason}; choose another --out")]
    Write { path: String, reason: String },
}

impl TokenizerError {
    pub fn code(&self) -> &'static str {
        match self {
            Self::Vocabulary { .. } => "E0912",
            Self::VocabSize { .. } | Self::Training { .. } | Self::Write { .. } => "E0913",
            _ => "E0911",
        }
    }
}

#[derive(Clone, Debug)]
enum Kind {
    /// Ids 0 to 255 are the bytes of UTF-8.
    Bytes,
    File {
        tokenizer: Box<tokenizers::Tokenizer>,
        json: Vec<u8>,
    },
}

#[derive(Clone, Debug)]
pub struct Tokenizer {
    kind: Kind,
    name: String,
    vocab: usize,
    ends: Ends,
}

impl Tokenizer {
    /// `name` is `bytes`, a `tokenizer.json`, or a directory that holds one; `vocab` is the
    /// number of ids of the model.
    pub fn open(name: &str, vocab: usize) -> Result<Self, TokenizerError> {
        if name == "bytes" { Self::bytes(vocab) } else { Self::file(Path::new(name), vocab) }
    }

    /// BOS is 256 and EOS 257 where the vocabulary has room for them.
    pub fn bytes(vocab: usize) -> Result<Self, TokenizerError> {
        let name = "bytes".to_owned();
        if vocab < 256 {
            return Err(TokenizerError::Vocabulary {
                path: name,
                id: 255,
                token: "ff".into(),
                vocab,
            });
        }
        let bos = (vocab > 256).then_some(256);
        let eos = if vocab > 257 { vec![257] } else { Vec::new() };
        let ends = Ends { bos, eos, front: bos.into_iter().collect() };
        Ok(Self { kind: Kind::Bytes, name, vocab, ends })
    }

    fn file(path: &Path, vocab: usize) -> Result<Self, TokenizerError> {
        let path = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
        let name = path.display().to_string();
        let json = read_capped(&path)?;
        let unreadable = |reason: String| TokenizerError::Unreadable { path: name.clone(), reason };
        let mut tokenizer = parse(&json).map_err(|error| unreadable(error.to_string()))?;
        let highest = tokenizer.get_vocab(true).into_iter().max_by_key(|(_, id)| *id);
        if let Some((token, id)) = highest.filter(|(_, id)| *id as usize >= vocab) {
            return Err(TokenizerError::Vocabulary { path: name, id, token, vocab });
        }
        let ends = ends(&path, &tokenizer)?;
        for id in ends.bos.iter().chain(&ends.eos).chain(&ends.front) {
            if *id as usize >= vocab {
                let token = tokenizer.id_to_token(*id).unwrap_or("not in the vocabulary".into());
                return Err(TokenizerError::Vocabulary { path: name, id: *id, token, vocab });
            }
        }
        // `ends` has what it adds, and without it offsets cover the spaces of a token as well.
        tokenizer.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        let kind = Kind::File { tokenizer: Box::new(tokenizer), json };
        Ok(Self { kind, name, vocab, ends })
    }

    /// `bytes`, or the path of the `tokenizer.json`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The `tokenizer.json` as it was read, for the checkpoint.
    pub fn json(&self) -> Option<&[u8]> {
        match &self.kind {
            Kind::Bytes => None,
            Kind::File { json, .. } => Some(json),
        }
    }

    pub fn bos(&self) -> Option<u32> {
        self.ends.bos
    }

    /// The id that ends a document in training.
    pub fn eos(&self) -> Option<u32> {
        self.ends.eos.first().copied()
    }

    /// Whether generation ends at this id; a model may have several such.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.eos.contains(&id)
    }

    /// Number of ids that the tokenizer has.
    pub fn n_ids(&self) -> usize {
        match &self.kind {
            Kind::Bytes => 256 + usize::from(self.ends.bos.is_some()) + self.ends.eos.len(),
            Kind::File { tokenizer, .. } => tokenizer.get_vocab_size(true),
        }
    }

    /// A warning where more than a quarter of the model's vocabulary can never occur.
    pub fn note(&self) -> Option<String> {
        let (n_ids, vocab, name) = (self.n_ids(), self.vocab, &self.name);
        (n_ids * 4 < vocab * 3).then(|| {
            format!("tokenizer `{name}` has {n_ids} ids and the model {vocab}: is it the model's?")
        })
    }

    /// What a text of this family begins with: BOS, where the tokenizer adds it.
    pub fn front(&self) -> &[u32] {
        &self.ends.front
    }

    /// Every id that ends a generation.
    pub fn ends(&self) -> &[u32] {
        &self.ends.eos
    }

    /// `bytes`, or what the file calls its model: BPE, Unigram, WordPiece, WordLevel.
    pub fn model_type(&self) -> &'static str {
        match &self.kind {
            Kind::Bytes => "bytes",
            Kind::File { tokenizer, .. } => match tokenizer.get_model() {
                ModelWrapper::BPE(_) => "BPE",
                ModelWrapper::WordPiece(_) => "WordPiece",
                ModelWrapper::WordLevel(_) => "WordLevel",
                ModelWrapper::Unigram(_) => "Unigram",
            },
        }
    }

    /// The special tokens of the file with their ids, ascending.
    pub fn special_tokens(&self) -> Vec<(u32, String)> {
        let named = |id: &Option<u32>, name: &str| id.map(|id| (id, name.to_owned()));
        match &self.kind {
            Kind::Bytes => [named(&self.bos(), "<s>"), named(&self.eos(), "</s>")]
                .into_iter()
                .flatten()
                .collect(),
            Kind::File { tokenizer, .. } => {
                let added = tokenizer.get_added_tokens_decoder();
                let special = added.iter().filter(|(_, token)| token.special);
                let mut res: Vec<_> =
                    special.map(|(id, token)| (*id, token.content.clone())).collect();
                res.sort();
                res
            }
        }
    }

    /// Token ids of a text; with `add_special`, BOS in front where the tokenizer adds it.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let mut res = Vec::with_capacity(text.len() / 3 + 2);
        if add_special {
            res.extend_from_slice(&self.ends.front);
        }
        match &self.kind {
            Kind::Bytes => res.extend(text.bytes().map(u32::from)),
            Kind::File { tokenizer, .. } => {
                let encoding =
                    guarded(|| tokenizer.encode_fast(text, false)).map_err(text_error)?;
                res.extend_from_slice(encoding.get_ids());
            }
        }
        Ok(res)
    }

    /// A training document: BOS, where it is added, in front; EOS, where there is one, behind.
    pub fn training_ids(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut res = self.encode(text, true)?;
        res.extend(self.eos());
        Ok(res)
    }

    /// A document to evaluate: BOS, where it is added, and no EOS.
    pub fn evaluation_ids(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode(text, true)
    }

    /// The ids of `evaluation_ids`, and for each how many bytes of the text lie before its end.
    pub fn evaluation_spans(&self, text: &str) -> Result<(Vec<u32>, Vec<usize>), TokenizerError> {
        let mut ids = self.ends.front.clone();
        let mut ends = vec![0; ids.len()];
        match &self.kind {
            Kind::Bytes => {
                ids.extend(text.bytes().map(u32::from));
                ends.extend(1..=text.len());
            }
            Kind::File { tokenizer, .. } => {
                let encoding = guarded(|| tokenizer.encode(text, false)).map_err(text_error)?;
                ids.extend_from_slice(encoding.get_ids());
                ends.extend(encoding.get_offsets().iter().map(|(_, end)| *end));
            }
        }
        Ok((ids, ends))
    }

    /// Whether every id is one of the tokenizer's: decoding leaves out the others in silence.
    pub fn known(&self, ids: &[u32]) -> Result<(), TokenizerError> {
        let known = |id: u32| match &self.kind {
            Kind::Bytes => (id as usize) < self.n_ids(),
            Kind::File { tokenizer, .. } => tokenizer.id_to_token(id).is_some(),
        };
        match ids.iter().find(|id| !known(**id)) {
            Some(id) => Err(TokenizerError::Text {
                reason: format!("{id} is not one of its {} ids", self.n_ids()),
            }),
            None => Ok(()),
        }
    }

    /// Bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        match &self.kind {
            Kind::Bytes => {
                let mut bytes = Vec::with_capacity(ids.len());
                for id in ids {
                    match u8::try_from(*id) {
                        Ok(byte) => bytes.push(byte),
                        Err(_) if skip_special => {}
                        Err(_) if self.ends.bos == Some(*id) => bytes.extend(b"<s>"),
                        Err(_) => bytes.extend(b"</s>"),
                    }
                }
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Kind::File { tokenizer, .. } => {
                guarded(|| tokenizer.decode(ids, skip_special)).map_err(text_error)
            }
        }
    }

    /// Decodes ids that arrive one by one.
    pub fn decoding(&self, skip_special: bool) -> Decoding<'_> {
        Decoding::new(self, skip_special)
    }
}

fn text_error(error: tokenizers::Error) -> TokenizerError {
    TokenizerError::Text { reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn bytes_have_bos_and_eos_where_there_is_room() {
        for (vocab, bos, eos) in [(256, None, None), (257, Some(256), None)] {
            let tokenizer = Tokenizer::bytes(vocab).expect("every byte has room");
            assert_eq!((tokenizer.bos(), tokenizer.eos()), (bos, eos));
        }
        let tokenizer = Tokenizer::open("bytes", 300).expect("every byte has room");
        assert_eq!(tokenizer.training_ids("é!").ok(), Some(vec![256, 195, 169, 33, 257]));
        assert_eq!(tokenizer.decode(&[256, 195, 169, 257], true).ok().as_deref(), Some("é"));
        assert_eq!(Tokenizer::bytes(255).expect_err("too small").code(), "E0912");
        assert!(tokenizer.note().is_none());
        assert!(Tokenizer::bytes(32_000).expect("room").note().is_some());
    }

    #[test]
    fn hostile_files_are_errors() {
        let dir = std::env::temp_dir().join(format!("mdl_tokenizer_{}", std::process::id()));
        fs::create_dir_all(&dir).expect("the temporary directory is writable");
        let path = dir.join("tokenizer.json");
        let deep = format!("{{\"a\":{}", "[".repeat(100_000));
        for (content, part) in
            [(deep.as_str(), "nests"), ("{", "read"), ("", "read"), ("\"[[\\\"[\"", "read")]
        {
            fs::write(&path, content).expect("the temporary directory is writable");
            let error = Tokenizer::open(&path.display().to_string(), 10).expect_err("hostile");
            assert_eq!((error.code(), error.to_string().contains(part)), ("E0911", true));
        }
        assert_eq!(Tokenizer::open("org/name", 10).expect_err("not local").code(), "E0911");
    }
}
