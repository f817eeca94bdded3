//! The gradient of attention: probabilities are computed again from q, k and the log-sum-exp.
//!
//! What it computes, with p = exp(scale·q·k − lse) and δ = Σ dy·y of a row:
//! dv[s] = Σ_t p·dy[t];  ds = p·(dy·v − δ);  dq[t] = scale·Σ_s ds·k[s];  dk[s] = scale·Σ_t ds·q[t].
//! 10·head flops and one exponential for each pair that is seen; no score is ever stored.
//!
//! One unit owns a head of keys and visits blocks of queries in order: dq of a block is finished
//! when its keys have passed, dk and dv add up in the unit's workspace. Where there are few heads
//! a head is split into parts by blocks of queries, whose sums are added in order at the end; the
//! split depends on the spec alone, so results do not depend on the number of units.

mod outer;
mod sums;

use crate::attention::decode::dot;
use crate::attention::mask::{Block, block_of, documents_agree, masked, pack_documents, sees_all};
use crate::attention::tile::{Shape, add_rows, dot_rows, pack_queries, unpack_queries};
use crate::attention::{MaskArgs, fair_item, rounds_of};
use crate::device::{Device, Slice};
use crate::vector_io::{load, store};
use cubecl::prelude::*;
use mdl_ir::kernel::{AttentionBlocks, AttentionSpec};
use outer::{OuterShape, add_outer, pack_rows};
use sums::{add_parts, write_keys};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GradShape {
    pub tile: Shape,
    pub outer: OuterShape,
    /// Parts that the queries of a head of keys are split into.
    pub parts: usize,
}

impl GradShape {
    fn new(spec: &AttentionSpec, lanes: usize, registers: usize) -> Self {
        let mut tile = Shape::new(spec, lanes, registers);
        let outer = OuterShape::new(tile.head, lanes, registers, tile.keys);
        let both = (1..).map(|n| n * tile.rows).find(|keys| keys.is_multiple_of(outer.rows));
        tile.step = both.expect("invariant: the product of both is one");
        // Blocks that keys pass together have the room that is reserved for this many queries.
        tile.together = AttentionBlocks::QUERIES as usize / tile.queries;
        let parts = AttentionBlocks::of(spec).grad_parts as usize;
        GradShape { tile, outer, parts }
    }

    /// Elements of a unit's tiles: p and ds of the block at work, and what each block has.
    pub(crate) fn unit(&self) -> usize {
        2 * self.tile.keys * self.tile.queries + self.tile.together * self.block()
    }

    fn block(&self) -> usize {
        (3 * self.tile.head + 2 * self.outer.padded + 4) * self.tile.queries
    }

    /// Elements of one sum, dk or dv of a head.
    pub(crate) fn sum(&self) -> usize {
        (self.tile.s + self.tile.keys) * self.outer.padded
    }

    fn items(&self) -> usize {
        self.tile.batch * self.tile.kv_heads * self.parts
    }
}

/// Where the parts of a unit's workspace begin, of one of its blocks of queries.
#[derive(CubeType, Clone, Copy)]
struct Parts {
    /// [keys, queries] each.
    p: usize,
    ds: usize,
    /// [head, queries] each; q has the scale in it.
    q: usize,
    dy: usize,
    dq: usize,
    /// [queries, padded head] each.
    q_rows: usize,
    dy_rows: usize,
    /// [queries] each.
    lse: usize,
    delta: usize,
    documents: usize,
    /// dk, and behind it dv, [keys, padded head] each.
    sums: usize,
}

#[cube]
fn parts(item: usize, member: usize, #[comptime] shape: GradShape) -> Parts {
    let queries = comptime!(shape.tile.queries);
    let tile = comptime!(shape.tile.keys * shape.tile.queries);
    let head = comptime!(shape.tile.head * shape.tile.queries);
    let rows = comptime!(shape.outer.padded * shape.tile.queries);
    let p = UNIT_POS as usize * comptime!(shape.unit());
    let q = p + comptime!(2 * tile) + member * comptime!(shape.block());
    let q_rows = q + comptime!(3 * head);
    let lse = q_rows + comptime!(2 * rows);
    let mut owner = item;
    if comptime!(shape.parts == 1) {
        owner = UNIT_POS as usize;
    }
    Parts {
        p,
        ds: p + tile,
        q,
        dy: q + head,
        dq: q + comptime!(2 * head),
        q_rows,
        dy_rows: q_rows + rows,
        lse,
        delta: lse + queries,
        documents: lse + comptime!(2 * queries),
        sums: CUBE_DIM as usize * comptime!(shape.unit()) + owner * comptime!(2 * shape.sum()),
    }
}

#[cube(launch_unchecked, address_type = "u64")]
fn attention_grad<N: Size>(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    documents_t: &[i32],
    documents_s: &[i32],
    start: &[i32],
    y: &[f32],
    lse: &[f32],
    dy: &[f32],
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
    workspace: &mut [f32],
    #[comptime] shape: GradShape,
    _unaligned: &[f32],
) {
    let tile = comptime!(shape.tile);
    let lanes = N::value();
    let size!(W) = comptime!(tile.head_lanes(lanes));
    let items = comptime!(shape.items());
    let blocks = comptime!(tile.group * tile.query_blocks());
    for round in 0..rounds_of(items) {
        let item = fair_item(round);
        if item < items {
            let sums = parts(item, 0, shape).sums;
            let owner = item / shape.parts;
            for i in range_stepped(0, comptime!(2 * shape.sum()), N::value()) {
                store::<f32, N>(workspace, sums + i, Vector::new(0.0));
            }
            let step = comptime!(tile.together * shape.parts);
            for index in range_stepped(item % shape.parts, blocks, step) {
                let members = min(tile.together, (blocks - index).div_ceil(shape.parts));
                let mut from = comptime!(tile.s).runtime();
                let mut end = 0usize.runtime();
                for member in 0..members {
                    let places = parts(item, member, shape);
                    let (block, at) = block_at(start, owner, index + member * shape.parts, tile);
                    prepare::<N>(q, y, lse, dy, workspace, &places, &block, at, shape);
                    pack_documents(documents_t, &block, workspace, places.documents, tile);
                    from = min(from, block.first_key / tile.keys * tile.keys);
                    end = max(end, block.end_key);
                }
                let documents = documents_s;
                pass_keys::<N>(k, v, documents, start, workspace, item, index, from, end, shape);
                for member in 0..members {
                    let places = parts(item, member, shape);
                    let (block, at) = block_at(start, owner, index + member * shape.parts, tile);
                    write_queries::<N>(dq, workspace, &places, &block, at, shape);
                }
            }
            if comptime!(shape.parts == 1) {
                write_keys::<W>(dk, dv, &*workspace, sums, owner, shape);
            }
        }
    }
    if comptime!(shape.parts > 1) {
        sync_cube();
        add_parts::<W>(dk, dv, &*workspace, shape);
    }
}

/// The keys `from..end` and the blocks of queries from number `index` on. Sums of keys come from
/// afar where there are many: each tile of them meets all blocks at once, in their order.
#[cube]
fn pass_keys<N: Size>(
    k: &[f32],
    v: &[f32],
    documents: &[i32],
    start: &[i32],
    workspace: &mut [f32],
    item: usize,
    index: usize,
    from: usize,
    end: usize,
    #[comptime] shape: GradShape,
) {
    let tile = comptime!(shape.tile);
    let blocks = comptime!(tile.group * tile.query_blocks());
    let owner = item / shape.parts;
    let kv_head = owner % tile.kv_heads;
    for s in range_stepped(from, end, tile.keys) {
        for member in 0..min(tile.together, (blocks - index).div_ceil(shape.parts)) {
            let (block, _) = block_at(start, owner, index + member * shape.parts, tile);
            let places = parts(item, member, shape);
            let packed = places.documents;
            let near = s < block.end_key && s + tile.keys > block.first_key;
            if near {
                let agreed = documents_agree::<N>(documents, &block, s, &*workspace, packed, tile);
                let (every, none) = agreed;
                if !none {
                    let places = &places;
                    visit::<N>(
                        k, v, documents, workspace, places, &block, kv_head, s, every, shape,
                    );
                }
            }
        }
    }
}

/// Number `index` of the blocks of queries that read a head of keys, and the row of its first
/// query, counting heads.
#[cube]
fn block_at(start: &[i32], owner: usize, index: usize, #[comptime] tile: Shape) -> (Block, usize) {
    let t = index % comptime!(tile.query_blocks()) * tile.queries;
    let block = block_of(start, owner / tile.kv_heads, t, tile);
    let head = owner % tile.kv_heads * tile.group + index / comptime!(tile.query_blocks());
    let at = (block.batch * tile.t + t) * comptime!(tile.kv_heads * tile.group) + head;
    (block, at)
}

/// Packs the block's queries and output gradients both ways round, and its δ and log-sum-exp.
#[cube]
fn prepare<N: Size>(
    q: &[f32],
    y: &[f32],
    lse: &[f32],
    dy: &[f32],
    workspace: &mut [f32],
    places: &Parts,
    block: &Block,
    at: usize,
    #[comptime] shape: GradShape,
) {
    let tile = comptime!(shape.tile);
    let outer = comptime!(shape.outer);
    let stride = comptime!(tile.query_stride());
    let from = at * tile.head;
    pack_queries::<N>(q, from, block.count, tile.scale(), workspace, places.q, tile);
    pack_queries::<N>(dy, from, block.count, 1.0, workspace, places.dy, tile);
    pack_rows::<N>(
        q,
        from,
        block.count,
        stride,
        tile.scale(),
        workspace,
        places.q_rows,
        tile.head,
        tile.elem,
        outer,
    );
    let to = places.dy_rows;
    pack_rows::<N>(dy, from, block.count, stride, 1.0, workspace, to, tile.head, tile.elem, outer);
    for t in 0..tile.queries {
        // Behind the last query, and where a row sees nothing, exp(score − ∞) is the zero wanted.
        workspace[places.lse + t] = f32::INFINITY;
        workspace[places.delta + t] = 0.0;
    }
    for t in 0..block.count {
        let row = lse[at + t * comptime!(tile.kv_heads * tile.group)];
        if row > f32::NEG_INFINITY {
            workspace[places.lse + t] = row;
        }
        let row = from + t * stride;
        workspace[places.delta + t] = dot::<N>(dy, row, y, row, tile.head, tile.elem);
    }
    for i in 0..comptime!(tile.head * tile.vectors) {
        store::<f32, N>(workspace, places.dq + i * N::value(), Vector::new(0.0));
    }
}

/// The tile of keys from `s` on for one block of queries.
#[cube]
fn visit<N: Size>(
    k: &[f32],
    v: &[f32],
    documents: &[i32],
    workspace: &mut [f32],
    places: &Parts,
    block: &Block,
    kv_head: usize,
    s: usize,
    every: bool,
    #[comptime] shape: GradShape,
) {
    let tile = comptime!(shape.tile);
    let outer = comptime!(shape.outer);
    let queries = comptime!(tile.queries);
    let base = block.batch * tile.s * comptime!(tile.key_stride()) + kv_head * tile.head;
    let count = min(tile.keys, block.end_key - s);
    if every && sees_all(block, s, tile) {
        scores::<N>(k, v, documents, workspace, places, block, base, s, count, false, tile);
    } else {
        scores::<N>(k, v, documents, workspace, places, block, base, s, count, true, tile);
    }
    let dk = places.sums + s * outer.padded;
    let dv = dk + comptime!(shape.sum());
    add_outer::<N>(workspace, places.p, queries, places.dy_rows, dv, count, block.count, outer);
    add_outer::<N>(workspace, places.ds, queries, places.q_rows, dk, count, block.count, outer);
    let at = base + s * comptime!(tile.key_stride());
    add_rows::<N>(k, at, count, workspace, places.ds, places.lse, places.dq, false, tile);
}

/// p and ds of `count` keys from `first`.
#[cube]
fn scores<N: Size>(
    k: &[f32],
    v: &[f32],
    documents: &[i32],
    workspace: &mut [f32],
    places: &Parts,
    block: &Block,
    base: usize,
    first: usize,
    count: usize,
    #[comptime] border: bool,
    #[comptime] tile: Shape,
) {
    let stride = comptime!(tile.key_stride());
    let last = base + (tile.s - 1) * stride;
    let end = (count + comptime!(tile.step - 1)) / tile.step * tile.step;
    let mut sums = Array::<Vector<f32, N>>::new(comptime!(tile.rows * tile.vectors));
    for s in range_stepped(0, end, tile.rows) {
        let at = base + (first + s) * stride;
        dot_rows::<N>(k, at, last, &*workspace, places.q, &mut sums, tile);
        #[unroll]
        for i in 0..tile.rows {
            #[unroll]
            for j in 0..tile.vectors {
                let lane = j * N::value();
                let lse = load::<f32, N>(&*workspace, places.lse + lane);
                let mut p = (sums[i * tile.vectors + j] - lse).exp();
                if comptime!(border) {
                    p = masked::<N>(
                        p,
                        Vector::new(0.0),
                        block,
                        first + s + i,
                        documents,
                        &*workspace,
                        places.documents,
                        j,
                        tile,
                    );
                }
                store::<f32, N>(workspace, places.p + (s + i) * tile.queries + lane, p);
            }
        }
        dot_rows::<N>(v, at, last, &*workspace, places.dy, &mut sums, tile);
        #[unroll]
        for i in 0..tile.rows {
            #[unroll]
            for j in 0..tile.vectors {
                let lane = (s + i) * tile.queries + j * N::value();
                let delta = load::<f32, N>(&*workspace, places.delta + j * N::value());
                let p = load::<f32, N>(&*workspace, places.p + lane);
                let ds = p * (sums[i * tile.vectors + j] - delta);
                store::<f32, N>(workspace, places.ds + lane, ds);
            }
        }
    }
}

#[cube]
fn write_queries<N: Size>(
    dq: &mut [f32],
    workspace: &mut [f32],
    places: &Parts,
    block: &Block,
    at: usize,
    #[comptime] shape: GradShape,
) {
    let tile = comptime!(shape.tile);
    // δ is not needed any more: its place takes the scale.
    for t in 0..tile.queries {
        workspace[places.delta + t] = tile.scale();
    }
    let lanes = N::value();
    let size!(W) = comptime!(tile.head_lanes(lanes));
    unpack_queries::<W>(
        dq,
        at * tile.head,
        block.count,
        &*workspace,
        places.dq,
        places.delta,
        tile,
    );
}

// ---- The launch: one cube; its units share (batch, key head, part of its queries).

/// Buffers: as `AttentionSpec` lists them.
pub(crate) fn launch(device: &Device, spec: &AttentionSpec, args: &[Slice]) {
    let shape = GradShape::new(spec, device.vector_width(), device.vector_registers());
    let mask = MaskArgs::new(spec, &args[3..]);
    // SAFETY: every index lies inside its buffer by the sizes of the spec.
    unsafe {
        attention_grad::launch_unchecked(
            device.client(),
            CubeCount::new_single(),
            device.cube_dim(),
            device.vector_width(),
            device.buffer(&args[0]),
            device.buffer(&args[1]),
            device.buffer(&args[2]),
            device.buffer(&mask.documents_t),
            device.buffer(&mask.documents_s),
            device.buffer(&mask.start),
            device.buffer(&mask.rest[0]),
            device.buffer(&mask.rest[1]),
            device.buffer(&mask.rest[2]),
            device.buffer(&mask.rest[3]),
            device.buffer(&mask.rest[4]),
            device.buffer(&mask.rest[5]),
            device.buffer(&mask.rest[6]),
            shape,
            device.unaligned(&args[0], [spec.elem]),
        );
    }
    device.launched();
}

#[cfg(test)]
mod tests;
