//! From a fused graph to launches on placed values: which buffer each value lies in, and who reads
//! and writes it.
//!
//! Values are placed from the end: outputs ask for their buffers, a concatenation asks for its
//! parts, a repeated region asks that its first carry lies in its first slot. What nobody asks for
//! gets a buffer of its own. A carry has two slots that iterations take in turn, or one for every
//! iteration where the region also emits the carry it was given: then the history is the emitted
//! value, and nothing is copied.

use crate::layout::{Loc, Turn, back, slice_stride, through};
use crate::region::region_spec;
use mdl_ir::cost::node_flops;
use mdl_ir::graph::{Body, Node, ValueId};
use mdl_ir::kernel::{CacheWriteSpec, GatherSpec, KernelSpec, ScatterAddSpec, workspace_bytes};
use mdl_ir::op::{Kernel, Op};
use mdl_ir::tensor_type::Type;
use std::collections::HashMap;

/// A buffer before it has an offset.
#[derive(Clone, Debug)]
pub struct Buffer {
    pub name: String,
    pub bytes: u64,
    /// Fixed place in the state space; None for the work space.
    pub state: Option<u64>,
    /// Launches between which it is in use.
    pub first: usize,
    pub last: usize,
    /// In which loop it was made, if in one.
    inside: Option<usize>,
}

/// An argument: a buffer, bytes from its start, and the slot it takes in each iteration.
#[derive(Clone, Debug)]
pub struct Use {
    pub buffer: usize,
    pub offset: u64,
    pub bytes: u64,
    pub turn: Option<Turn>,
}

#[derive(Clone, Debug)]
pub struct Planned {
    pub name: String,
    pub spec: KernelSpec,
    pub uses: Vec<Use>,
    pub flops: u64,
}

#[derive(Clone, Debug)]
pub enum Item {
    Launch(Planned),
    Loop { count: u64, body: Vec<Planned> },
}

/// Memory that a launch reads or writes. What is left of the offset in `loc` is below the alignment
/// of buffers.
#[derive(Clone, Debug)]
struct Access {
    loc: Loc,
    base: u64,
    elements: u64,
}

/// Buffers and slices start at multiples of this many elements.
const ALIGNED: u64 = 64;

fn trimmed(loc: &Loc) -> Loc {
    Loc { offset: loc.offset % ALIGNED, ..loc.clone() }
}

fn access(loc: &Loc, ty: &Type) -> Access {
    let rest = trimmed(loc);
    Access { base: loc.offset - rest.offset, elements: extent(&rest, ty), loc: rest }
}

pub type Places = HashMap<ValueId, Loc>;
type Done<T> = Result<T, String>;

/// The loop that is being written: iteration i sees slice `i`, or the slices from the last one on.
#[derive(Clone, Debug)]
struct Loop {
    number: usize,
    body: Vec<Planned>,
    /// Buffers from outside that are used in the loop.
    touched: Vec<usize>,
}

#[derive(Debug, Default)]
pub struct Lowering {
    pub units: u32,
    pub buffers: Vec<Buffer>,
    pub items: Vec<Item>,
    pub clock: usize,
    current: Option<Loop>,
    loops: usize,
}

impl Lowering {
    pub fn new(units: u32) -> Lowering {
        Lowering { units, ..Lowering::default() }
    }

    pub fn buffer(&mut self, name: &str, elements: u64, state: Option<u64>) -> usize {
        self.buffers.push(Buffer {
            name: name.to_string(),
            bytes: (elements * 4).max(4),
            state,
            first: usize::MAX,
            last: 0,
            inside: self.current.as_ref().map(|l| l.number),
        });
        self.buffers.len() - 1
    }

    fn fresh(&mut self, name: &str, ty: &Type) -> Loc {
        Loc::dense(self.buffer(name, ty.elements(), None), ty)
    }

    /// Marks a buffer as in use now.
    pub fn touch(&mut self, buffer: usize) {
        let clock = self.clock;
        let entry = &mut self.buffers[buffer];
        entry.first = entry.first.min(clock);
        entry.last = entry.last.max(clock);
        if let Some(l) = &mut self.current
            && entry.inside != Some(l.number)
        {
            l.touched.push(buffer);
        }
    }

    fn launch(&mut self, name: &str, spec: KernelSpec, args: &[Access], flops: u64) {
        let mut uses: Vec<Use> = args
            .iter()
            .map(|a| Use {
                buffer: a.loc.buffer,
                offset: a.base * 4,
                bytes: a.elements * 4,
                turn: a.loc.turn,
            })
            .collect();
        let workspace = workspace_bytes(&spec, self.units);
        if workspace > 0 {
            let buffer = self.buffer(&format!("{name}.workspace"), workspace.div_ceil(4), None);
            uses.push(Use { buffer, offset: 0, bytes: workspace, turn: None });
        }
        for u in &uses {
            self.touch(u.buffer);
        }
        self.clock += 1;
        let planned = Planned { name: name.to_string(), spec, uses, flops };
        match &mut self.current {
            Some(l) => l.body.push(planned),
            None => self.items.push(Item::Launch(planned)),
        }
    }

    /// Copies a value to another place.
    pub fn copy(&mut self, name: &str, ty: &Type, from: &Loc, to: &Loc) -> Done<()> {
        let mut body = Body::default();
        let value = mdl_ir::graph::Value { name: name.to_string(), ty: ty.clone() };
        body.values = vec![value.clone(), value];
        body.inputs = vec![ValueId(0)];
        body.outputs = vec![ValueId(1)];
        body.nodes = vec![Node {
            op: Op::StopGradient,
            args: vec![ValueId(0)],
            results: vec![ValueId(1)],
            span: Default::default(),
        }];
        let args = [access(from, ty), access(to, ty)];
        let locs = args.clone().map(|a| a.loc);
        let spec = region_spec(&body, &[], &locs[..1], &locs[1..])?;
        self.launch(&format!("{name}.copy"), KernelSpec::Region(spec), &args, 0);
        Ok(())
    }

    /// A dense place of this value, copied if it lies otherwise.
    fn dense(&mut self, name: &str, ty: &Type, loc: &Loc) -> Done<Loc> {
        if trimmed(loc).is_dense(ty) {
            return Ok(loc.clone());
        }
        let to = self.fresh(name, ty);
        self.copy(name, ty, loc, &to)?;
        Ok(to)
    }

    /// Lowers a body whose inputs are placed; outputs end up where `wanted` says, or anywhere.
    pub fn body(&mut self, body: &Body, places: &mut Places, mut wanted: Places) -> Done<()> {
        let carries = self.ask(body, places, &mut wanted);
        let asked = wanted.clone();
        for (i, node) in body.nodes.iter().enumerate() {
            self.node(body, node, i, places, &wanted, &carries)?;
        }
        for out in &body.outputs {
            if let Some(to) = asked.get(out)
                && places[out] != *to
            {
                let from = places[out].clone();
                self.copy(body.name(*out), body.ty(*out), &from, to)?;
            }
        }
        Ok(())
    }

    /// Walks the nodes from the end and notes where values should be made. Gives the buffers of
    /// first carries.
    fn ask(
        &mut self,
        body: &Body,
        places: &Places,
        wanted: &mut Places,
    ) -> HashMap<(usize, usize), usize> {
        let producers = body.producers();
        let users = body.users();
        let mut carries = HashMap::new();
        let made_by_kernel = |v: &ValueId| {
            producers[v.index()]
                .is_some_and(|p| matches!(body.nodes[p].op, Op::Call { .. } | Op::Gather { .. }))
        };
        for (i, node) in body.nodes.iter().enumerate().rev() {
            match &node.op {
                Op::Concat { axis, into } => {
                    let result = node.results[0];
                    if !wanted.contains_key(&result) {
                        let loc = self.fresh(body.name(result), body.ty(result));
                        wanted.insert(result, loc);
                    }
                    let whole = wanted[&result].clone();
                    let at = body.ty(result).index_of(&into.name).expect("verified");
                    let mut start = 0;
                    for a in &node.args {
                        let mut part = whole.clone();
                        part.offset += start * whole.strides[at];
                        start += body.ty(*a).axis(axis).expect("verified").size;
                        let free = !wanted.contains_key(a) && !places.contains_key(a);
                        let region = producers[a.index()].is_some_and(|p| {
                            matches!(body.nodes[p].op, Op::Call { kernel: Kernel::Region, .. })
                        });
                        if free && region {
                            wanted.insert(*a, part);
                        }
                    }
                }
                Op::Rename { .. } | Op::Split { .. } | Op::Merge { .. } => {
                    let a = node.args[0];
                    let (ty, result) = (body.ty(a), body.ty(node.results[0]));
                    if let Some(to) = wanted.get(&node.results[0])
                        && !wanted.contains_key(&a)
                        && made_by_kernel(&a)
                        && let Some(loc) = back(&node.op, to, ty, result)
                    {
                        wanted.insert(a, loc);
                    }
                }
                Op::ScatterAdd { .. } if node.args.len() == 3 => {
                    let base = node.args[2];
                    let to = match wanted.get(&node.results[0]) {
                        Some(to) => to.clone(),
                        None => self.fresh(body.name(node.results[0]), body.ty(base)),
                    };
                    wanted.insert(node.results[0], to.clone());
                    let alone = users[base.index()].len() == 1 && !body.outputs.contains(&base);
                    if alone && made_by_kernel(&base) && !wanted.contains_key(&base) {
                        wanted.insert(base, to);
                    }
                }
                Op::Repeat { count, carries: n, body: inner, reverse, .. } => {
                    for j in 0..*n {
                        let first = node.args[j];
                        let ty = body.ty(first).clone();
                        let slots = if history(inner, j, *n, *reverse) { count + 1 } else { 2 };
                        let name = body.name(node.results[j]);
                        let buffer = self.buffer(name, slots * slice_stride(&ty), None);
                        carries.insert((i, j), buffer);
                        let alone =
                            users[first.index()].len() == 1 && !body.outputs.contains(&first);
                        if alone && made_by_kernel(&first) && !wanted.contains_key(&first) {
                            wanted.insert(first, Loc::dense(buffer, &ty));
                        }
                    }
                }
                _ => {}
            }
        }
        carries
    }

    fn node(
        &mut self,
        body: &Body,
        node: &Node,
        i: usize,
        places: &mut Places,
        wanted: &Places,
        carries: &HashMap<(usize, usize), usize>,
    ) -> Done<()> {
        match &node.op {
            Op::Repeat { .. } => return self.repeat(body, node, i, places, wanted, carries),
            Op::Rename { .. } | Op::Split { .. } | Op::Merge { .. } | Op::Slice { .. } => {
                let (from, ty) = (places[&node.args[0]].clone(), body.ty(node.args[0]));
                let loc = match through(&node.op, &from, ty) {
                    Some(loc) => loc,
                    None => {
                        let dense = self.dense(body.name(node.args[0]), ty, &from)?;
                        through(&node.op, &dense, ty).ok_or("a dense tensor takes every view")?
                    }
                };
                places.insert(node.results[0], loc);
                return Ok(());
            }
            Op::Concat { axis, into } => {
                return self.concat(body, node, (axis, into), places, wanted);
            }
            _ => {}
        }
        if let Op::Call { kernel: Kernel::AdamW, body: inner, .. } = &node.op {
            return self.adamw(body, node, inner, places);
        }
        // Results first: a kernel that works in place finds its base there.
        let mut results = Vec::new();
        for r in &node.results {
            let ty = body.ty(*r);
            let loc = match wanted.get(r) {
                Some(loc) if trimmed(loc).is_dense(ty) || is_region(&node.op) => loc.clone(),
                _ => self.fresh(body.name(*r), ty),
            };
            results.push(loc);
        }
        if let Op::CacheWrite { .. } = &node.op {
            results[0] = places[&node.args[1]].clone();
        }
        self.kernel(body, node, &results, places)?;
        places.extend(node.results.iter().copied().zip(results));
        Ok(())
    }

    fn concat(
        &mut self,
        body: &Body,
        node: &Node,
        (axis, into): (&str, &mdl_ir::tensor_type::Axis),
        places: &mut Places,
        wanted: &Places,
    ) -> Done<()> {
        let whole = wanted[&node.results[0]].clone();
        let at = body.ty(node.results[0]).index_of(&into.name).expect("verified");
        let mut start = 0;
        for a in &node.args {
            let mut part = whole.clone();
            part.offset += start * whole.strides[at];
            let ty = body.ty(*a);
            start += ty.axis(axis).expect("verified").size;
            if places[a] != part {
                let from = places[a].clone();
                self.copy(body.name(*a), ty, &from, &part)?;
            }
        }
        places.insert(node.results[0], whole);
        Ok(())
    }

    /// One launch for a node of a fused body.
    fn kernel(&mut self, body: &Body, node: &Node, results: &[Loc], places: &Places) -> Done<()> {
        let to = &results[0];
        let name = body.name(node.results[0]).to_string();
        let flops = node_flops(body, node);
        let mut locs: Vec<Loc> = node.args.iter().map(|a| places[a].clone()).collect();
        let region = is_region(&node.op);
        let contraction = matches!(node.op, Op::Call { kernel: Kernel::Contraction, .. });
        // The sum of squares runs over the whole section of gradients, padding (zeros) included.
        let section = matches!(node.op, Op::Call { kernel: Kernel::SumOfSquares, .. });
        if !region && !section {
            for (n, (loc, a)) in locs.iter_mut().zip(&node.args).enumerate() {
                let ty = body.ty(*a);
                // A contraction packs from any strides, but starts at the buffer's alignment.
                let packed = contraction && is_operand(node, n);
                if !(packed && loc.offset % ALIGNED == 0) {
                    *loc = self.dense(body.name(*a), ty, loc)?;
                }
            }
        }
        let sized = |locs: &[Loc], ids: &[ValueId]| -> Vec<Access> {
            locs.iter().zip(ids).map(|(l, id)| access(l, body.ty(*id))).collect()
        };
        let (mut args, outs) = (sized(&locs, &node.args), sized(results, &node.results));
        let full = locs;
        let locs: Vec<Loc> = args.iter().map(|a| a.loc.clone()).collect();
        let results: Vec<Loc> = outs.iter().map(|a| a.loc.clone()).collect();
        let results = results.as_slice();
        let spec = match &node.op {
            Op::Call { kernel: Kernel::Region, axes, body: inner } => {
                KernelSpec::Region(region_spec(inner, axes, &locs, results)?)
            }
            Op::Call { kernel: Kernel::Contraction, body: inner, .. } => {
                let (spec, order) = crate::specs::contraction(inner, &locs)?;
                args = order.into_iter().map(|i| args[i].clone()).collect();
                KernelSpec::Contract(spec)
            }
            Op::Call { kernel: Kernel::Attention, axes, body: inner } => {
                let spec = crate::specs::attention(inner, axes)?;
                self.both_documents(&spec, 3, &mut args);
                KernelSpec::Attention(spec)
            }
            Op::Call { kernel: Kernel::AttentionGrad, axes, body: inner } => {
                let spec = crate::specs::attention(inner, axes)?;
                self.both_documents(&spec, 3, &mut args);
                KernelSpec::AttentionGrad(spec)
            }
            Op::Call { kernel: Kernel::LinearCrossEntropy, axes, body: inner } => {
                let spec = crate::specs::linear_cross_entropy(inner, axes, false)?;
                KernelSpec::LinearCrossEntropy(spec)
            }
            Op::Call { kernel: Kernel::LinearCrossEntropyGrad, axes, body: inner } => {
                let spec = crate::specs::linear_cross_entropy(inner, axes, true)?;
                KernelSpec::LinearCrossEntropy(spec)
            }
            Op::Call { kernel: Kernel::SumOfSquares, .. } => {
                return self.sum_of_squares(&name, args, outs, flops);
            }
            Op::Const(_) | Op::Position(_) => {
                KernelSpec::Region(source_region(node, body, results)?)
            }
            Op::Gather { axis } => KernelSpec::Gather(gather(body, node, axis)?),
            Op::ScatterAdd { .. } => {
                let (spec, base) = scatter(body, node);
                if base && full[2] != *to {
                    self.copy(&name, body.ty(node.results[0]), &full[2], to)?;
                }
                args.truncate(2);
                KernelSpec::ScatterAdd(spec)
            }
            Op::CacheWrite { axis } => {
                args = vec![args[0].clone(), args[2].clone()];
                KernelSpec::CacheWrite(cache_write(body, node, axis)?)
            }
            other => return Err(format!("`{}` has no kernel", other.name())),
        };
        args.extend(outs);
        if let (KernelSpec::Attention(a), 1) = (&spec, node.results.len()) {
            // Nobody differentiates this call, and the kernel writes its log-sum-exp all the same.
            let rows = u64::from(a.batch * a.t) * u64::from(a.kv_heads * a.group);
            let buffer = self.buffer(&format!("{name}.kept"), rows, None);
            let loc = Loc { buffer, offset: 0, strides: vec![1], turn: None };
            args.push(Access { loc, base: 0, elements: rows });
        }
        let flops = kernel_flops(&spec).unwrap_or(flops);
        self.launch(&name, spec, &args, flops);
        Ok(())
    }

    /// Documents of queries and of keys are one tensor while T and S are the same positions.
    fn both_documents(
        &mut self,
        spec: &mdl_ir::kernel::AttentionSpec,
        at: usize,
        args: &mut Vec<Access>,
    ) {
        if spec.mask.documents {
            let documents = args[at].clone();
            args.insert(at, documents);
        }
    }

    /// All gradients lie one after the other in the state space: one launch reads them all.
    fn sum_of_squares(
        &mut self,
        name: &str,
        args: Vec<Access>,
        outs: Vec<Access>,
        flops: u64,
    ) -> Done<()> {
        let all = self.section(args.iter().map(|a| a.loc.buffer))?;
        let len = all.elements;
        let spec = KernelSpec::SumOfSquares(mdl_ir::kernel::SumOfSquaresSpec { len });
        let mut args = vec![all];
        args.extend(outs);
        self.launch(name, spec, &args, flops);
        Ok(())
    }

    /// One buffer over several that lie one after the other in the state space.
    fn section(&mut self, buffers: impl Iterator<Item = usize>) -> Done<Access> {
        let (mut from, mut to) = (u64::MAX, 0);
        let all: Vec<usize> = buffers.collect();
        for b in &all {
            let buffer = &self.buffers[*b];
            let start = buffer.state.ok_or("gradients and state have a fixed place")?;
            from = from.min(start);
            to = to.max(start + buffer.bytes);
        }
        let len = (to - from) / 4;
        let buffer = self.buffer("section", len, Some(from));
        let loc = Loc { buffer, offset: 0, strides: vec![1], turn: None };
        Ok(Access { loc, base: 0, elements: len })
    }

    fn adamw(&mut self, body: &Body, node: &Node, inner: &Body, places: &mut Places) -> Done<()> {
        let n = node.results.len() / 3;
        let mut sections = Vec::new();
        for k in 0..4 {
            let group = &node.args[4 + k * n..4 + (k + 1) * n];
            let buffers: Vec<usize> = group.iter().map(|a| places[a].buffer).collect();
            sections.push(self.section(buffers.into_iter())?);
        }
        let len = sections[0].elements;
        let real = |name: &str| crate::plan::adamw_constant(inner, n, name);
        let spec = mdl_ir::kernel::AdamWSpec {
            len,
            beta1: real("beta1")?,
            beta2: real("beta2")?,
            eps: real("eps")?,
            decay: real("decay")?,
        };
        let mut args = vec![sections[1].clone()];
        for a in &node.args[..4] {
            args.push(access(&places[a], &Type::scalar(mdl_ir::tensor_type::DType::F32)));
        }
        args.extend([sections[0].clone(), sections[2].clone(), sections[3].clone()]);
        let flops = node_flops(body, node);
        self.launch("adamw", KernelSpec::AdamW(spec), &args, flops);
        for k in 0..3 {
            let from = [0, 2, 3][k];
            for i in 0..n {
                let old = places[&node.args[4 + from * n + i]].clone();
                places.insert(node.results[k * n + i], old);
            }
        }
        Ok(())
    }

    fn repeat(
        &mut self,
        outer: &Body,
        node: &Node,
        i: usize,
        places: &mut Places,
        wanted: &Places,
        buffers: &HashMap<(usize, usize), usize>,
    ) -> Done<()> {
        let Op::Repeat { count, reverse, carries, consts, body, .. } = &node.op else {
            return Err("a repeated region".into());
        };
        if self.current.is_some() {
            return Err("a repeated region inside a repeated region is not scheduled yet".into());
        }
        let last = *count as i64 - 1;
        let (start, step) = if *reverse { (last, -1) } else { (0, 1) };
        let mut inside: Places = HashMap::new();
        let mut asked: Places = HashMap::new();
        for j in 0..*carries {
            let ty = outer.ty(node.args[j]);
            let buffer = buffers[&(i, j)];
            let first = Loc::dense(buffer, ty);
            if places[&node.args[j]] != first {
                let from = places[&node.args[j]].clone();
                self.copy(outer.name(node.args[j]), ty, &from, &first)?;
            }
            let kept = history(body, j, *carries, *reverse);
            let slots = if kept { 0 } else { 2 };
            let turn = Turn { stride: slice_stride(ty), start: 0, step: 1, slots };
            let place = |start: i64| Loc { turn: Some(Turn { start, ..turn }), ..first.clone() };
            inside.insert(body.inputs[j], place(0));
            asked.insert(body.outputs[j], place(1));
            let slot = if kept { *count } else { count % 2 };
            let done = Loc { offset: slot * turn.stride, ..first.clone() };
            places.insert(node.results[j], done);
        }
        for (input, arg) in body.inputs.iter().zip(&node.args).skip(*carries) {
            let n = body.inputs.iter().position(|x| x == input).unwrap_or(0);
            let loc = places[arg].clone();
            let loc = if n < carries + consts { loc } else { slice_of(&loc, start, step) };
            inside.insert(*input, loc);
        }
        for (k, out) in body.outputs.iter().enumerate().skip(*carries) {
            let result = node.results[k];
            let ty = outer.ty(result).clone();
            let stacked =
                self.stacked(body, *out, &ty, wanted.get(&result), places, node, buffers, i)?;
            if !asked.contains_key(out) && !inside.contains_key(out) {
                asked.insert(*out, slice_of(&stacked, start, step));
            }
            places.insert(result, stacked);
        }
        self.run_loop(*count, body, inside, asked, places, node, (start, step))
    }

    /// Where a stacked result lies: the carry's history, the cache that is updated in place, what
    /// is wanted, or a buffer of its own.
    #[allow(clippy::too_many_arguments)]
    fn stacked(
        &mut self,
        body: &Body,
        out: ValueId,
        ty: &Type,
        wanted: Option<&Loc>,
        places: &Places,
        node: &Node,
        buffers: &HashMap<(usize, usize), usize>,
        i: usize,
    ) -> Done<Loc> {
        let Op::Repeat { carries, reverse, .. } = &node.op else {
            return Err("a region".into());
        };
        if let Some(j) = body.inputs.iter().take(*carries).position(|x| *x == out)
            && !*reverse
        {
            return Ok(stacked_loc(buffers[&(i, j)], ty));
        }
        let producer = body.nodes.iter().find(|n| n.results.contains(&out));
        if let Some(Node { op: Op::CacheWrite { .. }, args, .. }) = producer
            && let Some(n) = body.inputs.iter().position(|x| *x == args[1])
        {
            return Ok(places[&node.args[n]].clone());
        }
        if let Some(loc) = wanted {
            return Ok(loc.clone());
        }
        let slice = Type::new(ty.dtype, ty.axes[1..].to_vec());
        let elements = ty.axes[0].size * slice_stride(&slice);
        let name = body.name(out).to_string();
        Ok(stacked_loc(self.buffer(&name, elements, None), ty))
    }

    #[allow(clippy::too_many_arguments)]
    fn run_loop(
        &mut self,
        count: u64,
        body: &Body,
        inside: Places,
        asked: Places,
        places: &Places,
        node: &Node,
        (start, step): (i64, i64),
    ) -> Done<()> {
        self.loops += 1;
        let number = self.loops;
        self.current = Some(Loop { number, body: Vec::new(), touched: Vec::new() });
        let begin = self.clock;
        let mut inside = inside;
        self.body(body, &mut inside, asked.clone())?;
        // Stacked outputs that are also something else in the body are copied to their slices.
        let carries = match &node.op {
            Op::Repeat { carries, .. } => *carries,
            _ => 0,
        };
        for (k, out) in body.outputs.iter().enumerate().skip(carries) {
            let to = slice_of(&places[&node.results[k]], start, step);
            let from = inside[out].clone();
            if !same_slots(&from, &to) {
                self.copy(body.name(*out), body.ty(*out), &from, &to)?;
            }
        }
        let done = self.current.take().expect("set above");
        let end = self.clock.saturating_sub(1).max(begin);
        for b in done.touched {
            let buffer = &mut self.buffers[b];
            buffer.first = buffer.first.min(begin);
            buffer.last = buffer.last.max(end);
        }
        self.items.push(Item::Loop { count, body: done.body });
        Ok(())
    }
}

/// FLOPs that a kernel spends where that is not what its body would: masked scores are skipped, and
/// gradients reuse the logits.
fn kernel_flops(spec: &KernelSpec) -> Option<u64> {
    let product = |a: &mdl_ir::kernel::AttentionSpec| {
        let heads = u64::from(a.batch) * u64::from(a.kv_heads * a.group) * u64::from(a.head);
        let (t, s) = (u64::from(a.t), u64::from(a.s));
        let all = 2 * heads * t * s;
        if a.mask.causal && t == s { all / 2 } else { all }
    };
    match spec {
        // q·k and p·v
        KernelSpec::Attention(a) => Some(2 * product(a)),
        // the scores again, dp, dq, dk and dv
        KernelSpec::AttentionGrad(a) => Some(5 * product(a)),
        KernelSpec::LinearCrossEntropy(l) => {
            let once = 2 * u64::from(l.rows) * u64::from(l.vocab) * u64::from(l.width);
            Some(if l.grad { 3 * once } else { once })
        }
        _ => None,
    }
}

fn is_region(op: &Op) -> bool {
    matches!(op, Op::Call { kernel: Kernel::Region, .. })
}

/// Is argument `n` of a contraction call multiplied, or read by the epilogue?
fn is_operand(node: &Node, n: usize) -> bool {
    let Op::Call { body, .. } = &node.op else { return false };
    let operand =
        |m: &Node| matches!(m.op, Op::Contract { .. }) && m.args.contains(&body.inputs[n]);
    body.nodes.iter().any(operand)
}

/// Does the region also emit the carry it was given, in the order of iterations?
fn history(body: &Body, carry: usize, carries: usize, reverse: bool) -> bool {
    !reverse && body.outputs[carries..].contains(&body.inputs[carry])
}

/// The same slot in every iteration?
fn same_slots(a: &Loc, b: &Loc) -> bool {
    a == b
        || match (a.turn, b.turn) {
            (Some(x), Some(y)) => {
                let plain = |t: Turn| (t.stride, t.start, t.step);
                a.buffer == b.buffer && a.offset == b.offset && plain(x) == plain(y)
            }
            _ => false,
        }
}

/// The slice of a stacked value that an iteration sees.
fn slice_of(stacked: &Loc, start: i64, step: i64) -> Loc {
    Loc {
        buffer: stacked.buffer,
        offset: stacked.offset,
        strides: stacked.strides[1..].to_vec(),
        turn: Some(Turn { stride: stacked.strides[0], start, step, slots: 0 }),
    }
}

/// A stacked value from the start of a buffer, its slices aligned.
pub fn stacked_loc(buffer: usize, ty: &Type) -> Loc {
    let slice = Type::new(ty.dtype, ty.axes[1..].to_vec());
    let mut strides = vec![slice_stride(&slice)];
    strides.extend(slice.strides());
    Loc { buffer, offset: 0, strides, turn: None }
}

/// Elements from the start of a value's buffer (or slot) to its end.
pub fn extent(loc: &Loc, ty: &Type) -> u64 {
    let last: u64 = ty.axes.iter().zip(&loc.strides).map(|(a, s)| (a.size - 1) * s).sum();
    loc.offset + last + 1
}

fn source_region(node: &Node, body: &Body, results: &[Loc]) -> Done<mdl_ir::kernel::RegionSpec> {
    let mut inner = mdl_ir::build::Builder::default();
    let id = inner.push(node.op.clone(), &[], node.span)?;
    let inner = inner.finish(vec![id]);
    let _ = body;
    region_spec(&inner, &[], &[], results)
}

fn gather(body: &Body, node: &Node, axis: &str) -> Done<GatherSpec> {
    let table = body.ty(node.args[0]);
    if table.axes[0].name != axis {
        return Err("a table is gathered along its outermost axis".into());
    }
    Ok(GatherSpec {
        rows: body.ty(node.args[1]).elements() as u32,
        vocab: table.axes[0].size as u32,
        width: (table.elements() / table.axes[0].size) as u32,
    })
}

fn scatter(body: &Body, node: &Node) -> (ScatterAddSpec, bool) {
    let table = body.ty(node.results[0]);
    let accumulate = node.args.len() == 3;
    let spec = ScatterAddSpec {
        rows: body.ty(node.args[0]).elements() as u32,
        vocab: table.axes[0].size as u32,
        width: (table.elements() / table.axes[0].size) as u32,
        accumulate,
    };
    (spec, accumulate)
}

fn cache_write(body: &Body, node: &Node, axis: &str) -> Done<CacheWriteSpec> {
    let (x, cache) = (body.ty(node.args[0]), body.ty(node.args[1]));
    let at = cache.index_of(axis).ok_or("a cache has its axis")?;
    let product = |axes: &[mdl_ir::tensor_type::Axis]| axes.iter().map(|a| a.size).product::<u64>();
    Ok(CacheWriteSpec {
        batch: product(&cache.axes[..at]) as u32,
        t: x.axes[at].size as u32,
        capacity: cache.axes[at].size as u32,
        width: product(&cache.axes[at + 1..]) as u32,
    })
}
