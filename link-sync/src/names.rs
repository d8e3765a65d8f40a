//! Names for people: escaped, and the first of many.

/// So many are named, where there may be any number.
pub const NAMED: usize = 10;

/// A path for people.
pub fn show(path: &[u8]) -> String {
    if path.is_empty() { ".".into() } else { String::from_utf8_lossy(path).escape_debug().to_string() }
}

/// The first of a list, for people.
pub fn some(list: impl ExactSizeIterator<Item = String>) -> String {
    let more = list.len().saturating_sub(NAMED);
    let named = list.take(NAMED).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{named}, and {more} more") } else { named }
}
