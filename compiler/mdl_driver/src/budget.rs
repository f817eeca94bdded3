//! A step within a number of bytes: which values of a layer are saved, and which computed again.
//!
//! What a set of saved values costs is known in two ways. A model of it, in which every value has a
//! time and a size, proposes sets for some numbers of bytes; then each proposal is fused and
//! planned, and its bytes and time are those of the plan. The choice is the fastest plan that fits.
//! The proposals do not depend on the budget, so more bytes never give a slower step, and the
//! smallest proposal is the least budget that there is.

use mdl_ir::cost::node_flops;
use mdl_ir::graph::{Body, Graph, Node};
use mdl_ir::op::{Class, Op};
use mdl_ir::place::Place;
use mdl_passes::executable::{BufferPlan, Executable, Speed};
use mdl_passes::recompute::{Residual, recompute, residuals};
use mdl_passes::request::Budget;
use mdl_passes::saving::{Item, Way, choose};
use mdl_syntax::source::SourceMap;
use mdl_syntax::span::FileId;
use std::collections::HashMap;

/// Numbers of bytes for which the model of the costs proposes a set.
const PROPOSALS: u64 = 24;
/// Values below this share of all that is saved stay saved: they decide nothing.
const SMALL: u64 = 200;

/// A set of values that are not saved, and the plan's bytes and seconds with it.
#[derive(Clone, Debug)]
pub struct Proposal {
    pub dropped: Vec<Residual>,
    pub device_bytes: u64,
    /// Memory of the host.
    pub host_bytes: u64,
    pub seconds: f64,
}

/// How a graph on which everything was chosen is planned.
pub type Planner<'a> = &'a dyn Fn(&Graph) -> Result<Executable, String>;

/// All proposals for a placed graph, the fastest first.
pub fn proposals(
    graph: &Graph,
    plan: Planner<'_>,
    budget: &Budget,
) -> Result<Vec<Proposal>, String> {
    let all = residuals(graph);
    let total: u64 = all.iter().map(|r| r.bytes).sum();
    let open: Vec<&Residual> = all.iter().filter(|r| r.bytes * SMALL >= total).collect();
    let (items, places) = items(graph, &open, &budget.speed);
    let mut sets: Vec<Vec<bool>> = Vec::new();
    for n in 0..=PROPOSALS {
        let choice =
            choose(&items, (u128::from(total) * u128::from(n) / u128::from(PROPOSALS)) as u64);
        let set: Vec<bool> = places.iter().map(|at| choice.ways[*at] == Way::Made).collect();
        if !sets.contains(&set) {
            sets.push(set);
        }
    }
    // Saving everything costs no time, whether or not the model thinks so.
    let nothing = vec![false; open.len()];
    if !sets.contains(&nothing) {
        sets.push(nothing);
    }
    let mut out = Vec::new();
    for set in sets {
        let dropped: Vec<Residual> =
            open.iter().zip(&set).filter(|(_, drop)| **drop).map(|(r, _)| (*r).clone()).collect();
        let executable = plan(&recompute(graph, &dropped)?)?;
        let (device_bytes, host_bytes) =
            (executable.state_bytes + executable.work_bytes, executable.host_bytes);
        let seconds = executable.seconds(&budget.speed);
        out.push(Proposal { dropped, device_bytes, host_bytes, seconds });
    }
    out.sort_by(|a, b| a.seconds.total_cmp(&b.seconds).then(a.device_bytes.cmp(&b.device_bytes)));
    Ok(out)
}

/// The graph of the fastest proposal that fits the budget, or what stands in the way.
pub fn within(
    graph: &Graph,
    plan: Planner<'_>,
    budget: &Budget,
    sources: &SourceMap,
) -> Result<Graph, String> {
    let all = proposals(graph, plan, budget)?;
    let on_device = || all.iter().filter(|p| p.device_bytes <= budget.device);
    let in_host = |p: &&Proposal| budget.host.is_none_or(|host| p.host_bytes <= host);
    if let Some(fits) = on_device().find(in_host) {
        return recompute(graph, &fits.dropped);
    }
    if let (Some(least), Some(host)) = (on_device().map(|p| p.host_bytes).min(), budget.host) {
        return Err(format!(
            "the budget of {host} bytes of host memory is too small for this step, which needs \
             {least} bytes\n  \
             help: give --memory host={least}, or leave more of it on the device"
        ));
    }
    let least = all.iter().min_by_key(|p| p.device_bytes).ok_or("there is a proposal")?;
    let executable = plan(&recompute(graph, &least.dropped)?)?;
    Err(refusal(&executable, budget, sources))
}

/// Buffers that a refusal names.
const NAMED: usize = 5;

/// What the smallest plan needs, and which lines hold its memory at the peak.
fn refusal(least: &Executable, budget: &Budget, sources: &SourceMap) -> String {
    let mut holders: Vec<_> = least.in_use(least.peak().0).collect();
    holders.sort_by_key(|b| std::cmp::Reverse(b.bytes));
    let holder = |b: &&BufferPlan| {
        let Place { file, start, end } = b.place;
        let line = (end > start).then(|| {
            let file = FileId(file);
            format!("  {}:{}", sources.name(file), sources.position(file, start).0)
        });
        format!("  {} bytes: {}{}", b.bytes, b.name, line.unwrap_or_default())
    };
    let holders: Vec<String> = holders.iter().take(NAMED).map(holder).collect();
    let (given, needed) = (budget.device, least.state_bytes + least.work_bytes);
    format!(
        "the budget of {given} bytes is too small for this step, which needs {needed} bytes\n  \
         {} bytes: parameters, gradients and moments\n{}\n  \
         help: give --memory {needed}, a smaller batch, or a shorter context",
        least.state_bytes,
        holders.join("\n")
    )
}

/// The values of all forward regions as items, and where the residuals are among them.
fn items(graph: &Graph, open: &[&Residual], speed: &Speed) -> (Vec<Item>, Vec<usize>) {
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
