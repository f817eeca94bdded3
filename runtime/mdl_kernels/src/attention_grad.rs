//! Placeholder.

use crate::device::{Device, Slice};
use mdl_ir::kernel::*;

pub(crate) fn launch(_device: &Device, _spec: &AttentionSpec, _args: &[Slice]) {
    panic!("not written yet");
}
