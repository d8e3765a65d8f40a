//! Names for people: the first of many.

/// So many are named, where there may be any number.
pub const NAMED: usize = 10;

/// The first of a list, for people.
pub fn some(list: impl ExactSizeIterator<Item = String>) -> String {
    let more = list.len().saturating_sub(NAMED);
    let named = list.take(NAMED).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{named}, and {more} more") } else { named }
}
