//! Element types, named axes and tensor types with concrete sizes.

use mdl_symbol::Symbol;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DType {
    F32,
    I32,
    Bool,
    /// Storage alone: what reads it computes in f32.
    Bf16,
}

impl DType {
    pub const ALL: [DType; 4] = [DType::F32, DType::I32, DType::Bool, DType::Bf16];

    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::I32 => "i32",
            DType::Bool => "bool",
            DType::Bf16 => "bf16",
        }
    }

    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.name() == name)
    }

    /// Bytes of one element on a device.
    pub fn bytes(self) -> u64 {
        match self {
            DType::F32 | DType::I32 | DType::Bool => 4,
            DType::Bf16 => 2,
        }
    }

    /// Numbers with a gradient, however many bits they are stored in.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::Bf16)
    }

    /// What comes of computing with it: arithmetic on floats is f32.
    pub fn computed(self) -> DType {
        if self == DType::Bf16 { DType::F32 } else { self }
    }
}

/// An axis is known by its name; within a body one name may have several sizes only in different
/// values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Axis {
    pub name: Symbol,
    pub size: u64,
}

impl Axis {
    pub fn new(name: impl Into<Symbol>, size: u64) -> Self {
        Axis { name: name.into(), size }
    }
}

/// Element type and axes. The order of the axes is the order in memory, outermost first; it means
/// nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Type {
    pub dtype: DType,
    pub axes: Vec<Axis>,
}

impl Type {
    pub fn new(dtype: DType, axes: Vec<Axis>) -> Self {
        Type { dtype, axes }
    }

    pub fn scalar(dtype: DType) -> Self {
        Type { dtype, axes: Vec::new() }
    }

    /// The same axes with other elements.
    pub fn of(&self, dtype: DType) -> Self {
        Type { dtype, axes: self.axes.clone() }
    }

    pub fn is_float(&self) -> bool {
        self.dtype.is_float()
    }

    pub fn elements(&self) -> u64 {
        self.axes.iter().map(|a| a.size).product()
    }

    pub fn bytes(&self) -> u64 {
        self.elements() * self.dtype.bytes()
    }

    pub fn axis(&self, name: Symbol) -> Option<&Axis> {
        self.axes.iter().find(|a| a.name == name)
    }

    pub fn index_of(&self, name: Symbol) -> Option<usize> {
        self.axes.iter().position(|a| a.name == name)
    }

    pub fn has(&self, name: Symbol) -> bool {
        self.axis(name).is_some()
    }

    /// Strides of the dense layout, in elements.
    pub fn strides(&self) -> Vec<u64> {
        let mut strides = vec![1; self.axes.len()];
        for i in (0..self.axes.len().saturating_sub(1)).rev() {
            strides[i] = strides[i + 1] * self.axes[i + 1].size;
        }
        strides
    }

    /// The same axes in any order.
    pub fn same_axes(&self, other: &Type) -> bool {
        self.axes.len() == other.axes.len() && self.axes.iter().all(|a| other.axes.contains(a))
    }

    /// The type without these axes.
    pub fn without(&self, names: &[Symbol]) -> Type {
        let axes = self.axes.iter().filter(|a| !names.contains(&a.name)).copied().collect();
        Type { dtype: self.dtype, axes }
    }

    /// With one more axis in front, as a repeated region stacks its values.
    pub fn stacked(&self, axis: Axis) -> Type {
        let mut axes = vec![axis];
        axes.extend(&self.axes);
        Type { dtype: self.dtype, axes }
    }
}

impl std::fmt::Display for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}[", self.dtype.name())?;
        for (i, axis) in self.axes.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{}={}", axis.name, axis.size)?;
        }
        write!(f, "]")
    }
}
