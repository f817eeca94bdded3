//! A root module with everything it imports, and what each name in each module refers to.

use mdl_symbol::{Symbol, SymbolMap};
use mdl_syntax::ast::{Item, ItemKind, Module, Name};
use mdl_syntax::diag::{Diagnostic, Sink};
use mdl_syntax::source::SourceMap;
use mdl_syntax::span::Span;

/// Imports within imports.
pub const MAX_IMPORT_DEPTH: usize = 16;
/// Bytes of all modules together.
pub const MAX_TOTAL_BYTES: usize = 64 << 20;

/// An item of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ItemRef {
    pub module: usize,
    pub item: usize,
}

#[derive(Clone, Debug)]
pub struct LoadedModule {
    /// `std.norm`, or the file's own name for the root.
    pub path: String,
    pub ast: Module,
    pub names: SymbolMap<ItemRef>,
}

/// Modules in the order in which they were finished; the root is last.
#[derive(Clone, Debug, Default)]
pub struct Program {
    pub modules: Vec<LoadedModule>,
}

/// Gives the name and text of the module at a path such as `["std", "norm"]`.
pub type Resolve<'a> = dyn Fn(&[String]) -> Option<(String, String)> + 'a;

impl Program {
    pub fn item(&self, at: ItemRef) -> &Item {
        &self.modules[at.module].ast.items[at.item]
    }

    pub fn root(&self) -> usize {
        self.modules.len() - 1
    }

    pub fn find(&self, module: usize, name: Symbol) -> Option<ItemRef> {
        self.modules[module].names.get(&name).copied()
    }

    /// The names of a module with what they refer to, in the order of the alphabet.
    pub fn names(&self, module: usize) -> Vec<(Symbol, ItemRef)> {
        let names = self.modules[module].names.iter();
        let mut names: Vec<(Symbol, ItemRef)> = names.map(|(name, item)| (*name, *item)).collect();
        names.sort_unstable();
        names
    }

    /// An item of a standard module, which the compiler itself asks for.
    pub fn find_in(&self, path: &str, name: &str) -> Option<ItemRef> {
        let module = self.modules.iter().position(|m| m.path == path)?;
        self.find(module, Symbol::new(name))
    }

    /// May this module pair functions with kernels? Standard modules may, and files of a folder
    /// `stdlib` that are checked on their own, which is how the standard library is worked on.
    pub fn is_standard(&self, module: usize) -> bool {
        let path = &self.modules[module].path;
        if module != self.root() {
            return path.starts_with("std.");
        }
        let items = &self.modules[module].ast.items;
        let folder = path.replace('\\', "/");
        folder.split('/').rev().nth(1) == Some("stdlib")
            && !items.iter().any(|i| matches!(i.kind, ItemKind::Model(_)))
    }

    /// The items of the root module, in order.
    pub fn root_items(&self) -> impl Iterator<Item = (ItemRef, &Item)> {
        let module = self.root();
        let items = self.modules[module].ast.items.iter().enumerate();
        items.map(move |(item, it)| (ItemRef { module, item }, it))
    }
}

/// The standard module that has an item of this name, among those that are loaded.
pub fn standard_home<'p>(program: &'p Program, name: &str) -> Option<&'p str> {
    let defines = |m: &&LoadedModule| {
        let mut items = m.ast.items.iter().filter_map(item_name);
        m.path.starts_with("std.") && items.any(|n| n.text == name)
    };
    program.modules.iter().find(defines).map(|m| m.path.as_str())
}

/// The name that an item defines.
pub fn item_name(item: &Item) -> Option<&Name> {
    match &item.kind {
        ItemKind::Config(c) => Some(&c.name),
        ItemKind::Fn(f) => Some(&f.name),
        ItemKind::Block(b) | ItemKind::Model(b) => Some(&b.name),
        ItemKind::Preset(p) => Some(&p.name),
        ItemKind::Use(_) | ItemKind::Error => None,
    }
}

struct Loader<'a> {
    program: Program,
    sources: &'a mut SourceMap,
    resolve: &'a Resolve<'a>,
    sink: &'a mut Sink,
    open: Vec<String>,
    bytes: usize,
}

/// Parses `text` and all that it imports. `also` are standard modules that the compiler needs
/// besides.
pub fn load(
    name: &str,
    text: &str,
    also: &[&[&str]],
    sources: &mut SourceMap,
    resolve: &Resolve<'_>,
    sink: &mut Sink,
) -> Program {
    let mut loader =
        Loader { program: Program::default(), sources, resolve, sink, open: Vec::new(), bytes: 0 };
    for path in also {
        let path: Vec<String> = path.iter().map(|s| s.to_string()).collect();
        loader.import(&path, Span::default());
    }
    loader.module(name, name, text);
    loader.program
}

impl Loader<'_> {
    fn module(&mut self, path: &str, name: &str, text: &str) -> usize {
        self.bytes += text.len();
        let file = self.sources.add(name, text);
        let ast = mdl_syntax::parse(file, text, self.sink);
        // The root is known by the name of its file, imports by their paths.
        let file_name = path.rsplit(['/', '\\']).next().unwrap_or(path);
        self.open.push(file_name.strip_suffix(".mdl").unwrap_or(path).to_string());
        let mut names: SymbolMap<ItemRef> = SymbolMap::default();
        let mut places: SymbolMap<Span> = SymbolMap::default();
        for item in &ast.items {
            if let ItemKind::Use(u) = &item.kind {
                let parts: Vec<String> = u.path.iter().map(|n| n.text.to_string()).collect();
                let Some(module) = self.import(&parts, item.span) else { continue };
                for name in &u.names {
                    match self.program.find(module, name.text) {
                        Some(at) => self.define(&mut names, &mut places, name, at),
                        None => self.sink.push(Diagnostic::error(
                            "E0203",
                            format!("`{}` has no item `{}`", parts.join("."), name.text),
                            name.span,
                            "not defined there",
                        )),
                    }
                }
            }
        }
        // The module's own index is known only when its imports are in.
        let module = self.program.modules.len();
        for (i, item) in ast.items.iter().enumerate() {
            if let Some(name) = item_name(item) {
                self.define(&mut names, &mut places, name, ItemRef { module, item: i });
            }
        }
        self.open.pop();
        self.program.modules.push(LoadedModule { path: path.to_string(), ast, names });
        module
    }

    fn define(
        &mut self,
        names: &mut SymbolMap<ItemRef>,
        places: &mut SymbolMap<Span>,
        name: &Name,
        at: ItemRef,
    ) {
        if let Some(first) = places.insert(name.text, name.span) {
            let message = format!("`{}` is defined twice", name.text);
            let diagnostic = Diagnostic::error("E0202", message, name.span, "defined again here");
            self.sink.push(diagnostic.label(first, "first defined here"));
        }
        names.insert(name.text, at);
    }

    fn import(&mut self, parts: &[String], span: Span) -> Option<usize> {
        let path = parts.join(".");
        if let Some(found) = self.program.modules.iter().position(|m| m.path == path) {
            return Some(found);
        }
        if self.open.contains(&path) || self.open.len() >= MAX_IMPORT_DEPTH {
            let message = if self.open.contains(&path) {
                format!("`{path}` imports itself")
            } else {
                format!("imports are nested more than {MAX_IMPORT_DEPTH} deep")
            };
            self.sink.push(Diagnostic::error("E0205", message, span, "imported here"));
            return None;
        }
        let Some((name, text)) = (self.resolve)(parts) else {
            self.sink.push(Diagnostic::error(
                "E0203",
                format!("there is no module `{path}`"),
                span,
                "imported here",
            ));
            return None;
        };
        if self.bytes + text.len() > MAX_TOTAL_BYTES {
            let message = "all modules together are larger than 64 MiB";
            self.sink.push(Diagnostic::error("E0205", message, span, "imported here"));
            return None;
        }
        Some(self.module(&path, &name, &text))
    }
}
