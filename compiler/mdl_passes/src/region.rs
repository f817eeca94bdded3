//! A fused region's body as the register program of its kernel.
//!
//! Values without the walked axes are row values. A row value that depends on a reduction is known
//! only after the walk that makes it, so values have levels: the number of walks before them. Phase
//! p of the kernel first works out the row values of level p, then walks the row for the reductions
//! and the stored values of that level.

use crate::layout::{Loc, collapsed, stride_word, word};
use mdl_ir::graph::{Body, Node, ValueId};
use mdl_ir::kernel::{Elem, Instr, InstrOp, Phase, RegionSpec, View, Walk};
use mdl_ir::op::{Binary, Op, Reduction, Unary};
use mdl_ir::tensor_type::{Axis, DType, Type};
use mdl_symbol::Symbol;
use std::collections::HashMap;

/// The region's iteration space.
#[derive(Debug)]
struct Space {
    /// Dims in the kernel's order; the last one stands for all walked axes.
    dims: Vec<Vec<Axis>>,
    walk: Walk,
}

impl Space {
    fn of(body: &Body, walked: &[Symbol]) -> Space {
        let reduce = body.nodes.iter().find(|n| matches!(n.op, Op::Reduce { .. }));
        let ty = match reduce {
            Some(node) => body.ty(node.args[0]).clone(),
            None => {
                let made = body.nodes.iter().flat_map(|n| &n.results).map(|r| body.ty(*r));
                made.max_by_key(|t| t.axes.len()).expect("a region makes something").clone()
            }
        };
        let tail = ty.axes.len() - walked.len().min(ty.axes.len());
        let columns =
            !walked.is_empty() && !ty.axes[tail..].iter().all(|a| walked.contains(&a.name));
        if columns {
            let (reduced, kept): (Vec<Axis>, Vec<Axis>) =
                ty.axes.into_iter().partition(|a| walked.contains(&a.name));
            let (last, outer) = kept.split_last().expect("a column sum keeps an axis");
            let walk = Walk::Columns { reduced: reduced.len() as u32 };
            let dims = outer.iter().chain(&reduced).chain([last]);
            return Space { dims: dims.map(|a| vec![*a]).collect(), walk };
        }
        let split = if walked.is_empty() { ty.axes.len().saturating_sub(1) } else { tail };
        let mut dims: Vec<Vec<Axis>> = ty.axes[..split].iter().map(|a| vec![*a]).collect();
        dims.push(ty.axes[split..].to_vec());
        Space { dims, walk: Walk::Rows }
    }

    fn sizes(&self) -> Result<Vec<u32>, String> {
        self.dims.iter().map(|axes| word(axes.iter().map(|a| a.size).product())).collect()
    }

    fn is_row(&self, ty: &Type) -> bool {
        let walked = self.dims.last().expect("a space has a walked dim");
        walked.iter().all(|a| !ty.has(a.name))
    }

    fn view(&self, ty: &Type, loc: &Loc) -> Result<View, String> {
        let mut strides = Vec::new();
        for axes in &self.dims {
            let each: Vec<u64> = axes.iter().map(|a| loc.stride(ty, a.name)).collect();
            let stride = collapsed(axes, &each)
                .ok_or_else(|| format!("{ty} cannot be walked as one axis"))?;
            strides.push(stride_word(axes.iter().map(|a| a.size).product(), stride)?);
        }
        Ok(View { elem: elem(ty.dtype), offset: word(loc.offset)?, strides })
    }
}

pub fn elem(dtype: DType) -> Elem {
    match dtype {
        DType::I32 => Elem::I32,
        DType::Bf16 => Elem::Bf16,
        DType::F32 | DType::Bool => Elem::F32,
    }
}

struct Writer<'a> {
    body: &'a Body,
    producers: Vec<Option<usize>>,
    space: Space,
    /// Register of each row value.
    rows: HashMap<ValueId, u16>,
    next_row: u16,
    levels: HashMap<ValueId, usize>,
}

/// The spec of a region whose inputs and outputs lie at these places.
pub fn region_spec(
    body: &Body,
    walked: &[Symbol],
    inputs: &[Loc],
    outputs: &[Loc],
) -> Result<RegionSpec, String> {
    let space = Space::of(body, walked);
    let view = |ids: &[ValueId], locs: &[Loc]| -> Result<Vec<View>, String> {
        ids.iter().zip(locs).map(|(id, loc)| space.view(body.ty(*id), loc)).collect()
    };
    let (inputs, outputs) = (view(&body.inputs, inputs)?, view(&body.outputs, outputs)?);
    let (dims, walk) = (space.sizes()?, space.walk);
    let mut w = Writer {
        body,
        producers: body.producers(),
        space,
        rows: HashMap::new(),
        next_row: 0,
        levels: HashMap::new(),
    };
    let phases = match walk {
        Walk::Rows => w.rows()?,
        Walk::Columns { .. } => w.columns()?,
    };
    Ok(RegionSpec { dims, walk, inputs, outputs, phases })
}

impl Writer<'_> {
    fn node(&self, id: ValueId) -> Option<&Node> {
        self.producers[id.index()].map(|n| &self.body.nodes[n])
    }

    /// Walks before this value is known.
    fn level(&mut self, id: ValueId) -> usize {
        if let Some(level) = self.levels.get(&id) {
            return *level;
        }
        let (args, more) = match self.node(id) {
            None => (Vec::new(), 0),
            Some(n) => (n.args.clone(), usize::from(matches!(n.op, Op::Reduce { .. }))),
        };
        let below = args.into_iter().map(|a| self.level(a)).max().unwrap_or(0);
        self.levels.insert(id, below + more);
        below + more
    }

    fn new_row(&mut self) -> u16 {
        self.next_row += 1;
        self.next_row - 1
    }

    fn rows(&mut self) -> Result<Vec<Phase>, String> {
        let made: Vec<ValueId> =
            self.body.nodes.iter().flat_map(|n| n.results.iter().copied()).collect();
        let last = made.iter().map(|id| self.level(*id)).max().unwrap_or(0);
        let mut phases = Vec::new();
        for p in 0..=last {
            let mut phase = Phase::default();
            self.row_part(p, &mut phase)?;
            self.walk_part(p, &made, &mut phase)?;
            phases.push(phase);
        }
        Ok(phases)
    }

    /// Row values of this level, and the stores of those that leave the region.
    fn row_part(&mut self, p: usize, phase: &mut Phase) -> Result<(), String> {
        for id in self.body.outputs.clone() {
            let ty = self.body.ty(id).clone();
            if self.space.is_row(&ty) && self.level(id) == p && !self.whole(&ty) {
                let a = self.row_value(id, &mut phase.row)?;
                for (i, o) in self.body.outputs.iter().enumerate() {
                    if *o == id {
                        phase.row.push(instr(InstrOp::Store(i as u16), 0, [a, 0, 0]));
                    }
                }
            }
        }
        Ok(())
    }

    /// A value of the whole space is walked even where the walked dim has no axis (a scalar
    /// region).
    fn whole(&self, ty: &Type) -> bool {
        self.space.dims.last().is_some_and(Vec::is_empty) && ty.axes.is_empty()
    }

    fn walk_part(&mut self, p: usize, made: &[ValueId], phase: &mut Phase) -> Result<(), String> {
        let mut regs: HashMap<ValueId, u16> = HashMap::new();
        for id in made {
            let Some(node) = self.node(*id).cloned() else {
                continue;
            };
            if let Op::Reduce { kind, .. } = node.op
                && self.level(node.args[0]) == p
            {
                let a = self.col_value(node.args[0], &mut regs, phase)?;
                let dst = self.new_row();
                let op = match kind {
                    Reduction::Sum => InstrOp::Sum,
                    Reduction::Max => InstrOp::Max,
                };
                phase.cols.push(instr(op, dst, [a, 0, 0]));
                self.rows.insert(*id, dst);
            }
        }
        for (i, id) in self.body.outputs.clone().into_iter().enumerate() {
            let ty = self.body.ty(id).clone();
            let walked = !self.space.is_row(&ty) || self.whole(&ty);
            if walked && self.level(id) == p {
                let a = self.col_value(id, &mut regs, phase)?;
                phase.cols.push(instr(InstrOp::Store(i as u16), 0, [a, 0, 0]));
            }
        }
        Ok(())
    }

    /// Register of a row value, worked out in the row part.
    fn row_value(&mut self, id: ValueId, out: &mut Vec<Instr>) -> Result<u16, String> {
        if let Some(reg) = self.rows.get(&id) {
            return Ok(*reg);
        }
        if let Some(i) = self.body.inputs.iter().position(|x| *x == id) {
            let dst = self.new_row();
            out.push(instr(InstrOp::Load(i as u16), dst, [0; 3]));
            self.rows.insert(id, dst);
            return Ok(dst);
        }
        let node = self.node(id).cloned().ok_or("a value is made or comes in")?;
        let mut args = [0; 3];
        for (slot, a) in args.iter_mut().zip(&node.args) {
            *slot = self.row_value(*a, out)?;
        }
        if same_value(self.body, &node) {
            self.rows.insert(id, args[0]);
            return Ok(args[0]);
        }
        let dst = self.new_row();
        out.push(instr(self.operation(&node.op)?, dst, args));
        self.rows.insert(id, dst);
        Ok(dst)
    }

    /// Register of a value in the walk.
    fn col_value(
        &mut self,
        id: ValueId,
        regs: &mut HashMap<ValueId, u16>,
        phase: &mut Phase,
    ) -> Result<u16, String> {
        if let Some(reg) = regs.get(&id) {
            return Ok(*reg);
        }
        let ty = self.body.ty(id).clone();
        let node = self.node(id).cloned();
        let constant = matches!(&node, Some(Node { op: Op::Const(_), .. }));
        let row = self.space.walk == Walk::Rows && self.space.is_row(&ty) && !constant;
        if row && !self.whole(&ty) {
            let from = self.row_value(id, &mut phase.row)?;
            return Ok(self.put(id, InstrOp::Row(from), [0; 3], regs, phase));
        }
        if let Some(i) = self.body.inputs.iter().position(|x| *x == id) {
            return Ok(self.put(id, InstrOp::Load(i as u16), [0; 3], regs, phase));
        }
        let node = node.ok_or("a value is made or comes in")?;
        let mut args = [0; 3];
        for (slot, a) in args.iter_mut().zip(&node.args) {
            *slot = self.col_value(*a, regs, phase)?;
        }
        if same_value(self.body, &node) {
            regs.insert(id, args[0]);
            return Ok(args[0]);
        }
        let op = self.operation(&node.op)?;
        Ok(self.put(id, op, args, regs, phase))
    }

    fn put(
        &self,
        id: ValueId,
        op: InstrOp,
        args: [u16; 3],
        regs: &mut HashMap<ValueId, u16>,
        phase: &mut Phase,
    ) -> u16 {
        let stores = |i: &&Instr| !matches!(i.op, InstrOp::Store(_) | InstrOp::Sum | InstrOp::Max);
        let dst = phase.cols.iter().filter(stores).count() as u16;
        phase.cols.push(instr(op, dst, args));
        regs.insert(id, dst);
        dst
    }

    fn columns(&mut self) -> Result<Vec<Phase>, String> {
        let mut walk = Phase::default();
        let mut finish = Phase::default();
        let mut regs = HashMap::new();
        for node in &self.body.nodes {
            let Op::Reduce { kind, .. } = &node.op else {
                continue;
            };
            let a = self.col_value(node.args[0], &mut regs, &mut walk)?;
            let dst = self.new_row();
            let op = match kind {
                Reduction::Sum => InstrOp::Sum,
                Reduction::Max => InstrOp::Max,
            };
            walk.cols.push(instr(op, dst, [a, 0, 0]));
            // A sum that is rounded leaves as what comes of that.
            let leaves = |o: &ValueId| {
                let rounded = self.node(*o).is_some_and(|n| same_value(self.body, n));
                let made = if rounded { self.node(*o).map(|n| n.args[0]) } else { Some(*o) };
                made == Some(node.results[0])
            };
            let out = self.body.outputs.iter().position(leaves);
            let out = out.ok_or("a column sum leaves its region")?;
            finish.row.push(instr(InstrOp::Store(out as u16), 0, [dst, 0, 0]));
        }
        Ok(vec![walk, finish])
    }

    fn operation(&self, op: &Op) -> Result<InstrOp, String> {
        if let Op::Position(axis) = op {
            let dim = self.space.dims.iter().position(|d| d.contains(axis));
            let alone = dim.filter(|d| self.space.dims[*d].len() == 1);
            let dim = alone.ok_or("a position along an axis that is walked with others")?;
            return Ok(InstrOp::Index(dim as u16));
        }
        operation(op)
    }
}

/// Does this only change how a value is seen, as far as the body knows? What is rounded and then
/// read by nobody here is rounded by being stored.
pub fn same_value(body: &Body, node: &Node) -> bool {
    match &node.op {
        Op::Cast(DType::Bf16) => !body.nodes.iter().any(|n| n.args.contains(&node.results[0])),
        Op::Cast(_) | Op::StopGradient | Op::Broadcast { .. } | Op::Reorder { .. } => true,
        _ => false,
    }
}

pub fn instr(op: InstrOp, dst: u16, [a, b, c]: [u16; 3]) -> Instr {
    Instr { op, dst, a, b, c }
}

/// The instruction of an elementwise operation or a constant.
pub fn operation(op: &Op) -> Result<InstrOp, String> {
    Ok(match op {
        Op::Const(c) => InstrOp::Const(*c as f32),
        Op::Unary(u) => match u {
            Unary::Neg => InstrOp::Neg,
            Unary::Exp => InstrOp::Exp,
            Unary::Log => InstrOp::Log,
            Unary::Sqrt => InstrOp::Sqrt,
            Unary::Rsqrt => InstrOp::Rsqrt,
            Unary::Sigmoid => InstrOp::Sigmoid,
            Unary::Sin => InstrOp::Sin,
            Unary::Cos => InstrOp::Cos,
            Unary::Tanh => InstrOp::Tanh,
            Unary::Abs => InstrOp::Abs,
            Unary::Not => InstrOp::Not,
        },
        Op::Binary(b) => match b {
            Binary::Add => InstrOp::Add,
            Binary::Sub => InstrOp::Sub,
            Binary::Mul => InstrOp::Mul,
            Binary::Div => InstrOp::Div,
            Binary::Min => InstrOp::Min,
            Binary::Max => InstrOp::MaxOf,
            Binary::Lt => InstrOp::Lt,
            Binary::Le => InstrOp::Le,
            Binary::Eq => InstrOp::Eq,
            Binary::And => InstrOp::And,
            Binary::Or => InstrOp::Or,
        },
        Op::Select => InstrOp::Select,
        Op::Cast(DType::Bf16) => InstrOp::Round,
        other => return Err(format!("`{}` has no place in a region", other.name())),
    })
}
