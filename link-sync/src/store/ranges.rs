//! Which items of a list are meant: their numbers as ranges, which an answer has room for whatever the list's length.

/// From, and to before.
pub type Ranges = Vec<(u64, u64)>;

/// So many ranges at most: what is between the last and the next number is meant, too, then.
const MANY: usize = 8192;

/// Adds a number to ranges in ascending order.
pub fn add(ranges: &mut Ranges, number: u64) {
    let full = ranges.len() >= MANY;
    match ranges.last_mut() {
        Some((_, to)) if *to == number || full => *to = number + 1,
        _ => ranges.push((number, number + 1)),
    }
}

/// Those of `items`, in the order of the list, that are meant.
pub fn of<T>(ranges: &[(u64, u64)], items: impl Iterator<Item = T>) -> impl Iterator<Item = T> {
    let mut rest = ranges;
    (0u64..).zip(items).filter_map(move |(number, item)| {
        while let [(_, to), after @ ..] = rest
            && *to <= number
        {
            rest = after;
        }
        rest.first().is_some_and(|(from, _)| *from <= number).then_some(item)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_meant_and_nothing_else_as_long_as_there_is_room() {
        let mut ranges = Ranges::new();
        [0, 1, 2, 5, 7, 8].into_iter().for_each(|n| add(&mut ranges, n));
        assert_eq!(ranges, [(0, 3), (5, 6), (7, 9)]);
        assert_eq!(of(&ranges, 0..20).collect::<Vec<_>>(), [0, 1, 2, 5, 7, 8]);
        assert_eq!(of(&[], 0..20).count(), 0);
        (5..2 * MANY as u64).for_each(|n| add(&mut ranges, 2 * n));
        assert_eq!(ranges.len(), MANY);
        let meant: Vec<_> = of(&ranges, 0..5 * MANY as u64).collect();
        assert!((5..2 * MANY as u64).all(|n| meant.binary_search(&(2 * n)).is_ok()));
        assert_eq!(meant.last(), Some(&(4 * MANY as u64 - 2)));
    }
}
