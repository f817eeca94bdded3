//! Vector loads and stores at any element of a buffer, whatever its elements are.
//!
//! Buffers are bound as f32, the type of all arithmetic. What holds i32 or bf16 is read by its bits
//! where a kernel names the `Elem`, so one kernel takes any mixture of buffers.
//!
//! A kernel that uses these takes `Device::unaligned` as one more argument: without it the
//! compiler may assume that vectors are aligned to their size, and a load at a ragged row traps.

use cubecl::intrinsic;
use cubecl::ir::AddressSpace;
use cubecl::ir::dialect::general::ReinterpretCastOp;
use cubecl::ir::pliron::r#type::Typed;
use cubecl::ir::pliron::value::Value;
use cubecl::ir::types::{PointerType, RuntimeArrayType};
use cubecl::prelude::*;
use mdl_ir::kernel::Elem;
use mdl_ir::rounding::QUIET;

/// The vector of elements `at..at + N`. One element needs no cast of its pointer, which not every
/// device has.
#[cube]
pub(crate) fn load<E: Scalar, N: Size>(buffer: &[E], at: usize) -> Vector<E, N> {
    let lanes = N::value();
    if comptime!(lanes == 1) { Vector::new(buffer[at]) } else { load_cast::<E, N>(buffer, at) }
}

#[cube]
#[allow(unused_variables)]
fn load_cast<E: Scalar, N: Size>(buffer: &[E], at: usize) -> Vector<E, N> {
    intrinsic!(|scope| {
        // SAFETY: callers keep `at + N` inside the buffer.
        let first = unsafe { buffer.__expand_get_unchecked_method(scope, at) };
        as_vector::<E, N>(scope, first).__expand_deref_method(scope)
    })
}

/// Writes elements `at..at + N`.
#[cube]
pub(crate) fn store<E: Scalar, N: Size>(buffer: &mut [E], at: usize, value: Vector<E, N>) {
    let lanes = N::value();
    if comptime!(lanes == 1) {
        buffer[at] = value.extract(0usize);
    } else {
        store_cast::<E, N>(buffer, at, value);
    }
}

#[cube]
#[allow(unused_variables)]
fn store_cast<E: Scalar, N: Size>(buffer: &mut [E], at: usize, value: Vector<E, N>) {
    intrinsic!(|scope| {
        // SAFETY: callers keep `at + N` inside the buffer.
        let first = unsafe { buffer.__expand_get_unchecked_mut_method(scope, at) };
        as_vector::<E, N>(scope, first).__expand_assign_method(scope, value);
    })
}

/// The pointer to one element, as a pointer to a vector that starts there.
fn as_vector<E: Scalar, N: Size>(
    scope: &Scope,
    first: &NativeExpand<E>,
) -> NativeExpand<Vector<E, N>> {
    vector_at(scope, first.value(scope))
}

fn vector_at<E: Scalar, N: Size>(scope: &Scope, pointer: Value) -> NativeExpand<Vector<E, N>> {
    let vector = Vector::<E, N>::__expand_as_type(scope);
    let ty = PointerType::get(scope.ctx(), vector, space_of(scope, pointer)).into();
    let cast = ReinterpretCastOp::new(scope.ctx_mut(), ty, pointer);
    scope.register_with_result(&cast).into()
}

fn space_of(scope: &Scope, pointer: Value) -> AddressSpace {
    let ctx = scope.ctx();
    let ty = pointer.get_type(ctx);
    let ty = ty.deref(ctx);
    let ty: &PointerType = ty.downcast_ref().expect("invariant: it points to memory");
    ty.address_space
}

/// The same memory in elements of two bytes.
fn halves(scope: &Scope, buffer: &SliceExpand<f32>) -> SliceExpand<u16> {
    let list = buffer.__extract_list(scope);
    let space = space_of(scope, list);
    let array = RuntimeArrayType::get(scope.ctx(), u16::__expand_as_type(scope)).into();
    let ty = PointerType::get(scope.ctx(), array, space).into();
    let cast = ReinterpretCastOp::new(scope.ctx_mut(), ty, list);
    let list = scope.register_with_result(&cast);
    let twice =
        |count: NativeExpand<usize>| count.__expand_mul_method(scope, 2usize.into_expand(scope));
    let offset = twice(buffer.__extract_offset(scope));
    from_raw_parts(scope, list, offset, twice(buffer.__extract_length(scope)))
}

/// The bits of the bf16 `at..at + N`.
#[cube]
#[allow(unused_variables)]
fn load_halves<N: Size>(buffer: &[f32], at: usize) -> Vector<u16, N> {
    intrinsic!(|scope| { load::expand::<u16, N>(scope, &halves(scope, buffer), at) })
}

#[cube]
#[allow(unused_variables)]
fn store_halves<N: Size>(buffer: &mut [f32], at: usize, bits: Vector<u16, N>) {
    intrinsic!(|scope| {
        store::expand::<u16, N>(scope, &mut halves(scope, buffer), at, bits);
    })
}

/// The elements `at..at + N` as f32.
#[cube]
pub(crate) fn load_as<N: Size>(
    buffer: &[f32],
    at: usize,
    #[comptime] elem: Elem,
) -> Vector<f32, N> {
    if comptime!(elem == Elem::Bf16) {
        widened::<N>(load_halves::<N>(buffer, at))
    } else if comptime!(elem == Elem::I32) {
        Vector::cast_from(Vector::<i32, N>::reinterpret(load::<f32, N>(buffer, at)))
    } else {
        load::<f32, N>(buffer, at)
    }
}

/// Writes elements `at..at + N`: i32 and bf16 become the nearest.
#[cube]
pub(crate) fn store_as<N: Size>(
    buffer: &mut [f32],
    at: usize,
    value: Vector<f32, N>,
    #[comptime] elem: Elem,
) {
    if comptime!(elem == Elem::Bf16) {
        store_halves::<N>(buffer, at, narrowed::<N>(value));
    } else if comptime!(elem == Elem::I32) {
        let integers = Vector::<i32, N>::cast_from(value.round());
        store::<f32, N>(buffer, at, Vector::<f32, N>::reinterpret(integers));
    } else {
        store::<f32, N>(buffer, at, value);
    }
}

/// One element as f32.
#[cube]
pub(crate) fn load_one(buffer: &[f32], at: usize, #[comptime] elem: Elem) -> f32 {
    if comptime!(elem == Elem::F32) {
        buffer[at]
    } else {
        load_as::<Const<1>>(buffer, at, elem).extract(0usize)
    }
}

#[cube]
pub(crate) fn store_one(buffer: &mut [f32], at: usize, value: f32, #[comptime] elem: Elem) {
    if comptime!(elem == Elem::F32) {
        buffer[at] = value;
    } else {
        store_as::<Const<1>>(buffer, at, Vector::new(value), elem);
    }
}

/// Copies N elements as they are.
#[cube]
pub(crate) fn copy<N: Size>(
    from: &[f32],
    at: usize,
    into: &mut [f32],
    to: usize,
    #[comptime] elem: Elem,
) {
    if comptime!(elem == Elem::Bf16) {
        store_halves::<N>(into, to, load_halves::<N>(from, at));
    } else {
        store::<f32, N>(into, to, load::<f32, N>(from, at));
    }
}

/// N words of two bf16 each, from the bf16 `at`.
#[cube]
#[allow(unused_variables)]
pub(crate) fn load_words<N: Size>(buffer: &[f32], at: usize) -> Vector<f32, N> {
    intrinsic!(|scope| {
        let halves = halves(scope, buffer);
        // SAFETY: callers keep `at + 2·N` inside the buffer.
        let first = unsafe { halves.__expand_get_unchecked_method(scope, at) };
        vector_at::<f32, N>(scope, first.value(scope)).__expand_deref_method(scope)
    })
}

#[cube]
#[allow(unused_variables)]
pub(crate) fn store_words<N: Size>(buffer: &mut [f32], at: usize, words: Vector<f32, N>) {
    intrinsic!(|scope| {
        let mut halves = halves(scope, buffer);
        // SAFETY: callers keep `at + 2·N` inside the buffer.
        let first = unsafe { halves.__expand_get_unchecked_mut_method(scope, at) };
        vector_at::<f32, N>(scope, first.value(scope)).__expand_assign_method(scope, words);
    })
}

/// Words of the bf16 `at..at + N`, in their lower halves, and those from `next` in the upper ones.
#[cube]
pub(crate) fn zip_halves<N: Size>(buffer: &[f32], at: usize, next: usize) -> Vector<f32, N> {
    let low = Vector::<u32, N>::cast_from(load_halves::<N>(buffer, at));
    let high = Vector::<u32, N>::cast_from(load_halves::<N>(buffer, next));
    Vector::<f32, N>::reinterpret(low | (high << Vector::new(16u32)))
}

/// The same of lanes that are bf16 in value.
#[cube]
pub(crate) fn zip_rounded<N: Size>(low: Vector<f32, N>, high: Vector<f32, N>) -> Vector<f32, N> {
    let low = Vector::<u32, N>::reinterpret(low) >> Vector::new(16u32);
    Vector::<f32, N>::reinterpret(low | Vector::<u32, N>::reinterpret(high))
}

/// Words of the bf16 `at..at + N` and of zeros.
#[cube]
pub(crate) fn load_half<N: Size>(buffer: &[f32], at: usize) -> Vector<f32, N> {
    Vector::<f32, N>::reinterpret(Vector::<u32, N>::cast_from(load_halves::<N>(buffer, at)))
}

/// Stores the bits of bf16.
#[cube]
pub(crate) fn store_bits<N: Size>(buffer: &mut [f32], at: usize, bits: Vector<u32, N>) {
    store_halves::<N>(buffer, at, Vector::cast_from(bits));
}

/// N elements as f32: `at`, `at + stride`, `at + 2·stride`, …
#[cube]
pub(crate) fn load_strided<N: Size>(
    buffer: &[f32],
    at: usize,
    #[comptime] stride: usize,
    #[comptime] elem: Elem,
) -> Vector<f32, N> {
    if comptime!(stride == 1) {
        load_as::<N>(buffer, at, elem)
    } else if comptime!(stride == 0) {
        Vector::new(load_as::<Const<1>>(buffer, at, elem).extract(0usize))
    } else if comptime!(elem == Elem::Bf16) {
        let mut lanes = Vector::<u16, N>::empty();
        #[unroll]
        for lane in 0..N::value() {
            let bits = load_halves::<Const<1>>(buffer, at + lane * stride);
            lanes.insert(lane, bits.extract(0usize));
        }
        widened::<N>(lanes)
    } else {
        let mut lanes = Vector::<f32, N>::empty();
        #[unroll]
        for lane in 0..N::value() {
            lanes.insert(lane, buffer[at + lane * stride]);
        }
        if comptime!(elem == Elem::I32) {
            Vector::cast_from(Vector::<i32, N>::reinterpret(lanes))
        } else {
            lanes
        }
    }
}

/// Writes N elements `stride` apart.
#[cube]
pub(crate) fn store_strided<N: Size>(
    buffer: &mut [f32],
    at: usize,
    value: Vector<f32, N>,
    #[comptime] stride: usize,
    #[comptime] elem: Elem,
) {
    if comptime!(stride == 1) {
        store_as::<N>(buffer, at, value, elem);
    } else {
        #[unroll]
        for lane in 0..N::value() {
            store_one(buffer, at + lane * stride, value.extract(lane), elem);
        }
    }
}

#[cube]
fn widened<N: Size>(bits: Vector<u16, N>) -> Vector<f32, N> {
    let wide = Vector::<u32, N>::cast_from(bits) << Vector::new(16u32);
    Vector::<f32, N>::reinterpret(wide)
}

#[cube]
fn narrowed<N: Size>(x: Vector<f32, N>) -> Vector<u16, N> {
    Vector::cast_from(nearest_bits::<N>(x))
}

/// `rounding::bf16_nearest`, with integers: the instruction for it takes subnormals for zero.
#[cube]
pub(crate) fn nearest_bits<N: Size>(x: Vector<f32, N>) -> Vector<u32, N> {
    let sixteen = Vector::new(16u32);
    let bits = Vector::<u32, N>::reinterpret(x);
    let odd = (bits >> sixteen) & Vector::new(1u32);
    let nearest = bits + Vector::new(0x7fffu32) + odd;
    let quiet = bits | Vector::new(QUIET);
    select_many(x.equal(&x), nearest, quiet) >> sixteen
}

/// The nearest bf16, as f32.
#[cube]
pub(crate) fn nearest_bf16<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    Vector::<f32, N>::reinterpret(nearest_bits::<N>(x) << Vector::new(16u32))
}
