//! Reads the mask out of the body of an attention call, so that the kernel can skip tiles instead
//! of testing keys.

use mdl_ir::graph::{Body, Node, ValueId};
use mdl_ir::kernel::MaskSpec;
use mdl_ir::op::{Binary, Op};
use mdl_symbol::Symbol;

/// The scale of the scores and the mask, if the body is attention under a conjunction of causality,
/// a window and equal documents. `axes` are T, S and head.
pub fn recognise(body: &Body, axes: &[Symbol]) -> Option<(f32, MaskSpec)> {
    let producers = body.producers();
    let node = |id: ValueId| producers[id.index()].map(|n| &body.nodes[n]);
    let masked = body.nodes.iter().find(|n| {
        matches!(n.op, Op::Select) && constant(node(n.args[2])) == Some(f64::NEG_INFINITY)
    })?;
    let scale = match node(masked.args[1])? {
        Node { op: Op::Binary(Binary::Mul), args, .. } => {
            constant(node(args[1])).or_else(|| constant(node(args[0])))?
        }
        Node { op: Op::Contract { .. }, .. } => 1.0,
        _ => return None,
    };
    let mut mask = MaskSpec::default();
    let mut stack = vec![masked.args[0]];
    while let Some(id) = stack.pop() {
        let term = node(id)?;
        match &term.op {
            Op::Binary(Binary::And) => stack.extend(&term.args),
            Op::Binary(op) => conjunct(*op, &term.args, body, axes, &node, &mut mask)?,
            _ => return None,
        }
    }
    Some((scale as f32, mask))
}

fn constant(node: Option<&Node>) -> Option<f64> {
    match node?.op {
        Op::Const(c) => Some(c),
        _ => None,
    }
}

fn conjunct<'b>(
    op: Binary,
    args: &[ValueId],
    body: &Body,
    axes: &[Symbol],
    node: &impl Fn(ValueId) -> Option<&'b Node>,
    mask: &mut MaskSpec,
) -> Option<()> {
    match op {
        // documents of both positions agree; equal constants stand for a single document
        Binary::Eq => match (constant(node(args[0])), constant(node(args[1]))) {
            (Some(a), Some(b)) => (a == b).then_some(()),
            _ => {
                let ids = args.iter().all(|a| body.ty(*a).dtype == mdl_ir::tensor_type::DType::I32);
                mask.documents |= ids;
                ids.then_some(())
            }
        },
        Binary::Le => {
            let (s, t) = (position(args[0], body, node)?, position(args[1], body, node)?);
            mask.causal = true;
            mask.start |= t.1;
            (s == (axes[1], false) && t.0 == axes[0]).then_some(())
        }
        Binary::Lt => {
            let Op::Binary(Binary::Sub) = node(args[0])?.op else {
                return None;
            };
            let difference = &node(args[0])?.args;
            let (t, s) =
                (position(difference[0], body, node)?, position(difference[1], body, node)?);
            let width = constant(node(args[1]))?;
            // A window without an end is none.
            mask.window = width.is_finite().then_some(width as u32);
            mask.start |= t.1;
            (t.0 == axes[0] && s == (axes[1], false)).then_some(())
        }
        _ => None,
    }
}

/// Along which axis a value is the position, and whether a start is added to it.
fn position<'b>(
    id: ValueId,
    body: &Body,
    node: &impl Fn(ValueId) -> Option<&'b Node>,
) -> Option<(Symbol, bool)> {
    match node(id)? {
        Node { op: Op::Position(axis), .. } => Some((axis.name, false)),
        Node { op: Op::Binary(Binary::Add), args, .. } => {
            let (name, started) = position(args[0], body, node)?;
            // Only the start of an incremental step: an input, cast from an id without axes.
            let Node { op: Op::Cast(_), args: from, .. } = node(args[1])? else {
                return None;
            };
            let start = body.inputs.contains(&from[0]) && body.ty(from[0]).axes.is_empty();
            (start && !started).then_some((name, true))
        }
        _ => None,
    }
}
