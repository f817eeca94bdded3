//! A region as a kernel's comptime description: merged dims, views and programs.

use crate::program::Program;
use mdl_ir::kernel::{Elem, Instr, InstrOp, RegionSpec, View, Walk};

/// Columns of one piece when a row is split over units.
const BLOCK_COLUMNS: usize = 4096;
/// A region with fewer rows than this per unit has its rows split, if it reduces nothing.
const ROWS_PER_UNIT: usize = 4;
/// Vectors of columns that are reduced side by side at most: their sums are in registers.
const STRIP: usize = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reduction {
    Sum,
    Max,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PlanView {
    pub elem: Elem,
    pub offset: usize,
    pub strides: Vec<usize>,
}

impl PlanView {
    /// Stride of the walked dim.
    pub(crate) fn inner(&self) -> usize {
        self.strides[self.strides.len() - 1]
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PlanPhase {
    pub row: Program,
    pub cols: Program,
}

/// What the kernel is specialised by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Plan {
    pub dims: Vec<usize>,
    /// The dim of `dims` that each dim of the spec went to, for `Index`.
    pub place: Vec<usize>,
    /// Dims before the last that are reduced (`Walk::Columns`).
    pub reduced: usize,
    pub inputs: Vec<PlanView>,
    pub outputs: Vec<PlanView>,
    pub phases: Vec<PlanPhase>,
    pub row_registers: usize,
    /// Columns of one work item; all of them unless rows are split.
    pub block: usize,
    /// Vectors of columns that a unit reduces side by side (`Walk::Columns`).
    pub strip: usize,
}

impl Plan {
    pub(crate) fn new(spec: &RegionSpec, units: usize, lanes: usize) -> Plan {
        let view = |view: &View| PlanView {
            elem: view.elem,
            offset: view.offset as usize,
            strides: view.strides.iter().map(|&stride| stride as usize).collect(),
        };
        let phases = spec.phases.iter().map(|phase| PlanPhase {
            row: Program(phase.row.clone()),
            cols: Program(phase.cols.clone()),
        });
        let mut plan = Plan {
            dims: spec.dims.iter().map(|&size| size as usize).collect(),
            place: (0..spec.dims.len()).collect(),
            reduced: match spec.walk {
                Walk::Rows => 0,
                Walk::Columns { reduced } => reduced as usize,
            },
            inputs: spec.inputs.iter().map(view).collect(),
            outputs: spec.outputs.iter().map(view).collect(),
            phases: phases.collect(),
            row_registers: 0,
            block: 0,
            strip: 0,
        };
        if plan.dims.is_empty() {
            // A scalar is a row of one column.
            plan.dims.push(1);
            plan.inputs.iter_mut().chain(&mut plan.outputs).for_each(|view| view.strides.push(0));
        }
        plan.row_registers = plan.count_row_registers();
        plan.merge(matches!(spec.walk, Walk::Rows));
        plan.choose_block(units, lanes);
        plan.choose_strip(units, lanes);
        plan
    }

    fn instrs(&self) -> impl Iterator<Item = &Instr> {
        self.phases.iter().flat_map(|phase| phase.row.0.iter().chain(&phase.cols.0))
    }

    fn count_row_registers(&self) -> usize {
        let mut highest = 0;
        for phase in &self.phases {
            for instr in &phase.row.0 {
                highest = highest.max(instr.dst);
            }
            for instr in &phase.cols.0 {
                match instr.op {
                    InstrOp::Row(register) => highest = highest.max(register),
                    InstrOp::Sum | InstrOp::Max => highest = highest.max(instr.dst),
                    _ => {}
                }
            }
        }
        usize::from(highest) + 1
    }

    pub(crate) fn reduces(&self) -> bool {
        self.instrs().any(|instr| matches!(instr.op, InstrOp::Sum | InstrOp::Max))
    }

    fn uses_rows(&self) -> bool {
        self.phases.iter().any(|phase| !phase.row.0.is_empty())
    }

    /// Merges neighbouring dims that all views walk as one.
    fn merge(&mut self, rows: bool) {
        let mut outer = self.dims.len().saturating_sub(1);
        while outer > 0 {
            outer -= 1;
            let inner = outer + 1;
            let last = inner == self.dims.len() - 1;
            let whole = !self.reduces() && !self.uses_rows();
            let allowed = if rows {
                !last || whole
            } else {
                // Neither across the border of the reduced dims nor into the columns.
                let border = self.dims.len() - 1 - self.reduced;
                !last && inner != border
            };
            if allowed && self.mergeable(outer) {
                self.merge_at(outer);
            }
        }
    }

    fn mergeable(&self, outer: usize) -> bool {
        let inner = outer + 1;
        let indexed = self.instrs().any(|instr| match instr.op {
            InstrOp::Index(dim) => {
                let place = self.place[usize::from(dim)];
                place == outer || place == inner
            }
            _ => false,
        });
        let size = self.dims[inner];
        let as_one = |view: &PlanView| {
            let unit = self.dims[outer] == 1 || size == 1;
            unit || view.strides[outer] == view.strides[inner] * size
        };
        !indexed && self.inputs.iter().chain(&self.outputs).all(as_one)
    }

    fn merge_at(&mut self, outer: usize) {
        let inner = outer + 1;
        if outer >= self.dims.len() - 1 - self.reduced {
            self.reduced -= 1;
        }
        let unneeded = if self.dims[inner] == 1 { inner } else { outer };
        self.dims[outer] *= self.dims[inner];
        self.dims.remove(inner);
        for view in self.inputs.iter_mut().chain(&mut self.outputs) {
            view.strides.remove(unneeded);
        }
        for place in &mut self.place {
            if *place >= inner {
                *place -= 1;
            }
        }
    }

    fn choose_block(&mut self, units: usize, lanes: usize) {
        self.block = self.columns();
        let few = self.rows() < units.saturating_mul(ROWS_PER_UNIT);
        let stores = self.phases.iter().any(|phase| phase.row.stores());
        if few && !self.reduces() && !stores {
            self.block = BLOCK_COLUMNS.next_multiple_of(lanes);
        }
    }

    /// Strips as equal as can be, of what a unit has of a row.
    fn choose_strip(&mut self, units: usize, lanes: usize) {
        let vectors = (self.columns() / lanes).div_ceil(units.div_ceil(self.outer())).max(1);
        self.strip = vectors.div_ceil(vectors.div_ceil(STRIP));
    }

    pub(crate) fn columns(&self) -> usize {
        self.dims[self.dims.len() - 1]
    }

    /// The product of the dims before the last.
    pub(crate) fn rows(&self) -> usize {
        self.dims[..self.dims.len() - 1].iter().product()
    }

    /// The product of the dims before the reduced ones.
    pub(crate) fn outer(&self) -> usize {
        self.dims[..self.dims.len() - 1 - self.reduced].iter().product()
    }

    /// The row registers that a phase reduces into.
    pub(crate) fn reductions(&self, phase: usize) -> Vec<(usize, Reduction)> {
        let reduction = |instr: &Instr| match instr.op {
            InstrOp::Sum => Some((usize::from(instr.dst), Reduction::Sum)),
            InstrOp::Max => Some((usize::from(instr.dst), Reduction::Max)),
            _ => None,
        };
        self.phases[phase].cols.0.iter().filter_map(reduction).collect()
    }
}
