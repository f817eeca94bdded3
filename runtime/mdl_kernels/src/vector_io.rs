//! Vector loads and stores at any element of a buffer of scalars.
//!
//! A kernel that uses these takes `Device::unaligned` as one more argument: without it the
//! compiler may assume that vectors are aligned to their size, and a load at a ragged row traps.

use cubecl::intrinsic;
use cubecl::ir::dialect::general::ReinterpretCastOp;
use cubecl::ir::types::PointerType;
use cubecl::prelude::*;
use mdl_ir::kernel::Elem;

/// The vector of elements `at..at + N`.
#[cube]
#[allow(unused_variables)]
pub(crate) fn load<E: Scalar, N: Size>(buffer: &[E], at: usize) -> Vector<E, N> {
    intrinsic!(|scope| {
        // SAFETY: callers keep `at + N` inside the buffer.
        let first = unsafe { buffer.__expand_get_unchecked_method(scope, at) };
        as_vector::<E, N>(scope, first).__expand_deref_method(scope)
    })
}

/// Writes elements `at..at + N`.
#[cube]
#[allow(unused_variables)]
pub(crate) fn store<E: Scalar, N: Size>(buffer: &mut [E], at: usize, value: Vector<E, N>) {
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
    let pointer = first.value(scope);
    let vector = Vector::<E, N>::__expand_as_type(scope);
    let space = {
        let ctx = scope.ctx();
        let ty = cubecl::ir::pliron::r#type::Typed::get_type(&pointer, ctx);
        let ty = ty.deref(ctx);
        let ty: &PointerType = ty.downcast_ref().expect("invariant: an element has an address");
        ty.address_space
    };
    let ty = PointerType::get(scope.ctx(), vector, space).into();
    let cast = ReinterpretCastOp::new(scope.ctx_mut(), ty, pointer);
    scope.register_with_result(&cast).into()
}

/// N elements as f32 from a buffer of f32 or i32 bits: `at`, `at + stride`, `at + 2·stride`, …
#[cube]
pub(crate) fn load_strided<N: Size>(
    buffer: &[f32],
    at: usize,
    #[comptime] stride: usize,
    #[comptime] elem: Elem,
) -> Vector<f32, N> {
    if comptime!(stride == 1) {
        convert::<N>(load::<f32, N>(buffer, at), elem)
    } else if comptime!(stride == 0) {
        Vector::new(convert::<Const<1>>(load::<f32, Const<1>>(buffer, at), elem).extract(0usize))
    } else {
        let mut lanes = Vector::<f32, N>::empty();
        #[unroll]
        for lane in 0..N::value() {
            lanes.insert(lane, buffer[at + lane * stride]);
        }
        convert::<N>(lanes, elem)
    }
}

#[cube]
fn convert<N: Size>(bits: Vector<f32, N>, #[comptime] elem: Elem) -> Vector<f32, N> {
    if comptime!(matches!(elem, Elem::I32)) {
        Vector::cast_from(Vector::<i32, N>::reinterpret(bits))
    } else {
        bits
    }
}
