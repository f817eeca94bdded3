//! The register machine of regions, prologues and epilogues, expanded at comptime into vector code.
//!
//! Registers are values, not memory: interpreting a program emits straight-line code. What a load,
//! an index, a store or a reduction means is the `Environment`'s, which emits code itself.

use crate::gpu::math as gpu_math;
use crate::vector_io::nearest_bf16;
use cubecl::intrinsic;
use cubecl::prelude::*;
use mdl_ir::kernel::{Instr, InstrOp};
use std::hash::{Hash, Hasher};

/// A list of instructions as part of a kernel's identity: constants are compared by their bits.
#[derive(Clone, Debug, Default)]
pub(crate) struct Program(pub Vec<Instr>);

impl Program {
    pub(crate) fn stores(&self) -> bool {
        self.0.iter().any(|instr| matches!(instr.op, InstrOp::Store(_)))
    }

    fn key(&self) -> impl Iterator<Item = (std::mem::Discriminant<InstrOp>, u32, [u16; 4])> + '_ {
        self.0.iter().map(|instr| {
            let payload = match instr.op {
                InstrOp::Const(value) => value.to_bits(),
                InstrOp::Load(n) | InstrOp::Index(n) | InstrOp::Row(n) | InstrOp::Store(n) => {
                    u32::from(n)
                }
                _ => 0,
            };
            let operands = [instr.dst, instr.a, instr.b, instr.c];
            (std::mem::discriminant(&instr.op), payload, operands)
        })
    }
}

impl PartialEq for Program {
    fn eq(&self, other: &Self) -> bool {
        self.key().eq(other.key())
    }
}

impl Eq for Program {}

impl Hash for Program {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.len().hash(state);
        self.key().for_each(|item| item.hash(state));
    }
}

/// A vector while code is being emitted.
pub(crate) type Lanes<N> = NativeExpand<Vector<f32, N>>;

/// What the instructions that touch the outside mean; each method emits code into `scope`.
pub(crate) trait Environment<N: Size> {
    fn load(&mut self, scope: &Scope, input: u16) -> Lanes<N>;
    fn store(&mut self, scope: &Scope, output: u16, value: Lanes<N>);

    fn index(&mut self, _scope: &Scope, dim: u16) -> Lanes<N> {
        panic!("invariant: index {dim} is not used here")
    }

    fn row(&mut self, _scope: &Scope, register: u16) -> Lanes<N> {
        panic!("invariant: row register {register} is not used here")
    }

    fn sum(&mut self, _scope: &Scope, register: u16, _value: Lanes<N>) {
        panic!("invariant: sum into {register} is not used here")
    }

    fn max(&mut self, _scope: &Scope, register: u16, _value: Lanes<N>) {
        panic!("invariant: max into {register} is not used here")
    }
}

/// The register file while code is being emitted.
pub(crate) struct Registers<N: Size>(Vec<Option<Lanes<N>>>);

impl<N: Size> Registers<N> {
    pub(crate) fn new() -> Self {
        Registers(Vec::new())
    }

    pub(crate) fn get(&self, register: u16) -> Lanes<N> {
        self.0.get(register as usize).copied().flatten().expect("invariant: written before read")
    }

    pub(crate) fn set(&mut self, register: u16, value: Lanes<N>) {
        let at = register as usize;
        if self.0.len() <= at {
            self.0.resize(at + 1, None);
        }
        self.0[at] = Some(value);
    }
}

/// Emits the program.
pub(crate) fn interpret<N: Size>(
    scope: &Scope,
    program: &Program,
    registers: &mut Registers<N>,
    environment: &mut impl Environment<N>,
) {
    for instr in &program.0 {
        match instr.op {
            InstrOp::Store(output) => environment.store(scope, output, registers.get(instr.a)),
            InstrOp::Sum => environment.sum(scope, instr.dst, registers.get(instr.a)),
            InstrOp::Max => environment.max(scope, instr.dst, registers.get(instr.a)),
            _ => {
                let value = match instr.op {
                    InstrOp::Const(value) => splat::<N>(scope, value),
                    InstrOp::Load(input) => environment.load(scope, input),
                    InstrOp::Index(dim) => environment.index(scope, dim),
                    InstrOp::Row(register) => environment.row(scope, register),
                    _ => compute(scope, instr, registers),
                };
                registers.set(instr.dst, value);
            }
        }
    }
}

/// A constant in every lane. Not every language of kernels can write down what is not finite.
pub(crate) fn splat<N: Size>(scope: &Scope, value: f32) -> Lanes<N> {
    if !value.is_finite() {
        return of_bits::expand::<N>(scope, value.to_bits());
    }
    Vector::<f32, N>::__expand_new(scope, value.__expand_runtime_method(scope))
}

fn compute<N: Size>(scope: &Scope, instr: &Instr, registers: &Registers<N>) -> Lanes<N> {
    let a = registers.get(instr.a);
    let b = || registers.get(instr.b);
    let c = || registers.get(instr.c);
    match instr.op {
        // −0 − 0 is −0, as negation has it, and 0 − 0 is not.
        InstrOp::Neg => splat::<N>(scope, -0.0).__expand_sub_method(scope, a),
        InstrOp::Exp => exp::expand::<N>(scope, a),
        InstrOp::Log => ln::expand::<N>(scope, a),
        InstrOp::Sqrt => a.__expand_sqrt_method(scope),
        InstrOp::Rsqrt => {
            splat::<N>(scope, 1.0).__expand_div_method(scope, a.__expand_sqrt_method(scope))
        }
        InstrOp::Sigmoid => sigmoid::expand::<N>(scope, a),
        InstrOp::Sin => sin::expand::<N>(scope, a),
        InstrOp::Cos => cos::expand::<N>(scope, a),
        InstrOp::Tanh => tanh::expand::<N>(scope, a),
        InstrOp::Abs => a.__expand_abs_method(scope),
        InstrOp::Round => nearest_bf16::expand::<N>(scope, a),
        InstrOp::Not => {
            choose::expand::<N>(scope, a, splat::<N>(scope, 0.0), splat::<N>(scope, 1.0))
        }
        InstrOp::Add => a.__expand_add_method(scope, b()),
        InstrOp::Sub => a.__expand_sub_method(scope, b()),
        InstrOp::Mul => apart::expand::<N>(scope, a.__expand_mul_method(scope, b())),
        InstrOp::Div => a.__expand_div_method(scope, b()),
        InstrOp::Min => a.__expand_min_method(scope, b()),
        InstrOp::MaxOf => a.__expand_max_method(scope, b()),
        InstrOp::Lt => less::expand::<N>(scope, a, b()),
        InstrOp::Le => less_or_equal::expand::<N>(scope, a, b()),
        InstrOp::Eq => equal_to::expand::<N>(scope, a, b()),
        InstrOp::And => and_both::expand::<N>(scope, a, b()),
        InstrOp::Or => or_either::expand::<N>(scope, a, b()),
        InstrOp::Select => choose::expand::<N>(scope, a, b(), c()),
        InstrOp::Const(_)
        | InstrOp::Load(_)
        | InstrOp::Index(_)
        | InstrOp::Row(_)
        | InstrOp::Store(_)
        | InstrOp::Sum
        | InstrOp::Max => unreachable!("handled by `interpret`"),
    }
}

#[cube]
fn of_bits<N: Size>(#[comptime] bits: u32) -> Vector<f32, N> {
    Vector::<f32, N>::reinterpret(Vector::<u32, N>::new(bits.runtime()))
}

/// A product as it would be if it were stored. CubeCL makes one operation of a product and the sum
/// that is its only reader, which rounds once and not twice; then bits would depend on what else is
/// in the kernel. Functions end in products too.
#[cube]
fn apart<N: Size>(product: Vector<f32, N>) -> Vector<f32, N> {
    Vector::<f32, N>::reinterpret(Vector::<u32, N>::reinterpret(product))
}

/// Functions whose last bit depends on whether a vector or a single number is asked for. A single
/// one is computed as a lane of a vector: how a region is walked, and with it which elements are
/// left over, is then no part of a result.
macro_rules! as_in_vectors {
    ($($name:ident),*) => {$(
        #[cube]
        fn $name<N: Size>(a: Vector<f32, N>) -> Vector<f32, N> {
            let lanes = N::value();
            let gpu = on_gpu();
            if comptime!(gpu) {
                apart::<N>(gpu_math::$name::<N>(a))
            } else if comptime!(lanes == 1) {
                let wide = Vector::<f32, Const<WIDE>>::new(a.extract(0usize));
                apart::<N>(Vector::new(wide.$name().extract(0usize)))
            } else {
                apart::<N>(a.$name())
            }
        }
    )*};
}

/// Whether the kernel being expanded is for a GPU.
#[cube]
#[allow(unused_variables)]
fn on_gpu() -> comptime_type!(bool) {
    intrinsic!(|scope| {
        let properties = scope.state().device_properties.clone();
        properties.is_some_and(|device| device.hardware.num_cpu_cores.is_none())
    })
}

/// Lanes of the widest vector registers; narrower ones do their part of it the same way.
const WIDE: usize = 16;

as_in_vectors!(exp, ln, sin, cos, tanh);

#[cube]
fn sigmoid<N: Size>(a: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0);
    one / (one + exp::<N>(Vector::<f32, N>::new(0.0) - a))
}

#[cube]
fn less<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>) -> Vector<f32, N> {
    truth::<N>(a.less_than(&b))
}

#[cube]
fn less_or_equal<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>) -> Vector<f32, N> {
    truth::<N>(a.less_equal(&b))
}

#[cube]
fn equal_to<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>) -> Vector<f32, N> {
    truth::<N>(a.equal(&b))
}

#[cube]
fn and_both<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>) -> Vector<f32, N> {
    let zero = Vector::<f32, N>::new(0.0);
    choose::<N>(a, choose::<N>(b, Vector::new(1.0), zero), zero)
}

#[cube]
fn or_either<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0);
    choose::<N>(a, one, choose::<N>(b, one, Vector::new(0.0)))
}

#[cube]
fn truth<N: Size>(condition: Vector<bool, N>) -> Vector<f32, N> {
    select_many(condition, Vector::<f32, N>::new(1.0), Vector::<f32, N>::new(0.0))
}

#[cube]
fn choose<N: Size>(
    a: Vector<f32, N>,
    then: Vector<f32, N>,
    or_else: Vector<f32, N>,
) -> Vector<f32, N> {
    select_many(a.not_equal(&Vector::new(0.0)), then, or_else)
}
