//! The optimizer's kernels against f64 loops, and its roundings against the host's.

use crate::embedding::testing::{Buffers, ELEMS, relative_error};
use mdl_ir::kernel::{AdamWSpec, Elem, KernelSpec, SumOfSquaresSpec};
use mdl_ir::rounding::{bf16_nearest, bf16_to_f32, stochastic_round};

/// Each of 8·16 lanes adds at most 128 squares, then 128 lanes and the tail: fewer than 400
/// roundings of 2⁻²⁴ on positive terms, which mostly cancel; the bound is 2.4e-5, a tenth is met.
const SUM_TOLERANCE: f64 = 2.4e-6;
/// About 12 roundings of 2⁻²⁴ each on terms no larger than the result's neighbours.
const ADAM_TOLERANCE: f64 = 7e-7;
const SEED: i32 = -77;

#[test]
fn sum_of_squares_at_ragged_lengths() {
    for len in [1, 15, 16, 17, 129, 16384, 16385, 100_003] {
        for elem in ELEMS {
            let mut buffers = Buffers::new();
            let g = buffers.random(elem, len);
            let out = buffers.zeros(Elem::F32, 1);
            let spec = KernelSpec::SumOfSquares(SumOfSquaresSpec { elem, len: len as u64 });
            let expected: f64 = buffers.f64(g).iter().map(|x| x * x).sum();
            for (class, results) in buffers.run_on_devices(&spec, &[g, out]) {
                let error = relative_error(Elem::F32, &results[out], &[expected]);
                assert!(error < SUM_TOLERANCE, "{class:?}, len {len}: {error}");
            }
        }
    }
}

/// In parts of whole chunks, the sum is that of one launch to the bit.
#[test]
fn more_squares_go_on_with_a_sum() {
    let (whole, part) = (40_000usize, 16_384usize);
    for elem in ELEMS {
        let mut buffers = Buffers::new();
        let g = buffers.random(elem, whole);
        let values = buffers.f32(g).to_vec();
        let out = buffers.zeros(Elem::F32, 1);
        let spec = KernelSpec::SumOfSquares(SumOfSquaresSpec { elem, len: whole as u64 });
        let at_once = buffers.run_on_devices(&spec, &[g, out]);
        for (device, (class, results)) in at_once.iter().enumerate() {
            let mut sum = vec![0.0, 0.0];
            for values in values.chunks(part) {
                let mut buffers = Buffers::new();
                let args = [buffers.push(elem, values.to_vec()), buffers.push(Elem::F32, sum)];
                let len = values.len() as u64;
                let spec = KernelSpec::MoreSquares(SumOfSquaresSpec { elem, len });
                let mut all = buffers.run_on_devices(&spec, &args);
                sum = all.swap_remove(device).1.swap_remove(args[1]);
            }
            assert_eq!(sum[0].to_bits(), results[out][0].to_bits(), "{class:?}");
        }
    }
}

/// The state of a launch and where its parts are.
struct State {
    buffers: Buffers,
    args: Vec<usize>,
    p: usize,
    m: usize,
    v: usize,
    master: Option<usize>,
}

/// What a step works on: the same numbers whatever they are stored in, where `like` has them.
fn state(spec: &AdamWSpec, like: [Elem; 3]) -> State {
    let len = spec.len as usize;
    let mut all = Buffers::new();
    let [g, p, m] = [like[1], like[0], like[2]].map(|elem| all.random(elem, len));
    // Of one sign with the gradient, so that errors are relative to a result that nothing cancels.
    let signed = all.f32(m).iter().zip(all.f32(g)).map(|(m, g)| m.copysign(*g)).collect();
    let m = all.push(like[2], signed);
    let v = all.random(Elem::F32, len);
    let squares = all.f32(v).iter().map(|x| x * x).collect();
    let v = all.push(like[2], squares);
    // The parameter is a rounded copy of the master.
    let exact = all.random(Elem::F32, len);
    let mut buffers = Buffers::new();
    let mut put = |elem, from: usize| buffers.push(elem, all.f32(from).to_vec());
    let g = put(spec.grads, g);
    let p = put(spec.params, if spec.master { exact } else { p });
    let [m, v] = [m, v].map(|from| put(spec.moments, from));
    let master = spec.master.then(|| put(Elem::F32, exact));
    let mut args = vec![g];
    args.extend([0.5, 1e-3, 0.1, 0.05].map(|x| buffers.push(Elem::F32, vec![x])));
    args.extend(spec.stochastic.then(|| buffers.ints([SEED].into_iter())));
    args.extend([p, m, v]);
    args.extend(master);
    State { buffers, args, p, m, v, master }
}

/// Every form, of a length.
fn forms(len: u64) -> Vec<AdamWSpec> {
    let plain = AdamWSpec {
        params: Elem::F32,
        grads: Elem::F32,
        moments: Elem::F32,
        master: false,
        stochastic: false,
        len,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        decay: 0.1,
    };
    let mixed = |params, grads, moments| AdamWSpec { params, grads, moments, ..plain.clone() };
    use Elem::{Bf16, F32};
    vec![
        plain.clone(),
        mixed(F32, Bf16, F32),
        mixed(Bf16, Bf16, F32),
        AdamWSpec { master: true, ..mixed(Bf16, F32, F32) },
        AdamWSpec { master: true, ..mixed(Bf16, Bf16, Bf16) },
        mixed(Bf16, Bf16, Bf16),
        AdamWSpec { stochastic: true, ..mixed(Bf16, F32, Bf16) },
        AdamWSpec { stochastic: true, ..mixed(Bf16, Bf16, Bf16) },
    ]
}

const LENGTHS: [u64; 4] = [1, 16, 33, 1000];

/// p, m and v in f64.
fn formula(spec: &AdamWSpec, state: &State) -> [Vec<f64>; 3] {
    let at = |buffer: usize, i: usize| f64::from(state.buffers.f32(buffer)[i]);
    let [g, scale, lr, correct1, correct2] = [0, 1, 2, 3, 4].map(|i| state.args[i]);
    let (b1, b2) = (f64::from(spec.beta1), f64::from(spec.beta2));
    let weight = state.master.unwrap_or(state.p);
    let mut expected = [vec![], vec![], vec![]];
    for i in 0..spec.len as usize {
        let grad = at(g, i) * at(scale, 0);
        let first = b1 * at(state.m, i) + (1.0 - b1) * grad;
        let second = b2 * at(state.v, i) + (1.0 - b2) * grad * grad;
        let spread = (second / at(correct2, 0)).sqrt() + f64::from(spec.eps);
        let change = f64::from(spec.decay) * at(weight, i) + first / at(correct1, 0) / spread;
        expected[0].push(at(weight, i) - at(lr, 0) * change);
        expected[1].push(first);
        expected[2].push(second);
    }
    expected
}

#[test]
fn adam_w_matches_its_formula() {
    for spec in LENGTHS.into_iter().flat_map(forms).filter(|spec| !spec.stochastic) {
        let state = state(&spec, [spec.params, spec.grads, spec.moments]);
        let whole = KernelSpec::AdamW(spec.clone());
        for (class, results) in state.buffers.run_on_devices(&whole, &state.args) {
            let [p, m, v] = formula(&spec, &state);
            let mut parts = vec![(spec.params, state.p, &p), (spec.moments, state.m, &m)];
            parts.push((spec.moments, state.v, &v));
            parts.extend(state.master.map(|master| (Elem::F32, master, &p)));
            for (elem, buffer, expected) in parts {
                let error = relative_error(elem, &results[buffer], expected);
                assert!(error < ADAM_TOLERANCE, "{class:?}, {spec:?} buffer {buffer}: {error}");
            }
        }
    }
}

/// Whatever the state lies in, a step computes what it would in f32, and rounds that.
#[test]
fn results_are_those_of_f32_rounded() {
    for spec in LENGTHS.into_iter().flat_map(forms) {
        let like = [spec.params, spec.grads, spec.moments];
        let wide = AdamWSpec {
            params: Elem::F32,
            grads: Elem::F32,
            moments: Elem::F32,
            stochastic: false,
            ..spec.clone()
        };
        let (state, exact) = (state(&spec, like), state(&wide, like));
        let run = |spec: &AdamWSpec, state: &State| {
            let whole = KernelSpec::AdamW(spec.clone());
            let mut results = state.buffers.run_on_units(&whole, &state.args);
            [state.p, state.m, state.v].map(|part| std::mem::take(&mut results[part]))
        };
        let (got, exact) = (run(&spec, &state), run(&wide, &exact));
        let elems = [spec.params, spec.moments, spec.moments];
        for (stream, elem) in elems.into_iter().enumerate() {
            for (got, exact) in got[stream].iter().zip(&exact[stream]) {
                let want = match elem {
                    Elem::F32 | Elem::I32 => *exact,
                    Elem::Bf16 if spec.stochastic => {
                        bf16_to_f32(stochastic_round(*exact, SEED as u32, stream as u32))
                    }
                    Elem::Bf16 => bf16_to_f32(bf16_nearest(*exact)),
                };
                assert_eq!(got.to_bits(), want.to_bits(), "{spec:?}, part {stream}");
            }
        }
    }
}
