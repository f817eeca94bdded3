//! How the next token is chosen: temperature, then the k most likely, then the smallest set of
//! likely tokens whose probabilities reach p, as Hugging Face's `transformers` defines them.

use mdl_ir::interp::mix;

/// The default takes each token with the probability that the model gives it.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the most likely token, of equals the one with the lowest
    /// id.
    pub temperature: f64,
    /// Only the k highest logits, and those equal to the lowest of them.
    pub top_k: Option<usize>,
    /// Only the most likely tokens, as many as are needed for their probabilities to add up to
    /// this; one at least.
    pub top_p: Option<f64>,
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 1.0, top_k: None, top_p: None, seed: 0 }
    }
}

/// Logits that have no most likely token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SamplingError {
    #[error("a logit is not a number")]
    NotANumber,
    #[error("a logit is +∞, or all are −∞")]
    Infinite,
}

/// The next token: a function of the logits, the seed and the token's position in its sequence
/// alone. A sequence thus goes on in the same way whatever stands beside it in a batch.
pub fn choose(logits: &[f32], sampling: Sampling, position: u64) -> Result<u32, SamplingError> {
    let top = highest(logits)?;
    if sampling.temperature <= 0.0 {
        return Ok(top as u32);
    }
    let scale = 1.0 / sampling.temperature;
    let highest = f64::from(logits[top]);
    let weight = |id: usize| ((f64::from(logits[id]) - highest) * scale).exp();
    let bits = mix(mix(sampling.seed) ^ position) >> 11;
    let random = bits as f64 / (1u64 << 53) as f64;
    let k = sampling.top_k.filter(|k| *k < logits.len());
    let p = sampling.top_p.filter(|p| *p < 1.0);
    if k.is_none() && p.is_none() {
        return Ok(draw(0..logits.len(), weight, random, top) as u32);
    }
    let mut kept = most_likely(logits, k);
    if let Some(p) = p {
        nucleus(&mut kept, logits, weight, p);
    }
    kept.sort_unstable();
    Ok(draw(kept.iter().map(|id| *id as usize), weight, random, top) as u32)
}

/// The id of the highest logit, of equal ones the lowest.
fn highest(logits: &[f32]) -> Result<usize, SamplingError> {
    let mut top = 0;
    for (id, x) in logits.iter().enumerate() {
        if x.is_nan() {
            return Err(SamplingError::NotANumber);
        }
        if *x > logits[top] {
            top = id;
        }
    }
    match logits.get(top) {
        Some(x) if x.is_finite() => Ok(top),
        _ => Err(SamplingError::Infinite),
    }
}

/// An id with the probability of its weight; `top` where rounding leaves a rest.
fn draw(
    ids: impl Iterator<Item = usize> + Clone,
    weight: impl Fn(usize) -> f64,
    random: f64,
    top: usize,
) -> usize {
    let mut left = random * ids.clone().map(&weight).sum::<f64>();
    for id in ids {
        left -= weight(id);
        if left < 0.0 {
            return id;
        }
    }
    top
}

/// All ids, or those of the k highest logits in any order.
fn most_likely(logits: &[f32], k: Option<usize>) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let Some(k) = k else { return ids };
    let k = k.max(1);
    let (_, last, _) = ids.select_nth_unstable_by(k - 1, |a, b| falling(logits, *a, *b));
    let threshold = logits[*last as usize];
    ids.retain(|id| logits[*id as usize] >= threshold);
    ids
}

/// Likely ids first, of equal ones the lowest.
fn falling(logits: &[f32], a: u32, b: u32) -> std::cmp::Ordering {
    logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b))
}

/// Keeps each id for which those more likely have less than `p` together; the first one always.
///
/// A few ids hold most of the probability, so only as many are sorted as turn out to be needed.
fn nucleus(ids: &mut Vec<u32>, logits: &[f32], weight: impl Fn(usize) -> f64, p: f64) {
    let enough = p * ids.iter().map(|id| weight(*id as usize)).sum::<f64>();
    let mut sorted = 64;
    loop {
        if sorted < ids.len() {
            ids.select_nth_unstable_by(sorted, |a, b| falling(logits, *a, *b));
        }
        sorted = sorted.min(ids.len());
        ids[..sorted].sort_unstable_by(|a, b| falling(logits, *a, *b));
        let mut before = 0.0;
        let beyond = ids[..sorted].iter().position(|id| {
            let reached = before >= enough;
            before += weight(*id as usize);
            reached
        });
        match beyond {
            Some(count) => return ids.truncate(count.max(1)),
            None if sorted == ids.len() => return,
            None => sorted *= 8,
        }
    }
}

#[cfg(test)]
mod tests;
