//! Functions from multiply-adds and the bits of numbers: neither the compiler for PTX nor WGSL has
//! them with a known error, and the former would need a library of NVIDIA's.
//!
//! Polynomials are those of S. L. Moshier, "Methods and Programs for Mathematical Functions", 1989;
//! results are within 2e-7 of themselves, those of sine and cosine within 2e-7 of one.

// Coefficients of approximations are near constants, and are written as they were computed.
#![allow(clippy::approx_constant, clippy::excessive_precision)]

use cubecl::prelude::*;

/// ln 2 in two parts: the first has few bits, so that whole multiples of it are exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// π/2 and what it lacks.
const HALF_PI: f32 = 1.570_796_4;
const HALF_PI_LACKS: f32 = -4.371_139e-8;
/// Beyond these e^x is zero, or larger than any number.
const SMALLEST: f32 = -87.3;
const LARGEST: f32 = 88.72;
const INFINITY_BITS: u32 = 0x7f80_0000;

#[cube]
fn polynomial<N: Size>(x: Vector<f32, N>, #[comptime] coefficients: Vec<u32>) -> Vector<f32, N> {
    let mut sum = Vector::<f32, N>::new(comptime!(f32::from_bits(coefficients[0])).runtime());
    #[unroll]
    for i in 1..comptime!(coefficients.len()) {
        let next = comptime!(f32::from_bits(coefficients[i])).runtime();
        sum = fma(sum, x, Vector::new(next));
    }
    sum
}

/// Comptime arguments are compared, which floats are not.
fn bits(coefficients: &[f32]) -> Vec<u32> {
    coefficients.iter().map(|x| x.to_bits()).collect()
}

const EXP: [f32; 6] = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5];

#[cube]
pub(crate) fn exp<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let within = x.max(Vector::new(SMALLEST)).min(Vector::new(LARGEST));
    let whole = (within * Vector::new(std::f32::consts::LOG2_E)).round();
    let rest = fma(whole, Vector::new(-LN_2_HIGH), within);
    let rest = fma(whole, Vector::new(-LN_2_LOW), rest);
    let sum = polynomial::<N>(rest, comptime!(bits(&EXP)));
    let sum = fma(sum * rest, rest, rest) + Vector::new(1.0f32);
    // By two powers, since the largest one alone is no number.
    let half = (whole * Vector::new(0.5f32)).floor();
    let value = sum * power::<N>(half) * power::<N>(whole - half);
    let value = select_many(x.less_than(&Vector::new(SMALLEST)), Vector::new(0.0f32), value);
    let infinite = Vector::<f32, N>::reinterpret(Vector::<u32, N>::new(INFINITY_BITS.runtime()));
    let value = select_many(x.greater_than(&Vector::new(LARGEST)), infinite, value);
    select_many(x.equal(&x), value, x)
}

/// 2^x for a whole x.
#[cube]
fn power<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let exponent = Vector::<u32, N>::cast_from(x + Vector::new(127.0f32));
    Vector::<f32, N>::reinterpret(exponent << Vector::new(23u32))
}

const LN: [f32; 9] = [
    7.037_683_6e-2,
    -0.115_146_1,
    0.116_769_99,
    -0.124_201_41,
    0.142_493_22,
    -0.166_680_57,
    0.200_007_14,
    -0.249_999_94,
    0.333_333_3,
];

/// For numbers above zero; zero gives −∞.
#[cube]
pub(crate) fn ln<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    // Subnormal numbers have no exponent of their own.
    let small = x.less_than(&Vector::new(1.1754944e-38f32));
    let scaled = select_many(small, x * Vector::new(8388608.0f32), x);
    let less = select_many(small, Vector::new(23.0f32), Vector::new(0.0f32));
    let word = Vector::<u32, N>::reinterpret(scaled);
    // Fractions from √½ to √2.
    let offset = word - Vector::new(0x3f35_04f3u32);
    let exponent = Vector::<i32, N>::reinterpret(offset) >> Vector::new(23i32);
    let fraction = word - Vector::<u32, N>::reinterpret(exponent << Vector::new(23i32));
    let exponent = Vector::<f32, N>::cast_from(exponent) - less;
    let f = Vector::<f32, N>::reinterpret(fraction) - Vector::new(1.0f32);
    let square = f * f;
    let sum = polynomial::<N>(f, comptime!(bits(&LN))) * f * square;
    let sum = fma(exponent, Vector::new(LN_2_LOW), sum);
    let sum = fma(square, Vector::new(-0.5f32), sum) + f;
    let value = fma(exponent, Vector::new(LN_2_HIGH), sum);
    let infinite = Vector::<f32, N>::reinterpret(Vector::<u32, N>::new(INFINITY_BITS.runtime()));
    let value = select_many(x.equal(&Vector::new(0.0f32)), Vector::new(0.0f32) - infinite, value);
    let value = select_many(x.equal(&infinite), infinite, value);
    // The root of a negative number is no number, on every device.
    select_many(x.less_than(&Vector::new(0.0f32)), x.sqrt(), value)
}

const SIN: [f32; 3] = [-1.951_529_6e-4, 8.332_161e-3, -0.166_666_55];
const COS: [f32; 3] = [2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2];

/// Sine of x + quarters · π/2, for angles up to some hundred thousands.
#[cube]
fn sine_from<N: Size>(x: Vector<f32, N>, #[comptime] quarters: i32) -> Vector<f32, N> {
    let whole = (x * Vector::new(std::f32::consts::FRAC_2_PI)).round();
    let rest = fma(whole, Vector::new(-HALF_PI), x);
    let rest = fma(whole, Vector::new(-HALF_PI_LACKS), rest);
    let square = rest * rest;
    let sine = fma(polynomial::<N>(square, comptime!(bits(&SIN))) * square, rest, rest);
    let cosine = polynomial::<N>(square, comptime!(bits(&COS))) * square * square;
    let cosine = fma(square, Vector::new(-0.5f32), cosine) + Vector::new(1.0f32);
    let quarter = Vector::<i32, N>::cast_from(whole) + Vector::new(quarters);
    let quarter = Vector::<u32, N>::reinterpret(quarter);
    let odd = (quarter & Vector::new(1u32)).equal(&Vector::new(1u32));
    let value = select_many(odd, cosine, sine);
    let negative = (quarter & Vector::new(2u32)).equal(&Vector::new(2u32));
    select_many(negative, Vector::new(0.0f32) - value, value)
}

#[cube]
pub(crate) fn sin<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    sine_from::<N>(x, 0i32)
}

#[cube]
pub(crate) fn cos<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    sine_from::<N>(x, 1i32)
}

const TANH: [f32; 5] =
    [-5.704_988_7e-3, 2.063_908_9e-2, -5.373_971_6e-2, 0.133_314_42, -0.333_332_82];

#[cube]
pub(crate) fn tanh<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let square = x * x;
    let near = fma(polynomial::<N>(square, comptime!(bits(&TANH))) * square, x, x);
    let size = x.abs();
    let one = Vector::<f32, N>::new(1.0f32);
    let far = one - Vector::new(2.0f32) / (exp::<N>(size + size) + one);
    let far = select_many(x.less_than(&Vector::new(0.0f32)), Vector::new(0.0f32) - far, far);
    select_many(size.less_than(&Vector::new(0.625f32)), near, far)
}

/// Of one number.
#[cube]
pub(crate) fn exp_of(x: f32) -> f32 {
    exp::<Const<1>>(Vector::new(x)).extract(0usize)
}

#[cube]
pub(crate) fn ln_of(x: f32) -> f32 {
    ln::<Const<1>>(Vector::new(x)).extract(0usize)
}
