//! A hash of few instructions.

use std::hash::Hasher;

/// For keys that are compared where it matters: nobody is kept from finding two that it takes for
/// the same. It is the same in every run, so what it mistakes is mistaken in every run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quick(u64);

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.write_u64(u64::from_le_bytes(*word)));
        // Names are short, and to copy a few bytes by their number takes longer than this.
        match (rest.first_chunk::<4>(), rest.last_chunk::<4>(), rest) {
            (_, _, []) => {}
            (Some(low), Some(high), _) => {
                let [low, high] = [low, high].map(|half| u64::from(u32::from_le_bytes(*half)));
                self.write_u64(low | high << 32);
            }
            (_, _, [first, .., last]) => {
                let middle = u64::from(rest[rest.len() / 2]);
                self.write_u64(u64::from(*first) | middle << 8 | u64::from(*last) << 16);
            }
            (_, _, [only]) => self.write_u64(u64::from(*only)),
        }
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(u64::from(byte));
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn write_u64(&mut self, word: u64) {
        // The product's high half depends on all bits of both, which is where the low one lacks.
        let product = u128::from(self.0 ^ word ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
