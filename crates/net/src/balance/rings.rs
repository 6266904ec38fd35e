//! Whose turn it is, as rules and maps of a table: for virtual addresses in containers and for published ports of the host.
//!
//! ```text
//! map vips { 10.0.1.2 : jump vip-10.0.1.2, 10.0.1.3 : jump vip-10.0.1.3, … }
//! map vip-10.0.1.2-12 { 0 : 10.0.1.12, 1 : 10.0.1.21, 2 : 10.0.1.12, … 11 : 10.0.1.21 }
//! chain vip-10.0.1.2 { dnat to numgen inc mod 12 map @vip-10.0.1.2-12 }
//! chain vip-10.0.1.3 { dnat to 10.0.1.31 }
//! chain output { …; ip daddr vmap @vips; ip daddr vmap @vips }
//! ```
//!
//! One chain, hence one counter, per ring: a counter shared by two would give alternating clients always the same backends.
//!
//! Most changes are of elements alone. When a rule is added the kernel looks through all that any chain of the table leads
//! to, which takes a millisecond for a thousand services; for elements it does not. Hence twelve places for a few backends.
//!
//! The second look makes a swap hitless: a changed element is taken out and put in, and who looks between the two, by the
//! old generation, finds neither; the next look is by the new one. For the same reason a map of places that a former rule
//! may still read stays, up to date, until the next update.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;
use skep_model::plan::Ring;

use crate::nft::expr::Choice;
use crate::nft::{Bytes, Chain, DataType, Element, Numbered, Rule, Set, Table, Verdict};
use crate::sorted::differences;

/// For as many backends as it can be divided by.
const PLACES: u32 = 12;

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
    fn to_numbered(self, by: Choice, count: u32, map: &str) -> Rule;
}

/// The rings of a table.
#[derive(Clone, Debug)]
pub(crate) struct Rings<D: Destination> {
    entries: BTreeMap<D, Entry<D::Backend>>,
    /// Maps that no rule reads any more.
    former: BTreeSet<String>,
}

#[derive(Clone, Debug)]
struct Entry<T> {
    ring: Ring<T>,
    /// The kernel's counter starts again at 0 with every new rule; the order is rotated on so that the first backend is not
    /// favoured while a service scales.
    rotation: usize,
    turns: Turns,
}

/// What the rules of a chain say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Turns {
    by: Choice,
    /// 0: there are none to choose from.
    places: u32,
}

impl Turns {
    fn of<T>(ring: &Ring<T>) -> Self {
        let places = match ring.backends.len() as u32 {
            0 | 1 => 0,
            // Where a hash names the place, the places stay as they are.
            backends if ring.by_client || !PLACES.is_multiple_of(backends) => backends,
            _ => PLACES,
        };
        Self { by: if ring.by_client { Choice::Source } else { Choice::RoundRobin }, places }
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
        let ring = Ring::default();
        Self { turns: Turns::of(&ring), ring, rotation: 0 }
    }
}

impl<D: Destination> Default for Rings<D> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), former: BTreeSet::new() }
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
        for map in std::mem::take(&mut self.former) {
            table.sets.remove(&map);
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
            let Some(ring) = ring else {
                turned.removed.push(destination);
                write(table, destination, &before, &Entry::default());
                continue;
            };
            let turns = Turns::of(ring);
            let counts_anew = turns != before.turns && !before.ring.backends.is_empty();
            let rotation = before.rotation.wrapping_add(usize::from(counts_anew));
            let entry = Entry { ring: ring.clone(), rotation, turns };
            self.former.extend(write(table, destination, &before, &entry));
            self.entries.insert(destination, entry);
        }
        turned
    }
}

/// The elements of one of the table's sets.
pub(crate) fn elements<'t>(table: &'t mut Table, map: &str) -> &'t mut OrdMap<Bytes, Element> {
    &mut table.sets.get_mut(map).expect("the table was prepared").elements
}

/// Makes map and chain those of `now`. Returns the map of before if its rule may still be read for a moment.
fn write<D: Destination>(
    table: &mut Table,
    destination: D,
    before: &Entry<D::Backend>,
    now: &Entry<D::Backend>,
) -> Option<String> {
    let name = destination.chain();
    let map_of = |places: u32| (places > 0).then(|| format!("{name}-{places}"));
    let (map_before, map) = (map_of(before.turns.places), map_of(now.turns.places));
    let former = map_before.filter(|former| map.as_ref() != Some(former));
    let chain = match now.ring.backends.as_slice() {
        [] => {
            elements(table, &destination.chains()).remove(destination.key().as_slice());
            table.chains.remove(&name);
            former.inspect(|former| _ = table.sets.remove(former));
            return None;
        }
        [only] => Some(vec![destination.to_only(*only)]),
        _ if now.turns == before.turns => None,
        _ => map.as_ref().map(|map| vec![destination.to_numbered(now.turns.by, now.turns.places, map)]),
    };
    let numbered = |count| {
        let mut values: Vec<Bytes> = now.ring.backends.iter().map(|backend| D::value(*backend)).collect();
        if !now.ring.by_client {
            let by = now.rotation % values.len();
            values.rotate_left(by);
        }
        Set::numbered(D::BACKEND, Numbered { count, values })
    };
    if let Some(map) = map {
        table.sets.insert(map, numbered(now.turns.places));
    }
    if let Some(former) = &former {
        table.sets.insert(former.clone(), numbered(before.turns.places));
    }
    if let Some(rules) = chain {
        elements(table, &destination.chains()).insert(destination.key(), Element::Verdict(Verdict::Jump(name.clone())));
        table.chains.insert(name, Arc::new(Chain::regular(rules)));
    }
    former
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::{DataType, Family, Ownership, Set};

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

        fn to_numbered(self, by: Choice, count: u32, map: &str) -> Rule {
            Rule::new().dnat_port_numbered(by, count, map)
        }
    }

    fn table() -> Table {
        let mut table = Table::new(Family::Ip, "t", Ownership::Shared);
        table.sets.insert("chains".to_owned(), Set::map(DataType::PORT, DataType::VERDICT));
        table
    }

    /// The map that the rule of 7 reads, and the backends of its places in order.
    fn read_by_rule(table: &Table) -> Option<(String, Vec<u8>)> {
        let chain = table.chains.get("to-7")?;
        assert!(
            matches!(&table.sets["chains"].elements[[7].as_slice()], Element::Verdict(Verdict::Jump(to)) if to == "to-7")
        );
        let [rule] = chain.rules.as_slice() else { panic!("{chain:?}") };
        let reads = |map: &&String| {
            let count = table.sets[*map].numbered.as_ref().unwrap().count;
            [Choice::RoundRobin, Choice::Source].iter().any(|by| *rule == Number(7).to_numbered(*by, count, map))
        };
        match table.sets.keys().filter(|name| name.starts_with("to-7")).find(reads) {
            Some(map) => Some((map.clone(), values(table, map))),
            None => {
                let only = (0..=255).find(|backend| *rule == Number(7).to_only(*backend)).unwrap();
                Some((String::new(), vec![only]))
            }
        }
    }

    fn values(table: &Table, map: &str) -> Vec<u8> {
        let numbered = table.sets[map].numbered.as_ref().unwrap();
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
        let read = |map: &str, places: Vec<u8>| Some((map.to_owned(), places));
        assert_eq!(update(&[1, 2, 3]), (read("to-7-12", [2, 3, 1].repeat(4)), 1));
        assert_eq!(update(&[1, 2]), (read("to-7-12", [2, 1].repeat(6)), 1));
        assert_eq!(update(&[1, 2, 3, 4]), (read("to-7-12", [2, 3, 4, 1].repeat(3)), 1));
        // A new rule begins to count anew, and the former's map stays for a while.
        assert_eq!(update(&[1, 2, 3, 4, 5]), (read("to-7-5", vec![3, 4, 5, 1, 2]), 2));
        assert_eq!(update(&[1, 2, 3, 4, 6]), (read("to-7-5", vec![3, 4, 6, 1, 2]), 1));
        assert_eq!(update(&[9]), (read("", vec![9]), 1));
        assert_eq!(update(&[8]), (read("", vec![8]), 0));
        assert_eq!(update(&[]), (None, 0));
        assert_eq!(update(&[1, 2]), (read("to-7-12", [2, 1].repeat(6)), 1));
        assert_eq!(update(&[]), (None, 0));
    }

    #[test]
    fn the_places_of_a_former_rule_lead_to_backends_of_now() {
        let sizes: [u8; 14] = [3, 1, 3, 5, 4, 12, 7, 6, 1, 1, 2, 13, 2, 1];
        for by_client in [false, true] {
            let (mut table, mut rings) = (table(), Rings::default());
            for (round, size) in sizes.into_iter().enumerate() {
                let backends: Vec<u8> = (0..size).map(|n| n + round as u8 * 16).collect();
                let before = read_by_rule(&table).filter(|(map, _)| !map.is_empty());
                let ring = Ring { backends: backends.clone(), by_client };
                rings.update(&mut table, [(Number(7), &ring)].into_iter(), |_| 0);
                for (map, places) in before.iter().chain(&read_by_rule(&table)).filter(|(map, _)| !map.is_empty()) {
                    let now = values(&table, map);
                    assert!(now.iter().all(|backend| backends.contains(backend)), "round {round}: {map}");
                    assert_eq!(now.len(), places.len());
                }
            }
            rings.update(&mut table, std::iter::empty(), |_| 0);
            assert_eq!((read_by_rule(&table), table.sets.len()), (None, 1));
        }
    }
}
