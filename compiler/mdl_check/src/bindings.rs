//! Names of a scope with what they stand for. Every call starts from what its block sees and adds
//! a few names of its own, so what a block sees is shared and what a call adds is a short list.

use mdl_symbol::{Symbol, SymbolMap};
use std::rc::Rc;

/// Names that are looked through one by one; more of them have a table.
const FEW: usize = 16;

#[derive(Clone, Debug)]
pub struct Bindings<V> {
    own: Vec<(Symbol, V)>,
    /// Where each of `own` stands, once those are many.
    table: SymbolMap<usize>,
    /// What is seen besides, unless `own` has the name.
    outer: Option<Rc<Bindings<V>>>,
}

impl<V> Default for Bindings<V> {
    fn default() -> Self {
        Bindings { own: Vec::new(), table: SymbolMap::default(), outer: None }
    }
}

impl<V> Bindings<V> {
    fn place(&self, name: Symbol) -> Option<usize> {
        if self.own.len() > FEW {
            return self.table.get(&name).copied();
        }
        self.own.iter().position(|(own, _)| *own == name)
    }

    pub fn get(&self, name: Symbol) -> Option<&V> {
        match self.place(name) {
            Some(at) => Some(&self.own[at].1),
            None => self.outer.as_ref()?.get(name),
        }
    }

    pub fn has(&self, name: Symbol) -> bool {
        self.get(name).is_some()
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        let Some(outer) = &self.outer else { return self.own.len() };
        let new = self.own.iter().filter(|(name, _)| !outer.has(*name)).count();
        outer.len() + new
    }

    /// What copying costs, in names.
    pub fn own_len(&self) -> usize {
        self.own.len()
    }

    pub fn insert(&mut self, name: Symbol, value: V) {
        match self.place(name) {
            Some(at) => self.own[at].1 = value,
            None => {
                self.own.push((name, value));
                if self.own.len() > FEW {
                    let known = self.table.len();
                    let own = self.own.iter().enumerate().skip(known);
                    self.table.extend(own.map(|(at, (name, _))| (*name, at)));
                }
            }
        }
    }

    pub fn extend(&mut self, more: impl IntoIterator<Item = (Symbol, V)>) {
        more.into_iter().for_each(|(name, value)| self.insert(name, value));
    }

    /// What was entered here, in the order in which it was.
    pub fn iter(&self) -> impl Iterator<Item = (Symbol, &V)> {
        self.own.iter().map(|(name, value)| (*name, value))
    }

    /// All names, in the order of the alphabet.
    pub fn names(&self) -> Vec<Symbol> {
        let mut names: Vec<Symbol> = self.own.iter().map(|(name, _)| *name).collect();
        names.extend(self.outer.iter().flat_map(|outer| outer.names()));
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The same names, so that copies share them.
    pub fn shared(self) -> Bindings<V> {
        match self.own.is_empty() {
            true => self,
            false => Bindings { outer: Some(Rc::new(self)), ..Bindings::default() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_many_names_are_found_and_shadowed() {
        let name = |i: usize| Symbol::from(format!("n{i}"));
        for count in [3, FEW, FEW + 1, 100] {
            let mut outer = Bindings::default();
            outer.extend((0..count).map(|i| (name(i), i)));
            outer.insert(name(1), 1000);
            let mut inner = outer.shared();
            assert_eq!(inner.own_len(), 0);
            inner.insert(name(2), 2000);
            let found = |i| inner.get(name(i)).copied();
            assert_eq!([found(0), found(1), found(2)], [Some(0), Some(1000), Some(2000)]);
            assert_eq!(found(count), None);
            assert_eq!(inner.names().len(), count);
        }
    }
}
