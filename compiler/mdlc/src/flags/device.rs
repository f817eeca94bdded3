//! `--device`: what computes.

use crate::Failure;
use clap::ValueEnum;
use mdl_ir::kernel::Target;
use mdl_kernels::{Device, KernelError};
use std::sync::Arc;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DeviceName {
    #[default]
    Cpu,
    Cuda,
    Wgpu,
}

impl DeviceName {
    pub fn target(self, threads: u32) -> Target {
        match self {
            DeviceName::Cpu => Target::Threads(threads),
            DeviceName::Cuda | DeviceName::Wgpu => Target::Gpu,
        }
    }

    /// Opens it; on a machine that has none, says so.
    pub fn open(self, threads: Option<u32>) -> Result<Arc<Device>, Failure> {
        let missing = |fault: KernelError| {
            let advice = "`--device cpu` needs none";
            Failure::coded("E0952", format!("{fault}; {advice}"))
        };
        let device = match self {
            DeviceName::Cpu => Ok(Device::cpu(threads)),
            DeviceName::Cuda => Device::cuda(),
            DeviceName::Wgpu => Device::wgpu(),
        };
        device.map(Arc::new).map_err(missing)
    }
}
