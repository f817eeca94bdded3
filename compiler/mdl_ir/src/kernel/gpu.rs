//! The workspace of kernels on a GPU, where cubes keep what they share in memory of their own.

use super::{
    AttentionBlocks, AttentionSpec, KernelSpec, LinearCrossEntropyParts, SUM_CHUNK, Target,
};

/// Queries of a sequence up to which attention splits their keys into parts, which leave their sums
/// in the workspace: a block of queries would be nearly empty.
pub const DECODED_QUERIES: u32 = 4;

/// Bytes that `workspace_bytes` reserves for a GPU.
pub(super) fn workspace_bytes(spec: &KernelSpec) -> u64 {
    match spec {
        KernelSpec::LinearCrossEntropy(spec) => LinearCrossEntropyParts::of(spec, Target::Gpu).end,
        KernelSpec::SumOfSquares(spec) | KernelSpec::MoreSquares(spec) => {
            spec.len.div_ceil(SUM_CHUNK) * 4
        }
        KernelSpec::Attention(spec) if spec.t <= DECODED_QUERIES => {
            let parts = AttentionBlocks::of(spec).decode_parts;
            4 * attention_rows(spec) * parts * (u64::from(spec.head) + 2)
        }
        KernelSpec::AttentionGrad(spec) => 4 * attention_rows(spec),
        KernelSpec::GroupedContract(spec) => sorted_bytes(spec.rows, spec.groups),
        KernelSpec::GroupedOuter(spec) => sorted_bytes(spec.rows, spec.groups),
        _ => 0,
    }
}

/// Rows of queries over all heads: attention's gradient keeps one number for each.
fn attention_rows(spec: &AttentionSpec) -> u64 {
    [spec.batch, spec.t, spec.kv_heads, spec.group].iter().map(|&size| u64::from(size)).product()
}

/// The order of rows by group, where each group starts in it, and where its next row goes.
fn sorted_bytes(rows: u32, groups: u32) -> u64 {
    4 * (u64::from(rows) + 2 * u64::from(groups) + 3)
}
