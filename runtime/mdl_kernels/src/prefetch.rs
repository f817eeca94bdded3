//! Asks for memory before it is needed, where no prefetcher can know what that will be: the next
//! rows of a list of ids, where each is read and written again.

// The macros that declare operations write accessors for everything.
#![allow(dead_code)]

use crate::tiles::address;
use cubecl::intrinsic;
use cubecl::ir::prelude::*;
use cubecl::prelude::*;
use cubecl_llvm::shared::intrinsic::call_op;
use cubecl_llvm::shared::to_llvm::ToLLVMDialect;
use cubecl_llvm::shared::to_llvm::constant::insert_int_const;
use mdl_ir::kernel::Elem;
use pliron_llvm::types::VoidType;

/// Bytes between what is copied and what is asked for: less does not hide how long memory takes,
/// and more is driven out again before its turn.
const AHEAD: usize = 8192;
/// To read, into the nearest cache, as data.
const HOW: [i128; 3] = [0, 3, 1];

#[cube_op(name = "memory.prefetch")]
#[result_ty(none)]
pub(crate) struct PrefetchOp {
    pub at: Value,
}

#[op_interface_impl]
impl ToLLVMDialect for PrefetchOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> Result<()> {
        let how = HOW.map(|number| insert_int_const(ctx, rewriter, 32, number));
        let (args, nothing) = ([&[self.at(ctx)], &how[..]].concat(), VoidType::get(ctx).into());
        let call = call_op(ctx, "llvm.prefetch.p0", nothing, args);
        rewriter.insert_op(ctx, &call);
        rewriter.erase_operation(ctx, self.get_operation());
        Ok(())
    }
}

/// Asks for the line of an element.
#[cube]
pub(crate) fn prefetch(buffer: &[f32], at: usize, #[comptime] elem: Elem) {
    let words = if comptime!(elem == Elem::Bf16) { at / 2 } else { at };
    prefetch_word(buffer, words);
}

#[cube]
#[allow(unused_variables)]
fn prefetch_word(buffer: &[f32], at: usize) {
    intrinsic!(|scope| {
        let op = PrefetchOp::new(scope.ctx_mut(), address(scope, buffer, at));
        scope.register(&op);
    })
}

/// How many rows ahead to ask for.
pub(crate) fn rows_ahead(width: usize, elem: Elem) -> usize {
    AHEAD.div_ceil(width * elem.bytes() as usize)
}
