//! What attention on a GPU is specialised by, and how its tiles lie in the memory that a cube
//! shares.
//!
//! A cube owns a block of rows (queries, or keys where their gradients are summed), and rows of the
//! other kind pass by it, `columns` at a time. A plane of 32 units owns `strips` of 16 rows. Tiles
//! are stored in words: an f32, or two bf16.

use mdl_ir::kernel::{AttentionSpec, Elem};

/// Units of a plane, also where the device's own planes are others.
pub(crate) const PLANE: usize = 32;
/// Rows that one instruction for products takes, and columns.
pub(crate) const ROWS: usize = 16;
pub(crate) const TILE: usize = 8;
/// Words along the sum of one instruction for products.
pub(crate) const DEPTH: usize = 8;

/// How products of tiles are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Product {
    /// Multiply-adds of each unit.
    Loops,
    /// Tensor cores on f32 numbers, each split into two that together are nearly as precise.
    Tf32,
    Bf16,
}

/// Which of the three kernels a cube is of: they keep different tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Pass {
    /// q is owned, k and v pass by.
    Forward,
    /// q and dy are owned, k and v pass by.
    Queries,
    /// k and v are owned, q and dy pass by.
    Keys,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    /// Of queries, keys, values and what is as large as they are.
    pub elem: Elem,
    pub batch: usize,
    pub t: usize,
    pub s: usize,
    pub kv_heads: usize,
    pub group: usize,
    pub head: usize,
    pub scale_bits: u32,
    pub causal: bool,
    pub window: Option<usize>,
    pub documents: bool,
    pub start: bool,
    pub product: Product,
    /// Whether four words are read at a time.
    pub wide: bool,
    pub planes: usize,
    pub strips: usize,
    /// Rows that pass by at a time.
    pub columns: usize,
}

impl Shape {
    /// Without tiles.
    pub(crate) fn of(spec: &AttentionSpec, product: Product, wide: bool) -> Shape {
        Shape {
            elem: spec.elem,
            batch: spec.batch as usize,
            t: spec.t as usize,
            s: spec.s as usize,
            kv_heads: spec.kv_heads as usize,
            group: spec.group as usize,
            head: spec.head as usize,
            scale_bits: spec.scale.to_bits(),
            causal: spec.mask.causal,
            window: spec.mask.window.map(|window| window as usize),
            documents: spec.mask.documents,
            start: spec.mask.start,
            product,
            wide: wide && (spec.head as usize).is_multiple_of(4 * per_word(spec.elem)),
            planes: 1,
            strips: 1,
            columns: ROWS,
        }
    }

    pub(crate) fn new(spec: &AttentionSpec, pass: Pass, product: Product, wide: bool) -> Shape {
        let fitting = Shape::fitting(spec, pass, product, wide);
        fitting.expect("invariant: `Device::refusal` was asked before anything ran")
    }

    /// With the first of the tiles whose memory a cube has.
    pub(crate) fn fitting(
        spec: &AttentionSpec,
        pass: Pass,
        product: Product,
        wide: bool,
    ) -> Option<Shape> {
        let shape = Shape::of(spec, product, wide);
        let tiled = |(planes, strips, columns)| Shape { planes, strips, columns, ..shape };
        let mut all = shape.tilings(pass).into_iter().map(tiled);
        all.find(|tiled| tiled.shared_bytes(pass) <= tiled.most_shared_bytes())
    }

    /// Planes, strips and columns, the preferred ones first.
    fn tilings(&self, pass: Pass) -> Vec<(usize, usize, usize)> {
        let mut all = Vec::new();
        let large = if pass == Pass::Forward && self.padded() <= 128 { 64 } else { 32 };
        let columns = match self.product {
            Product::Loops => vec![16, 8],
            // Sums of keys' gradients take as many registers again, and split numbers the rest: of
            // large heads a unit has no room for two steps along the sum.
            Product::Tf32 if pass == Pass::Keys && self.padded() > 64 => vec![8],
            Product::Tf32 if pass == Pass::Keys => vec![16, 8],
            Product::Tf32 => vec![32, 16, 8],
            Product::Bf16 if pass == Pass::Keys && self.padded() > 64 => vec![16],
            Product::Bf16 => vec![large, 32, 16],
        };
        let planes = if self.product == Product::Loops { vec![2, 1] } else { vec![4, 2, 1] };
        for planes in planes {
            all.extend(columns.iter().map(|&columns| (planes, 1, columns)));
        }
        all
    }

    /// Two cubes at a time fit a multiprocessor of compute capability 8.0, and one everywhere else.
    fn most_shared_bytes(&self) -> usize {
        if self.product == Product::Loops { 32 << 10 } else { 96 << 10 }
    }

    fn shared_bytes(&self, pass: Pass) -> usize {
        let owned = if pass == Pass::Forward { 1 } else { 2 };
        let turned = match pass {
            Pass::Forward | Pass::Queries => 1,
            Pass::Keys => 2,
        };
        let upright = if pass == Pass::Forward && self.turns() { 1 } else { 2 };
        let words = owned * self.rows_words(self.rows())
            + upright * self.rows_words(self.columns)
            + turned * self.turned_words()
            + self.scratch_words()
            + 2 * self.columns;
        4 * words
    }

    /// The head, padded with zeros to whole steps of an instruction for products.
    pub(crate) fn padded(&self) -> usize {
        self.head.next_multiple_of(self.step())
    }

    /// Words of a padded row.
    pub(crate) fn words(&self) -> usize {
        self.padded() / per_word(self.elem)
    }

    /// Tiles that a padded head has across.
    pub(crate) fn head_tiles(&self) -> usize {
        self.padded() / TILE
    }

    pub(crate) fn column_tiles(&self) -> usize {
        self.columns / TILE
    }

    /// Columns, or numbers of a head, that one instruction for products sums over.
    fn step(&self) -> usize {
        DEPTH * per_word(self.elem)
    }

    /// Such steps of all strips of a plane, where columns are summed over.
    pub(crate) fn steps(&self) -> usize {
        self.strips * self.columns / self.step()
    }

    /// Numbers that a unit holds of what is summed for its plane's rows, over heads.
    pub(crate) fn sums(&self) -> usize {
        self.strips * self.head_tiles() * 4
    }

    /// The same of what is computed for its plane's rows and the columns that pass by.
    pub(crate) fn weights(&self) -> usize {
        self.strips * self.column_tiles() * 4
    }

    /// Words between rows of a tile: four more than a multiple of eight, so that the words that a
    /// plane reads at a time, eight rows of four or four pairs of rows of eight, lie in 32 banks.
    pub(crate) fn pitch(&self) -> usize {
        self.words() + 4
    }

    /// Whether tiles that are summed over their rows need a form of their own: two bf16 of one
    /// word must then be of two rows.
    pub(crate) fn turns(&self) -> bool {
        self.elem == Elem::Bf16
    }

    /// Words between pairs of rows: an odd multiple of eight, so that four pairs of eight words lie
    /// in 32 banks.
    pub(crate) fn turned_pitch(&self) -> usize {
        self.padded() + 8
    }

    /// Rows that a cube owns.
    pub(crate) fn rows(&self) -> usize {
        self.planes * self.strips * ROWS
    }

    pub(crate) fn units(&self) -> usize {
        self.planes * PLANE
    }

    pub(crate) fn rows_words(&self, rows: usize) -> usize {
        rows * self.pitch()
    }

    /// Words of a tile that is summed over its rows; few where it has no form of its own.
    pub(crate) fn turned_words(&self) -> usize {
        if self.turns() { self.columns / 2 * self.turned_pitch() } else { 4 }
    }

    /// Words through which units exchange numbers where planes do not.
    pub(crate) fn scratch_words(&self) -> usize {
        let exchange = self.rows() * self.scratch_pitch();
        if self.product == Product::Loops { exchange.max(self.units()) } else { 4 }
    }

    pub(crate) fn scratch_pitch(&self) -> usize {
        self.columns + 1
    }

    pub(crate) fn scale(&self) -> f32 {
        f32::from_bits(self.scale_bits)
    }

    /// Scores as powers of two.
    pub(crate) fn scale_log2(&self) -> f32 {
        self.scale() * std::f32::consts::LOG2_E
    }

    pub(crate) fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    /// Elements between one key and the next.
    pub(crate) fn key_stride(&self) -> usize {
        self.kv_heads * self.head
    }

    /// Elements between one query and the next.
    pub(crate) fn query_stride(&self) -> usize {
        self.heads() * self.head
    }

    pub(crate) fn query_blocks(&self) -> usize {
        self.t.div_ceil(self.rows())
    }

    pub(crate) fn key_blocks(&self) -> usize {
        self.s.div_ceil(self.rows())
    }
}

fn per_word(elem: Elem) -> usize {
    if elem == Elem::Bf16 { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mdl_ir::kernel::MaskSpec;

    #[test]
    fn every_head_has_a_tiling_without_conflicts_of_banks() {
        for (elem, product) in [(Elem::F32, Product::Tf32), (Elem::Bf16, Product::Bf16)] {
            for head in 1..=256 {
                let mask = MaskSpec::default();
                let (batch, t, s, kv_heads, group, scale) = (1, 70, 90, 2, 1, 1.0);
                let spec = AttentionSpec { elem, batch, t, s, kv_heads, group, head, scale, mask };
                for pass in [Pass::Forward, Pass::Queries, Pass::Keys] {
                    let shape = Shape::new(&spec, pass, product, true);
                    assert_eq!(shape.pitch() % 8, 4, "{shape:?}");
                    assert!(!shape.turns() || shape.turned_pitch() % 16 == 8, "{shape:?}");
                }
            }
        }
    }
}
