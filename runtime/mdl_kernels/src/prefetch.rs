//! Asks for memory before it is needed, where no prefetcher can know what that will be: the next
//! rows of a list of ids, or the tile that a product is about to be added to.

// The macros that declare operations write accessors for everything.
#![allow(dead_code)]

use crate::tiles::{address, call};
use cubecl::intrinsic;
use cubecl::ir::attributes::IndexAttr;
use cubecl::ir::prelude::*;
use cubecl::prelude::*;
use cubecl_llvm::shared::to_llvm::ToLLVMDialect;
use cubecl_llvm::shared::to_llvm::constant::insert_int_const;
use mdl_ir::kernel::Elem;

/// What a cache fetches at once.
pub(crate) const LINE_BYTES: usize = 64;
/// Bytes between what is copied and what is asked for: less does not hide how long memory takes,
/// and more is driven out again before its turn.
const AHEAD: usize = 8192;
const READ: usize = 0;
const WRITE: usize = 1;

#[cube_op(name = "memory.prefetch")]
#[result_ty(none)]
pub(crate) struct PrefetchOp {
    pub at: Value,
    pub what: IndexAttr,
}

#[op_interface_impl]
impl ToLLVMDialect for PrefetchOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> Result<()> {
        // Into the nearest cache, as data.
        let how = [self.what(ctx).0 as i128, 3, 1];
        let how = how.map(|number| insert_int_const(ctx, rewriter, 32, number));
        let args = [&[self.at(ctx)], &how[..]].concat();
        call(ctx, rewriter, "llvm.prefetch.p0", args);
        rewriter.erase_operation(ctx, self.get_operation());
        Ok(())
    }
}

/// Asks for the line of an element.
#[cube]
pub(crate) fn prefetch(buffer: &[f32], at: usize, #[comptime] elem: Elem) {
    let words = if comptime!(elem == Elem::Bf16) { at / 2 } else { at };
    prefetch_word(buffer, words, READ);
}

/// Asks for the line of a word that is going to be written.
#[cube]
pub(crate) fn prefetch_write(buffer: &[f32], at: usize) {
    prefetch_word(buffer, at, WRITE);
}

#[cube]
#[allow(unused_variables)]
fn prefetch_word(buffer: &[f32], at: usize, #[comptime] what: usize) {
    intrinsic!(|scope| {
        let at = address(scope, buffer, at);
        let op = PrefetchOp::new(scope.ctx_mut(), at, IndexAttr(what));
        scope.register(&op);
    })
}

/// How many rows ahead to ask for.
pub(crate) fn rows_ahead(width: usize, elem: Elem) -> usize {
    AHEAD.div_ceil(width * elem.bytes() as usize)
}
