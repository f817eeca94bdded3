//! What a check has expanded before: a function that is called again with arguments of the same
//! types says the same, which is nothing, so its value is enough.
//!
//! Nothing but "there is no mistake" is taken from this: `check` walks again without a memo where
//! the walk with one has reported anything. So a call is kept here if it reported nothing, with all
//! else that it does: its steps count, and its depth, the names it opens and the axes it renames
//! decide whether it may stand for another call. In the sketch of such a walk one value stands for
//! the call, made from what the call's own value was made from.

use crate::config::{Config, Setting};
use crate::elaborate::{Elaborator, MAX_CALL_DEPTH, MAX_NESTING};
use crate::frame::{FrameKind, Made, Outside};
use crate::program::ItemRef;
use crate::value::{AxisVal, BlockVal, Eval, Scope, TensorVal, Val};
use mdl_ir::graph::{Body, ValueId};
use mdl_symbol::{Quick, Symbol};
use mdl_syntax::ast;
use mdl_syntax::span::Span;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::rc::Rc;

type Table<V> = HashMap<u64, V, BuildHasherDefault<Quick>>;

#[derive(Clone, Debug, Default)]
pub struct Memo {
    calls: Table<Vec<Rc<Expansion>>>,
    /// Blocks with their arguments; instances of the same one have the same members.
    shapes: Table<Vec<(Call, usize)>>,
    /// For each of these the steps that initial values took.
    init_steps: Vec<usize>,
    /// Configurations with made-up values.
    pub configs: BTreeMap<ItemRef, Rc<Config>>,
}

/// A function or a block, and all that what it says depends on.
#[derive(Clone, Debug)]
pub struct Call {
    name: Span,
    /// Whose method it is.
    shape: Option<usize>,
    within: (bool, bool, FrameKind),
    axes: Vec<AxisVal>,
    args: Vec<Val>,
}

/// A call that reported nothing.
#[derive(Debug)]
struct Expansion {
    call: Call,
    /// With the ids of another sketch, and then for each of its tensors what it is made from.
    value: Val,
    needs: Vec<Vec<Need>>,
    steps: usize,
    depth: usize,
    nesting: usize,
    opened: Vec<Span>,
    origins: Vec<Origin>,
}

#[derive(Clone, Debug, PartialEq)]
enum Need {
    Arg(usize),
    /// A weight, counted from the first one of the instance.
    Param(usize),
    Data(Symbol),
}

/// An axis, and what it was renamed from: as it was found, or as it was left.
#[derive(Clone, Debug)]
pub enum Origin {
    Found(Symbol, Option<Symbol>),
    Left(Symbol, Symbol),
}

/// What calls have done besides giving a value.
#[derive(Debug, Default)]
pub struct Trail {
    pub opened: Vec<Span>,
    pub origins: Vec<Origin>,
    /// The most calls and expressions within each other.
    pub depth: usize,
    pub nesting: usize,
}

impl Call {
    fn hash(&self) -> u64 {
        let h = &mut Quick::default();
        (self.name, self.shape, self.within.0, self.within.1).hash(h);
        self.axes.iter().for_each(|a| a.name.hash(h));
        if let FrameKind::Init(axes) = &self.within.2 {
            axes.iter().for_each(|a| (a.name, a.size).hash(h));
        }
        self.args.iter().for_each(|arg| hash_value(arg, h));
        h.finish()
    }

    fn same(&self, other: &Call) -> bool {
        let axis = |(a, b): (&AxisVal, &AxisVal)| a.name == b.name && a.size == b.size;
        (self.name, self.shape) == (other.name, other.shape)
            && self.within == other.within
            && self.axes.len() == other.axes.len()
            && self.axes.iter().zip(&other.axes).all(axis)
            && self.args.iter().zip(&other.args).all(|(a, b)| same(a, b))
    }
}

fn hash_value(val: &Val, h: &mut Quick) {
    match val {
        Val::Tensor(t) => t.axes.iter().for_each(|a| (&a.name, a.size.value()).hash(h)),
        Val::Size(s) => s.value().hash(h),
        Val::Real(x) => x.to_bits().hash(h),
        Val::Bool(b) => b.hash(h),
        Val::Text(text) => text.hash(h),
        Val::Config(c) => (c.item.module, c.item.item).hash(h),
        Val::Function(f) => {
            (f.item.module, f.item.item).hash(h);
            f.bound.iter().for_each(|given| hash_value(&given.val, h));
        }
        _ => {}
    }
}

/// Does a call say the same with one as with the other? No, where that is not looked into.
fn same(a: &Val, b: &Val) -> bool {
    match (a, b) {
        (Val::Tensor(a), Val::Tensor(b)) => {
            let mut axes = a.axes.iter().zip(b.axes.iter());
            a.dtype == b.dtype
                && a.axes.len() == b.axes.len()
                && axes.all(|(x, y)| x.name == y.name && x.size == y.size)
        }
        (Val::Size(a), Val::Size(b)) => a == b,
        (Val::Real(a), Val::Real(b)) => a.to_bits() == b.to_bits(),
        (Val::Bool(a), Val::Bool(b)) => a == b,
        (Val::Text(a), Val::Text(b)) => a == b,
        (Val::Config(a), Val::Config(b)) => same_config(a, b),
        (Val::Function(a), Val::Function(b)) => {
            let mut bound = a.bound.iter().zip(&b.bound);
            a.item == b.item
                && a.bound.len() == b.bound.len()
                && bound.all(|(x, y)| same(&x.val, &y.val))
        }
        _ => false,
    }
}

/// Numbers are compared by their bits: 0 is not −0, by which something may be divided.
fn same_config(a: &Rc<Config>, b: &Rc<Config>) -> bool {
    let setting = |(a, b): (&Setting, &Setting)| match (a, b) {
        (Setting::Real(a), Setting::Real(b)) => a.to_bits() == b.to_bits(),
        (Setting::Config(a), Setting::Config(b)) => same_config(a, b),
        _ => a == b,
    };
    Rc::ptr_eq(a, b) || a == b && a.fields.values().zip(b.fields.values()).all(setting)
}

impl Elaborator<'_> {
    /// A function or a block with its axes and arguments, which are in `scope`.
    fn call_of(
        &self,
        (name, axes, args): (&ast::Name, &[ast::Name], &[ast::Arg]),
        scope: &Scope,
    ) -> Option<Call> {
        let shape = match &scope.owner {
            Some(owner) => Some(self.shape_seen(owner)?),
            None => None,
        };
        let kind = match &self.frames.last()?.kind {
            // Only weights are seen otherwise in a region, and `shape_seen` knows of that.
            FrameKind::Graph | FrameKind::Repeat(_) => FrameKind::Graph,
            other => other.clone(),
        };
        let axes: Option<_> = axes.iter().map(|a| scope.axes.get(a.text).cloned()).collect();
        let args: Option<_> = args.iter().map(|a| scope.values.get(a.name.text).cloned()).collect();
        let within = (self.documents, self.sample, kind);
        Some(Call { name: name.span, shape, within, axes: axes?, args: args? })
    }

    /// The shape of an instance whose weights are what one layer sees of them.
    fn shape_seen(&self, owner: &BlockVal) -> Option<usize> {
        let whole = match &owner.layers {
            Some(layers) => !self.frames.iter().any(|f| f.kind == FrameKind::Repeat(*layers)),
            None => false,
        };
        owner.shape.filter(|_| !whole)
    }

    /// Which instances have the same members as this one, if a memo is kept, and whether there was
    /// one before.
    pub fn shape(&mut self, decl: &ast::Block, scope: &Scope) -> Option<(usize, bool)> {
        self.work.memo.as_ref()?;
        let mut call = self.call_of((&decl.name, &decl.axes, &decl.args), scope)?;
        call.within.2 = FrameKind::Graph;
        let memo = self.work.memo.as_mut()?;
        let known = memo.shapes.entry(call.hash()).or_default();
        if let Some((_, shape)) = known.iter().find(|(other, _)| other.same(&call)) {
            return Some((*shape, true));
        }
        let shape = memo.init_steps.len();
        memo.init_steps.push(0);
        known.push((call, shape));
        Some((shape, false))
    }

    /// What `init` says where an instance of this shape is made for the first time. A sketch keeps
    /// no initial values, so where one was made before only the steps are counted.
    pub fn init_of(
        &mut self,
        shape: Option<(usize, bool)>,
        at: Span,
        init: impl FnOnce(&mut Self) -> Eval<Option<Body>>,
    ) -> Eval<Option<Body>> {
        let Some((shape, known)) = shape else { return init(self) };
        let kept = |e: &mut Self| e.work.memo.as_ref().map_or(0, |memo| memo.init_steps[shape]);
        if known {
            let steps = kept(self);
            return self.step(steps, at).map(|()| None);
        }
        let before = self.work.steps();
        let made = init(self)?;
        let taken = self.work.steps() - before;
        if let Some(memo) = &mut self.work.memo {
            memo.init_steps[shape] = memo.init_steps[shape].max(taken);
        }
        Ok(made)
    }

    /// What `expand` gives for a call, if need be by expanding it.
    pub fn remembered(
        &mut self,
        decl: &ast::Fn,
        scope: Scope,
        at: Span,
        expand: impl FnOnce(&mut Self, Scope) -> Eval<Val>,
    ) -> Eval<Val> {
        // Nobody calls a function with what is made up for it.
        let alone = self.open.len() == 1 && scope.owner.is_none();
        let watched = self.watches.last().is_some_and(|w| w.body == decl.body.result.span);
        let call = match &self.work.memo {
            Some(_) if !watched && !alone => {
                self.call_of((&decl.name, &decl.axes, &decl.args), &scope)
            }
            _ => None,
        };
        let Some(call) = call else { return expand(self, scope) };
        let (hash, owner) = (call.hash(), scope.owner.clone());
        let known = self.work.memo.as_ref().and_then(|m| m.calls.get(&hash));
        let known = known.and_then(|k| k.iter().find(|e| e.call.same(&call) && self.applies(e)));
        if let Some(known) = known.cloned() {
            return self.replay(&known, &call, owner.as_deref(), at);
        }
        let (opened, origins) = (self.trail.opened.len(), self.trail.origins.len());
        let before = (self.trail.depth, self.trail.nesting);
        (self.trail.depth, self.trail.nesting) = (self.depth, self.nesting);
        let (steps, named) = (self.work.steps(), self.frame().named.len());
        let since = self.frame().made.len();
        let value = expand(self, scope);
        let (depth, nesting) = (self.trail.depth - self.depth, self.trail.nesting - self.nesting);
        self.trail.depth = self.trail.depth.max(before.0);
        self.trail.nesting = self.trail.nesting.max(before.1);
        let value = value?;
        // What auxiliary losses named belongs to the caller.
        if named == self.frame().named.len()
            && let Some(needs) = self.needs(&value, (&call, since), owner.as_deref())
        {
            let steps = self.work.steps() - steps;
            let mut opened = self.trail.opened[opened..].to_vec();
            opened.sort_unstable();
            opened.dedup();
            let origins = settled(&self.trail.origins[origins..]);
            let value = value.clone();
            let made = Expansion { call, value, needs, steps, depth, nesting, opened, origins };
            if let Some(memo) = &mut self.work.memo {
                memo.calls.entry(hash).or_default().push(Rc::new(made));
            }
        }
        Ok(value)
    }

    /// May a call that was expanded stand for one that is made here?
    fn applies(&self, known: &Expansion) -> bool {
        let as_found = |o: &Origin| match o {
            Origin::Found(axis, from) => self.origins.get(axis) == from.as_ref(),
            Origin::Left(..) => true,
        };
        self.depth + known.depth <= MAX_CALL_DEPTH
            && self.nesting + known.nesting <= MAX_NESTING
            && !self.open.iter().any(|name| known.opened.contains(name))
            && known.origins.iter().all(as_found)
    }

    /// Does what a call did, and gives what it gave.
    fn replay(
        &mut self,
        known: &Expansion,
        call: &Call,
        owner: Option<&BlockVal>,
        at: Span,
    ) -> Eval<Val> {
        self.step(known.steps, at)?;
        self.trail.depth = self.trail.depth.max(self.depth + known.depth);
        self.trail.nesting = self.trail.nesting.max(self.nesting + known.nesting);
        self.trail.opened.extend(&known.opened);
        self.trail.origins.extend(known.origins.iter().cloned());
        for origin in &known.origins {
            if let Origin::Left(axis, from) = origin {
                self.origins.insert(*axis, *from);
            }
        }
        let mut ids = Vec::new();
        for needs in &known.needs {
            let first = owner.map_or(0, |o| o.first);
            let mut args = Vec::new();
            for need in needs {
                args.push(match need {
                    Need::Arg(i) => match &call.args[*i] {
                        Val::Tensor(t) => t.id,
                        _ => continue,
                    },
                    Need::Param(p) => self.outside(Outside::Param(first + p)).id,
                    Need::Data(name) => self.outside(Outside::Data(*name)).id,
                });
            }
            if let Made::Sketch(sketch) = &mut self.frame().made {
                ids.push(sketch.value(args));
            }
        }
        let mut ids = ids.into_iter();
        let mut renewed = |t: &TensorVal| {
            let id = ids.next().expect("a node for each tensor");
            Val::Tensor(TensorVal { id, ..t.clone() })
        };
        Ok(match &known.value {
            Val::Tensor(t) => renewed(t),
            Val::Tuple(vals) => Val::Tuple(tensors(vals).map(renewed).collect()),
            other => other.clone(),
        })
    }

    /// What each tensor of a value is made from; the values from `since` on are the call's own.
    /// None for what a memo does not keep.
    fn needs(
        &self,
        value: &Val,
        (call, since): (&Call, usize),
        owner: Option<&BlockVal>,
    ) -> Option<Vec<Vec<Need>>> {
        let made: Vec<&TensorVal> = match value {
            Val::Tensor(t) => vec![t],
            Val::Tuple(vals) if tensors(vals).count() == vals.len() => tensors(vals).collect(),
            Val::Size(_) | Val::Real(_) | Val::Bool(_) | Val::Text(_) => Vec::new(),
            _ => return None,
        };
        made.into_iter().map(|t| self.made_from(t.id, (call, since), owner)).collect()
    }

    fn made_from(
        &self,
        id: ValueId,
        (call, since): (&Call, usize),
        owner: Option<&BlockVal>,
    ) -> Option<Vec<Need>> {
        let frame = self.frames.last()?;
        let Made::Sketch(sketch) = &frame.made else { return None };
        let is = |arg: &Val, id| matches!(arg, Val::Tensor(t) if t.id == id);
        let first = owner.map(|owner| owner.first);
        let (mut needs, mut whole) = (Vec::new(), true);
        sketch.each_source([id], since, |id| {
            let args = || call.args.iter().enumerate().filter(|(_, arg)| is(arg, id));
            let arg = args().next().map(|(i, _)| Need::Arg(i));
            let captured = frame.captures.iter().find(|c| c.id == id);
            let outside = captured.and_then(|c| match c.what {
                Outside::Param(p) => p.checked_sub(first?).map(Need::Param),
                Outside::Data(name) => Some(Need::Data(name)),
            });
            // By which of two ways it came in is not known, and another call may have two values.
            whole &= args().count() < 2 && (arg.is_none() || outside.is_none());
            let need = arg.or(outside);
            // All that a call is made from and has not made is an argument or from outside.
            let own = id.index() >= since && !sketch.is_input(id);
            whole &= need.is_some() || own;
            needs.extend(need.filter(|need| !needs.contains(need)));
            own
        });
        whole.then_some(needs)
    }
}

fn tensors(vals: &[Val]) -> impl Iterator<Item = &TensorVal> {
    vals.iter().filter_map(|val| match val {
        Val::Tensor(t) => Some(t),
        _ => None,
    })
}

/// What a call found and left behind, of all that was looked up and renamed within it.
fn settled(trail: &[Origin]) -> Vec<Origin> {
    let mut found = Vec::new();
    let mut left: BTreeMap<Symbol, Symbol> = BTreeMap::new();
    for origin in trail {
        match origin {
            Origin::Found(axis, _) if left.contains_key(axis) => {}
            Origin::Found(..) => found.push(origin.clone()),
            Origin::Left(axis, from) => {
                left.insert(*axis, *from);
            }
        }
    }
    found.extend(left.into_iter().map(|(axis, from)| Origin::Left(axis, from)));
    found
}
