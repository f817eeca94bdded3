//! Host buffers that a test fills, launches on and reads back.
//!
//! A test sees numbers, whatever their elements are in memory. Every launch runs on one unit and on
//! two, and must give the same bits.

use crate::device::{Class, Device, Slice};
use mdl_ir::kernel::{Elem, KernelSpec, workspace_bytes};

#[path = "../../tests/elements/mod.rs"]
mod elements;
pub(crate) use elements::{from_bytes, nearest, storing_error, to_bytes};

/// Written behind every buffer: a kernel that writes past its end is caught.
const GUARD: f32 = 7.25;
const GUARD_ELEMENTS: usize = 64;

/// Element types of what a kernel takes as a whole.
pub(crate) const ELEMS: [Elem; 2] = [Elem::F32, Elem::Bf16];

/// Compiling for a CPU too would take most of the time on a machine that is there for its GPU.
pub(crate) fn gpus_alone() -> bool {
    std::env::var_os("MDL_GPUS_ALONE").is_some()
}

/// The values, which are bf16 where `elem` is; integers are bits.
struct Buffer {
    values: Vec<f32>,
    elem: Elem,
}

impl Buffer {
    fn len(&self) -> u64 {
        self.values.len() as u64 * self.elem.bytes()
    }
}

pub(crate) struct Buffers {
    data: Vec<Buffer>,
    state: u64,
}

impl Buffers {
    pub(crate) fn new() -> Self {
        Buffers { data: Vec::new(), state: 0x9E37_79B9_7F4A_7C15 }
    }

    /// The nearest values that `elem` has.
    pub(crate) fn push(&mut self, elem: Elem, values: Vec<f32>) -> usize {
        self.data.push(Buffer { values: nearest(elem, values), elem });
        self.data.len() - 1
    }

    pub(crate) fn zeros(&mut self, elem: Elem, len: usize) -> usize {
        self.push(elem, vec![0.0; len])
    }

    /// Integers as the bits that a buffer of i32 holds.
    pub(crate) fn ints(&mut self, values: impl Iterator<Item = i32>) -> usize {
        let bits = values.map(|value| f32::from_bits(value as u32)).collect();
        self.push(Elem::I32, bits)
    }

    /// Uniform in −1..1.
    pub(crate) fn random(&mut self, elem: Elem, len: usize) -> usize {
        let values = (0..len).map(|_| self.next()).collect();
        self.push(elem, values)
    }

    fn next(&mut self) -> f32 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(crate) fn f32(&self, buffer: usize) -> &[f32] {
        &self.data[buffer].values
    }

    pub(crate) fn f64(&self, buffer: usize) -> Vec<f64> {
        self.f32(buffer).iter().map(|&x| f64::from(x)).collect()
    }

    /// What all buffers hold after the launch with these arguments and a workspace.
    pub(crate) fn run(&self, units: u32, spec: &KernelSpec, args: &[usize]) -> Vec<Vec<f32>> {
        self.run_on(&Device::cpu(Some(units)), spec, args)
    }

    fn run_on(&self, device: &Device, spec: &KernelSpec, args: &[usize]) -> Vec<Vec<f32>> {
        let mut offsets = Vec::new();
        let mut end = 0u64;
        let mut bytes = Vec::new();
        for buffer in &self.data {
            offsets.push(end);
            bytes.extend_from_slice(&to_bytes(buffer.elem, &buffer.values));
            bytes.extend_from_slice(bytemuck::cast_slice(&[GUARD; GUARD_ELEMENTS]));
            bytes.resize(bytes.len().next_multiple_of(256), 0);
            end = bytes.len() as u64;
        }
        let workspace = workspace_bytes(spec, device.target());
        let arena = device.alloc(end + workspace + 256);
        device.write(&arena, 0, &bytes).expect("fits");
        // A workspace holds anything at all when a launch begins.
        let dirt = vec![f32::NAN; (workspace / 4) as usize + GUARD_ELEMENTS];
        device.write(&arena, end, bytemuck::cast_slice(&dirt)).expect("fits");
        let slice = |&i: &usize| arena.slice(offsets[i], self.data[i].len());
        let mut slices: Vec<Slice> = args.iter().map(slice).collect();
        slices.push(arena.slice(end, workspace));
        device.launch(spec, &slices);
        let behind = device.read(&arena, end + workspace, 256).expect("fits");
        assert!(
            from_bytes(Elem::F32, &behind).iter().all(|x| x.is_nan()),
            "wrote past the workspace"
        );
        let read = |(i, buffer): (usize, &Buffer)| {
            let len = buffer.len() + GUARD_ELEMENTS as u64 * 4;
            let mut bytes = device.read(&arena, offsets[i], len).expect("fits");
            let guard = bytes.split_off(buffer.len() as usize);
            assert!(
                from_bytes(Elem::F32, &guard).iter().all(|&x| x == GUARD),
                "wrote past buffer {i}"
            );
            from_bytes(buffer.elem, &bytes)
        };
        self.data.iter().enumerate().map(read).collect()
    }

    /// The same on every device of this machine that takes the elements: a CPU, and GPUs, which
    /// must give the same bits each time.
    pub(crate) fn run_on_devices(
        &self,
        spec: &KernelSpec,
        args: &[usize],
    ) -> Vec<(Class, Vec<Vec<f32>>)> {
        let mut all = Vec::new();
        if !gpus_alone() {
            all.push((Class::Cpu, self.run_on_units(spec, args)));
        }
        let halves = self.data.iter().any(|buffer| buffer.elem == Elem::Bf16);
        for device in [Device::wgpu(), Device::cuda()].into_iter().flatten() {
            if device.class() == Class::Wgpu && halves {
                continue;
            }
            let results = self.run_on(&device, spec, args);
            let again = self.run_on(&device, spec, args);
            let bits = |x: &Vec<Vec<f32>>| -> Vec<u32> {
                x.iter().flatten().map(|x| x.to_bits()).collect()
            };
            assert!(bits(&results) == bits(&again), "{:?} gives other bits", device.class());
            all.push((device.class(), results));
        }
        all
    }

    /// The same on one unit and on two; panics unless the bits agree.
    pub(crate) fn run_on_units(&self, spec: &KernelSpec, args: &[usize]) -> Vec<Vec<f32>> {
        let one = self.run(1, spec, args);
        let two = self.run(2, spec, args);
        for (i, (a, b)) in one.iter().zip(&two).enumerate() {
            let same = a.iter().zip(b).all(|(x, y)| x.to_bits() == y.to_bits());
            assert!(same, "buffer {i} depends on the number of units");
        }
        two
    }
}

/// ‖a − b‖ / ‖b‖, or ‖a‖ where b is zero, for results `a` in elements of this type. What storing
/// them adds to the error of a kernel's arithmetic is taken off each difference.
pub(crate) fn relative_error(elem: Elem, a: &[f32], b: &[f64]) -> f64 {
    let norm = |xs: &mut dyn Iterator<Item = f64>| xs.map(|x| x * x).sum::<f64>().sqrt();
    let off = |(x, y): (&f32, &f64)| {
        let (x, allowed) = (f64::from(*x), storing_error(elem, *y));
        let off = (x - y).abs();
        // What is not a number stays one, and is no result.
        if x == *y || off <= allowed { 0.0 } else { off - allowed }
    };
    let difference = norm(&mut a.iter().zip(b).map(off));
    let scale = norm(&mut b.iter().copied());
    if scale == 0.0 { difference } else { difference / scale }
}
