//! Where a value lies while a graph is lowered: a buffer, an offset and a stride for each axis.

use mdl_ir::op::Op;
use mdl_ir::tensor_type::{Axis, DType, Type};
use mdl_symbol::Symbol;

/// Buffers and slices start at multiples of this many bytes: the coarsest binding offset of any
/// device.
pub const ALIGNMENT: u64 = 256;

/// The same in elements.
pub fn aligned(dtype: DType) -> u64 {
    ALIGNMENT / dtype.bytes()
}

/// A slot of a buffer that changes with the iteration, in elements. See `executable::Index`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Turn {
    pub stride: u64,
    pub start: i64,
    pub step: i64,
    pub slots: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Loc {
    pub buffer: usize,
    /// Elements from the start of the buffer (or of the iteration's slot).
    pub offset: u64,
    /// One for each axis of the value's type.
    pub strides: Vec<u64>,
    pub turn: Option<Turn>,
}

impl Loc {
    pub fn dense(buffer: usize, ty: &Type) -> Loc {
        Loc { buffer, offset: 0, strides: ty.strides(), turn: None }
    }

    /// Is this where a dense tensor from the start of the slot would lie?
    pub fn is_dense(&self, ty: &Type) -> bool {
        let fits = |((s, d), a): ((&u64, &u64), &Axis)| s == d || a.size == 1;
        self.offset == 0 && self.strides.iter().zip(&ty.strides()).zip(&ty.axes).all(fits)
    }

    /// The stride along an axis by name; 0 where the value lacks it.
    pub fn stride(&self, ty: &Type, axis: Symbol) -> u64 {
        ty.index_of(axis).map_or(0, |i| self.strides[i])
    }
}

/// What an iteration sees of a stacked value.
pub fn slice_type(stacked: &Type) -> Type {
    Type::new(stacked.dtype, stacked.axes[1..].to_vec())
}

/// Elements from one slice of a stacked value to the next.
pub fn slice_stride(slice: &Type) -> u64 {
    slice.elements().next_multiple_of(aligned(slice.dtype))
}

/// Bytes of this many slices.
pub fn slice_bytes(count: u64, slice: &Type) -> u64 {
    count * slice_stride(slice) * slice.dtype.bytes()
}

/// Parts of a slice that are summed up by themselves for the gradient norm, so that its bits are
/// the same however the slice is divided: a rank has some whole parts, or with more ranks one.
const PARTS: u64 = 8;

/// Elements of a rank's piece of a slice of the state, which is filled up to as many equal parts.
pub fn piece(slice: &Type, pieces: u64) -> u64 {
    let unit = PARTS.max(pieces) * (ALIGNMENT / slice.dtype.bytes());
    slice.elements().next_multiple_of(unit) / pieces
}

/// Parts that a piece has.
pub fn parts_of_a_piece(pieces: u64) -> u64 {
    PARTS.max(pieces) / pieces
}

/// Location of a view's result, from that of its argument; None where the memory does not allow the
/// view.
pub fn through(op: &Op, from: &Loc, arg: &Type) -> Option<Loc> {
    let mut loc = from.clone();
    match op {
        Op::Rename { .. } => {}
        Op::Slice { axis, start, .. } => {
            loc.offset += start * loc.strides[arg.index_of(*axis)?];
        }
        Op::Split { axis, into } => {
            let at = arg.index_of(*axis)?;
            let inner = inner_strides(into, loc.strides[at]);
            loc.strides.splice(at..=at, inner);
        }
        Op::Merge { axes, .. } => {
            let at = arg.index_of(*axes.first()?)?;
            let last = at + axes.len() - 1;
            collapsed(&arg.axes[at..=last], &loc.strides[at..=last])?;
            let stride = loc.strides[last];
            loc.strides.splice(at..=last, [stride]);
        }
        _ => return None,
    }
    Some(loc)
}

/// Location of a view's argument, so that its result lies at `to`: the reverse of `through`.
pub fn back(op: &Op, to: &Loc, arg: &Type, result: &Type) -> Option<Loc> {
    match op {
        Op::Rename { .. } => Some(to.clone()),
        Op::Split { axis, into } => {
            let names: Vec<Symbol> = into.iter().map(|a| a.name).collect();
            through(&Op::Merge { axes: names, into: *axis }, to, result)
        }
        Op::Merge { axes, into } => {
            let parts = axes.iter().filter_map(|a| arg.axis(*a).copied()).collect();
            through(&Op::Split { axis: *into, into: parts }, to, result)
        }
        _ => None,
    }
}

fn inner_strides(axes: &[Axis], innermost: u64) -> Vec<u64> {
    let mut strides = vec![innermost; axes.len()];
    for i in (0..axes.len().saturating_sub(1)).rev() {
        strides[i] = strides[i + 1] * axes[i + 1].size;
    }
    strides
}

/// Has a dense value of this type one stride along each of these groups of axes?
pub fn has_one_stride(ty: &Type, groups: &[&[Axis]]) -> bool {
    let own = ty.strides();
    let stride = |axis: &Axis| ty.index_of(axis.name).map_or(0, |at| own[at]);
    groups.iter().all(|axes| {
        let strides: Vec<u64> = axes.iter().map(stride).collect();
        collapsed(axes, &strides).is_some()
    })
}

/// A size, a stride or an offset as kernels have them.
pub fn word(elements: u64) -> Result<u32, String> {
    let message = |_| format!("kernels count in 32 bits, and {elements} elements are more");
    u32::try_from(elements).map_err(message)
}

/// The stride along so many indices, of which nothing depends on that of one.
pub fn stride_word(indices: u64, stride: u64) -> Result<u32, String> {
    if indices == 1 { Ok(stride as u32) } else { word(stride) }
}

/// The one stride that walks these axes as a single one, if there is one. Broadcast axes walk with
/// 0.
pub fn collapsed(axes: &[Axis], strides: &[u64]) -> Option<u64> {
    let real: Vec<(u64, u64)> =
        axes.iter().zip(strides).filter(|(a, _)| a.size != 1).map(|(a, s)| (a.size, *s)).collect();
    let Some(last) = real.last() else {
        return Some(strides.last().copied().unwrap_or(0));
    };
    if real.iter().all(|(_, s)| *s == 0) {
        return Some(0);
    }
    let fits = |w: &[(u64, u64)]| w[0].1 == w[1].1 * w[1].0;
    (last.1 != 0 && real.windows(2).all(fits)).then_some(last.1)
}

#[cfg(test)]
mod tests {
    use super::{stride_word, word};

    #[test]
    fn what_kernels_cannot_count_is_refused() {
        assert_eq!(word(u32::MAX.into()), Ok(u32::MAX));
        assert!(word(1 << 32).is_err_and(|e| e.contains("4294967296 elements")));
        assert!(stride_word(2, 1 << 32).is_err());
        assert!(stride_word(1, 1 << 32).is_ok());
    }
}
