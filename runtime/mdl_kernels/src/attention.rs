//! Attention that never stores its scores: tiles of keys × queries, softmax on the fly.
//!
//! What it computes: y[b,t,h,g,:] = Σ_s softmax_s(scale · q[b,t,h,g,:]·k[b,s,h,:]) · v[b,s,h,:]
//! under the mask, and the log-sum-exp of each row. 4·head flops and one exponential for each pair
//! that is seen; reads each key and value once for a group of blocks of queries.
//!
//! Units share groups of blocks of queries, the longest first and forth and back, so that causal
//! work is balanced; a block is computed by one unit alone, so results do not depend on their
//! number. One query a sequence (decoding) goes to `decode`, which costs the keys it sees and no
//! more.

pub(crate) mod decode;
pub(crate) mod mask;
pub(crate) mod tile;

use crate::device::{Device, Slice};
use crate::vector_io::{load, store};
use cubecl::prelude::*;
use mask::{Block, block_of, documents_agree, masked, pack_documents, sees_all};
use mdl_ir::kernel::{AttentionBlocks, AttentionSpec};
use tile::{Shape, add_rows, dot_rows, pack_queries, unpack_queries};

/// Where the parts of a unit's workspace begin, of one of its blocks of queries.
#[derive(CubeType, Clone, Copy)]
struct Parts {
    /// q · scale, [head, queries].
    q: usize,
    /// Scores, then their exponentials, [keys, queries]; of the block that is worked on.
    p: usize,
    /// Σ p · v, [head, queries].
    y: usize,
    /// [queries] each: the running maximum, the running sum, the factor for what came before.
    max: usize,
    sum: usize,
    factor: usize,
    documents: usize,
}

#[cube]
fn parts(member: usize, #[comptime] shape: Shape) -> Parts {
    let tile = comptime!(shape.head * shape.queries);
    let p = UNIT_POS as usize * comptime!(unit_elements(&shape));
    let own = p + comptime!(shape.keys * shape.queries);
    let q = own + member * comptime!(block_elements(&shape));
    let y = q + tile;
    let max = y + tile;
    let sum = max + shape.queries;
    let factor = sum + shape.queries;
    Parts { q, p, y, max, sum, factor, documents: factor + shape.queries }
}

fn block_elements(shape: &Shape) -> usize {
    (2 * shape.head + 4) * shape.queries
}

fn unit_elements(shape: &Shape) -> usize {
    shape.keys * shape.queries + shape.together * block_elements(shape)
}

/// Rounds in which all units together work through `items`.
#[cube]
pub(crate) fn rounds_of(items: usize) -> usize {
    items.div_ceil(CUBE_DIM as usize)
}

/// The item that this unit works on in this round: forth and back over units, so that each gets
/// a fair share of items that become smaller and smaller.
#[cube]
pub(crate) fn fair_item(round: usize) -> usize {
    let units = CUBE_DIM as usize;
    let unit = UNIT_POS as usize;
    let place = if round.is_multiple_of(2) { unit } else { units - 1 - unit };
    round * units + place
}

#[cube(launch_unchecked, address_type = "u64")]
fn attention<N: Size>(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    documents_t: &[i32],
    documents_s: &[i32],
    start: &[i32],
    y: &mut [f32],
    lse: &mut [f32],
    workspace: &mut [f32],
    #[comptime] shape: Shape,
    _unaligned: &[f32],
) {
    let heads = comptime!(shape.kv_heads * shape.group);
    let rows = comptime!(shape.batch * heads);
    let groups = comptime!(shape.query_blocks().div_ceil(shape.together));
    for round in 0..rounds_of(rows * groups) {
        let item = fair_item(round);
        if item < rows * groups {
            let group = (groups - 1 - item / rows) * shape.together;
            let (batch, head) = (item % rows / heads, item % rows % heads);
            let members = min(shape.together, comptime!(shape.query_blocks()) - group);
            for member in 0..members {
                let block = block_of(start, batch, (group + member) * shape.queries, shape);
                let parts = parts(member, shape);
                let at = row_of(&block, head, shape) * shape.head;
                let to = parts.q;
                pack_queries::<N>(q, at, block.count, shape.scale(), workspace, to, shape);
                pack_documents(documents_t, &block, workspace, parts.documents, shape);
                clear::<N>(workspace, &parts, shape);
            }
            let first = block_of(start, batch, group * shape.queries, shape);
            let last = block_of(start, batch, (group + members - 1) * shape.queries, shape);
            // Keys and values come from afar where there are many: each tile of them meets all
            // blocks of the group at once. Tiles are the same whatever the group is.
            let from = first.first_key / shape.keys * shape.keys;
            for s in range_stepped(from, last.end_key, shape.keys) {
                for member in 0..members {
                    let block = block_of(start, batch, (group + member) * shape.queries, shape);
                    if s < block.end_key && s + shape.keys > block.first_key {
                        let parts = parts(member, shape);
                        let kv_head = head / shape.group;
                        attend::<N>(
                            k,
                            v,
                            documents_s,
                            workspace,
                            &parts,
                            &block,
                            kv_head,
                            s,
                            shape,
                        );
                    }
                }
            }
            for member in 0..members {
                let block = block_of(start, batch, (group + member) * shape.queries, shape);
                let at = row_of(&block, head, shape);
                finish::<N>(y, lse, workspace, &parts(member, shape), &block, at, shape);
            }
        }
    }
}

/// The row of a block's first query, counting heads.
#[cube]
fn row_of(block: &Block, head: usize, #[comptime] shape: Shape) -> usize {
    (block.batch * shape.t + block.t) * comptime!(shape.kv_heads * shape.group) + head
}

/// Nothing has been seen.
#[cube]
fn clear<N: Size>(workspace: &mut [f32], parts: &Parts, #[comptime] shape: Shape) {
    for d in 0..comptime!(shape.head * shape.vectors) {
        store::<f32, N>(workspace, parts.y + d * N::value(), Vector::new(0.0));
    }
    #[unroll]
    for j in 0..shape.vectors {
        let at = j * N::value();
        store::<f32, N>(workspace, parts.max + at, Vector::new(f32::NEG_INFINITY));
        store::<f32, N>(workspace, parts.sum + at, Vector::new(0.0));
    }
}

/// The tile of keys from `s` on for one block of queries.
#[cube]
fn attend<N: Size>(
    k: &[f32],
    v: &[f32],
    documents: &[i32],
    workspace: &mut [f32],
    parts: &Parts,
    block: &Block,
    kv_head: usize,
    s: usize,
    #[comptime] shape: Shape,
) {
    let base = block.batch * shape.s * comptime!(shape.key_stride()) + kv_head * shape.head;
    let packed = parts.documents;
    let (every, none) = documents_agree::<N>(documents, block, s, &*workspace, packed, shape);
    if !none {
        let mut largest = Array::<Vector<f32, N>>::new(shape.vectors);
        #[unroll]
        for j in 0..shape.vectors {
            largest[j] = load::<f32, N>(&*workspace, parts.max + j * N::value());
        }
        let end = min(s + shape.keys, block.end_key);
        let most = &mut largest;
        if every && sees_all(block, s, shape) {
            score::<N>(k, documents, workspace, parts, block, base, s, end, most, false, shape);
        } else {
            score::<N>(k, documents, workspace, parts, block, base, s, end, most, true, shape);
        }
        exponentiate::<N>(workspace, parts, end - s, &largest, shape);
        let at = base + s * comptime!(shape.key_stride());
        add_rows::<N>(v, at, end - s, workspace, parts.p, parts.factor, parts.y, true, shape);
    }
}

/// Scores of keys `first..end`, and the largest of each query.
#[cube]
fn score<N: Size>(
    k: &[f32],
    documents: &[i32],
    workspace: &mut [f32],
    parts: &Parts,
    block: &Block,
    base: usize,
    first: usize,
    end: usize,
    largest: &mut Array<Vector<f32, N>>,
    #[comptime] border: bool,
    #[comptime] shape: Shape,
) {
    let stride = comptime!(shape.key_stride());
    let mut sums = Array::<Vector<f32, N>>::new(comptime!(shape.rows * shape.vectors));
    for s in range_stepped(first, end, shape.rows) {
        let last = base + (shape.s - 1) * stride;
        dot_rows::<N>(k, base + s * stride, last, &*workspace, parts.q, &mut sums, shape);
        #[unroll]
        for i in 0..shape.rows {
            #[unroll]
            for j in 0..shape.vectors {
                let mut score = sums[i * shape.vectors + j];
                if comptime!(border) {
                    score = masked::<N>(
                        score,
                        Vector::new(f32::NEG_INFINITY),
                        block,
                        s + i,
                        documents,
                        &*workspace,
                        parts.documents,
                        j,
                        shape,
                    );
                }
                largest[j] = max(largest[j], score);
                let place = parts.p + (s - first + i) * shape.queries + j * N::value();
                store::<f32, N>(workspace, place, score);
            }
        }
    }
}

/// p = exp(score − maximum) for `count` keys; updates maximum, sum and factor.
#[cube]
fn exponentiate<N: Size>(
    workspace: &mut [f32],
    parts: &Parts,
    count: usize,
    largest: &Array<Vector<f32, N>>,
    #[comptime] shape: Shape,
) {
    #[unroll]
    for j in 0..shape.vectors {
        let lane = j * N::value();
        let old = load::<f32, N>(&*workspace, parts.max + lane);
        let new = largest[j];
        // Where nothing has been seen yet the maximum is −∞, and −∞ − −∞ is no number.
        let nothing = new.equal(&Vector::new(f32::NEG_INFINITY));
        let by = select_many(nothing, Vector::new(0.0), new);
        let factor = (old - by).exp();
        let mut sum = load::<f32, N>(&*workspace, parts.sum + lane) * factor;
        for s in 0..count {
            let place = parts.p + s * shape.queries + lane;
            let p = (load::<f32, N>(&*workspace, place) - by).exp();
            sum += p;
            store::<f32, N>(workspace, place, p);
        }
        store::<f32, N>(workspace, parts.max + lane, new);
        store::<f32, N>(workspace, parts.sum + lane, sum);
        store::<f32, N>(workspace, parts.factor + lane, factor);
    }
}

/// Divides by the sums and writes the block's rows.
#[cube]
fn finish<N: Size>(
    y: &mut [f32],
    lse: &mut [f32],
    workspace: &mut [f32],
    parts: &Parts,
    block: &Block,
    at: usize,
    #[comptime] shape: Shape,
) {
    #[unroll]
    for j in 0..shape.vectors {
        let lane = j * N::value();
        let sum = load::<f32, N>(&*workspace, parts.sum + lane);
        let nothing = sum.equal(&Vector::new(0.0));
        let inverse = select_many(nothing, Vector::new(0.0), Vector::new(1.0) / sum);
        store::<f32, N>(workspace, parts.factor + lane, inverse);
        let total = load::<f32, N>(&*workspace, parts.max + lane) + sum.ln();
        let total = select_many(nothing, Vector::new(f32::NEG_INFINITY), total);
        store::<f32, N>(workspace, parts.sum + lane, total);
    }
    for t in 0..block.count {
        let row = at + t * comptime!(shape.kv_heads * shape.group);
        lse[row] = workspace[parts.sum + t];
    }
    let lanes = N::value();
    let size!(W) = comptime!(shape.head_lanes(lanes));
    unpack_queries::<W>(y, at * shape.head, block.count, &*workspace, parts.y, parts.factor, shape);
}

// ---- The launch: one cube; its units share (batch, head, block of queries).

/// The optional buffers of a spec; one that the mask does not use is any buffer at all.
pub(crate) struct MaskArgs<'a> {
    pub documents_t: Slice<'a>,
    pub documents_s: Slice<'a>,
    pub start: Slice<'a>,
    /// The arguments behind them.
    pub rest: &'a [Slice<'a>],
}

impl<'a> MaskArgs<'a> {
    /// `args` begins behind q, k and v.
    pub(crate) fn new(spec: &AttentionSpec, args: &'a [Slice<'a>]) -> Self {
        let documents = if spec.mask.documents { 2 } else { 0 };
        let rest = documents + usize::from(spec.mask.start);
        MaskArgs {
            documents_t: args[0],
            documents_s: args[documents / 2],
            start: args[documents],
            rest: &args[rest..],
        }
    }
}

/// Groups of each unit, so that units end together.
const GROUPS: usize = 4;

/// Blocks of a group: as many as there is room for and as leave work for all units.
fn together(shape: &Shape, units: usize) -> usize {
    let blocks = shape.batch * shape.kv_heads * shape.group * shape.query_blocks();
    let room = AttentionBlocks::TOGETHER as usize / shape.queries;
    room.min(blocks / (GROUPS * units)).max(1)
}

/// Buffers: as `AttentionSpec` lists them.
pub(crate) fn launch(device: &Device, spec: &AttentionSpec, args: &[Slice]) {
    let mut shape = Shape::new(spec, device.vector_width(), device.vector_registers());
    shape.together = together(&shape, device.units() as usize);
    let mask = MaskArgs::new(spec, &args[3..]);
    if spec.t == 1 {
        return decode::launch(device, shape, &mask, args);
    }
    // SAFETY: every index lies inside its buffer by the sizes of the spec.
    unsafe {
        attention::launch_unchecked(
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
            shape,
            device.unaligned(&args[0], [spec.elem]),
        );
    }
    device.launched();
}

#[cfg(test)]
pub(crate) mod tests;
