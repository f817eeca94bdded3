//! Each instruction of the register machine against f64, on vectors and on ragged ends.

use mdl_ir::kernel::{ContractSpec, Dim, Elem, Instr, InstrOp, KernelSpec, View, workspace_bytes};
use mdl_kernels::Device;

/// Elementary functions are good to 2·10⁻⁷ relative; sums of exponentials behind them double that.
const TOLERANCE: f64 = 4e-7;
const COLUMNS: u32 = 133;

fn instr(op: InstrOp, dst: u16, a: u16) -> Instr {
    Instr { op, dst, a, b: 1, c: 2 }
}

/// op(x, y, z) for each column, as the epilogue of a product with ones.
fn launch(device: &Device, op: InstrOp, operands: &[Vec<f32>; 3]) -> Vec<f32> {
    let dim = |size, stride| vec![Dim { size, stride, stride_b: 0 }];
    let view = || View { elem: Elem::F32, offset: 0, strides: vec![0, 1] };
    let spec = KernelSpec::Contract(ContractSpec {
        a: Elem::F32,
        b: Elem::F32,
        outputs: vec![Elem::F32],
        batch: vec![],
        m: dim(2, 0),
        n: dim(COLUMNS, 1),
        k: vec![],
        prologue: None,
        rotary: None,
        epilogue_inputs: vec![view(), view()],
        epilogue: vec![
            instr(InstrOp::Load(0), 1, 0),
            instr(InstrOp::Load(1), 2, 0),
            instr(op, 3, 0),
            instr(InstrOp::Store(0), 0, 3),
        ],
    });
    let row = u64::from(COLUMNS) * 4;
    let scratch = workspace_bytes(&spec, device.target());
    let arena = device.alloc(8192 + scratch);
    device.write(&arena, 0, bytemuck::bytes_of(&1f32)).expect("inside");
    for (i, values) in operands.iter().enumerate() {
        device.write(&arena, 1024 * (i as u64 + 1), bytemuck::cast_slice(values)).expect("inside");
    }
    let args = [
        arena.slice(0, 4),
        arena.slice(1024, row),
        arena.slice(2048, row),
        arena.slice(3072, row),
        arena.slice(4096, 2 * row),
        arena.slice(8192, scratch),
    ];
    device.launch(&spec, &args);
    let bytes = device.read(&arena, 4096 + row, row).expect("inside");
    bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn check(op: InstrOp, positive: bool, want: impl Fn(f64, f64, f64) -> f64) {
    let column =
        |i: u32, step: u32| (i * step % 41) as f32 / 8.0 - if positive { -0.1 } else { 2.5 };
    let values = |step| (0..COLUMNS).map(|i| column(i, step)).collect::<Vec<f32>>();
    let operands = [values(7), values(11), values(23)];
    let all = Device::all();
    let results = all.iter().flat_map(|device| {
        launch(device, op, &operands).into_iter().enumerate().map(|got| (device.class(), got))
    });
    for (class, (i, got)) in results {
        let [x, y, z] = [0, 1, 2].map(|o: usize| f64::from(operands[o][i]));
        let want = want(x, y, z);
        let error = (f64::from(got) - want).abs();
        let met =
            error <= TOLERANCE * want.abs().max(1.0) || want.is_infinite() && got.is_infinite();
        assert!(met, "{class:?}: {op:?}({x}, {y}, {z}) = {got} for {want}");
    }
}

fn truth(condition: bool) -> f64 {
    if condition { 1.0 } else { 0.0 }
}

#[test]
fn functions_of_one() {
    check(InstrOp::Const(1.5), false, |_, _, _| 1.5);
    check(InstrOp::Neg, false, |x, _, _| -x);
    check(InstrOp::Exp, false, |x, _, _| x.exp());
    check(InstrOp::Log, true, |x, _, _| x.ln());
    check(InstrOp::Sqrt, true, |x, _, _| x.sqrt());
    check(InstrOp::Rsqrt, true, |x, _, _| 1.0 / x.sqrt());
    check(InstrOp::Sigmoid, false, |x, _, _| 1.0 / (1.0 + (-x).exp()));
    check(InstrOp::Sin, false, |x, _, _| x.sin());
    check(InstrOp::Cos, false, |x, _, _| x.cos());
    check(InstrOp::Tanh, false, |x, _, _| x.tanh());
    check(InstrOp::Abs, false, |x, _, _| x.abs());
    check(InstrOp::Not, false, |x, _, _| truth(x == 0.0));
}

#[test]
fn functions_of_two_and_three() {
    check(InstrOp::Add, false, |x, y, _| x + y);
    check(InstrOp::Sub, false, |x, y, _| x - y);
    check(InstrOp::Mul, false, |x, y, _| x * y);
    check(InstrOp::Div, true, |x, y, _| x / y);
    check(InstrOp::Min, false, |x, y, _| x.min(y));
    check(InstrOp::MaxOf, false, |x, y, _| x.max(y));
    check(InstrOp::Lt, false, |x, y, _| truth(x < y));
    check(InstrOp::Le, false, |x, y, _| truth(x <= y));
    check(InstrOp::Eq, false, |x, y, _| truth(x == y));
    check(InstrOp::And, false, |x, y, _| truth(x != 0.0 && y != 0.0));
    check(InstrOp::Or, false, |x, y, _| truth(x != 0.0 || y != 0.0));
    check(InstrOp::Select, false, |x, y, z| if x != 0.0 { y } else { z });
}
