//! Auxiliary losses: what a block adds to the model's loss.
//!
//! The method `auxiliary` of a block takes values that its `forward` names, by these names. In a
//! repeated block they come as they were in every layer, with the axis of the layers in front. So a
//! loss that is declared beside a router is part of every model that holds one.

use crate::block::{block_decl, method, method_scope};
use crate::call::Given;
use crate::elaborate::Elaborator;
use crate::size::Size;
use crate::value::{BlockVal, Eval, Reported, Scope, SymAxis, TensorVal, Val};
use mdl_ir::build::Builder;
use mdl_ir::graph::ValueId;
use mdl_ir::op::{Binary, Op};
use mdl_ir::place::Place;
use mdl_symbol::Symbol;
use mdl_syntax::ast;
use mdl_syntax::diag::Diagnostic;
use mdl_syntax::span::Span;
use std::rc::Rc;

/// A `forward` that is being expanded, and what an auxiliary loss wants to know of it.
#[derive(Debug)]
pub struct Watch {
    /// Where the body ends: which of the expanded bodies it is.
    pub body: Span,
    wanted: Vec<ast::Name>,
    found: Vec<(Symbol, TensorVal)>,
}

/// Values of a body for the auxiliary loss of a block.
#[derive(Clone, Debug)]
pub struct Named {
    pub block: Rc<BlockVal>,
    pub values: Vec<(Symbol, TensorVal)>,
}

const METHOD: &str = "auxiliary";

impl Elaborator<'_> {
    /// Runs the `forward` of an instance, and keeps what its auxiliary loss takes.
    pub fn forward(
        &mut self,
        block: &Rc<BlockVal>,
        forward: &ast::Fn,
        given: Vec<Given>,
        at: Span,
    ) -> Eval<Val> {
        let scope = method_scope(block);
        let Some(auxiliary) = method(self.program, block, METHOD) else {
            return self.call_fn(forward, scope, given, at);
        };
        let wanted = auxiliary.args.iter().map(|a| a.name).collect();
        let body = forward.body.result.span;
        self.watches.push(Watch { body, wanted, found: Vec::new() });
        let result = self.call_fn(forward, scope, given, at);
        let watch = self.watches.pop().expect("pushed above");
        let result = result?;
        if let Some(lacking) =
            watch.wanted.iter().find(|w| !watch.found.iter().any(|(name, _)| *name == w.text))
        {
            let message = format!("`forward` names no tensor `{}`", lacking.text);
            let d = Diagnostic::error("E0414", message, lacking.span, "the loss is made of it");
            let d = d.label(forward.name.span, "not named in here");
            self.sink.push(d.help(format!("add `let {} = …` to `forward`", lacking.text)));
            return Err(Reported);
        }
        self.frame().named.push(Named { block: block.clone(), values: watch.found });
        Ok(result)
    }

    /// Takes down what a watched body has named when it is about to give its result.
    pub fn watched(&mut self, body: &ast::Body, scope: &Scope) -> Eval<()> {
        let Some(watch) = self.watches.last() else { return Ok(()) };
        if watch.body != body.result.span {
            return Ok(());
        }
        for name in watch.wanted.clone() {
            if let Some(Val::Tensor(t)) = scope.values.get(name.text) {
                let found = (name.text, t.clone());
                self.watches.last_mut().expect("checked above").found.push(found);
            }
        }
        Ok(())
    }

    /// What a repeated region named, as values outside: one slice for each iteration.
    pub fn name_stacked(
        &mut self,
        named: Vec<Named>,
        ids: &[ValueId],
        (axis, count): (Symbol, &Size),
        at: Span,
    ) {
        let mut ids = ids.iter();
        for mut name in named {
            for ((_, t), id) in name.values.iter_mut().zip(ids.by_ref()) {
                let size = count.clone();
                let layers = SymAxis { name: axis, size, origin: at };
                t.axes = std::iter::once(layers).chain(t.axes.iter().cloned()).collect();
                t.id = *id;
            }
            self.frame().named.push(name);
        }
    }

    /// The sum of the auxiliary losses of all blocks that were called; None where no block has one.
    pub fn auxiliary(&mut self) -> Eval<Option<TensorVal>> {
        let mut sum: Option<TensorVal> = None;
        for Named { block, values } in std::mem::take(&mut self.frame().named) {
            let Some(auxiliary) = method(self.program, &block, METHOD) else { continue };
            let at = auxiliary.name.span;
            let given = values.into_iter().map(|(name, t)| Given {
                name: Some(ast::Name { text: name, span: at }),
                val: Val::Tensor(t),
                span: at,
            });
            let given = given.collect();
            let extra = self.call_fn(auxiliary, method_scope(&block), given, at)?;
            let extra = self.tensor(extra, at)?;
            if !extra.axes.is_empty() {
                let message = format!("an auxiliary loss is one number, not {}", extra.show());
                let d = Diagnostic::error("E0414", message, at, "added to the model's loss");
                let owner = block_decl(self.program, block.item).map(|b| b.name.span);
                self.sink.push(match owner {
                    Some(owner) => d.label(owner, "declared in this block"),
                    None => d,
                });
                return Err(Reported);
            }
            sum = Some(match sum {
                Some(sum) => self.op(Op::Binary(Binary::Add), &[&sum, &extra], &[], at)?,
                None => extra,
            });
        }
        Ok(sum)
    }
}

/// The values of a region in the order in which it emits them, laid out as their types say.
pub fn lay_out(builder: &mut Builder, named: &mut [Named]) -> Vec<ValueId> {
    let values = named.iter_mut().flat_map(|n| &mut n.values);
    values
        .map(|(_, t)| {
            let axes = t.axes.iter().map(|a| a.name).collect();
            let laid = builder.push(Op::Reorder { axes }, &[t.id], Place::default());
            laid.unwrap_or(t.id)
        })
        .collect()
}
