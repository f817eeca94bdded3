//! Contractions against a plain loop in f64: every layout, ragged edges, batches, programs.

use mdl_ir::kernel::{
    ContractSpec, Dim, Elem, Instr, InstrOp, KernelSpec, Operand, Prologue, View, workspace_bytes,
};
use mdl_kernels::{Arena, Class, Device, Products, Slice};

mod elements;
mod tuned;
use elements::{from_bytes, nearest, storing_error, to_bytes};

/// Higham and Mary's probabilistic bound for a sum of k products with rounding to nearest is
/// √k·u·Σ|a·b|, u = 2⁻²⁴, met with high probability; two more roundings for what surrounds it. It
/// holds for every order of summation, so also where pairs or tiles of bf16 are summed first: their
/// products are exact in f32, and each instruction rounds once for each product that it adds.
fn tolerance(k: usize) -> f64 {
    ((k as f64).sqrt() + 2.0) * 2f64.powi(-24)
}

/// What tensor cores add to it. They cut off where they add, an error of up to 2⁻²³ of the sum in
/// each of at most three products of eight steps. More than `LONG` products are summed `STAGE` at a
/// time, and these sums are added like the products of a plain sum: so whatever k is, no more than
/// 12·2⁻²³ of Σ|a·b| is cut off. Of an f32 as the sum of two tf32, with eleven bits each, 2⁻²² is
/// lost in each operand.
fn tolerance_of(device: &Device, k: usize) -> f64 {
    let in_one_run = if k > LONG { STAGE } else { k };
    let cut = (3 * in_one_run.div_ceil(8)) as f64 * 2f64.powi(-23);
    let tensor = if device.class() == Class::Cuda { cut + 2f64.powi(-21) } else { 0.0 };
    tolerance(k) + tensor
}

/// Products that tensor cores sum in one run, and what they sum of more than that.
const LONG: usize = 512;
const STAGE: usize = 32;

/// Instructions for bf16 take subnormal operands for zero, each worth less than this beside a
/// factor up to 1, and a sum that is subnormal becomes zero too.
const FLUSHED: f64 = f32::MIN_POSITIVE as f64;

fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2654435761).wrapping_add(12345);
    let mut next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Slices of one arena, laid out one after the other as the memory plan would.
struct Buffers {
    arena: Arena,
    parts: Vec<(u64, u64)>,
}

impl Buffers {
    fn new(device: &Device, sizes: &[u64]) -> Buffers {
        let mut parts = Vec::new();
        let mut end = 0u64;
        for bytes in sizes {
            parts.push((end, *bytes));
            end = (end + bytes).next_multiple_of(256);
        }
        Buffers { arena: device.alloc(end), parts }
    }

    fn slice(&self, i: usize) -> Slice<'_> {
        self.arena.slice(self.parts[i].0, self.parts[i].1)
    }

    fn write(&self, device: &Device, i: usize, data: &[u8]) {
        device.write(&self.arena, self.parts[i].0, data).expect("inside the arena");
    }

    fn read(&self, device: &Device, i: usize, elem: Elem) -> Vec<f32> {
        let bytes = device.read(&self.arena, self.parts[i].0, self.parts[i].1);
        from_bytes(elem, &bytes.expect("inside the arena"))
    }
}

fn dim(size: u32, stride: u32, stride_b: u32) -> Dim {
    Dim { size, stride, stride_b }
}

fn size(dims: &[Dim]) -> usize {
    dims.iter().map(|dim| dim.size as usize).product()
}

/// Offset of element `index` of a group by its first or second strides.
fn offset(dims: &[Dim], index: usize, second: bool) -> usize {
    let mut rest = index;
    let mut total = 0;
    for dim in dims.iter().rev() {
        let stride = if second { dim.stride_b } else { dim.stride };
        total += rest % dim.size as usize * stride as usize;
        rest /= dim.size as usize;
    }
    total
}

fn extent(groups: &[(&[Dim], bool)]) -> usize {
    let last = |dims: &[Dim], second: bool| -> usize {
        dims.iter()
            .map(|d| (d.size as usize - 1) * if second { d.stride_b } else { d.stride } as usize)
            .sum()
    };
    groups.iter().map(|(dims, second)| last(dims, *second)).sum::<usize>() + 1
}

fn plain(batch: Vec<Dim>, m: Vec<Dim>, n: Vec<Dim>, k: Vec<Dim>) -> ContractSpec {
    ContractSpec {
        a: Elem::F32,
        b: Elem::F32,
        outputs: vec![Elem::F32],
        batch,
        m,
        n,
        k,
        prologue: None,
        rotary: None,
        epilogue_inputs: vec![],
        epilogue: vec![],
    }
}

/// Row-major operands of which a and b may each be transposed.
fn matrices(m: u32, n: u32, k: u32, a_transposed: bool, b_transposed: bool) -> ContractSpec {
    let (am, ak) = if a_transposed { (1, m) } else { (k, 1) };
    let (bn, bk) = if b_transposed { (k, 1) } else { (1, n) };
    plain(vec![], vec![dim(m, am, 0)], vec![dim(n, bn, 0)], vec![dim(k, ak, bk)])
}

fn view_at(view: &View, data: &[f32], row: usize, column: usize) -> f64 {
    let at =
        view.offset as usize + row * view.strides[0] as usize + column * view.strides[1] as usize;
    match view.elem {
        Elem::F32 | Elem::Bf16 => f64::from(data[at]),
        Elem::I32 => f64::from(data[at].to_bits() as i32),
    }
}

/// Runs a program on the first registers in f64; returns the registers and the stores.
fn run(
    program: &[Instr],
    values: &[f64],
    load: impl Fn(usize) -> f64,
) -> (Vec<f64>, Vec<(usize, f64)>) {
    let mut registers = vec![0.0; 32];
    registers[..values.len()].copy_from_slice(values);
    let mut stores = Vec::new();
    for i in program {
        let (a, b) = (registers[i.a as usize], registers[i.b as usize]);
        registers[i.dst as usize] = match i.op {
            InstrOp::Const(c) => f64::from(c),
            InstrOp::Load(input) => load(input as usize),
            InstrOp::Store(output) => {
                stores.push((output as usize, a));
                registers[i.dst as usize]
            }
            InstrOp::Add => a + b,
            InstrOp::Mul => a * b,
            InstrOp::Sub => a - b,
            InstrOp::Sigmoid => 1.0 / (1.0 + (-a).exp()),
            InstrOp::Lt => f64::from(u8::from(a < b)),
            InstrOp::Select => {
                if a != 0.0 {
                    b
                } else {
                    registers[i.c as usize]
                }
            }
            _ => panic!("not used by these tests"),
        };
    }
    (registers, stores)
}

/// A prologue's program in f32, whose sums and products a kernel rounds as this does.
fn prepared(prologue: &Prologue, value: f32, load: impl Fn(usize) -> f64) -> f32 {
    let mut registers = [value; 32];
    for i in &prologue.program {
        let (a, b) = (registers[i.a as usize], registers[i.b as usize]);
        registers[i.dst as usize] = match i.op {
            InstrOp::Load(input) => load(input as usize) as f32,
            InstrOp::Add => a + b,
            InstrOp::Mul => a * b,
            InstrOp::Round => nearest(Elem::Bf16, vec![a])[0],
            _ => panic!("not used by these tests"),
        };
    }
    registers[prologue.result as usize]
}

struct Operands {
    a: Vec<f32>,
    b: Vec<f32>,
    prologues: Vec<Vec<f32>>,
    epilogues: Vec<Vec<f32>>,
}

/// Rows of the operand that a prologue prepares.
fn prepared_rows(spec: &ContractSpec) -> usize {
    match spec.prologue {
        Some(Prologue { operand: Operand::B, .. }) => size(&spec.n),
        _ => size(&spec.m),
    }
}

fn operands(spec: &ContractSpec) -> Operands {
    let rows = size(&spec.batch) * size(&spec.m);
    let input = |view: &View, sizes: &[usize], seed: u32| -> Vec<f32> {
        let walk = |(stride, size): (&u32, &usize)| *stride as usize * (size - 1);
        let last: usize = view.strides.iter().zip(sizes).map(walk).sum();
        let data = numbers(view.offset as usize + last + 1, seed);
        let integer = |x: &f32| f32::from_bits((x * 9.0) as i32 as u32);
        match view.elem {
            Elem::F32 | Elem::Bf16 => nearest(view.elem, data),
            Elem::I32 => data.iter().map(integer).collect(),
        }
    };
    let inputs = |views: &[View], sizes: &[usize], seed: u32| {
        views.iter().zip(seed..).map(|(view, seed)| input(view, sizes, seed)).collect()
    };
    let n = size(&spec.n);
    let beside = match spec.rotary.map(|head| head as usize) {
        None => vec![rows, n],
        Some(head) => spec.m.iter().map(|dim| dim.size as usize).chain([n / head, head]).collect(),
    };
    let a = extent(&[(&spec.batch, false), (&spec.m, false), (&spec.k, false)]);
    let b = extent(&[(&spec.batch, true), (&spec.n, false), (&spec.k, true)]);
    Operands {
        a: nearest(spec.a, numbers(a, 1)),
        b: nearest(spec.b, numbers(b, 2)),
        prologues: inputs(spec.prologue_inputs(), &[prepared_rows(spec), size(&spec.k)], 10),
        epilogues: inputs(&spec.epilogue_inputs, &beside, 20),
    }
}

/// Launches the spec on random operands and compares each output with the plain loop.
fn check_on(device: &Device, spec: &ContractSpec) -> Vec<Vec<f32>> {
    let operands = operands(spec);
    let elements = size(&spec.batch) * size(&spec.m) * size(&spec.n);
    let whole = KernelSpec::Contract(spec.clone());
    let views = spec.prologue_inputs().iter().chain(&spec.epilogue_inputs).map(|view| view.elem);
    let elems: Vec<Elem> = [spec.a, spec.b].into_iter().chain(views).collect();
    let mut data = vec![&operands.a, &operands.b];
    data.extend(operands.prologues.iter().chain(&operands.epilogues));
    let data: Vec<Vec<u8>> =
        data.into_iter().zip(elems).map(|(values, elem)| to_bytes(elem, values)).collect();
    let mut sizes: Vec<u64> = data.iter().map(|d| d.len() as u64).collect();
    sizes.extend(spec.outputs.iter().map(|elem| elements as u64 * elem.bytes()));
    sizes.push(workspace_bytes(&whole, device.target()));
    let buffers = Buffers::new(device, &sizes);
    for (i, bytes) in data.iter().enumerate() {
        buffers.write(device, i, bytes);
    }
    let args: Vec<Slice> = (0..sizes.len()).map(|i| buffers.slice(i)).collect();
    device.launch(&whole, &args);
    let outputs = spec.outputs.iter().enumerate();
    let got: Vec<Vec<f32>> =
        outputs.map(|(o, elem)| buffers.read(device, data.len() + o, *elem)).collect();
    for row in 0..size(&spec.batch) * size(&spec.m) {
        compare_row(device, spec, &operands, row, &got);
    }
    got
}

fn compare_row(
    device: &Device,
    spec: &ContractSpec,
    operands: &Operands,
    row: usize,
    got: &[Vec<f32>],
) {
    let (m, n, k) = (size(&spec.m), size(&spec.n), size(&spec.k));
    let (batch, i) = (row / m, row % m);
    let a0 = offset(&spec.batch, batch, false) + offset(&spec.m, i, false);
    let b0 = offset(&spec.batch, batch, true);
    let prepare = |operand: Operand, row: usize, p: usize, value: f32| -> f64 {
        let load = |v: usize| view_at(&spec.prologue_inputs()[v], &operands.prologues[v], row, p);
        let prologue = spec.prologue.as_ref().filter(|prologue| prologue.operand == operand);
        f64::from(prologue.map_or(value, |prologue| prepared(prologue, value, load)))
    };
    let of_a = |p: usize| operands.a[a0 + offset(&spec.k, p, false)];
    let a_row: Vec<f64> = (0..k).map(|p| prepare(Operand::A, i, p, of_a(p))).collect();
    let b_offsets: Vec<usize> = (0..k).map(|p| b0 + offset(&spec.k, p, true)).collect();
    let sums = (0..n).map(|j| {
        let (mut sum, mut scale) = (0.0, 0.0);
        let from = offset(&spec.n, j, false);
        for (p, (a, at)) in a_row.iter().zip(&b_offsets).enumerate() {
            let product = a * prepare(Operand::B, j, p, operands.b[at + from]);
            sum += product;
            scale += product.abs();
        }
        (sum, scale)
    });
    for [output, j, want, scale] in finished(spec, operands, row, &sums.collect::<Vec<_>>()) {
        let (output, j) = (output as usize, j as usize);
        let value = f64::from(got[output][row * n + j]);
        // Epilogues add and scale by numbers up to 1, so errors of that size add to the sum's.
        let arithmetic = tolerance_of(device, k) * (scale + want.abs() + 1.0);
        let flushed = 2.0 * k as f64 * FLUSHED;
        let bound = arithmetic + flushed + storing_error(spec.outputs[output], want);
        assert!(
            (value - want).abs() <= bound,
            "output {output} at {row}, {j}: {value} for {want}, {spec:?}"
        );
    }
}

/// What the epilogue makes of a row's sums, which are given with those of magnitudes: output,
/// column, value, and the magnitudes behind it.
fn finished(
    spec: &ContractSpec,
    operands: &Operands,
    row: usize,
    sums: &[(f64, f64)],
) -> Vec<[f64; 4]> {
    let head = spec.rotary.unwrap_or(2) as usize;
    let mut made = Vec::new();
    for (j, &(sum, scale)) in sums.iter().enumerate() {
        if spec.rotary.is_none() {
            let load = |v: usize| view_at(&spec.epilogue_inputs[v], &operands.epilogues[v], row, j);
            let (_, mut stores) = run(&spec.epilogue, &[sum], load);
            if spec.epilogue.is_empty() {
                stores.push((0, sum));
            }
            made.extend(stores.into_iter().map(|(o, want)| [o as f64, j as f64, want, scale]));
        } else if j % head < head / 2 {
            let (second, other) = sums[j + head / 2];
            let load = |v: usize| beside_pair(spec, operands, v, row, j);
            let (_, stores) = run(&spec.epilogue, &[sum, second], load);
            made.extend(stores.into_iter().map(|(o, want)| {
                let column = j + o % 2 * (head / 2);
                [(o / 2) as f64, column as f64, want, scale + other]
            }));
        }
    }
    made
}

/// Load `v` of a rotary epilogue at the pair whose first column is `j`.
fn beside_pair(spec: &ContractSpec, operands: &Operands, v: usize, row: usize, j: usize) -> f64 {
    let (view, data) = (&spec.epilogue_inputs[v / 2], &operands.epilogues[v / 2]);
    let head = spec.rotary.expect("pairs") as usize;
    let [rows @ .., of_head, lane] = &view.strides[..] else { panic!("a stride for each") };
    let dims: Vec<Dim> =
        spec.m.iter().zip(rows).map(|(dim, s)| Dim { stride: *s, ..*dim }).collect();
    let lanes = j % head + v % 2 * (head / 2);
    let at = offset(&dims, row, false) + j / head * *of_head as usize + lanes * *lane as usize;
    f64::from(data[view.offset as usize + at])
}

/// The spec with these elements for a, b and the outputs; views in f32 become those of outputs.
fn with(spec: &ContractSpec, [a, b, out]: [Elem; 3]) -> ContractSpec {
    let mut spec = ContractSpec { a, b, outputs: vec![out; spec.outputs.len()], ..spec.clone() };
    let before = spec.prologue.iter_mut().flat_map(|prologue| &mut prologue.inputs);
    let views = before.chain(&mut spec.epilogue_inputs);
    views.filter(|view| view.elem == Elem::F32).for_each(|view| view.elem = out);
    if let (Some(prologue), [Bf16, Bf16]) = (&mut spec.prologue, [a, b]) {
        prologue.program.push(instr(InstrOp::Round, 5, prologue.result, 0, 0));
        prologue.result = 5;
    }
    spec
}

use Elem::{Bf16, F32};
const ELEMS: [[Elem; 3]; 5] =
    [[F32, F32, F32], [Bf16, Bf16, Bf16], [Bf16, Bf16, F32], [Bf16, F32, F32], [F32, Bf16, Bf16]];

/// Every way of this machine to multiply elements of these kinds.
fn ways(elems: [Elem; 3]) -> impl Iterator<Item = Products> {
    let of_halves = elems[..2] == [Bf16, Bf16];
    let ways = [Products::Widened, Products::Vectors, Products::Tiles];
    ways.into_iter().filter(move |way| *way == Products::Widened || of_halves && way.available())
}

fn check(spec: &ContractSpec) {
    for elems in ELEMS {
        devices(elems).iter().for_each(|device| drop(check_on(device, &with(spec, elems))));
    }
}

/// A CPU with every instruction for such elements, and the GPUs that take them.
fn devices(elems: [Elem; 3]) -> Vec<Device> {
    let cpus = ways(elems).map(|way| Device::cpu(None).with_products(way));
    let gpus = Device::all().into_iter().skip(1);
    let alone = std::env::var_os("MDL_GPUS_ALONE").is_some();
    cpus.filter(|_| !alone)
        .chain(gpus.filter(|gpu| elems.iter().all(|&elem| gpu.takes(elem))))
        .collect()
}

#[test]
fn all_transpositions_and_ragged_edges() {
    let shapes =
        [(64, 96, 64), (133, 131, 67), (9, 1, 5), (1, 17, 33), (16, 49, 1), (50, 200, 2101)];
    for (m, n, k) in shapes {
        for (a_transposed, b_transposed) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            check(&matrices(m, n, k, a_transposed, b_transposed));
        }
    }
}

#[test]
fn few_rows() {
    for m in 1..=8 {
        for b_transposed in [false, true] {
            check(&matrices(m, 131, 300, false, b_transposed));
            check(&matrices(m, 1, 40, false, b_transposed));
            check(&matrices(m, 1030, 1111, true, b_transposed));
        }
    }
}

#[test]
fn many_columns() {
    check(&matrices(20, 3200, 30, false, true));
    check(&matrices(20, 3200, 530, false, false));
}

#[test]
fn batches() {
    // [b, h, t, d] x [b, h, s, d] with heads inside the rows: t strides over h·d.
    for batch in [1, 3, 8] {
        let (h, t, s, d) = (3, 37, 29, 16);
        let spec = plain(
            vec![dim(batch, t * h * d, s * h * d), dim(h, d, d)],
            vec![dim(t, h * d, 0)],
            vec![dim(s, h * d, 0)],
            vec![dim(d, 1, 1)],
        );
        check(&spec);
        // The same with b read as [s, d] summed over s.
        let spec = plain(
            vec![dim(batch, h * t * s, s * h * d), dim(h, t * s, d)],
            vec![dim(t, s, 0)],
            vec![dim(d, 1, 0)],
            vec![dim(s, 1, h * d)],
        );
        check(&spec);
    }
}

#[test]
fn permuted_groups() {
    // m and k each of two dims that do not merge, n strided.
    let spec = plain(
        vec![],
        vec![dim(5, 11 * 7 * 6, 0), dim(7, 6, 0)],
        vec![dim(3, 200, 0), dim(10, 3, 0)],
        vec![dim(11, 7 * 6, 600), dim(6, 1, 30)],
    );
    check(&spec);
    // a broadcast along m: stride 0.
    check(&plain(vec![], vec![dim(12, 0, 0)], vec![dim(20, 1, 0)], vec![dim(9, 1, 20)]));
}

fn instr(op: InstrOp, dst: u16, a: u16, b: u16, c: u16) -> Instr {
    Instr { op, dst, a, b, c }
}

fn view(elem: Elem, offset: u32, strides: [u32; 2]) -> View {
    View { elem, offset, strides: strides.to_vec() }
}

#[test]
fn prologues() {
    // x·scale[k] + shift[row], in each layout of either operand.
    for (m, n, k) in [(70, 50, 90), (3, 40, 50), (21, 33, 600), (96, 192, 64)] {
        for (operand, transposed) in
            [(Operand::A, false), (Operand::A, true), (Operand::B, false), (Operand::B, true)]
        {
            let (a, b) =
                if operand == Operand::A { (transposed, true) } else { (true, transposed) };
            let prologue = Prologue {
                operand,
                inputs: vec![view(Elem::F32, 4, [0, 1]), view(Elem::I32, 0, [2, 0])],
                program: vec![
                    instr(InstrOp::Load(0), 1, 0, 0, 0),
                    instr(InstrOp::Mul, 2, 0, 1, 0),
                    instr(InstrOp::Load(1), 3, 0, 0, 0),
                    instr(InstrOp::Add, 4, 2, 3, 0),
                ],
                result: 4,
            };
            check(&ContractSpec { prologue: Some(prologue), ..matrices(m, n, k, a, b) });
        }
    }
}

#[test]
fn epilogue_with_two_outputs() {
    for (m, n, k) in [(70, 96, 90), (133, 131, 67), (3, 40, 50), (30, 70, 1200), (8, 200, 1200)] {
        for b_transposed in [false, true] {
            let mut spec = matrices(m, n, k, false, b_transposed);
            spec.epilogue_inputs = vec![
                view(Elem::F32, 1, [0, 1]),
                view(Elem::F32, 0, [n, 1]),
                view(Elem::F32, 0, [1, m]),
            ];
            spec.epilogue = vec![
                instr(InstrOp::Load(0), 1, 0, 0, 0),
                instr(InstrOp::Add, 2, 0, 1, 0),
                instr(InstrOp::Store(1), 0, 2, 0, 0),
                instr(InstrOp::Load(1), 3, 0, 0, 0),
                instr(InstrOp::Lt, 4, 3, 2, 0),
                instr(InstrOp::Load(2), 5, 0, 0, 0),
                instr(InstrOp::Mul, 6, 3, 5, 0),
                instr(InstrOp::Store(0), 0, 6, 0, 0),
            ];
            spec.outputs = vec![Elem::F32; 2];
            check(&spec);
        }
    }
}

#[test]
fn results_do_not_depend_on_the_units() {
    for (m, n, k) in [(133, 131, 1067), (1, 300, 700), (6, 700, 70)] {
        for b_transposed in [false, true] {
            for elems in ELEMS {
                let spec = with(&matrices(m, n, k, false, b_transposed), elems);
                for way in ways(elems) {
                    let device = |units| Device::cpu(Some(units)).with_products(way);
                    let one = check_on(&device(1), &spec);
                    assert_eq!(one, check_on(&device(2), &spec));
                    assert_eq!(one, check_on(&device(3), &spec));
                }
            }
        }
    }
}

/// out + a·b, where the epilogue's input and the output are one buffer.
fn adding(m: u32, n: u32, k: u32, elems: [Elem; 3]) -> ContractSpec {
    let mut spec = with(&matrices(m, n, k, false, true), elems);
    spec.epilogue_inputs = vec![view(elems[2], 0, [n, 1])];
    spec.epilogue = vec![
        instr(InstrOp::Load(0), 1, 0, 0, 0),
        instr(InstrOp::Add, 2, 0, 1, 0),
        instr(InstrOp::Store(0), 0, 2, 0, 0),
    ];
    spec
}

/// Launches a kernel on the operands of `spec`, as buffers in this order: a, b, what the output
/// holds and becomes, workspace.
fn check_adding(device: &Device, spec: &ContractSpec, kernel: &KernelSpec, order: &[usize]) {
    let operands = operands(spec);
    let elems = [spec.a, spec.b, spec.outputs[0]];
    let data = [&operands.a, &operands.b, &operands.epilogues[0]].into_iter().zip(elems);
    let data: Vec<Vec<u8>> = data.map(|(values, elem)| to_bytes(elem, values)).collect();
    let mut sizes: Vec<u64> = data.iter().map(|bytes| bytes.len() as u64).collect();
    sizes.push(workspace_bytes(kernel, device.target()));
    let buffers = Buffers::new(device, &sizes);
    for (i, bytes) in data.iter().enumerate() {
        buffers.write(device, i, bytes);
    }
    let args: Vec<Slice> = order.iter().map(|i| buffers.slice(*i)).collect();
    device.launch(kernel, &args);
    let got = [buffers.read(device, 2, spec.outputs[0])];
    (0..size(&spec.m)).for_each(|row| compare_row(device, spec, &operands, row, &got));
}

#[test]
fn an_epilogue_adds_to_what_its_output_holds() {
    for (m, n, k) in [(70, 97, 90), (133, 31, 1200), (3, 40, 50)] {
        for elems in ELEMS {
            for device in devices(elems) {
                let spec = adding(m, n, k, elems);
                let kernel = KernelSpec::Contract(spec.clone());
                check_adding(&device, &spec, &kernel, &[0, 1, 2, 2, 3]);
            }
        }
    }
}

#[test]
fn sums_are_added_to_an_output_in_f32() {
    for (m, n, k) in [(70, 97, 91), (64, 96, 2048), (133, 31, 1200), (3, 40, 50)] {
        for elems in [[F32, F32, F32], [Bf16, Bf16, F32]] {
            for device in devices(elems) {
                let spec = adding(m, n, k, elems);
                let plain =
                    ContractSpec { epilogue_inputs: vec![], epilogue: vec![], ..spec.clone() };
                check_adding(&device, &spec, &KernelSpec::ContractAdd(plain), &[0, 1, 2, 3]);
            }
        }
    }
}

/// (a·cos − b·sin, b·cos + a·sin) for each head's halves a and b, where cos and sin depend on the
/// position, plus a number for each column before that; the positions of `batch` sequences are the
/// rows.
fn rotary([batch, t, heads, head, k]: [u32; 5]) -> ContractSpec {
    let half = head / 2;
    let angle = |offset: u32| View { elem: F32, offset, strides: vec![0, half, 0, 1] };
    let bias = View { elem: F32, offset: 0, strides: vec![0, 0, head, 1] };
    let both = |op, dst, [a, b]: [u16; 2], [c, d]: [u16; 2]| {
        [instr(op, dst, a, b, 0), instr(op, dst + 1, c, d, 0)]
    };
    let epilogue = [
        both(InstrOp::Add, 4, [0, 2], [1, 3]),
        both(InstrOp::Mul, 8, [4, 6], [5, 7]),
        both(InstrOp::Mul, 10, [5, 6], [4, 7]),
        [instr(InstrOp::Sub, 12, 8, 9, 0), instr(InstrOp::Add, 13, 10, 11, 0)],
        [instr(InstrOp::Store(0), 0, 12, 0, 0), instr(InstrOp::Store(1), 0, 13, 0, 0)],
    ];
    let loads = [(0, 2), (1, 3), (2, 6), (4, 7)];
    let loads = loads.map(|(input, dst)| instr(InstrOp::Load(input), dst, 0, 0, 0));
    ContractSpec {
        m: vec![dim(batch, t * k, 0), dim(t, k, 0)],
        n: vec![dim(heads, head * k, 0), dim(head, k, 0)],
        rotary: Some(head),
        epilogue_inputs: vec![bias, angle(3), angle(0)],
        epilogue: loads.into_iter().chain(epilogue.concat()).collect(),
        ..matrices(batch * t, heads * head, k, false, true)
    }
}

#[test]
fn rotations_of_ragged_heads() {
    let shapes = [
        [1, 64, 2, 48, 64],
        [2, 37, 3, 20, 33],
        [3, 11, 5, 6, 70],
        [1, 70, 2, 128, 1200],
        [2, 9, 7, 64, 40],
        [1, 20, 40, 96, 530],
        [1, 9, 4, 2, 8],
    ];
    shapes.into_iter().for_each(|shape| check(&rotary(shape)));
}
