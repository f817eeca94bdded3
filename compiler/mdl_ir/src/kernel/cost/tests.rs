//! The price of a launch of every kind, against numbers that are counted by hand.

use super::super::collective::CollectiveSpec;
use super::super::{CacheWriteSpec, GatherSpec, Phase, SumOfSquaresSpec};
use super::*;
use crate::op::Group;

fn dim(size: u32, stride: u32, stride_b: u32) -> Vec<Dim> {
    vec![Dim { size, stride, stride_b }]
}

fn instr(op: InstrOp) -> Instr {
    Instr { op, dst: 1, a: 0, b: 0, c: 0 }
}

fn view(elem: Elem, strides: &[u32]) -> View {
    View { elem, offset: 0, strides: strides.to_vec() }
}

/// 4 × 6 = (4 × 5) · (5 × 6), with an epilogue of one multiplication by a row of numbers.
fn contraction() -> ContractSpec {
    ContractSpec {
        a: Elem::Bf16,
        b: Elem::F32,
        outputs: vec![Elem::F32],
        batch: Vec::new(),
        m: dim(4, 5, 0),
        n: dim(6, 1, 0),
        k: dim(5, 1, 6),
        prologue: None,
        rotary: None,
        epilogue_inputs: vec![view(Elem::F32, &[0, 1])],
        epilogue: vec![instr(InstrOp::Load(0)), instr(InstrOp::Mul), instr(InstrOp::Store(0))],
    }
}

fn attention(mask: MaskSpec) -> AttentionSpec {
    AttentionSpec {
        elem: Elem::F32,
        batch: 2,
        t: 8,
        s: 8,
        kv_heads: 3,
        group: 2,
        head: 4,
        scale: 0.5,
        mask,
    }
}

fn loss(grad: bool, accumulate: bool) -> LinearCrossEntropySpec {
    LinearCrossEntropySpec {
        elem: Elem::F32,
        dw: Elem::F32,
        rows: 3,
        vocab: 7,
        width: 2,
        grad,
        weighted: false,
        accumulate,
    }
}

/// Rows of five columns: their sum, and then each number less that.
fn rows() -> RegionSpec {
    let first = Phase { row: vec![], cols: vec![instr(InstrOp::Load(0)), instr(InstrOp::Sum)] };
    let cols = [InstrOp::Load(0), InstrOp::Row(1), InstrOp::Sub, InstrOp::Round, InstrOp::Store(0)];
    let second = Phase { row: vec![instr(InstrOp::Neg)], cols: cols.map(instr).to_vec() };
    RegionSpec {
        dims: vec![3, 5],
        walk: Walk::Rows,
        inputs: vec![view(Elem::F32, &[5, 1])],
        outputs: vec![view(Elem::Bf16, &[5, 1])],
        phases: vec![first, second],
    }
}

/// Sums over 3 of [2, 3, 5], each halved.
fn columns() -> RegionSpec {
    let first = Phase { row: vec![], cols: vec![instr(InstrOp::Load(0)), instr(InstrOp::Sum)] };
    let second = Phase { row: vec![instr(InstrOp::Mul), instr(InstrOp::Store(0))], cols: vec![] };
    RegionSpec {
        dims: vec![2, 3, 5],
        walk: Walk::Columns { reduced: 1 },
        inputs: vec![view(Elem::F32, &[15, 5, 1])],
        outputs: vec![view(Elem::F32, &[5, 0, 1])],
        phases: vec![first, second],
    }
}

fn adamw_of(params: Elem, moments: Elem, master: bool) -> AdamWSpec {
    let (beta1, beta2, eps, decay) = (0.9, 0.95, 1e-8, 0.1);
    let stochastic = moments == Elem::Bf16;
    AdamWSpec {
        params,
        grads: params,
        moments,
        master,
        stochastic,
        len: 10,
        beta1,
        beta2,
        eps,
        decay,
    }
}

fn collective(kind: Collective) -> KernelSpec {
    let group = Group { ranks: 4, stride: 1 };
    KernelSpec::Collective(CollectiveSpec { kind, group, elem: Elem::F32, len: 8, piece: 2 })
}

/// Every kind with its FLOPs and bytes.
// tidy: table
fn priced() -> Vec<(KernelSpec, u64, u64)> {
    use Elem::{Bf16, F32};
    let causal = MaskSpec { causal: true, documents: true, ..MaskSpec::default() };
    let window = MaskSpec { causal: true, window: Some(4), ..MaskSpec::default() };
    let grouped = GroupedContractSpec {
        elem: F32,
        rows: 6,
        share: 2,
        groups: 4,
        n: 3,
        k: 5,
        transposed: false,
    };
    let outer = GroupedOuterSpec {
        elem: Bf16,
        out: F32,
        rows: 6,
        share_a: 2,
        share_b: 1,
        groups: 4,
        m: 5,
        n: 3,
    };
    let gather = GatherSpec { elem: Bf16, rows: 3, vocab: 9, width: 4 };
    let scatter = |accumulate| ScatterAddSpec {
        elem: F32,
        out: F32,
        rows: 3,
        vocab: 9,
        width: 4,
        accumulate,
    };
    let cache = CacheWriteSpec { elem: F32, batch: 2, t: 1, capacity: 9, width: 4 };
    let squares = SumOfSquaresSpec { elem: F32, len: 10 };
    let (a_b_row_out, epilogue) = (4 * 5 * 2 + 5 * 6 * 4 + 6 * 4 + 24 * 4, 24);
    // Bytes of q or y, of k or v, and of the log-sum-exp.
    let (q, k, lse) = (2 * 8 * 6 * 4 * 4, 2 * 8 * 3 * 4 * 4, 2 * 8 * 6 * 4);
    let per_pair = 2 * 2 * 6 * 4;
    vec![
        (KernelSpec::Region(rows()), 15 + 3 + 15, 60 + 30),
        (KernelSpec::Region(columns()), 30 + 10, 120 + 40),
        (KernelSpec::Contract(contraction()), 2 * 24 * 5 + epilogue, a_b_row_out),
        (KernelSpec::ContractAdd(contraction()), 2 * 24 * 5 + epilogue + 24, a_b_row_out + 24 * 4),
        (
            KernelSpec::Attention(attention(causal)),
            2 * per_pair * 32,
            2 * q + 2 * k + lse + 2 * (8 + 8) * 4,
        ),
        (KernelSpec::Attention(attention(window)), 2 * per_pair * 24, 2 * q + 2 * k + lse),
        (
            KernelSpec::AttentionGrad(attention(MaskSpec::default())),
            5 * per_pair * 64,
            4 * q + 4 * k + lse,
        ),
        (KernelSpec::LinearCrossEntropy(loss(false, false)), 84, 24 + 56 + 16),
        (KernelSpec::LinearCrossEntropy(loss(true, false)), 252, 24 + 56 + 16 + 24 + 56),
        (KernelSpec::LinearCrossEntropy(loss(true, true)), 252, 24 + 56 + 16 + 24 + 112),
        (KernelSpec::Gather(gather), 0, 2 * 24 + 12),
        (KernelSpec::ScatterAdd(scatter(false)), 12, 12 + 48 + 144),
        (KernelSpec::ScatterAdd(scatter(true)), 12, 12 + 48 + 96),
        (KernelSpec::GroupedContract(grouped), 180, 4 * (15 + 60 + 18) + 24),
        (KernelSpec::GroupedOuter(outer), 180, 2 * (15 + 18) + 24 + 240),
        (KernelSpec::CacheWrite(cache), 0, 2 * 32 + 4),
        (KernelSpec::SumOfSquares(squares.clone()), 20, 44),
        (KernelSpec::MoreSquares(squares), 20, 56),
        (KernelSpec::AdamW(adamw_of(F32, F32, false)), 170, 280 + 16),
        (KernelSpec::AdamW(adamw_of(Bf16, F32, true)), 170, 10 * (2 + 10 + 16) + 16),
        (KernelSpec::AdamW(adamw_of(Bf16, Bf16, false)), 170, 10 * (2 + 4 + 8) + 20),
        (collective(Collective::AllGather), 0, 64),
        (collective(Collective::ReduceScatter), 6, 64),
    ]
}

#[test]
fn every_kind_has_the_price_that_is_counted_by_hand() {
    for (spec, flops, bytes) in priced() {
        assert_eq!(work(&spec), Some(Work { flops, bytes }), "{spec:?}");
    }
    assert_eq!(work(&KernelSpec::Transfer), None);
}

/// A new kind does not compile here until it has a row above.
#[test]
fn no_kind_is_without_a_price() {
    let kind = |spec: &KernelSpec| match spec {
        KernelSpec::Region(_) => 0,
        KernelSpec::Contract(_) => 1,
        KernelSpec::ContractAdd(_) => 2,
        KernelSpec::Attention(_) => 3,
        KernelSpec::AttentionGrad(_) => 4,
        KernelSpec::LinearCrossEntropy(_) => 5,
        KernelSpec::Gather(_) => 6,
        KernelSpec::ScatterAdd(_) => 7,
        KernelSpec::GroupedContract(_) => 8,
        KernelSpec::GroupedOuter(_) => 9,
        KernelSpec::CacheWrite(_) => 10,
        KernelSpec::SumOfSquares(_) => 11,
        KernelSpec::MoreSquares(_) => 12,
        KernelSpec::AdamW(_) => 13,
        KernelSpec::Collective(_) => 14,
        KernelSpec::Transfer => 15,
    };
    let mut kinds: Vec<usize> = priced().iter().map(|(spec, _, _)| kind(spec)).collect();
    kinds.dedup();
    assert_eq!(kinds, (0..15).collect::<Vec<_>>());
}
