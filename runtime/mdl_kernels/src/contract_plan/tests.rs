//! Whatever blocks are wanted, a plan stays within the workspace of its spec, and the units have no
//! say in the order of its sums.

use super::*;
use crate::tuning::{Cpu, Table};
use mdl_ir::kernel::{KernelSpec, Target, workspace_bytes};

fn spec(m: u32, n: u32, k: u32, transposed: bool, elem: Elem) -> ContractSpec {
    let dim = |size, stride, stride_b| vec![Dim { size, stride, stride_b }];
    let (row, step) = if transposed { (1, m) } else { (k, 1) };
    ContractSpec {
        a: elem,
        b: elem,
        outputs: vec![elem],
        batch: vec![],
        m: dim(m, row, 0),
        n: dim(n, 1, 0),
        k: dim(k, step, n),
        prologue: None,
        rotary: None,
        epilogue_inputs: vec![],
        epilogue: vec![],
    }
}

/// Elements of the workspace that a launch uses.
fn used(plan: &Plan) -> u64 {
    let shared = plan.packed_b_elements + plan.partial_elements;
    let own = plan.packed_a_elements + plan.tile_elements;
    let copies = if plan.split_batch { plan.units } else { 1 };
    ContractBlocks::COUNTERS + (copies * shared + plan.units * own) as u64
}

/// The plan in these blocks on so many units, checked against its spec.
fn planned(spec: &ContractSpec, products: Products, blocks: Blocks, units: u32) -> Plan {
    let device = Device::cpu(Some(units));
    let plan = Plan::in_blocks(spec, &device, products, |_| blocks);
    let reserved = workspace_bytes(&KernelSpec::Contract(spec.clone()), Target::Threads(units));
    assert!(4 * used(&plan) <= reserved, "{blocks} on {units} units: {spec:?}");
    assert!(plan.block_rows >= plan.tile_rows && plan.block_columns > 0, "{blocks}: {spec:?}");
    let words = plan.block_depth / products.steps_per_word();
    assert!(words * plan.block_columns <= plan.packed_b_elements, "{blocks}: {spec:?}");
    let packed = if plan.layout_a == LayoutA::Direct { 0 } else { plan.block_rows * (words + 16) };
    assert!(packed <= plan.packed_a_elements, "{blocks}: {spec:?}");
    let waits = plan.depth > plan.block_depth && !plan.direct;
    assert!(
        !waits || plan.rows * plan.block_columns <= plan.partial_elements,
        "{blocks}: {spec:?}"
    );
    plan
}

#[test]
fn plans_fit_their_workspace() {
    let width = Device::cpu(None).vector_width();
    let caches = [32 << 10, 1 << 20, 32 << 20];
    let all = [Products::Widened, Products::Vectors, Products::Tiles];
    for (registers, products) in [16, 32].into_iter().flat_map(|r| all.map(|p| (r, p))) {
        let cpu = Cpu { registers, width, caches };
        let model = Blocks::model(&cpu, products);
        let (rows, deep) = (4 * model.rows, 4 * model.depth);
        let changed = [model, Blocks { depth: 16, ..model }, Blocks { depth: deep, rows, ..model }];
        let tuned = Table::shipped().0.iter().filter(|row| row.products == products);
        for blocks in tuned.map(|row| row.blocks).chain(changed) {
            for (m, n, k) in [(1, 1, 1), (37, 50, 3000), (2048, 288, 513), (9, 5000, 700)] {
                for (transposed, elem) in
                    [(false, Elem::F32), (true, Elem::F32), (false, Elem::Bf16), (true, Elem::Bf16)]
                {
                    let spec = spec(m, n, k, transposed, elem);
                    let depth = |units| planned(&spec, products, blocks, units).block_depth;
                    assert_eq!(depth(1), depth(2));
                    assert_eq!(depth(1), depth(96));
                }
            }
        }
    }
}
