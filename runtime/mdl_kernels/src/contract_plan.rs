//! A contraction as the kernels see it: merged axes, block sizes and the division among units.
//!
//! All of it is comptime, so each distinct plan is one compiled kernel.

use crate::contract_rotary::Rotary;
use crate::device::Device;
use crate::prefetch::LINE_BYTES;
use crate::products::Products;
use crate::program::Program;
use crate::tiles::SIDE;
use crate::tuning::{Blocks, Rows};
use cubecl::intrinsic;
use cubecl::prelude::*;
use mdl_ir::kernel::{ContractBlocks, ContractSpec, Dim, Elem, Instr, InstrOp, Operand, View};

/// One axis of a group with its strides in the two tensors that carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Axis {
    pub size: usize,
    pub stride: usize,
    pub stride_b: usize,
}

/// How the tiles read a.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LayoutA {
    /// In place: k is contiguous, and a is f32 or whole pairs.
    Direct,
    /// Packed rows, each contiguous along k: k is contiguous, and there is a prologue or an element
    /// to convert.
    Rows,
    /// Packed panels of a tile's rows, k outermost: m is contiguous.
    Columns,
    /// The same panels, gathered element by element.
    Gathered,
}

/// How b is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LayoutB {
    /// n is contiguous: copied.
    Columns,
    /// k is contiguous: transposed.
    Rows,
    Gathered,
}

/// A two-dimensional view in a kernel's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct View2 {
    pub elem: Elem,
    pub offset: usize,
    pub row: usize,
    pub column: usize,
}

impl View2 {
    pub(crate) fn of(view: &View) -> View2 {
        assert_eq!(view.strides.len(), 2, "views of a contraction have two dims");
        View2 {
            elem: view.elem,
            offset: view.offset as usize,
            row: view.strides[0] as usize,
            column: view.strides[1] as usize,
        }
    }
}

/// A prologue in a kernel's identity: what an operand goes through when it is packed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Preparation {
    pub operand: Operand,
    pub program: Program,
    pub views: Vec<View2>,
    pub result: u16,
}

impl Preparation {
    pub(crate) fn of(spec: &ContractSpec) -> Option<Preparation> {
        let prologue = spec.prologue.as_ref()?;
        Some(Preparation {
            operand: prologue.operand,
            program: Program(prologue.program.clone()),
            views: prologue.inputs.iter().map(View2::of).collect(),
            result: prologue.result,
        })
    }

    /// The same for lanes along the operand's rows instead of k.
    pub(crate) fn across(mut self) -> Preparation {
        for view in &mut self.views {
            std::mem::swap(&mut view.row, &mut view.column);
        }
        self
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Plan {
    pub products: Products,
    pub a: Elem,
    pub b: Elem,
    pub outputs: Vec<Elem>,
    pub batch: Vec<Axis>,
    pub m: Vec<Axis>,
    pub n: Vec<Axis>,
    pub k: Vec<Axis>,
    pub batches: usize,
    pub rows: usize,
    pub columns: usize,
    pub depth: usize,
    /// Rows and vectors of a tile; its accumulators stay in registers.
    pub tile_rows: usize,
    pub tile_vectors: usize,
    pub width: usize,
    pub registers: usize,
    pub block_depth: usize,
    pub block_columns: usize,
    pub block_rows: usize,
    pub layout_a: LayoutA,
    pub layout_b: LayoutB,
    /// b is read in place, by `contract_skinny`.
    pub skinny: bool,
    pub split_batch: bool,
    pub units: usize,
    /// Units take pieces: this many panels of rows by one of `column_pieces` parts of the columns.
    pub piece_panels: usize,
    pub column_pieces: usize,
    /// There is no epilogue, and the output is f32: tiles go there as they are.
    pub direct: bool,
    /// With `direct`: add to what the output holds.
    pub accumulate: bool,
    pub partial_elements: usize,
    pub tile_elements: usize,
    pub packed_a_elements: usize,
    pub packed_b_elements: usize,
    pub prologue: Option<Preparation>,
    pub epilogue: Program,
    pub epilogue_views: Vec<View2>,
    /// Columns come in pairs; then `n` is in the order of the tiles.
    pub rotary: Option<Rotary>,
}

impl Plan {
    /// By multiply-adds of f32.
    pub(crate) fn of(spec: &ContractSpec, device: &Device) -> Plan {
        Plan::with(spec, device, Products::Widened)
    }

    /// The same with the tile that the model of the device has, whatever a tuner found.
    pub(crate) fn untuned(spec: &ContractSpec, device: &Device) -> Plan {
        let blocks = Blocks::model(device.as_cpu(), Products::Widened);
        Plan::in_blocks(spec, device, Products::Widened, |_| blocks)
    }

    /// By the fastest instructions that the device has for these elements.
    pub(crate) fn fastest(spec: &ContractSpec, device: &Device) -> Plan {
        let halves = spec.a == Elem::Bf16 && spec.b == Elem::Bf16;
        let plan = Plan::of(spec, device);
        if halves && !plan.skinny { Plan::with(spec, device, device.products()) } else { plan }
    }

    fn with(spec: &ContractSpec, device: &Device, products: Products) -> Plan {
        Plan::in_blocks(spec, device, products, |rows| device.blocks(products, rows))
    }

    fn in_blocks(
        spec: &ContractSpec,
        device: &Device,
        products: Products,
        wanted: impl Fn(Rows) -> Blocks,
    ) -> Plan {
        let units = device.units() as usize;
        let blocks = ContractBlocks::of(spec, device.units());
        let (m, k) = (merge(&spec.m, false), merge(&spec.k, true));
        let batch = merge(&spec.batch, true);
        let width = device.vector_width();
        let layout_a = layout_a(&m, &k, in_place(spec, products, [&batch, &m, &k]));
        let in_place = layout_a == LayoutA::Direct;
        let wanted = wanted(if in_place { Rows::InPlace } else { Rows::Packed });
        let Blocks { tile_rows, tile_vectors, .. } = wanted;
        let rotary = Rotary::of(spec, tile_vectors * width);
        let n = spec.columns_in_runs(rotary.as_ref().map_or(1, |rotary| rotary.run as u32));
        let n = merge(&n, false);
        let size = |axes: &[Axis]| axes.iter().map(|axis| axis.size).product::<usize>();
        let (rows, columns) = (size(&m), size(&n));
        let words = size(&k).div_ceil(products.steps_per_word());
        let fit = Fit::of(&blocks, spec, &wanted, words, (units, in_place));
        let panels_m = rows.div_ceil(tile_rows);
        let panels_n = columns.min(fit.columns).div_ceil(tile_vectors * width);
        let most = fit.rows / tile_rows;
        let (piece_panels, column_pieces) = pieces(units, panels_m, panels_n, most);
        let mut epilogue = spec.epilogue.clone();
        if epilogue.is_empty() {
            epilogue.push(Instr { op: InstrOp::Store(0), dst: 0, a: 0, b: 0, c: 0 });
        }
        Plan {
            products,
            a: spec.a,
            b: spec.b,
            outputs: spec.outputs.clone(),
            batches: size(&batch),
            depth: size(&k),
            layout_a,
            layout_b: layout_b(&n, &k),
            skinny: blocks.skinny && layout_b(&n, &k) != LayoutB::Gathered,
            split_batch: blocks.split_batch,
            block_depth: fit.words * products.steps_per_word(),
            block_columns: fit.columns,
            block_rows: fit.rows,
            direct: spec.is_plain_sum(),
            accumulate: false,
            partial_elements: blocks.partial_sums(spec) as usize,
            tile_elements: blocks.tile() as usize,
            packed_a_elements: fit.packed_a,
            packed_b_elements: fit.packed_b,
            prologue: Preparation::of(spec),
            epilogue: Program(epilogue),
            epilogue_views: epilogue_views(spec),
            rotary,
            batch,
            m,
            n,
            k,
            rows,
            columns,
            tile_rows,
            tile_vectors,
            width,
            registers: device.vector_registers(),
            units,
            piece_panels,
            column_pieces,
        }
    }

    pub(crate) fn epilogue_inputs(&self) -> usize {
        self.epilogue_views.len() + self.rotary.as_ref().map_or(0, |rotary| rotary.views.len())
    }

    pub(crate) fn prologue_inputs(&self) -> usize {
        self.prologue.as_ref().map_or(0, |prologue| prologue.views.len())
    }

    /// What this operand goes through.
    pub(crate) fn preparation(&self, operand: Operand) -> Option<Preparation> {
        self.prologue.clone().filter(|prologue| prologue.operand == operand)
    }

    /// Steps of k in one word of four bytes.
    pub(crate) fn steps_per_word(&self) -> usize {
        self.products.steps_per_word()
    }

    /// Elements of the workspace between packed rows of a, which one vector keeps apart.
    pub(crate) fn row_words(&self) -> usize {
        self.block_depth / self.steps_per_word() + 16
    }

    /// Elements of the workspace that a panel of a's rows takes.
    pub(crate) fn panel_words(&self) -> usize {
        self.tile_rows * self.block_depth / self.steps_per_word()
    }

    /// Panels of a that are packed together where m is contiguous: their rows share a line, which
    /// with strides of a power of two might be gone before the next panel needs it.
    pub(crate) fn panels_per_line(&self) -> usize {
        (LINE_BYTES / (self.tile_rows * self.a.bytes() as usize)).max(1)
    }

    /// Whether sums are taken from memory again.
    pub(crate) fn revisits(&self) -> bool {
        self.accumulate || self.depth > self.block_depth
    }

    /// Of all buffers but the workspace.
    pub(crate) fn elems(&self) -> impl Iterator<Item = Elem> + '_ {
        let before = self.prologue.iter().flat_map(|prologue| &prologue.views);
        let views = before.chain(&self.epilogue_views).map(|view| view.elem);
        let beside = self.rotary.iter().flat_map(|rotary| &rotary.views).map(|view| view.elem);
        let operands = [self.a, self.b].into_iter().chain(self.outputs.iter().copied());
        operands.chain(views).chain(beside)
    }

    /// Whether any tile is this many vectors wide; code is only emitted for those that occur.
    pub(crate) fn has_tiles_of(&self, vectors: usize) -> bool {
        let width = self.tile_vectors * self.width;
        let full = self.columns >= width && vectors == self.tile_vectors;
        full || (self.columns % width).div_ceil(self.width) == vectors
    }

    /// Whether sums from tile registers become bf16 and nothing else.
    pub(crate) fn only_rounds(&self) -> bool {
        let store = matches!(self.epilogue.0[..], [Instr { op: InstrOp::Store(0), a: 0, .. }]);
        self.products == Products::Tiles && store && self.outputs[..] == [Elem::Bf16]
    }

    /// Whether every tile goes from registers to the output as it is.
    pub(crate) fn all_whole(&self) -> bool {
        let even = self.rows.is_multiple_of(self.tile_rows);
        let width = match self.products {
            Products::Widened | Products::Vectors => self.width,
            Products::Tiles => self.width * self.tile_vectors,
        };
        self.direct && even && self.columns.is_multiple_of(width)
    }
}

/// Views of the rows and columns that an epilogue runs on one by one.
pub(crate) fn epilogue_views(spec: &ContractSpec) -> Vec<View2> {
    let views = spec.epilogue_inputs.iter().filter(|_| spec.rotary.is_none());
    views.map(View2::of).collect()
}

/// Blocks of a contraction within the workspace that its spec reserves.
struct Fit {
    /// The depth.
    words: usize,
    columns: usize,
    rows: usize,
    packed_a: usize,
    packed_b: usize,
}

impl Fit {
    /// As near to what is wanted as there is room. The depth, which orders sums, does not depend on
    /// the units; what a narrower block of b leaves is for rows of a.
    fn of(
        blocks: &ContractBlocks,
        spec: &ContractSpec,
        wanted: &Blocks,
        words: usize,
        (units, in_place): (usize, bool),
    ) -> Fit {
        let (reserved_a, reserved_b) = (blocks.packed_a(spec) as usize, blocks.packed_b() as usize);
        let least = ContractBlocks::TILE_COLUMNS as usize;
        let room = (reserved_b / least).min(reserved_a / wanted.tile_rows - 16) / 16 * 16;
        // Where nothing keeps partial sums, all of k is one block, for which there is room.
        let whole = !blocks.partial && !spec.is_plain_sum();
        let most = if whole { words } else { wanted.depth.min(room) };
        // Blocks of nearly the same depth, in whole vectors.
        let depth =
            words.div_ceil(words.div_ceil(most.max(16)).max(1)).next_multiple_of(16).max(16);
        // Units that pack a block each share the third cache.
        let packing = if blocks.split_batch { units } else { 1 };
        let columns = (wanted.columns / packing).min(blocks.columns as usize);
        let columns = (columns.min(reserved_b / depth) / least * least).max(least);
        let packed_b = columns * depth;
        let spared = (reserved_b - packed_b) / (units / packing);
        let rows = if in_place { usize::MAX } else { (reserved_a + spared) / (depth + 16) };
        let rows = rows.min(wanted.rows) / wanted.tile_rows * wanted.tile_rows;
        let packed_a = if in_place { 0 } else { rows * (depth + 16) };
        let packed_a = if blocks.skinny { reserved_a } else { packed_a };
        Fit { words: depth, columns, rows, packed_a, packed_b }
    }
}

/// Merges adjacent dims that step through memory as one; dims of size 1 vanish.
pub(crate) fn merge(dims: &[Dim], both: bool) -> Vec<Axis> {
    let mut axes: Vec<Axis> = Vec::new();
    for dim in dims.iter().filter(|dim| dim.size != 1) {
        let stride_b = if both { dim.stride_b as usize } else { 0 };
        let axis = Axis { size: dim.size as usize, stride: dim.stride as usize, stride_b };
        match axes.last_mut() {
            Some(outer)
                if outer.stride == axis.size * axis.stride
                    && outer.stride_b == axis.size * axis.stride_b =>
            {
                *outer = Axis { size: outer.size * axis.size, ..axis };
            }
            _ => axes.push(axis),
        }
    }
    axes
}

/// Whether a can be read as it is: as f32, as words that are aligned and end with k, or as whole
/// tiles of such words in rows at equal distances.
fn in_place(spec: &ContractSpec, products: Products, groups: [&[Axis]; 3]) -> bool {
    let [batch, m, k] = groups;
    let even = |axes: &[Axis]| axes.iter().all(|axis| axis.stride.is_multiple_of(2));
    let size = |axes: &[Axis]| axes.iter().map(|axis| axis.size).product::<usize>();
    if spec.prologue.as_ref().is_some_and(|prologue| prologue.operand == Operand::A) {
        return false;
    }
    match products {
        Products::Widened => spec.a == Elem::F32,
        Products::Vectors => even(batch) && even(m) && size(k).is_multiple_of(2),
        Products::Tiles => {
            let whole = size(k).is_multiple_of(2 * SIDE) && size(m).is_multiple_of(2 * SIDE);
            even(batch) && even(m) && m.len() <= 1 && whole
        }
    }
}

fn layout_a(m: &[Axis], k: &[Axis], as_it_is: bool) -> LayoutA {
    let k_contiguous = k.is_empty() || k.len() == 1 && k[0].stride == 1;
    let m_contiguous = m.len() == 1 && m[0].stride == 1;
    match (k_contiguous, m_contiguous, as_it_is) {
        (true, _, true) => LayoutA::Direct,
        (true, _, false) => LayoutA::Rows,
        (false, true, _) => LayoutA::Columns,
        (false, false, _) => LayoutA::Gathered,
    }
}

fn layout_b(n: &[Axis], k: &[Axis]) -> LayoutB {
    if n.is_empty() || n.len() == 1 && n[0].stride == 1 {
        LayoutB::Columns
    } else if k.len() == 1 && k[0].stride_b == 1 {
        LayoutB::Rows
    } else {
        LayoutB::Gathered
    }
}

/// Pieces each unit should find, so that the last to end is not long behind the others.
const PIECES_PER_UNIT: usize = 4;
/// Panels of columns that are worth packing or fetching rows of a for again.
const COLUMN_PANELS: usize = 4;

/// Panels of rows of a piece, at most `most`, and into how many pieces the columns are cut. Of the
/// sizes that make about as many pieces as are wanted, it is one with which units end together.
fn pieces(units: usize, panels_m: usize, panels_n: usize, most: usize) -> (usize, usize) {
    let wanted = if units == 1 { 1 } else { units * PIECES_PER_UNIT };
    let around = panels_m.div_ceil(wanted).clamp(most.min(4), most);
    let cut = |panels: usize| {
        let missing = wanted.div_ceil(panels_m.div_ceil(panels));
        missing.min(panels_n.div_ceil(COLUMN_PANELS)).max(1)
    };
    // Tiles of the unit that has the most to do.
    let longest = |panels: usize| {
        let parts = cut(panels);
        let pieces = panels_m.div_ceil(panels) * parts;
        pieces.div_ceil(units) * panels * panels_n.div_ceil(parts)
    };
    let near = around..=most.min(2 * around);
    let panels = near.min_by_key(|panels| longest(*panels)).unwrap_or(around);
    (panels, cut(panels))
}

/// Where element `index` of a group lies, by the strides of its first tensor, or of its second.
#[cube]
#[allow(unused_variables)]
pub(crate) fn offset_of(
    index: usize,
    #[comptime] axes: Vec<Axis>,
    #[comptime] second: bool,
) -> usize {
    intrinsic!(|scope| {
        let mut rest = index;
        let mut total = NativeExpand::<usize>::from_lit(scope, 0);
        for (i, axis) in axes.iter().enumerate().rev() {
            let here = match i {
                0 => rest,
                _ => rest.__expand_rem_method(scope, axis.size.into()),
            };
            let stride = if second { axis.stride_b } else { axis.stride };
            total =
                total.__expand_add_method(scope, here.__expand_mul_method(scope, stride.into()));
            if i > 0 {
                rest = rest.__expand_div_method(scope, axis.size.into());
            }
        }
        total
    })
}

#[cfg(test)]
mod tests;
