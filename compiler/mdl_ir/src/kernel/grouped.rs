//! Contractions of rows with the matrix of each row's group: experts of a mixture.
//!
//! Rows stay where they are. The kernel sorts their numbers by group, stably, and then works group
//! by group; so no row is dropped, no row is padded, and only the order is data.

use super::{ContractBlocks, ContractSpec, Dim, Elem};
use serde::{Deserialize, Serialize};

/// out[r, :] = w[ids[r]] · a[r / share] for every row r. w is [groups, n, k], or [groups, k, n] if
/// `transposed`. A row whose id is below 0 or at or above `groups` gives zeros.
///
/// Buffers: a [rows / share, k], w, ids i32 [rows], out [rows, n], workspace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupedContractSpec {
    /// a, w and out.
    pub elem: Elem,
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
    /// a and b.
    pub elem: Elem,
    pub out: Elem,
    pub rows: u32,
    pub share_a: u32,
    pub share_b: u32,
    pub groups: u32,
    pub m: u32,
    pub n: u32,
}

impl GroupedContractSpec {
    /// Rows of a group, on average, up to which its matrix is better read in place than packed.
    const IN_PLACE_ROWS: u64 = 4;
    /// Rows in all up to which this holds whatever the number of groups.
    const FEW_ROWS: u64 = 8;

    /// Matrices are read in place. It depends on the spec alone, because the order of summation
    /// depends on it.
    pub fn in_place(&self) -> bool {
        let most = (Self::IN_PLACE_ROWS * u64::from(self.groups)).max(Self::FEW_ROWS);
        u64::from(self.rows) <= most
    }

    /// The contraction of a group that has all rows.
    pub fn of_one_group(&self) -> ContractSpec {
        let (n, k) = if self.transposed { (1, self.n) } else { (self.k, 1) };
        contraction(
            (self.elem, self.elem),
            [
                Dim { size: self.rows, stride: self.k, stride_b: 0 },
                Dim { size: self.n, stride: n, stride_b: 0 },
                Dim { size: self.k, stride: 1, stride_b: k },
            ],
        )
    }

    pub(super) fn workspace_bytes(&self, units: u32) -> u64 {
        GroupedParts::of(self.rows, self.groups, &self.of_one_group(), units).bytes(units)
    }
}

impl GroupedOuterSpec {
    /// The contraction of a group that has all rows.
    pub fn of_one_group(&self) -> ContractSpec {
        contraction(
            (self.elem, self.out),
            [
                Dim { size: self.m, stride: 1, stride_b: 0 },
                Dim { size: self.n, stride: 1, stride_b: 0 },
                Dim { size: self.rows, stride: self.m, stride_b: self.n },
            ],
        )
    }

    pub(super) fn workspace_bytes(&self, units: u32) -> u64 {
        GroupedParts::of(self.rows, self.groups, &self.of_one_group(), units).bytes(units)
    }
}

fn contraction((elem, out): (Elem, Elem), [m, n, k]: [Dim; 3]) -> ContractSpec {
    ContractSpec {
        a: elem,
        b: elem,
        outputs: vec![out],
        batch: vec![],
        m: vec![m],
        n: vec![n],
        k: vec![k],
        prologue: None,
        rotary: None,
        epilogue_inputs: vec![],
        epilogue: vec![],
    }
}

/// How a grouped contraction uses its workspace, in elements of four bytes: counters, the sorted
/// rows, and then for each unit its packed blocks, a tile and the partial sums of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupedParts {
    pub counters: u64,
    /// The rows' numbers in order of their groups (`rows`), where each group starts and the strays
    /// and the end (`groups + 2`), and where the next row of each goes (`groups + 1`).
    pub sorted: u64,
    /// Steps of k of a packed block.
    pub depth: u64,
    pub packed_b: u64,
    pub packed_a: u64,
    pub tile: u64,
    /// None where partial sums wait in the output, or there are none.
    pub partial: u64,
}

impl GroupedParts {
    /// Columns and rows of the blocks that a unit packs: multiples of every tile's width and
    /// height, and together with the depth small enough for a unit's second cache.
    pub const COLUMNS: u64 = 192;
    pub const ROWS: u64 = 96;
    /// Rows of a piece that are worth packing a block of a group's matrix for again.
    pub const PIECE_ROWS: u64 = 384;

    pub fn of(rows: u32, groups: u32, one: &ContractSpec, units: u32) -> GroupedParts {
        let blocks = ContractBlocks::of(one, units);
        GroupedParts {
            counters: ContractBlocks::COUNTERS,
            sorted: (u64::from(rows) + 2 * u64::from(groups) + 3).next_multiple_of(64),
            depth: blocks.depth,
            packed_b: Self::COLUMNS * blocks.depth,
            packed_a: Self::ROWS * blocks.depth,
            tile: blocks.tile(),
            partial: if blocks.partial { Self::PIECE_ROWS * Self::COLUMNS } else { 0 },
        }
    }

    /// Elements that one unit has for itself.
    pub fn own(&self) -> u64 {
        self.packed_b + self.packed_a + self.tile + self.partial
    }

    pub fn bytes(&self, units: u32) -> u64 {
        4 * (self.counters + self.sorted + self.own() * u64::from(units))
    }
}
