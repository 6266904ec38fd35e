//! The rules that balance a service's virtual address (VIP) over its tasks, inside the client container's own namespace.
//!
//! ```text
//! chain output { type nat hook output priority -100; ip daddr @balanced add @used { ip daddr . meta l4proto }
//!                                                    ip daddr vmap @vips }
//! map vips { 10.0.1.2 : goto vip-10.0.1.2, … }
//! chain vip-10.0.1.2 { dnat to numgen inc mod 2 map { 0 : 10.0.1.12, 1 : 10.0.1.21 }; dnat to 10.0.1.21 }
//! chain refuse { type filter hook output priority 0; ip daddr @balanced goto rejected }
//! ```
//!
//! One chain, hence one counter, per VIP: a counter shared by two services would give alternating clients always the same
//! tasks. The second rule makes a swap hitless: the kernel switches a chain's rules and a map's elements to a new
//! generation one after the other, so that a packet in the old rules may miss every element of the old map, and conntrack
//! would pin that connection to the VIP itself, where nobody answers.
//!
//! The same for IPv6, in a table of its own, on networks that have it.
//!
//! What still has a VIP as destination after translation has no backend and is refused. (`reject` does nothing in a nat
//! chain; and before translation it would cut the connections of backends that drain.)

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skep_model::plan::Ring;

use crate::nft::expr::{Choice, RejectWith};
use crate::nft::{
    Address, Chain, ChainType, DataType, Element, Hook, HookPoint, NftError, NftSocket, Rule, Set, Table, Verdict,
};

const VIPS: &str = "vips";
const BALANCED: &str = "balanced";
/// Filled by the kernel: which VIPs this container has connected to, by which protocol. It saves looking through all
/// connections of the machine for those of a backend that this container never had.
const USED: &str = "used";
const USED_SIZE: u32 = 65_536;
/// The chain that refuses.
pub(crate) const REJECTED: &str = "rejected";
const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
/// Where destination NAT happens.
const PRIORITY_DSTNAT: i32 = -100;

/// The balancers of one container, and the nf_tables table that says the same.
#[derive(Clone, Debug)]
pub struct Balancers<A> {
    entries: BTreeMap<A, Entry<A>>,
    /// Backends that take no more connections, and of which VIPs they were: they may still have some.
    past: BTreeMap<A, BTreeSet<A>>,
    /// What [`USED`] had in tables before this one.
    used_before: BTreeSet<Use<A>>,
    /// So that containers that start together do not all send their first connection to the same task.
    seed: usize,
}

#[derive(Clone, Debug)]
struct Entry<A> {
    ring: Ring<A>,
    /// The kernel's counter starts again at 0 with every change; the order is rotated on so that the first backend is not
    /// favoured while a service scales.
    rotation: usize,
}

impl<A: Address> Balancers<A> {
    pub fn new(seed: usize) -> Self {
        Self { entries: BTreeMap::new(), past: BTreeMap::new(), used_before: BTreeSet::new(), seed }
    }

    /// Puts the base chain and the map into a fresh table.
    pub fn prepare(table: &mut Table) {
        table.sets.insert(VIPS.to_owned(), Set::map(A::TYPE, DataType::VERDICT));
        let hook = Hook::new(ChainType::Nat, HookPoint::Output, PRIORITY_DSTNAT);
        let note = Rule::new().destination_in::<A>(BALANCED).add_destination_and_protocol::<A>(USED);
        table.chain("output", Chain::base(hook, vec![note, Rule::new().destination_vmap::<A>(VIPS)]));
        table.sets.insert(BALANCED.to_owned(), Set::plain(A::TYPE));
        table.sets.insert(USED.to_owned(), Set { dynamic: Some(USED_SIZE), ..Set::plain(A::WITH_PROTOCOL) });
        let hook = Hook::new(ChainType::Filter, HookPoint::Output, 0);
        let refuse = Rule::new().destination_in::<A>(BALANCED).verdict(Verdict::Goto(REJECTED.to_owned()));
        table.chain("refuse", Chain::base(hook, vec![refuse]));
        table.chain(REJECTED, rejected());
    }

    /// Makes the balancers, and `table`, those of `wanted`.
    pub fn update(&mut self, table: &mut Table, wanted: &BTreeMap<A, &Ring<A>>) -> Changed<A> {
        let mut changed = Changed::default();
        self.entries.retain(|vip, entry| {
            let keep = wanted.contains_key(vip);
            if !keep {
                elements(table, BALANCED).remove(vip.bytes().as_slice());
                put(table, *vip, &Ring::default(), 0);
                changed.dropped.extend(entry.ring.backends.iter().map(|backend| (*vip, *backend)));
            }
            keep
        });
        for (vip, ring) in wanted {
            let rotation = match self.entries.get(vip) {
                Some(entry) if entry.ring == **ring => continue,
                Some(entry) => {
                    let now: BTreeSet<_> = ring.backends.iter().collect();
                    let gone = entry.ring.backends.iter().filter(|old| !now.contains(old));
                    changed.dropped.extend(gone.map(|backend| (*vip, *backend)));
                    entry.rotation + 1
                }
                None => {
                    changed.added.insert(*vip);
                    elements(table, BALANCED).insert(vip.bytes(), Element::Present);
                    self.seed
                }
            };
            put(table, *vip, ring, rotation);
            self.entries.insert(*vip, Entry { ring: (*ring).clone(), rotation });
        }
        for (vip, backend) in &changed.dropped {
            self.past.entry(*backend).or_default().insert(*vip);
        }
        changed
    }

    /// Reads what the container has used, from a table in its namespace.
    pub fn used(nft: &mut NftSocket, table: &str) -> Result<BTreeSet<Use<A>>, NftError> {
        let keys = nft.elements(A::FAMILY, table, USED)?;
        let parts = keys.iter().filter_map(|key| key.split_at_checked(A::LENGTH as usize));
        Ok(parts.filter_map(|(address, protocol)| Some((A::from_bytes(address)?, *protocol.first()?))).collect())
    }

    /// Remembers what an earlier table said.
    pub fn used_before(&mut self, used: BTreeSet<Use<A>>) {
        self.used_before.extend(used);
    }

    /// Whether `changed` and `gone` may concern any connection at all; if not, [`Self::forget`] has nothing to say.
    pub fn concerned(&self, changed: &Changed<A>, gone: &BTreeSet<A>) -> bool {
        *changed != Changed::default() || gone.iter().any(|address| self.past.contains_key(address))
    }

    /// Which connections of this container to forget, given what it has `used`.
    pub fn forget(&mut self, changed: &Changed<A>, gone: &BTreeSet<A>, mut used: BTreeSet<Use<A>>) -> Forget<A> {
        used.extend(&self.used_before);
        let mut forget = Forget { untranslated: changed.added.clone(), ..Forget::default() };
        for (vip, backend) in &changed.dropped {
            if used.contains(&(*vip, UDP)) {
                forget.datagrams.insert(*backend);
            }
        }
        for address in gone {
            let vips = self.past.remove(address).unwrap_or_default();
            if used.iter().any(|(vip, _)| vips.contains(vip)) {
                forget.all.insert(*address);
            }
        }
        forget
    }
}

/// A VIP and the protocol it was used by.
pub type Use<A> = (A, u8);

/// Tracked connections to forget, by who answers them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forget<A> {
    /// Backends that are dead.
    pub all: BTreeSet<A>,
    /// Backends that drain: a stream may end in its own time, the next datagram goes elsewhere.
    pub datagrams: BTreeSet<A>,
    /// Addresses to which something was sent before they were balanced, and which conntrack would leave so.
    pub untranslated: BTreeSet<A>,
}

/// What an update did that tracked connections should hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed<A> {
    /// VIPs that were no VIPs before.
    pub added: BTreeSet<A>,
    /// VIP and backend that takes no more connections of it.
    pub dropped: BTreeSet<(A, A)>,
}

impl<A> Default for Forget<A> {
    fn default() -> Self {
        Self { all: BTreeSet::new(), datagrams: BTreeSet::new(), untranslated: BTreeSet::new() }
    }
}

impl<A> Default for Changed<A> {
    fn default() -> Self {
        Self { added: BTreeSet::new(), dropped: BTreeSet::new() }
    }
}

fn elements<'t>(table: &'t mut Table, set: &str) -> &'t mut BTreeMap<Vec<u8>, Element> {
    &mut table.sets.get_mut(set).expect("the table was prepared").elements
}

fn put<A: Address>(table: &mut Table, vip: A, ring: &Ring<A>, rotation: usize) {
    let name = chain_name(vip);
    let key = vip.bytes();
    if ring.backends.is_empty() {
        elements(table, VIPS).remove(&key);
        table.chains.remove(&name);
    } else {
        elements(table, VIPS).insert(key, Element::Verdict(Verdict::Goto(name.clone())));
        table.chains.insert(name, Arc::new(Chain::regular(rules(ring, rotation))));
    }
}

fn chain_name(vip: impl Address) -> String {
    format!("vip-{vip}")
}

/// Rules of a VIP's chain.
fn rules<A: Address>(ring: &Ring<A>, rotation: usize) -> Vec<Rule> {
    match ring.backends.as_slice() {
        [] => Vec::new(),
        [only] => vec![Rule::new().dnat(*only)],
        _ => {
            let (by, order) = turned(ring, rotation);
            vec![Rule::new().dnat_chosen(by, &order), Rule::new().dnat(order[1])]
        }
    }
}

/// How one is chosen, and of what. Where a hash names the place, the places stay as they are.
pub(crate) fn turned<T: Copy>(ring: &Ring<T>, rotation: usize) -> (Choice, Vec<T>) {
    let mut order = ring.backends.clone();
    if ring.by_client {
        return (Choice::Source, order);
    }
    let by = rotation % order.len().max(1);
    order.rotate_left(by);
    (Choice::RoundRobin, order)
}

/// Nobody there: TCP is reset, everything else told that the port is unreachable, so that clients fail at once.
pub(crate) fn rejected() -> Chain {
    Chain::regular(vec![
        Rule::new().l4proto(TCP).reject(RejectWith::TcpReset),
        Rule::new().reject(RejectWith::IcmpPortUnreachable),
    ])
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::nft::{Family, Ownership};

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 1, last)
    }

    fn update(balancers: &mut Balancers<Ipv4Addr>, table: &mut Table, wanted: &[(u8, &[u8])]) -> Changed<Ipv4Addr> {
        let ring = |list: &[u8]| list.iter().map(|b| address(*b)).collect::<Vec<_>>().into();
        let wanted: BTreeMap<_, Ring<_>> = wanted.iter().map(|(vip, list)| (address(*vip), ring(list))).collect();
        balancers.update(table, &wanted.iter().map(|(vip, list)| (*vip, list)).collect())
    }

    #[test]
    fn only_a_changed_service_changes_its_chain_and_its_order_is_rotated() {
        let mut table = Table::new(Family::Ip, "t", Ownership::Shared);
        Balancers::<Ipv4Addr>::prepare(&mut table);
        let mut balancers = Balancers::new(0);
        let changed = update(&mut balancers, &mut table, &[(2, &[11, 12]), (3, &[21])]);
        assert_eq!(changed, Changed { added: [address(2), address(3)].into(), dropped: [].into() });
        let before = table.clone();
        assert_eq!(update(&mut balancers, &mut table, &[(2, &[11, 12]), (3, &[21])]), Changed::default());
        assert_eq!(crate::nft::difference(Some(&before), &table).messages(), 0);

        let changed = update(&mut balancers, &mut table, &[(2, &[11, 13, 14]), (3, &[21])]);
        assert_eq!(changed, Changed { added: [].into(), dropped: [(address(2), address(12))].into() });
        assert!(Arc::ptr_eq(&before.chains["vip-10.0.1.3"], &table.chains["vip-10.0.1.3"]));
        assert_eq!(
            table.chains["vip-10.0.1.2"].rules,
            vec![
                Rule::new().dnat_chosen(Choice::RoundRobin, &[address(13), address(14), address(11)]),
                Rule::new().dnat(address(14))
            ]
        );

        assert_eq!(update(&mut balancers, &mut table, &[(2, &[])]).dropped.len(), 4);
        assert!(!table.chains.contains_key("vip-10.0.1.2") && !table.chains.contains_key("vip-10.0.1.3"));
        assert!(table.sets[VIPS].elements.is_empty());
        assert_eq!(table.sets[BALANCED].elements.len(), 1);
    }

    #[test]
    fn only_what_was_used_is_forgotten() {
        let mut table = Table::new(Family::Ip, "t", Ownership::Shared);
        Balancers::<Ipv4Addr>::prepare(&mut table);
        let mut balancers = Balancers::new(0);
        update(&mut balancers, &mut table, &[(2, &[11, 12])]);
        let changed = update(&mut balancers, &mut table, &[(2, &[11])]);
        let (nobody, dead) = (BTreeSet::new(), BTreeSet::from([address(12)]));
        assert_eq!(balancers.forget(&changed, &nobody, [(address(2), TCP)].into()), Forget::default());
        let datagrams = balancers.forget(&changed, &nobody, [(address(2), UDP)].into());
        assert_eq!(datagrams, Forget { datagrams: dead.clone(), ..Forget::default() });

        let nothing = Changed::default();
        assert!(!balancers.concerned(&nothing, &[address(11)].into()));
        assert!(balancers.concerned(&nothing, &dead));
        let all = balancers.forget(&nothing, &dead, [(address(2), TCP)].into());
        assert_eq!(all, Forget { all: dead.clone(), ..Forget::default() });
        assert!(!balancers.concerned(&nothing, &dead));
    }
}
