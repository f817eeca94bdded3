//! Names of kernels for people: what one is, of which numbers, and how large.

use mdl_ir::kernel::{AttentionSpec, ContractSpec, Dim, Elem, KernelSpec, RegionSpec};

/// What a kernel is.
pub fn kind(spec: &KernelSpec) -> &'static str {
    match spec {
        KernelSpec::Region(spec) if is_copy(spec) => "copy",
        KernelSpec::Region(_) => "region",
        KernelSpec::Contract(_) => "contract",
        KernelSpec::ContractAdd(_) => "contract_add",
        KernelSpec::Attention(_) => "attention",
        KernelSpec::AttentionGrad(_) => "attention_grad",
        KernelSpec::LinearCrossEntropy(spec) if spec.grad => "linear_cross_entropy_grad",
        KernelSpec::LinearCrossEntropy(_) => "linear_cross_entropy",
        KernelSpec::Gather(_) => "gather",
        KernelSpec::ScatterAdd(_) => "scatter_add",
        KernelSpec::GroupedContract(_) => "grouped_contract",
        KernelSpec::GroupedOuter(_) => "grouped_outer",
        KernelSpec::CacheWrite(_) => "cache_write",
        KernelSpec::SumOfSquares(_) | KernelSpec::MoreSquares(_) => "sum_of_squares",
        KernelSpec::AdamW(_) => "adamw",
        KernelSpec::Transfer => "transfer",
        KernelSpec::Collective(_) => "collective",
    }
}

/// Is nothing computed?
fn is_copy(spec: &RegionSpec) -> bool {
    let work = mdl_ir::kernel::cost::work(&KernelSpec::Region(spec.clone()));
    work.is_some_and(|work| work.flops == 0)
}

/// The kind with the sizes that decide about its work, and with bf16 where it reads that.
pub fn label(spec: &KernelSpec) -> String {
    let (elem, sizes) = match spec {
        KernelSpec::Region(spec) => {
            let views = spec.inputs.iter().chain(&spec.outputs);
            let narrow = views.map(|view| view.elem).find(|elem| *elem == Elem::Bf16);
            (narrow.unwrap_or(Elem::F32), joined(spec.dims.iter().map(|size| u64::from(*size))))
        }
        KernelSpec::Contract(spec) | KernelSpec::ContractAdd(spec) => (spec.a, contraction(spec)),
        KernelSpec::Attention(spec) | KernelSpec::AttentionGrad(spec) => {
            (spec.elem, attention(spec))
        }
        KernelSpec::LinearCrossEntropy(spec) => {
            (spec.elem, joined([spec.rows, spec.vocab, spec.width].map(u64::from)))
        }
        KernelSpec::Gather(spec) => (spec.elem, joined([spec.rows, spec.width].map(u64::from))),
        KernelSpec::ScatterAdd(spec) => (spec.elem, joined([spec.rows, spec.width].map(u64::from))),
        KernelSpec::GroupedContract(spec) => {
            let sizes = joined([spec.rows, spec.n, spec.k].map(u64::from));
            (spec.elem, format!("{sizes} in {} groups", spec.groups))
        }
        KernelSpec::GroupedOuter(spec) => {
            let sizes = joined([spec.m, spec.n, spec.rows].map(u64::from));
            (spec.elem, format!("{sizes} in {} groups", spec.groups))
        }
        KernelSpec::CacheWrite(spec) => {
            (spec.elem, joined([spec.batch, spec.t, spec.width].map(u64::from)))
        }
        KernelSpec::SumOfSquares(spec) | KernelSpec::MoreSquares(spec) => {
            (spec.elem, spec.len.to_string())
        }
        KernelSpec::AdamW(spec) => (spec.params, spec.len.to_string()),
        KernelSpec::Collective(spec) => (spec.elem, spec.len.to_string()),
        KernelSpec::Transfer => (Elem::F32, String::new()),
    };
    let narrow = if elem == Elem::Bf16 { " bf16" } else { "" };
    format!("{}{narrow} {sizes}", kind(spec)).trim_end().to_string()
}

fn joined(sizes: impl IntoIterator<Item = u64>) -> String {
    let sizes: Vec<String> = sizes.into_iter().map(|size| size.to_string()).collect();
    sizes.join("×")
}

/// m × n × k, for each batch if there are several.
fn contraction(spec: &ContractSpec) -> String {
    let size = |dims: &[Dim]| dims.iter().map(|dim| u64::from(dim.size)).product::<u64>();
    let sizes = joined([&spec.m, &spec.n, &spec.k].map(|dims| size(dims)));
    match size(&spec.batch) {
        1 => sizes,
        batch => format!("{batch} of {sizes}"),
    }
}

/// Batch, queries, keys where there are others, heads and the size of one.
fn attention(spec: &AttentionSpec) -> String {
    let t = match spec.t == spec.s {
        true => spec.t.to_string(),
        false => format!("{}:{}", spec.t, spec.s),
    };
    format!("{}×{t}×{}×{}", spec.batch, spec.kv_heads * spec.group, spec.head)
}
