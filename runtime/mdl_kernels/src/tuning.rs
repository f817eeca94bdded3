//! Tiles and blocks of contractions on a CPU: what a model of its registers and caches says, and,
//! where a tuner has found better, what the table says that ships.
//!
//! They decide within the workspace that a spec reserves, which no machine decides. Depths, and
//! with them the order of sums, depend on the CPU, the elements and the spec, never on the threads.

use crate::products::Products;
use crate::tiles::SIDE;
use mdl_ir::kernel::ContractBlocks;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use std::sync::OnceLock;

/// What the tuner has found, on the machines where it has run.
const SHIPPED: &str = include_str!("../tuned.json");

/// A CPU as the model sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    pub registers: usize,
    /// f32 lanes of one of them.
    pub width: usize,
    /// Bytes of the three levels of caches: a core's, a core's, and what cores share.
    pub caches: [usize; 3],
}

impl Cpu {
    /// What is taken for a cache of which nothing is known: less than most cores have.
    const CACHES: [usize; 3] = [32 << 10, 512 << 10, 8 << 20];

    pub(crate) fn new(registers: usize, width: usize) -> Cpu {
        static READ: OnceLock<[usize; 3]> = OnceLock::new();
        let folder = Path::new("/sys/devices/system/cpu/cpu0/cache");
        let caches = *READ.get_or_init(|| Cpu::caches_in(folder));
        Cpu { registers, width, caches }
    }

    /// Caches as Linux describes them: a folder for each, with files for level, type and size.
    pub fn caches_in(folder: &Path) -> [usize; 3] {
        let mut caches = Cpu::CACHES;
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let said = |name| std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
            let (level, size) = (said("level"), said("size"));
            let Some(level) = level.trim().parse::<usize>().ok().filter(|l| (1..=3).contains(l))
            else {
                continue;
            };
            let size = size.trim().strip_suffix('K').and_then(|kib| kib.parse::<usize>().ok());
            if let Some(kib) = size.filter(|kib| *kib > 0 && said("type").trim() != "Instruction") {
                caches[level - 1] = kib << 10;
            }
        }
        caches
    }
}

/// Where tiles read a: a contraction that packs both operands has other costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rows {
    InPlace,
    Packed,
}

/// The sizes that a contraction works in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blocks {
    /// Rows and vectors of a tile; its sums stay in registers.
    pub tile_rows: usize,
    pub tile_vectors: usize,
    /// Words of k, each an f32 or a pair of bf16, between two visits of a sum.
    pub depth: usize,
    /// Columns of the packed block of b.
    pub columns: usize,
    /// Rows of a that a unit multiplies with a panel of b before it takes the next panel.
    pub rows: usize,
}

impl Blocks {
    /// Bytes that come out of the second cache in a cycle, and loads from the first one.
    const BYTES_PER_CYCLE: f64 = 32.0;
    const LOADS_PER_CYCLE: f64 = 2.0;

    /// By the model. Every tile of rows reads a panel of b again, out of the second cache: a panel
    /// is at most an eighth of that, so that the next one finds room beside it. The rows of a that
    /// stay there take a quarter. b comes out of the third cache, with a quarter of that.
    pub fn model(cpu: &Cpu, products: Products) -> Blocks {
        let (tile_rows, tile_vectors) = Blocks::tile(cpu, products);
        let [_, second, third] = cpu.caches;
        let whole = |size: usize, of: u64, most: u64| {
            let of = of as usize;
            (size / of * of).clamp(of, most as usize)
        };
        let depth = second / 8 / (4 * tile_vectors * cpu.width);
        let depth = whole(depth, 16, ContractBlocks::DEPTH);
        // What is multiplied twice as fast stays where it is twice as long.
        let longer = if products == Products::Widened { 1 } else { 2 };
        let rows = whole(longer * second / 4 / (4 * depth), ContractBlocks::TILE_ROWS, 256);
        let columns = third / 4 / longer / (4 * depth);
        let columns = whole(columns, ContractBlocks::TILE_COLUMNS, ContractBlocks::COLUMNS);
        Blocks { tile_rows, tile_vectors, depth, columns, rows: rows / tile_rows * tile_rows }
    }

    /// Rows and vectors of a tile: beside its sums there are registers for a row of b and one
    /// broadcast of a, and one to spare. Of those that fit, it is the one that loads least for each
    /// multiplication. Of tile registers there are eight: 2·2 + 2 + 2.
    fn tile(cpu: &Cpu, products: Products) -> (usize, usize) {
        if products == Products::Tiles {
            return (2 * SIDE, 2);
        }
        let loads = |(rows, vectors): &(usize, usize)| {
            let bytes = 4 * (vectors * cpu.width + rows);
            let loads = (rows + vectors) as f64 / Blocks::LOADS_PER_CYCLE;
            (loads + bytes as f64 / Blocks::BYTES_PER_CYCLE) / (rows * vectors) as f64
        };
        // Blocks of rows are whole tiles, hence divisors of `ContractBlocks::TILE_ROWS`.
        let rows = [1, 2, 4, 6, 8, 12, 16];
        let tiles =
            rows.into_iter().flat_map(|rows| [1, 2, 3, 4, 6].map(|vectors| (rows, vectors)));
        let fit = tiles.filter(|(rows, vectors)| rows * vectors + vectors + 1 < cpu.registers);
        fit.min_by(|a, b| loads(a).total_cmp(&loads(b))).unwrap_or((1, 1))
    }

    /// What is wrong with them, on a CPU whose vectors are so long.
    pub fn fault(&self, products: Products, width: usize) -> Option<String> {
        let Blocks { tile_rows, tile_vectors, depth, columns, rows } = *self;
        let divides = |part: usize, of: u64| part > 0 && (of as usize).is_multiple_of(part);
        let multiple = |size: usize, of: usize| size > 0 && size.is_multiple_of(of);
        let tiles = match products {
            Products::Tiles => (tile_rows, tile_vectors) == (2 * SIDE, 2),
            _ => {
                divides(tile_rows, ContractBlocks::TILE_ROWS)
                    && divides(tile_vectors * width, ContractBlocks::TILE_COLUMNS)
                    && tile_rows * tile_vectors + tile_vectors < registers_of(width)
            }
        };
        let checks = [
            (tiles, "a tile is of such rows and vectors that blocks are whole tiles"),
            (multiple(depth, 16), "the depth is a multiple of 16"),
            (
                multiple(columns, ContractBlocks::TILE_COLUMNS as usize)
                    && columns <= ContractBlocks::COLUMNS as usize,
                "the columns are a multiple of 192, at most 3072",
            ),
            (tile_rows > 0 && multiple(rows, tile_rows), "the rows are a multiple of a tile's"),
        ];
        let broken = checks.into_iter().find(|(holds, _)| !holds);
        broken.map(|(_, rule)| format!("{self}: {rule}"))
    }
}

/// AVX has 16 registers of eight lanes; AVX-512 and NEON have 32 of theirs.
fn registers_of(width: usize) -> usize {
    if width == 8 { 16 } else { 32 }
}

impl fmt::Display for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Blocks { tile_rows, tile_vectors, depth, columns, rows } = self;
        write!(f, "{tile_rows} × {tile_vectors}, {depth} deep, {columns} columns, {rows} rows")
    }
}

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuned {
    /// The CPU as LLVM calls it.
    pub cpu: String,
    /// f32 lanes of a vector.
    pub width: usize,
    pub products: Products,
    pub a: Rows,
    pub blocks: Blocks,
    /// How much faster than the model's they were, as the ratio of speeds.
    pub gain: f64,
}

/// What the tuner found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Table(pub Vec<Tuned>);

impl Table {
    pub fn shipped() -> &'static Table {
        static TABLE: OnceLock<Table> = OnceLock::new();
        TABLE.get_or_init(|| Table::read(SHIPPED).expect("invariant: a test reads the table"))
    }

    pub fn read(text: &str) -> Result<Table, String> {
        let table: Table = serde_json::from_str(text).map_err(|e| e.to_string())?;
        for row in &table.0 {
            if let Some(fault) = row.blocks.fault(row.products, row.width) {
                return Err(format!("the row of {}, {}: {fault}", row.cpu, row.products));
            }
        }
        Ok(table)
    }

    /// The table with other rows for a CPU, sorted by name.
    pub fn replace(&mut self, cpu: &str, rows: Vec<Tuned>) {
        self.0.retain(|row| row.cpu != cpu);
        self.0.extend(rows);
        self.0.sort_by(|a, b| a.cpu.cmp(&b.cpu));
    }

    /// A row in a line of its own.
    pub fn text(&self) -> String {
        let row = |row| serde_json::to_string(row).expect("invariant: plain data becomes JSON");
        let rows: Vec<String> = self.0.iter().map(row).collect();
        if rows.is_empty() { "[]\n".to_string() } else { format!("[\n{}\n]\n", rows.join(",\n")) }
    }
}

/// The blocks of a device for each kind of products, where a is read in place and where it is
/// packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tuning([[Blocks; 2]; 3]);

impl Tuning {
    pub(crate) fn of(table: &Table, name: &str, cpu: &Cpu) -> Tuning {
        let mut tuning = Tuning(
            [Products::Widened, Products::Vectors, Products::Tiles]
                .map(|products| [Blocks::model(cpu, products); 2]),
        );
        for row in table.0.iter().filter(|row| row.cpu == name && row.width == cpu.width) {
            tuning.set(row.products, row.a, row.blocks);
        }
        tuning
    }

    pub(crate) fn get(&self, products: Products, a: Rows) -> Blocks {
        self.0[products as usize][a as usize]
    }

    pub(crate) fn set(&mut self, products: Products, a: Rows, blocks: Blocks) {
        self.0[products as usize][a as usize] = blocks;
    }
}
