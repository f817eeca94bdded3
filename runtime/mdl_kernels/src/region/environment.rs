//! What a region's instructions mean inside its kernels: addresses, row registers, accumulators.
//!
//! Everything here runs while a kernel is being expanded and emits code into a scope.

use super::plan::{Plan, PlanView, Reduction};
use crate::program::{Environment, Lanes, Registers, splat};
use crate::vector_io::{load_strided, store_strided};
use cubecl::intrinsic;
use cubecl::prelude::*;
use std::ops::Range;

pub(crate) type Index = NativeExpand<usize>;
type Buffers = SequenceExpand<Box<[f32]>>;

/// The buffers of a region beside their views.
pub(crate) struct Views<'a> {
    pub plan: &'a Plan,
    inputs: Vec<NativeExpand<Box<[f32]>>>,
    outputs: Vec<NativeExpand<Box<[f32]>>>,
}

impl<'a> Views<'a> {
    pub(crate) fn new(plan: &'a Plan, inputs: &Buffers, outputs: &Buffers) -> Self {
        let inputs = inputs.iter_cloned().collect();
        Views { plan, inputs, outputs: outputs.iter_cloned().collect() }
    }
}

/// Where the code being emitted stands: the index, and the element offset of each view at it.
#[derive(Clone)]
pub(crate) struct Place {
    index: Vec<Index>,
    inputs: Vec<Index>,
    outputs: Vec<Index>,
}

impl Place {
    /// Index 0 in all dims.
    pub(crate) fn origin(scope: &Scope, plan: &Plan) -> Place {
        let offset = |view: &PlanView| view.offset.into_expand(scope);
        Place {
            index: plan.dims.iter().map(|_| 0usize.into_expand(scope)).collect(),
            inputs: plan.inputs.iter().map(offset).collect(),
            outputs: plan.outputs.iter().map(offset).collect(),
        }
    }

    /// The place whose index over `dims` is the flat index `flat`, from one where it is 0.
    pub(crate) fn at(&self, scope: &Scope, plan: &Plan, dims: Range<usize>, flat: Index) -> Place {
        let mut place = self.clone();
        let mut rest = flat;
        for dim in dims.rev() {
            let size: Index = plan.dims[dim].into_expand(scope);
            let outermost = plan.dims[..dim].iter().all(|&size| size == 1);
            let i = if outermost { rest } else { rest.__expand_rem_method(scope, size) };
            rest = rest.__expand_div_method(scope, size);
            place.index[dim] = i;
            let ends = plan.inputs.iter().zip(&mut place.inputs);
            for (view, at) in ends.chain(plan.outputs.iter().zip(&mut place.outputs)) {
                *at = advance(scope, *at, i, view.strides[dim]);
            }
        }
        place
    }
}

fn advance(scope: &Scope, at: Index, i: Index, stride: usize) -> Index {
    if stride == 0 {
        return at;
    }
    let step = i.__expand_mul_method(scope, stride.into_expand(scope));
    at.__expand_add_method(scope, step)
}

/// Vectors that a reduction adds to, kept in registers.
pub(crate) struct Accumulators<N: Size> {
    slots: Vec<(usize, Reduction)>,
    cells: NativeExpand<Array<Vector<f32, N>>>,
}

impl<N: Size> Accumulators<N> {
    pub(crate) fn new(scope: &Scope, slots: Vec<(usize, Reduction)>) -> Self {
        let cells = Array::<Vector<f32, N>>::__expand_new(scope, slots.len().max(1));
        let this = Accumulators { slots, cells };
        this.reset(scope);
        this
    }

    pub(crate) fn reset(&self, scope: &Scope) {
        for (i, (_, reduction)) in self.slots.iter().enumerate() {
            let start = match reduction {
                Reduction::Sum => 0.0,
                Reduction::Max => f32::NEG_INFINITY,
            };
            set_cell::expand::<N>(scope, &mut self.cells.clone(), i, splat::<N>(scope, start));
        }
    }

    pub(crate) fn add(&self, scope: &Scope, register: usize, value: Lanes<N>) {
        let is_it = |slot: &(usize, Reduction)| slot.0 == register;
        let i = self.slots.iter().position(is_it).expect("invariant: a register of the phase");
        let old = get_cell::expand::<N>(scope, &self.cells, i);
        let new = match self.slots[i].1 {
            Reduction::Sum => plus::expand::<N>(scope, old, value),
            Reduction::Max => larger::expand::<N>(scope, old, value),
        };
        set_cell::expand::<N>(scope, &mut self.cells.clone(), i, new);
    }

    /// Register and vector of every slot.
    pub(crate) fn values(&self, scope: &Scope) -> Vec<(usize, Reduction, Lanes<N>)> {
        let value = |i| get_cell::expand::<N>(scope, &self.cells, i);
        let slots = self.slots.iter().enumerate();
        slots.map(|(i, &(register, reduction))| (register, reduction, value(i))).collect()
    }
}

/// One value of all lanes, combined pairwise so that the order is short and fixed.
pub(crate) fn across_lanes<N: Size>(
    scope: &Scope,
    reduction: Reduction,
    value: Lanes<N>,
) -> Lanes<Const<1>> {
    let lanes = N::__expand_value(scope);
    let mut parts: Vec<Lanes<Const<1>>> =
        (0..lanes).map(|i| lane::expand::<N>(scope, value, i)).collect();
    while parts.len() > 1 {
        let half = parts.len().div_ceil(2);
        let upper = parts.split_off(half);
        for (part, other) in parts.iter_mut().zip(upper) {
            *part = combine(scope, reduction, *part, other);
        }
    }
    parts[0]
}

/// The sum of all lanes, as part of a kernel.
#[cube]
#[allow(unused_variables)]
pub(crate) fn sum_lanes<N: Size>(x: Vector<f32, N>) -> f32 {
    intrinsic!(|scope| across_lanes::<N>(scope, Reduction::Sum, x).expand.into())
}

/// The largest of all lanes.
#[cube]
#[allow(unused_variables)]
pub(crate) fn max_lanes<N: Size>(x: Vector<f32, N>) -> f32 {
    intrinsic!(|scope| across_lanes::<N>(scope, Reduction::Max, x).expand.into())
}

pub(crate) fn combine<N: Size>(
    scope: &Scope,
    reduction: Reduction,
    a: Lanes<N>,
    b: Lanes<N>,
) -> Lanes<N> {
    match reduction {
        Reduction::Sum => plus::expand::<N>(scope, a, b),
        Reduction::Max => larger::expand::<N>(scope, a, b),
    }
}

/// Row registers as a walk reads them: one value a row, or one a column.
pub(crate) enum Rows<'a, N: Size> {
    Scalars(&'a Registers<Const<1>>),
    Vectors(&'a Registers<N>),
    None,
}

/// The meaning of instructions at `place`, with `column` (0 if none) in the last dim.
pub(crate) struct At<'a, N: Size> {
    pub views: &'a Views<'a>,
    pub place: &'a Place,
    pub column: Option<Index>,
    pub rows: Rows<'a, N>,
    pub sums: Option<&'a Accumulators<N>>,
}

impl<N: Size> At<'_, N> {
    fn element(&self, scope: &Scope, at: Index, stride: usize) -> Index {
        match self.column {
            Some(column) => advance(scope, at, column, stride),
            None => at,
        }
    }

    fn sums(&self) -> &Accumulators<N> {
        self.sums.expect("invariant: reductions are in `cols`")
    }
}

impl<N: Size> Environment<N> for At<'_, N> {
    fn load(&mut self, scope: &Scope, input: u16) -> Lanes<N> {
        let input = usize::from(input);
        let view = &self.views.plan.inputs[input];
        let at = self.element(scope, self.place.inputs[input], view.inner());
        let buffer = &self.views.inputs[input];
        load_strided::expand::<N>(scope, buffer, at, view.inner(), view.elem)
    }

    fn store(&mut self, scope: &Scope, output: u16, value: Lanes<N>) {
        let output = usize::from(output);
        let view = &self.views.plan.outputs[output];
        let at = self.element(scope, self.place.outputs[output], view.inner());
        let mut buffer = self.views.outputs[output].clone();
        store_strided::expand::<N>(scope, &mut buffer, at, value, view.inner(), view.elem);
    }

    fn index(&mut self, scope: &Scope, dim: u16) -> Lanes<N> {
        let plan = self.views.plan;
        let dim = plan.place[usize::from(dim)];
        match self.column {
            Some(column) if dim + 1 == plan.dims.len() => numbers_from::expand::<N>(scope, column),
            _ => number::expand::<N>(scope, self.place.index[dim]),
        }
    }

    fn row(&mut self, scope: &Scope, register: u16) -> Lanes<N> {
        match self.rows {
            Rows::Scalars(rows) => {
                let value = rows.get(register);
                Vector::<f32, N>::__expand_new(scope, value.expand.into())
            }
            Rows::Vectors(rows) => rows.get(register),
            Rows::None => panic!("invariant: row programs name row registers as operands"),
        }
    }

    fn sum(&mut self, scope: &Scope, register: u16, value: Lanes<N>) {
        self.sums().add(scope, usize::from(register), value);
    }

    fn max(&mut self, scope: &Scope, register: u16, value: Lanes<N>) {
        self.sums().add(scope, usize::from(register), value);
    }
}

#[cube]
fn get_cell<N: Size>(cells: &Array<Vector<f32, N>>, #[comptime] i: usize) -> Vector<f32, N> {
    cells[i]
}

#[cube]
fn set_cell<N: Size>(
    cells: &mut Array<Vector<f32, N>>,
    #[comptime] i: usize,
    value: Vector<f32, N>,
) {
    cells[i] = value;
}

#[cube]
fn plus<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>) -> Vector<f32, N> {
    a + b
}

#[cube]
fn larger<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>) -> Vector<f32, N> {
    max(a, b)
}

#[cube]
fn lane<N: Size>(value: Vector<f32, N>, #[comptime] i: usize) -> Vector<f32, Const<1>> {
    Vector::new(value.extract(i))
}

#[cube]
fn number<N: Size>(value: usize) -> Vector<f32, N> {
    Vector::new(f32::cast_from(value))
}

/// `first`, `first + 1`, …
#[cube]
fn numbers_from<N: Size>(first: usize) -> Vector<f32, N> {
    let mut lanes = Vector::<f32, N>::empty();
    #[unroll]
    for lane in 0..N::value() {
        lanes.insert(lane, f32::cast_from(lane));
    }
    lanes + number::<N>(first)
}
