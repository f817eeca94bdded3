//! Matrix products of the `gemm` crate at the shapes of `mdlc bench gemm`: one JSON array, as it
//! prints. `cargo run --release -- --runs 10 --threads 2`

#[path = "../../measure.rs"]
mod measure;

use gemm::Parallelism;
use measure::{SHAPES, median, number, row, seconds};

/// out[m, n] = a[m, k] · b[k, n], out dense, by strides (of rows, of columns).
fn product(
    [m, n, k]: [usize; 3],
    out: &mut [f32],
    (a, a_strides): (&[f32], [isize; 2]),
    (b, b_strides): (&[f32], [isize; 2]),
    parallelism: Parallelism,
) {
    let reach = |[r, c]: [isize; 2], rows: usize, columns: usize| {
        r as usize * (rows - 1) + c as usize * (columns - 1)
    };
    assert!(out.len() == m * n && reach(a_strides, m, k) < a.len());
    assert!(reach(b_strides, k, n) < b.len());
    // SAFETY: the strides stay inside the slices, as asserted, and `out` is borrowed alone.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.as_ptr(),
            a_strides[1],
            a_strides[0],
            b.as_ptr(),
            b_strides[1],
            b_strides[0],
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

fn main() {
    let (runs, threads) = (number("--runs", 10), number("--threads", 2));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    pool.expect("there is no other pool");
    let parallelism = if threads == 1 { Parallelism::None } else { Parallelism::Rayon(threads) };
    let numbers = |n: usize| -> Vec<f32> {
        (0..n).map(|i| (i * 7919 % 1009) as f32 / 1009.0 - 0.5).collect()
    };
    let mut rows = Vec::new();
    for [m, n, k] in SHAPES {
        let (x, w, dy) = (numbers(m * k), numbers(n * k), numbers(m * n));
        let [rk, rn] = [k as isize, n as isize];
        // y = x · wᵀ, dx = dy · w, dw = dyᵀ · x.
        let forms = [
            ("forward", [m, n, k], (&x, [rk, 1]), (&w, [1, rk])),
            ("backward_x", [m, k, n], (&dy, [rn, 1]), (&w, [rk, 1])),
            ("backward_w", [n, k, m], (&dy, [1, rn]), (&x, [rk, 1])),
        ];
        for (form, [m, n, k], a, b) in forms {
            let mut out = vec![0.0; m * n];
            let taken = median(runs, || {
                seconds(|| product([m, n, k], &mut out, (a.0, a.1), (b.0, b.1), parallelism))
            });
            let gflops = 2.0 * (m * n * k) as f64 / taken / 1e9;
            rows.push(row("gemm", &[m, n, k], form, "f32", gflops));
        }
    }
    println!("[\n{}\n]", rows.join(",\n"));
}
