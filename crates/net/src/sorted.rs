//! Two sorted maps side by side: much faster than looking up each key of one in the other.

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// What differs: a key, what it had and what it has.
pub(crate) type Difference<'a, 'b, K, V> = (K, Option<&'a V>, Option<&'b V>);

/// The keys that are in one only, or in both with another value, in order. Both must be sorted by key.
pub(crate) fn differences<'a, 'b, K: Copy + Ord, V: PartialEq>(
    old: impl IntoIterator<Item = (K, &'a V)>,
    new: impl IntoIterator<Item = (K, &'b V)>,
) -> Vec<Difference<'a, 'b, K, V>> {
    let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
    let mut found = Vec::new();
    loop {
        let order = match (old.peek(), new.peek()) {
            (Some((before, _)), Some((now, _))) => before.cmp(now),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return found,
        };
        let before = if order.is_le() { old.next() } else { None };
        let now = if order.is_ge() { new.next() } else { None };
        let (had, has) = (before.map(|(_, value)| value), now.map(|(_, value)| value));
        let key = before.map(|(key, _)| key).or(now.map(|(key, _)| key));
        found.extend(key.filter(|_| had != has).map(|key| (key, had, has)));
    }
}

/// For [`differences`].
pub(crate) fn entries<K: Copy + Ord, V>(map: &BTreeMap<K, V>) -> impl Iterator<Item = (K, &V)> {
    map.iter().map(|(key, value)| (*key, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_found() {
        let old = BTreeMap::from([(1, 'a'), (2, 'b'), (4, 'd'), (6, 'f')]);
        let new = BTreeMap::from([(0, 'z'), (2, 'b'), (4, 'x'), (5, 'e')]);
        let differences = |old, new| differences(entries(old), entries(new)).into_iter();
        let found: Vec<_> = differences(&old, &new).map(|(key, had, has)| (key, had.copied(), has.copied())).collect();
        assert_eq!(
            found,
            [
                (0, None, Some('z')),
                (1, Some('a'), None),
                (4, Some('d'), Some('x')),
                (5, None, Some('e')),
                (6, Some('f'), None)
            ]
        );
        assert_eq!(differences(&old, &old).count(), 0);
    }
}
