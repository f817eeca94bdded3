//! Gather, scatter-add and cache write against plain loops.

use crate::device::Device;
use crate::embedding::testing::{Buffers, ELEMS};
use crate::stream;
use mdl_ir::kernel::{CacheWriteSpec, Elem, GatherSpec, KernelSpec, ScatterAddSpec};
use mdl_ir::rounding::{bf16_nearest, bf16_to_f32};

const WIDTHS: [usize; 4] = [1, 19, 32, 288];

fn each(mut check: impl FnMut(usize, Elem)) {
    for width in WIDTHS {
        ELEMS.into_iter().for_each(|elem| check(width, elem));
    }
}

fn check_gather(rows: usize, vocab: usize, width: usize, elem: Elem) {
    let mut buffers = Buffers::new();
    let table = buffers.random(elem, vocab * width);
    let ids = buffers.ints((0..rows).map(|i| (i * 7 % vocab) as i32));
    let out = buffers.zeros(elem, rows * width);
    let (rows32, vocab32, width32) = (rows as u32, vocab as u32, width as u32);
    let spec = GatherSpec { elem, rows: rows32, vocab: vocab32, width: width32 };
    for (_, results) in buffers.run_on_devices(&KernelSpec::Gather(spec), &[table, ids, out]) {
        for i in 0..rows {
            let id = i * 7 % vocab;
            let expected = &buffers.f32(table)[id * width..][..width];
            assert_eq!(&results[out][i * width..][..width], expected);
        }
    }
}

#[test]
fn gather_copies_rows() {
    each(|width, elem| check_gather(37, 11, width, elem));
}

/// Rows that go past the caches, where the CPU can do that, and ragged ones, which do not.
#[test]
fn gather_copies_more_than_a_cache_holds() {
    let device = Device::cpu(Some(1));
    for (width, elem) in [(1024, Elem::F32), (1024, Elem::Bf16), (1023, Elem::F32)] {
        let row = width as u64 * elem.bytes();
        let rows = device.as_cpu().caches[1] as u64 / row + 2;
        let arena = device.alloc(rows * row);
        let past = cfg!(target_arch = "x86_64") && device.vector_width() >= 8 && width == 1024;
        assert_eq!(stream::pays(&device, &arena.slice(0, rows * row), row), past);
        check_gather(rows as usize, 101, width, elem);
    }
}

/// The order of the sum is that of the rows, so it is equal to the bit; some ids have no row.
#[test]
fn scatter_add_sums_in_the_order_of_rows() {
    each(|width, elem| {
        for (out_elem, accumulate) in ELEMS.into_iter().flat_map(|e| [(e, false), (e, true)]) {
            let (rows, vocab) = (53, 7);
            let mut buffers = Buffers::new();
            let ids = buffers.ints((0..rows).map(|i| (i * i % vocab) as i32));
            let g = buffers.random(elem, rows * width);
            let out = buffers.random(out_elem, vocab * width);
            let spec = ScatterAddSpec {
                elem,
                out: out_elem,
                rows: rows as u32,
                vocab: vocab as u32,
                width: width as u32,
                accumulate,
            };
            let mut expected = buffers.f32(out).to_vec();
            if !accumulate {
                expected.fill(0.0);
            }
            for i in 0..rows {
                for c in 0..width {
                    expected[i * i % vocab * width + c] += buffers.f32(g)[i * width + c];
                }
            }
            if out_elem == Elem::Bf16 {
                expected.iter_mut().for_each(|x| *x = bf16_to_f32(bf16_nearest(*x)));
            }
            let spec = KernelSpec::ScatterAdd(spec);
            for (class, results) in buffers.run_on_devices(&spec, &[ids, g, out]) {
                assert_eq!(results[out], expected, "{class:?}");
            }
        }
    });
}

#[test]
fn cache_write_keeps_the_other_rows() {
    each(|width, elem| {
        let (batch, t, capacity, start) = (3, 2, 9, 5);
        let mut buffers = Buffers::new();
        let x = buffers.random(elem, batch * t * width);
        let at = buffers.ints([start as i32].into_iter());
        let cache = buffers.random(elem, batch * capacity * width);
        let spec = CacheWriteSpec {
            elem,
            batch: batch as u32,
            t: t as u32,
            capacity: capacity as u32,
            width: width as u32,
        };
        let mut expected = buffers.f32(cache).to_vec();
        for b in 0..batch {
            let to = (b * capacity + start) * width;
            expected[to..to + t * width]
                .copy_from_slice(&buffers.f32(x)[b * t * width..(b + 1) * t * width]);
        }
        let spec = KernelSpec::CacheWrite(spec);
        for (class, results) in buffers.run_on_devices(&spec, &[x, at, cache]) {
            assert_eq!(results[cache], expected, "{class:?}");
        }
    });
}
