//! Contractions on a GPU: a cube for each tile of the result, whose operands pass through the
//! cube's shared memory, to tensor cores where there are some.
//!
//! What they compute is `contract`'s: 2·batch·m·n·k operations; a is read once for each tile of
//! columns, b once for each tile of rows, and c is written once. f32 is computed as f32: an operand
//! is the sum of two tf32, and three of their four products are added (Ootomo and Yokota 2022,
//! "Recovering single precision accuracy from Tensor Cores"). The sum runs over k in its order.

mod fma;
mod fragments;
mod stage;
mod tensor;

use super::{address_type, buffers, cubes};
use crate::contract_plan::{Axis, Preparation, View2, epilogue_views, merge, offset_of};
use crate::contract_rotary::{Rotary, turn};
use crate::contract_tile::run_epilogue;
use crate::device::{Device, Slice};
use crate::program::Program;
use crate::vector_io::load_one;
use cubecl::prelude::*;
use mdl_ir::kernel::{ContractSpec, Elem, Instr, InstrOp, Operand};
use stage::{Picked, Side};

/// A tile of the result, and how far along k its operands are staged at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tile {
    pub rows: usize,
    pub columns: usize,
    pub depth: usize,
    pub units: usize,
    /// Planes along the rows and along the columns of a tile.
    pub planes: (usize, usize),
}

/// Where there are tiles enough to fill a large GPU, and where there are not.
const LARGE: Tile = Tile { rows: 128, columns: 128, depth: 32, units: 256, planes: (2, 4) };
const SMALL: Tile = Tile { rows: 64, columns: 64, depth: 32, units: 128, planes: (2, 2) };
/// f32 takes twice the shared memory, and each product three times the work.
const LARGE_F32: Tile = Tile { depth: 16, ..LARGE };
const SMALL_F32: Tile = Tile { depth: 16, ..SMALL };
/// Without tensor cores units have four by four sums each.
const PLAIN: Tile = Tile { rows: 64, columns: 64, depth: 16, units: 256, planes: (1, 1) };
/// Large tiles from so many on.
const MANY: usize = 100;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Plan {
    pub a: Side,
    pub b: Side,
    pub batch: Vec<Axis>,
    pub batches: usize,
    pub rows: usize,
    pub columns: usize,
    pub depth: usize,
    pub outputs: Vec<Elem>,
    pub accumulate: bool,
    pub epilogue: Program,
    pub epilogue_views: Vec<View2>,
    pub rotary: Option<Rotary>,
    pub tile: Tile,
    pub grouping: Grouping,
    /// Groups, and rows that the order has.
    pub groups: usize,
    pub ordered: usize,
}

/// What is chosen by the group of a row; the numbers of the rows are then given in an order in
/// which groups follow each other, and behind them where each group begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Grouping {
    None,
    /// Rows of the result are multiplied with the matrix of their group.
    Rows,
    /// Each group has a result, a sum over its rows.
    Steps,
}

impl Plan {
    pub(crate) fn of(spec: &ContractSpec, accumulate: bool, device: &Device) -> Plan {
        let rotary = Rotary::of(spec, SMALL.columns);
        let n = spec.columns_in_runs(rotary.as_ref().map_or(1, |rotary| rotary.run as u32));
        let (m, n, k) = (merge(&spec.m, false), merge(&n, false), merge(&spec.k, true));
        let batch = merge(&spec.batch, true);
        let size = |axes: &[Axis]| axes.iter().map(|axis| axis.size).product::<usize>();
        let (rows, columns, depth, batches) = (size(&m), size(&n), size(&k), size(&batch));
        let halves = halves(spec);
        let tile = tile_of(rows, columns, batches, halves, device.tensor_cores());
        let prologue =
            |operand| Preparation::of(spec).filter(|prologue| prologue.operand == operand);
        let casts = device.has_pointer_casts();
        let mut epilogue = spec.epilogue.clone();
        if epilogue.is_empty() {
            epilogue.push(Instr { op: InstrOp::Store(0), dst: 0, a: 0, b: 0, c: 0 });
        }
        let side = |elem, rows: &[Axis], second, tile_rows, prologue: Option<Preparation>| {
            let parts = if halves || !device.tensor_cores() { 1 } else { 2 };
            let k = k.clone();
            let side = Side {
                elem,
                rows: rows.to_vec(),
                k,
                second,
                length: size(rows),
                depth,
                along_k: false,
                width: 1,
                tile: tile_rows,
                tile_depth: tile.depth,
                units: tile.units,
                parts,
                whole: size(rows).is_multiple_of(tile_rows) && depth.is_multiple_of(tile.depth),
                prologue,
                picked: Picked::None,
            };
            side.arranged(casts, &batch)
        };
        Plan {
            a: side(spec.a, &m, false, tile.rows, prologue(Operand::A)),
            b: side(spec.b, &n, true, tile.columns, prologue(Operand::B)),
            batches,
            rows,
            columns,
            depth,
            outputs: spec.outputs.clone(),
            accumulate,
            epilogue: Program(epilogue),
            epilogue_views: epilogue_views(spec),
            rotary,
            batch,
            tile,
            grouping: Grouping::None,
            groups: 0,
            ordered: 0,
        }
    }

    /// The contraction of one group becomes that of all of them. `shares` are the neighbouring rows
    /// that read one row of a, and of b.
    pub(crate) fn grouped(mut self, by: Grouping, groups: u32, shares: [u32; 2]) -> Plan {
        let [share_a, share_b] = shares.map(|share| share as usize);
        self.groups = groups as usize;
        self.grouping = by;
        self.a.whole = false;
        self.b.whole = false;
        match by {
            Grouping::None => {}
            Grouping::Rows => {
                self.ordered = self.rows;
                self.a.picked = Picked::Rows(share_a);
            }
            Grouping::Steps => {
                self.ordered = self.depth;
                self.batches = self.groups;
                self.a.picked = Picked::Steps(share_a);
                self.b.picked = Picked::Steps(share_b);
            }
        }
        self
    }

    /// Tiles of rows and of columns, at most.
    fn tiles(&self) -> (usize, usize) {
        let more = if self.grouping == Grouping::Rows { self.groups + 1 } else { 0 };
        let rows = self.rows.div_ceil(self.tile.rows) + more;
        (rows, self.columns.div_ceil(self.tile.columns))
    }

    fn whole(&self) -> bool {
        let rows = self.grouping != Grouping::Rows;
        rows && self.rows.is_multiple_of(self.tile.rows)
            && self.columns.is_multiple_of(self.tile.columns)
    }
}

/// Both operands are bf16, be it behind a prologue that rounds, so tensor cores take them as they
/// are.
fn halves(spec: &ContractSpec) -> bool {
    spec.a == Elem::Bf16 && spec.b == Elem::Bf16
}

fn tile_of(rows: usize, columns: usize, batches: usize, halves: bool, tensor: bool) -> Tile {
    let count = rows.div_ceil(LARGE.rows) * columns.div_ceil(LARGE.columns) * batches;
    match (tensor, count >= MANY, halves) {
        (false, ..) => PLAIN,
        (true, true, true) => LARGE,
        (true, true, false) => LARGE_F32,
        (true, false, true) => SMALL,
        (true, false, false) => SMALL_F32,
    }
}

/// The tile of a cube, and what of it there is.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Place {
    pub batch: usize,
    pub row: usize,
    pub column: usize,
    /// Where a group's rows begin in the order; rows and steps of k there are.
    pub start: usize,
    pub rows: usize,
    pub depth: usize,
    /// Elements of a and of b before those of the batch or the group.
    pub base_a: usize,
    pub base_b: usize,
}

/// Neighbouring cubes share columns, so that b stays in the cache while a goes by.
#[cube]
pub(crate) fn place_of(cube: usize, order: &[u32], #[comptime] plan: Plan) -> Place {
    let tiles_m = comptime!(plan.tiles().0);
    let tiles = comptime!(plan.tiles().0 * plan.tiles().1);
    let (batch, rest) = (cube / tiles, cube % tiles);
    let mut place = Place {
        batch,
        row: rest % tiles_m * comptime!(plan.tile.rows),
        column: rest / tiles_m * comptime!(plan.tile.columns),
        start: 0usize.runtime(),
        rows: comptime!(plan.rows).runtime(),
        depth: comptime!(plan.depth).runtime(),
        base_a: offset_of(batch, comptime!(plan.batch.clone()), false),
        base_b: offset_of(batch, comptime!(plan.batch.clone()), true),
    };
    if comptime!(plan.grouping == Grouping::Rows) {
        place_in_group(&mut place, rest % tiles_m, order, plan);
    } else if comptime!(plan.grouping == Grouping::Steps) {
        let starts = comptime!(plan.ordered);
        place.start = order[starts + batch] as usize;
        place.depth = order[starts + batch + 1] as usize - place.start;
    }
    place
}

/// The group of tile `tile` of rows: groups have as many as their rows need, the strays' sums are
/// of nothing, and tiles past the last one have no rows.
#[cube]
fn place_in_group(place: &mut Place, tile: usize, order: &[u32], #[comptime] plan: Plan) {
    let starts = comptime!(plan.ordered);
    let height = comptime!(plan.tile.rows);
    let mut before = 0usize.runtime();
    place.rows = 0usize.runtime();
    for group in 0..comptime!(plan.groups + 1) {
        let start = order[starts + group] as usize;
        let count = order[starts + group + 1] as usize - start;
        let here = count.div_ceil(height);
        if tile >= before && tile < before + here {
            place.start = start;
            place.rows = count;
            place.row = (tile - before) * height;
            place.base_b = group * comptime!(plan.columns * plan.depth);
            if group == comptime!(plan.groups) {
                place.base_b = 0usize.runtime();
                place.depth = 0usize.runtime();
            }
        }
        before += here;
    }
}

/// Hands one sum to the epilogue.
#[cube]
pub(crate) fn finish(
    inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    order: &[u32],
    place: &Place,
    r: usize,
    c: usize,
    sum: f32,
    #[comptime] plan: Plan,
) {
    let row = place.row + r;
    let column = place.column + c;
    if comptime!(plan.whole()) || row < place.rows && column < comptime!(plan.columns) {
        let mut to = place.batch * comptime!(plan.rows) + row;
        if comptime!(plan.grouping == Grouping::Rows) {
            to = order[place.start + row] as usize;
        }
        let row = to;
        let mut total = sum;
        if comptime!(plan.accumulate) {
            let out = outputs.index_mut(0usize);
            total += load_one(&*out, row * comptime!(plan.columns) + column, Elem::F32);
        }
        run_epilogue::<Const<1>>(
            inputs,
            outputs,
            row,
            column,
            Vector::new(total),
            comptime!(plan.epilogue.clone()),
            comptime!(plan.epilogue_views.clone()),
            comptime!(plan.outputs.clone()),
            comptime!(plan.columns),
        );
    }
}

/// Hands two sums that are a pair to the epilogue; the first is that of column `c` of the tile.
#[cube]
pub(crate) fn finish_pair(
    inputs: &Sequence<Box<[f32]>>,
    outputs: &mut Sequence<Box<[f32]>>,
    place: &Place,
    r: usize,
    c: usize,
    first: f32,
    second: f32,
    #[comptime] rotary: Rotary,
    #[comptime] plan: Plan,
) {
    let row = place.row + r;
    let column = place.column + c;
    if comptime!(plan.whole()) || row < place.rows && column < comptime!(plan.columns) {
        turn::<Const<1>>(
            inputs,
            outputs,
            row,
            column,
            Vector::new(first),
            Vector::new(second),
            rotary,
            comptime!(plan.epilogue.clone()),
            comptime!(plan.outputs.clone()),
            comptime!(plan.columns),
        );
    }
}

/// Buffers: a, b, prologue inputs, epilogue inputs, outputs. With `accumulate` the sum is added to
/// what the output holds.
pub(crate) fn launch(device: &Device, spec: &ContractSpec, accumulate: bool, args: &[Slice]) {
    assert!(!accumulate || spec.is_plain_sum(), "sums go to the output as they are");
    let plan = Plan::of(spec, accumulate, device);
    if plan.rows * plan.columns * plan.batches == 0 {
        return;
    }
    let (inputs, rest) = args[2..].split_at(spec.prologue_inputs().len());
    let (extra, rest) = rest.split_at(spec.epilogue_inputs.len());
    let outputs = &rest[..spec.outputs.len()];
    launch_plan(device, plan, &args[..2], (inputs, extra), outputs, &args[0]);
}

/// Without a grouping `order` is any buffer.
pub(crate) fn launch_plan(
    device: &Device,
    plan: Plan,
    operands: &[Slice],
    (inputs, extra): (&[Slice], &[Slice]),
    outputs: &[Slice],
    order: &Slice,
) {
    let (tiles_m, tiles_n) = plan.tiles();
    let grid = cubes((tiles_m * tiles_n * plan.batches) as u64);
    let dim = CubeDim::new_1d(plan.tile.units as u32);
    let address = address_type(device, &[operands, inputs, extra, outputs].concat());
    let (a, b) = (device.buffer(&operands[0]), device.buffer(&operands[1]));
    let [inputs, extra, outputs] = [inputs, extra, outputs].map(|list| buffers(device, list));
    let (wide_a, wide_b) = (plan.a.width, plan.b.width);
    let (client, order) = (device.client(), device.buffer(order));
    // SAFETY: the plan's sizes and strides are those of the buffers, as the spec promises.
    unsafe {
        match (device.tensor_cores(), plan.a.parts) {
            (false, _) => fma::contract_fma::launch_unchecked(
                client, grid, dim, address, a, b, inputs, extra, outputs, order, plan,
            ),
            (true, 1) => tensor::contract_tensor::launch_unchecked::<half::bf16>(
                client, grid, dim, address, wide_a, wide_b, a, b, inputs, extra, outputs, order,
                plan,
            ),
            (true, _) => tensor::contract_tensor::launch_unchecked::<cubecl::tf32>(
                client, grid, dim, address, wide_a, wide_b, a, b, inputs, extra, outputs, order,
                plan,
            ),
        }
    }
    device.launched();
}
