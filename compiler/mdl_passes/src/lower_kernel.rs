//! One launch for each node of a fused body: its kernel's spec and the memory it reads and writes.

use crate::executable::Space;
use crate::layout::{Loc, aligned, word};
use crate::lower::{Access, Done, Lowering, Places, access, extent, is_region};
use crate::region::{elem, region_spec};
use crate::specs::{parts, whole_input};
use mdl_ir::cost::node_flops;
use mdl_ir::graph::{Body, Node, ValueId};
use mdl_ir::kernel::cost::kernel_flops;
use mdl_ir::kernel::{AdamWSpec, AttentionSpec, CacheWriteSpec, Elem, GatherSpec, KernelSpec};
use mdl_ir::kernel::{RegionSpec, ScatterAddSpec, SumOfSquaresSpec};
use mdl_ir::op::{Binary, Kernel, Op};
use mdl_ir::tensor_type::{Axis, DType, Type};
use mdl_symbol::Symbol;

impl Lowering {
    /// One launch for a node of a fused body.
    // tidy: table
    pub(crate) fn kernel(
        &mut self,
        body: &Body,
        node: &Node,
        results: &[Loc],
        places: &Places,
    ) -> Done<()> {
        let to = &results[0];
        let name = body.name(node.results[0]);
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
                if !(packed && loc.offset % aligned(ty.dtype) == 0) {
                    *loc = self.dense(&body.name(*a), ty, loc)?;
                }
            }
        }
        let sized = |locs: &[Loc], ids: &[ValueId]| -> Vec<Access> {
            locs.iter().zip(ids).map(|(l, id)| access(l, body.ty(*id))).collect()
        };
        let (mut args, outs) = (sized(&locs, &node.args), sized(results, &node.results));
        let full = locs;
        let locs: Vec<Loc> = args.iter().map(|a| a.loc.clone()).collect();
        let whole = results;
        let results: Vec<Loc> = outs.iter().map(|a| a.loc.clone()).collect();
        let results = results.as_slice();
        let spec = match &node.op {
            Op::Call { kernel: Kernel::Region, axes, body: inner } => {
                KernelSpec::Region(region_spec(inner, axes, &locs, results)?)
            }
            Op::Call { kernel: Kernel::Contraction, body: inner, .. } => {
                if let Some((product, old)) = added(inner)
                    && full[old] == *to
                {
                    args.remove(old);
                    let mut operands = locs;
                    operands.remove(old);
                    let (spec, order) = crate::specs::contraction(&product, &operands)?;
                    args = order.into_iter().map(|i| args[i].clone()).collect();
                    KernelSpec::ContractAdd(spec)
                } else {
                    let (spec, order) = crate::specs::contraction(inner, &locs)?;
                    args = order.into_iter().map(|i| args[i].clone()).collect();
                    KernelSpec::Contract(spec)
                }
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
                if spec.accumulate {
                    let (old, dw) = (full.last().ok_or("the old gradient")?, &whole[2]);
                    if old != dw {
                        self.copy(&name, body.ty(node.results[2]), old, dw)?;
                    }
                    args.pop();
                }
                KernelSpec::LinearCrossEntropy(spec)
            }
            Op::Call { kernel: Kernel::SumOfSquares, .. } => {
                return self.sum_of_squares(&name, args, outs, flops);
            }
            Op::Const(_) | Op::Position(_) => {
                KernelSpec::Region(source_region(node, body, results)?)
            }
            Op::Gather { axis } => KernelSpec::Gather(gather(body, node, *axis)?),
            Op::GroupedContract { axis, .. } => {
                KernelSpec::GroupedContract(crate::specs_grouped::contract(body, node, *axis)?)
            }
            Op::GroupedOuter { .. } => {
                KernelSpec::GroupedOuter(crate::specs_grouped::outer(body, node)?)
            }
            Op::ScatterAdd { .. } => {
                let (spec, base) = scatter(body, node)?;
                if base && full[2] != *to {
                    self.copy(&name, body.ty(node.results[0]), &full[2], to)?;
                }
                args.truncate(2);
                KernelSpec::ScatterAdd(spec)
            }
            Op::CacheWrite { axis } => {
                args = vec![args[0].clone(), args[2].clone()];
                KernelSpec::CacheWrite(cache_write(body, node, *axis)?)
            }
            other => return Err(format!("`{}` has no kernel", other.name())),
        };
        args.extend(outs);
        if let (KernelSpec::Attention(a), 1) = (&spec, node.results.len()) {
            // Nobody differentiates this call, and the kernel writes its log-sum-exp all the same.
            let rows = u64::from(a.batch * a.t) * u64::from(a.kv_heads * a.group);
            let kept = Type::new(DType::F32, vec![Axis::new("rows", rows)]);
            let loc = self.fresh(&format!("{name}.kept"), &kept);
            args.push(access(&loc, &kept));
        }
        let flops = kernel_flops(&spec).unwrap_or(flops);
        self.launch(&name, spec, &args, flops);
        Ok(())
    }

    /// Documents of queries and of keys are one tensor while T and S are the same positions.
    fn both_documents(&mut self, spec: &AttentionSpec, at: usize, args: &mut Vec<Access>) {
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
        if self.buffers[args[0].loc.buffer].pieces.is_some() {
            return self.squares_in_parts(name, &args, &outs[0]);
        }
        let all = match &args[..] {
            [one] => one.clone(),
            _ => self.section(args.iter().map(|a| a.loc.buffer), args[0].dtype)?,
        };
        if self.buffers[all.loc.buffer].space == Space::Host {
            return self.squares_in_chunks(name, &all, &outs[0], flops);
        }
        let (len, elem) = (all.elements, elem(all.dtype));
        let spec = KernelSpec::SumOfSquares(SumOfSquaresSpec { len, elem });
        let mut args = vec![all];
        args.extend(outs);
        self.launch(name, spec, &args, flops);
        Ok(())
    }

    /// One tensor of an update, laid out as the parameter is.
    fn like(
        &mut self,
        body: &Body,
        value: ValueId,
        param: ValueId,
        places: &Places,
    ) -> Done<Access> {
        let (from, to) = (places[&value].clone(), &places[&param]);
        let (name, ty) = (body.name(value), body.ty(value));
        let tight = to.is_dense(ty);
        if from.strides == to.strides && (tight || self.buffers[from.buffer].state.is_some()) {
            return Ok(access(&from, ty));
        }
        // What lies between slices is computed on too, so it has to be zero.
        let elements = extent(&Loc { offset: 0, ..to.clone() }, ty);
        let buffer = self.buffer(&name, elements * ty.dtype.bytes(), None);
        let all = Type::new(ty.dtype, vec![Axis::new("all", elements)]);
        self.zeros(&name, &all, &Loc::dense(buffer, &all))?;
        let like = Loc { buffer, offset: 0, strides: to.strides.clone(), turn: None };
        self.copy(&name, ty, &from, &like)?;
        Ok(access(&like, ty))
    }

    /// One buffer over several that lie one after the other in the state space.
    fn section(&mut self, buffers: impl Iterator<Item = usize>, dtype: DType) -> Done<Access> {
        let (mut from, mut to) = (u64::MAX, 0);
        let all: Vec<usize> = buffers.collect();
        for b in &all {
            let buffer = &self.buffers[*b];
            let start = buffer.state.ok_or("gradients and state have a fixed place")?;
            from = from.min(start);
            to = to.max(start + buffer.bytes);
        }
        let buffer = self.buffer("section", to - from, Some(from));
        self.buffers[buffer].space = self.buffers[all[0]].space;
        let loc = Loc { buffer, offset: 0, strides: vec![1], turn: None };
        Ok(Access { loc, base: 0, elements: (to - from) / dtype.bytes(), dtype })
    }

    pub(crate) fn adamw(
        &mut self,
        body: &Body,
        node: &Node,
        inner: &Body,
        places: &mut Places,
    ) -> Done<()> {
        let (numbers, n) = adamw_parts(body, node);
        let parts: Vec<&[ValueId]> = node.args[numbers..].chunks(n).collect();
        let divided = self.buffers[places[&parts[0][0]].buffer].pieces;
        let mut sections = Vec::new();
        for part in &parts {
            sections.push(match part {
                [one] if divided.is_none() => self.like(body, *one, parts[0][0], places)?,
                _ => self.section(part.iter().map(|a| places[a].buffer), body.ty(part[0]).dtype)?,
            });
        }
        let real = |name: &str| crate::plan::adamw_constant(inner, n, name);
        let [params, grads, moments] = [0, 1, 2].map(|k| elem(sections[k].dtype));
        let spec = AdamWSpec {
            len: sections[0].elements,
            params,
            grads,
            moments,
            master: sections.len() == 5,
            stochastic: moments == Elem::Bf16,
            beta1: real("beta1")?,
            beta2: real("beta2")?,
            eps: real("eps")?,
            decay: real("decay")?,
        };
        let scalars: Vec<Access> =
            node.args[..numbers].iter().map(|a| access(&places[a], body.ty(*a))).collect();
        let flops = node_flops(body, node) / divided.map_or(1, |p| p.ranks);
        if sections.iter().any(|s| self.buffers[s.loc.buffer].space == Space::Host) {
            self.adamw_in_chunks(&spec, &sections, &scalars, flops)?;
        } else {
            let args = adamw_args(&sections, &scalars);
            self.launch("adamw", KernelSpec::AdamW(spec), &args, flops);
        }
        // All but the gradients are written where they were.
        let written = parts.iter().enumerate().filter(|(k, _)| *k != 1).flat_map(|(_, part)| *part);
        for (old, new) in written.zip(&node.results) {
            let old = places[old].clone();
            places.insert(*new, old);
        }
        Ok(())
    }
}

/// How many numbers a call of AdamW takes before the state, and how many parameters.
fn adamw_parts(body: &Body, node: &Node) -> (usize, usize) {
    let seeded = body.ty(node.args[4]).dtype == DType::I32;
    let numbers = 4 + usize::from(seeded);
    (numbers, node.args.len() - numbers - node.results.len())
}

/// In the order of the kernel: parameters, gradients and what else is kept are given in that of the
/// state.
pub(crate) fn adamw_args(state: &[Access], numbers: &[Access]) -> Vec<Access> {
    let mut args = vec![state[1].clone()];
    args.extend(numbers.iter().cloned());
    args.extend(state.iter().enumerate().filter(|(k, _)| *k != 1).map(|(_, s)| s.clone()));
    args
}

/// A contraction whose result is added to something and nothing else: the contraction alone, and
/// which input it is added to.
fn added(body: &Body) -> Option<(Body, usize)> {
    let [before @ .., product, sum] = &body.nodes[..] else { return None };
    let adds = matches!(product.op, Op::Contract { .. }) && sum.op == Op::Binary(Binary::Add);
    let old = *sum.args.iter().find(|a| !product.results.contains(a))?;
    let input = body.inputs.iter().position(|i| *i == old)?;
    let multiplied = |n: &Node| n.args.contains(&old);
    let same = body.ty(old) == body.ty(product.results[0])
        && !multiplied(product)
        && !before.iter().any(multiplied);
    if !adds || !same || body.outputs != sum.results || !sum.args.contains(&product.results[0]) {
        return None;
    }
    let mut alone = body.clone();
    alone.inputs.remove(input);
    alone.nodes.pop();
    alone.outputs = product.results.clone();
    Some((alone, input))
}

/// Is argument `n` of a contraction call multiplied, be it behind a prologue, and not read by the
/// epilogue or beside what is prepared?
fn is_operand(node: &Node, n: usize) -> bool {
    let Op::Call { body, .. } = &node.op else { return false };
    let Some((_, contract, after)) = parts(body) else { return false };
    let mut operands = contract.args.iter();
    operands.any(|a| whole_input(body, *a) == Some(n))
        && !after.iter().any(|m| m.args.contains(&body.inputs[n]))
}

fn source_region(node: &Node, body: &Body, results: &[Loc]) -> Done<RegionSpec> {
    let mut inner = mdl_ir::build::Builder::default();
    let id = inner.push(node.op.clone(), &[], node.span)?;
    let inner = inner.finish(vec![id]);
    let _ = body;
    region_spec(&inner, &[], &[], results)
}

fn gather(body: &Body, node: &Node, axis: Symbol) -> Done<GatherSpec> {
    let table = body.ty(node.args[0]);
    if table.axes[0].name != axis {
        return Err("a table is gathered along its outermost axis".into());
    }
    Ok(GatherSpec {
        rows: word(body.ty(node.args[1]).elements())?,
        vocab: word(table.axes[0].size)?,
        width: word(table.elements() / table.axes[0].size)?,
        elem: elem(table.dtype),
    })
}

fn scatter(body: &Body, node: &Node) -> Done<(ScatterAddSpec, bool)> {
    let table = body.ty(node.results[0]);
    let accumulate = node.args.len() == 3;
    let spec = ScatterAddSpec {
        rows: word(body.ty(node.args[0]).elements())?,
        vocab: word(table.axes[0].size)?,
        width: word(table.elements() / table.axes[0].size)?,
        accumulate,
        elem: elem(body.ty(node.args[1]).dtype),
        out: elem(table.dtype),
    };
    Ok((spec, accumulate))
}

fn cache_write(body: &Body, node: &Node, axis: Symbol) -> Done<CacheWriteSpec> {
    let (x, cache) = (body.ty(node.args[0]), body.ty(node.args[1]));
    let at = cache.index_of(axis).ok_or("a cache has its axis")?;
    let product = |axes: &[Axis]| axes.iter().map(|a| a.size).product::<u64>();
    Ok(CacheWriteSpec {
        batch: word(product(&cache.axes[..at]))?,
        t: word(x.axes[at].size)?,
        capacity: word(cache.axes[at].size)?,
        width: word(product(&cache.axes[at + 1..]))?,
        elem: elem(cache.dtype),
    })
}
