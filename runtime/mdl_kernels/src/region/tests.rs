//! Regions against an interpreter of the same spec in f64.

use crate::embedding::testing::{Buffers, relative_error};
use crate::region::evaluator::evaluate;
use mdl_ir::kernel::*;
use mdl_ir::rounding::{bf16_nearest, bf16_to_f32};

/// A reduction of up to 300 terms in 16 lanes and a handful of elementwise steps after it:
/// about 30 roundings of 2⁻²⁴, and `exp`, `sin` and `cos` good to 1.5e-7.
const TOLERANCE: f64 = 1e-6;

/// Runs the region on buffers of these lengths and compares every output: as it is, with bf16 for
/// f32, and with bf16 for every other f32.
fn check(spec: &RegionSpec, lengths: &[usize], output_lengths: &[usize]) {
    for narrow in [|_| false, |_| true, |i| i % 2 == 0, |i| i % 2 == 1] {
        let mut spec = spec.clone();
        let views = spec.inputs.iter_mut().chain(&mut spec.outputs).enumerate();
        for (_, view) in views.filter(|(i, view)| view.elem == Elem::F32 && narrow(*i)) {
            view.elem = Elem::Bf16;
        }
        check_one(&spec, lengths, output_lengths);
    }
}

fn check_one(spec: &RegionSpec, lengths: &[usize], output_lengths: &[usize]) {
    let mut buffers = Buffers::new();
    let mut args = Vec::new();
    let mut inputs = Vec::new();
    for (view, &len) in spec.inputs.iter().zip(lengths) {
        if view.elem == Elem::I32 {
            args.push(buffers.ints((0..len).map(|i| (i * 7 % 13) as i32)));
            inputs.push((0..len).map(|i| (i * 7 % 13) as f64).collect());
        } else {
            let buffer = buffers.random(view.elem, len);
            args.push(buffer);
            inputs.push(buffers.f64(buffer));
        }
    }
    let outputs = spec.outputs.iter().zip(output_lengths);
    let outputs: Vec<usize> = outputs.map(|(view, &len)| buffers.zeros(view.elem, len)).collect();
    args.extend(&outputs);
    let zeros = output_lengths.iter().map(|&len| vec![0.0; len]).collect();
    let expected = evaluate(spec, inputs, zeros);
    for (class, results) in buffers.run_on_devices(&KernelSpec::Region(spec.clone()), &args) {
        for ((&output, expected), view) in outputs.iter().zip(&expected).zip(&spec.outputs) {
            let result: Vec<f32> = if view.elem == Elem::I32 {
                results[output].iter().map(|x| x.to_bits() as i32 as f32).collect()
            } else {
                results[output].clone()
            };
            let error = relative_error(view.elem, &result, expected);
            assert!(error < TOLERANCE, "{class:?}, {:?}: {error}", spec.dims);
        }
    }
}

fn view(offset: u32, strides: &[u32]) -> View {
    View { elem: Elem::F32, offset, strides: strides.to_vec() }
}

fn op(op: InstrOp, dst: u16, a: u16, b: u16) -> Instr {
    Instr { op, dst, a, b, c: 0 }
}

fn cols(cols: Vec<Instr>) -> Phase {
    Phase { row: vec![], cols }
}

use InstrOp::*;

#[test]
fn silu_times_gate_is_flattened_and_split() {
    for dims in [[2, 3, 5], [1, 1, 70_001], [4, 33, 16]] {
        let len = dims.iter().product::<u32>();
        let dense = view(0, &[dims[1] * dims[2], dims[2], 1]);
        let spec = RegionSpec {
            dims: dims.to_vec(),
            walk: Walk::Rows,
            inputs: vec![dense.clone(), dense.clone()],
            outputs: vec![dense],
            phases: vec![cols(vec![
                op(Load(0), 0, 0, 0),
                op(Load(1), 1, 0, 0),
                op(Sigmoid, 2, 0, 0),
                op(Mul, 3, 0, 2),
                op(Mul, 4, 3, 1),
                op(Store(0), 0, 4, 0),
            ])],
        };
        check(&spec, &[len as usize; 2], &[len as usize]);
    }
}

/// Halves of a head are rotated by position · 10000^(−i/half); the second half is a view of its
/// own, and positions are integers.
#[test]
fn rope_over_halves_of_heads() {
    for half in [4u32, 6, 24, 32] {
        let (b, t, h) = (2u32, 5u32, 3u32);
        let head = 2 * half;
        let strides = [t * h * head, h * head, head, 1];
        let position = View { elem: Elem::I32, offset: 0, strides: vec![t, 1, 0, 0] };
        let spec = RegionSpec {
            dims: vec![b, t, h, half],
            walk: Walk::Rows,
            inputs: vec![view(0, &strides), view(half, &strides), position],
            outputs: vec![view(0, &strides), view(half, &strides)],
            phases: vec![cols(vec![
                op(Load(0), 0, 0, 0),
                op(Load(1), 1, 0, 0),
                op(Load(2), 2, 0, 0),
                op(Index(3), 3, 0, 0),
                op(Const(-9.210_34 / half as f32), 4, 0, 0),
                op(Mul, 5, 3, 4),
                op(Exp, 6, 5, 0),
                op(Mul, 7, 2, 6),
                op(Cos, 8, 7, 0),
                op(Sin, 9, 7, 0),
                op(Mul, 10, 0, 8),
                op(Mul, 11, 1, 9),
                op(Sub, 12, 10, 11),
                op(Mul, 13, 1, 8),
                op(Mul, 14, 0, 9),
                op(Add, 15, 13, 14),
                op(Store(0), 0, 12, 0),
                op(Store(1), 0, 15, 0),
            ])],
        };
        let len = (b * t * h * head) as usize;
        check(&spec, &[len, len, (b * t) as usize], &[len, len]);
    }
}

fn mean_square(width: u32) -> Vec<Instr> {
    vec![
        op(Const(width as f32), 1, 0, 0),
        op(Div, 2, 0, 1),
        op(Const(1e-5), 3, 0, 0),
        op(Add, 4, 2, 3),
        op(Rsqrt, 5, 4, 0),
    ]
}

#[test]
fn rms_norm_in_two_phases() {
    for (rows, width) in [(1, 7), (5, 16), (3, 37), (9, 288), (2, 5003)] {
        let x = view(0, &[width, 1]);
        let spec = RegionSpec {
            dims: vec![rows, width],
            walk: Walk::Rows,
            inputs: vec![x.clone(), view(0, &[0, 1])],
            outputs: vec![x, view(0, &[1, 0])],
            phases: vec![
                cols(vec![op(Load(0), 0, 0, 0), op(Mul, 1, 0, 0), op(Sum, 0, 1, 0)]),
                Phase {
                    row: [mean_square(width), vec![op(Store(1), 0, 5, 0)]].concat(),
                    cols: vec![
                        op(Load(0), 0, 0, 0),
                        op(Row(5), 1, 0, 0),
                        op(Mul, 2, 0, 1),
                        op(Load(1), 3, 0, 0),
                        op(Mul, 4, 2, 3),
                        op(Store(0), 0, 4, 0),
                    ],
                },
            ],
        };
        let len = (rows * width) as usize;
        check(&spec, &[len, width as usize], &[len, rows as usize]);
    }
}

/// dx = r·(w·dy) − x·r³·mean(x·w·dy): two reductions in one phase, read by the next.
#[test]
fn rms_norm_backward() {
    for (rows, width) in [(4, 19), (6, 64), (2, 288)] {
        let x = view(0, &[width, 1]);
        let spec = RegionSpec {
            dims: vec![rows, width],
            walk: Walk::Rows,
            inputs: vec![x.clone(), view(0, &[0, 1]), x.clone()],
            outputs: vec![x],
            phases: vec![
                cols(vec![
                    op(Load(0), 0, 0, 0),
                    op(Mul, 1, 0, 0),
                    op(Sum, 0, 1, 0),
                    op(Load(1), 2, 0, 0),
                    op(Load(2), 3, 0, 0),
                    op(Mul, 4, 2, 3),
                    op(Mul, 5, 4, 0),
                    op(Sum, 6, 5, 0),
                    op(Max, 7, 5, 0),
                ]),
                Phase {
                    row: [
                        mean_square(width),
                        vec![
                            op(Mul, 8, 5, 5),
                            op(Mul, 9, 8, 5),
                            op(Mul, 10, 9, 6),
                            op(Div, 11, 10, 1),
                        ],
                    ]
                    .concat(),
                    cols: vec![
                        op(Load(0), 0, 0, 0),
                        op(Load(1), 1, 0, 0),
                        op(Load(2), 2, 0, 0),
                        op(Row(5), 3, 0, 0),
                        op(Row(11), 4, 0, 0),
                        op(Mul, 5, 1, 2),
                        op(Mul, 6, 5, 3),
                        op(Mul, 7, 0, 4),
                        op(Sub, 8, 6, 7),
                        op(Row(7), 9, 0, 0),
                        op(Add, 10, 8, 9),
                        op(Store(0), 0, 10, 0),
                    ],
                },
            ],
        };
        let len = (rows * width) as usize;
        check(&spec, &[len, width as usize, len], &[len]);
    }
}

fn column_sum(dims: &[u32], reduced: u32, input: View, output: View) -> RegionSpec {
    RegionSpec {
        dims: dims.to_vec(),
        walk: Walk::Columns { reduced },
        inputs: vec![input],
        outputs: vec![output],
        phases: vec![
            cols(vec![op(Load(0), 0, 0, 0), op(Mul, 1, 0, 0), op(Sum, 0, 1, 0)]),
            Phase {
                row: vec![op(Const(0.5), 1, 0, 0), op(Mul, 2, 0, 1), op(Store(0), 0, 2, 0)],
                cols: vec![],
            },
        ],
    }
}

#[test]
fn columns_over_batch_and_time() {
    for (b, t, hidden) in [(2, 5, 3), (3, 150, 37), (1, 7, 288), (2, 3, 211)] {
        let input = view(0, &[t * hidden, hidden, 1]);
        let spec = column_sum(&[b, t, hidden], 2, input, view(0, &[0, 0, 1]));
        check(&spec, &[(b * t * hidden) as usize], &[hidden as usize]);
    }
}

#[test]
fn columns_over_a_middle_axis() {
    for (b, t, hidden) in [(2, 5, 3), (3, 300, 21), (4, 2, 64)] {
        let input = view(0, &[t * hidden, hidden, 1]);
        let spec = column_sum(&[b, t, hidden], 1, input, view(0, &[hidden, 0, 1]));
        check(&spec, &[(b * t * hidden) as usize], &[(b * hidden) as usize]);
    }
}

#[test]
fn transposed_and_broadcast_views_with_integer_output() {
    let (rows, columns) = (7, 21);
    let spec = RegionSpec {
        dims: vec![rows, columns],
        walk: Walk::Rows,
        inputs: vec![
            View { elem: Elem::I32, offset: 0, strides: vec![1, rows] },
            View { elem: Elem::I32, offset: 3, strides: vec![1, 0] },
        ],
        outputs: vec![View { elem: Elem::I32, offset: 0, strides: vec![1, rows] }],
        phases: vec![cols(vec![
            op(Load(0), 0, 0, 0),
            op(Load(1), 1, 0, 0),
            op(Index(0), 2, 0, 0),
            op(Index(1), 3, 0, 0),
            op(Lt, 4, 2, 3),
            Instr { op: Select, dst: 5, a: 4, b: 0, c: 1 },
            op(Add, 6, 5, 3),
            op(Store(0), 0, 6, 0),
        ])],
    };
    check(&spec, &[(rows * columns) as usize, 10], &[(rows * columns) as usize]);
}

#[test]
fn a_scalar_is_a_region() {
    let spec = RegionSpec {
        dims: vec![],
        walk: Walk::Rows,
        inputs: vec![view(0, &[])],
        outputs: vec![view(0, &[])],
        phases: vec![cols(vec![op(Load(0), 0, 0, 0), op(Exp, 1, 0, 0), op(Store(0), 0, 1, 0)])],
    };
    check(&spec, &[1], &[1]);
}

/// The upper half of every f32 with lower halves around nothing, a tie and the next one.
fn patterns() -> Vec<f32> {
    const LOWER: [u32; 7] = [0, 1, 0x7fff, 0x8000, 0x8001, 0xfffe, 0xffff];
    let all = (0..=u16::MAX).flat_map(|upper| LOWER.map(|low| u32::from(upper) << 16 | low));
    all.map(f32::from_bits).collect()
}

/// Stored, rounded in a register, and loaded again, to the bit.
#[test]
fn rounding_is_that_of_the_host() {
    let values = patterns();
    let columns = values.len() as u32;
    let elem = |elem| View { elem, offset: 0, strides: vec![1] };
    let spec = RegionSpec {
        dims: vec![columns],
        walk: Walk::Rows,
        inputs: vec![elem(Elem::F32), elem(Elem::Bf16)],
        outputs: vec![elem(Elem::Bf16), elem(Elem::F32), elem(Elem::F32)],
        phases: vec![cols(vec![
            op(Load(0), 0, 0, 0),
            op(Store(0), 0, 0, 0),
            op(Round, 1, 0, 0),
            op(Store(1), 0, 1, 0),
            op(Load(1), 2, 0, 0),
            op(Store(2), 0, 2, 0),
        ])],
    };
    let mut buffers = Buffers::new();
    let mut args = vec![buffers.push(Elem::F32, values.clone())];
    args.push(buffers.push(Elem::Bf16, values.clone()));
    args.extend([Elem::Bf16, Elem::F32, Elem::F32].map(|elem| buffers.zeros(elem, values.len())));
    for (class, results) in buffers.run_on_devices(&KernelSpec::Region(spec), &args) {
        for (i, x) in values.iter().enumerate() {
            let want = bf16_to_f32(bf16_nearest(*x)).to_bits();
            for output in &args[2..] {
                let got = results[*output][i].to_bits();
                assert_eq!(got, want, "{class:?}, {:x}", x.to_bits());
            }
        }
    }
}
