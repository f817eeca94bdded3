//! Sampling against what `transformers` defines, worked out by hand.

use super::*;

/// Probabilities 0.4, 0.3, 0.2 and 0.1 at ids 2, 0, 3 and 1.
fn logits() -> Vec<f32> {
    [0.3f32, 0.1, 0.4, 0.2].map(f32::ln).to_vec()
}

/// The ids that any of many positions gives.
fn reached(logits: &[f32], sampling: Sampling) -> Vec<u32> {
    let mut ids: Vec<u32> =
        (0..4000).map(|p| choose(logits, sampling, p).expect("finite logits")).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[test]
fn top_k_keeps_equals_of_the_lowest() {
    let k = |k| Sampling { top_k: Some(k), ..Sampling::default() };
    assert_eq!(reached(&logits(), k(1)), [2]);
    assert_eq!(reached(&logits(), k(3)), [0, 2, 3]);
    assert_eq!(reached(&logits(), k(9)), [0, 1, 2, 3]);
    assert_eq!(reached(&[1.0, 2.0, 1.0, 0.0], k(2)), [0, 1, 2]);
}

/// `TopPLogitsWarper` drops the ids whose probability, together with that of all less likely ones,
/// is at most 1 − p, and never the most likely: 2 has 1 with those below, 0 has 0.6, 3 has 0.3, 1
/// has 0.1.
#[test]
fn top_p_keeps_the_fewest_that_reach_it() {
    let p = |p| Sampling { top_p: Some(p), ..Sampling::default() };
    assert_eq!(reached(&logits(), p(1e-9)), [2]);
    assert_eq!(reached(&logits(), p(0.39)), [2]);
    assert_eq!(reached(&logits(), p(0.41)), [0, 2]);
    assert_eq!(reached(&logits(), p(0.71)), [0, 2, 3]);
    assert_eq!(reached(&logits(), p(0.91)), [0, 1, 2, 3]);
    assert_eq!(reached(&logits(), p(1.0)), [0, 1, 2, 3]);
}

/// At temperature ½ probabilities are 16, 9, 4 and 1 of 30; of the first three, 16 of 29 are 0.55
/// and 25 of 29 are 0.86, where of all four they would be 0.53 and 0.83.
#[test]
fn temperature_comes_first_then_k_then_p() {
    let all = |k, p| Sampling { temperature: 0.5, top_k: k, top_p: Some(p), seed: 1 };
    assert_eq!(reached(&logits(), all(Some(3), 0.54)), [2]);
    assert_eq!(reached(&logits(), all(None, 0.54)), [0, 2]);
    assert_eq!(reached(&logits(), all(Some(3), 0.85)), [0, 2]);
    assert_eq!(reached(&logits(), all(None, 0.85)), [0, 2, 3]);
}

#[test]
fn a_long_tail_is_sorted_only_as_far_as_needed() {
    let mut logits = vec![0.0f32; 5000];
    logits[4321] = 1.0;
    // 4999 equals of weight 1 beside one of weight e: a tenth of the probability is at the first
    // and at the 498 equals with the lowest ids.
    let mut ids = most_likely(&logits, None);
    let weight = |id: usize| f64::from(logits[id]).exp();
    nucleus(&mut ids, &logits, weight, 0.1);
    ids.sort_unstable();
    let lowest = (0..5000).filter(|id| *id < 498 || *id == 4321);
    assert_eq!(ids, lowest.collect::<Vec<u32>>());
}

/// Four standard deviations of a share of 20,000 draws: 4·√(p(1 − p)/20000) ≤ 0.0142.
const TOLERANCE_SHARE: f64 = 0.0142;

#[test]
fn ids_come_as_often_as_they_are_likely() {
    let mut counts = [0u32; 4];
    for position in 0..20_000 {
        let id = choose(&logits(), Sampling::default(), position).expect("finite logits");
        counts[id as usize] += 1;
    }
    for (count, p) in counts.iter().zip([0.3, 0.1, 0.4, 0.2]) {
        assert!((f64::from(*count) / 20_000.0 - p).abs() < TOLERANCE_SHARE, "{counts:?}");
    }
}

#[test]
fn the_most_likely_has_the_lowest_id_and_is_a_number() {
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    assert_eq!(choose(&[-1.0, 3.0, 3.0, 2.0], greedy, 0), Ok(1));
    assert_eq!(choose(&[-0.0, 0.0], greedy, 0), Ok(0));
    assert_eq!(choose(&[f32::NEG_INFINITY, -7.0], greedy, 0), Ok(1));
    for sampling in [greedy, Sampling::default()] {
        let (nan, inf) = (SamplingError::NotANumber, SamplingError::Infinite);
        assert_eq!(choose(&[0.0, f32::NAN], sampling, 0), Err(nan));
        assert_eq!(choose(&[f32::NAN, 0.0], sampling, 0), Err(nan));
        assert_eq!(choose(&[0.0, f32::INFINITY], sampling, 0), Err(inf));
        assert_eq!(choose(&[f32::NEG_INFINITY; 3], sampling, 0), Err(inf));
        assert_eq!(choose(&[], sampling, 0), Err(inf));
    }
}
