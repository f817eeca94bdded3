//! The table of all symbols, and what each thread remembers of it.

use crate::quick::Quick;
use crate::{Entry, Symbol};
use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Mutex, PoisonError};

/// Symbols by the hash of their text, or the next number that was free.
type Table = HashMap<u64, Symbol, BuildHasherDefault<Quick>>;

static TABLE: Mutex<Option<Table>> = Mutex::new(None);

/// Symbols that a thread has met, by a part of their hash: most names stand in a file many times,
/// and what a thread remembers needs no lock.
const MET: usize = 512;

thread_local! {
    static RECENT: [Cell<Option<Symbol>>; MET] = const { [const { Cell::new(None) }; MET] };
}

pub(crate) fn find(text: &str) -> Symbol {
    let mut hasher = Quick::default();
    hasher.write(text.as_bytes());
    hasher.write_usize(text.len());
    let hash = hasher.finish();
    RECENT.with(|recent| {
        let slot = &recent[hash as usize % MET];
        if let Some(known) = slot.get().filter(|known| known.as_str() == text) {
            return known;
        }
        let symbol = enter(hash, text);
        slot.set(Some(symbol));
        symbol
    })
}

fn enter(mut hash: u64, text: &str) -> Symbol {
    // Whoever panicked here had not yet changed the table, or had changed it as a whole.
    let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    let table = table.get_or_insert_with(Table::default);
    loop {
        match table.get(&hash) {
            Some(symbol) if symbol.as_str() == text => return *symbol,
            Some(_) => hash = hash.wrapping_add(1),
            None => {
                let symbol = Symbol(Box::leak(Box::new(Entry { hash, text: text.into() })));
                table.insert(hash, symbol);
                return symbol;
            }
        }
    }
}
