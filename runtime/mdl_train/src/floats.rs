//! The number types that checkpoints hold, from and to f32.

use safetensors::Dtype;

/// Bytes of one number. None for a type that weights do not have.
pub fn width(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F32 => Some(4),
        Dtype::BF16 | Dtype::F16 => Some(2),
        _ => None,
    }
}

/// The type behind `f32`, `bf16` or `f16`.
pub fn named(name: &str) -> Option<Dtype> {
    match name {
        "f32" => Some(Dtype::F32),
        "bf16" => Some(Dtype::BF16),
        "f16" => Some(Dtype::F16),
        _ => None,
    }
}

/// What `config.json` calls it.
pub fn ecosystem_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::BF16 => "bfloat16",
        Dtype::F16 => "float16",
        _ => "float32",
    }
}

/// Appends little-endian numbers as f32, which holds all of them exactly. False, and nothing is
/// appended, for a type that weights do not have.
pub fn widen(dtype: Dtype, bytes: &[u8], out: &mut Vec<f32>) -> bool {
    match dtype {
        Dtype::F32 => out.extend(bytes.chunks_exact(4).map(f32_of)),
        Dtype::BF16 => out.extend(bytes.chunks_exact(2).map(bf16_of)),
        Dtype::F16 => out.extend(bytes.chunks_exact(2).map(f16_of)),
        _ => return false,
    }
    true
}

/// Are all numbers finite? Looks at the exponents alone, since a scan of every weight comes before
/// any of them is used.
pub fn all_finite(dtype: Dtype, bytes: &[u8]) -> bool {
    let all_ones = |mask: u16| {
        let words = bytes.chunks_exact(2);
        words.fold(false, |found, b| found | (u16::from_le_bytes([b[0], b[1]]) & mask == mask))
    };
    match dtype {
        Dtype::BF16 => !all_ones(0x7f80),
        Dtype::F16 => !all_ones(0x7c00),
        _ => {
            let words = bytes.chunks_exact(4);
            !words.fold(false, |found, b| found | !f32_of(b).is_finite())
        }
    }
}

/// Little-endian numbers of a narrower type, rounded to the nearest, ties to even. None where one
/// of them is too large for the type.
pub fn narrow(dtype: Dtype, values: &[f32]) -> Option<Vec<u8>> {
    let bytes = match dtype {
        Dtype::F32 => bytemuck::cast_slice(values).to_vec(),
        Dtype::BF16 => values.iter().flat_map(|x| to_bf16(*x).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|x| to_f16(*x).to_le_bytes()).collect(),
        _ => return None,
    };
    all_finite(dtype, &bytes).then_some(bytes)
}

fn f32_of(bytes: &[u8]) -> f32 {
    f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn bf16_of(bytes: &[u8]) -> f32 {
    f32::from_le_bytes([0, 0, bytes[0], bytes[1]])
}

fn f16_of(bytes: &[u8]) -> f32 {
    let bits = u32::from(u16::from_le_bytes([bytes[0], bytes[1]]));
    let sign = (bits & 0x8000) << 16;
    let (exponent, mantissa) = (bits >> 10 & 0x1f, bits & 0x3ff);
    let magnitude = match exponent {
        // Below 2^-14 numbers are multiples of 2^-24.
        0 => (mantissa as f32 * f32::from_bits(103 << 23)).to_bits(),
        31 => 0x7f80_0000 | mantissa << 13,
        _ => (exponent + 112) << 23 | mantissa << 13,
    };
    f32::from_bits(sign | magnitude)
}

fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    // A NaN whose payload is in the lower half alone would become infinite; it stays out of range.
    if x.is_nan() { (bits >> 16) as u16 | 0x40 } else { half_to_even(bits, 16) as u16 }
}

fn to_f16(x: f32) -> u16 {
    let (sign, magnitude) = ((x.to_bits() >> 16 & 0x8000) as u16, x.abs());
    // The first number that rounds to more than 65504; what is no number comes here too.
    if magnitude.is_nan() || magnitude >= 65520.0 {
        return sign | 0x7c00 | u16::from(x.is_nan());
    }
    if magnitude < f32::from_bits(113 << 23) {
        let steps = (f64::from(magnitude) * f64::from(1 << 24)).round_ties_even();
        return sign | steps as u16;
    }
    sign | half_to_even(magnitude.to_bits() - (112 << 23), 13) as u16
}

/// Drops the last `n` bits and rounds to the nearest, ties to even.
fn half_to_even(bits: u32, n: u32) -> u32 {
    let odd = bits >> n & 1;
    (bits + (1 << (n - 1)) - 1 + odd) >> n
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_narrow_number_comes_back() {
        for dtype in [Dtype::BF16, Dtype::F16] {
            for bits in 0..=u16::MAX {
                let bytes = bits.to_le_bytes();
                let mut wide = Vec::new();
                assert!(widen(dtype, &bytes, &mut wide));
                assert_eq!(all_finite(dtype, &bytes), wide[0].is_finite(), "{dtype:?} {bits:x}");
                let expected = wide[0].is_finite().then(|| bytes.to_vec());
                assert_eq!(narrow(dtype, &wide), expected, "{dtype:?} {bits:x}");
            }
        }
    }

    /// Value, its bits as bf16, its bits as f16.
    #[test]
    fn numbers_between_two_go_to_the_nearest_and_ties_to_even() {
        let table = [
            (1.0 + 2f32.powi(-9), 0x3f80, 0x3c02),
            (1.0 + 3.0 * 2f32.powi(-8), 0x3f82, 0x3c0c),
            (1.0 + 2f32.powi(-11), 0x3f80, 0x3c00),
            (1.0 + 3.0 * 2f32.powi(-11), 0x3f80, 0x3c02),
            (-3.0 * 2f32.powi(-25), 0xb3c0, 0x8002),
            (2f32.powi(-14) * (1.0 - 2f32.powi(-12)), 0x3880, 0x0400),
            (65519.0, 0x4780, 0x7bff),
        ];
        for (x, bf16, f16) in table {
            assert_eq!(to_bf16(x), bf16, "{x} as bf16");
            assert_eq!(to_f16(x), f16, "{x} as f16");
        }
        assert_eq!(narrow(Dtype::F16, &[65520.0]), None);
        assert_eq!(narrow(Dtype::BF16, &[f32::MAX]), None);
        assert_eq!(narrow(Dtype::BF16, &[f32::from_bits(0x7f80_0001)]), None);
    }
}
