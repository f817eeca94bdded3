//! How many cubes of a kernel a multiprocessor is to hold together, which says how many registers
//! a unit may take.
//!
//! Where a kernel does not say it, NVIDIA's assembler chooses, and puts a few registers into memory
//! for the sake of one more cube. CubeCL has no operation for it, so it is declared here: what it
//! leaves of itself is an attribute of the kernel's function.

// The macros that declare operations write accessors for everything.
#![allow(dead_code)]

use cubecl::intrinsic;
use cubecl::ir::attributes::IndexAttr;
use cubecl::ir::prelude::*;
use cubecl::ir::{CanMaterialize, HasSideEffects, pliron};
use cubecl::prelude::*;
use pliron_llvm::ToLLVMDialect;
use pliron_llvm::llvm_attrs::{LlvmAttrValue, LlvmAttributesAttr};
use pliron_llvm::ops::FuncOp;

#[cube_op(name = "gpu.together")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
pub(crate) struct TogetherOp {
    pub cubes: IndexAttr,
}

#[op_interface_impl]
impl ToLLVMDialect for TogetherOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> Result<()> {
        let here = self.get_operation();
        let parents = std::iter::successors(Some(here), |op| op.deref(ctx).get_parent_op(ctx));
        let function = parents.filter_map(|op| Operation::get_op::<FuncOp>(op, ctx)).next();
        let function = function.expect("invariant: functions are lowered before what is in them");
        let mut attributes = LlvmAttributesAttr::new();
        let cubes = self.cubes(ctx).0.to_string();
        attributes.set("nvvm.minctasm", LlvmAttrValue::Str(cubes));
        function.set_attr_llvm_func_attrs(ctx, attributes);
        rewriter.erase_operation(ctx, here);
        Ok(())
    }
}

/// At least so many cubes are to fit a multiprocessor; on devices with tensor cores alone.
#[cube]
#[allow(unused_variables)]
pub(crate) fn hold_together(#[comptime] cubes: usize) {
    intrinsic!(|scope| scope.register(&TogetherOp::new(scope.ctx_mut(), IndexAttr(cubes))))
}
