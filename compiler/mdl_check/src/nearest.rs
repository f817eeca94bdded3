//! Which known name an unknown one may have been meant to be.

/// More names than this are not looked at, and longer ones neither: a message costs little.
const MAX_NAMES: usize = 2000;
const MAX_LENGTH: usize = 64;

/// The known name that differs least, if it differs little.
pub fn nearest<'s>(name: &str, known: impl Iterator<Item = &'s str>) -> Option<&'s str> {
    let length = name.chars().count();
    if length > MAX_LENGTH {
        return None;
    }
    let limit = (length / 3).max(1);
    known
        .take(MAX_NAMES)
        .filter(|k| *k != name && k.chars().count().abs_diff(length) <= limit)
        .map(|k| (distance(name, k), k))
        // A name of two letters is near to every other one.
        .filter(|(d, k)| *d <= limit && (length > 2 || k.chars().count() > 2))
        .min_by_key(|(d, _)| *d)
        .map(|(_, k)| k)
}

/// Edit distance (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let next = (diagonal + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], next);
        }
    }
    row[b.len()]
}
