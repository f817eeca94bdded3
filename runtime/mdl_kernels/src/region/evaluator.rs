//! A region's meaning in f64, index by index, for tests.

use mdl_ir::kernel::{Instr, InstrOp, RegionSpec, View, Walk};

struct Evaluator<'a> {
    spec: &'a RegionSpec,
    inputs: Vec<Vec<f64>>,
    outputs: Vec<Vec<f64>>,
    rows: Vec<f64>,
}

impl Evaluator<'_> {
    fn at(view: &View, index: &[usize]) -> usize {
        let steps = index.iter().zip(&view.strides).map(|(i, &stride)| i * stride as usize);
        view.offset as usize + steps.sum::<usize>()
    }

    fn run(&mut self, program: &[Instr], registers: &mut Vec<f64>, index: &[usize]) {
        registers.resize(64, 0.0);
        for instr in program {
            let (a, b) = (registers[instr.a as usize], registers[instr.b as usize]);
            let c = registers[instr.c as usize];
            let value = match instr.op {
                InstrOp::Const(x) => f64::from(x),
                InstrOp::Load(i) => {
                    let view = &self.spec.inputs[i as usize];
                    self.inputs[i as usize][Self::at(view, index)]
                }
                InstrOp::Index(dim) => index[dim as usize] as f64,
                InstrOp::Row(r) => self.rows[r as usize],
                InstrOp::Store(o) => {
                    let view = &self.spec.outputs[o as usize];
                    self.outputs[o as usize][Self::at(view, index)] = a;
                    continue;
                }
                InstrOp::Sum => {
                    self.rows[instr.dst as usize] += a;
                    continue;
                }
                InstrOp::Max => {
                    let old = self.rows[instr.dst as usize];
                    self.rows[instr.dst as usize] = old.max(a);
                    continue;
                }
                InstrOp::Neg => -a,
                InstrOp::Exp => a.exp(),
                InstrOp::Rsqrt => 1.0 / a.sqrt(),
                InstrOp::Sigmoid => 1.0 / (1.0 + (-a).exp()),
                InstrOp::Sin => a.sin(),
                InstrOp::Cos => a.cos(),
                InstrOp::Add => a + b,
                InstrOp::Sub => a - b,
                InstrOp::Mul => a * b,
                InstrOp::Div => a / b,
                InstrOp::Lt => f64::from(a < b),
                InstrOp::Select => {
                    if a != 0.0 {
                        b
                    } else {
                        c
                    }
                }
                other => panic!("{other:?} is not used by the tests"),
            };
            registers[instr.dst as usize] = value;
        }
    }

    fn start_reductions(&mut self, program: &[Instr]) {
        for instr in program {
            match instr.op {
                InstrOp::Sum => self.rows[instr.dst as usize] = 0.0,
                InstrOp::Max => self.rows[instr.dst as usize] = f64::NEG_INFINITY,
                _ => {}
            }
        }
    }

    fn row_program(&mut self, program: &[Instr], index: &[usize]) {
        let mut rows = std::mem::take(&mut self.rows);
        self.run(program, &mut rows, index);
        self.rows = rows;
    }
}

fn indices(dims: &[u32]) -> Vec<Vec<usize>> {
    dims.iter().fold(vec![vec![]], |all, &size| {
        let grow = |i: &Vec<usize>| {
            (0..size as usize).map(|j| [i.clone(), vec![j]].concat()).collect::<Vec<_>>()
        };
        all.iter().flat_map(grow).collect()
    })
}

/// What the outputs hold afterwards.
pub(crate) fn evaluate(
    spec: &RegionSpec,
    inputs: Vec<Vec<f64>>,
    outputs: Vec<Vec<f64>>,
) -> Vec<Vec<f64>> {
    let mut evaluator = Evaluator { spec, inputs, outputs, rows: vec![0.0; 64] };
    // A scalar is a row of one column.
    let dims: &[u32] = if spec.dims.is_empty() { &[1] } else { &spec.dims };
    let last = dims.len() - 1;
    match spec.walk {
        Walk::Rows => {
            for row in indices(&dims[..last]) {
                for phase in &spec.phases {
                    evaluator.row_program(&phase.row, &[row.clone(), vec![0]].concat());
                    evaluator.start_reductions(&phase.cols);
                    for column in 0..dims[last] as usize {
                        let index = [row.clone(), vec![column]].concat();
                        evaluator.run(&phase.cols, &mut Vec::new(), &index);
                    }
                }
            }
        }
        Walk::Columns { reduced } => {
            let outer = last - reduced as usize;
            for first in indices(&dims[..outer]) {
                for column in 0..dims[last] as usize {
                    let zeros = vec![0; reduced as usize];
                    let place = [first.clone(), zeros, vec![column]].concat();
                    evaluator.row_program(&spec.phases[0].row, &place);
                    evaluator.start_reductions(&spec.phases[0].cols);
                    for middle in indices(&dims[outer..last]) {
                        let index = [first.clone(), middle, vec![column]].concat();
                        evaluator.run(&spec.phases[0].cols, &mut Vec::new(), &index);
                    }
                    evaluator.row_program(&spec.phases[1].row, &place);
                }
            }
        }
    }
    evaluator.outputs
}
