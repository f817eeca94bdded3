//! Operations on values of the innermost frame's body: nodes of a graph, or what a sketch keeps.

use crate::elaborate::{Elaborator, MAX_TENSOR_BYTES, place};
use crate::frame::Made;
use crate::shape;
use crate::size::Size;
use crate::sketch::Sketch;
use crate::value::{Eval, Reported, SymAxis, TensorVal};
use crate::work::OPERATION;
use mdl_ir::graph::ValueId;
use mdl_ir::infer::MAX_AXES;
use mdl_ir::op::Op;
use mdl_ir::tensor_type::{Axis, Type};
use mdl_syntax::diag::Diagnostic;
use mdl_syntax::span::Span;

impl Elaborator<'_> {
    /// The results of a region or a call in a sketch: of each is only known that all of what its
    /// body's outputs depend on may be in it. `args` are the body's inputs with what they are here.
    pub fn sketched(
        &mut self,
        body: &Sketch,
        outputs: &[ValueId],
        args: impl Iterator<Item = (ValueId, ValueId)>,
    ) -> Vec<ValueId> {
        let live = body.live(outputs.iter().copied());
        let needed: Vec<ValueId> =
            args.filter(|(inner, _)| live[inner.index()]).map(|(_, outer)| outer).collect();
        let Made::Sketch(sketch) = &mut self.frame().made else {
            unreachable!("a body within a sketch is one")
        };
        outputs.iter().map(|_| sketch.value(needed.iter().copied())).collect()
    }

    /// Adds an operation; axes that two arguments share must have one size.
    pub fn op(
        &mut self,
        op: Op,
        args: &[&TensorVal],
        new: &[SymAxis],
        at: Span,
    ) -> Eval<TensorVal> {
        self.agree(args, at)?;
        self.unchecked(op, args, new, at)
    }

    /// As `op`, where arguments may share an axis of different sizes.
    pub fn unchecked(
        &mut self,
        op: Op,
        args: &[&TensorVal],
        new: &[SymAxis],
        at: Span,
    ) -> Eval<TensorVal> {
        self.step(OPERATION, at)?;
        let made = match &mut self.frame().made {
            Made::Graph(_) => self.node(op, args, new, at)?,
            Made::Sketch(sketch) => match shape::result(&op, args, new, at) {
                Some((dtype, axes)) => {
                    let id = sketch.value(args.iter().map(|t| t.id));
                    TensorVal { id, dtype, axes }
                }
                // Nobody reads this: the walk that it leads to says what is wrong.
                None => return self.fail("E0301", "no result", at, "in this operation"),
            },
        };
        self.limits(&made, at)?;
        Ok(made)
    }

    /// Adds an operation to the graph.
    fn node(&mut self, op: Op, args: &[&TensorVal], new: &[SymAxis], at: Span) -> Eval<TensorVal> {
        let ids: Vec<ValueId> = args.iter().map(|t| t.id).collect();
        let pushed = self.builder().push(op, &ids, place(at));
        let id = match pushed {
            Ok(id) => id,
            Err(fault) => {
                let code = match fault.as_str() {
                    f if f.contains("is the most") => "E0305",
                    f if f.contains("stands twice") => "E0306",
                    _ => "E0301",
                };
                return self.fail(code, fault, at, "in this operation");
            }
        };
        let ty = self.builder().ty(id);
        let known: Vec<&SymAxis> =
            new.iter().chain(args.iter().flat_map(|t| t.axes.iter())).collect();
        let axes = ty.axes.iter().map(|axis| symbolic(axis, &known, at)).collect();
        Ok(TensorVal { id, dtype: ty.dtype, axes })
    }

    /// What every tensor has to be: few axes, each with a name of its own, and not too large.
    fn limits(&mut self, made: &TensorVal, at: Span) -> Eval<()> {
        if made.axes.len() > MAX_AXES {
            let message =
                format!("a tensor has {} axes, and {MAX_AXES} is the most", made.axes.len());
            return self.fail("E0305", message, at, format!("this makes {}", made.show()));
        }
        for (i, axis) in made.axes.iter().enumerate() {
            if made.axes[..i].iter().any(|other| other.name == axis.name) {
                let message = format!("axis `{}` stands twice in a tensor", axis.name);
                let here = format!("this makes {}", made.show());
                let d = Diagnostic::error("E0306", message, at, here);
                let help = format!("rename one of them first, as in `x[other = {}]`", axis.name);
                self.sink.push(d.help(help));
                return Err(Reported);
            }
        }
        let mut bytes = made.dtype.bytes();
        for axis in made.axes.iter() {
            bytes = match bytes.checked_mul(axis.size.value().unwrap_or(1)) {
                Some(b) if b <= MAX_TENSOR_BYTES => b,
                _ if self.sample => return Ok(()),
                _ => {
                    let axis = |a: &SymAxis| Axis::new(a.name, a.size.value().unwrap_or(1));
                    let ty = Type::new(made.dtype, made.axes.iter().map(axis).collect());
                    let message = format!("a tensor {ty} is larger than 2^48 bytes");
                    return self.fail("E0307", message, at, "made here");
                }
            };
        }
        Ok(())
    }

    /// Sizes of axes with one name are compared as polynomials, with both places shown where they
    /// differ.
    pub fn agree(&mut self, args: &[&TensorVal], at: Span) -> Eval<()> {
        for (i, a) in args.iter().enumerate() {
            for b in &args[i + 1..] {
                for x in a.axes.iter() {
                    let Some(y) = b.axis(x.name) else { continue };
                    if !x.size.same(&y.size) {
                        let (x, y) = (x.clone(), y.clone());
                        return self.sizes_differ(&x, &y, at);
                    }
                }
            }
        }
        Ok(())
    }

    pub fn sizes_differ<T>(&mut self, x: &SymAxis, y: &SymAxis, at: Span) -> Eval<T> {
        let (one, two) = (x.size.explained(), y.size.explained());
        let message = format!("axis `{}` has two sizes: {one} and {two}", x.name);
        let here = match x.size.value() == y.size.value() {
            true => "equal by accident: other bindings would differ".to_string(),
            false => format!("`{}` must have one size here", x.name),
        };
        let mut diagnostic = Diagnostic::error("E0302", message, at, here);
        diagnostic = diagnostic.label(x.origin, format!("{one} comes from here"));
        if x.origin != y.origin {
            diagnostic = diagnostic.label(y.origin, format!("{two} comes from here"));
        }
        self.sink.push(diagnostic);
        Err(Reported)
    }
}

/// An axis with its symbolic size, found among the known ones by name and value.
fn symbolic(axis: &Axis, known: &[&SymAxis], at: Span) -> SymAxis {
    let fits = |k: &&&SymAxis| k.name == axis.name && k.size.value() == Some(axis.size);
    match known.iter().find(fits) {
        Some(k) => (*k).clone(),
        None => SymAxis { name: axis.name, size: Size::number(axis.size), origin: at },
    }
}
