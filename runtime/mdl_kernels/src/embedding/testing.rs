//! Host buffers that a test fills, launches on and reads back.
//!
//! Every launch runs on one unit and on two, and must give the same bits.

use crate::device::{Device, Slice};
use mdl_ir::kernel::{KernelSpec, workspace_bytes};

/// Written behind every buffer: a kernel that writes past its end is caught.
const GUARD: f32 = 7.25;
const GUARD_ELEMENTS: usize = 64;

pub(crate) struct Buffers {
    data: Vec<Vec<f32>>,
    state: u64,
}

impl Buffers {
    pub(crate) fn new() -> Self {
        Buffers { data: Vec::new(), state: 0x9E37_79B9_7F4A_7C15 }
    }

    pub(crate) fn push(&mut self, values: Vec<f32>) -> usize {
        self.data.push(values);
        self.data.len() - 1
    }

    pub(crate) fn zeros(&mut self, len: usize) -> usize {
        self.push(vec![0.0; len])
    }

    /// Integers as the bits that a buffer of i32 holds.
    pub(crate) fn ints(&mut self, values: impl Iterator<Item = i32>) -> usize {
        let bits = values.map(|value| f32::from_bits(value as u32)).collect();
        self.push(bits)
    }

    /// Uniform in −1..1.
    pub(crate) fn random(&mut self, len: usize) -> usize {
        let values = (0..len).map(|_| self.next()).collect();
        self.push(values)
    }

    fn next(&mut self) -> f32 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(crate) fn f32(&self, buffer: usize) -> &[f32] {
        &self.data[buffer]
    }

    pub(crate) fn f64(&self, buffer: usize) -> Vec<f64> {
        self.data[buffer].iter().map(|&x| f64::from(x)).collect()
    }

    /// What all buffers hold after the launch with these arguments and a workspace.
    pub(crate) fn run(&self, units: u32, spec: &KernelSpec, args: &[usize]) -> Vec<Vec<f32>> {
        let device = Device::cpu(Some(units));
        let mut offsets = Vec::new();
        let mut end = 0u64;
        let mut bytes = Vec::new();
        for values in &self.data {
            offsets.push(end);
            bytes.extend_from_slice(bytemuck::cast_slice(values));
            bytes.extend_from_slice(bytemuck::cast_slice(&[GUARD; GUARD_ELEMENTS]));
            bytes.resize(bytes.len().next_multiple_of(256), 0);
            end = bytes.len() as u64;
        }
        let workspace = workspace_bytes(spec, units);
        let arena = device.alloc(end + workspace + 256);
        device.write(&arena, 0, &bytes).expect("fits");
        // A workspace holds anything at all when a launch begins.
        let dirt = vec![f32::NAN; (workspace / 4) as usize + GUARD_ELEMENTS];
        device.write(&arena, end, bytemuck::cast_slice(&dirt)).expect("fits");
        let slice = |&i: &usize| arena.slice(offsets[i], self.data[i].len() as u64 * 4);
        let mut slices: Vec<Slice> = args.iter().map(slice).collect();
        slices.push(arena.slice(end, workspace));
        device.launch(spec, &slices);
        let behind = device.read(&arena, end + workspace, 256).expect("fits");
        let behind: Vec<f32> = floats(&behind);
        assert!(behind.iter().all(|x| x.is_nan()), "wrote past the workspace");
        let read = |(i, values): (usize, &Vec<f32>)| {
            let len = values.len() as u64 * 4 + GUARD_ELEMENTS as u64 * 4;
            let bytes = device.read(&arena, offsets[i], len).expect("fits");
            let mut read: Vec<f32> = floats(&bytes);
            let guard = read.split_off(values.len());
            assert!(guard.iter().all(|&x| x == GUARD), "wrote past buffer {i}");
            read
        };
        self.data.iter().enumerate().map(read).collect()
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

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()
}

/// ‖a − b‖ / ‖b‖, or ‖a‖ where b is zero.
pub(crate) fn relative_error(a: &[f32], b: &[f64]) -> f64 {
    let norm = |xs: &mut dyn Iterator<Item = f64>| xs.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(&x, y)| f64::from(x) - y));
    let scale = norm(&mut b.iter().copied());
    if scale == 0.0 { difference } else { difference / scale }
}
