//! The machines of `--hardware`: what they have, and the flags that suit them.

use crate::Failure;
use clap::ValueEnum;
use mdl_ir::kernel::Target;
use mdl_kernels::{Class, Device, measure_bf16_peak, measure_fma_peak};
use mdl_passes::executable::Speed;
use mdl_passes::request::{Budget, Precision};

/// A machine by the name of its instance family, or this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Hardware {
    /// p5.48xlarge: 8 × H100 with 80 GB
    P5,
    /// p4d.24xlarge: 8 × A100 with 40 GB
    P4d,
    /// g5.xlarge: 1 × A10G with 24 GB
    G5,
    /// This machine: its cores and its memory
    Local,
}

/// What a machine has.
#[derive(Clone, Debug)]
pub struct Machine {
    pub device: &'static str,
    pub devices: u64,
    /// Memory of one device, bytes.
    pub device_bytes: u64,
    /// Memory of the host, bytes; on `local` it is the device's memory too.
    pub host_bytes: u64,
    /// What one device does in a second with numbers of 32 bits, and with those of 16.
    speeds: [Speed; 2],
}

impl Machine {
    /// What a plan is chosen by where the user does not say how memory is to be saved: the memory
    /// of one device and its part of the host's.
    pub fn budget(&self, precision: Precision, target: Target) -> Budget {
        Budget {
            device: self.device_bytes - DRIVER_BYTES.min(self.device_bytes),
            // Where both are one memory nothing is won by moving.
            host: (self.device != CPU).then_some(self.host_bytes / self.devices),
            target,
            speed: self.speeds[usize::from(precision == Precision::Bf16)],
            or_least: false,
        }
    }
}

const CPU: &str = "CPU";
/// What a driver and a context keep of a device's memory.
const DRIVER_BYTES: u64 = GIB / 2;

const GIB: u64 = 1 << 30;

impl Hardware {
    pub fn name(self) -> String {
        self.to_possible_value().map_or(String::new(), |value| value.get_name().to_string())
    }

    /// Flags that suit the machine, as common training scripts set them; flags that are given win
    /// over them. Which activations are kept, computed again or moved away is chosen by
    /// `Machine::budget`.
    pub fn flags(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Hardware::P5 => {
                &[("train_batch_size", "2"), ("mesh", "8"), ("sharding_strategy", "full")]
            }
            Hardware::P4d => {
                &[("train_batch_size", "1"), ("mesh", "8"), ("sharding_strategy", "full")]
            }
            Hardware::G5 => {
                &[("train_batch_size", "1"), ("sharding_strategy", "full"), ("cpu_offload", "1")]
            }
            Hardware::Local => &[],
        }
    }

    /// Memory as the tables of instance types of Amazon EC2 state it. Vendors' GB of device memory
    /// are taken as 2^30 bytes, which is what the chips have. Speeds are those of the vendors' data
    /// sheets for matrices without sparsity (f32 by its own units, bf16 by tensor cores), for
    /// memory, and for half of what the bus to the host does in both directions.
    pub fn machine(self) -> Result<Machine, Failure> {
        let machine = |device, devices, gib: [u64; 2], [f32, bf16, bytes, host]: [f64; 4]| {
            let speed = |flops| Speed { flops: flops * 1e12, bytes: bytes * 1e9, host: host * 1e9 };
            let [device_bytes, host_bytes] = gib.map(|n| n * GIB);
            let speeds = [speed(f32), speed(bf16)];
            Machine { device, devices, device_bytes, host_bytes, speeds }
        };
        Ok(match self {
            Hardware::P5 => machine("H100", 8, [80, 2048], [67.0, 989.0, 3350.0, 32.0]),
            Hardware::P4d => machine("A100", 8, [40, 1152], [19.5, 312.0, 1555.0, 16.0]),
            Hardware::G5 => machine("A10G", 1, [24, 16], [31.2, 70.0, 600.0, 16.0]),
            Hardware::Local => {
                let (device_bytes, threads) = (memory_of_this_machine()?, cores());
                let speeds = [speed_of_cpu(threads); 2];
                let host_bytes = device_bytes;
                Machine { device: CPU, devices: 1, device_bytes, host_bytes, speeds }
            }
        })
    }
}

/// What a CPU does, for a choice within a budget; only ratios matter. A core with two AVX-512 units
/// at 3 GHz does 2 · 2 · 16 · 3·10⁹ FLOPs in a second, and two memory channels move about 20 GB.
/// The host's memory is the same: copying reads and writes it, beside the kernels.
pub fn speed_of_cpu(threads: u32) -> Speed {
    Speed { flops: f64::from(threads) * 1.9e11, bytes: 2e10, host: 5e9 }
}

/// What the cost model says of a device: it knows CPUs. What is chosen within a budget is the same
/// on all of them; what is predicted for one depends on the width of its vectors.
pub fn speed_of(device: &Device) -> Option<Speed> {
    let speed = speed_of_cpu(device.units());
    let share = device.vector_width() as f64 / 16.0;
    (device.class() == Class::Cpu).then_some(Speed { flops: speed.flops * share, ..speed })
}

/// GFLOP/s that a device does at most with numbers of a precision, measured now.
pub fn measured_peak(device: &Device, precision: Precision) -> f64 {
    match precision {
        Precision::F32 => measure_fma_peak(device),
        Precision::Bf16 => measure_bf16_peak(device),
    }
}

/// Cores of this machine that a process may use.
pub fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u32)
}

/// Bytes of this machine's memory, as Linux states them.
fn memory_of_this_machine() -> Result<u64, Failure> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| {
        let kib = line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?;
        kib.trim().parse::<u64>().ok()
    });
    let missing = "/proc/meminfo does not say how much memory this machine has; leave out \
                   --hardware local and compare the plan's bytes yourself";
    total.map(|kib| kib * 1024).ok_or_else(|| Failure::coded("E0952", missing))
}
