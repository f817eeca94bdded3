//! One value of all units of a cube, through shared memory.

use crate::region::plan::Reduction;
use cubecl::prelude::*;

/// Combines the values of the units `lane`, `lane + lanes`, … of a cube, pairwise in a fixed order;
/// every unit gets the result of its lane. `scratch` has an element for each unit.
#[cube]
pub(crate) fn across_units(
    value: f32,
    scratch: &mut [f32],
    #[comptime] units: usize,
    #[comptime] lanes: usize,
    #[comptime] reduction: Reduction,
) -> f32 {
    let unit = UNIT_POS as usize;
    sync_cube();
    scratch[unit] = value;
    sync_cube();
    #[unroll]
    for level in 0..comptime!((units / lanes).trailing_zeros() as usize) {
        let half = comptime!(units >> (level + 1));
        if unit < half {
            let other = scratch[unit + half];
            if comptime!(reduction == Reduction::Sum) {
                scratch[unit] += other;
            } else {
                let old = scratch[unit];
                scratch[unit] = max(old, other);
            }
        }
        sync_cube();
    }
    scratch[unit % lanes]
}
