//! Machine code: LLVM's form of a kernel to an object file, and an object file to a function.
//!
//! The steps and their settings are those of CubeCL's own compiler for a CPU, so that the bits of a
//! result do not depend on which of the two compiled.

use pliron_llvm::llvm_sys::target::initialize_native;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr::null_mut;
use std::sync::Once;

/// Buffers, the number of cubes along each axis, the unit's place in its cube, the state of the
/// barrier, scalars and lengths.
pub(super) type Function =
    extern "C" fn(*mut *mut c_void, u32, u32, u32, u32, u32, u32, *mut u32, *mut u64);

/// One of LLVM's objects.
type Object = *mut c_void;

const PASSES: &CStr = c"default<O3>";
const AGGRESSIVE: c_int = 3;
const DEFAULT: c_int = 2;
/// Position-independent, in a module smaller than 2 GiB: what a JIT asks for.
const RELOCATION: c_int = 2;
const CODE_MODEL: c_int = 3;
const OBJECT_FILE: c_int = 1;

/// LLVM's C interface. CubeCL links it, and names no more of it than it calls itself.
#[allow(non_snake_case)]
mod llvm {
    use super::{Object, c_char, c_int, c_uint};

    // SAFETY: these are the declarations of LLVM's headers, with every object an untyped pointer.
    unsafe extern "C" {
        pub fn LLVMGetVersion(major: *mut c_uint, minor: *mut c_uint, patch: *mut c_uint);
        pub fn LLVMContextCreate() -> Object;
        pub fn LLVMContextDispose(context: Object);
        pub fn LLVMCreateMemoryBufferWithMemoryRangeCopy(
            data: *const c_char,
            length: usize,
            name: *const c_char,
        ) -> Object;
        pub fn LLVMGetBufferStart(buffer: Object) -> *const c_char;
        pub fn LLVMGetBufferSize(buffer: Object) -> usize;
        pub fn LLVMDisposeMemoryBuffer(buffer: Object);
        pub fn LLVMParseIRInContext2(
            context: Object,
            buffer: Object,
            module: *mut Object,
            message: *mut *mut c_char,
        ) -> c_int;
        pub fn LLVMDisposeModule(module: Object);
        pub fn LLVMSetTarget(module: Object, triple: *const c_char);
        pub fn LLVMGetDefaultTargetTriple() -> *mut c_char;
        pub fn LLVMGetHostCPUName() -> *mut c_char;
        pub fn LLVMGetHostCPUFeatures() -> *mut c_char;
        pub fn LLVMGetTargetFromTriple(
            triple: *const c_char,
            target: *mut Object,
            message: *mut *mut c_char,
        ) -> c_int;
        pub fn LLVMCreateTargetMachine(
            target: Object,
            triple: *const c_char,
            cpu: *const c_char,
            features: *const c_char,
            level: c_int,
            relocation: c_int,
            code_model: c_int,
        ) -> Object;
        pub fn LLVMDisposeTargetMachine(machine: Object);
        pub fn LLVMCreateTargetDataLayout(machine: Object) -> Object;
        pub fn LLVMSetModuleDataLayout(module: Object, layout: Object);
        pub fn LLVMDisposeTargetData(layout: Object);
        pub fn LLVMCreatePassBuilderOptions() -> Object;
        pub fn LLVMDisposePassBuilderOptions(options: Object);
        pub fn LLVMRunPasses(
            module: Object,
            passes: *const c_char,
            machine: Object,
            options: Object,
        ) -> Object;
        pub fn LLVMTargetMachineEmitToMemoryBuffer(
            machine: Object,
            module: Object,
            kind: c_int,
            message: *mut *mut c_char,
            buffer: *mut Object,
        ) -> c_int;
        pub fn LLVMGetErrorMessage(error: Object) -> *mut c_char;
        pub fn LLVMDisposeErrorMessage(message: *mut c_char);
        pub fn LLVMDisposeMessage(message: *mut c_char);
        pub fn LLVMOrcCreateLLJIT(jit: *mut Object, builder: Object) -> Object;
        pub fn LLVMOrcLLJITGetMainJITDylib(jit: Object) -> Object;
        pub fn LLVMOrcLLJITAddObjectFile(jit: Object, library: Object, buffer: Object) -> Object;
        pub fn LLVMOrcLLJITLookup(jit: Object, address: *mut u64, name: *const c_char) -> Object;
    }
}

// SAFETY: whoever calls one has the object to itself, and never uses it again.
type Dispose = unsafe extern "C" fn(Object);
// SAFETY: the same, of a text.
type DisposeText = unsafe extern "C" fn(*mut c_char);

/// What is disposed of when it is out of reach.
struct Owned(Object, Dispose);

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: the object is live, and nobody else disposes of it.
        unsafe { (self.1)(self.0) }
    }
}

/// A copy of a text that LLVM gave away.
fn taken(message: *mut c_char, dispose: DisposeText) -> CString {
    // SAFETY: the text ends in NUL, and is disposed of once.
    unsafe {
        let text = CStr::from_ptr(message).to_owned();
        dispose(message);
        text
    }
}

fn message(text: *mut c_char) -> String {
    taken(text, llvm::LLVMDisposeMessage).to_string_lossy().into_owned()
}

/// Null is no error.
fn checked(error: Object) -> Result<(), String> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: the error is live, and asking for its message disposes of it.
    let text = unsafe { llvm::LLVMGetErrorMessage(error) };
    Err(taken(text, llvm::LLVMDisposeErrorMessage).to_string_lossy().into_owned())
}

fn started() {
    static START: Once = Once::new();
    START.call_once(|| initialize_native().expect("invariant: LLVM has the native target"));
}

/// This machine, as LLVM names it.
struct Host {
    triple: CString,
    cpu: CString,
    features: CString,
}

impl Host {
    fn new() -> Host {
        let owned = |text| taken(text, llvm::LLVMDisposeMessage);
        // SAFETY: each gives a text of its own.
        unsafe {
            Host {
                triple: owned(llvm::LLVMGetDefaultTargetTriple()),
                cpu: owned(llvm::LLVMGetHostCPUName()),
                features: owned(llvm::LLVMGetHostCPUFeatures()),
            }
        }
    }

    fn machine(&self, level: c_int) -> Result<Owned, String> {
        let (mut target, mut fault) = (null_mut(), null_mut());
        let (triple, cpu) = (self.triple.as_ptr(), self.cpu.as_ptr());
        // SAFETY: every text outlives the calls, and a refusal is a text of its own.
        unsafe {
            if llvm::LLVMGetTargetFromTriple(triple, &mut target, &mut fault) != 0 {
                return Err(message(fault));
            }
            let features = self.features.as_ptr();
            let machine = llvm::LLVMCreateTargetMachine(
                target, triple, cpu, features, level, RELOCATION, CODE_MODEL,
            );
            match machine.is_null() {
                true => Err("LLVM knows no such machine".to_string()),
                false => Ok(Owned(machine, llvm::LLVMDisposeTargetMachine)),
            }
        }
    }
}

/// The CPU as LLVM calls it.
pub(crate) fn cpu_name() -> String {
    // SAFETY: it gives a text of its own.
    let name = unsafe { taken(llvm::LLVMGetHostCPUName(), llvm::LLVMDisposeMessage) };
    name.to_string_lossy().into_owned()
}

/// `LLVM 22.1.0`: what is linked makes all code, here and for GPUs.
pub(crate) fn compiler() -> String {
    let (mut major, mut minor, mut patch) = (0, 0, 0);
    // SAFETY: three numbers are written.
    unsafe { llvm::LLVMGetVersion(&mut major, &mut minor, &mut patch) };
    format!("LLVM {major}.{minor}.{patch}")
}

/// What machine code depends on besides the kernel and this program.
pub(super) fn machine() -> String {
    let Host { triple, cpu, features } = Host::new();
    format!("{}, {triple:?}, {cpu:?}, {features:?}", compiler())
}

fn buffer(bytes: &[u8]) -> Object {
    let (data, name) = (bytes.as_ptr().cast(), c"kernel".as_ptr());
    // SAFETY: the bytes are copied.
    unsafe { llvm::LLVMCreateMemoryBufferWithMemoryRangeCopy(data, bytes.len(), name) }
}

/// Optimises a module and makes an object file of it.
pub(super) fn object(text: &str) -> Result<Vec<u8>, String> {
    started();
    let host = Host::new();
    // SAFETY: a module is disposed of before its context, since locals are dropped in reverse.
    unsafe {
        let context = Owned(llvm::LLVMContextCreate(), llvm::LLVMContextDispose);
        let source = Owned(buffer(text.as_bytes()), llvm::LLVMDisposeMemoryBuffer);
        let (mut module, mut fault) = (null_mut(), null_mut());
        if llvm::LLVMParseIRInContext2(context.0, source.0, &mut module, &mut fault) != 0 {
            return Err(message(fault));
        }
        let module = Owned(module, llvm::LLVMDisposeModule);
        optimise(&module, &host)?;
        emit(&module, &host)
    }
}

fn optimise(module: &Owned, host: &Host) -> Result<(), String> {
    let machine = host.machine(AGGRESSIVE)?;
    // SAFETY: module and machine are live.
    unsafe {
        llvm::LLVMSetTarget(module.0, host.triple.as_ptr());
        let layout = llvm::LLVMCreateTargetDataLayout(machine.0);
        let layout = Owned(layout, llvm::LLVMDisposeTargetData);
        llvm::LLVMSetModuleDataLayout(module.0, layout.0);
        let options = llvm::LLVMCreatePassBuilderOptions();
        let options = Owned(options, llvm::LLVMDisposePassBuilderOptions);
        checked(llvm::LLVMRunPasses(module.0, PASSES.as_ptr(), machine.0, options.0))
    }
}

fn emit(module: &Owned, host: &Host) -> Result<Vec<u8>, String> {
    let machine = host.machine(DEFAULT)?;
    let (mut buffer, mut fault) = (null_mut(), null_mut());
    // SAFETY: module and machine are live, and the buffer is copied before it goes.
    unsafe {
        if llvm::LLVMTargetMachineEmitToMemoryBuffer(
            machine.0,
            module.0,
            OBJECT_FILE,
            &mut fault,
            &mut buffer,
        ) != 0
        {
            return Err(message(fault));
        }
        let buffer = Owned(buffer, llvm::LLVMDisposeMemoryBuffer);
        let start = llvm::LLVMGetBufferStart(buffer.0).cast();
        Ok(std::slice::from_raw_parts(start, llvm::LLVMGetBufferSize(buffer.0)).to_vec())
    }
}

/// Links an object file into this process, for as long as that lives.
pub(super) fn load(object: &[u8], entry: &str) -> Result<Function, String> {
    started();
    let entry = CString::new(entry).map_err(|fault| fault.to_string())?;
    let (mut jit, mut address) = (null_mut(), 0);
    // SAFETY: the JIT takes the buffer, and is never disposed of; what has this name was compiled
    // from an entry point, whose form is that of `Function`.
    unsafe {
        checked(llvm::LLVMOrcCreateLLJIT(&mut jit, null_mut()))?;
        let library = llvm::LLVMOrcLLJITGetMainJITDylib(jit);
        checked(llvm::LLVMOrcLLJITAddObjectFile(jit, library, buffer(object)))?;
        checked(llvm::LLVMOrcLLJITLookup(jit, &mut address, entry.as_ptr()))?;
        Ok(std::mem::transmute::<u64, Function>(address))
    }
}
