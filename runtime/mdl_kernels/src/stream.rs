//! Stores past the caches, for what is long and read later: a line that is written whole need not
//! be fetched before, and drives nothing out.
//!
//! Such stores may come to memory out of order, so a kernel ends with a `fence` behind them.

// The macros that declare operations write accessors for everything.
#![allow(dead_code)]

use crate::device::{Class, Device, Slice};
use crate::tiles::{address, call};
use cubecl::intrinsic;
use cubecl::ir::attributes::IndexAttr;
use cubecl::ir::prelude::*;
use cubecl::prelude::*;
use cubecl_llvm::shared::to_llvm::ToLLVMDialect;
use pliron_llvm::ops::InlineAsmOp;
use pliron_llvm::types::VoidType;

/// Lanes of the registers that only AVX-512 has.
const WIDE: usize = 16;

#[cube_op(name = "memory.stream")]
#[result_ty(none)]
pub(crate) struct StreamOp {
    pub at: Value,
    pub value: Value,
    pub lanes: IndexAttr,
}

#[op_interface_impl]
impl ToLLVMDialect for StreamOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> Result<()> {
        // LLVM has no intrinsic for it, only a mark on its own stores, which are made elsewhere.
        let register = if self.lanes(ctx).0 == WIDE { 'v' } else { 'x' };
        let (operands, nothing) = (vec![self.at(ctx), self.value(ctx)], VoidType::get(ctx).into());
        let places = format!("r,{register},~{{memory}}");
        let store = InlineAsmOp::new(ctx, nothing, operands, "vmovntps $1, ($0)", &places, true);
        rewriter.insert_op(ctx, &store);
        rewriter.erase_operation(ctx, self.get_operation());
        Ok(())
    }
}

#[cube_op(name = "memory.fence")]
#[result_ty(none)]
pub(crate) struct FenceOp {}

#[op_interface_impl]
impl ToLLVMDialect for FenceOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> Result<()> {
        call(ctx, rewriter, "llvm.x86.sse.sfence", vec![]);
        rewriter.erase_operation(ctx, self.get_operation());
        Ok(())
    }
}

/// Writes elements `at..at + N`, whose address is a multiple of a vector's size. Only where
/// `pays` says so.
#[cube]
#[allow(unused_variables)]
pub(crate) fn store_past<N: Size>(buffer: &mut [f32], at: usize, value: Vector<f32, N>) {
    let lanes = N::value();
    store_lanes_past::<N>(buffer, at, value, lanes);
}

#[cube]
#[allow(unused_variables)]
fn store_lanes_past<N: Size>(
    buffer: &mut [f32],
    at: usize,
    value: Vector<f32, N>,
    #[comptime] lanes: usize,
) {
    intrinsic!(|scope| {
        let (at, value) = (address(scope, buffer, at), value.read_value(scope));
        let op = StreamOp::new(scope.ctx_mut(), at, value, IndexAttr(lanes));
        scope.register(&op);
    })
}

/// What was streamed before comes to memory before what follows.
#[cube]
pub(crate) fn fence() {
    intrinsic!(|scope| {
        let op = FenceOp::new(scope.ctx_mut());
        scope.register(&op);
    })
}

/// Is there an instruction for it, do rows of so many bytes lie as it wants them, and would they
/// leave the second cache of the core that writes them before anybody reads them?
pub(crate) fn pays(device: &Device, out: &Slice, row_bytes: u64) -> bool {
    let vector = 4 * device.vector_width() as u64;
    let start = device.alignment() | out.offset | row_bytes;
    cfg!(target_arch = "x86_64")
        && device.class() == Class::Cpu
        && vector >= 32
        && start.is_multiple_of(vector)
        && out.bytes > device.as_cpu().caches[1] as u64 * u64::from(device.units())
}
