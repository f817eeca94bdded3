//! Routines for GPUs: as many cubes as the work has, what a cube shares in its own memory, and
//! tensor cores where a device has them.
//!
//! Each spec has one here beside the one for a CPU, with the same buffers and the same meaning. An
//! order of summation depends on the spec alone, as it does there; sums are not added atomically.

mod attention;
mod attention_grad;
mod contract;
pub(crate) mod cross_entropy;
mod decode;
mod embedding;
mod grouped;
pub(crate) mod math;
mod optimizer;
pub(crate) mod peak;
mod reduce;
mod region;
mod together;

use crate::device::{Device, Slice};
use attention::shape::Pass;
use cubecl::prelude::*;
use mdl_ir::kernel::KernelSpec;

/// The table of kernels for a GPU.
pub(crate) fn dispatch(device: &Device, spec: &KernelSpec, args: &[Slice]) {
    match spec {
        KernelSpec::Region(spec) => region::launch(device, spec, args),
        KernelSpec::Contract(spec) => contract::launch(device, spec, false, args),
        KernelSpec::ContractAdd(spec) => contract::launch(device, spec, true, args),
        KernelSpec::Attention(spec) => attention::launch(device, spec, args),
        KernelSpec::AttentionGrad(spec) => attention_grad::launch(device, spec, args),
        KernelSpec::Gather(spec) => embedding::launch_gather(device, spec, args),
        KernelSpec::ScatterAdd(spec) => embedding::launch_scatter_add(device, spec, args),
        KernelSpec::GroupedContract(spec) => grouped::launch_contract(device, spec, args),
        KernelSpec::GroupedOuter(spec) => grouped::launch_outer(device, spec, args),
        KernelSpec::CacheWrite(spec) => embedding::launch_cache_write(device, spec, args),
        KernelSpec::SumOfSquares(spec) => optimizer::launch_squares(device, spec, false, args),
        KernelSpec::MoreSquares(spec) => optimizer::launch_squares(device, spec, true, args),
        KernelSpec::AdamW(spec) => optimizer::launch_adam_w(device, spec, args),
        KernelSpec::LinearCrossEntropy(spec) => {
            crate::linear_cross_entropy::launch(device, spec, args);
        }
        KernelSpec::Transfer => unreachable!("no kernel reaches both memories"),
        KernelSpec::Collective(_) => unreachable!("no kernel reaches two ranks"),
    }
}

/// Why a GPU cannot run a kernel. Attention alone needs more memory for a cube where heads are
/// larger.
pub(crate) fn refusal(device: &Device, spec: &KernelSpec) -> Option<String> {
    match spec {
        KernelSpec::Attention(spec) => attention::refusal(device, spec, &[Pass::Forward]),
        KernelSpec::AttentionGrad(spec) => {
            attention::refusal(device, spec, &[Pass::Queries, Pass::Keys])
        }
        _ => None,
    }
}

/// Units of a cube where nothing else decides: enough to hide latencies, few enough for any device.
pub(crate) const UNITS: u32 = 256;

/// Cubes that a device takes along one axis of its grid, at least.
const AXIS: u64 = 65_535;

/// A grid of `count` cubes or a few more; `cube_pos` counts them.
pub(crate) fn cubes(count: u64) -> CubeCount {
    let rows = count.div_ceil(AXIS).max(1);
    CubeCount::Static(count.div_ceil(rows) as u32, rows as u32, 1)
}

/// As many cubes of `UNITS` as so many items need, one for each unit.
pub(crate) fn cubes_for(items: u64) -> CubeCount {
    cubes(items.div_ceil(u64::from(UNITS)))
}

/// What the elements of the largest of these are counted in.
pub(crate) fn address_type(device: &Device, args: &[Slice]) -> AddressType {
    device.address_type(args.iter().map(|slice| slice.bytes).max().unwrap_or(0))
}

/// Buffers that a kernel takes as a list.
pub(crate) fn buffers(device: &Device, slices: &[Slice]) -> SequenceArg<Box<[f32]>> {
    slices.iter().map(|slice| device.buffer(slice)).collect()
}

/// The number of this cube; the last ones may lie past the count.
#[cube]
pub(crate) fn cube_pos() -> usize {
    CUBE_POS_Y as usize * CUBE_COUNT_X as usize + CUBE_POS_X as usize
}

/// The number of this unit over all cubes.
#[cube]
pub(crate) fn unit_pos() -> usize {
    cube_pos() * CUBE_DIM as usize + UNIT_POS as usize
}

/// Sets every element.
pub(crate) fn fill(device: &Device, out: &Slice, value: f32) {
    let elements = out.bytes / 4;
    // SAFETY: indices stay below the length of `out`.
    unsafe {
        fill_kernel::launch_unchecked(
            device.client(),
            cubes(elements.div_ceil(u64::from(UNITS) * FILLED as u64)),
            CubeDim::new_1d(UNITS),
            device.address_type(out.bytes),
            device.buffer(out),
            value,
        );
    }
    device.launched();
}

/// Elements that a unit fills.
const FILLED: usize = 4;

#[cube(launch_unchecked, address_type = "dynamic")]
fn fill_kernel(out: &mut [f32], value: f32) {
    let first = cube_pos() * (CUBE_DIM as usize * FILLED) + UNIT_POS as usize;
    #[unroll]
    for i in 0..FILLED {
        let at = first + i * CUBE_DIM as usize;
        if at < out.len() {
            out[at] = value;
        }
    }
}
