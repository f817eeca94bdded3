//! The table of kernels: one row per spec.

use crate::device::{Device, Slice};
use crate::{
    attention, attention_grad, contract, embedding, grouped, linear_cross_entropy, optimizer,
    region,
};
use mdl_ir::kernel::KernelSpec;

pub(crate) fn dispatch(device: &Device, spec: &KernelSpec, args: &[Slice]) {
    match spec {
        KernelSpec::Region(spec) => region::launch(device, spec, args),
        KernelSpec::Contract(spec) => contract::launch(device, spec, args),
        KernelSpec::ContractAdd(spec) => contract::launch_accumulate(device, spec, args),
        KernelSpec::Attention(spec) => attention::launch(device, spec, args),
        KernelSpec::AttentionGrad(spec) => attention_grad::launch(device, spec, args),
        KernelSpec::LinearCrossEntropy(spec) => linear_cross_entropy::launch(device, spec, args),
        KernelSpec::Gather(spec) => embedding::launch_gather(device, spec, args),
        KernelSpec::ScatterAdd(spec) => embedding::launch_scatter_add(device, spec, args),
        KernelSpec::GroupedContract(spec) => grouped::launch_contract(device, spec, args),
        KernelSpec::GroupedOuter(spec) => grouped::launch_outer(device, spec, args),
        KernelSpec::CacheWrite(spec) => embedding::launch_cache_write(device, spec, args),
        KernelSpec::SumOfSquares(spec) => {
            optimizer::launch_sum_of_squares(device, spec, false, args)
        }
        KernelSpec::MoreSquares(spec) => optimizer::launch_sum_of_squares(device, spec, true, args),
        KernelSpec::AdamW(spec) => optimizer::launch_adam_w(device, spec, args),
        KernelSpec::Transfer => unreachable!("no kernel reaches both memories: see transfer.rs"),
        KernelSpec::Collective(_) => unreachable!("no kernel reaches two ranks: see exchange.rs"),
    }
}
