//! Turns documents into batches: shuffled windows for training, windows in order for evaluation.
//!
//! Nothing here has state. Which tokens a sample holds is a function of the seed and the
//! sample's global index, so a run continues after a stop, on any number of ranks, with exactly
//! the samples that it would have seen. The documents form one circular stream in an order drawn
//! from the seed; each epoch cuts the stream into windows from another place and takes them in
//! another order, so that two epochs differ even over a single long document.

use crate::dataset::{DataError, Document};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// The data set's whole state: how many samples have been taken since the run began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cursor {
    pub sample: u64,
}

/// Sequences of token ids; all three arrays are `[B, T]`, row after row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub tokens: Vec<i32>,
    /// The token id that follows, or -1 where nothing is to be predicted.
    pub targets: Vec<i32>,
    /// Index of the document within its row, from 0: attention stays within equal numbers.
    pub documents: Vec<i32>,
    pub batch_size: usize,
    pub t: usize,
}

impl Batch {
    fn with_capacity(batch_size: usize, t: usize) -> Self {
        let empty = || Vec::with_capacity(batch_size * t);
        Self { tokens: empty(), targets: empty(), documents: empty(), batch_size, t }
    }

    /// The rows in `n` parts of as many each, one after the other.
    pub fn split(&self, n: usize) -> Vec<Batch> {
        let n = n.max(1);
        assert!(self.batch_size.is_multiple_of(n), "parts have the same number of rows");
        let rows = self.batch_size / n;
        let part = |i: usize, all: &[i32]| all[i * rows * self.t..(i + 1) * rows * self.t].to_vec();
        let batch = |i: usize| Batch {
            tokens: part(i, &self.tokens),
            targets: part(i, &self.targets),
            documents: part(i, &self.documents),
            batch_size: rows,
            t: self.t,
        };
        (0..n).map(batch).collect()
    }

    /// How many positions have a target: the denominator of the mean loss.
    pub fn n_targets(&self) -> usize {
        self.targets.iter().filter(|it| **it >= 0).count()
    }
}

/// All training documents, one after the other.
#[derive(Clone, Debug)]
pub struct Stream {
    tokens: Vec<i32>,
    /// Positions in `tokens` where a document starts, ascending; the first is 0.
    starts: Vec<usize>,
    seed: u64,
}

impl Stream {
    /// Tokenises: BOS in front where the tokenizer adds it, EOS behind where it has one.
    pub fn from_documents(
        documents: &[Document],
        tokenizer: &Tokenizer,
        seed: u64,
    ) -> Result<Self, TokenizerError> {
        let ids = documents.iter().map(|it| tokenizer.training_ids(&it.text));
        Ok(Self::new(&ids.collect::<Result<Vec<_>, _>>()?, seed))
    }

    /// `documents` hold their BOS and EOS already.
    pub fn new(documents: &[Vec<u32>], seed: u64) -> Self {
        let n = documents.len() as u64;
        let mut tokens = Vec::with_capacity(documents.iter().map(Vec::len).sum());
        let mut starts = Vec::with_capacity(documents.len());
        for i in 0..n {
            let document = &documents[permuted(i, n, mixed(seed, 0x0D0C)) as usize];
            if !document.is_empty() {
                starts.push(tokens.len());
                tokens.extend(document.iter().map(|id| *id as i32));
            }
        }
        Self { tokens, starts, seed }
    }

    /// Lets attention and prediction run on from a document into the next one.
    pub fn crossing_documents(mut self) -> Self {
        self.starts.truncate(1);
        self
    }

    /// Number of token ids in an epoch.
    pub fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Samples of `t` tokens in an epoch, at least one; what is left over changes by epoch.
    pub fn samples_per_epoch(&self, t: usize) -> Result<u64, DataError> {
        match self.tokens.len() {
            tokens if tokens <= t => Err(DataError::TooShort { tokens, needed: t + 1 }),
            tokens => Ok((tokens / t.max(1)) as u64),
        }
    }

    /// The samples `cursor..cursor + batch_size`, in whatever epochs these lie.
    ///
    /// A document's first token is no target: what comes after a document says nothing of it.
    pub fn batch(&self, cursor: u64, batch_size: usize, t: usize) -> Result<Batch, DataError> {
        let per_epoch = self.samples_per_epoch(t)?;
        let n = self.tokens.len();
        let mut res = Batch::with_capacity(batch_size, t);
        for sample in (cursor..).take(batch_size) {
            let key = mixed(self.seed, 1 + sample / per_epoch);
            let window = permuted(sample % per_epoch, per_epoch, key) as usize;
            let first = (mixed(key, 0xC07) % n as u64) as usize + window * t;
            let mut document = 0;
            for at in first..first + t {
                let next = (at + 1) % n;
                let ends = self.starts.binary_search(&next).is_ok();
                res.tokens.push(self.tokens[at % n]);
                res.targets.push(if ends { -1 } else { self.tokens[next] });
                res.documents.push(document);
                document += i32::from(ends);
            }
        }
        Ok(res)
    }
}

/// Documents cut into windows that do not overlap: each token but a document's first is a
/// target exactly once. A window never holds two documents.
#[derive(Clone, Debug)]
pub struct Evaluation {
    documents: Vec<Vec<u32>>,
    /// (document, position of its first input) of each window.
    windows: Vec<(usize, usize)>,
    t: usize,
}

impl Evaluation {
    /// Tokenises: BOS in front where the tokenizer adds it, and no EOS.
    pub fn from_documents(
        documents: &[Document],
        tokenizer: &Tokenizer,
        t: usize,
    ) -> Result<Self, TokenizerError> {
        let ids = documents.iter().map(|it| tokenizer.evaluation_ids(&it.text));
        Ok(Self::new(ids.collect::<Result<Vec<_>, _>>()?, t))
    }

    pub fn new(documents: Vec<Vec<u32>>, t: usize) -> Self {
        let mut windows = Vec::new();
        for (i, document) in documents.iter().enumerate() {
            let n_targets = document.len().saturating_sub(1);
            windows.extend((0..n_targets).step_by(t.max(1)).map(|start| (i, start)));
        }
        Self { documents, windows, t }
    }

    /// 0 when there is nothing to predict.
    pub fn n_windows(&self) -> usize {
        self.windows.len()
    }

    /// Targets in all windows together.
    pub fn n_targets(&self) -> usize {
        self.documents.iter().map(|it| it.len().saturating_sub(1)).sum()
    }

    /// Windows `first..first + batch_size` as `[B, T]`; what lies behind the end of a document
    /// or of the data has token 0 and no target.
    pub fn batch(&self, first: usize, batch_size: usize) -> Batch {
        let mut res = Batch::with_capacity(batch_size, self.t);
        for i in first..first + batch_size {
            let ids = match self.windows.get(i) {
                Some((document, start)) => &self.documents[*document][*start..],
                None => &[],
            };
            let n_targets = ids.len().saturating_sub(1).min(self.t);
            for at in 0..self.t {
                let valid = at < n_targets;
                res.tokens.push(if valid { ids[at] as i32 } else { 0 });
                res.targets.push(if valid { ids[at + 1] as i32 } else { -1 });
                res.documents.push(0);
            }
        }
        res
    }
}

/// A number that depends on every bit of both (the finalizer of splitmix64).
fn mixed(seed: u64, salt: u64) -> u64 {
    let mut z = seed.wrapping_add(salt.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Where `index` goes in a permutation of `0..n` drawn from `key`.
///
/// A Feistel network permutes the next power of four; applying it until the result is below
/// `n` permutes `0..n`, in four steps on average at most.
fn permuted(index: u64, n: u64, key: u64) -> u64 {
    let half_bits = (u64::BITS - n.saturating_sub(1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half_bits) - 1;
    let mut res = index;
    loop {
        let (mut high, mut low) = (res >> half_bits, res & mask);
        for round in 0..6 {
            (high, low) = (low, high ^ (mixed(mixed(key, round), low) & mask));
        }
        res = high << half_bits | low;
        if res < n {
            return res;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permuted_reaches_every_index_once() {
        for n in [1, 2, 3, 4, 5, 16, 17, 100, 257] {
            for key in 0..5 {
                let mut res: Vec<u64> = (0..n).map(|i| permuted(i, n, key)).collect();
                res.sort();
                assert_eq!(res, (0..n).collect::<Vec<_>>(), "n = {n}");
            }
        }
        let order = |key| (0..100).map(|i| permuted(i, 100, key)).collect::<Vec<_>>();
        assert_ne!(order(1), order(2));
    }

    #[test]
    fn an_epoch_takes_every_token_at_most_once() {
        let stream = Stream::new(&[(0..103).collect()], 7);
        let (t, per_epoch) = (10, 10);
        assert_eq!(stream.samples_per_epoch(t).ok(), Some(per_epoch));
        let epoch = |e: u64| stream.batch(e * per_epoch, per_epoch as usize, t).expect("enough");
        let mut tokens = epoch(0).tokens;
        assert_ne!(tokens, epoch(1).tokens);
        tokens.sort();
        tokens.dedup();
        assert_eq!(tokens.len(), 100);
        let cuts = (0..20).map(|e| epoch(e).tokens.iter().step_by(10).min().copied());
        assert!(cuts.collect::<std::collections::BTreeSet<_>>().len() > 5);
    }

    #[test]
    fn samples_do_not_depend_on_the_batch_size() {
        let stream = Stream::new(&[(0..50).collect(), (50..97).collect()], 3);
        let whole = stream.batch(5, 40, 8).expect("enough");
        let parts: Vec<i32> =
            (0..10).flat_map(|i| stream.batch(5 + i * 4, 4, 8).expect("enough").tokens).collect();
        assert_eq!(whole.tokens, parts);
        let other = Stream::new(&[(0..50).collect(), (50..97).collect()], 4);
        assert_ne!(other.batch(5, 40, 8).expect("enough").tokens, parts);
    }

    #[test]
    fn targets_follow_within_a_document_only() {
        // Document d counts 100 d, 100 d + 1, …
        let documents: Vec<Vec<u32>> = [3, 1, 7, 2, 5]
            .iter()
            .zip(0..)
            .map(|(n, d)| (d * 100..d * 100 + n).collect())
            .collect();
        let stream = Stream::new(&documents, 1);
        let batch = stream.batch(0, 12, 6).expect("enough");
        for row in 0..12 {
            let at = row * 6..row * 6 + 6;
            let (tokens, documents) = (&batch.tokens[at.clone()], &batch.documents[at.clone()]);
            assert_eq!(documents[0], 0);
            for i in 0..6 {
                let last = [3, 1, 7, 2, 5][(tokens[i] / 100) as usize] - 1 == tokens[i] % 100;
                assert_eq!(batch.targets[at.start + i], if last { -1 } else { tokens[i] + 1 });
                if i > 0 {
                    let began = tokens[i] % 100 == 0;
                    assert_eq!(documents[i] - documents[i - 1], i32::from(began));
                }
            }
        }
        let crossing = stream.crossing_documents().batch(0, 3, 6).expect("enough");
        let n_ends = 18 - crossing.n_targets();
        assert!(n_ends <= 1, "only the end of the whole stream is an end");
    }

    #[test]
    fn a_short_data_set_is_an_error() {
        let stream = Stream::new(&[vec![1; 8]], 1);
        let error = stream.batch(0, 1, 8).expect_err("one token short");
        assert_eq!(error.code(), "E0904");
        assert_eq!(stream.batch(0, 1, 7).expect("enough").tokens.len(), 7);
    }

    #[test]
    fn evaluation_predicts_each_token_but_the_first_once() {
        let documents = vec![(0..11).collect(), vec![20], vec![], vec![30, 31]];
        let evaluation = Evaluation::new(documents, 4);
        assert_eq!((evaluation.n_windows(), evaluation.n_targets()), (4, 11));
        let batch = evaluation.batch(2, 3);
        assert_eq!(batch.tokens, [8, 9, 0, 0, 30, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(batch.targets, [9, 10, -1, -1, 31, -1, -1, -1, -1, -1, -1, -1]);
        let mut targets = evaluation.batch(0, 4).targets;
        targets.retain(|it| *it >= 0);
        assert_eq!(targets, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 31]);
    }
}
