//! Prints what contractions reach of the device's multiply-add peak.
use mdl_kernels::{Device, measure_fma_peak, measure_triad};
fn main() {
    for units in [1, 2] {
        let device = Device::cpu(Some(units));
        println!("{units} {:.1} GFLOP/s", measure_fma_peak(&device));
        println!("{units} {:.1} GB/s", measure_triad(&device));
    }
}
