//! Sums of products of pairs of bf16, by the one instruction that takes them as vectors.
//!
//! A word, as long as an f32, holds two bf16 that follow each other along k, the first in its lower
//! half. CubeCL has no operation that multiplies such pairs, and none that interleaves vectors, so
//! both are declared here with what LLVM makes of them.

// The macros that declare operations write accessors for everything.
#![allow(dead_code)]

use cubecl::intrinsic;
use cubecl::ir::pliron;
use cubecl::ir::prelude::*;
use cubecl::ir::{CanMaterialize, PropagatesUniformity, Pure};
use cubecl::prelude::*;
use cubecl_llvm::shared::intrinsic::call_op;
use cubecl_llvm::shared::to_llvm::ToLLVMDialect;
use pliron::builtin::types::BF16Type;
use pliron_llvm::op_interfaces::CastOpInterface;
use pliron_llvm::ops::{BitcastOp, ShuffleVectorOp};
use pliron_llvm::types::{VectorType, VectorTypeKind};

/// Words of the vectors that the instruction takes.
const WORDS: u32 = 16;

/// acc[i] + a[i].0·b[i].0 + a[i].1·b[i].1, with sums of f32; subnormal numbers count as zero.
#[cube_op(name = "pairs.dot")]
#[result_ty(same_as = acc)]
#[op_traits(Pure, CanMaterialize, PropagatesUniformity)]
pub(crate) struct DotOp {
    pub acc: Value,
    pub a: Value,
    pub b: Value,
}

#[op_interface_impl]
impl ToLLVMDialect for DotOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> Result<()> {
        let acc = self.acc(ctx);
        let half = BF16Type::get(ctx).into();
        let halves = VectorType::get(ctx, half, 2 * WORDS, VectorTypeKind::Fixed).into();
        let [a, b] = [self.a(ctx), self.b(ctx)].map(|words| {
            let cast = BitcastOp::new(ctx, words, halves);
            rewriter.insert_op(ctx, &cast);
            cast.get_result(ctx)
        });
        let ty = acc.get_type(ctx);
        let call = call_op(ctx, "llvm.x86.avx512bf16.dpbf16ps.512", ty, vec![acc, a, b]);
        rewriter.insert_op(ctx, &call);
        let sum = call.get_result(ctx);
        rewriter.replace_operation_with_values(ctx, self.get_operation(), vec![sum]);
        Ok(())
    }
}

/// The nearest bf16 to the lanes of two vectors, `low` first; subnormal numbers become zero.
#[cube_op(name = "pairs.narrow")]
#[result_ty(same_as = low)]
#[op_traits(Pure, CanMaterialize, PropagatesUniformity)]
pub(crate) struct NarrowOp {
    pub low: Value,
    pub high: Value,
}

#[op_interface_impl]
impl ToLLVMDialect for NarrowOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> Result<()> {
        let (low, high) = (self.low(ctx), self.high(ctx));
        let half = BF16Type::get(ctx).into();
        let halves = VectorType::get(ctx, half, 2 * WORDS, VectorTypeKind::Fixed).into();
        let name = "llvm.x86.avx512bf16.cvtne2ps2bf16.512";
        let call = call_op(ctx, name, halves, vec![high, low]);
        rewriter.insert_op(ctx, &call);
        let words = low.get_type(ctx);
        let cast = BitcastOp::new(ctx, call.get_result(ctx), words);
        rewriter.insert_op(ctx, &cast);
        let words = cast.get_result(ctx);
        rewriter.replace_operation_with_values(ctx, self.get_operation(), vec![words]);
        Ok(())
    }
}

/// The lower halves of two vectors, lane by lane: a0, b0, a1, b1, …
#[cube_op(name = "pairs.zip_low")]
#[result_ty(same_as = a)]
#[op_traits(Pure, CanMaterialize, PropagatesUniformity)]
pub(crate) struct ZipLowOp {
    pub a: Value,
    pub b: Value,
}

/// The upper halves of two vectors, lane by lane.
#[cube_op(name = "pairs.zip_high")]
#[result_ty(same_as = a)]
#[op_traits(Pure, CanMaterialize, PropagatesUniformity)]
pub(crate) struct ZipHighOp {
    pub a: Value,
    pub b: Value,
}

macro_rules! shuffle {
    ($op:ty, $first:expr) => {
        #[op_interface_impl]
        impl ToLLVMDialect for $op {
            fn rewrite(
                &self,
                ctx: &mut Context,
                rewriter: &mut DialectConversionRewriter,
                _operands_info: &OperandsInfo,
            ) -> Result<()> {
                let (a, b) = (self.a(ctx), self.b(ctx));
                let lanes = {
                    let ty = a.get_type(ctx);
                    let ty = ty.deref(ctx);
                    let ty: &VectorType = ty.downcast_ref().expect("invariant: it is a vector");
                    ty.num_elements() as i32
                };
                let first: fn(i32) -> i32 = $first;
                let mask = (0..lanes).map(|i| first(lanes) + i / 2 + i % 2 * lanes).collect();
                let shuffle = ShuffleVectorOp::new(ctx, a, b, mask);
                rewriter.insert_op(ctx, &shuffle);
                let zipped = shuffle.get_result(ctx);
                rewriter.replace_operation_with_values(ctx, self.get_operation(), vec![zipped]);
                Ok(())
            }
        }
    };
}

shuffle!(ZipLowOp, |_| 0);
shuffle!(ZipHighOp, |lanes| lanes / 2);

/// Adds the products of pairs to each lane. Only where `Products::Vectors` are available.
#[cube]
#[allow(unused_variables)]
pub(crate) fn dot<N: Size>(
    sum: Vector<f32, N>,
    a: Vector<f32, N>,
    b: Vector<f32, N>,
) -> Vector<f32, N> {
    intrinsic!(|scope| {
        let [sum, a, b] = [sum, a, b].map(|lanes| lanes.read_value(scope));
        let op = DotOp::new(scope.ctx_mut(), sum, a, b);
        scope.register_with_result(&op).into()
    })
}

/// 2·N bf16 as N words. Where `dot` is there, this is too.
#[cube]
#[allow(unused_variables)]
pub(crate) fn narrow<N: Size>(low: Vector<f32, N>, high: Vector<f32, N>) -> Vector<f32, N> {
    intrinsic!(|scope| {
        let op = NarrowOp::new(scope.ctx_mut(), low.read_value(scope), high.read_value(scope));
        scope.register_with_result(&op).into()
    })
}

#[cube]
#[allow(unused_variables)]
fn zip_low<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>) -> Vector<f32, N> {
    intrinsic!(|scope| {
        let op = ZipLowOp::new(scope.ctx_mut(), a.read_value(scope), b.read_value(scope));
        scope.register_with_result(&op).into()
    })
}

#[cube]
#[allow(unused_variables)]
fn zip_high<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>) -> Vector<f32, N> {
    intrinsic!(|scope| {
        let op = ZipHighOp::new(scope.ctx_mut(), a.read_value(scope), b.read_value(scope));
        scope.register_with_result(&op).into()
    })
}

/// Transposes N vectors of N lanes in place: each round of zips doubles the length of the runs that
/// lie as they should.
#[cube]
pub(crate) fn transpose<N: Size>(lines: &mut Array<Vector<f32, N>>) {
    let count = N::value();
    #[unroll]
    for _ in 0..comptime!(count.trailing_zeros() as usize) {
        let mut next = Array::<Vector<f32, N>>::new(count);
        #[unroll]
        for i in 0..comptime!(count / 2) {
            next[2 * i] = zip_low::<N>(lines[i], lines[i + comptime!(count / 2)]);
            next[2 * i + 1] = zip_high::<N>(lines[i], lines[i + comptime!(count / 2)]);
        }
        #[unroll]
        for i in 0..count {
            lines[i] = next[i];
        }
    }
}
