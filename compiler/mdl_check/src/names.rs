//! What can be said about the names of a module without elaborating it: names that stand twice,
//! types with too many axes, annotations out of place, and names that nothing uses.

use crate::builtin::is_builtin;
use crate::elaborate::in_range;
use crate::program::{ItemRef, Program};
use mdl_ir::infer::MAX_AXES;
use mdl_symbol::{Symbol, SymbolMap, SymbolSet};
use mdl_syntax::ast::{self, *};
use mdl_syntax::diag::{Diagnostic, Sink};
use mdl_syntax::parallel;

/// Items that are looked at together.
const PORTION: usize = 128;

/// Looks at every module that is not part of the standard library.
pub fn check_names(program: &Program, sink: &mut Sink) {
    for (module, m) in program.modules[..program.root()].iter().enumerate() {
        if !m.path.starts_with("std.") {
            let items = m.ast.items.iter().enumerate();
            items.for_each(|(item, it)| check_item(program, ItemRef { module, item }, it, sink));
        }
    }
    check_root(program, sink);
}

/// The names of the root module, of which nothing may be left over: imports, fields and `let`s that
/// nothing mentions are a mistake.
fn check_root(program: &Program, sink: &mut Sink) {
    let module = program.root();
    let items = &program.modules[module].ast.items;
    let has_model = items.iter().any(|i| matches!(i.kind, ItemKind::Model(_)));
    let shared = |item| names_to_use(item, has_model);
    let wanted: SymbolSet = items.iter().flat_map(shared).map(|(name, _)| name.text).collect();
    let portions: Vec<&[Item]> = items.chunks(PORTION).collect();
    let looked_at = parallel::map(portions.len(), Vec::new, |own, at| {
        let mut looked = Looked::default();
        for (i, item) in portions[at].iter().enumerate() {
            let place = ItemRef { module, item: at * PORTION + i };
            check_item(program, place, item, &mut looked.sink);
            looked.idle.push(idle_in(item, own, &mut |name| {
                if wanted.contains(&name) {
                    looked.used.insert(name);
                }
            }));
        }
        looked
    });
    let mut used = SymbolSet::default();
    let mut idle = Vec::new();
    for looked in looked_at {
        looked.sink.diagnostics.into_iter().for_each(|d| sink.push(d));
        used.extend(looked.used);
        idle.extend(looked.idle);
    }
    for (item, idle) in items.iter().zip(idle) {
        let shared = names_to_use(item, has_model).into_iter();
        let unused = shared.filter(|(name, _)| !used.contains(&name.text));
        for (name, what) in unused.chain(idle) {
            let message = format!("{what} `{}` is never used", name.text);
            sink.push(Diagnostic::warning("E0209", message, name.span, "nothing mentions it"));
        }
    }
}

/// What is found in a portion of the root module.
#[derive(Default)]
struct Looked<'a> {
    sink: Sink,
    /// For each item, what is left over within it.
    idle: Vec<Vec<Idle<'a>>>,
    /// Those that are mentioned of the names that something has to mention.
    used: SymbolSet,
}

fn check_item(program: &Program, at: ItemRef, item: &Item, sink: &mut Sink) {
    match &item.kind {
        ItemKind::Config(c) => {
            own_name(&c.name, sink);
            c.fields.iter().flat_map(|f| &f.default).for_each(|e| check_path(e, sink));
            once(c.fields.iter().map(|f| &f.name), "field", sink);
        }
        ItemKind::Fn(f) => {
            own_name(&f.name, sink);
            check_fn(f, program.is_standard(at.module), sink);
        }
        ItemKind::Block(b) | ItemKind::Model(b) => {
            own_name(&b.name, sink);
            once(b.axes.iter(), "axis", sink);
            once(b.args.iter().map(|a| &a.name), "argument", sink);
            let tensors = b.args.iter().filter(|a| matches!(a.ty, ArgType::Tensor(_)));
            for arg in tensors {
                let message = format!("block `{}` takes a tensor", b.name.text);
                let here = "a block is made before there are any tensors";
                let d = Diagnostic::error("E0405", message, arg.name.span, here);
                sink.push(d.help("make it an argument of `forward`"));
            }
            let members = b.members.iter().map(|m| &m.name);
            once(members.chain(b.methods.iter().map(|m| &m.name)), "member", sink);
            for member in &b.members {
                if let MemberKind::Param { ty, .. } = &member.kind {
                    check_type(ty, sink);
                }
            }
            for method in &b.methods {
                own_name(&method.name, sink);
                check_fn(method, false, sink);
            }
        }
        ItemKind::Preset(p) => {
            own_name(&p.name, sink);
            once(p.bindings.iter().map(|(name, _)| name), "field", sink);
        }
        ItemKind::Use(_) | ItemKind::Error => {}
    }
}

/// Keys within each other that `from` looks through; a `config.json` is walked along them.
const MAX_KEYS: usize = 16;

/// `from("a.b")`, also on a side of `else`.
fn check_path(e: &Expr, sink: &mut Sink) {
    match &e.kind {
        ExprKind::Else(a, b) => [a, b].into_iter().for_each(|e| check_path(e, sink)),
        ExprKind::Call { args, .. } => {
            for arg in args {
                let ExprKind::Text(path) = &arg.value.kind else { continue };
                if path.split('.').count() > MAX_KEYS {
                    let message = format!("a path has more than {MAX_KEYS} keys");
                    let here = "keys are separated by dots";
                    sink.push(Diagnostic::error("E0405", message, arg.value.span, here));
                }
            }
        }
        _ => {}
    }
}

/// The functions of the language cannot be defined anew.
fn own_name(name: &Name, sink: &mut Sink) {
    if is_builtin(name.text) {
        let message = format!("`{}` is a function of the language", name.text);
        sink.push(Diagnostic::error("E0202", message, name.span, "defined again here"));
    }
}

fn once<'n>(names: impl Iterator<Item = &'n Name> + Clone, what: &str, sink: &mut Sink) {
    again(names, |name, first| {
        let message = format!("{what} `{}` is defined twice", name.text);
        let d = Diagnostic::error("E0202", message, name.span, "defined again here");
        sink.push(d.label(first.span, "first defined here"));
    });
}

/// Finds the names that stand twice, each with the one before.
fn again<'n>(names: impl Iterator<Item = &'n Name> + Clone, mut found: impl FnMut(&Name, &Name)) {
    // Most lists are short, and looking through them takes less than a table.
    let few = names.clone().nth(16).is_none();
    let mut seen: SymbolMap<&Name> = SymbolMap::default();
    for (i, name) in names.clone().enumerate() {
        let first = match few {
            true => names.clone().take(i).filter(|other| other.text == name.text).last(),
            false => seen.insert(name.text, name),
        };
        if let Some(first) = first {
            found(name, first);
        }
    }
}

fn check_fn(f: &ast::Fn, kernels: bool, sink: &mut Sink) {
    if let (false, Some(kernel)) = (kernels, &f.kernel) {
        let message = "kernels belong to functions of the standard library";
        let here = format!("`{}` is not one of them", f.name.text);
        let d = Diagnostic::error("E0109", message, kernel.span, here);
        let help = "remove the annotation, or call the standard function that has this kernel";
        sink.push(d.help(help));
    }
    once(f.axes.iter(), "axis", sink);
    once(f.args.iter().map(|a| &a.name), "argument", sink);
    for arg in &f.args {
        if let ArgType::Tensor(ty) = &arg.ty {
            check_type(ty, sink);
        }
    }
    for ty in &f.result {
        check_type(ty, sink);
    }
    check_body(&f.body, sink);
}

fn check_type(ty: &TypeExpr, sink: &mut Sink) {
    if ty.axes.len() > MAX_AXES {
        let message = format!("a tensor has {} axes, and {MAX_AXES} is the most", ty.axes.len());
        let d = Diagnostic::error("E0305", message, ty.span, "this type");
        sink.push(d.help("merge some, as in `x[merged = a * b]`"));
    }
    again(ty.axes.iter().map(|axis| &axis.name), |name, first| {
        let message = format!("axis `{}` stands twice in a type", name.text);
        let d = Diagnostic::error("E0306", message, name.span, "stands here again");
        sink.push(d.label(first.span, "and here first"));
    });
    for axis in &ty.axes {
        let Some(Expr { kind: ExprKind::Number(text), span }) = &axis.size else { continue };
        if !text.parse::<u64>().is_ok_and(in_range) {
            let message = format!("axis `{}` would be {text}", axis.name.text);
            sink.push(Diagnostic::error("E0307", message, *span, "sizes are 1 to 2147483647"));
        }
    }
}

/// Statements of one body have names of their own.
fn check_body(body: &Body, sink: &mut Sink) {
    let names = body.lets.iter().flat_map(|l| match l {
        Let::Value { names, .. } => names.iter(),
        Let::Axis { name, .. } => std::slice::from_ref(name).iter(),
    });
    once(names, "name", sink);
    each_body(body, &mut |inner| check_body(inner, sink));
}

/// The bodies of the `if`s in a body.
fn each_body(body: &Body, found: &mut dyn FnMut(&Body)) {
    for l in &body.lets {
        match l {
            Let::Value { value, .. } => branches(value, found),
            Let::Axis { size, .. } => branches(size, found),
        }
    }
    branches(&body.result, found);
}

fn branches(e: &Expr, found: &mut dyn FnMut(&Body)) {
    match &e.kind {
        ExprKind::If(condition, yes, no) => {
            branches(condition, found);
            found(yes);
            found(no);
        }
        ExprKind::Member(inner, _) | ExprKind::Unary(_, inner) => branches(inner, found),
        ExprKind::Call { function, args, .. } => {
            branches(function, found);
            args.iter().for_each(|arg| branches(&arg.value, found));
        }
        ExprKind::Reaxis(inner, changes) => {
            branches(inner, found);
            changes.iter().flat_map(|c| &c.start).for_each(|start| branches(start, found));
        }
        ExprKind::Binary(_, a, b) | ExprKind::Else(a, b) => {
            branches(a, found);
            branches(b, found);
        }
        ExprKind::Tuple(items) => items.iter().for_each(|item| branches(item, found)),
        _ => {}
    }
}

/// Every name that an expression mentions as a value, a function or an axis.
pub fn each_name<'a>(e: &'a Expr, found: &mut impl FnMut(&'a Name)) {
    match &e.kind {
        ExprKind::Name(n) => found(n),
        ExprKind::Member(inner, n) => {
            each_name(inner, found);
            found(n);
        }
        ExprKind::Call { function, axes, args } => {
            each_name(function, found);
            for axis in axes {
                found(&axis.name);
                axis.old.iter().for_each(&mut *found);
            }
            args.iter().for_each(|a| each_name(&a.value, found));
        }
        ExprKind::Reaxis(inner, changes) => {
            each_name(inner, found);
            for change in changes {
                change.new.iter().chain(&change.old).for_each(&mut *found);
                change.start.iter().for_each(|s| each_name(s, found));
            }
        }
        ExprKind::Unary(_, a) => each_name(a, found),
        ExprKind::Binary(_, a, b) | ExprKind::Else(a, b) => {
            each_name(a, found);
            each_name(b, found);
        }
        ExprKind::If(condition, yes, no) => {
            each_name(condition, found);
            names_of_body(yes, found);
            names_of_body(no, found);
        }
        ExprKind::Tuple(items) => items.iter().for_each(|i| each_name(i, found)),
        ExprKind::Number(_)
        | ExprKind::Text(_)
        | ExprKind::Bool(_)
        | ExprKind::Infinity
        | ExprKind::Error => {}
    }
}

fn names_of_body<'a>(body: &'a Body, found: &mut impl FnMut(&'a Name)) {
    for l in &body.lets {
        match l {
            Let::Value { value, .. } => each_name(value, found),
            Let::Axis { size, .. } => each_name(size, found),
        }
    }
    each_name(&body.result, found);
}

fn names_of_type<'a>(ty: &'a TypeExpr, found: &mut impl FnMut(&'a Name)) {
    for axis in &ty.axes {
        found(&axis.name);
        axis.size.iter().for_each(|e| each_name(e, found));
    }
}

fn names_of_args<'a>(args: &'a [Arg], found: &mut impl FnMut(&'a Name)) {
    for arg in args {
        match &arg.ty {
            ArgType::Tensor(ty) => names_of_type(ty, found),
            ArgType::Config(n) => found(n),
            _ => {}
        }
        arg.default.iter().for_each(|e| each_name(e, found));
    }
}

fn names_of_fn<'a>(f: &'a ast::Fn, found: &mut impl FnMut(&'a Name)) {
    names_of_args(&f.args, found);
    f.result.iter().for_each(|ty| names_of_type(ty, found));
    names_of_body(&f.body, found);
}

fn names_of_member<'a>(member: &'a Member, found: &mut impl FnMut(&'a Name)) {
    match &member.kind {
        MemberKind::Param { ty, init, tied } => {
            names_of_type(ty, found);
            init.iter().for_each(|e| each_name(e, found));
            if let Some((other, condition)) = tied {
                found(other);
                condition.iter().for_each(|e| each_name(e, found));
            }
        }
        MemberKind::Instance { block, axes, args, count } => {
            found(block);
            axes.iter().chain(count).for_each(&mut *found);
            args.iter().for_each(|a| each_name(&a.value, found));
        }
    }
}

fn names_of_item<'a>(item: &'a Item, found: &mut impl FnMut(&'a Name)) {
    match &item.kind {
        ItemKind::Config(c) => {
            for field in &c.fields {
                if let FieldType::Config(n) = &field.ty {
                    found(n);
                }
                field.default.iter().for_each(|e| each_name(e, found));
            }
            // An assertion alone does not make a field of use.
        }
        ItemKind::Preset(p) => {
            found(&p.config);
            p.bindings.iter().for_each(|(_, e)| each_name(e, found));
        }
        _ => {}
    }
}

/// A name that nothing mentions, and what it is.
type Idle<'a> = (&'a Name, &'static str);

/// Names of an item that some item has to mention.
fn names_to_use(item: &Item, has_model: bool) -> Vec<Idle<'_>> {
    match &item.kind {
        ItemKind::Use(u) => u.names.iter().map(|n| (n, "import")).collect(),
        ItemKind::Config(c) if has_model => c.fields.iter().map(|f| (&f.name, "field")).collect(),
        _ => Vec::new(),
    }
}

/// What is left over in the functions of an item, all of whose names are `used`. `own` is room for
/// the names of a function.
fn idle_in<'a>(
    item: &'a Item,
    own: &mut Vec<Symbol>,
    used: &mut impl FnMut(Symbol),
) -> Vec<Idle<'a>> {
    let mut idle = Vec::new();
    match &item.kind {
        ItemKind::Fn(f) => idle_in_fn(f, own, used, &mut idle),
        ItemKind::Block(b) | ItemKind::Model(b) => {
            names_of_args(&b.args, &mut |n| used(n.text));
            b.members.iter().for_each(|m| names_of_member(m, &mut |n| used(n.text)));
            b.methods.iter().for_each(|m| idle_in_fn(m, own, used, &mut idle));
        }
        _ => names_of_item(item, &mut |n| used(n.text)),
    }
    idle
}

/// Axes in brackets and `let`s that their function does not mention. Arguments may be left alone:
/// functions with one signature are chosen from.
fn idle_in_fn<'a>(
    f: &'a ast::Fn,
    own: &mut Vec<Symbol>,
    used: &mut impl FnMut(Symbol),
    idle: &mut Vec<Idle<'a>>,
) {
    own.clear();
    names_of_fn(f, &mut |n| {
        own.push(n.text);
        used(n.text);
    });
    let lets = f.body.lets.iter().filter_map(|l| match l {
        Let::Value { names, .. } if names.len() == 1 => Some((&names[0], "value")),
        Let::Value { .. } => None,
        Let::Axis { name, .. } => Some((name, "axis")),
    });
    let declared = f.axes.iter().map(|axis| (axis, "axis")).chain(lets);
    // Few are looked for one by one; many have a table.
    let many = declared.clone().nth(16).is_some();
    let table: SymbolSet = if many { own.iter().copied().collect() } else { SymbolSet::default() };
    let mentioned = |name: &Name| match many {
        true => table.contains(&name.text),
        false => own.contains(&name.text),
    };
    idle.extend(declared.filter(|(name, _)| !mentioned(name)));
}
