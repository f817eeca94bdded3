//! The gradient against the f64 reference of the forward pass.

use super::GradShape;
use crate::attention::tests::{
    Row, cases, inputs, long, narrowing, reference, row_count, row_of, start_of,
};
use crate::device::Class;
use crate::embedding::testing::{Buffers, relative_error};
use mdl_ir::kernel::{AttentionSpec, Elem, KernelSpec, Target, workspace_bytes};

/// Twice the forward pass's: probabilities carry the rounding of scores and of the log-sum-exp,
/// and `dy·v − δ` is a difference of two such sums.
const TOLERANCE: f64 = 2e-6;

#[test]
fn gradients_match_the_formula() {
    for spec in cases() {
        let problem = Problem::new(&spec, (0..row_count(&spec)).collect());
        let kernel = KernelSpec::AttentionGrad(spec.clone());
        for (class, results) in problem.buffers.run_on_devices(&kernel, &problem.args) {
            // Probabilities are rounded, and so are differences that are multiplied by them.
            let tolerance = TOLERANCE + 2.0 * narrowing(class, &spec);
            problem.check(&results, tolerance, class);
        }
    }
}

/// On CPUs: on a GPU in software it takes minutes.
#[test]
fn gradients_match_the_formula_in_a_long_sequence() {
    let (spec, picked) = long();
    let problem = Problem::new(&spec, picked.to_vec());
    let results = problem.buffers.run_on_units(&KernelSpec::AttentionGrad(spec), &problem.args);
    problem.check(&results, TOLERANCE, Class::Cpu);
}

/// What the kernel takes, and what it should give.
struct Problem {
    spec: AttentionSpec,
    buffers: Buffers,
    args: Vec<usize>,
    outputs: [usize; 3],
    expected: [Vec<f64>; 3],
}

impl Problem {
    /// Only these rows have a gradient of their results, so all that comes out comes of them.
    fn new(spec: &AttentionSpec, picked: Vec<usize>) -> Problem {
        let head = spec.head as usize;
        let mut buffers = Buffers::new();
        let mut args = inputs(&mut buffers, spec);
        let [q, k, v] = [0, 1, 2].map(|i| buffers.f64(args[i]));
        let start = start_of(spec);
        let rows: Vec<Row> = picked.iter().map(|&r| row_of(spec, start, (&q, &k), r)).collect();
        let (y, lse) = reference(spec, &rows, &v);
        let single = |x: &[f64]| x.iter().map(|&x| x as f32).collect();
        args.push(buffers.push(spec.elem, single(&y)));
        // The gradient of what the forward pass stored.
        let y = buffers.f64(args[args.len() - 1]);
        args.push(buffers.push(Elem::F32, single(&lse)));
        let random = buffers.random(spec.elem, q.len());
        let mut dy = vec![0.0; q.len()];
        for row in &rows {
            let own = row.q..row.q + head;
            dy[own.clone()].copy_from_slice(&buffers.f32(random)[own]);
        }
        args.push(buffers.push(spec.elem, dy));
        let dy = buffers.f64(args[args.len() - 1]);
        let outputs = [q.len(), k.len(), v.len()].map(|len| buffers.random(spec.elem, len));
        args.extend(outputs);
        let mut expected = [vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]];
        for row in &rows {
            let dot = |a: &[f64], i: usize, b: &[f64], j: usize| -> f64 {
                a[i..i + head].iter().zip(&b[j..j + head]).map(|(a, b)| a * b).sum()
            };
            let delta = dot(&dy, row.q, &y, row.q);
            for (&p, &key) in row.p.iter().zip(&row.keys) {
                let ds = p * (dot(&dy, row.q, &v, key) - delta) * f64::from(spec.scale);
                for d in 0..head {
                    expected[0][row.q + d] += ds * k[key + d];
                    expected[1][key + d] += ds * q[row.q + d];
                    expected[2][key + d] += p * dy[row.q + d];
                }
            }
        }
        Problem { spec: spec.clone(), buffers, args, outputs, expected }
    }

    fn check(&self, results: &[Vec<f32>], tolerance: f64, class: Class) {
        let spec = &self.spec;
        for (i, (&output, expected)) in self.outputs.iter().zip(&self.expected).enumerate() {
            let error = relative_error(spec.elem, &results[output], expected);
            assert!(error < tolerance, "{class:?}, {spec:?} gradient {i}: {error}");
        }
    }
}

/// A machine has one kind of CPU, and its kernels alone are run here; sizes are held to their rules
/// for the others too.
#[test]
fn tiles_fit_registers_workspace_and_each_other_on_every_cpu() {
    const UNITS: usize = 3;
    for spec in cases() {
        for (lanes, registers) in [(4, 16), (8, 16), (4, 32), (16, 32)] {
            let shape = GradShape::new(&spec, lanes, registers);
            let (tile, outer) = (shape.tile, shape.outer);
            for (rows, vectors) in [(tile.rows, tile.vectors), (outer.rows, outer.vectors)] {
                assert!(rows * vectors + vectors + 1 < registers, "{shape:?}");
                assert!(tile.keys.is_multiple_of(rows) && tile.step.is_multiple_of(rows));
            }
            assert!(tile.keys.is_multiple_of(tile.step), "{shape:?}");
            let owners = if shape.parts == 1 { UNITS } else { shape.items() };
            let elements = UNITS * shape.unit() + owners * 2 * shape.sum();
            let kernel = KernelSpec::AttentionGrad(spec.clone());
            let reserved = workspace_bytes(&kernel, Target::Threads(UNITS as u32));
            assert!(4 * elements as u64 <= reserved, "{shape:?}");
        }
    }
}
