//! PTX of all kernels of attention, on the paper of two devices.

use crate::attention::tests::{case, causal};
use crate::device::Slice;
use crate::embedding::testing::ELEMS;
use crate::paper::{Paper, Ptx};
use mdl_ir::kernel::{AttentionSpec, Elem, KernelSpec, MaskSpec, workspace_bytes};

/// Forward, gradient and decoding.
fn kernels(capability: u32, spec: &AttentionSpec) -> Vec<Ptx> {
    let paper = Paper::new(capability);
    let decoding = AttentionSpec { t: 1, ..spec.clone() };
    let specs = [
        KernelSpec::Attention(spec.clone()),
        KernelSpec::AttentionGrad(spec.clone()),
        KernelSpec::Attention(decoding),
    ];
    for kernel in &specs {
        let (KernelSpec::Attention(spec) | KernelSpec::AttentionGrad(spec)) = kernel else {
            panic!("these are all of attention");
        };
        let rows = u64::from(spec.batch * spec.t * spec.kv_heads * spec.group);
        let queries = rows * u64::from(spec.head) * spec.elem.bytes();
        let keys = u64::from(spec.batch * spec.s * spec.kv_heads * spec.head) * spec.elem.bytes();
        let mut sizes = vec![queries, keys, keys];
        if spec.mask.documents {
            sizes.extend([u64::from(spec.batch * spec.t) * 4, u64::from(spec.batch * spec.s) * 4]);
        }
        sizes.extend(spec.mask.start.then_some(4));
        sizes.extend([queries, rows * 4]);
        if matches!(kernel, KernelSpec::AttentionGrad(_)) {
            sizes.extend([queries, queries, keys, keys]);
        }
        sizes.push(workspace_bytes(kernel, paper.device.target()));
        let arenas: Vec<_> = sizes.iter().map(|&bytes| paper.device.alloc(bytes)).collect();
        let args: Vec<Slice> = arenas.iter().zip(&sizes).map(|(a, &b)| a.slice(0, b)).collect();
        paper.device.launch(kernel, &args);
    }
    paper.device.sync();
    paper.found.kernels().expect("every kernel compiles")
}

#[test]
fn products_of_tiles_are_instructions_of_tensor_cores() {
    let mask = MaskSpec { window: Some(100), documents: true, start: true, ..causal() };
    let specs = [
        case(24, 40, 1, 2, 20, mask),
        case(24, 40, 1, 2, 16, mask),
        case(512, 512, 2, 2, 64, causal()),
        case(512, 512, 2, 1, 128, causal()),
    ];
    let with_capability = |spec: &AttentionSpec| match spec.head {
        64 => vec![(80, spec.clone()), (90, spec.clone())],
        _ => vec![(80, spec.clone())],
    };
    for (capability, spec) in specs.iter().flat_map(with_capability) {
        for elem in ELEMS {
            let spec = AttentionSpec { elem, ..spec.clone() };
            let kernels = kernels(capability, &spec);
            let kind = if elem == Elem::Bf16 { "bf16" } else { "tf32" };
            let with = kernels
                .iter()
                .filter(|kernel| kernel.text.contains("mma.sync") && kernel.text.contains(kind));
            assert_eq!(with.count(), 3, "{spec:?}");
            if let Ok(dir) = std::env::var("MDL_PTX") {
                for kernel in &kernels {
                    let (head, t, name) = (spec.head, spec.t, &kernel.name);
                    let path = format!("{dir}/sm{capability}_{kind}_h{head}_{t}_{name}.ptx");
                    std::fs::write(path, &kernel.text).expect("a folder to write to");
                }
            }
        }
    }
}
