//! Which known name an unknown one may have been meant to be.

/// More names than this are not looked at, and longer ones neither: a message costs little.
const MAX_NAMES: usize = 2000;
const MAX_LENGTH: usize = 64;

/// The known name that differs least, if it differs little.
pub fn nearest<N: AsRef<str>>(name: &str, known: impl Iterator<Item = N>) -> Option<N> {
    let length = name.chars().count();
    if length > MAX_LENGTH {
        return None;
    }
    let limit = (length / 3).max(1);
    known
        .take(MAX_NAMES)
        .map(|k| (k.as_ref().chars().count(), k))
        .filter(|(count, k)| k.as_ref() != name && count.abs_diff(length) <= limit)
        .map(|(count, k)| (distance(name, k.as_ref()), count, k))
        // A name of two letters is near to every other one.
        .filter(|(d, count, _)| *d <= limit && (length > 2 || *count > 2))
        .min_by_key(|(d, _, _)| *d)
        .map(|(_, _, k)| k)
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
