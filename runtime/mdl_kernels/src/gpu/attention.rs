//! Attention on a GPU that never stores its scores: tiles of keys pass by blocks of queries.
//!
//! A cube owns a block of queries of one head; their sums stay in registers, with the running
//! maximum and sum of each row (Dao et al. 2022, arXiv:2205.14135). Blocks that see the most keys
//! come first. A cube's work depends on its own rows alone, so results are always the same. Few
//! queries a sequence go to `decode`, which splits their keys over cubes.

pub(super) mod mask;
pub(super) mod math;
mod power;
pub(super) mod products;
pub(super) mod shape;
pub(super) mod staging;

use super::{address_type, cube_pos, cubes, decode};
use crate::attention::MaskArgs;
use crate::device::{Device, Slice};
use cubecl::prelude::*;
use mask::{all_seen, keys_of, seen, start_of};
use math::{NOTHING, exp2, log_sum};
use mdl_ir::kernel::gpu::DECODED_QUERIES;
use mdl_ir::kernel::{AttentionSpec, Elem};
use products::{
    add_weighted, lane, max_of_row, own_column, own_row, scores, sum_of_row, write_rows,
};
use shape::{Pass, Product, Shape};
use staging::{Source, stage_rows, stage_turned};

/// Where a block of queries is.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Block {
    pub batch: usize,
    pub head: usize,
    /// The first query, and the position of query 0.
    pub t: usize,
    pub position: usize,
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn attention(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    documents_t: &[i32],
    documents_s: &[i32],
    start: &[i32],
    y: &mut [f32],
    lse: &mut [f32],
    #[comptime] shape: Shape,
) {
    let mut own = Shared::<[f32]>::new_aligned_slice(shape.rows_words(shape.rows()), 16usize);
    let mut keys = Shared::<[f32]>::new_aligned_slice(shape.rows_words(shape.columns), 16usize);
    let values_words = comptime!(if shape.turns() {
        shape.turned_words()
    } else {
        shape.rows_words(shape.columns)
    });
    let mut values = Shared::<[f32]>::new_aligned_slice(values_words, 16usize);
    let mut scratch = Shared::<[f32]>::new_aligned_slice(shape.scratch_words(), 16usize);
    let owners = comptime!(shape.batch * shape.heads());
    let cube = cube_pos();
    if cube < comptime!(owners * shape.query_blocks()) {
        let owner = cube % owners;
        let block = Block {
            batch: owner / shape.heads(),
            head: owner % shape.heads(),
            t: (comptime!(shape.query_blocks() - 1) - cube / owners) * shape.rows(),
            position: start_of(start, shape),
        };
        let base = block.batch * comptime!(shape.t * shape.query_stride());
        let source = Source {
            base: base + block.head * shape.head,
            first: block.t,
            low: 0usize.runtime(),
            high: shape.t.runtime(),
        };
        stage_rows(q, &source, &mut own, shape.rows(), shape.query_stride(), shape);
        attend(
            k,
            v,
            documents_t,
            documents_s,
            y,
            lse,
            &own,
            &mut keys,
            &mut values,
            &mut scratch,
            &block,
            shape,
        );
    }
}

/// All keys of one block of queries, tile by tile.
#[cube]
fn attend(
    k: &[f32],
    v: &[f32],
    documents_t: &[i32],
    documents_s: &[i32],
    y: &mut [f32],
    lse: &mut [f32],
    own: &[f32],
    keys: &mut [f32],
    values: &mut [f32],
    scratch: &mut [f32],
    block: &Block,
    #[comptime] shape: Shape,
) {
    let passing = keys_of(block.position, block.t, shape);
    let kv_head = block.head / shape.group;
    let base = block.batch * comptime!(shape.s * shape.key_stride()) + kv_head * shape.head;
    let mut sums = Array::<f32>::new(comptime!(shape.sums()));
    let mut largest = Array::<f32>::new(comptime!(shape.strips * 2));
    let mut total = Array::<f32>::new(comptime!(shape.strips * 2));
    #[unroll]
    for i in 0..comptime!(shape.strips * 2) {
        largest[i] = NOTHING;
        total[i] = 0.0;
    }
    #[unroll]
    for i in 0..comptime!(shape.sums()) {
        sums[i] = 0.0;
    }
    for s in range_stepped(passing.first, passing.end, shape.columns) {
        let source = Source { base, first: s, low: passing.first, high: passing.end };
        sync_cube();
        stage_rows(k, &source, keys, shape.columns, shape.key_stride(), shape);
        if comptime!(shape.turns()) {
            stage_turned(v, &source, values, shape.key_stride(), shape);
        } else {
            stage_rows(v, &source, values, shape.columns, shape.key_stride(), shape);
        }
        sync_cube();
        let mut weights = Array::<f32>::new(comptime!(shape.weights()));
        scores(own, &*keys, &mut weights, shape);
        hide(&mut weights, documents_t, documents_s, block, s, shape);
        weigh(&mut weights, &mut sums, &mut largest, &mut total, scratch, shape);
        add_weighted(&weights, &*values, &mut sums, scratch, shape);
    }
    finish(&sums, &largest, &mut total, y, lse, scratch, block, shape);
}

/// Scores as powers of two; `NOTHING` where the mask hides a key.
#[cube]
fn hide(
    weights: &mut Array<f32>,
    documents_t: &[i32],
    documents_s: &[i32],
    block: &Block,
    s: usize,
    #[comptime] shape: Shape,
) {
    let tiles = comptime!(shape.column_tiles());
    let (rows, columns) = comptime!((shape.rows(), shape.columns));
    let all = all_seen(block.position, block.t, rows, s, columns, shape);
    #[unroll]
    for at in 0..comptime!(shape.weights()) {
        weights[at] *= shape.scale_log2();
    }
    if !all {
        let lane = lane();
        #[unroll]
        for at in 0..comptime!(shape.weights()) {
            let row = own_row(&lane, comptime!(at / 4 / tiles), comptime!(at % 4 / 2), shape);
            let column = own_column(&lane, comptime!(at / 4 % tiles), comptime!(at % 4));
            let one = seen(
                block.position,
                block.t + row,
                s + column,
                documents_t,
                documents_s,
                block.batch,
                shape,
            );
            weights[at] = select(one, weights[at], NOTHING);
        }
    }
}

/// Powers of scores relative to the largest so far; what was summed before is scaled to it.
#[cube]
fn weigh(
    weights: &mut Array<f32>,
    sums: &mut Array<f32>,
    largest: &mut Array<f32>,
    total: &mut Array<f32>,
    scratch: &mut [f32],
    #[comptime] shape: Shape,
) {
    let tiles = comptime!(shape.column_tiles());
    let head_tiles = comptime!(shape.head_tiles());
    #[unroll]
    for row in 0..comptime!(shape.strips * 2) {
        let first = comptime!(row / 2 * tiles * 4 + row % 2 * 2);
        let mut most = largest[row];
        #[unroll]
        for i in 0..comptime!(2 * tiles) {
            most = max(most, weights[comptime!(first + i / 2 * 4 + i % 2)]);
        }
        most = max_of_row(most, scratch, shape);
        // Where nothing has been seen yet, what is hidden stays so: relative to 0, not to itself.
        let by = select(most == NOTHING, 0.0, most);
        let factor = exp2(largest[row] - by, shape.product);
        let mut sum = total[row] * factor;
        #[unroll]
        for i in 0..comptime!(2 * tiles) {
            let at = comptime!(first + i / 2 * 4 + i % 2);
            weights[at] = exp2(weights[at] - by, shape.product);
            sum += weights[at];
        }
        largest[row] = most;
        total[row] = sum;
        #[unroll]
        for i in 0..comptime!(2 * head_tiles) {
            sums[comptime!(row / 2 * head_tiles * 4 + row % 2 * 2 + i / 2 * 4 + i % 2)] *= factor;
        }
    }
}

/// Divides by the sums and writes the block's rows.
#[cube]
fn finish(
    sums: &Array<f32>,
    largest: &Array<f32>,
    total: &mut Array<f32>,
    y: &mut [f32],
    lse: &mut [f32],
    scratch: &mut [f32],
    block: &Block,
    #[comptime] shape: Shape,
) {
    let lane = lane();
    #[unroll]
    for i in 0..comptime!(shape.strips * 2) {
        let sum = sum_of_row(total[i], scratch, shape);
        let t = block.t + own_row(&lane, comptime!(i / 2), comptime!(i % 2), shape);
        if t < shape.t && lane.j == 0 {
            let row = (block.batch * shape.t + t) * shape.heads() + block.head;
            lse[row] = log_sum(largest[i], sum);
        }
        total[i] = select(sum > 0.0, 1.0 / sum, 0.0);
    }
    let base = block.batch * comptime!(shape.t * shape.query_stride()) + block.head * shape.head;
    let stride = comptime!(shape.query_stride());
    write_rows(sums, &*total, y, base, block.t, shape.t.runtime(), stride, shape);
}

/// How a device computes products of these elements.
pub(super) fn product_of(device: &Device, elem: Elem) -> Product {
    match (device.tensor_cores(), elem) {
        (false, _) => Product::Loops,
        (true, Elem::Bf16) => Product::Bf16,
        (true, _) => Product::Tf32,
    }
}

/// Says how large heads may be, where those of the spec have no tile that a cube can hold.
pub(super) fn refusal(device: &Device, spec: &AttentionSpec, passes: &[Pass]) -> Option<String> {
    if passes == [Pass::Forward] && spec.t <= DECODED_QUERIES {
        return None;
    }
    let (product, wide) = (product_of(device, spec.elem), device.has_pointer_casts());
    let fits = |head: u32| {
        let spec = AttentionSpec { head, ..spec.clone() };
        passes.iter().all(|&pass| Shape::fitting(&spec, pass, product, wide).is_some())
    };
    let most = (0..=spec.head).rev().find(|&head| fits(head)).unwrap_or(0);
    (most < spec.head).then(|| {
        format!(
            "attention with heads of {} numbers needs more memory than the units of this device \
             share, which is enough for {most}; take --device cuda or cpu, or smaller heads",
            spec.head
        )
    })
}

/// Buffers: as `AttentionSpec` lists them.
pub(crate) fn launch(device: &Device, spec: &AttentionSpec, args: &[Slice]) {
    let (product, wide) = (product_of(device, spec.elem), device.has_pointer_casts());
    let mask = MaskArgs::new(spec, &args[3..]);
    if spec.t <= DECODED_QUERIES {
        return decode::launch(device, Shape::of(spec, product, wide), &mask, args);
    }
    let shape = Shape::new(spec, Pass::Forward, product, wide);
    let count = shape.batch * shape.heads() * shape.query_blocks();
    // SAFETY: every index lies inside its buffer by the sizes of the spec.
    unsafe {
        attention::launch_unchecked(
            device.client(),
            cubes(count as u64),
            CubeDim::new_1d(shape.units() as u32),
            address_type(device, args),
            device.buffer(&args[0]),
            device.buffer(&args[1]),
            device.buffer(&args[2]),
            device.buffer(&mask.documents_t),
            device.buffer(&mask.documents_s),
            device.buffer(&mask.start),
            device.buffer(&mask.rest[0]),
            device.buffer(&mask.rest[1]),
            shape,
        );
    }
    device.launched();
}

#[cfg(all(test, feature = "cuda"))]
mod tests;
