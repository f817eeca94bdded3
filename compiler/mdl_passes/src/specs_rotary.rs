//! The epilogue of a contraction that turns pairs of its columns: `rotation` says which.

use crate::layout::{Loc, collapsed, word};
use crate::region::{elem, instr, operation, same_value};
use mdl_ir::graph::{Body, Node, ValueId};
use mdl_ir::kernel::{Instr, InstrOp, View};
use mdl_ir::op::Op;
use mdl_ir::tensor_type::{Axis, Type};
use std::collections::HashMap;

/// Columns of a head, where these nodes after a contraction cut its result into halves.
pub fn head(body: &Body, after: &[&Node]) -> Option<u32> {
    let cut = |n: &&Node| match &n.op {
        Op::Slice { axis, .. } => body.ty(n.args[0]).axis(*axis).map(|a| a.size as u32),
        _ => None,
    };
    after.iter().find_map(cut)
}

/// Writes the program; values of whole heads have two registers, of their halves.
pub struct RotaryWriter<'a> {
    body: &'a Body,
    locs: &'a [Loc],
    order: &'a mut Vec<usize>,
    /// Axes of the rows, and those of the columns but the last.
    rows: Vec<Axis>,
    heads: Vec<Axis>,
    head: u32,
    pub inputs: Vec<View>,
    pub code: Vec<Instr>,
    registers: HashMap<ValueId, Vec<u16>>,
    next: u16,
}

impl<'a> RotaryWriter<'a> {
    /// For a contraction whose result, of these axes, is `sum`.
    pub fn new(
        body: &'a Body,
        locs: &'a [Loc],
        order: &'a mut Vec<usize>,
        sum: ValueId,
        [rows, columns]: [Vec<Axis>; 2],
    ) -> Self {
        let (last, heads) = columns.split_last().expect("invariant: pairs are of a head");
        RotaryWriter {
            body,
            locs,
            order,
            rows,
            heads: heads.to_vec(),
            head: last.size as u32,
            inputs: Vec::new(),
            code: Vec::new(),
            registers: HashMap::from([(sum, vec![0, 1])]),
            next: 2,
        }
    }

    pub fn write(&mut self, nodes: &[&Node]) -> Result<(), String> {
        for node in nodes {
            let result = node.results[0];
            let registers = match &node.op {
                Op::Slice { start, .. } => vec![self.known(node.args[0])?[usize::from(*start > 0)]],
                Op::Concat { .. } => {
                    vec![self.known(node.args[0])?[0], self.known(node.args[1])?[0]]
                }
                _ => self.elementwise(node)?,
            };
            self.registers.insert(result, registers);
        }
        let outputs = self.body.outputs.iter().enumerate();
        for (i, output) in outputs {
            for (h, register) in self.known(*output)?.into_iter().enumerate() {
                let store = InstrOp::Store((2 * i + h) as u16);
                self.code.push(instr(store, 0, [register, 0, 0]));
            }
        }
        Ok(())
    }

    fn known(&self, value: ValueId) -> Result<Vec<u16>, String> {
        let known = self.registers.get(&value).cloned();
        known.ok_or_else(|| format!("{} is made before it is turned", self.body.name(value)))
    }

    fn elementwise(&mut self, node: &Node) -> Result<Vec<u16>, String> {
        for a in &node.args {
            if !self.registers.contains_key(a) {
                let read = self.read(*a)?;
                self.registers.insert(*a, read);
            }
        }
        let args: Vec<Vec<u16>> =
            node.args.iter().map(|a| self.known(*a)).collect::<Result<_, _>>()?;
        if same_value(self.body, node) {
            return Ok(args[0].clone());
        }
        let op = operation(&node.op)?;
        let count = args.iter().map(Vec::len).max().unwrap_or(1);
        let mut made = Vec::new();
        for half in 0..count {
            let mut of = [0; 3];
            for (slot, registers) in of.iter_mut().zip(&args) {
                *slot = registers[half.min(registers.len() - 1)];
            }
            made.push(self.put(op, of));
        }
        Ok(made)
    }

    fn put(&mut self, op: InstrOp, args: [u16; 3]) -> u16 {
        self.code.push(instr(op, self.next, args));
        self.next += 1;
        self.next - 1
    }

    /// A constant, or an input beside the one half that it is of, or beside both.
    fn read(&mut self, id: ValueId) -> Result<Vec<u16>, String> {
        let made = self.body.nodes.iter().find(|n| n.results.contains(&id));
        if let Some(Op::Const(c)) = made.map(|n| &n.op) {
            return Ok(vec![self.put(InstrOp::Const(*c as f32), [0; 3])]);
        }
        let i = self.body.inputs.iter().position(|x| *x == id).ok_or("made or taken in")?;
        let (ty, loc) = (self.body.ty(id), &self.locs[i]);
        let last = self.of_a_head(ty);
        let mut strides: Vec<u64> = self.rows.iter().map(|a| loc.stride(ty, a.name)).collect();
        let along: Vec<u64> = self.heads.iter().map(|a| loc.stride(ty, a.name)).collect();
        let heads = collapsed(&self.heads, &along);
        strides.push(heads.ok_or_else(|| format!("{ty} does not lie along the heads"))?);
        strides.push(last.map_or(0, |a| loc.stride(ty, a.name)));
        let whole = last.is_some_and(|a| a.size == u64::from(self.head));
        let strides = strides.into_iter().map(word).collect::<Result<_, _>>()?;
        self.inputs.push(View { elem: elem(ty.dtype), offset: word(loc.offset)?, strides });
        self.order.push(i);
        let first = 2 * (self.inputs.len() - 1);
        let halves = first..first + 1 + usize::from(whole);
        Ok(halves.map(|n| self.put(InstrOp::Load(n as u16), [0; 3])).collect())
    }

    /// The axis of this type that is neither of the rows nor of the heads.
    fn of_a_head<'t>(&self, ty: &'t Type) -> Option<&'t Axis> {
        let others = |a: &&Axis| !self.rows.contains(a) && !self.heads.contains(a);
        ty.axes.iter().find(others)
    }
}
