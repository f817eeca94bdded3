//! What the values that layers save could cost: each is kept on the device, computed again, or
//! waits in host memory.
//!
//! What a set of choices costs is known in two ways. A model of it, in which every value has a time
//! and a size, proposes sets for some numbers of bytes; then each proposal is fused and planned,
//! and its bytes and time are those of the plan. The proposals do not depend on the bytes of the
//! budget, so more bytes never give a slower step, and the smallest proposal is the least budget
//! there is.

use mdl_ir::cost::node_flops;
use mdl_ir::graph::{Body, Graph, Node};
use mdl_ir::op::{Class, Op};
use mdl_passes::executable::{Executable, Speed};
use mdl_passes::offload::{Saved, offload, saved};
use mdl_passes::recompute::{Residual, recompute, residuals};
use mdl_passes::request::Budget;
use mdl_passes::saving::{Item, Way, choose};
use std::collections::HashMap;

/// Numbers of bytes for which the model of the costs proposes a set.
const PROPOSALS: u64 = 24;
/// Values below this share of all that is saved stay saved: they decide nothing.
const SMALL: u64 = 200;
/// Shares of a transfer's time that a step may have to wait for: how much of it hides behind the
/// kernels depends on all that moves, which only a plan knows.
const EXPOSED: [f64; 2] = [1.0, 0.05];

/// How a graph on which everything was chosen is planned.
pub type Planner<'a> = &'a dyn Fn(&Graph) -> Result<Executable, String>;

/// What is not kept on the device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// Computed again.
    pub dropped: Vec<Residual>,
    /// These wait in host memory.
    pub moved: Vec<Residual>,
    /// And so do the values that iterations were given.
    pub given: bool,
}

impl Choice {
    /// The graph in which that is so.
    pub fn graph(&self, graph: &Graph) -> Result<Graph, String> {
        let out = recompute(graph, &self.dropped)?;
        let all = saved(&out);
        let moved: Vec<Saved> = all.into_iter().filter(|s| self.moves(graph, &out, s)).collect();
        Ok(if moved.is_empty() { out } else { offload(&out, &moved) })
    }

    /// Values that are not kept.
    fn decisions(&self) -> usize {
        self.dropped.len() + self.moved.len() + usize::from(self.given)
    }

    /// Is this value of the graph after recomputation one that waits? Regions stay in order, and so
    /// do their results, save for those that are dropped; what iterations were given comes last.
    fn moves(&self, before: &Graph, after: &Graph, value: &Saved) -> bool {
        let Op::Repeat { body, .. } = &after.body.nodes[value.node].op else { return false };
        if body.inputs.contains(&body.outputs[value.result]) {
            return self.given;
        }
        let ordinal = regions(&after.body).position(|n| n == value.node);
        let Some(node) = ordinal.and_then(|o| regions(&before.body).nth(o)) else { return false };
        let dropped = |k: &usize| self.dropped.iter().any(|d| (d.node, d.result) == (node, *k));
        let results = 0..before.body.nodes[node].results.len();
        let old = results.filter(|k| !dropped(k)).nth(value.result);
        self.moved.iter().any(|m| m.node == node && Some(m.result) == old)
    }
}

fn regions(body: &Body) -> impl Iterator<Item = usize> {
    let is_region = |n: &Node| matches!(n.op, Op::Repeat { reverse: false, .. });
    body.nodes.iter().enumerate().filter(move |(_, n)| is_region(n)).map(|(i, _)| i)
}

/// A choice, with the plan's bytes and seconds.
#[derive(Clone, Debug)]
pub struct Proposal {
    pub choice: Choice,
    pub device_bytes: u64,
    /// Memory of the host.
    pub host_bytes: u64,
    pub seconds: f64,
}

/// All proposals for a placed graph, the fastest first. Nothing is moved to a host whose memory has
/// no bound: nobody offered it.
pub fn proposals(
    graph: &Graph,
    plan: Planner<'_>,
    budget: &Budget,
) -> Result<Vec<Proposal>, String> {
    let each = choices(graph, budget).into_iter();
    let mut out =
        each.map(|choice| priced(graph, plan, budget, choice)).collect::<Result<Vec<_>, _>>()?;
    // Of plans that take as long, one that does less.
    let rank = |p: &Proposal| (p.choice.decisions(), p.device_bytes, p.host_bytes);
    out.sort_by(|a, b| a.seconds.total_cmp(&b.seconds).then(rank(a).cmp(&rank(b))));
    Ok(out)
}

/// A choice with the bytes and the time of its plan.
pub fn priced(
    graph: &Graph,
    plan: Planner<'_>,
    budget: &Budget,
    choice: Choice,
) -> Result<Proposal, String> {
    let executable = plan(&choice.graph(graph)?)?;
    let device_bytes = executable.state_bytes + executable.work_bytes;
    let (host_bytes, seconds) = (executable.host_bytes, executable.seconds(&budget.speed));
    Ok(Proposal { choice, device_bytes, host_bytes, seconds })
}

/// What the model of the costs proposes, and keeping everything: that costs no time, whether or not
/// the model thinks so.
fn choices(graph: &Graph, budget: &Budget) -> Vec<Choice> {
    let all = residuals(graph);
    let total: u64 = all.iter().map(|r| r.bytes).sum();
    let open: Vec<&Residual> = all.iter().filter(|r| r.bytes * SMALL >= total).collect();
    let mut found = vec![Choice::default()];
    let waits: &[Option<f64>] =
        if budget.host.is_some() { &[None, Some(EXPOSED[0]), Some(EXPOSED[1])] } else { &[None] };
    for exposed in waits {
        let (items, places) = items(graph, &open, &budget.speed, *exposed);
        for n in 0..=PROPOSALS {
            let bytes = u128::from(total) * u128::from(n) / u128::from(PROPOSALS);
            let ways = choose(&items, bytes as u64).ways;
            let with = |way| {
                let chosen = open.iter().zip(&places).filter(|(_, at)| ways[**at] == way);
                chosen.map(|(r, _)| (*r).clone()).collect()
            };
            let choice = Choice { dropped: with(Way::Made), moved: with(Way::Away), given: false };
            let moves = Choice { given: true, ..choice.clone() };
            let both = [Some(choice), exposed.map(|_| moves)];
            for choice in both.into_iter().flatten() {
                if !found.contains(&choice) {
                    found.push(choice);
                }
            }
        }
    }
    found
}

/// The values of all forward regions as items, and where the residuals are among them. They may
/// wait in host memory where it is said how much of their transfers is `exposed`.
fn items(
    graph: &Graph,
    open: &[&Residual],
    speed: &Speed,
    exposed: Option<f64>,
) -> (Vec<Item>, Vec<usize>) {
    let movable = saved(graph);
    let away = |r: &Residual| {
        let seconds = exposed? * 2.0 * r.bytes as f64 / speed.host;
        movable.iter().any(|m| (m.node, m.result) == (r.node, r.result)).then_some(seconds)
    };
    let mut items = Vec::new();
    let mut places = vec![0; open.len()];
    for (n, node) in graph.body.nodes.iter().enumerate() {
        let Op::Repeat { count, body, .. } = &node.op else { continue };
        if !open.iter().any(|r| r.node == n) {
            continue;
        }
        let mut at: HashMap<mdl_ir::graph::ValueId, usize> = HashMap::new();
        for input in &body.inputs {
            at.insert(*input, items.len());
            items.push(Item { there: true, ..Item::default() });
        }
        for inner in &body.nodes {
            // One item for the work, and one for each result that comes of it.
            let work = items.len();
            let operands = inner.args.iter().map(|a| at[a]).collect();
            let time = *count as f64 * seconds(body, inner, speed);
            items.push(Item { time, operands, ..Item::default() });
            for result in &inner.results {
                at.insert(*result, items.len());
                items.push(Item { operands: vec![work], ..Item::default() });
            }
        }
        for (k, output) in body.outputs.iter().enumerate() {
            let residual = open.iter().position(|r| (r.node, r.result) == (n, k));
            let item = &mut items[at[output]];
            match residual {
                Some(r) => {
                    (item.needed, item.bytes) = (true, Some(open[r].bytes));
                    item.away = away(open[r]);
                    places[r] = at[output];
                }
                // The carry and what others read as well are there whatever happens.
                None => item.there = true,
            }
        }
    }
    (items, places)
}

/// Time of one node where it runs by itself: arithmetic, or the bytes that it writes.
fn seconds(body: &Body, node: &Node, speed: &Speed) -> f64 {
    let bytes: u64 = node.results.iter().map(|r| body.ty(*r).bytes()).sum();
    match node.op.class() {
        Class::Source | Class::View => 0.0,
        _ => {
            let arithmetic = node_flops(body, node) as f64 / speed.flops;
            arithmetic.max(2.0 * bytes as f64 / speed.bytes)
        }
    }
}
