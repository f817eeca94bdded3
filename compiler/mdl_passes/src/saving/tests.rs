//! The chosen set against the best of all sets.

use super::{Item, Way, choose, priced};
use mdl_ir::interp::mix;

struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = mix(self.0);
        self.0 % n
    }
}

/// A graph of `n` values like those of layers: each made from up to three of those before it.
/// Some of them can be moved away.
fn graph(n: usize, seed: u64) -> Vec<Item> {
    let mut r = Numbers(seed);
    (0..n)
        .map(|i| {
            let near = (i as u64).min(6);
            let operands = (0..r.below(3) + 1).filter(|_| i > 0);
            let operands = operands.map(|_| i - 1 - r.below(near.max(1)) as usize).collect();
            let bytes = (r.below(5) > 0).then_some(1 + r.below(100));
            let away = bytes.filter(|_| seed % 2 == 1 && r.below(3) == 0);
            Item {
                time: (1 + r.below(100)) as f64,
                bytes,
                away: away.map(|_| r.below(200) as f64),
                operands,
                needed: r.below(3) > 0,
                there: i == 0 || r.below(12) == 0,
            }
        })
        .collect()
}

/// The best time of at most `budget` bytes, by trying all ways of value `i` and those after it.
fn best(items: &[Item], budget: u64, ways: &mut Vec<Way>, i: usize) -> f64 {
    let Some(item) = items.get(i) else {
        let choice = priced(items, ways.clone());
        return if choice.bytes <= budget { choice.time } else { f64::INFINITY };
    };
    let mut least = f64::INFINITY;
    let kept = item.bytes.map(|_| Way::Kept);
    let away = item.away.map(|_| Way::Away);
    let saved = [kept, away].into_iter().flatten().filter(|_| !item.there);
    for way in [Way::Made].into_iter().chain(saved) {
        ways[i] = way;
        least = least.min(best(items, budget, ways, i + 1));
    }
    ways[i] = Way::Made;
    least
}

/// The distance to the best choice that the search promises: its gap, with room for where it is cut
/// off.
const TOLERANCE: f64 = 0.02;

#[test]
fn small_graphs_get_the_best_of_all_sets() {
    for seed in 0..120 {
        let items = graph(6 + seed as usize % 11, seed);
        let all: u64 = items.iter().filter_map(|i| i.bytes).sum();
        for tenth in [0, 2, 5, 8, 10] {
            let budget = all * tenth / 10;
            let found = choose(&items, budget);
            assert!(found.bytes <= budget, "graph {seed}");
            let best = best(&items, budget, &mut vec![Way::Made; items.len()], 0);
            let off = found.time - best;
            assert!(off <= best * TOLERANCE + 1e-9, "graph {seed}: {} for {best}", found.time);
        }
    }
}

/// A search that ends by itself has left out nothing that is better by more than its gap.
#[test]
fn searches_of_forty_values_end_by_themselves() {
    for seed in 0..200 {
        let items = graph(40, 1000 + seed);
        let all: u64 = items.iter().filter_map(|i| i.bytes).sum();
        let budget = all / 4;
        let search = super::search(&items, budget);
        assert!(search.best.bytes <= budget);
        assert!(search.visits <= super::VISITS, "graph {seed}: the search was cut off");
    }
}

#[test]
fn more_bytes_are_never_slower() {
    for seed in 0..20 {
        let items = graph(30, 5000 + seed);
        let all: u64 = items.iter().filter_map(|i| i.bytes).sum();
        let times: Vec<f64> = (0..=20).map(|n| choose(&items, all * n / 20).time).collect();
        for pair in times.windows(2) {
            assert!(pair[1] <= pair[0] * (1.0 + TOLERANCE), "graph {seed}: {times:?}");
        }
    }
}
