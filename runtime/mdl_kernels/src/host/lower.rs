//! A kernel in the form that LLVM takes: CubeCL's lowering, stopped where it would go on to
//! machine code that can be run and not be kept.
//!
//! CubeCL ends its lowering by verifying the module, and with it the module's attributes. One of
//! them is ours, whose verification takes the finished module and refuses.

use cubecl::ir::pliron;
use cubecl_core::{Compiler, CubeKernel};
use cubecl_llvm::cpu::synchronization::uses_cube_barrier;
use cubecl_llvm::shared::shared_memory::declares_shared_memory;
use cubecl_llvm::{LlvmTarget, PlironCompiler, PlironOptions};
use cubecl_runtime::kernel::define_kernel;
use pliron::builtin::ops::ModuleOp;
use pliron::common_traits::Verify;
use pliron::context::Context;
use pliron::derive::pliron_attr;
use pliron::dict_key;
use pliron::op::Op;
use pliron::printable::Printable;
use pliron::result::Result as IrResult;
use pliron::verify_err_noloc;
use pliron_llvm::llvm_sys::core::LLVMContext;
use pliron_llvm::to_llvm_ir::convert_module;
use std::cell::{Cell, RefCell};
use std::fmt;

/// A kernel before LLVM has optimised it.
pub(super) struct Lowered {
    pub entry: String,
    pub text: String,
    /// Whether its units wait for each other.
    pub barrier: bool,
}

dict_key!(STOP, "mdl_stop");

#[pliron_attr(name = "mdl.stop", format)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Stop;

#[derive(Debug)]
struct Stopped;

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the kernel is lowered")
    }
}

impl std::error::Error for Stopped {}

thread_local! {
    /// What this thread is lowering.
    static MODULE: Cell<Option<ModuleOp>> = const { Cell::new(None) };
    /// What came of it.
    static TEXT: RefCell<Option<Result<String, String>>> = const { RefCell::new(None) };
}

impl Verify for Stop {
    fn verify(&self, ctx: &Context) -> IrResult<()> {
        let Some(module) = MODULE.take() else {
            return Ok(());
        };
        // It has to outlive the module.
        let context = LLVMContext::default();
        let converted = convert_module(ctx, &context, module).map(|module| module.to_string());
        let text = converted.map_err(|fault| fault.disp(ctx).to_string());
        TEXT.replace(Some(text));
        verify_err_noloc!(Stopped)
    }
}

/// `alignment` is that of all buffers in bytes.
pub(super) fn lower(kernel: &dyn CubeKernel, alignment: u32) -> Result<Lowered, String> {
    let definition = define_kernel(kernel).map_err(|fault| fault.to_string())?;
    let module = definition.body.state().module;
    let entry = definition.settings.kernel_name.clone();
    let (operation, ctx) = (module.get_operation(), definition.body.ctx_mut());
    if declares_shared_memory(ctx, operation) {
        return Err("a CPU's units share no memory but buffers".to_string());
    }
    let barrier = uses_cube_barrier(ctx, operation);
    operation.deref_mut(ctx).attributes.set(STOP.clone(), Stop);
    TEXT.set(None);
    MODULE.set(Some(module));
    let options = PlironOptions { cpu_buffer_alignment: Some(alignment), ..Default::default() };
    let stopped = PlironCompiler { target: LlvmTarget::Cpu }.compile(definition, &options);
    MODULE.set(None);
    match (TEXT.take(), stopped) {
        (Some(text), _) => Ok(Lowered { entry, text: text?, barrier }),
        (None, Err(fault)) => Err(fault.to_string()),
        (None, Ok(_)) => Err("the kernel's lowering did not stop".to_string()),
    }
}
