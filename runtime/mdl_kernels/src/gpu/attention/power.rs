//! The instruction of NVIDIA's GPUs for powers of two, which CubeCL has no operation for.

// The macro that declares operations writes accessors for everything.
#![allow(dead_code)]

use cubecl::intrinsic;
use cubecl::ir::pliron;
use cubecl::ir::prelude::*;
use cubecl::ir::{CanMaterialize, PropagatesUniformity, Pure};
use cubecl::prelude::*;
use cubecl_llvm::shared::intrinsic::call_op;
use cubecl_llvm::shared::to_llvm::ToLLVMDialect;

/// 2^x within two units in the last place; zero where that is subnormal.
#[cube_op(name = "power.of_two")]
#[result_ty(same_as = input)]
#[op_traits(Pure, CanMaterialize, PropagatesUniformity)]
pub(crate) struct PowerOp {
    pub input: Value,
}

#[op_interface_impl]
impl ToLLVMDialect for PowerOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> Result<()> {
        let input = self.input(ctx);
        let ty = input.get_type(ctx);
        let call = call_op(ctx, "llvm.nvvm.ex2.approx.ftz.f32", ty, vec![input]);
        rewriter.insert_op(ctx, &call);
        let power = call.get_result(ctx);
        rewriter.replace_operation_with_values(ctx, self.get_operation(), vec![power]);
        Ok(())
    }
}

#[cube]
#[allow(unused_variables)]
pub(crate) fn power_of_two(x: f32) -> f32 {
    intrinsic!(|scope| {
        let value = x.read_value(scope);
        let op = PowerOp::new(scope.ctx_mut(), value);
        scope.register_with_result(&op).into()
    })
}
