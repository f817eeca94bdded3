//! Gather, scatter-add and cache write against plain loops.

use crate::embedding::testing::Buffers;
use mdl_ir::kernel::{CacheWriteSpec, GatherSpec, KernelSpec, ScatterAddSpec};

const WIDTHS: [usize; 4] = [1, 19, 32, 288];

#[test]
fn gather_copies_rows() {
    for width in WIDTHS {
        let (rows, vocab) = (37, 11);
        let mut buffers = Buffers::new();
        let table = buffers.random(vocab * width);
        let ids = buffers.ints((0..rows).map(|i| (i * 7 % vocab) as i32));
        let out = buffers.zeros(rows * width);
        let spec = GatherSpec { rows: rows as u32, vocab: vocab as u32, width: width as u32 };
        let results = buffers.run_on_units(&KernelSpec::Gather(spec), &[table, ids, out]);
        for i in 0..rows {
            let id = i * 7 % vocab;
            let expected = &buffers.f32(table)[id * width..][..width];
            assert_eq!(&results[out][i * width..][..width], expected);
        }
    }
}

#[test]
fn scatter_add_sums_in_the_order_of_rows() {
    for width in WIDTHS {
        for accumulate in [false, true] {
            let (rows, vocab) = (53, 7);
            let mut buffers = Buffers::new();
            let ids = buffers.ints((0..rows).map(|i| (i * i % vocab) as i32));
            let g = buffers.random(rows * width);
            let out = buffers.random(vocab * width);
            let spec = ScatterAddSpec {
                rows: rows as u32,
                vocab: vocab as u32,
                width: width as u32,
                accumulate,
            };
            let results = buffers.run_on_units(&KernelSpec::ScatterAdd(spec), &[ids, g, out]);
            let mut expected = buffers.f32(out).to_vec();
            if !accumulate {
                expected.fill(0.0);
            }
            for i in 0..rows {
                for c in 0..width {
                    expected[i * i % vocab * width + c] += buffers.f32(g)[i * width + c];
                }
            }
            assert_eq!(results[out], expected);
        }
    }
}

#[test]
fn cache_write_keeps_the_other_rows() {
    for width in WIDTHS {
        let (batch, t, capacity, start) = (3, 2, 9, 5);
        let mut buffers = Buffers::new();
        let x = buffers.random(batch * t * width);
        let at = buffers.ints([start as i32].into_iter());
        let cache = buffers.random(batch * capacity * width);
        let spec = CacheWriteSpec {
            batch: batch as u32,
            t: t as u32,
            capacity: capacity as u32,
            width: width as u32,
        };
        let results = buffers.run_on_units(&KernelSpec::CacheWrite(spec), &[x, at, cache]);
        let mut expected = buffers.f32(cache).to_vec();
        for b in 0..batch {
            let to = (b * capacity + start) * width;
            expected[to..to + t * width]
                .copy_from_slice(&buffers.f32(x)[b * t * width..(b + 1) * t * width]);
        }
        assert_eq!(results[cache], expected);
    }
}
