//! The machines of `--hardware`: what they have, and the flags that suit them.

use crate::Failure;
use clap::ValueEnum;

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
}

const GIB: u64 = 1 << 30;

impl Hardware {
    pub fn name(self) -> String {
        self.to_possible_value().map_or(String::new(), |value| value.get_name().to_string())
    }

    /// The guide's flags for the machine; flags that are given win over them.
    pub fn flags(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Hardware::P5 => &[
                ("train_batch_size", "2"),
                ("mesh", "8"),
                ("sharding_strategy", "full"),
                ("activation_checkpointing", "1"),
                ("offload_activations", "0"),
            ],
            Hardware::P4d => &[
                ("train_batch_size", "1"),
                ("mesh", "8"),
                ("sharding_strategy", "full"),
                ("activation_checkpointing", "1"),
                ("offload_activations", "1"),
            ],
            Hardware::G5 => &[
                ("train_batch_size", "1"),
                ("sharding_strategy", "full"),
                ("activation_checkpointing", "1"),
                ("offload_activations", "1"),
                ("cpu_offload", "1"),
            ],
            Hardware::Local => &[],
        }
    }

    /// Memory as the tables of instance types of Amazon EC2 state it. Vendors' GB of device memory
    /// are taken as 2^30 bytes, which is what the chips have; a driver keeps some of it (about half
    /// a GiB of 80), so a plan that fits by less than that does not fit.
    pub fn machine(self) -> Result<Machine, Failure> {
        let machine = |device, devices, device_gib: u64, host_gib: u64| Machine {
            device,
            devices,
            device_bytes: device_gib * GIB,
            host_bytes: host_gib * GIB,
        };
        Ok(match self {
            Hardware::P5 => machine("H100", 8, 80, 2048),
            Hardware::P4d => machine("A100", 8, 40, 1152),
            Hardware::G5 => machine("A10G", 1, 24, 16),
            Hardware::Local => {
                let bytes = memory_of_this_machine()?;
                Machine { device: "CPU", devices: 1, device_bytes: bytes, host_bytes: bytes }
            }
        })
    }
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
