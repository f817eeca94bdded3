//! Text of token ids that arrive one by one, as generation makes them.

use crate::tokenizer::{Tokenizer, TokenizerError};

/// Text of ids that arrive one by one, given out as soon as its characters are complete.
///
/// What an id means depends on its neighbours (spaces at the front, characters of several
/// bytes), so each step decodes the last piece given out again together with what is new.
#[derive(Debug)]
pub struct Decoding<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    ids: Vec<u32>,
    /// Where the last piece given out begins in `ids`, and where it ends.
    start: usize,
    printed: usize,
}

impl<'a> Decoding<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, ids: Vec::new(), start: 0, printed: 0 }
    }

    /// The text that `id` completes; empty in the middle of a character.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.ids.push(id);
        // A character has at most four bytes: five ids without an end are not UTF-8.
        self.piece(self.ids.len() - self.printed > 4)
    }

    /// What is left at the end, an incomplete character as U+FFFD.
    pub fn finish(mut self) -> Result<String, TokenizerError> {
        self.piece(true)
    }

    fn piece(&mut self, incomplete_too: bool) -> Result<String, TokenizerError> {
        let given =
            self.tokenizer.decode(&self.ids[self.start..self.printed], self.skip_special)?;
        let text = self.tokenizer.decode(&self.ids[self.start..], self.skip_special)?;
        if !incomplete_too && text.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        self.start = self.printed;
        self.printed = self.ids.len();
        Ok(text.get(given.len()..).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_complete_characters() {
        let tokenizer = Tokenizer::bytes(258).expect("every byte has room");
        let text = "aé漢🦙\u{fffd}z";
        let mut decoding = tokenizer.decoding(true);
        let mut pieces = Vec::new();
        for byte in text.bytes().chain([0xff, b'y', 0xe6]) {
            pieces.push(decoding.push(u32::from(byte)).expect("bytes have a text"));
        }
        assert!(pieces.iter().all(|piece| piece.chars().count() <= 2));
        pieces.push(decoding.finish().expect("bytes have a text"));
        assert_eq!(pieces.concat(), format!("{text}\u{fffd}y\u{fffd}"));
    }
}
