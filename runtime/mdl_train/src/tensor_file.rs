//! Writes a safetensors file, one tensor in memory at a time.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, Write};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

/// What the header says of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tensor<'a> {
    pub name: String,
    pub dtype: Dtype,
    pub shape: &'a [usize],
}

impl Tensor<'_> {
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// Writes these tensors; `values` gives the little-endian values of the one at an index.
pub(crate) fn write_tensors<'v>(
    out: &mut dyn Write,
    tensors: &[Tensor],
    mut values: impl FnMut(usize) -> io::Result<Cow<'v, [u8]>>,
) -> io::Result<()> {
    // Wide numbers come first, so that each tensor starts at a multiple of its numbers' width.
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    let widest_first = |i: &usize| (usize::MAX - tensors[*i].dtype.bitsize(), &tensors[*i].name);
    order.sort_by(|a, b| widest_first(a).cmp(&widest_first(b)));
    let mut end = 0;
    let infos = order.iter().map(|i| {
        let Tensor { name, dtype, shape } = &tensors[*i];
        let start = end;
        end += tensors[*i].bytes();
        let data_offsets = (start, end);
        (name.clone(), TensorInfo { dtype: *dtype, shape: shape.to_vec(), data_offsets })
    });
    // Readers of published models refuse a file that does not say whose layout it has.
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let header = Metadata::new(Some(format), infos.collect()).map_err(io::Error::other)?;
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for i in order {
        let values = values(i)?;
        if values.len() != tensors[i].bytes() {
            let message = format!("tensor `{}` has not the size of its shape", tensors[i].name);
            return Err(io::Error::other(message));
        }
        out.write_all(&values)?;
    }
    Ok(())
}
