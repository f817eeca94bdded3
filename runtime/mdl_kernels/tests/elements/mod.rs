//! Numbers as the bytes of a buffer and back, and what storing them costs.

use mdl_ir::kernel::Elem;
use mdl_ir::rounding::{bf16_error, bf16_nearest, bf16_to_f32};

/// The nearest numbers that `elem` has; integers are bits and stay.
pub fn nearest(elem: Elem, mut values: Vec<f32>) -> Vec<f32> {
    if elem == Elem::Bf16 {
        values.iter_mut().for_each(|x| *x = bf16_to_f32(bf16_nearest(*x)));
    }
    values
}

pub fn to_bytes(elem: Elem, values: &[f32]) -> Vec<u8> {
    match elem {
        Elem::F32 | Elem::I32 => values.iter().flat_map(|x| x.to_ne_bytes()).collect(),
        Elem::Bf16 => values.iter().flat_map(|x| bf16_nearest(*x).to_ne_bytes()).collect(),
    }
}

pub fn from_bytes(elem: Elem, bytes: &[u8]) -> Vec<f32> {
    match elem {
        Elem::F32 | Elem::I32 => {
            bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        Elem::Bf16 => {
            bytes.chunks_exact(2).map(|b| bf16_to_f32(u16::from_ne_bytes([b[0], b[1]]))).collect()
        }
    }
}

/// How far storing a result may move it from `x`: nowhere in f32, and in bf16 half a unit in the
/// last place. A kernel's arithmetic may have put it past a power of two, where units are larger.
pub fn storing_error(elem: Elem, x: f64) -> f64 {
    match elem {
        Elem::F32 | Elem::I32 => 0.0,
        Elem::Bf16 => bf16_error(x * (1.0 + 1e-5)),
    }
}
