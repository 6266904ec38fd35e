//! Whose turn it is, as rules and maps of a table: for virtual addresses in containers and for published ports of the host.
//!
//! ```text
//! map vips { 10.0.1.2 : jump vip-10.0.1.2, 10.0.1.3 : jump vip-10.0.1.3, … }
//! map places-12-0 { 0 : 10.0.1.12, 1 : 10.0.1.21, 2 : 10.0.1.12, … 11 : 10.0.1.21, 12 : 10.0.1.41, … }
//! chain vip-10.0.1.2 { dnat to numgen inc mod 12 map @places-12-0 }
//! chain vip-10.0.1.3 { dnat to 10.0.1.31 }
//! chain vip-10.0.1.4 { dnat to numgen inc mod 12 offset 12 map @places-12-0 }
//! chain output { …; ip daddr vmap @vips; ip daddr vmap @vips }
//! ```
//!
//! One chain, hence one counter, per ring: a counter shared by two would give alternating clients always the same backends.
//! One map for several rings: the kernel finds a map by comparing its name with those of all others. Not one for all: for each
//! element it looks at all rules that read the map.
//!
//! Most changes are of elements alone. When a rule is added the kernel looks through all that any chain of the table leads
//! to, which takes a millisecond for a thousand services; for elements it does not. Hence twelve places for a few backends.
//!
//! The second look makes a swap hitless: a changed element is taken out and put in, and who looks between the two, by the
//! old generation, finds neither; the next look is by the new one. For the same reason places that a former rule may still
//! read stay, up to date, until the next update, and are another ring's only then.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use imbl::OrdMap;
use skep_model::plan::Ring;

use crate::nft::expr::Choice;
use crate::nft::{Bytes, Chain, DataType, Element, Numbered, Rule, Set, Table, Verdict};
use crate::sorted::differences;

/// For as many backends as it can be divided by.
const FEW: u32 = 12;
/// How many rings have their places in one map.
const SHARERS: u32 = 8;

/// What connections are balanced by: the destination they come with.
pub(crate) trait Destination: Copy + Ord {
    type Backend: Copy + Ord + 'static;
    /// What a backend is in a map.
    const BACKEND: DataType;

    /// The map from here to chains, in which a base chain looks twice.
    fn chains(self) -> String;
    fn chain(self) -> String;
    fn key(self) -> Bytes;
    fn value(backend: Self::Backend) -> Bytes;
    /// All to this one.
    fn to_only(self, backend: Self::Backend) -> Rule;
    fn to_numbered(self, by: Choice, places: Range<u32>, map: &str) -> Rule;
}

/// The rings of a table.
#[derive(Clone, Debug)]
pub(crate) struct Rings<D: Destination> {
    entries: BTreeMap<D, Entry<D::Backend>>,
    /// Those that no rule reads any more, but one of before may.
    former: Vec<Places>,
    /// Those that are nobody's.
    free: BTreeMap<u32, Free>,
}

/// Numbers in a row, and the map they are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Places {
    /// 0: there are no two backends to choose from.
    count: u32,
    /// Whose of all that are as many.
    owner: u32,
}

/// Of as many places, the owners there were, and all from the next on.
#[derive(Clone, Debug, Default)]
struct Free {
    owners: Vec<u32>,
    next: u32,
}

impl Places {
    const NONE: Self = Self { count: 0, owner: 0 };

    fn map(self) -> Option<String> {
        (self.count > 0).then(|| format!("places-{}-{}", self.count, self.owner / SHARERS))
    }

    fn numbers(self) -> Range<u32> {
        let first = self.owner % SHARERS * self.count;
        first..first + self.count
    }
}

#[derive(Clone, Debug)]
struct Entry<T> {
    ring: Ring<T>,
    /// The kernel's counter starts again at 0 with every new rule; the order is rotated on so that the first backend is not
    /// favoured while a service scales.
    rotation: usize,
    places: Places,
}

impl<T> Entry<T> {
    fn by(&self) -> Choice {
        if self.ring.by_client { Choice::Source } else { Choice::RoundRobin }
    }
}

/// How many places such a ring has.
fn count<T>(ring: &Ring<T>) -> u32 {
    match ring.backends.len() as u32 {
        0 | 1 => 0,
        // Where a hash names the place, the places stay as they are.
        backends if ring.by_client || !FEW.is_multiple_of(backends) => backends,
        _ => FEW,
    }
}

/// What an update did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Turned<D: Destination> {
    pub(crate) added: Vec<D>,
    pub(crate) removed: Vec<D>,
    /// Who takes no more connections of whom.
    pub(crate) dropped: BTreeSet<(D, D::Backend)>,
}

impl<T> Default for Entry<T> {
    fn default() -> Self {
        Self { ring: Ring::default(), rotation: 0, places: Places::NONE }
    }
}

impl<D: Destination> Default for Rings<D> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), former: Vec::new(), free: BTreeMap::new() }
    }
}

impl<D: Destination> Rings<D> {
    /// Makes the rings, and `table`, those of `wanted`, which is in order; where a new one's turns begin, `seed` says.
    pub(crate) fn update<'w>(
        &mut self,
        table: &mut Table,
        wanted: impl Iterator<Item = (D, &'w Ring<D::Backend>)>,
        seed: impl Fn(D) -> usize,
    ) -> Turned<D> {
        let mut turned = Turned { added: Vec::new(), removed: Vec::new(), dropped: BTreeSet::new() };
        for places in std::mem::take(&mut self.former) {
            empty(table, places);
            self.free.entry(places.count).or_default().owners.push(places.owner);
        }
        let rings = self.entries.iter().map(|(destination, entry)| (*destination, &entry.ring));
        let changes = differences(rings, wanted).into_iter();
        let changes: Vec<_> = changes.map(|(destination, _, ring)| (destination, ring)).collect();
        for (destination, ring) in changes {
            let before = self.entries.remove(&destination).unwrap_or_else(|| {
                turned.added.push(destination);
                Entry { rotation: seed(destination), ..Entry::default() }
            });
            let now: BTreeSet<_> = ring.into_iter().flat_map(|ring| &ring.backends).collect();
            let gone = before.ring.backends.iter().filter(|old| !now.contains(old));
            turned.dropped.extend(gone.map(|backend| (destination, *backend)));
            let entry = match ring {
                Some(ring) => self.entry(&before, ring),
                None => Entry::default(),
            };
            write(table, destination, &before, &entry);
            if before.places != entry.places && before.places != Places::NONE {
                self.former.push(before.places);
            }
            match ring {
                Some(_) => drop(self.entries.insert(destination, entry)),
                None => turned.removed.push(destination),
            }
        }
        turned
    }

    fn entry(&mut self, before: &Entry<D::Backend>, ring: &Ring<D::Backend>) -> Entry<D::Backend> {
        let count = count(ring);
        let stays = before.places.count == count;
        let places = if stays { before.places } else { self.take(count) };
        let counts_on = before.ring.backends.is_empty() || stays && before.ring.by_client == ring.by_client;
        let rotation = before.rotation.wrapping_add(usize::from(!counts_on));
        Entry { ring: ring.clone(), rotation, places }
    }

    /// So many places that are nobody's.
    fn take(&mut self, count: u32) -> Places {
        if count == 0 {
            return Places::NONE;
        }
        let free = self.free.entry(count).or_default();
        let owner = free.owners.pop().unwrap_or(free.next);
        free.next = free.next.max(owner + 1);
        Places { count, owner }
    }
}

/// The elements of one of the table's sets.
pub(crate) fn elements<'t>(table: &'t mut Table, map: &str) -> &'t mut OrdMap<Bytes, Element> {
    &mut table.sets.get_mut(map).expect("the table was prepared").elements
}

/// Who looks for these places finds none; a map without any is none.
fn empty(table: &mut Table, places: Places) {
    let Some(map) = places.map() else { return };
    if let Some(set) = table.sets.get_mut(&map) {
        set.numbered.remove(&places.numbers().start);
        if set.numbered.is_empty() {
            table.sets.remove(&map);
        }
    }
}

/// Makes places and chain those of `now`; those of before lead to the backends of now.
fn write<D: Destination>(table: &mut Table, destination: D, before: &Entry<D::Backend>, now: &Entry<D::Backend>) {
    let name = destination.chain();
    let map = now.places.map();
    let rule = match (now.ring.backends.as_slice(), &map) {
        ([], _) => {
            elements(table, &destination.chains()).remove(destination.key().as_slice());
            table.chains.remove(&name);
            empty(table, before.places);
            return;
        }
        (_, Some(map)) => destination.to_numbered(now.by(), now.places.numbers(), map),
        ([only, ..], None) => destination.to_only(*only),
    };
    let mut values: Vec<Bytes> = now.ring.backends.iter().map(|backend| D::value(*backend)).collect();
    if !now.ring.by_client {
        let by = now.rotation % values.len();
        values.rotate_left(by);
    }
    for places in [before.places, now.places] {
        if let Some(map) = places.map() {
            let set = table.sets.entry(map).or_insert_with(|| Set::map(DataType::INTEGER, D::BACKEND));
            set.numbered.insert(places.numbers().start, Numbered { count: places.count, values: values.clone() });
        }
    }
    let stays = now.places == before.places && now.by() == before.by() && map.is_some();
    if !stays {
        elements(table, &destination.chains()).insert(destination.key(), Element::Verdict(Verdict::Jump(name.clone())));
        table.chains.insert(name, Arc::new(Chain::regular(vec![rule])));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::{Family, Ownership};

    /// A destination whose backends are bytes.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    struct Number(u8);

    impl Destination for Number {
        type Backend = u8;
        const BACKEND: DataType = DataType::IPV4_PORT;

        fn chains(self) -> String {
            "chains".to_owned()
        }

        fn chain(self) -> String {
            format!("to-{}", self.0)
        }

        fn key(self) -> Bytes {
            Bytes::from_slice(&[self.0])
        }

        fn value(backend: u8) -> Bytes {
            Bytes::from_slice(&[backend])
        }

        fn to_only(self, backend: u8) -> Rule {
            Rule::new().dnat_port(std::net::Ipv4Addr::LOCALHOST, backend.into())
        }

        fn to_numbered(self, by: Choice, places: Range<u32>, map: &str) -> Rule {
            Rule::new().dnat_port_numbered(by, places, map)
        }
    }

    fn table() -> Table {
        let mut table = Table::new(Family::Ip, "t", Ownership::Shared);
        table.sets.insert("chains".to_owned(), Set::map(DataType::PORT, DataType::VERDICT));
        table
    }

    /// Map and first of some places.
    type Place = (String, u32);

    /// The places that the rule of 7 reads, and their backends in order; one alone is in the rule.
    fn read_by_rule(table: &Table) -> Option<(Option<Place>, Vec<u8>)> {
        let chain = table.chains.get("to-7")?;
        assert!(
            matches!(&table.sets["chains"].elements[[7].as_slice()], Element::Verdict(Verdict::Jump(to)) if to == "to-7")
        );
        let [rule] = chain.rules.as_slice() else { panic!("{chain:?}") };
        let reads = |(map, first): &Place| {
            let count = table.sets[map].numbered[first].count;
            let rule_by = |by| Number(7).to_numbered(by, *first..first + count, map);
            [Choice::RoundRobin, Choice::Source].into_iter().any(|by| *rule == rule_by(by))
        };
        match places(table).into_iter().find(reads) {
            Some(read) => Some((Some(read.clone()), values(table, &read))),
            None => {
                let only = (0..=255).find(|backend| *rule == Number(7).to_only(*backend)).unwrap();
                Some((None, vec![only]))
            }
        }
    }

    fn places(table: &Table) -> Vec<Place> {
        let of_map = |(name, set): (&String, &Set)| set.numbered.keys().map(|first| (name.clone(), *first)).collect();
        table.sets.iter().flat_map(|item| -> Vec<_> { of_map(item) }).collect()
    }

    fn values(table: &Table, (map, first): &Place) -> Vec<u8> {
        let numbered = &table.sets[map].numbered[first];
        (0..numbered.count).map(|number| numbered.value(number).unwrap()[0]).collect()
    }

    #[test]
    fn backends_have_as_many_places_each_and_their_rules_stay() {
        let (mut table, mut rings) = (table(), Rings::default());
        let mut update = |backends: &[u8]| {
            let ring = backends.to_vec().into();
            rings.update(&mut table, [(Number(7), &ring)].into_iter(), |_| 1);
            (read_by_rule(&table), table.sets.len() - 1)
        };
        let read = |map: &str, places: Vec<u8>| Some((Some((map.to_owned(), 0)), places));
        assert_eq!(update(&[1, 2, 3]), (read("places-12-0", [2, 3, 1].repeat(4)), 1));
        assert_eq!(update(&[1, 2]), (read("places-12-0", [2, 1].repeat(6)), 1));
        assert_eq!(update(&[1, 2, 3, 4]), (read("places-12-0", [2, 3, 4, 1].repeat(3)), 1));
        // A new rule begins to count anew, and the former's places stay for a while.
        assert_eq!(update(&[1, 2, 3, 4, 5]), (read("places-5-0", vec![3, 4, 5, 1, 2]), 2));
        assert_eq!(update(&[1, 2, 3, 4, 6]), (read("places-5-0", vec![3, 4, 6, 1, 2]), 1));
        assert_eq!(update(&[9]), (Some((None, vec![9])), 1));
        assert_eq!(update(&[8]), (Some((None, vec![8])), 0));
        assert_eq!(update(&[]), (None, 0));
        assert_eq!(update(&[1, 2]), (read("places-12-0", [2, 1].repeat(6)), 1));
        assert_eq!(update(&[]), (None, 0));
    }

    #[test]
    fn the_places_of_a_former_rule_lead_to_backends_of_now() {
        let sizes: [u8; 14] = [3, 1, 3, 5, 4, 12, 7, 6, 1, 1, 2, 13, 2, 1];
        for by_client in [false, true] {
            let (mut table, mut rings) = (table(), Rings::default());
            for (round, size) in sizes.into_iter().enumerate() {
                let backends: Vec<u8> = (0..size).map(|n| n + round as u8 * 16).collect();
                let before = read_by_rule(&table);
                let ring = Ring { backends: backends.clone(), by_client };
                rings.update(&mut table, [(Number(7), &ring)].into_iter(), |_| 0);
                for (first, places) in before.iter().chain(&read_by_rule(&table)) {
                    let Some(first) = first else { continue };
                    let now = values(&table, first);
                    assert!(now.iter().all(|backend| backends.contains(backend)), "round {round}: {first:?}");
                    assert_eq!(now.len(), places.len());
                }
            }
            rings.update(&mut table, std::iter::empty(), |_| 0);
            rings.update(&mut table, std::iter::empty(), |_| 0);
            assert_eq!((read_by_rule(&table), table.sets.len()), (None, 1));
        }
    }

    #[test]
    fn places_are_another_rings_only_when_no_rule_can_read_them() {
        let (mut table, mut rings) = (table(), Rings::default());
        let mut update = |wanted: &[(u8, &[u8])]| {
            let wanted: Vec<_> = wanted.iter().map(|(n, ring)| (Number(*n), ring.to_vec().into())).collect();
            rings.update(&mut table, wanted.iter().map(|(number, ring)| (*number, ring)), |_| 0);
            places(&table).into_iter().map(|(map, first)| (map == "places-12-0", first)).collect::<Vec<_>>()
        };
        let [first, second, third] = [0, 12, 24].map(|first| (true, first));
        assert_eq!(update(&[(1, &[1, 2]), (2, &[3, 4])]), [first, second]);
        // One goes and another comes: not to the same places at once.
        assert_eq!(update(&[(2, &[3, 4]), (3, &[5, 6])]), [second, third]);
        assert_eq!(update(&[(2, &[3, 4]), (3, &[5, 6]), (4, &[7, 8])]), [first, second, third]);
        // What has no places lets go of nobody's.
        assert_eq!(update(&[(2, &[3, 4]), (3, &[5, 6]), (4, &[7, 8]), (5, &[9])]), [first, second, third]);
        assert_eq!(update(&[(2, &[3, 4]), (3, &[5, 6]), (4, &[7, 8])]), [first, second, third]);
    }

    #[test]
    fn a_map_is_for_some_rings() {
        let (mut table, mut rings) = (table(), Rings::default());
        let ring: Ring<u8> = vec![1, 2].into();
        let mut update = |count: u8| {
            rings.update(&mut table, (0..count).map(|n| (Number(n), &ring)), |_| 0);
            table.sets.iter().map(|(name, set)| (name.clone(), set.numbered.len())).collect::<Vec<_>>()
        };
        let maps = |second: &[(&str, usize)]| {
            let all = [("chains", 0), ("places-12-0", SHARERS as usize)].iter().chain(second);
            all.map(|(name, rings)| ((*name).to_owned(), *rings)).collect::<Vec<_>>()
        };
        assert_eq!(update(10), maps(&[("places-12-1", 2)]));
        assert_eq!(update(8), maps(&[]));
    }
}
