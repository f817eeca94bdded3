//! Small tensors for the tables: written out, or spread over a range without ties.

use mdl_ir::interp::mix;
use mdl_ir::tensor::Tensor;
use mdl_ir::tensor_type::{Axis, DType, Type};
use mdl_symbol::Symbol;

/// A type from text such as `A=2 B=3`.
pub fn ty(dtype: DType, axes: &str) -> Type {
    let axis = |text: &str| {
        let (name, size) = text.split_once('=').expect("an axis is `name=size`");
        Axis::new(name, size.parse().expect("a size is a number"))
    };
    Type::new(dtype, axes.split_whitespace().map(axis).collect())
}

/// An f32 tensor with these elements.
pub fn f32s(axes: &str, data: &[f64]) -> Tensor {
    Tensor::new(ty(DType::F32, axes), data.to_vec())
}

pub fn ids(axes: &str, data: &[f64]) -> Tensor {
    Tensor::new(ty(DType::I32, axes), data.to_vec())
}

pub fn bools(axes: &str, data: &[f64]) -> Tensor {
    Tensor::new(ty(DType::Bool, axes), data.to_vec())
}

pub fn bf16s(axes: &str, data: &[f64]) -> Tensor {
    Tensor::new(ty(DType::Bf16, axes), data.to_vec())
}

pub fn axis(name: &str, size: u64) -> Axis {
    Axis::new(name, size)
}

pub fn names(axes: &[&str]) -> Vec<Symbol> {
    axes.iter().map(|a| Symbol::new(a)).collect()
}

/// Numbers between `low` and `high` that are at least a hundredth of the range's share of one
/// element apart, so that a small step never changes their order.
pub fn spread(ty: &Type, (low, high): (f64, f64), seed: u64) -> Tensor {
    let n = ty.elements();
    let mut places: Vec<u64> = (0..n).collect();
    places.sort_by_key(|i| mix(seed ^ mix(*i)));
    // The odd offset keeps tensors of different seeds apart too.
    let offset = 0.05 + 0.9 * (mix(seed) % 997) as f64 / 997.0;
    let number = |p: &u64| low + (high - low) * (*p as f64 + offset) / n as f64;
    Tensor::new(ty.clone(), places.iter().map(number).collect())
}

/// As `spread`, from the text of the axes.
pub fn some(axes: &str, range: (f64, f64), seed: u64) -> Tensor {
    spread(&ty(DType::F32, axes), range, seed)
}
