//! Which values to keep, which to move away and which to compute again, so that the kept ones fit a
//! number of bytes.
//!
//! A value that the gradient needs is kept, or waits in another memory, or is made from values that
//! are there; those are got in one of these ways in their turn, and each is made once. For a price
//! λ of a byte the best choice is a minimum cut: a value that is there but not made pays its bytes
//! or the time of its way there and back, whichever is less, and a value that is made pays its time
//! and wants its operands there (Ford and Fulkerson, 1956). The price that meets the budget gives a
//! lower bound on the time (Lagrangian relaxation), and branching on single values closes what is
//! left of the gap.

/// A value and what it takes to make it.
#[derive(Clone, Debug, Default)]
pub struct Item {
    /// Time to make it when its operands are there.
    pub time: f64,
    /// Bytes to keep it; None where it cannot be kept.
    pub bytes: Option<u64>,
    /// Time that is lost if it waits in another memory; None where it cannot.
    pub away: Option<f64>,
    pub operands: Vec<usize>,
    /// Does the gradient read it?
    pub needed: bool,
    /// It is there anyway: a parameter, or what is saved whatever happens.
    pub there: bool,
}

/// How a value is got that the gradient may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    Made,
    Kept,
    /// It waits in another memory.
    Away,
}

/// How each value is got, and what that costs.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    pub ways: Vec<Way>,
    pub bytes: u64,
    pub time: f64,
}

/// The choice that `ways` stands for: what nobody needs is not made.
pub fn priced(items: &[Item], ways: Vec<Way>) -> Choice {
    let mut made = vec![false; items.len()];
    let mut stack: Vec<usize> = (0..items.len()).filter(|i| items[*i].needed).collect();
    while let Some(i) = stack.pop() {
        if !items[i].there && ways[i] == Way::Made && !made[i] {
            made[i] = true;
            stack.extend(&items[i].operands);
        }
    }
    let (mut bytes, mut time) = (0, 0.0);
    for (i, item) in items.iter().enumerate() {
        match ways[i] {
            Way::Kept => bytes += item.bytes.unwrap_or(0),
            Way::Away => time += item.away.unwrap_or(0.0),
            Way::Made if made[i] => time += item.time,
            Way::Made => {}
        }
    }
    Choice { ways, bytes, time }
}

/// What has been decided about a value while branching: nothing, or the way it is got.
type Fixed = Option<Way>;

/// The fastest choice of at most `budget` bytes, to within `GAP` unless `VISITS` run out. Keeping
/// nothing is always possible.
pub fn choose(items: &[Item], budget: u64) -> Choice {
    search(items, budget).best
}

fn search(items: &[Item], budget: u64) -> Search<'_> {
    let none = priced(items, vec![Way::Made; items.len()]);
    let mut search = Search { items, budget, best: none, visits: 0 };
    search.visit(&mut vec![None; items.len()]);
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
        // The two choices around the budget differ in values whose way is in doubt.
        let differ = |i: &usize| low.ways[*i] != high.ways[*i] && fixed[*i].is_none();
        let open = |i: &usize| fixed[*i].is_none() && self.items[*i].bytes.is_some();
        let all = 0..self.items.len();
        let size = |i: &usize| self.items[*i].bytes.unwrap_or(0);
        let branch = all.clone().filter(differ).max_by_key(size);
        let Some(i) = branch.or_else(|| all.filter(open).max_by_key(size)) else { return };
        for way in [Way::Kept, Way::Away, Way::Made] {
            let possible = match way {
                Way::Kept => self.items[i].bytes.is_some(),
                Way::Away => self.items[i].away.is_some(),
                Way::Made => true,
            };
            if possible {
                fixed[i] = Some(way);
                self.visit(fixed);
            }
        }
        fixed[i] = None;
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
        let forced = (0..fixed.len()).filter(|i| fixed[*i] == Some(Way::Kept));
        let forced: u64 = forced.map(|i| self.items[i].bytes.unwrap_or(0)).sum();
        if forced > self.budget {
            return None;
        }
        let free = cut(self.items, fixed, 0.0);
        self.consider(&free);
        if free.bytes <= self.budget {
            return Some((free.time, free.clone(), free));
        }
        let total: f64 = self.items.iter().map(|i| i.time + i.away.unwrap_or(0.0)).sum();
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
        flow.edge(there, made, saving(item, fixed[i], price).1);
        let forced = matches!(fixed[i], Some(Way::Kept | Way::Away));
        let making = if forced { f64::INFINITY } else { item.time };
        flow.edge(made, sink, making);
        for operand in item.operands.iter().filter(|o| !items[**o].there) {
            flow.edge(made, *operand, f64::INFINITY);
        }
        if item.needed || forced {
            flow.edge(source, there, f64::INFINITY);
        }
    }
    flow.run(source, sink);
    let on = flow.reached(source);
    let cut = |i: usize| !items[i].there && on[i] && !on[n + i];
    let way = |i| if cut(i) { saving(&items[i], fixed[i], price).0 } else { Way::Made };
    priced(items, (0..n).map(way).collect())
}

/// The cheaper way to save a value at this price of a byte, and what it costs.
fn saving(item: &Item, fixed: Fixed, price: f64) -> (Way, f64) {
    let allowed = |way| fixed.is_none_or(|f| f == way);
    let kept = item.bytes.filter(|_| allowed(Way::Kept));
    let kept = kept.map_or(f64::INFINITY, |bytes| price * bytes as f64);
    let away = item.away.filter(|_| allowed(Way::Away)).unwrap_or(f64::INFINITY);
    if kept <= away { (Way::Kept, kept) } else { (Way::Away, away) }
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
