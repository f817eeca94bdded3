//! Matrices of bf16 multiplied tile by tile, where a core has registers for whole tiles.
//!
//! A tile register holds 16 rows of 64 bytes. Four of them keep the sums of 32 rows by 32 columns,
//! two hold rows of a, each 16 words along k, and two 16 words along k of columns of b. A thread
//! says with `configure` that its tiles have this shape, before it uses any, and gives them back
//! with `release`. Each operation below stands for several instructions with fixed registers.

// The macros that declare operations write accessors for everything.
#![allow(dead_code)]

use cubecl::intrinsic;
use cubecl::ir::prelude::*;
use cubecl::prelude::*;
use cubecl_llvm::shared::intrinsic::call_op;
use cubecl_llvm::shared::to_llvm::ToLLVMDialect;
use cubecl_llvm::shared::to_llvm::constant::insert_int_const;
use pliron_llvm::types::VoidType;

/// Rows of a tile, and words of four bytes in a row of it.
pub(crate) const SIDE: usize = 16;
/// Bytes between the rows of a tile of packed b.
const ROW_B: i128 = 128;
/// Tile registers: sums of the upper and the lower rows, each left and right, then a and b.
const SUMS: [i128; 4] = [0, 1, 2, 3];
const UPPER: i128 = 4;
const LOWER: i128 = 5;
const LEFT: i128 = 6;
const RIGHT: i128 = 7;

/// Inserts a call that gives nothing.
pub(crate) fn call(
    ctx: &mut Context,
    rewriter: &mut DialectConversionRewriter,
    name: &str,
    args: Vec<Value>,
) {
    let nothing = VoidType::get(ctx).into();
    let call = call_op(ctx, name, nothing, args);
    rewriter.insert_op(ctx, &call);
}

fn number(ctx: &mut Context, rewriter: &mut DialectConversionRewriter, tile: i128) -> Value {
    insert_int_const(ctx, rewriter, 8, tile)
}

/// Between a tile register and the memory at `from`, with rows so many bytes apart.
fn move_tile(
    ctx: &mut Context,
    rewriter: &mut DialectConversionRewriter,
    name: &str,
    tile: i128,
    from: Value,
    row: Value,
) {
    let tile = number(ctx, rewriter, tile);
    call(ctx, rewriter, name, vec![tile, from, row]);
}

/// An operation of this kernel language, and the calls that it stands for.
macro_rules! tile_op {
    ($(#[$doc:meta])* $name:tt, $op:ident { $($operand:ident),* }, $lower:expr) => {
        $(#[$doc])*
        #[cube_op(name = $name)]
        #[result_ty(none)]
        pub(crate) struct $op {
            $(pub $operand: Value,)*
        }

        #[op_interface_impl]
        impl ToLLVMDialect for $op {
            fn rewrite(
                &self,
                ctx: &mut Context,
                rewriter: &mut DialectConversionRewriter,
                _operands_info: &OperandsInfo,
            ) -> Result<()> {
                let lower: fn(&$op, &mut Context, &mut DialectConversionRewriter) = $lower;
                lower(self, ctx, rewriter);
                rewriter.erase_operation(ctx, self.get_operation());
                Ok(())
            }
        }
    };
}

tile_op!("tiles.configure", ConfigureOp { form }, |op, ctx, rewriter| {
    let form = op.form(ctx);
    call(ctx, rewriter, "llvm.x86.ldtilecfg", vec![form]);
});

tile_op!("tiles.release", ReleaseOp {}, |_, ctx, rewriter| {
    call(ctx, rewriter, "llvm.x86.tilerelease", vec![]);
});

tile_op!("tiles.zero", ZeroOp {}, |_, ctx, rewriter| {
    for tile in SUMS {
        let tile = number(ctx, rewriter, tile);
        call(ctx, rewriter, "llvm.x86.tilezero", vec![tile]);
    }
});

tile_op!("tiles.load_sums", LoadSumsOp { p00, p01, p10, p11, row }, |op, ctx, rewriter| {
    let (from, row) = ([op.p00(ctx), op.p01(ctx), op.p10(ctx), op.p11(ctx)], op.row(ctx));
    for (tile, from) in SUMS.into_iter().zip(from) {
        move_tile(ctx, rewriter, "llvm.x86.tileloadd64", tile, from, row);
    }
});

tile_op!("tiles.store_sums", StoreSumsOp { p00, p01, p10, p11, row }, |op, ctx, rewriter| {
    let (to, row) = ([op.p00(ctx), op.p01(ctx), op.p10(ctx), op.p11(ctx)], op.row(ctx));
    for (tile, to) in SUMS.into_iter().zip(to) {
        move_tile(ctx, rewriter, "llvm.x86.tilestored64", tile, to, row);
    }
});

tile_op!("tiles.load", LoadOp { upper, lower, row, left, right }, |op, ctx, rewriter| {
    let (a, b) = (op.row(ctx), insert_int_const(ctx, rewriter, 64, ROW_B));
    let from = [op.upper(ctx), op.left(ctx), op.right(ctx), op.lower(ctx)];
    for ((tile, row), from) in [(UPPER, a), (LEFT, b), (RIGHT, b), (LOWER, a)].into_iter().zip(from)
    {
        move_tile(ctx, rewriter, "llvm.x86.tileloadd64", tile, from, row);
    }
});

tile_op!("tiles.multiply", MultiplyOp {}, |_, ctx, rewriter| {
    let factors = [(UPPER, LEFT), (UPPER, RIGHT), (LOWER, LEFT), (LOWER, RIGHT)];
    for (sum, (a, b)) in SUMS.into_iter().zip(factors) {
        let tiles = [sum, a, b].map(|tile| number(ctx, rewriter, tile)).to_vec();
        call(ctx, rewriter, "llvm.x86.tdpbf16ps", tiles);
    }
});

/// The address of an element.
pub(crate) fn address<E: CubePrimitive>(
    scope: &Scope,
    buffer: &SliceExpand<E>,
    at: NativeExpand<usize>,
) -> Value {
    // SAFETY: callers keep what is accessed there inside the buffer.
    let element = unsafe { buffer.__expand_get_unchecked_method(scope, at) };
    element.value(scope)
}

/// The addresses of four tiles of sums, whose rows are `row` elements apart, and that in bytes.
fn quarters(
    scope: &Scope,
    buffer: &SliceExpand<f32>,
    at: NativeExpand<usize>,
    row: NativeExpand<usize>,
) -> ([Value; 4], Value) {
    let side = || NativeExpand::<usize>::from_lit(scope, SIDE);
    let lower = at.__expand_add_method(scope, row.__expand_mul_method(scope, side()));
    let right = |at: NativeExpand<usize>| at.__expand_add_method(scope, side());
    let from = [at, right(at), lower, right(lower)].map(|at| address(scope, buffer, at));
    let bytes = row.__expand_mul_method(scope, NativeExpand::<usize>::from_lit(scope, 4));
    (from, bytes.read_value(scope))
}

/// Writes what `configure` reads: kind 1, and for each of eight tiles its bytes in a row and rows.
#[cube]
pub(crate) fn write_shape(buffer: &mut [f32], at: usize) {
    for i in 0..16usize {
        buffer[at + i] = 0.0;
    }
    buffer[at] = f32::reinterpret(1u32);
    for i in 4..8usize {
        buffer[at + i] = f32::reinterpret(0x0040_0040u32);
    }
    for i in 12..14usize {
        buffer[at + i] = f32::reinterpret(0x1010_1010u32);
    }
}

#[cube]
#[allow(unused_variables)]
fn configure_from(buffer: &[f32], at: usize) {
    intrinsic!(|scope| {
        let op = ConfigureOp::new(scope.ctx_mut(), address(scope, buffer, at));
        scope.register(&op);
    })
}

/// Gives this thread its tiles, by way of 16 elements of a buffer.
#[cube]
pub(crate) fn configure(buffer: &mut [f32], at: usize) {
    write_shape(buffer, at);
    configure_from(&*buffer, at);
}

#[cube]
pub(crate) fn release() {
    intrinsic!(|scope| scope.register(&ReleaseOp::new(scope.ctx_mut())))
}

/// Sets the sums to zero.
#[cube]
pub(crate) fn zero() {
    intrinsic!(|scope| scope.register(&ZeroOp::new(scope.ctx_mut())))
}

/// Takes the sums from a matrix whose rows are `row` elements apart.
#[cube]
#[allow(unused_variables)]
pub(crate) fn load_sums(buffer: &[f32], at: usize, row: usize) {
    intrinsic!(|scope| {
        let ([p00, p01, p10, p11], row) = quarters(scope, buffer, at, row);
        scope.register(&LoadSumsOp::new(scope.ctx_mut(), p00, p01, p10, p11, row));
    })
}

#[cube]
#[allow(unused_variables)]
pub(crate) fn store_sums(buffer: &mut [f32], at: usize, row: usize) {
    intrinsic!(|scope| {
        let ([p00, p01, p10, p11], row) = quarters(scope, buffer, at, row);
        scope.register(&StoreSumsOp::new(scope.ctx_mut(), p00, p01, p10, p11, row));
    })
}

/// Loads 32 rows of a and 32 columns of b for 16 words of k. The rows of a are `row` elements apart
/// from `upper` and from `lower`, those of b 32.
#[cube]
#[allow(unused_variables)]
pub(crate) fn load(a: &[f32], upper: usize, lower: usize, row: usize, packed: &[f32], b: usize) {
    intrinsic!(|scope| {
        let right = b.__expand_add_method(scope, NativeExpand::<usize>::from_lit(scope, SIDE));
        let [upper, lower] = [upper, lower].map(|at| address(scope, a, at));
        let [left, right] = [b, right].map(|at| address(scope, packed, at));
        let row = row.__expand_mul_method(scope, NativeExpand::<usize>::from_lit(scope, 4));
        let row = row.read_value(scope);
        scope.register(&LoadOp::new(scope.ctx_mut(), upper, lower, row, left, right));
    })
}

/// Adds the products of what was loaded to the sums.
#[cube]
pub(crate) fn multiply() {
    intrinsic!(|scope| scope.register(&MultiplyOp::new(scope.ctx_mut())))
}
