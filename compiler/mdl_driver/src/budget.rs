//! A step within a number of bytes: the fastest proposal that fits, or a refusal that says what
//! would.

use crate::proposals::{Choice, Planner, Proposal, priced, proposals};
use mdl_ir::graph::Graph;
use mdl_ir::place::Place;
use mdl_passes::executable::{BufferPlan, Executable};
use mdl_passes::request::Budget;
use mdl_syntax::source::SourceMap;
use mdl_syntax::span::FileId;

/// The graph of the fastest proposal that fits the budget, or what stands in the way.
pub fn within(
    graph: &Graph,
    plan: Planner<'_>,
    budget: &Budget,
    sources: &SourceMap,
) -> Result<Graph, String> {
    // Whoever only asks what fits needs no choice where everything does.
    if budget.or_least {
        let kept = priced(graph, plan, budget, Choice::default())?;
        if in_host(&kept, budget) && kept.device_bytes <= budget.device {
            return Ok(graph.clone());
        }
    }
    let all = proposals(graph, plan, budget)?;
    let hosted: Vec<&Proposal> = all.iter().filter(|p| in_host(p, budget)).collect();
    if let Some(fits) = hosted.iter().find(|p| p.device_bytes <= budget.device) {
        return fits.choice.graph(graph);
    }
    if budget.or_least
        && let Some(least) = all.iter().min_by_key(|p| (!in_host(p, budget), p.device_bytes))
    {
        return least.choice.graph(graph);
    }
    if let Some(least) = hosted.iter().min_by_key(|p| p.device_bytes) {
        return Err(refusal(&plan(&least.choice.graph(graph)?)?, budget, sources));
    }
    let on_device = all.iter().filter(|p| p.device_bytes <= budget.device);
    let least = on_device.map(|p| p.host_bytes).min();
    let least = least.or_else(|| all.iter().map(|p| p.host_bytes).min()).unwrap_or(0);
    Err(format!(
        "the budget of {} bytes of host memory is too small for this step, which needs {least} \
         bytes\n  help: give --memory host={least}, or leave more of it on the device",
        budget.host.unwrap_or(0),
    ))
}

fn in_host(proposal: &Proposal, budget: &Budget) -> bool {
    budget.host.is_none_or(|host| proposal.host_bytes <= host)
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
