//! How this machine multiplies bf16 by bf16.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Instructions for contractions whose operands are both bf16. Sums are f32 in each case, but they
/// are rounded in another order, so results differ in the last bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Products {
    /// Those of f32, on operands that are widened while they are packed.
    Widened,
    /// AVX-512's `vdpbf16ps`: vectors of pairs.
    Vectors,
    /// AMX's `tdpbf16ps`: tiles of pairs.
    Tiles,
}

impl fmt::Display for Products {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Products::Widened => "widened",
            Products::Vectors => "vectors",
            Products::Tiles => "tiles",
        })
    }
}

impl Products {
    /// Whether the machine has these instructions, and this process may use them.
    pub fn available(self) -> bool {
        match self {
            Products::Widened => true,
            Products::Vectors => machine::has_vectors(),
            Products::Tiles => machine::has_tiles(),
        }
    }

    /// Steps of k in one word of four bytes.
    pub(crate) fn steps_per_word(self) -> usize {
        match self {
            Products::Widened => 1,
            Products::Vectors | Products::Tiles => 2,
        }
    }

    /// The fastest that there are. Intel's cores take vectors of pairs at less than half the rate
    /// of multiply-adds of f32, which makes widening the faster way.
    pub(crate) fn fastest() -> Products {
        if Products::Tiles.available() {
            Products::Tiles
        } else if machine::is_intel() || !Products::Vectors.available() {
            Products::Widened
        } else {
            Products::Vectors
        }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod machine {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    use std::sync::OnceLock;

    pub(super) fn is_intel() -> bool {
        let name = __cpuid(0);
        [name.ebx, name.edx, name.ecx].map(u32::to_le_bytes).concat() == *b"GenuineIntel"
    }

    pub(super) fn has_vectors() -> bool {
        is_x86_feature_detected!("avx512bf16")
    }

    /// Tiles are many registers to save, so a process has to ask for them once.
    pub(super) fn has_tiles() -> bool {
        static GRANTED: OnceLock<bool> = OnceLock::new();
        const BF16: u32 = 1 << 22;
        const TILES: u32 = 1 << 24;
        *GRANTED.get_or_init(|| {
            // What tiles give is rounded to bf16 by the vectors' instruction.
            let known = has_vectors() && is_x86_feature_detected!("avx512bw");
            known && __cpuid_count(7, 0).edx & (BF16 | TILES) == BF16 | TILES && ask_for_tiles()
        })
    }

    /// `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`, for all threads of the process.
    fn ask_for_tiles() -> bool {
        const ARCH_PRCTL: i64 = 158;
        const REQUEST_PERMISSION: i64 = 0x1023;
        const TILE_DATA: i64 = 18;
        let mut result = ARCH_PRCTL;
        // SAFETY: the call takes two numbers and touches no memory of this process.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") result,
                in("rdi") REQUEST_PERMISSION,
                in("rsi") TILE_DATA,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        result == 0
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod machine {
    pub(super) fn is_intel() -> bool {
        false
    }

    pub(super) fn has_vectors() -> bool {
        false
    }

    pub(super) fn has_tiles() -> bool {
        false
    }
}
