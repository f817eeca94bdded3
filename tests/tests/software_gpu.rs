//! Training on a GPU as one has it anywhere: a Vulkan in software. Losses are those of a CPU.

use mdl_kernels::{Class, Device};
use mdl_train::model::Model;
use mdl_train::packing::Stream;
use mdl_train::session::{Session, Settings};
use std::sync::Arc;

/// Sums are added in other orders, a few roundings of 2⁻²⁴ in each of the layers.
const TOLERANCE: f64 = 2e-6;
const STEPS: usize = 3;

fn losses(file: &str, device: Device) -> Vec<[f64; 2]> {
    let model = Model::open(file, Some("tiny")).expect("an embedded preset");
    // Gradients of two micro-batches are added where they are made.
    let settings = Settings { gradient_accumulation: 2, ..mdl_tests::settings(2, 40) };
    let mut session = Session::open(model, settings, Arc::new(device)).expect("compiles");
    let ids = |n: u32| (0..n).map(|i| (i * i + 3 * i) % 250).collect::<Vec<u32>>();
    let stream = Stream::new(&[ids(211), ids(530)], 5);
    let step = |_| {
        let batch = stream.batch(session.cursor, 4, 40).expect("long enough");
        let report = session.step(&batch);
        [report.loss, report.grad_norm]
    };
    (0..STEPS).map(step).collect()
}

#[test]
fn losses_on_a_software_vulkan_are_those_of_a_cpu() {
    for file in ["llama", "mixtral"] {
        let gpu = Device::wgpu().expect("`cargo xtask test` installs a Vulkan in software");
        assert_eq!(gpu.class(), Class::Wgpu);
        let (cpu, gpu) = (losses(file, Device::cpu(None)), losses(file, gpu));
        for (cpu, gpu) in cpu.iter().flatten().zip(gpu.iter().flatten()) {
            let off = (cpu - gpu).abs();
            assert!(off <= TOLERANCE * cpu.abs().max(1.0), "{file}: {gpu} for {cpu}");
        }
    }
}
