//! The static memory plan: every buffer gets an offset before anything runs, and the schedule
//! becomes an executable.

use crate::arena::{Lifetime, arrange};
use crate::executable::{Arg, BufferPlan, Executable, Launch, Piece, Slot, Space, Step};
pub use crate::layout::ALIGNMENT;
use crate::layout::{Loc, aligned, piece, slice_bytes};
use crate::lower::{Buffer, Item, Lowering, Pieces, Places, Planned, slices_loc, stacked_loc};
use crate::optimise::StateTypes;
use crate::request::Division;
use crate::waits::say_waits;
use mdl_ir::graph::{Body, Graph, InputRole, Node, OutputRole, Param, ValueId};
use mdl_ir::kernel::Target;
use mdl_ir::op::{Binary, Op};
use mdl_ir::tensor_type::{DType, Type};

/// Where parameters lie in their section of the state space; gradients, both moments and master
/// copies follow in sections laid out the same way, element by element, so that one launch can go
/// over all of them.
#[derive(Clone, Debug, PartialEq)]
pub struct StateLayout {
    /// Elements from the start of a section.
    pub offsets: Vec<u64>,
    /// Elements of a section.
    pub len: u64,
    /// Parameters and their slices start at multiples of this many elements, which is aligned in
    /// every section.
    pub aligned: u64,
    /// What there is of the state, in the order in which it lies.
    pub sections: Vec<(Section, DType)>,
    /// Where all of that is: on the device, or at the start of `Host`.
    pub space: Space,
    /// How it is divided among ranks; then the offsets are those of a rank's pieces.
    pub division: Option<Division>,
    /// The section that gradients are in.
    pub gradients: Section,
    /// Sections that are added to others, one after the other: behind the gradients of a
    /// micro-batch, or before an update.
    pub sums: Vec<(Section, Section)>,
}

/// Parts of the state of a training run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    Param,
    Grad,
    Moment1,
    Moment2,
    Master,
    /// Sums of the gradients of several micro-batches of a mesh, by their place in a counter.
    PartialSum(u64),
}

impl Section {
    pub fn name(self) -> &'static str {
        match self {
            Section::Param => "parameters",
            Section::Grad => "gradients",
            Section::Moment1 => "moment1",
            Section::Moment2 => "moment2",
            Section::Master => "master",
            Section::PartialSum(_) => "partial sums",
        }
    }

    /// Where the partial sums at a place of the counter are.
    fn of_sums(level: u64) -> Section {
        if level == 0 { Section::Grad } else { Section::PartialSum(level) }
    }
}

impl StateLayout {
    /// Parameters in order, those for which `last` holds behind the others.
    pub fn of(params: &[Param], types: StateTypes, last: impl Fn(usize) -> bool) -> StateLayout {
        StateLayout::divided(params, types, last, None)
    }

    /// The same of what a rank has of each.
    pub fn divided(
        params: &[Param],
        types: StateTypes,
        last: impl Fn(usize) -> bool,
        division: Option<Division>,
    ) -> StateLayout {
        let mut sections = vec![
            (Section::Param, types.params),
            (Section::Grad, types.params),
            (Section::Moment1, types.moments),
            (Section::Moment2, types.moments),
        ];
        sections.extend(types.master.then_some((Section::Master, DType::F32)));
        let aligned = sections.iter().map(|(_, dtype)| aligned(*dtype)).max().unwrap_or(1);
        let mut order: Vec<usize> = (0..params.len()).collect();
        order.sort_by_key(|p| last(*p));
        let mut offsets = vec![0; params.len()];
        let mut len = 0;
        for p in order {
            offsets[p] = len;
            len += elements(&params[p], aligned, division);
        }
        let (space, gradients, sums) = (Space::State, Section::Grad, Vec::new());
        StateLayout { offsets, len, aligned, sections, space, division, gradients, sums }
    }

    /// For the gradients of micro-batch `i` of a mesh, from 0. Partial sums are those of a binary
    /// counter: each section holds none, or the sum of as many micro-batches as its place counts
    /// for. The new gradients go where the carry ends, and what is there below is added to them.
    pub fn of_micro_batch(&self, i: u64) -> StateLayout {
        let level = u64::from(i.trailing_ones());
        let sums = (0..level).map(|below| (Section::of_sums(below), Section::of_sums(level)));
        StateLayout { gradients: Section::of_sums(level), sums: sums.collect(), ..self.clone() }
    }

    /// For the update after `n` micro-batches: what the counter holds is added up, the smallest
    /// sums first.
    pub fn of_update(&self, n: u64) -> StateLayout {
        let held: Vec<Section> =
            (0..64).filter(|level| n >> level & 1 == 1).map(Section::of_sums).collect();
        let sums = held.windows(2).map(|pair| (pair[0], pair[1])).collect();
        let gradients = held.last().copied().unwrap_or(Section::Grad);
        StateLayout { gradients, sums, ..self.clone() }
    }

    /// The same with sections for so many more partial sums than the gradients are.
    pub fn with_partial_sums(mut self, levels: u64) -> StateLayout {
        let dtype = self.sections[0].1;
        self.sections.extend((1..=levels).map(|level| (Section::PartialSum(level), dtype)));
        self
    }

    /// The same without gradients, each of which is used when it is made.
    pub fn without_gradients(mut self) -> StateLayout {
        self.sections.retain(|(section, _)| *section != Section::Grad);
        self
    }

    /// The number of a section, and its elements.
    pub(crate) fn section(&self, section: Section) -> (usize, DType) {
        let number = self.sections.iter().position(|(s, _)| *s == section);
        let number = number.expect("a graph sees sections that its state has");
        (number, self.sections[number].1)
    }

    /// Bytes of the first so many sections.
    pub fn bytes_of(&self, sections: usize) -> u64 {
        self.sections.iter().take(sections).map(|(_, dtype)| self.len * dtype.bytes()).sum()
    }

    /// Bytes of a state with all that training keeps.
    pub fn bytes(&self) -> u64 {
        self.bytes_of(self.sections.len())
    }

    /// Its sections by name, each with its bytes.
    pub fn named(&self) -> Vec<(&'static str, u64)> {
        let each = self.sections.iter();
        each.map(|(section, dtype)| (section.name(), self.len * dtype.bytes())).collect()
    }
}

/// Elements of a parameter with its slices aligned, or of a rank's pieces of them.
fn elements(param: &Param, aligned: u64, division: Option<Division>) -> u64 {
    let slice = param.slice_type();
    let each = match division {
        Some(division) => piece(&slice, division.pieces),
        None => slice.elements().next_multiple_of(aligned),
    };
    param.repeats.unwrap_or(1) * each
}

/// Lowers a fused graph to an executable for `units` threads.
pub fn plan(
    graph: &Graph,
    state: &StateLayout,
    target: impl Into<Target>,
) -> Result<Executable, String> {
    let mut low = Lowering::new(target.into());
    let mut places = Places::new();
    let body = &graph.body;
    let kept = match (sections(graph, state), state.division) {
        (1, _) => state.bytes_of(1),
        (_, Some(_)) => state.bytes(),
        (n, None) => state.bytes_of(n),
    };
    let training = graph.outputs.iter().any(|r| matches!(r, OutputRole::Grad(_)));
    let (mut state_bytes, host_state) = match state.space {
        // What waits lies behind all of it, also where an executable does not see the moments.
        Space::Host if training => (0, state.bytes()),
        Space::Host => (0, kept),
        _ => (kept, 0),
    };
    for (id, role) in body.inputs.iter().zip(&graph.inputs) {
        let loc = input_place(&mut low, graph, state, (*id, role), &mut state_bytes);
        places.insert(*id, loc);
    }
    let mut wanted = Places::new();
    let old = |places: &Places, role: InputRole| {
        let at = graph.inputs.iter().position(|r| *r == role);
        places[&body.inputs[at.expect("what is updated comes in")]].clone()
    };
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
                Loc::dense(low.buffer(name, ty.bytes(), None), ty)
            }
            // What is updated lies where it was; a region is told so.
            OutputRole::Param(p) => old(&places, InputRole::Param(*p)),
            OutputRole::Moment1(p) => old(&places, InputRole::Moment1(*p)),
            OutputRole::Moment2(p) => old(&places, InputRole::Moment2(*p)),
            OutputRole::Master(p) => old(&places, InputRole::Master(*p)),
            OutputRole::Cache(_) => continue,
        };
        wanted.entry(*id).or_insert(loc);
    }
    let updates = graph.inputs.iter().any(|r| matches!(r, InputRole::Moment1(_)));
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
        InputRole::Param(p) => in_state(low, graph, state, (*p, Section::Param)),
        InputRole::Grad(p) => in_state(low, graph, state, (*p, state.gradients)),
        InputRole::Moment1(p) => in_state(low, graph, state, (*p, Section::Moment1)),
        InputRole::Moment2(p) => in_state(low, graph, state, (*p, Section::Moment2)),
        InputRole::Master(p) => in_state(low, graph, state, (*p, Section::Master)),
        InputRole::Data(name) | InputRole::Scalar(name) => {
            Loc::dense(low.buffer(name, ty.bytes(), None), ty)
        }
        InputRole::Cache(_) => cache_place(low, &graph.body, id, end),
    }
}

/// Sections that a graph sees: parameters alone, with gradients, or all of them.
fn sections(graph: &Graph, state: &StateLayout) -> usize {
    if graph.inputs.iter().any(|r| matches!(r, InputRole::Moment1(_))) {
        return state.sections.len();
    }
    1 + usize::from(graph.outputs.iter().any(|r| matches!(r, OutputRole::Grad(_))))
}

/// Caches lie in the state space behind its sections, one after the other: what one executable
/// keeps, another one with the same caches goes on with. In slices where a region stacks them.
fn cache_place(low: &mut Lowering, body: &Body, id: ValueId, end: &mut u64) -> Loc {
    let ty = body.ty(id);
    let in_region = |n: &Node| matches!(n.op, Op::Repeat { .. }) && n.args.contains(&id);
    let stacked = body.nodes.iter().any(in_region);
    let slices = if stacked { ty.axes[0].size } else { 1 };
    let axes = if stacked { &ty.axes[1..] } else { &ty.axes[..] };
    let bytes = slice_bytes(slices, &Type::new(ty.dtype, axes.to_vec()));
    let buffer = low.buffer(&body.name(id), bytes, Some(*end));
    *end += padded(bytes);
    if stacked { stacked_loc(buffer, ty) } else { Loc::dense(buffer, ty) }
}

fn in_state(
    low: &mut Lowering,
    graph: &Graph,
    state: &StateLayout,
    (p, section): (usize, Section),
) -> Loc {
    let (number, dtype) = state.section(section);
    let (param, each) = (&graph.params[p], dtype.bytes());
    let at = state.bytes_of(number) + state.offsets[p] * each;
    let elements = elements(param, state.aligned, state.division);
    let buffer = low.buffer(&param.name, elements * each, Some(at));
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
        let slice = param.slice_type();
        let stride = slice.elements().next_multiple_of(state.aligned);
        slices_loc(buffer, &slice, stride)
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
    let each = ty.dtype.bytes();
    let slice = (stacked && !ty.axes.is_empty()).then(|| loc.strides[0] * each);
    let divided = buffer.pieces.filter(|p| p.ranks > 1);
    let piece = divided.map(|p| Piece { ranks: p.ranks, elements: p.piece, stacked: p.stacked });
    Slot {
        space: buffer.space,
        offset: offsets[loc.buffer] + loc.offset * each,
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
            let offset = offsets[u.buffer] + u.offset;
            Arg { space: buffer.space, offset, bytes: u.bytes, index: u.index }
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
        target: low.target,
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
    // The formula's results, before they are rounded to what is stored.
    let result = |i: usize| {
        let id = *body.outputs.get(i)?;
        let rounds = |n: &&Node| matches!(n.op, Op::Cast(_) | Op::StochasticRound { .. });
        Some(node(id).filter(rounds).map_or(id, |n| n.args[0]))
    };
    let add = Op::Binary(Binary::Add);
    let step = || arg(result(0)?, &Op::Binary(Binary::Sub), 1);
    let direction = || arg(step()?, &Op::Binary(Binary::Mul), 1);
    let found = match name {
        "beta1" => result(n).and_then(|id| arg(id, &add, 0)).and_then(factor),
        "beta2" => result(2 * n).and_then(|id| arg(id, &add, 0)).and_then(factor),
        "decay" => direction().and_then(|d| factor(arg(d, &add, 0)?)),
        "eps" => direction().and_then(|d| {
            let below = arg(arg(d, &add, 1)?, &Op::Binary(Binary::Div), 1)?;
            arg(below, &add, 1).map_or(Some(0.0), constant)
        }),
        _ => None,
    };
    found.ok_or_else(|| format!("the AdamW kernel does not find `{name}` in this formula"))
}
