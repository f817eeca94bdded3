//! Kernels for NVIDIA's GPUs on a machine without one: every contraction compiles to PTX that uses
//! tensor cores.
#![cfg(feature = "cuda")]

use mdl_ir::kernel::{ContractSpec, Dim, Elem, KernelSpec};
use mdl_kernels::Paper;

/// x·wᵀ of [m, k] and [n, k], its gradients, and their ragged forms.
fn forms(elem: Elem, [m, n, k]: [u32; 3]) -> Vec<KernelSpec> {
    let dim = |size, stride, stride_b| vec![Dim { size, stride, stride_b }];
    let contraction = |m, n, k| {
        KernelSpec::Contract(ContractSpec {
            a: elem,
            b: elem,
            outputs: vec![elem],
            batch: vec![],
            m,
            n,
            k,
            prologue: None,
            rotary: None,
            epilogue_inputs: vec![],
            epilogue: vec![],
        })
    };
    vec![
        contraction(dim(m, k, 0), dim(n, k, 0), dim(k, 1, 1)),
        contraction(dim(m, n, 0), dim(k, 1, 0), dim(n, 1, k)),
        contraction(dim(n, 1, 0), dim(k, 1, 0), dim(m, n, k)),
    ]
}

#[test]
fn contractions_multiply_on_tensor_cores() {
    for capability in [80, 90] {
        let paper = Paper::new(capability);
        let arena = paper.device.alloc(1 << 30);
        let all = arena.slice(0, 1 << 30);
        for elem in [Elem::F32, Elem::Bf16] {
            for shape in [[2048, 768, 288], [2048, 2048, 2048], [77, 51, 33]] {
                for spec in forms(elem, shape) {
                    paper.device.launch(&spec, &[all, all, all, all]);
                }
            }
        }
        let kernels = paper.kernels().expect("all of them compile");
        let contractions: Vec<_> = kernels.iter().filter(|k| k.name.contains("contract")).collect();
        assert_eq!(contractions.len(), 18, "{:?}", kernels.iter().map(|k| &k.name));
        for kernel in contractions {
            assert!(kernel.text.contains("wmma.mma.sync"), "{} has no product", kernel.name);
            // Without it the assembler would choose how many registers a unit has.
            assert!(kernel.text.contains(".minnctapersm"), "{} has no bound", kernel.name);
            if let Ok(dir) = std::env::var("MDL_PTX") {
                let path = format!("{dir}/sm_{capability}_{}.ptx", kernel.name);
                std::fs::write(path, &kernel.text).expect("a folder to write to");
            }
        }
    }
}
