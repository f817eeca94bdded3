//! Collectives as launches: what the ranks of a group give each other, and how many bytes that is.

use super::Elem;
use crate::op::{Collective, Group};
use serde::{Deserialize, Serialize};

/// A value of `len` elements, or the same in pieces, one on each rank of the group in their order.
/// What of the pieces lies behind `len` is zero. Sums over ranks are those of a binary tree over
/// them: ((0 + 1) + (2 + 3)) + …, element by element.
///
/// Buffers: all-gather: own piece, whole (`ranks · piece` elements); reduce-scatter: whole (`len`
/// elements), own piece; all-reduce: whole, in place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CollectiveSpec {
    pub kind: Collective,
    pub group: Group,
    pub elem: Elem,
    pub len: u64,
    /// Elements of a piece; for an all-reduce all of them.
    pub piece: u64,
}

impl CollectiveSpec {
    /// Bytes of the whole, with what fills up its pieces.
    pub fn bytes(&self) -> u64 {
        let whole = match self.kind {
            Collective::AllReduce => self.len,
            Collective::AllGather | Collective::ReduceScatter => self.group.ranks * self.piece,
        };
        whole * self.elem.bytes()
    }

    /// Bytes that a rank sends, where every rank sends as many: a piece to each of the others, and
    /// for an all-reduce that twice, since it is a reduce-scatter and an all-gather.
    pub fn wire_bytes(&self) -> u64 {
        let once = self.bytes() * (self.group.ranks - 1) / self.group.ranks;
        match self.kind {
            Collective::AllReduce => 2 * once,
            Collective::AllGather | Collective::ReduceScatter => once,
        }
    }
}
