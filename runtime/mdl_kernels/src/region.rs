//! Fused elementwise work and reductions: one kernel per distinct region, expanded at comptime.
//!
//! What it computes: a `RegionSpec`'s phases at each index of `dims`. Cost: each instruction once
//! per index, and each view's bytes once per phase that names it; elementwise regions run at
//! the bandwidth of memory.
//!
//! What a stranger would not guess: dims that every view walks as one are merged on the host
//! before the kernel is chosen, so [batch, time, hidden] elementwise work becomes one long row.
//! Reductions add vectors in the order of columns, then lanes pairwise, then what is left over
//! by width; none of it depends on how rows are shared by the units.

mod columns;
pub(crate) mod environment;
pub(crate) mod plan;
pub(crate) mod rows;

use crate::device::{Device, Slice};
use cubecl::prelude::*;
use mdl_ir::kernel::{RegionSpec, Walk};
use plan::Plan;

/// Buffers: inputs, outputs.
pub(crate) fn launch(device: &Device, spec: &RegionSpec, args: &[Slice]) {
    let plan = Plan::new(spec, device.units() as usize, device.vector_width());
    let mut inputs = SequenceArg::new();
    for slice in &args[..spec.inputs.len()] {
        inputs.push(device.buffer(slice));
    }
    let mut outputs = SequenceArg::new();
    for slice in &args[spec.inputs.len()..][..spec.outputs.len()] {
        outputs.push(device.buffer(slice));
    }
    let elems = spec.inputs.iter().chain(&spec.outputs).map(|view| view.elem);
    let any = device.unaligned(&args[0], elems);
    let (client, cubes, units) = (device.client(), CubeCount::new_single(), device.cube_dim());
    // SAFETY: every index of `dims` lies inside its buffer by the contract of a view.
    unsafe {
        match spec.walk {
            Walk::Rows => rows::region_rows::launch_unchecked(
                client,
                cubes,
                units,
                device.vector_width(),
                inputs,
                outputs,
                plan,
                any,
            ),
            Walk::Columns { .. } => columns::region_columns::launch_unchecked(
                client,
                cubes,
                units,
                device.vector_width(),
                inputs,
                outputs,
                plan,
                any,
            ),
        }
    }
    device.launched();
}

#[cfg(test)]
mod evaluator;
#[cfg(test)]
mod tests;
