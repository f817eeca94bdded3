//! Names that are stored once for the whole process. A copy is a pointer, equal names have equal
//! pointers, and a name knows its hash: the compiler copies, compares and looks up names far more
//! often than it makes them.
//!
//! What is stored stays until the process ends. The texts are those of the files that were read
//! and the few that the compiler makes, so this is less than the files are.

mod quick;
mod table;

pub use quick::Quick;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::ops::Deref;

/// What is known by name.
pub type SymbolMap<V> = HashMap<Symbol, V, BuildHasherDefault<Quick>>;

pub type SymbolSet = HashSet<Symbol, BuildHasherDefault<Quick>>;

/// A name: of an axis, a value, a member, an item.
#[derive(Clone, Copy)]
pub struct Symbol(&'static Entry);

/// What is stored for a name. No two entries have the same text or the same hash.
struct Entry {
    hash: u64,
    text: Box<str>,
}

impl Symbol {
    /// The one symbol with this text.
    pub fn new(text: &str) -> Symbol {
        table::find(text)
    }

    pub fn as_str(self) -> &'static str {
        &self.0.text
    }

    /// A number of its own, but for one run of the process: where the symbol is stored.
    fn place(self) -> *const Entry {
        self.0
    }
}

/// These names with something between them.
pub fn joined(names: &[Symbol], between: &str) -> String {
    names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(between)
}

impl Default for Symbol {
    fn default() -> Self {
        Symbol::new("")
    }
}

impl Deref for Symbol {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq for Symbol {
    fn eq(&self, other: &Symbol) -> bool {
        std::ptr::eq(self.place(), other.place())
    }
}

impl Eq for Symbol {}

impl PartialEq<str> for Symbol {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for Symbol {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

/// By the hash of the text, so that tables come out the same in every run.
impl Hash for Symbol {
    fn hash<H: Hasher>(&self, h: &mut H) {
        h.write_u64(self.0.hash);
    }
}

/// By the text, so that what is printed in order is in that of the alphabet.
impl Ord for Symbol {
    fn cmp(&self, other: &Symbol) -> Ordering {
        if self == other { Ordering::Equal } else { self.as_str().cmp(other.as_str()) }
    }
}

impl PartialOrd for Symbol {
    fn partial_cmp(&self, other: &Symbol) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl From<&str> for Symbol {
    fn from(text: &str) -> Symbol {
        Symbol::new(text)
    }
}

impl From<String> for Symbol {
    fn from(text: String) -> Symbol {
        Symbol::new(&text)
    }
}

impl From<&String> for Symbol {
    fn from(text: &String) -> Symbol {
        Symbol::new(text)
    }
}

impl From<&Symbol> for Symbol {
    fn from(symbol: &Symbol) -> Symbol {
        *symbol
    }
}

impl AsRef<str> for Symbol {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// As a text is shown: nobody wants to see where it is stored.
impl fmt::Debug for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl Serialize for Symbol {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self)
    }
}

impl<'de> Deserialize<'de> for Symbol {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Symbol, D::Error> {
        String::deserialize(from).map(Symbol::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn one_text_is_one_symbol_in_every_thread() {
        let texts: Vec<String> = (0..1000).map(|i| format!("axis_{i}")).collect();
        let make = || texts.iter().map(Symbol::from).collect::<Vec<Symbol>>();
        let (here, there) = std::thread::scope(|s| {
            let other = s.spawn(make);
            (make(), other.join().expect("the thread ends"))
        });
        assert_eq!(here, there);
        let places: BTreeSet<_> = here.iter().map(|s| s.place()).collect();
        assert_eq!(places.len(), texts.len());
        assert!(here.iter().zip(&texts).all(|(s, text)| s.as_str() == text));
    }

    #[test]
    fn the_order_is_that_of_the_texts() {
        let [b, a] = ["b", "a"].map(Symbol::new);
        assert!(a < b && a <= a && Symbol::default() < a);
    }

    #[test]
    fn it_is_a_text_in_files() {
        let symbol = Symbol::new("a \"b\"");
        let text = serde_json::to_string(&symbol).expect("a text");
        assert_eq!(text, r#""a \"b\"""#);
        assert_eq!(serde_json::from_str::<Symbol>(&text).expect("a symbol"), symbol);
    }
}
