//! Which values to save and which to compute again, so that the saved ones fit a number of bytes.
//!
//! A value that the gradient needs is saved, or is made from values that are there; those are saved
//! or made in their turn, and each is made once. For a price λ of a byte the best choice is a
//! minimum cut: a value that is there but not made pays its bytes, a value that is made pays its
//! time and wants its operands there (Ford and Fulkerson, 1956). The price that meets the budget
//! gives a lower bound on the time (Lagrangian relaxation), and branching on single values closes
//! what is left of the gap.

/// A value and what it takes to make it.
#[derive(Clone, Debug, Default)]
pub struct Item {
    /// Time to make it when its operands are there.
    pub time: f64,
    /// Bytes to save it; None where it cannot be saved.
    pub bytes: Option<u64>,
    pub operands: Vec<usize>,
    /// Does the gradient read it?
    pub needed: bool,
    /// It is there anyway: a parameter, or what is saved whatever happens.
    pub there: bool,
}

/// What is saved, and what that costs.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    pub saved: Vec<bool>,
    pub bytes: u64,
    pub time: f64,
}

/// The choice that `saved` stands for.
pub fn priced(items: &[Item], saved: Vec<bool>) -> Choice {
    let mut made = vec![false; items.len()];
    let mut stack: Vec<usize> = (0..items.len()).filter(|i| items[*i].needed).collect();
    while let Some(i) = stack.pop() {
        if !items[i].there && !saved[i] && !made[i] {
            made[i] = true;
            stack.extend(&items[i].operands);
        }
    }
    let sum = |on: &[bool]| (0..items.len()).filter(|i| on[*i]).collect::<Vec<_>>();
    let bytes = sum(&saved).iter().map(|i| items[*i].bytes.unwrap_or(0)).sum();
    let time = sum(&made).iter().map(|i| items[*i].time).sum();
    Choice { saved, bytes, time }
}

/// What has been decided about a value while branching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fixed {
    Open,
    Saved,
    Made,
}

/// The fastest choice of at most `budget` bytes, to within `GAP` unless `VISITS` run out. Saving
/// nothing is always possible.
pub fn choose(items: &[Item], budget: u64) -> Choice {
    search(items, budget).best
}

fn search(items: &[Item], budget: u64) -> Search<'_> {
    let none = priced(items, vec![false; items.len()]);
    let mut search = Search { items, budget, best: none, visits: 0 };
    search.visit(&mut vec![Fixed::Open; items.len()]);
    search
}

/// A choice this close to the bound is good enough.
const GAP: f64 = 0.002;
/// Subproblems that are looked at.
const VISITS: usize = 4000;
/// Halvings of the price: the bound is then off by less than its last digit matters.
const HALVINGS: usize = 30;

struct Search<'a> {
    items: &'a [Item],
    budget: u64,
    best: Choice,
    visits: usize,
}

impl Search<'_> {
    fn visit(&mut self, fixed: &mut Vec<Fixed>) {
        self.visits += 1;
        let Some((bound, low, high)) = self.bound(fixed) else { return };
        let close = |best: f64| bound >= best * (1.0 - GAP) || best <= 0.0;
        if close(self.best.time) || self.visits > VISITS {
            return;
        }
        // The two choices around the budget differ in values whose saving is in doubt.
        let differ = |i: &usize| low.saved[*i] != high.saved[*i] && fixed[*i] == Fixed::Open;
        let open = |i: &usize| fixed[*i] == Fixed::Open && self.items[*i].bytes.is_some();
        let all = 0..self.items.len();
        let size = |i: &usize| self.items[*i].bytes.unwrap_or(0);
        let branch = all.clone().filter(differ).max_by_key(size);
        let Some(i) = branch.or_else(|| all.filter(open).max_by_key(size)) else { return };
        for way in [Fixed::Saved, Fixed::Made] {
            fixed[i] = way;
            self.visit(fixed);
        }
        fixed[i] = Fixed::Open;
    }

    fn consider(&mut self, choice: &Choice) {
        let better = (choice.time, choice.bytes) < (self.best.time, self.best.bytes);
        if choice.bytes <= self.budget && better {
            self.best = choice.clone();
        }
    }

    /// A lower bound on the time of what is still open, and the choices below and above the budget
    /// that meet at its price. None where nothing open can fit.
    fn bound(&mut self, fixed: &[Fixed]) -> Option<(f64, Choice, Choice)> {
        let forced = (0..fixed.len()).filter(|i| fixed[*i] == Fixed::Saved);
        let forced: u64 = forced.map(|i| self.items[i].bytes.unwrap_or(0)).sum();
        if forced > self.budget {
            return None;
        }
        let free = cut(self.items, fixed, 0.0);
        self.consider(&free);
        if free.bytes <= self.budget {
            return Some((free.time, free.clone(), free));
        }
        let total: f64 = self.items.iter().map(|i| i.time).sum();
        let (mut cheap, mut dear) = (0.0, total + 1.0);
        let (mut above, mut below) = (free, cut(self.items, fixed, dear));
        self.consider(&below);
        let value =
            |c: &Choice, price: f64, budget: u64| c.time + price * (c.bytes as f64 - budget as f64);
        let mut bound = f64::max(value(&above, cheap, self.budget), 0.0);
        for _ in 0..HALVINGS {
            // Where the lines of both choices cross, as in Dinkelbach's method, or halfway.
            let gap = above.bytes as f64 - below.bytes as f64;
            let price = match gap > 0.0 {
                true => ((below.time - above.time) / gap).clamp(cheap, dear),
                false => (cheap + dear) / 2.0,
            };
            let found = cut(self.items, fixed, price);
            self.consider(&found);
            bound = bound.max(value(&found, price, self.budget));
            let same = found == above || found == below;
            if found.bytes > self.budget {
                (cheap, above) = (price, found);
            } else {
                (dear, below) = (price, found);
            }
            if same {
                break;
            }
        }
        Some((bound, below, above))
    }
}

/// The choice that minimises time + price · bytes.
fn cut(items: &[Item], fixed: &[Fixed], price: f64) -> Choice {
    let n = items.len();
    let (source, sink) = (2 * n, 2 * n + 1);
    let mut flow = Flow::new(2 * n + 2);
    for (i, item) in items.iter().enumerate().filter(|(_, item)| !item.there) {
        let (there, made) = (i, n + i);
        let saving = match (fixed[i], item.bytes) {
            (Fixed::Made, _) | (_, None) => f64::INFINITY,
            (_, Some(bytes)) => price * bytes as f64,
        };
        flow.edge(there, made, saving);
        let making = if fixed[i] == Fixed::Saved { f64::INFINITY } else { item.time };
        flow.edge(made, sink, making);
        for operand in item.operands.iter().filter(|o| !items[**o].there) {
            flow.edge(made, *operand, f64::INFINITY);
        }
        if item.needed || fixed[i] == Fixed::Saved {
            flow.edge(source, there, f64::INFINITY);
        }
    }
    flow.run(source, sink);
    let on = flow.reached(source);
    let saved = (0..n).map(|i| !items[i].there && on[i] && !on[n + i]).collect();
    priced(items, saved)
}

/// Maximum flow by shortest augmenting paths in layers (Dinic, 1970).
struct Flow {
    /// Target, capacity left, and the edge back.
    edges: Vec<(usize, f64)>,
    of: Vec<Vec<usize>>,
}

/// Capacities below this are rounding.
const NOTHING: f64 = 1e-12;

impl Flow {
    fn new(n: usize) -> Flow {
        Flow { edges: Vec::new(), of: vec![Vec::new(); n] }
    }

    fn edge(&mut self, from: usize, to: usize, capacity: f64) {
        self.of[from].push(self.edges.len());
        self.edges.push((to, capacity));
        self.of[to].push(self.edges.len());
        self.edges.push((from, 0.0));
    }

    fn run(&mut self, source: usize, sink: usize) {
        loop {
            let level = self.levels(source);
            if level[sink] == usize::MAX {
                return;
            }
            let mut next = vec![0; self.of.len()];
            while self.push(source, sink, f64::INFINITY, &level, &mut next) > NOTHING {}
        }
    }

    fn levels(&self, source: usize) -> Vec<usize> {
        let mut level = vec![usize::MAX; self.of.len()];
        level[source] = 0;
        let mut queue = std::collections::VecDeque::from([source]);
        while let Some(v) = queue.pop_front() {
            for e in &self.of[v] {
                let (to, left) = self.edges[*e];
                if left > NOTHING && level[to] == usize::MAX {
                    level[to] = level[v] + 1;
                    queue.push_back(to);
                }
            }
        }
        level
    }

    fn push(
        &mut self,
        v: usize,
        sink: usize,
        most: f64,
        level: &[usize],
        next: &mut [usize],
    ) -> f64 {
        if v == sink {
            return most;
        }
        while next[v] < self.of[v].len() {
            let e = self.of[v][next[v]];
            let (to, left) = self.edges[e];
            if left > NOTHING && level[to] == level[v] + 1 {
                let pushed = self.push(to, sink, most.min(left), level, next);
                if pushed > NOTHING {
                    self.edges[e].1 -= pushed;
                    self.edges[e ^ 1].1 += pushed;
                    return pushed;
                }
            }
            next[v] += 1;
        }
        0.0
    }

    /// What the source still reaches.
    fn reached(&self, source: usize) -> Vec<bool> {
        self.levels(source).into_iter().map(|level| level != usize::MAX).collect()
    }
}

#[cfg(test)]
mod tests;
