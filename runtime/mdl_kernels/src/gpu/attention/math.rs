//! Powers of two with a known error, and the log-sum-exp. Beside `gpu::math::exp` they know no
//! numbers beyond what scores are, and take the instruction where there is one.

// Coefficients of approximations are near constants, and are written as they were computed.
#![allow(clippy::approx_constant, clippy::excessive_precision)]

use super::power::power_of_two;
use super::shape::Product;
use crate::gpu::math::ln_of;
use cubecl::prelude::*;

/// Stands for −∞ among scores: no score is as small, and differences of it are numbers.
pub(crate) const NOTHING: f32 = -1e38;
/// The bits of −∞, which WGSL has no literal for.
const NEG_INFINITY_BITS: u32 = 0xff80_0000;
/// The smallest power of two that is computed; what is smaller is zero.
const SMALLEST: f32 = -126.0;

/// 2^x, within 3e-7 of itself, for x below 127.
#[cube]
pub(crate) fn exp2(x: f32, #[comptime] product: Product) -> f32 {
    if comptime!(product == Product::Loops) { series(x) } else { power_of_two(x) }
}

#[cube]
fn series(x: f32) -> f32 {
    let within = max(x, SMALLEST);
    let whole = within.round();
    let rest = within - whole;
    // The interpolation of 2^x at seven Chebyshev nodes of −½..½.
    let mut sum = fma(0.000_154_614_45f32, rest, 0.001_340_042_8);
    sum = fma(sum, rest, 0.009_618_057);
    sum = fma(sum, rest, 0.055_503_27);
    sum = fma(sum, rest, 0.240_226_51);
    sum = fma(sum, rest, 0.693_147_2);
    sum = fma(sum, rest, 1.0);
    let power = i32::reinterpret(sum) + (i32::cast_from(whole) << 23);
    select(x < SMALLEST, 0.0, f32::reinterpret(power))
}

/// The log-sum-exp from the largest score as a power of two and the sum of powers relative to it.
#[cube]
pub(crate) fn log_sum(largest: f32, sum: f32) -> f32 {
    let seen = sum > 0.0;
    let total = fma(largest, std::f32::consts::LN_2, ln_of(select(seen, sum, 1.0)));
    f32::reinterpret(select(seen, u32::reinterpret(total), NEG_INFINITY_BITS.runtime()))
}
