//! The static memory plan: every buffer gets an offset before anything runs, and the schedule
//! becomes an executable.

use crate::arena::{Lifetime, arrange};
use crate::executable::{Arg, BufferPlan, Executable, Index, Launch, Piece, Slot, Space, Step};
use crate::layout::{Loc, piece, slice_stride};
use crate::lower::{Buffer, Item, Lowering, Pieces, Places, Planned, stacked_loc};
use crate::request::Division;
use crate::waits::say_waits;
use mdl_ir::graph::{Body, Graph, InputRole, Node, OutputRole, Param, ValueId};
use mdl_ir::op::{Binary, Op};
use mdl_ir::tensor_type::Type;

/// Buffers start at multiples of this: the coarsest binding offset of any device.
pub const ALIGNMENT: u64 = 256;

/// Where parameters lie in the state space; gradients and both moments follow in sections laid out
/// the same way.
#[derive(Clone, Debug, PartialEq)]
pub struct StateLayout {
    pub offsets: Vec<u64>,
    /// Bytes of one section.
    pub section: u64,
    /// Where all of that is: on the device, or at the start of `Host`.
    pub space: Space,
    /// How it is divided among ranks; then the offsets are those of a rank's pieces.
    pub division: Option<Division>,
    /// All sections there are: those of every training run, then further ones of gradients.
    pub sections: u64,
    /// The section that gradients are in.
    pub gradients: u64,
    /// Sections that are added to others, one after the other: behind the gradients of a
    /// micro-batch, or before an update.
    pub sums: Vec<(u64, u64)>,
}

impl StateLayout {
    /// Parameters in order, those for which `last` holds behind the others.
    pub fn of(params: &[Param], last: impl Fn(usize) -> bool) -> StateLayout {
        StateLayout::divided(params, last, None)
    }

    /// The same of what a rank has of each.
    pub fn divided(
        params: &[Param],
        last: impl Fn(usize) -> bool,
        division: Option<Division>,
    ) -> StateLayout {
        let mut order: Vec<usize> = (0..params.len()).collect();
        order.sort_by_key(|p| last(*p));
        let mut offsets = vec![0; params.len()];
        let mut at = 0;
        for p in order {
            offsets[p] = at;
            at += bytes(&params[p], division).next_multiple_of(ALIGNMENT);
        }
        StateLayout {
            offsets,
            section: at,
            space: Space::State,
            division,
            sections: SECTIONS,
            gradients: partial_sums(0),
            sums: Vec::new(),
        }
    }

    /// For the gradients of micro-batch `i` of a mesh, from 0. Partial sums are those of a binary
    /// counter: each section holds none, or the sum of as many micro-batches as its place counts
    /// for. The new gradients go where the carry ends, and what is there below is added to them.
    pub fn of_micro_batch(&self, i: u64) -> StateLayout {
        let level = u64::from(i.trailing_ones());
        let sums = (0..level).map(|below| (partial_sums(below), partial_sums(level)));
        StateLayout { gradients: partial_sums(level), sums: sums.collect(), ..self.clone() }
    }

    /// For the update after `n` micro-batches: what the counter holds is added up, the smallest
    /// sums first.
    pub fn of_update(&self, n: u64) -> StateLayout {
        let held: Vec<u64> =
            (0..64).filter(|level| n >> level & 1 == 1).map(partial_sums).collect();
        let sums = held.windows(2).map(|pair| (pair[0], pair[1])).collect();
        let gradients = held.last().copied().unwrap_or(partial_sums(0));
        StateLayout { gradients, sums, ..self.clone() }
    }
}

/// The section of the partial sums at a place of the counter: that of the gradients, then those
/// behind the moments.
fn partial_sums(level: u64) -> u64 {
    if level == 0 { 1 } else { SECTIONS - 1 + level }
}

/// Bytes of a parameter with its slices aligned, or of a rank's pieces of them.
fn bytes(param: &Param, division: Option<Division>) -> u64 {
    let slice = param.slice_type();
    match (division, param.repeats) {
        (Some(division), n) => {
            n.unwrap_or(1) * piece(&slice, division.pieces) * slice.dtype.bytes()
        }
        (None, None) => param.ty.bytes(),
        (None, Some(n)) => n * slice_stride(&slice) * 4,
    }
}

/// Lowers a fused graph to an executable for `units` threads.
pub fn plan(graph: &Graph, state: &StateLayout, units: u32) -> Result<Executable, String> {
    let mut low = Lowering::new(units);
    let mut places = Places::new();
    let body = &graph.body;
    let kept = match (sections(graph), state.division) {
        (1, _) => state.section,
        (_, Some(_)) => state.sections * state.section,
        (n, None) => n * state.section,
    };
    let training = graph.outputs.iter().any(|r| matches!(r, OutputRole::Grad(_)));
    let (mut state_bytes, host_state) = match state.space {
        // What waits lies behind all of it, also where an executable does not see the moments.
        Space::Host if training => (0, SECTIONS * state.section),
        Space::Host => (0, kept),
        _ => (kept, 0),
    };
    for (id, role) in body.inputs.iter().zip(&graph.inputs) {
        let loc = input_place(&mut low, graph, state, (*id, role), &mut state_bytes);
        places.insert(*id, loc);
    }
    let mut wanted = Places::new();
    for (id, role) in body.outputs.iter().zip(&graph.outputs) {
        let loc = match role {
            OutputRole::Grad(p) => {
                // Where gradients also come in, they are added to in place.
                let old = graph.inputs.iter().position(|r| *r == InputRole::Grad(*p));
                match old {
                    Some(i) => places[&body.inputs[i]].clone(),
                    None => in_state(&mut low, graph, state, (*p, state.gradients)),
                }
            }
            OutputRole::Value(name) => {
                let ty = body.ty(*id);
                Loc::dense(low.buffer(name, ty.elements(), None), ty)
            }
            OutputRole::Param(_)
            | OutputRole::Moment1(_)
            | OutputRole::Moment2(_)
            | OutputRole::Cache(_) => continue,
        };
        wanted.entry(*id).or_insert(loc);
    }
    let updates = sections(graph) == SECTIONS;
    if updates {
        low.add_sections(state)?;
    }
    low.body(body, &mut places, wanted)?;
    if !updates {
        low.add_sections(state)?;
    }
    hold_borders(&mut low, body, &places);
    let mut offsets: Vec<u64> = low.buffers.iter().map(|b| b.state.unwrap_or(0)).collect();
    for (space, start) in [(Space::Work, 0), (Space::Host, host_state)] {
        assign(&low, space, start, &mut offsets);
    }
    let border = |id: &ValueId| slot(&low, &offsets, &places[id], body.ty(*id));
    let inputs = graph.inputs.iter().cloned().zip(body.inputs.iter().map(border)).collect();
    let outputs = graph.outputs.iter().cloned().zip(body.outputs.iter().map(border)).collect();
    Ok(emit(graph, low, &offsets, inputs, outputs, (state_bytes, host_state)))
}

fn input_place(
    low: &mut Lowering,
    graph: &Graph,
    state: &StateLayout,
    (id, role): (ValueId, &InputRole),
    end: &mut u64,
) -> Loc {
    let ty = graph.body.ty(id);
    match role {
        InputRole::Param(p) => in_state(low, graph, state, (*p, 0)),
        InputRole::Grad(p) => in_state(low, graph, state, (*p, state.gradients)),
        InputRole::Moment1(p) => in_state(low, graph, state, (*p, 2)),
        InputRole::Moment2(p) => in_state(low, graph, state, (*p, 3)),
        InputRole::Data(name) | InputRole::Scalar(name) => {
            Loc::dense(low.buffer(name, ty.elements(), None), ty)
        }
        InputRole::Cache(_) => cache_place(low, &graph.body, id, end),
    }
}

/// Parts of the state of a training run: parameters, gradients, first and second moments.
pub const SECTIONS: u64 = 4;

/// Parameters alone, with gradients, or with gradients and both moments.
fn sections(graph: &Graph) -> u64 {
    if graph.inputs.iter().any(|r| matches!(r, InputRole::Moment1(_))) {
        return SECTIONS;
    }
    1 + u64::from(graph.outputs.iter().any(|r| matches!(r, OutputRole::Grad(_))))
}

/// Caches lie in the state space behind its sections, one after the other: what one executable
/// keeps, another one with the same caches goes on with. In slices where a region stacks them.
fn cache_place(low: &mut Lowering, body: &Body, id: ValueId, end: &mut u64) -> Loc {
    let ty = body.ty(id);
    let in_region = |n: &Node| matches!(n.op, Op::Repeat { .. }) && n.args.contains(&id);
    let stacked = body.nodes.iter().any(in_region);
    let slices = if stacked { ty.axes[0].size } else { 1 };
    let axes = if stacked { &ty.axes[1..] } else { &ty.axes[..] };
    let elements = slices * slice_stride(&Type::new(ty.dtype, axes.to_vec()));
    let buffer = low.buffer(body.name(id), elements, Some(*end));
    *end += padded(elements * 4);
    if stacked { stacked_loc(buffer, ty) } else { Loc::dense(buffer, ty) }
}

fn in_state(
    low: &mut Lowering,
    graph: &Graph,
    state: &StateLayout,
    (p, section): (usize, u64),
) -> Loc {
    let param = &graph.params[p];
    let at = section * state.section + state.offsets[p];
    let elements = bytes(param, state.division).next_multiple_of(ALIGNMENT) / 4;
    let buffer = low.buffer(&param.name, elements, Some(at));
    low.buffers[buffer].space = state.space;
    if let Some(division) = state.division {
        let slice = param.slice_type();
        let piece = piece(&slice, division.pieces);
        let (slices, len) = (param.repeats.unwrap_or(1), slice.elements());
        let stacked = param.repeats.is_some();
        let pieces = Pieces { ranks: division.pieces, slices, stacked, len, piece };
        low.buffers[buffer].pieces = Some(pieces);
        let strides = if stacked { vec![piece] } else { Vec::new() };
        let strides = [strides, slice.strides()].concat();
        return Loc { buffer, offset: 0, strides, turn: None };
    }
    if param.repeats.is_some() {
        stacked_loc(buffer, &param.ty)
    } else {
        Loc::dense(buffer, &param.ty)
    }
}

/// Inputs and outputs are there from the first launch to the last: the host writes and reads them
/// between runs.
fn hold_borders(low: &mut Lowering, body: &Body, places: &Places) {
    for id in body.inputs.iter().chain(&body.outputs) {
        let buffer = &mut low.buffers[places[id].buffer];
        buffer.first = 0;
        buffer.last = usize::MAX;
    }
}

/// Offsets of the buffers of a space that have no fixed place, in an arena of their own that
/// begins at `start`.
fn assign(low: &Lowering, space: Space, start: u64, offsets: &mut [u64]) {
    let free = |b: &Buffer| b.space == space && b.state.is_none() && b.first != usize::MAX;
    let placed: Vec<usize> = (0..offsets.len()).filter(|b| free(&low.buffers[*b])).collect();
    let lifetime = |b: &usize| {
        let Buffer { bytes, first, last, .. } = low.buffers[*b];
        Lifetime { bytes: padded(bytes), first, last: last.min(low.clock) }
    };
    let arena = arrange(&placed.iter().map(lifetime).collect::<Vec<_>>());
    for (b, at) in placed.into_iter().zip(arena.offsets) {
        offsets[b] = start + at;
    }
}

/// Bytes of a buffer with what keeps the next one aligned.
pub fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGNMENT)
}

fn slot(low: &Lowering, offsets: &[u64], loc: &Loc, ty: &Type) -> Slot {
    let buffer = &low.buffers[loc.buffer];
    let stacked = !loc.is_dense(ty) || loc.strides.first() != ty.strides().first();
    let slice = (stacked && !ty.axes.is_empty()).then(|| loc.strides[0] * 4);
    let divided = buffer.pieces.filter(|p| p.ranks > 1);
    let piece = divided.map(|p| Piece { ranks: p.ranks, elements: p.piece, stacked: p.stacked });
    Slot {
        space: buffer.space,
        offset: offsets[loc.buffer] + loc.offset * 4,
        ty: ty.clone(),
        slice,
        piece,
    }
}

fn emit(
    graph: &Graph,
    low: Lowering,
    offsets: &[u64],
    inputs: Vec<(InputRole, Slot)>,
    outputs: Vec<(OutputRole, Slot)>,
    (state_bytes, host_state_bytes): (u64, u64),
) -> Executable {
    let mut specs = Vec::new();
    let mut launch = |p: &Planned| {
        let known = specs.iter().position(|s| *s == p.spec);
        let spec = known.unwrap_or_else(|| {
            specs.push(p.spec.clone());
            specs.len() - 1
        });
        let args = p.uses.iter().map(|u| {
            let buffer = &low.buffers[u.buffer];
            let index = u.turn.map(|t| Index {
                stride: t.stride * 4,
                start: t.start,
                step: t.step,
                slots: t.slots,
            });
            let offset = offsets[u.buffer] + u.offset;
            Arg { space: buffer.space, offset, bytes: u.bytes, index }
        });
        let (name, args, place) = (p.name.clone(), args.collect(), p.place);
        Launch { name, spec, args, flops: p.flops, place, ahead: p.ahead, wait: Vec::new() }
    };
    let mut steps: Vec<Step> = low
        .items
        .iter()
        .map(|item| match item {
            Item::Launch(p) => Step::Launch(launch(p)),
            Item::Loop { count, body } => {
                Step::Loop { count: *count, body: body.iter().map(&mut launch).collect() }
            }
        })
        .collect();
    for step in &mut steps {
        if let Step::Loop { count, body } = step {
            say_waits(*count, body, |l| specs[l.spec].moves());
        }
    }
    let buffers = buffer_plans(&low, offsets);
    let end = |space: Space| {
        let of_space = buffers.iter().filter(|b| b.space == space);
        of_space.map(|b| b.offset + padded(b.bytes)).max()
    };
    let work_bytes = end(Space::Work).unwrap_or(ALIGNMENT);
    let host_bytes = end(Space::Host).unwrap_or(0).max(host_state_bytes);
    Executable {
        name: graph.name.clone(),
        params: graph.params.clone(),
        specs,
        steps,
        inputs,
        outputs,
        state_bytes,
        work_bytes,
        host_bytes,
        host_state_bytes,
        buffers,
        units: low.units,
    }
}

/// The buffers that are used, with their places and times.
fn buffer_plans(low: &Lowering, offsets: &[u64]) -> Vec<BufferPlan> {
    let used = |b: &usize| low.buffers[*b].first != usize::MAX;
    (0..low.buffers.len())
        .filter(used)
        .map(|b| {
            let buffer = &low.buffers[b];
            BufferPlan {
                name: buffer.name.clone(),
                space: buffer.space,
                offset: offsets[b],
                bytes: buffer.bytes,
                first: buffer.first.min(low.clock),
                last: buffer.last.min(low.clock),
                place: buffer.place,
            }
        })
        .collect()
}

/// A number of AdamW, read from the body that is its meaning (see `stdlib/optim.mdl`); `n`
/// parameters are updated.
pub fn adamw_constant(body: &Body, n: usize, name: &str) -> Result<f32, String> {
    let producers = body.producers();
    let node = |id: ValueId| producers[id.index()].map(|p| &body.nodes[p]);
    let arg = |id: ValueId, want: &Op, which: usize| -> Option<ValueId> {
        let made = node(id).filter(|m| m.op == *want)?;
        made.args.get(which).copied()
    };
    let factor = |id: ValueId| -> Option<f32> {
        let product = node(id).filter(|n| n.op == Op::Binary(Binary::Mul));
        // A factor of one leaves no product behind.
        let Some(product) = product else { return Some(1.0) };
        product.args.iter().find_map(|a| match node(*a)?.op {
            Op::Const(c) => Some(c as f32),
            _ => None,
        })
    };
    let constant = |id: ValueId| match node(id)?.op {
        Op::Const(c) => Some(c as f32),
        _ => None,
    };
    let add = Op::Binary(Binary::Add);
    let step = || arg(body.outputs[0], &Op::Binary(Binary::Sub), 1);
    let direction = || arg(step()?, &Op::Binary(Binary::Mul), 1);
    let found = match name {
        "beta1" => arg(body.outputs[n], &add, 0).and_then(factor),
        "beta2" => arg(body.outputs[2 * n], &add, 0).and_then(factor),
        "decay" => direction().and_then(|d| factor(arg(d, &add, 0)?)),
        "eps" => direction().and_then(|d| {
            let below = arg(arg(d, &add, 1)?, &Op::Binary(Binary::Div), 1)?;
            arg(below, &add, 1).map_or(Some(0.0), constant)
        }),
        _ => None,
    };
    found.ok_or_else(|| format!("the AdamW kernel does not find `{name}` in this formula"))
}
