//! The optimizer's kernels against f64 loops.

use crate::embedding::testing::{Buffers, relative_error};
use mdl_ir::kernel::{AdamWSpec, KernelSpec, SumOfSquaresSpec};

/// Each of 8·16 lanes adds at most 128 squares, then 128 lanes and the tail: fewer than 400
/// roundings of 2⁻²⁴ on positive terms, which mostly cancel; the bound is 2.4e-5, a tenth is met.
const SUM_TOLERANCE: f64 = 2.4e-6;
/// About 12 roundings of 2⁻²⁴ each on terms no larger than the result's neighbours.
const ADAM_TOLERANCE: f64 = 7e-7;

#[test]
fn sum_of_squares_at_ragged_lengths() {
    for len in [1, 15, 16, 17, 129, 16384, 16385, 100_003] {
        let mut buffers = Buffers::new();
        let g = buffers.random(len);
        let out = buffers.zeros(1);
        let spec = KernelSpec::SumOfSquares(SumOfSquaresSpec { len: len as u64 });
        let results = buffers.run_on_units(&spec, &[g, out]);
        let expected: f64 = buffers.f64(g).iter().map(|x| x * x).sum();
        let error = relative_error(&results[out], &[expected]);
        assert!(error < SUM_TOLERANCE, "len {len}: {error}");
    }
}

#[test]
fn adam_w_matches_its_formula() {
    for len in [1usize, 16, 33, 1000] {
        let mut buffers = Buffers::new();
        let g = buffers.random(len);
        let scalars = [0.5, 1e-3, 0.1, 0.05].map(|x| buffers.push(vec![x]));
        let p = buffers.random(len);
        let m = buffers.random(len);
        let v = buffers.random(len);
        let squares = buffers.f32(v).iter().map(|x| x * x).collect();
        let v = buffers.push(squares);
        let (beta1, beta2, eps, decay) = (0.9f32, 0.95f32, 1e-8f32, 0.1f32);
        let spec = AdamWSpec { len: len as u64, beta1, beta2, eps, decay };
        let [scale, lr, correct1, correct2] = scalars;
        let args = [g, scale, lr, correct1, correct2, p, m, v];
        let results = buffers.run_on_units(&KernelSpec::AdamW(spec), &args);
        let at = |buffer: usize, i: usize| f64::from(buffers.f32(buffer)[i]);
        let (b1, b2) = (f64::from(beta1), f64::from(beta2));
        let mut expected = [vec![], vec![], vec![]];
        for i in 0..len {
            let grad = at(g, i) * at(scale, 0);
            let first = b1 * at(m, i) + (1.0 - b1) * grad;
            let second = b2 * at(v, i) + (1.0 - b2) * grad * grad;
            let spread = (second / at(correct2, 0)).sqrt() + f64::from(eps);
            let change = f64::from(decay) * at(p, i) + first / at(correct1, 0) / spread;
            expected[0].push(at(p, i) - at(lr, 0) * change);
            expected[1].push(first);
            expected[2].push(second);
        }
        for (buffer, expected) in [p, m, v].into_iter().zip(&expected) {
            let error = relative_error(&results[buffer], expected);
            assert!(error < ADAM_TOLERANCE, "len {len} buffer {buffer}: {error}");
        }
    }
}
