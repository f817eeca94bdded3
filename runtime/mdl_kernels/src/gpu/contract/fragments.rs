//! Fragments: matrices in the registers of a plane, of which tensor cores take products.
//!
//! They are CubeCL's, by its own operations, with one that it lacks: the sum of two fragments. Who
//! holds which element is the device's affair, but the same for all fragments of sums.

// The macros that declare operations write accessors for everything.
#![allow(dead_code)]

use crate::tiles::address;
use cubecl::cmma::{MatrixIdent, MatrixLayout, MatrixType};
use cubecl::intrinsic;
use cubecl::ir::dialect::matrix::{FillOp, LoadOp, MultiplyAccumulateOp, StoreOp};
use cubecl::ir::interfaces::side_effects::{MemoryEffect, MemoryEffectsOp};
use cubecl::ir::pliron;
use cubecl::ir::prelude::*;
use cubecl::ir::types::MatrixScope;
use cubecl::ir::{CanMaterialize, HasSideEffects};
use cubecl::prelude::*;
use cubecl_llvm::shared::to_llvm::ToLLVMDialect;
use pliron::builtin::types::FP32Type;
use pliron_llvm::op_interfaces::FloatBinArithOpWithFastMathFlags;
use pliron_llvm::ops::{FAddOp, LoadOp as LlvmLoadOp, StoreOp as LlvmStoreOp};
use pliron_llvm::types::{VectorType, VectorTypeKind};

/// Rows and columns of a fragment of sums.
pub(crate) const SIDE: usize = 16;
/// Sums that a unit holds of one.
const HELD: u32 = 8;

/// total += sum, each element rounded to nearest.
#[cube_op(name = "fragments.add")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
pub(crate) struct AddOp {
    pub total: Value,
    pub sum: Value,
}

#[op_interface_impl]
impl MemoryEffectsOp for AddOp {
    fn memory_effects(&self, ctx: &Context) -> Vec<MemoryEffect> {
        let (total, sum) = (self.total(ctx), self.sum(ctx));
        vec![MemoryEffect::Read(total), MemoryEffect::Read(sum), MemoryEffect::Write(total)]
    }
}

#[op_interface_impl]
impl ToLLVMDialect for AddOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> Result<()> {
        let number = FP32Type::get(ctx).into();
        let held = VectorType::get(ctx, number, HELD, VectorTypeKind::Fixed).into();
        let [total, sum] = [self.total(ctx), self.sum(ctx)].map(|place| {
            let load = LlvmLoadOp::new(ctx, place, held);
            rewriter.insert_op(ctx, &load);
            load.get_result(ctx)
        });
        let add = FAddOp::new_with_fast_math_flags(ctx, total, sum, Default::default());
        rewriter.insert_op(ctx, &add);
        let (value, total) = (add.get_result(ctx), self.total(ctx));
        let store = LlvmStoreOp::new(ctx, value, total);
        rewriter.insert_op(ctx, &store);
        rewriter.erase_operation(ctx, self.get_operation());
        Ok(())
    }
}

#[derive(CubeType, Clone, Copy)]
pub(crate) struct Fragment {
    #[cube(comptime)]
    place: Value,
}

/// A new fragment for products along `step` steps of k.
fn declare(
    scope: &Scope,
    ident: MatrixIdent,
    step: usize,
    elem: TypeHandle,
    layout: MatrixLayout,
) -> FragmentExpand {
    let (shape, plane) = ((SIDE, SIDE, step).into(), MatrixScope::Plane);
    let ty = MatrixType::get(scope.ctx(), ident, shape, elem, layout, plane);
    FragmentExpand { place: scope.create_local_mut(ty, None) }
}

/// Sums of nothing.
#[cube]
#[allow(unused_variables)]
pub(crate) fn zeros(#[comptime] step: usize) -> Fragment {
    intrinsic!(|scope| {
        let (number, layout) = (f32::__expand_as_type(scope), MatrixLayout::Undefined);
        let sums = declare(scope, MatrixIdent::Accumulator, step, number, layout);
        let zero = NativeExpand::<f32>::from_lit(scope, 0.0).read_value(scope);
        scope.register(&FillOp::new(scope.ctx_mut(), sums.place, zero));
        sums
    })
}

/// An operand whose lines begin at `at`, so many elements apart.
#[cube]
#[allow(unused_variables)]
pub(crate) fn load<S: Float>(
    stage: &[S],
    at: usize,
    #[comptime] line: usize,
    #[comptime] ident: MatrixIdent,
    #[comptime] step: usize,
    #[comptime] layout: MatrixLayout,
) -> Fragment {
    intrinsic!(|scope| {
        let operand = declare(scope, ident, step, S::__expand_as_type(scope), layout);
        let from = address(scope, stage, at);
        let line = NativeExpand::<u32>::from_lit(scope, line as u32).read_value(scope);
        scope.register(&LoadOp::new(scope.ctx_mut(), operand.place, from, line, layout));
        operand
    })
}

/// sum += a · b, by tensor cores, which cut off where they add.
#[cube]
#[allow(unused_variables)]
pub(crate) fn multiply(a: &Fragment, b: &Fragment, sum: &Fragment) {
    intrinsic!(|scope| {
        let (a, b, sum) = (a.place, b.place, sum.place);
        scope.register(&MultiplyAccumulateOp::new(scope.ctx_mut(), a, b, sum, sum));
    })
}

/// total += sum, rounded.
#[cube]
#[allow(unused_variables)]
pub(crate) fn add(total: &Fragment, sum: &Fragment) {
    intrinsic!(|scope| {
        let (total, sum) = (total.place, sum.place);
        scope.register(&AddOp::new(scope.ctx_mut(), total, sum));
    })
}

/// Writes sums row by row, from element `at` on.
#[cube]
#[allow(unused_variables)]
pub(crate) fn store(sums: &Fragment, to: &mut [f32], at: usize) {
    intrinsic!(|scope| {
        let to = address(scope, to, at);
        let line = NativeExpand::<u32>::from_lit(scope, SIDE as u32).read_value(scope);
        let by_rows = MatrixLayout::RowMajor;
        scope.register(&StoreOp::new(scope.ctx_mut(), sums.place, to, line, by_rows));
    })
}
