//! The kernels of this process: each is compiled once, or taken from the store.

use super::code::{self, Function};
use super::lower::lower;
use super::workers::{self, compile, key, store};
use cubecl_core::CubeKernel;
use cubecl_runtime::id::KernelId;
use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};

/// A kernel that can be run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Compiled {
    pub function: Function,
    /// Whether its units wait for each other.
    pub barrier: bool,
    /// It was compiled here, and not taken from the store.
    pub new: bool,
}

pub(super) type Slot = workers::Slot<Compiled>;

/// That of a kernel whose buffers all have an alignment of so many bytes.
pub(super) fn request(kernel: Box<dyn CubeKernel>, alignment: u32) -> Slot {
    static SLOTS: OnceLock<Mutex<HashMap<(KernelId, u32), Slot>>> = OnceLock::new();
    let slots = SLOTS.get_or_init(Mutex::default);
    let mut slots = slots.lock().expect("invariant: nobody panics while holding it");
    let asked = slots.entry((kernel.id(), alignment));
    asked.or_insert_with(|| compile(kernel, move |kernel| make(kernel, alignment))).clone()
}

fn make(kernel: &dyn CubeKernel, alignment: u32) -> Result<Compiled, String> {
    static MACHINE: OnceLock<String> = OnceLock::new();
    let machine = MACHINE.get_or_init(code::machine);
    let key = key(&kernel.id(), &format!("{machine}\n{alignment}"));
    let kept = store().read(&key).and_then(|code| load(&code, false).ok());
    if let Some(compiled) = kept {
        return Ok(compiled);
    }
    let lowered = lower(kernel, alignment)?;
    let entry = lowered.entry.as_bytes();
    let object = code::object(&lowered.text)?;
    let code = [&[u8::from(lowered.barrier)], entry, &[0], object.as_slice()].concat();
    store().write(&key, &code);
    load(&code, true)
}

/// From whether there is a barrier, the entry's name up to a zero, and an object file.
fn load(code: &[u8], new: bool) -> Result<Compiled, String> {
    let parts = || {
        let (barrier, rest) = code.split_first()?;
        let end = rest.iter().position(|&byte| byte == 0)?;
        Some((*barrier != 0, std::str::from_utf8(&rest[..end]).ok()?, &rest[end + 1..]))
    };
    let (barrier, entry, object) = parts().ok_or("the code has no entry")?;
    Ok(Compiled { function: code::load(object, entry)?, barrier, new })
}
