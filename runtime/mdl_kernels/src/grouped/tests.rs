//! Grouped contractions against plain loops in f64: ragged shapes, skewed, empty and stray groups.
//!
//! The workspace and the output hold NaN when a launch begins, and the bits must not depend on the
//! number of units.

use crate::device::Class;
use crate::embedding::testing::{Buffers, ELEMS, storing_error};
use mdl_ir::kernel::grouped::{GroupedContractSpec, GroupedOuterSpec};
use mdl_ir::kernel::{Elem, KernelSpec};

/// Higham and Mary's probabilistic bound for a sum of k products with rounding to nearest is
/// √k·u·Σ|a·b|, u = 2⁻²⁴, met with high probability; two more roundings for what surrounds it.
fn tolerance(k: usize) -> f64 {
    ((k as f64).sqrt() + 2.0) * 2f64.powi(-24)
}

/// How rows fall into groups.
#[derive(Clone, Copy, Debug)]
enum Routing {
    /// About evenly, out of order.
    Even,
    /// All rows in the last group.
    One,
    /// Every third row in a group of even number, the others nowhere.
    Strays,
}

impl Routing {
    fn id(self, row: usize, groups: usize) -> i32 {
        let any = row * 7919 % 1009;
        match self {
            Routing::Even => (any % groups) as i32,
            Routing::One => groups as i32 - 1,
            Routing::Strays => match row % 3 {
                0 => (any % groups / 2 * 2) as i32,
                1 => {
                    groups as i32 + if any.is_multiple_of(2) { 0 } else { i32::MAX - groups as i32 }
                }
                _ => -1 - (any as i32) * 2_000_000,
            },
        }
    }
}

const ROUTINGS: [Routing; 3] = [Routing::Even, Routing::One, Routing::Strays];

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.iter().zip(b).all(|(x, y)| x.to_bits() == y.to_bits())
}

/// What `out` holds after a launch on each device; on three units of a CPU the same as on fewer.
fn run(buffers: &Buffers, spec: &KernelSpec, args: [usize; 4]) -> Vec<(Class, Vec<f32>)> {
    let out = args[3];
    let all = buffers.run_on_devices(spec, &args).into_iter();
    let all: Vec<_> = all.map(|(class, mut all)| (class, all.swap_remove(out))).collect();
    if let Some((_, cpu)) = all.iter().find(|(class, _)| *class == Class::Cpu) {
        let three = buffers.run(3, spec, &args).swap_remove(out);
        assert!(same_bits(cpu, &three), "the number of units changes {spec:?}");
    }
    all
}

/// Tensor cores cut off where they add: up to 2⁻²³ of a sum in each of three products of eight
/// steps, of 32 steps at a time where there are more than 512; and an f32 as two tf32 loses 2⁻²².
fn tolerance_of(class: Class, k: usize) -> f64 {
    let in_one_run = if k > 512 { 32 } else { k };
    let cut = (3 * in_one_run.div_ceil(8)) as f64 * 2f64.powi(-23) + 2f64.powi(-21);
    tolerance(k) + if class == Class::Cuda { cut } else { 0.0 }
}

fn check_contract(spec: &GroupedContractSpec, routing: Routing) {
    let [rows, share, groups, n, k] =
        [spec.rows, spec.share, spec.groups, spec.n, spec.k].map(|size| size as usize);
    let mut buffers = Buffers::new();
    let a = buffers.random(spec.elem, rows / share * k);
    let w = buffers.random(spec.elem, groups * n * k);
    let ids = buffers.ints((0..rows).map(|r| routing.id(r, groups)));
    let out = buffers.push(spec.elem, vec![f32::NAN; rows * n]);
    let all = run(&buffers, &KernelSpec::GroupedContract(spec.clone()), [a, w, ids, out]);
    let (a, w) = (buffers.f64(a), buffers.f64(w));
    for (class, got) in &all {
        for r in 0..rows {
            let group = usize::try_from(routing.id(r, groups)).ok().filter(|e| *e < groups);
            for j in 0..n {
                let got = got[r * n + j];
                let Some(e) = group else {
                    assert_eq!(got.to_bits(), 0, "row {r} is in no group, {routing:?}, {spec:?}");
                    continue;
                };
                let at = |p: usize| e * n * k + if spec.transposed { p * n + j } else { j * k + p };
                let products = (0..k).map(|p| a[r / share * k + p] * w[at(p)]);
                let (sum, scale) = products.fold((0.0, 0.0), |(s, t), x| (s + x, t + x.abs()));
                let off = (f64::from(got) - sum).abs();
                let bound = tolerance_of(*class, k) * scale + storing_error(spec.elem, sum);
                assert!(off <= bound, "{class:?}, {r}, {j}: {got}, {sum}, {routing:?}, {spec:?}");
            }
        }
    }
}

fn check_outer(spec: &GroupedOuterSpec, routing: Routing) {
    let [rows, share_a, share_b, groups, m, n] =
        [spec.rows, spec.share_a, spec.share_b, spec.groups, spec.m, spec.n].map(|s| s as usize);
    let mut buffers = Buffers::new();
    let a = buffers.random(spec.elem, rows / share_a * m);
    let b = buffers.random(spec.elem, rows / share_b * n);
    let ids = buffers.ints((0..rows).map(|r| routing.id(r, groups)));
    let out = buffers.push(spec.out, vec![f32::NAN; groups * m * n]);
    let all = run(&buffers, &KernelSpec::GroupedOuter(spec.clone()), [a, b, ids, out]);
    let (a, b) = (buffers.f64(a), buffers.f64(b));
    for (class, got) in &all {
        for e in 0..groups {
            let own: Vec<usize> =
                (0..rows).filter(|r| routing.id(*r, groups) == e as i32).collect();
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let product = |r: &usize| a[r / share_a * m + i] * b[r / share_b * n + j];
                let (sum, scale) =
                    own.iter().map(product).fold((0.0, 0.0), |(s, t), x| (s + x, t + x.abs()));
                let got = got[(e * m + i) * n + j];
                let off = (f64::from(got) - sum).abs();
                let bound = tolerance_of(*class, own.len()) * scale + storing_error(spec.out, sum);
                assert!(
                    off <= bound,
                    "{class:?}, {e}, {i}, {j}: {got}, {sum}, {routing:?}, {spec:?}"
                );
            }
        }
    }
}

/// Rows, groups, the two other sizes, and the neighbouring rows that share one.
const SHAPES: [[u32; 5]; 10] = [
    [1, 1, 1, 1, 1],
    [2, 8, 131, 300, 2],
    [7, 64, 33, 19, 1],
    [6, 3, 17, 40, 3],
    [60, 5, 100, 30, 3],
    [88, 8, 49, 65, 2],
    [300, 64, 23, 35, 1],
    [300, 3, 211, 41, 2],
    [300, 8, 48, 530, 3],
    [1200, 5, 19, 16, 1],
];

#[test]
fn rows_with_the_matrices_of_their_groups() {
    for [rows, groups, n, k, share] in SHAPES {
        for transposed in [false, true] {
            for elem in ELEMS {
                let spec = GroupedContractSpec { elem, rows, share, groups, n, k, transposed };
                ROUTINGS.iter().for_each(|routing| check_contract(&spec, *routing));
            }
        }
    }
}

/// Of a and b, and of the result.
const OUTER_ELEMS: [[Elem; 2]; 3] =
    [[Elem::F32, Elem::F32], [Elem::Bf16, Elem::Bf16], [Elem::Bf16, Elem::F32]];

#[test]
fn outer_products_of_each_groups_rows() {
    for [rows, groups, m, n, share] in SHAPES {
        // Gradients have one side shared and the other not.
        for (share_a, share_b) in [(1, share), (share, 1)] {
            for [elem, out] in OUTER_ELEMS {
                let spec = GroupedOuterSpec { elem, out, rows, share_a, share_b, groups, m, n };
                ROUTINGS.iter().for_each(|routing| check_outer(&spec, *routing));
            }
        }
    }
}
