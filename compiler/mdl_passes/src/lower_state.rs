//! The optimizer step over a state that is kept in the host's memory: chunk by chunk, each one
//! brought to the device, worked on, and sent back while the next one is computed.

use crate::executable::Space;
use crate::layout::{Loc, Turn, aligned};
use crate::lower::{Access, Done, Lowering, access};
use crate::lower_kernel::adamw_args;
use crate::region::elem;
use mdl_ir::kernel::{AdamWSpec, KernelSpec, SUM_CHUNK, SumOfSquaresSpec};
use mdl_ir::tensor_type::{Axis, DType, Type};

/// Chunks of a range, where they are not larger than `LARGEST`: the slots then take an eighth of
/// what the range would.
const CHUNKS: u64 = 64;

/// Elements of a chunk at most: 4 MiB of f32, enough that a copy costs more than its launch.
const LARGEST: u64 = 1 << 20;

/// Loops that together go over a range: elements of a chunk, how many of them, and from which
/// element on. Chunks but for the last one are multiples of `unit`.
pub(crate) fn loops(len: u64, unit: u64) -> Vec<(u64, u64, u64)> {
    let chunk = len.div_ceil(CHUNKS).next_multiple_of(unit).min(LARGEST);
    let (whole, rest) = (len / chunk, len % chunk);
    let both = [(chunk, whole, 0), (rest, 1, whole * chunk)];
    both.into_iter().filter(|(len, count, _)| len * count > 0).collect()
}

/// The chunk of a range that an iteration has.
pub(crate) fn chunk(range: &Access, len: u64, from: u64) -> Access {
    let turn = Some(Turn { stride: len, start: 0, step: 1, slots: 0 });
    let (base, dtype) = (range.base + from, range.dtype);
    Access { loc: Loc { turn, ..range.loc.clone() }, base, elements: len, dtype }
}

impl Lowering {
    /// The sum of squares of a range in the host's memory, to the bit that of one launch.
    pub(crate) fn squares_in_chunks(
        &mut self,
        name: &str,
        range: &Access,
        to: &Access,
        flops: u64,
    ) -> Done<()> {
        let pair = Type::new(DType::F32, vec![Axis::new("pair", 2)]);
        let sum = self.fresh(name, &pair);
        self.zeros(name, &pair, &sum)?;
        let sum = access(&sum, &pair);
        for (len, count, from) in loops(range.elements, SUM_CHUNK) {
            let slots = self.slots("gradient", len, range.dtype);
            let begin = self.open_loop();
            self.transfer_launch("gradient.device", [chunk(range, len, from), slots.clone()], 1);
            let spec = KernelSpec::MoreSquares(SumOfSquaresSpec { len, elem: elem(range.dtype) });
            self.launch(name, spec, &[slots, sum.clone()], flops * len / range.elements);
            self.close_loop(count, begin)?;
        }
        let scalar = Type::scalar(DType::F32);
        let sum = Loc { strides: Vec::new(), ..sum.loc };
        self.copy(name, &scalar, &sum, &Loc { strides: Vec::new(), ..to.loc.clone() })
    }

    /// AdamW on a range of the state, of which all sections are in the host's memory.
    pub(crate) fn adamw_in_chunks(
        &mut self,
        spec: &AdamWSpec,
        state: &[Access],
        numbers: &[Access],
        flops: u64,
    ) -> Done<()> {
        const NAMES: [&str; 5] = ["parameter", "gradient", "moment1", "moment2", "master"];
        let unit = state.iter().map(|section| aligned(section.dtype)).max().unwrap_or(1);
        for (len, count, from) in loops(spec.len, unit) {
            let chunks: Vec<Access> = state.iter().map(|range| chunk(range, len, from)).collect();
            // A gradient that was made just before is on the device already.
            let away =
                |low: &Lowering, range: &Access| low.buffers[range.loc.buffer].space == Space::Host;
            let slots: Vec<Access> = chunks
                .iter()
                .zip(NAMES)
                .map(|(c, name)| match away(self, c) {
                    true => self.slots(name, len, c.dtype),
                    false => c.clone(),
                })
                .collect();
            let begin = self.open_loop();
            for ((chunk, slot), name) in chunks.iter().zip(&slots).zip(NAMES) {
                if away(self, chunk) {
                    let both = [chunk.clone(), slot.clone()];
                    self.transfer_launch(&format!("{name}.device"), both, 1);
                }
            }
            let launched = KernelSpec::AdamW(AdamWSpec { len, ..spec.clone() });
            let args = adamw_args(&slots, numbers);
            self.launch("adamw", launched, &args, flops * len / spec.len);
            for k in (0..state.len()).filter(|k| *k != 1) {
                let both = [slots[k].clone(), chunks[k].clone()];
                self.transfer_launch(&format!("{}.host", NAMES[k]), both, 0);
            }
            self.close_loop(count, begin)?;
        }
        Ok(())
    }
}
