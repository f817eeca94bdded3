//! Dense f64 tensors with named axes: the interpreter's values.

use crate::tensor_type::{Axis, Type};

/// Elements in the order of the type's axes, outermost first. Booleans are 0 and 1, ids are exact.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub ty: Type,
    pub data: Vec<f64>,
}

impl Tensor {
    pub fn new(ty: Type, data: Vec<f64>) -> Self {
        assert_eq!(ty.elements() as usize, data.len(), "as many elements as the type says");
        Tensor { ty, data }
    }

    pub fn zeros(ty: Type) -> Self {
        let data = vec![0.0; ty.elements() as usize];
        Tensor { ty, data }
    }

    /// Strides of this tensor along the given axes; 0 where it lacks one.
    pub fn strides_along(&self, axes: &[Axis]) -> Vec<usize> {
        let own = self.ty.strides();
        let stride = |a: &Axis| self.ty.index_of(a.name).map_or(0, |i| own[i] as usize);
        axes.iter().map(stride).collect()
    }

    /// The slice at `index` of the outermost axis.
    pub fn outer(&self, index: usize) -> Tensor {
        let ty = Type::new(self.ty.dtype, self.ty.axes[1..].to_vec());
        let n = ty.elements() as usize;
        Tensor { data: self.data[index * n..(index + 1) * n].to_vec(), ty }
    }
}

/// Calls `f` with the offsets of each strided operand at every index of `axes`, in the order of
/// memory.
pub fn walk<const N: usize>(
    axes: &[Axis],
    strides: [&[usize]; N],
    mut f: impl FnMut(usize, [usize; N]),
) {
    let total: usize = axes.iter().map(|a| a.size as usize).product();
    let mut index = vec![0usize; axes.len()];
    let mut offsets = [0usize; N];
    for flat in 0..total {
        f(flat, offsets);
        for d in (0..axes.len()).rev() {
            index[d] += 1;
            for (o, s) in offsets.iter_mut().zip(strides) {
                *o += s[d];
            }
            if index[d] < axes[d].size as usize {
                break;
            }
            for (o, s) in offsets.iter_mut().zip(strides) {
                *o -= s[d] * index[d];
            }
            index[d] = 0;
        }
    }
}
