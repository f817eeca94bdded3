//! Prints what grouped contractions reach beside a plain one with as many operations:
//! `grouped [units [shape]]`.
//!
//! Each is the best of several runs, the plain one in turns with the grouped ones, because other
//! work on the machine moves all of them.

use mdl_ir::kernel::grouped::{GroupedContractSpec, GroupedOuterSpec};
use mdl_ir::kernel::{Elem, KernelSpec, workspace_bytes};
use mdl_kernels::{Arena, Device, Slice};
use std::time::Instant;

/// Rows, groups, n, k.
const SHAPES: [[u32; 4]; 9] = [
    [24, 1, 1024, 512],
    [24, 1, 1000, 500],
    [1024, 8, 1024, 512],
    [1024, 1, 1024, 512],
    [1024, 64, 1024, 512],
    [4096, 8, 768, 288],
    [128, 64, 512, 512],
    [2, 8, 3584, 1024],
    [16, 8, 3584, 1024],
];
const RUNS: u32 = 30;

/// A launch with its memory. Ids fall evenly; the numbers are all zero.
struct Launch {
    name: &'static str,
    spec: KernelSpec,
    arena: Arena,
    parts: Vec<(u64, u64)>,
    seconds: f64,
}

impl Launch {
    fn new(device: &Device, name: &'static str, spec: KernelSpec, sizes: &[u64]) -> Launch {
        let mut parts = Vec::new();
        let mut end = 0;
        let scratch = workspace_bytes(&spec, device.units());
        for bytes in sizes.iter().map(|elements| elements * 4).chain([scratch]) {
            parts.push((end, bytes));
            end = (end + bytes).next_multiple_of(256);
        }
        let arena = device.alloc(end);
        Launch { name, spec, arena, parts, seconds: f64::INFINITY }
    }

    fn route(self, device: &Device, rows: u32, groups: u32) -> Launch {
        let ids: Vec<u8> =
            (0..rows).flat_map(|r| (r * 7919 % 1009 % groups).to_ne_bytes()).collect();
        device.write(&self.arena, self.parts[2].0, &ids).expect("inside the arena");
        self
    }

    fn time(&mut self, device: &Device, launches: u32) {
        let args: Vec<Slice> = self.parts.iter().map(|p| self.arena.slice(p.0, p.1)).collect();
        let start = Instant::now();
        for _ in 0..launches {
            device.launch(&self.spec, &args);
        }
        device.sync();
        self.seconds = self.seconds.min(start.elapsed().as_secs_f64() / f64::from(launches));
    }
}

fn launches(device: &Device, [rows, groups, n, k]: [u32; 4]) -> Vec<Launch> {
    let size = |x: u32, y: u32| u64::from(x) * u64::from(y);
    let contract = |transposed| GroupedContractSpec {
        elem: Elem::F32,
        rows,
        share: 1,
        groups,
        n,
        k,
        transposed,
    };
    let table = u64::from(groups) * size(n, k);
    let sizes = [size(rows, k), table, u64::from(rows), size(rows, n)];
    let grouped = |name, transposed| {
        let spec = KernelSpec::GroupedContract(contract(transposed));
        Launch::new(device, name, spec, &sizes).route(device, rows, groups)
    };
    let spec = GroupedOuterSpec {
        elem: Elem::F32,
        out: Elem::F32,
        rows,
        share_a: 1,
        share_b: 1,
        groups,
        m: n,
        n: k,
    };
    let sizes_outer = [size(rows, n), size(rows, k), u64::from(rows), table];
    let plain = |name, transposed| {
        let spec = KernelSpec::Contract(contract(transposed).of_one_group());
        Launch::new(device, name, spec, &[size(rows, k), size(n, k), size(rows, n)])
    };
    vec![
        plain("plain nk", false),
        grouped("grouped nk", false),
        plain("plain kn", true),
        grouped("grouped kn", true),
        Launch::new(device, "outer", KernelSpec::GroupedOuter(spec), &sizes_outer)
            .route(device, rows, groups),
    ]
}

fn main() {
    let units = std::env::args().nth(1).map(|units| units.parse().expect("a number of units"));
    let device = Device::cpu(units);
    println!("{device:?}");
    let wanted = std::env::args().nth(2).unwrap_or_default();
    for shape in SHAPES {
        let [rows, groups, n, k] = shape;
        if !format!("{rows}x{groups}x{n}x{k}").contains(&wanted) {
            continue;
        }
        let flops = 2.0 * f64::from(rows) * f64::from(n) * f64::from(k);
        let count = (2e8 / flops).clamp(1.0, 20.0) as u32;
        let mut all = launches(&device, shape);
        for _ in 0..RUNS {
            all.iter_mut().for_each(|launch| launch.time(&device, count));
        }
        for launch in &all {
            println!(
                "{rows:5} rows, {groups:2} groups, {n:5} {k:5} {:10}: {:7.1} GFLOP/s, {:.0} us",
                launch.name,
                flops / launch.seconds / 1e9,
                launch.seconds * 1e6
            );
        }
    }
}
