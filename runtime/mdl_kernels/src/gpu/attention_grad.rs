//! The gradient of attention on a GPU: probabilities are computed again from q, k and the
//! log-sum-exp.
//!
//! Three launches, none of which adds to what another cube writes: δ = Σ dy·y of each row; dk and
//! dv, by cubes that own a block of keys and let all queries that see it pass by, of one head of
//! the group after another; dq, by cubes that own a block of queries. The formulas are
//! `attention_grad`'s.

use super::attention::mask::{all_seen, keys_of, queries_of, seen, start_of};
use super::attention::math::exp2;
use super::attention::product_of;
use super::attention::products::{add_weighted, lane, own_column, own_row, scores, write_rows};
use super::attention::shape::{Pass, Product, Shape};
use super::attention::staging::{Source, stage_rows, stage_turned};
use super::{address_type, cube_pos, cubes};
use crate::attention::MaskArgs;
use crate::device::{Device, Slice};
use crate::gpu::together::hold_together;
use crate::vector_io::load_one;
use cubecl::prelude::*;
use mdl_ir::kernel::{AttentionSpec, Elem};
use std::f32::consts::LOG2_E;

/// Units that share a row when δ is summed, and all units of a cube then.
const SHARERS: usize = 8;
const SUMMERS: usize = 128;

#[cube(launch_unchecked, address_type = "dynamic")]
fn attention_deltas(
    y: &[f32],
    dy: &[f32],
    deltas: &mut [f32],
    rows: usize,
    #[comptime] head: usize,
    #[comptime] elem: Elem,
) {
    let mut parts = Shared::<[f32]>::new_slice(SUMMERS);
    let unit = UNIT_POS as usize;
    let row = cube_pos() * comptime!(SUMMERS / SHARERS) + unit / SHARERS;
    let mut sum = 0.0f32;
    if row < rows {
        for d in range_stepped(unit % SHARERS, head, SHARERS) {
            let at = row * head + d;
            sum = fma(load_one(dy, at, elem), load_one(y, at, elem), sum);
        }
    }
    parts[unit] = sum;
    sync_cube();
    if row < rows && unit.is_multiple_of(SHARERS) {
        #[unroll]
        for i in 1..SHARERS {
            sum += parts[unit + i];
        }
        deltas[row] = sum;
    }
}

/// What a cube of either kernel works on.
#[derive(CubeType, Clone, Copy)]
struct Place {
    batch: usize,
    kv_head: usize,
    /// The position of query 0.
    position: usize,
}

/// The element where the head `head` of the first query of a sequence lies.
#[cube]
fn queries_at(batch: usize, head: usize, #[comptime] shape: Shape) -> usize {
    batch * comptime!(shape.t * shape.query_stride()) + head * shape.head
}

/// The same for keys.
#[cube]
fn keys_at(place: &Place, #[comptime] shape: Shape) -> usize {
    place.batch * comptime!(shape.s * shape.key_stride()) + place.kv_head * shape.head
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn attention_grad_keys(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    documents_t: &[i32],
    documents_s: &[i32],
    start: &[i32],
    lse: &[f32],
    dy: &[f32],
    dk: &mut [f32],
    dv: &mut [f32],
    deltas: &[f32],
    #[comptime] shape: Shape,
) {
    let owned = comptime!(shape.rows_words(shape.rows()));
    let mut keys = Shared::<[f32]>::new_aligned_slice(owned, 16usize);
    let mut values = Shared::<[f32]>::new_aligned_slice(owned, 16usize);
    let owners = comptime!(shape.batch * shape.kv_heads);
    let cube = cube_pos();
    if cube < comptime!(owners * shape.key_blocks()) {
        let owner = cube % owners;
        let place = Place {
            batch: owner / shape.kv_heads,
            kv_head: owner % shape.kv_heads,
            position: start_of(start, shape),
        };
        let s = cube / owners * shape.rows();
        let base = keys_at(&place, shape);
        let (end, stride) = (shape.s.runtime(), comptime!(shape.key_stride()));
        let source = Source { base, first: s, low: 0usize.runtime(), high: end };
        stage_rows(k, &source, &mut keys, shape.rows(), stride, shape);
        stage_rows(v, &source, &mut values, shape.rows(), stride, shape);
        let mut dk_sums = Array::<f32>::new(comptime!(shape.sums()));
        let mut dv_sums = Array::<f32>::new(comptime!(shape.sums()));
        clear(&mut dk_sums, shape);
        clear(&mut dv_sums, shape);
        pass_queries(
            q,
            dy,
            lse,
            deltas,
            documents_t,
            documents_s,
            &keys,
            &values,
            &mut dk_sums,
            &mut dv_sums,
            &place,
            s,
            shape,
        );
        let mut factors = Array::<f32>::new(comptime!(shape.strips * 2));
        set_all(&mut factors, 1.0, shape);
        write_rows(&dv_sums, &factors, dv, base, s, end, stride, shape);
        set_all(&mut factors, shape.scale(), shape);
        write_rows(&dk_sums, &factors, dk, base, s, end, stride, shape);
    }
}

/// All queries of the group that see any of a block of keys, tile by tile.
#[cube]
fn pass_queries(
    q: &[f32],
    dy: &[f32],
    lse: &[f32],
    deltas: &[f32],
    documents_t: &[i32],
    documents_s: &[i32],
    keys: &[f32],
    values: &[f32],
    dk_sums: &mut Array<f32>,
    dv_sums: &mut Array<f32>,
    place: &Place,
    s: usize,
    #[comptime] shape: Shape,
) {
    let upright = comptime!(shape.rows_words(shape.columns));
    let mut queries = Shared::<[f32]>::new_aligned_slice(upright, 16usize);
    let mut dys = Shared::<[f32]>::new_aligned_slice(upright, 16usize);
    let mut queries_turned = Shared::<[f32]>::new_aligned_slice(shape.turned_words(), 16usize);
    let mut dys_turned = Shared::<[f32]>::new_aligned_slice(shape.turned_words(), 16usize);
    let mut scratch = Shared::<[f32]>::new_aligned_slice(shape.scratch_words(), 16usize);
    let mut statistics = Shared::<[f32]>::new_slice(comptime!(2 * shape.columns));
    let passing = queries_of(place.position, s, shape);
    // One loop over all members of the group: of two the outer one would be unrolled where groups
    // are small, and units would hold the addresses of several members.
    let mut member = 0usize.runtime();
    let mut t = passing.first;
    while member < shape.group && t < passing.end {
        let head = place.kv_head * shape.group + member;
        let base = queries_at(place.batch, head, shape);
        let source = Source { base, first: t, low: 0usize.runtime(), high: shape.t.runtime() };
        sync_cube();
        stage_both(q, &source, &mut queries, &mut queries_turned, shape);
        stage_both(dy, &source, &mut dys, &mut dys_turned, shape);
        stage_statistics(lse, deltas, &mut statistics, place.batch, head, t, shape);
        sync_cube();
        // One after the other, so that a unit holds either tile of numbers beside the sums.
        let mut weights = Array::<f32>::new(comptime!(shape.weights()));
        scores(keys, &queries, &mut weights, shape);
        weigh_queries(&mut weights, &statistics, documents_t, documents_s, place, s, t, shape);
        let mut changes = Array::<f32>::new(comptime!(shape.weights()));
        if comptime!(shape.turns()) {
            add_weighted(&weights, &dys_turned, dv_sums, &mut scratch, shape);
            scores(values, &dys, &mut changes, shape);
            change_queries(&weights, &mut changes, &statistics, shape);
            add_weighted(&changes, &queries_turned, dk_sums, &mut scratch, shape);
        } else {
            add_weighted(&weights, &dys, dv_sums, &mut scratch, shape);
            scores(values, &dys, &mut changes, shape);
            change_queries(&weights, &mut changes, &statistics, shape);
            add_weighted(&changes, &queries, dk_sums, &mut scratch, shape);
        }
        t += shape.columns;
        if t >= passing.end {
            member += 1;
            t = passing.first;
        }
    }
}

#[cube]
fn clear(sums: &mut Array<f32>, #[comptime] shape: Shape) {
    #[unroll]
    for i in 0..comptime!(shape.sums()) {
        sums[i] = 0.0;
    }
}

#[cube]
fn set_all(factors: &mut Array<f32>, value: f32, #[comptime] shape: Shape) {
    #[unroll]
    for i in 0..comptime!(shape.strips * 2) {
        factors[i] = value;
    }
}

/// A tile of queries in both forms that products need.
#[cube]
fn stage_both(
    from: &[f32],
    source: &Source,
    upright: &mut [f32],
    turned: &mut [f32],
    #[comptime] shape: Shape,
) {
    stage_rows(from, source, upright, shape.columns, shape.query_stride(), shape);
    if comptime!(shape.turns()) {
        stage_turned(from, source, turned, shape.query_stride(), shape);
    }
}

/// The log-sum-exp, as a power of two, and δ of the queries that pass by.
#[cube]
fn stage_statistics(
    lse: &[f32],
    deltas: &[f32],
    statistics: &mut [f32],
    batch: usize,
    head: usize,
    t: usize,
    #[comptime] shape: Shape,
) {
    for i in range_stepped(UNIT_POS as usize, shape.columns, shape.units()) {
        let query = min(t + i, comptime!(shape.t - 1).runtime());
        let row = (batch * shape.t + query) * shape.heads() + head;
        statistics[i] = lse[row] * LOG2_E;
        statistics[shape.columns + i] = deltas[row];
    }
}

/// Probabilities, where rows are keys and columns are queries.
#[cube]
fn weigh_queries(
    weights: &mut Array<f32>,
    statistics: &[f32],
    documents_t: &[i32],
    documents_s: &[i32],
    place: &Place,
    s: usize,
    t: usize,
    #[comptime] shape: Shape,
) {
    let lane = lane();
    let tiles = comptime!(shape.column_tiles());
    let (columns, rows) = comptime!((shape.columns, shape.rows()));
    let all = all_seen(place.position, t, columns, s, rows, shape);
    #[unroll]
    for at in 0..comptime!(shape.weights()) {
        let column = own_column(&lane, comptime!(at / 4 % tiles), comptime!(at % 4));
        let power = fma(weights[at], shape.scale_log2(), -statistics[column]);
        weights[at] = exp2(power, shape.product);
    }
    if !all {
        #[unroll]
        for at in 0..comptime!(shape.weights()) {
            let row = own_row(&lane, comptime!(at / 4 / tiles), comptime!(at % 4 / 2), shape);
            let column = own_column(&lane, comptime!(at / 4 % tiles), comptime!(at % 4));
            let (batch, position) = (place.batch, place.position);
            let (query, key) = (t + column, s + row);
            let one = seen(position, query, key, documents_t, documents_s, batch, shape);
            weights[at] = select(one, weights[at], 0.0);
        }
    }
}

/// What scores change by, from dy · v and probabilities.
#[cube]
fn change_queries(
    weights: &Array<f32>,
    changes: &mut Array<f32>,
    statistics: &[f32],
    #[comptime] shape: Shape,
) {
    let lane = lane();
    let tiles = comptime!(shape.column_tiles());
    #[unroll]
    for at in 0..comptime!(shape.weights()) {
        let column = own_column(&lane, comptime!(at / 4 % tiles), comptime!(at % 4));
        changes[at] = (changes[at] - statistics[shape.columns + column]) * weights[at];
    }
}

/// Cubes that a multiprocessor has registers for at least: 128 of a unit where heads are small, and
/// otherwise as many as there can be, 255. None of either needs more.
fn together(shape: &Shape) -> usize {
    if shape.head <= 32 { 4 } else { 2 }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn attention_grad_queries(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    documents_t: &[i32],
    documents_s: &[i32],
    start: &[i32],
    lse: &[f32],
    dy: &[f32],
    dq: &mut [f32],
    deltas: &[f32],
    #[comptime] shape: Shape,
) {
    let owned = comptime!(shape.rows_words(shape.rows()));
    let mut queries = Shared::<[f32]>::new_aligned_slice(owned, 16usize);
    let mut dys = Shared::<[f32]>::new_aligned_slice(owned, 16usize);
    let owners = comptime!(shape.batch * shape.heads());
    let cube = cube_pos();
    if cube < comptime!(owners * shape.query_blocks()) {
        if comptime!(shape.product != Product::Loops) {
            hold_together(comptime!(together(&shape)));
        }
        let owner = cube % owners;
        let head = owner % shape.heads();
        let place = Place {
            batch: owner / shape.heads(),
            kv_head: head / shape.group,
            position: start_of(start, shape),
        };
        // Blocks that see the most keys come first.
        let t = (comptime!(shape.query_blocks() - 1) - cube / owners) * shape.rows();
        let base = queries_at(place.batch, head, shape);
        let (end, stride) = (shape.t.runtime(), comptime!(shape.query_stride()));
        let source = Source { base, first: t, low: 0usize.runtime(), high: end };
        stage_rows(q, &source, &mut queries, shape.rows(), stride, shape);
        stage_rows(dy, &source, &mut dys, shape.rows(), stride, shape);
        let mut own_lse = Array::<f32>::new(comptime!(shape.strips * 2));
        let mut own_delta = Array::<f32>::new(comptime!(shape.strips * 2));
        let lane = lane();
        #[unroll]
        for i in 0..comptime!(shape.strips * 2) {
            let query = t + own_row(&lane, comptime!(i / 2), comptime!(i % 2), shape);
            let query = min(query, comptime!(shape.t - 1).runtime());
            let row = (place.batch * shape.t + query) * shape.heads() + head;
            own_lse[i] = lse[row] * LOG2_E;
            own_delta[i] = deltas[row];
        }
        let mut sums = Array::<f32>::new(comptime!(shape.sums()));
        clear(&mut sums, shape);
        pass_keys(
            k,
            v,
            documents_t,
            documents_s,
            &queries,
            &dys,
            &own_lse,
            &own_delta,
            &mut sums,
            &place,
            t,
            shape,
        );
        let mut factors = Array::<f32>::new(comptime!(shape.strips * 2));
        set_all(&mut factors, shape.scale(), shape);
        write_rows(&sums, &factors, dq, base, t, end, stride, shape);
    }
}

/// All keys that any of a block of queries sees, tile by tile.
#[cube]
fn pass_keys(
    k: &[f32],
    v: &[f32],
    documents_t: &[i32],
    documents_s: &[i32],
    queries: &[f32],
    dys: &[f32],
    own_lse: &Array<f32>,
    own_delta: &Array<f32>,
    sums: &mut Array<f32>,
    place: &Place,
    t: usize,
    #[comptime] shape: Shape,
) {
    let upright = comptime!(shape.rows_words(shape.columns));
    let mut keys = Shared::<[f32]>::new_aligned_slice(upright, 16usize);
    let mut values = Shared::<[f32]>::new_aligned_slice(upright, 16usize);
    let mut keys_turned = Shared::<[f32]>::new_aligned_slice(shape.turned_words(), 16usize);
    let mut scratch = Shared::<[f32]>::new_aligned_slice(shape.scratch_words(), 16usize);
    let passing = keys_of(place.position, t, shape);
    let stride = comptime!(shape.key_stride());
    let base = keys_at(place, shape);
    for s in range_stepped(passing.first, passing.end, shape.columns) {
        let source = Source { base, first: s, low: passing.first, high: passing.end };
        sync_cube();
        stage_rows(k, &source, &mut keys, shape.columns, stride, shape);
        stage_rows(v, &source, &mut values, shape.columns, stride, shape);
        if comptime!(shape.turns()) {
            stage_turned(k, &source, &mut keys_turned, stride, shape);
        }
        sync_cube();
        let mut weights = Array::<f32>::new(comptime!(shape.weights()));
        let mut changes = Array::<f32>::new(comptime!(shape.weights()));
        scores(queries, &keys, &mut weights, shape);
        scores(dys, &values, &mut changes, shape);
        weigh_keys(
            &mut weights,
            &mut changes,
            own_lse,
            own_delta,
            documents_t,
            documents_s,
            place,
            t,
            s,
            shape,
        );
        if comptime!(shape.turns()) {
            add_weighted(&changes, &keys_turned, sums, &mut scratch, shape);
        } else {
            add_weighted(&changes, &keys, sums, &mut scratch, shape);
        }
    }
}

/// Probabilities, and what scores change by, where rows are queries and columns are keys.
#[cube]
fn weigh_keys(
    weights: &mut Array<f32>,
    changes: &mut Array<f32>,
    own_lse: &Array<f32>,
    own_delta: &Array<f32>,
    documents_t: &[i32],
    documents_s: &[i32],
    place: &Place,
    t: usize,
    s: usize,
    #[comptime] shape: Shape,
) {
    let lane = lane();
    let tiles = comptime!(shape.column_tiles());
    let (rows, columns) = comptime!((shape.rows(), shape.columns));
    let all = all_seen(place.position, t, rows, s, columns, shape);
    #[unroll]
    for at in 0..comptime!(shape.weights()) {
        let row = comptime!(at / 4 / tiles * 2 + at % 4 / 2);
        let power = fma(weights[at], shape.scale_log2(), -own_lse[row]);
        weights[at] = exp2(power, shape.product);
        changes[at] -= own_delta[row];
    }
    if !all {
        #[unroll]
        for at in 0..comptime!(shape.weights()) {
            let row = own_row(&lane, comptime!(at / 4 / tiles), comptime!(at % 4 / 2), shape);
            let column = own_column(&lane, comptime!(at / 4 % tiles), comptime!(at % 4));
            let (batch, position) = (place.batch, place.position);
            let (query, key) = (t + row, s + column);
            let one = seen(position, query, key, documents_t, documents_s, batch, shape);
            weights[at] = select(one, weights[at], 0.0);
        }
    }
    #[unroll]
    for at in 0..comptime!(shape.weights()) {
        changes[at] *= weights[at];
    }
}

/// Buffers: as `AttentionSpec` lists them.
pub(crate) fn launch(device: &Device, spec: &AttentionSpec, args: &[Slice]) {
    let mask = MaskArgs::new(spec, &args[3..]);
    let [y, lse, dy, dq, dk, dv, deltas] = [0, 1, 2, 3, 4, 5, 6].map(|i| &mask.rest[i]);
    let address = address_type(device, args);
    let product = product_of(device, spec.elem);
    let shape = |pass| Shape::new(spec, pass, product, device.has_pointer_casts());
    let (by_keys, by_queries) = (shape(Pass::Keys), shape(Pass::Queries));
    let rows = by_keys.batch * by_keys.t * by_keys.heads();
    let client = device.client();
    // SAFETY: every index lies inside its buffer by the sizes of the spec.
    unsafe {
        attention_deltas::launch_unchecked(
            client,
            cubes(rows.div_ceil(SUMMERS / SHARERS) as u64),
            CubeDim::new_1d(SUMMERS as u32),
            address,
            device.buffer(y),
            device.buffer(dy),
            device.buffer(deltas),
            rows,
            by_keys.head,
            by_keys.elem,
        );
        device.launched();
        attention_grad_keys::launch_unchecked(
            client,
            cubes((by_keys.batch * by_keys.kv_heads * by_keys.key_blocks()) as u64),
            CubeDim::new_1d(by_keys.units() as u32),
            address,
            device.buffer(&args[0]),
            device.buffer(&args[1]),
            device.buffer(&args[2]),
            device.buffer(&mask.documents_t),
            device.buffer(&mask.documents_s),
            device.buffer(&mask.start),
            device.buffer(lse),
            device.buffer(dy),
            device.buffer(dk),
            device.buffer(dv),
            device.buffer(deltas),
            by_keys,
        );
        device.launched();
        attention_grad_queries::launch_unchecked(
            client,
            cubes((by_queries.batch * by_queries.heads() * by_queries.query_blocks()) as u64),
            CubeDim::new_1d(by_queries.units() as u32),
            address,
            device.buffer(&args[0]),
            device.buffer(&args[1]),
            device.buffer(&args[2]),
            device.buffer(&mask.documents_t),
            device.buffer(&mask.documents_s),
            device.buffer(&mask.start),
            device.buffer(lse),
            device.buffer(dy),
            device.buffer(dq),
            device.buffer(deltas),
            by_queries,
        );
        device.launched();
    }
}
