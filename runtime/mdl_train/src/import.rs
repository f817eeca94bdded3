//! Whether the tensors of a checkpoint are a model's weights, and reading them one at a time.
//!
//! Names, shapes, types and values are all looked at before the first value is handed out, so that
//! nothing is ever half loaded. Reading holds one tensor in memory beside where it goes.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use mdl_ir::graph::{InputRole, Param};
use mdl_ir::tensor_type::Type;

use crate::floats::{all_finite, widen, width};
use crate::machine::Machine;
use crate::weights::{Stored, Weights, WeightsError};

/// How many differences a message shows.
const SHOWN: usize = 8;

/// One thing in which a checkpoint is not a model's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    Missing {
        name: String,
        wanted: Type,
    },
    Extra {
        name: String,
        shape: Vec<usize>,
    },
    Shape {
        name: String,
        found: Vec<usize>,
        wanted: Type,
    },
    Dtype {
        name: String,
        dtype: String,
    },
    /// Two names of one weight, with different values.
    Tied {
        name: String,
        other: String,
    },
    NotFinite {
        name: String,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { name, wanted } => {
                write!(f, "`{name}` is missing; the model has {wanted}")
            }
            Self::Extra { name, shape } => {
                write!(f, "`{name}` with shape {shape:?} is not in the model")
            }
            Self::Shape { name, found, wanted } => {
                write!(f, "`{name}` has shape {found:?}; the model has {wanted}")
            }
            Self::Dtype { name, dtype } => {
                write!(f, "`{name}` is {dtype}; convert it to F32, BF16 or F16")
            }
            Self::Tied { name, other } => write!(
                f,
                "`{name}` and `{other}` are one weight of the model, and have different values; \
                 is `tie_word_embeddings` wrong in config.json?"
            ),
            Self::NotFinite { name } => write!(f, "`{name}` has a NaN or an infinite value"),
        }
    }
}

/// The first differences, one on each line.
pub(crate) fn listed(differences: &[Difference]) -> String {
    let mut lines: String = differences.iter().take(SHOWN).map(|d| format!("\n  {d}")).collect();
    if differences.len() > SHOWN {
        lines += &format!("\n  and {} more", differences.len() - SHOWN);
    }
    lines
}

/// Where a tensor of a checkpoint goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the parameter.
    pub param: usize,
    /// Elements of the stacked parameter.
    pub range: Range<u64>,
    /// The parameter's own name for it.
    pub name: String,
    /// The name that the checkpoint has, which differs for a tied weight.
    pub found: String,
}

/// All weights of a model in a checkpoint.
#[derive(Debug)]
pub struct ModelTensors<'w> {
    weights: &'w Weights,
    pub places: Vec<Place>,
}

impl<'w> ModelTensors<'w> {
    /// Every tensor of every parameter, if the checkpoint holds these and no others, all finite.
    pub fn find(weights: &'w Weights, params: &[Param]) -> Result<Self, WeightsError> {
        let (places, differences) = match_up(weights, params);
        let path = weights.path().display().to_string();
        if !differences.is_empty() {
            return Err(WeightsError::Differs { path, differences });
        }
        let differences = not_finite(weights, &places);
        if !differences.is_empty() {
            return Err(WeightsError::NotFinite { path, differences });
        }
        Ok(ModelTensors { weights, places })
    }

    /// A tensor as it lies in the checkpoint.
    pub fn stored(&self, place: &Place) -> Stored<'w> {
        self.weights.stored(&place.found).expect("invariant: places are of this checkpoint")
    }

    /// Hands out one tensor after the other: where it goes and its values, row-major.
    pub fn each(&self, mut take: impl FnMut(&Place, &[f32])) {
        let mut values = Vec::new();
        for place in &self.places {
            let tensor = self.stored(place);
            values.clear();
            widen(tensor.dtype, tensor.bytes, &mut values);
            take(place, &values);
        }
    }
}

/// Everything in which a checkpoint differs from a model with these parameters.
pub fn differences(weights: &Weights, params: &[Param]) -> Vec<Difference> {
    let (places, mut found) = match_up(weights, params);
    found.extend(not_finite(weights, &places));
    found
}

/// Writes a checkpoint's weights to a machine, or nothing at all where one of them is wrong.
pub fn load(machine: &Machine, weights: &Weights, params: &[Param]) -> Result<(), WeightsError> {
    ModelTensors::find(weights, params)?.each(|place, values| {
        machine.write_range(&InputRole::Param(place.param), place.range.start, values);
    });
    Ok(())
}

/// Places of the tensors that fit, and what does not.
fn match_up(weights: &Weights, params: &[Param]) -> (Vec<Place>, Vec<Difference>) {
    let (mut places, mut wrong) = (Vec::new(), Vec::new());
    let mut known = BTreeSet::new();
    for (p, param) in params.iter().enumerate() {
        let wanted = param.tensor_type();
        let names: Vec<Vec<(String, Range<u64>)>> = all_names(param).collect();
        for (i, (name, range)) in names[0].iter().enumerate() {
            let present: Vec<(&str, Stored)> = names
                .iter()
                .filter_map(|of| Some((of[i].0.as_str(), weights.stored(&of[i].0)?)))
                .collect();
            let Some(((first, tensor), others)) = present.split_first() else {
                wrong.push(Difference::Missing { name: name.clone(), wanted: wanted.clone() });
                continue;
            };
            known.extend(present.iter().map(|(name, _)| name.to_string()));
            wrong.extend(misfit(first, tensor, &wanted));
            let unlike = others.iter().filter(|(_, other)| !same_values(tensor, other));
            wrong.extend(unlike.map(|(other, _)| Difference::Tied {
                name: first.to_string(),
                other: other.to_string(),
            }));
            let (name, found) = (name.clone(), first.to_string());
            places.push(Place { param: p, range: range.clone(), name, found });
        }
    }
    // Rotary frequencies follow from the configuration; checkpoints of older tools hold them too.
    let extra = weights
        .names()
        .filter(|name| !known.contains(*name) && !name.ends_with("rotary_emb.inv_freq"));
    wrong.extend(extra.map(|name| Difference::Extra {
        name: name.to_owned(),
        shape: weights.shape(name).unwrap_or_default().to_vec(),
    }));
    (places, wrong)
}

/// The names of a parameter's tensors, under its own name and under those of its other members.
fn all_names(param: &Param) -> impl Iterator<Item = Vec<(String, Range<u64>)>> {
    let stored = std::iter::once(&param.stored).chain(&param.also_stored);
    stored.map(|name| Param { stored: name.clone(), ..param.clone() }.stored_tensors())
}

fn misfit(name: &str, tensor: &Stored, wanted: &Type) -> Option<Difference> {
    let name = name.to_owned();
    if !shapes_agree(tensor.shape, wanted) {
        let (found, wanted) = (tensor.shape.to_vec(), wanted.clone());
        return Some(Difference::Shape { name, found, wanted });
    }
    match width(tensor.dtype) {
        Some(_) => None,
        None => Some(Difference::Dtype { name, dtype: format!("{:?}", tensor.dtype) }),
    }
}

fn same_values(a: &Stored, b: &Stored) -> bool {
    if a.dtype == b.dtype {
        return a.bytes == b.bytes;
    }
    let wide = |tensor: &Stored| {
        let mut values = Vec::new();
        widen(tensor.dtype, tensor.bytes, &mut values);
        values
    };
    wide(a) == wide(b)
}

fn not_finite(weights: &Weights, places: &[Place]) -> Vec<Difference> {
    let is_wrong = |place: &&Place| {
        let tensor = weights.stored(&place.found);
        tensor.is_some_and(|t| width(t.dtype).is_some() && !all_finite(t.dtype, t.bytes))
    };
    let wrong = places.iter().filter(is_wrong);
    wrong.map(|place| Difference::NotFinite { name: place.found.clone() }).collect()
}

/// Does a stored shape merge adjacent axes of the type, and nothing else?
pub fn shapes_agree(shape: &[usize], ty: &Type) -> bool {
    let mut axes = ty.axes.iter().map(|a| a.size);
    for dim in shape {
        let mut product = 1u64;
        while product < *dim as u64 {
            let Some(size) = axes.next() else {
                return false;
            };
            product = product.saturating_mul(size);
        }
        if product != *dim as u64 {
            return false;
        }
    }
    axes.all(|size| size == 1)
}
