//! Blocks by the model and by the table: what they are for a few CPUs, that the table that ships is
//! valid, and that results are right in blocks of every size.

use super::{ELEMS, check_on, matrices, ways, with};
use mdl_kernels::{Blocks, Cpu, Device, Products, Rows, Table};
use std::fs;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn model(registers: usize, width: usize, caches: [usize; 3], products: Products) -> String {
    Blocks::model(&Cpu { registers, width, caches }, products).to_string()
}

#[test]
fn the_model_fills_registers_and_caches() {
    let zen4 = [32 * KIB, MIB, 32 * MIB];
    let of = |products| model(32, 16, zen4, products);
    assert_eq!(of(Products::Widened), "8 × 3, 512 deep, 3072 columns, 96 rows");
    assert_eq!(of(Products::Vectors), "8 × 3, 512 deep, 1920 columns, 240 rows");
    assert_eq!(of(Products::Tiles), "32 × 2, 512 deep, 1920 columns, 224 rows");
    // Half of each cache, with AVX2's 16 registers of eight lanes.
    let small = [32 * KIB, 256 * KIB, 6 * MIB];
    assert_eq!(model(16, 8, small, Products::Widened), "6 × 2, 512 deep, 768 columns, 48 rows");
    // 32 registers of four lanes, as on ARM.
    assert_eq!(model(32, 4, zen4, Products::Widened), "6 × 4, 512 deep, 3072 columns, 96 rows");
    // Nothing is known, or a cache is far too large: blocks stay within what specs reserve.
    assert_eq!(model(16, 4, [0; 3], Products::Widened), "6 × 2, 16 deep, 192 columns, 48 rows");
    let large = [64 * KIB, 64 * MIB, 1024 * MIB];
    let blocks = Blocks::model(&Cpu { registers: 32, width: 16, caches: large }, Products::Vectors);
    assert_eq!((blocks.depth, blocks.columns), (512, 3072));
}

#[test]
fn caches_are_read_as_linux_describes_them() {
    let folder = std::env::temp_dir().join(format!("mdl-caches-{}", std::process::id()));
    let known = [("1", "Data", "48K"), ("1", "Instruction", "64K"), ("2", "Unified", "2048K")];
    for (i, (level, kind, size)) in known.into_iter().enumerate() {
        let index = folder.join(format!("index{i}"));
        fs::create_dir_all(&index).expect("the temporary folder is writable");
        for (name, text) in [("level", level), ("type", kind), ("size", size)] {
            fs::write(index.join(name), format!("{text}\n")).expect("a small file");
        }
    }
    let read = Cpu::caches_in(&folder);
    fs::remove_dir_all(&folder).expect("it was made here");
    assert_eq!(read, [48 * KIB, 2 * MIB, 8 * MIB]);
    assert_eq!(Cpu::caches_in(&folder), [32 * KIB, 512 * KIB, 8 * MIB]);
}

#[test]
fn the_table_that_ships_is_valid_and_is_written_as_it_is_read() {
    let table = Table::shipped();
    assert_eq!(Table::read(&table.text()).as_ref(), Ok(table));
    for (i, row) in table.0.iter().enumerate() {
        assert!(row.gain > 1.0, "{row:?}");
        let same = |other: &&mdl_kernels::Tuned| {
            (&other.cpu, other.width, other.products, other.a)
                == (&row.cpu, row.width, row.products, row.a)
        };
        assert_eq!(table.0[i..].iter().filter(same).count(), 1, "{row:?}");
    }
}

const ROW: &str = r#"{"cpu":"z","width":16,"products":"widened","a":"packed","blocks":
    {"tile_rows":8,"tile_vectors":3,"depth":512,"columns":1536,"rows":96},"gain":1.02}"#;

#[test]
fn a_bad_table_is_refused() {
    let mut table = Table::read(&format!("[{ROW}]")).expect("a row");
    let wrong = [
        ("\"columns\":1536", "\"columns\":1500", "the columns are a multiple of 192"),
        ("\"depth\":512", "\"depth\":100", "the depth is a multiple of 16"),
        ("\"tile_rows\":8", "\"tile_rows\":9", "a tile is of such rows"),
        ("\"rows\":96", "\"rows\":100", "the rows are a multiple"),
        ("\"gain\":1.02", "\"gian\":1.02", "unknown field `gian`"),
        ("packed", "picked", "unknown variant `picked`"),
    ];
    for (part, bad, said) in wrong {
        let read = Table::read(&format!("[{}]", ROW.replacen(part, bad, 1)));
        assert!(read.as_ref().is_err_and(|e| e.contains(said)), "{bad}: {read:?}");
    }
    table.replace("a", vec![mdl_kernels::Tuned { cpu: "a".into(), ..table.0[0].clone() }]);
    assert_eq!(table.0.iter().map(|row| &row.cpu[..]).collect::<Vec<_>>(), ["a", "z"]);
    table.replace("z", vec![]);
    assert_eq!(table.0.len(), 1);
}

#[test]
fn results_are_right_in_blocks_of_every_size() {
    let width = Device::cpu(None).vector_width();
    for elems in ELEMS {
        for way in ways(elems) {
            let model = Blocks::model(Device::cpu(None).as_cpu(), way);
            let mut all = vec![
                Blocks { depth: 64, columns: 192, rows: model.tile_rows, ..model },
                Blocks { depth: 1024, columns: 3072, rows: 4 * model.rows, ..model },
            ];
            if way != Products::Tiles {
                let tile = |tile_rows, tile_vectors| Blocks { tile_rows, tile_vectors, ..model };
                all.extend([tile(12, 2), tile(6, 4), tile(4, 3)]);
                all.retain(|blocks| blocks.fault(way, width).is_none());
            }
            for (a_transposed, (m, n, k)) in [(false, (133, 401, 1067)), (true, (70, 200, 700))] {
                let spec = with(&matrices(m, n, k, a_transposed, false), elems);
                for blocks in &all {
                    let on = |units| {
                        let cpu = Device::cpu(Some(units)).with_products(way);
                        let cpu = cpu.with_blocks(way, Rows::InPlace, *blocks);
                        check_on(&cpu.with_blocks(way, Rows::Packed, *blocks), &spec)
                    };
                    assert_eq!(on(1), on(2), "{blocks}");
                }
            }
        }
    }
}
