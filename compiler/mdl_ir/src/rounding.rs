//! Rounding to bf16: to the nearest, and stochastically.
//!
//! A bf16 is the upper half of an f32, so both add something to the lower half and drop it. The
//! kernels compute the same bits.

/// Between streams of one seed; odd, so that no two of them share a seed.
pub const STREAM: u32 = 0x9E37_79B9;
/// Its bits are all set in what is not finite.
pub const EXPONENT: u32 = 0x7f80_0000;
/// Keeps a NaN whose payload lies in the lower half a NaN.
pub const QUIET: u32 = 0x0040_0000;
/// The multipliers of `mix`.
pub const MIX: [u32; 2] = [0x85eb_ca6b, 0xc2b2_ae35];

/// The bits of the nearest bf16, ties to even. A NaN stays one, and what is beyond the largest
/// becomes infinite.
pub fn bf16_nearest(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return upper(bits | QUIET);
    }
    upper(bits + 0x7fff + ((bits >> 16) & 1))
}

pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The most that the nearest bf16 is away from `x`: half a unit in the last of its eight bits.
pub fn bf16_error(x: f64) -> f64 {
    const SMALLEST_EXPONENT: i32 = -126;
    let exponent = if x == 0.0 { SMALLEST_EXPONENT } else { x.abs().log2().floor() as i32 };
    2f64.powi(exponent.max(SMALLEST_EXPONENT) - 8)
}

/// The bits of one of the two bf16 around `x`, with chances by distance, so that what is lost is
/// nothing on average. The number drawn is a hash of x and the seed, and of no index: how a tensor
/// is divided changes nothing. What is a bf16 stays as it is.
pub fn stochastic_round(x: f32, seed: u32, stream: u32) -> u16 {
    let bits = x.to_bits();
    if bits & EXPONENT == EXPONENT {
        return upper(if x.is_nan() { bits | QUIET } else { bits });
    }
    let random = mix(bits ^ mix(seed ^ stream.wrapping_mul(STREAM)));
    upper(bits + (random & 0xffff))
}

/// MurmurHash3's finaliser: each bit of the argument changes each bit of the result half the time.
pub fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(MIX[0]);
    x ^= x >> 13;
    x = x.wrapping_mul(MIX[1]);
    x ^ x >> 16
}

fn upper(bits: u32) -> u16 {
    (bits >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every bf16 with lower halves around nothing, a tie and the next one.
    fn patterns() -> impl Iterator<Item = f32> {
        const LOWER: [u32; 7] = [0, 1, 0x7fff, 0x8000, 0x8001, 0xfffe, 0xffff];
        let all = (0..=u16::MAX).flat_map(|upper| LOWER.map(|low| u32::from(upper) << 16 | low));
        all.map(f32::from_bits)
    }

    /// The bf16 on either side of a finite number, that towards zero first.
    fn around(x: f32) -> [u16; 2] {
        let down = upper(x.to_bits());
        [down, down + 1]
    }

    #[test]
    fn nearest_is_nearest_and_even_at_a_tie() {
        // Where the next bf16 would be infinite it stands for 2¹²⁸, as it does for rounding.
        let value = |bits: u16| {
            let x = bf16_to_f32(bits);
            if x.is_infinite() { f64::from(x.signum()) * 2f64.powi(128) } else { f64::from(x) }
        };
        for x in patterns().filter(|x| x.is_finite()) {
            let [down, up] = around(x);
            let [below, above] = [down, up].map(|bits| (value(bits) - f64::from(x)).abs());
            let got = bf16_nearest(x);
            let even = if down % 2 == 0 { down } else { up };
            let want = if below < above { down } else { up };
            assert_eq!(got, if below == above { even } else { want }, "{x:e}");
            assert!(below.min(above) <= bf16_error(x.into()), "{x:e}");
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        for x in patterns().filter(|x| !x.is_finite()) {
            for got in [bf16_nearest(x), stochastic_round(x, 7, 1)] {
                let got = bf16_to_f32(got);
                assert!(got == x || x.is_nan() && got.is_nan(), "{x} became {got}");
            }
        }
    }

    #[test]
    fn chance_takes_a_neighbour_and_leaves_a_bf16_alone() {
        for x in patterns().filter(|x| x.is_finite()) {
            for (seed, stream) in [(0, 0), (1, 2), (u32::MAX, 1)] {
                let got = stochastic_round(x, seed, stream);
                let [down, up] = around(x);
                let exact = x.to_bits() & 0xffff == 0;
                assert!(got == down || got == up && !exact, "{x:e} became {got:x}");
            }
        }
    }

    /// Of n independent draws with chance p, the number that go up is within five standard
    /// deviations of p·n in all but one case of a million; the seeds are fixed.
    #[test]
    fn chances_are_by_distance() {
        const DRAWS: u32 = 10_000;
        for (x, p) in [(1.0f32, 0x2000), (-3e-5, 0x8000), (7e20, 0xf000)] {
            let x = f32::from_bits(x.to_bits() & 0xffff_0000 | p);
            let p = f64::from(p) / 65536.0;
            for stream in 0..3 {
                let up = |seed: &u32| stochastic_round(x, *seed, stream) != upper(x.to_bits());
                let ups = (0..DRAWS).filter(up).count() as f64;
                let deviation = (f64::from(DRAWS) * p * (1.0 - p)).sqrt();
                assert!((ups - f64::from(DRAWS) * p).abs() < 5.0 * deviation, "{x}: {ups}");
            }
        }
    }

    /// Written out from the definition of MurmurHash3, so that no change of a constant passes.
    #[test]
    fn the_hash_is_murmurs() {
        assert_eq!([0, 1, 0xffff_ffff].map(mix), [0, 0x514e_28b7, 0x81f1_6f39]);
    }
}
