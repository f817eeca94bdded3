//! Contractions of rows with the matrix of each row's group: experts of a mixture.
//!
//! Rows stay where they are. The kernel sorts their numbers by group, stably, and then works group
//! by group; so no row is dropped, no row is padded, and only the order is data.

use serde::{Deserialize, Serialize};

/// out[r, :] = w[ids[r]] · a[r / share] for every row r. w is [groups, n, k], or [groups, k, n] if
/// `transposed`. A row whose id is below 0 or at or above `groups` gives zeros.
///
/// Buffers: a [rows / share, k], w, ids i32 [rows], out [rows, n], workspace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupedContractSpec {
    pub rows: u32,
    /// Neighbouring rows that read one row of a.
    pub share: u32,
    pub groups: u32,
    pub n: u32,
    pub k: u32,
    pub transposed: bool,
}

/// out[e, i, j] = Σ_{r: ids[r] = e} a[r / share_a, i] · b[r / share_b, j], in the order of r.
/// A group without rows is zero; rows whose ids are out of range are in no group.
///
/// Buffers: a [rows / share_a, m], b [rows / share_b, n], ids i32 [rows], out [groups, m, n],
/// workspace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupedOuterSpec {
    pub rows: u32,
    pub share_a: u32,
    pub share_b: u32,
    pub groups: u32,
    pub m: u32,
    pub n: u32,
}

impl GroupedContractSpec {
    pub(super) fn workspace_bytes(&self, _units: u32) -> u64 {
        sorted_bytes(self.rows, self.groups)
    }
}

impl GroupedOuterSpec {
    pub(super) fn workspace_bytes(&self, _units: u32) -> u64 {
        sorted_bytes(self.rows, self.groups)
    }
}

/// The rows in order of their groups, and where each group starts.
fn sorted_bytes(rows: u32, groups: u32) -> u64 {
    4 * (u64::from(rows) + u64::from(groups) + 2).next_multiple_of(64)
}
