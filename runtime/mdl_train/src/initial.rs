//! Initial values of parameters: functions of the seed, the stored name and the element alone.
//!
//! A parameter may be larger than what is left of memory, so its values are made part by part. As
//! long as its formula works on each element by itself, a part is that formula on fewer elements,
//! and parts are made side by side.

use mdl_ir::graph::{Body, Param};
use mdl_ir::interp::{Env, mix, run};
use mdl_ir::op::{Class, Op};
use mdl_ir::tensor_type::{Axis, Type};
use std::ops::Range;

/// Elements of a part: few enough that all values of a formula stay in a core's cache.
const PART: u64 = 1 << 14;
/// Parts that are made before they are written.
const PARTS: u64 = 64;

/// All initial values of a parameter.
pub fn initial(param: &Param, seed: u64) -> Vec<f32> {
    let mut all = Vec::with_capacity(param.ty.elements() as usize);
    each_part(param, seed, |_, values| all.extend_from_slice(values));
    all
}

/// Calls `write` with an element's number and the values from there on, in order.
pub fn each_part(param: &Param, seed: u64, mut write: impl FnMut(u64, &[f32])) {
    for (name, range) in param.stored_tensors() {
        let random_key = name.bytes().fold(mix(seed), |key, b| mix(key ^ u64::from(b)));
        let Some(body) = &param.init else {
            for part in parts(&range) {
                write(part.start, &vec![0.0; (part.end - part.start) as usize]);
            }
            continue;
        };
        if !is_elementwise(body) {
            let env = Env { random_key, ..Env::default() };
            write(range.start, &narrowed(&run(body, Vec::new(), &env)[0].data));
            continue;
        }
        let made = |part: &Range<u64>| {
            let env = Env { random_key, first: part.start - range.start };
            let body = of_elements(body, part.end - part.start);
            narrowed(&run(&body, Vec::new(), &env)[0].data)
        };
        let all: Vec<Range<u64>> = parts(&range).collect();
        for some in all.chunks(PARTS as usize) {
            for (part, values) in some.iter().zip(side_by_side(some, &made)) {
                write(part.start, &values);
            }
        }
    }
}

fn parts(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let end = range.end;
    range.clone().step_by(PART as usize).map(move |from| from..(from + PART).min(end))
}

fn narrowed(values: &[f64]) -> Vec<f32> {
    values.iter().map(|x| *x as f32).collect()
}

/// What `made` gives for each part, on all cores.
fn side_by_side(
    parts: &[Range<u64>],
    made: &(impl Fn(&Range<u64>) -> Vec<f32> + Sync),
) -> Vec<Vec<f32>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let share = parts.len().div_ceil(cores).max(1);
    std::thread::scope(|scope| {
        let shares = parts.chunks(share);
        let work =
            shares.map(|some| scope.spawn(move || some.iter().map(made).collect::<Vec<_>>()));
        let work: Vec<_> = work.collect();
        let done = work.into_iter().flat_map(|w| w.join().expect("the interpreter is total"));
        done.collect()
    })
}

/// Does a formula make each element from what that element alone has?
fn is_elementwise(body: &Body) -> bool {
    let all = &body.ty(body.outputs[0]).axes;
    let fits = |ty: &Type| ty.axes.is_empty() || ty.axes == *all;
    let simple = |op: &Op| {
        let class = matches!(op.class(), Class::Source | Class::Elementwise);
        class && !matches!(op, Op::Position(_))
    };
    !all.is_empty()
        && body.values.iter().all(|v| fits(&v.ty))
        && body.nodes.iter().all(|n| simple(&n.op))
}

/// An elementwise formula on this many elements of one axis.
fn of_elements(body: &Body, count: u64) -> Body {
    let axes = vec![Axis::new("element", count)];
    let mut body = body.clone();
    for value in body.values.iter_mut().filter(|v| !v.ty.axes.is_empty()) {
        value.ty.axes = axes.clone();
    }
    for node in &mut body.nodes {
        match &mut node.op {
            Op::Random { axes: own, .. } | Op::Broadcast { axes: own } => *own = axes.clone(),
            Op::Reorder { axes: own } => *own = vec![axes[0].name],
            _ => {}
        }
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;

    #[test]
    fn parts_are_those_of_the_whole() {
        let mut model = Model::open("llama", Some("tiny")).expect("an embedded preset");
        let mut seen = 0;
        for param in model.params().expect("checks") {
            let whole: Vec<f32> = param
                .stored_tensors()
                .iter()
                .flat_map(|(name, _)| {
                    let key = name.bytes().fold(mix(7), |key, b| mix(key ^ u64::from(b)));
                    let env = Env { random_key: key, ..Env::default() };
                    let body = param.init.as_ref().expect("every parameter has a formula");
                    narrowed(&run(body, Vec::new(), &env)[0].data)
                })
                .collect();
            assert_eq!(initial(&param, 7), whole, "{}", param.name);
            seen += usize::from(param.ty.elements() > PART);
        }
        assert!(seen > 0, "some parameter has several parts");
    }
}
