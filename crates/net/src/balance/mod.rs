//! The rules that balance a service's virtual address (VIP) over its tasks, inside the client container's own namespace.
//!
//! ```text
//! chain output { type nat hook output priority -100; ip daddr @balanced add @used { ip daddr . meta l4proto }
//!                                                    ip daddr vmap @vips; ip daddr vmap @vips }
//! chain vip-10.0.1.2 { … }     # see `rings`
//! chain refuse { type filter hook output priority 0; ip daddr @balanced goto rejected }
//! ```
//!
//! The same for IPv6, in a table of its own, on networks that have it.
//!
//! What still has a VIP as destination after translation has no backend and is refused. (`reject` does nothing in a nat
//! chain; and before translation it would cut the connections of backends that drain.)

mod order;
pub(crate) mod rings;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use skep_model::plan::Ring;

use crate::nft::expr::{Choice, RejectWith};
use crate::nft::{
    Address, Bytes, Chain, ChainType, DataType, Element, Hook, HookPoint, NftError, NftSocket, Rule, Set, Table,
    Verdict,
};

pub(crate) use order::order;
use rings::{Destination, Rings, elements};

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
pub struct Balancers<A: Address> {
    rings: Rings<Vip<A>>,
    /// Backends that take no more connections, and of which VIPs they were: they may still have some.
    past: BTreeMap<A, BTreeSet<A>>,
    /// What [`USED`] had in tables before this one.
    used_before: BTreeSet<Use<A>>,
    /// So that containers that start together do not all send their first connection to the same task.
    seed: usize,
}

/// A virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Vip<A>(A);

impl<A: Address> Destination for Vip<A> {
    type Backend = A;
    const BACKEND: DataType = A::TYPE;

    fn chains(self) -> String {
        VIPS.to_owned()
    }

    fn chain(self) -> String {
        // `nft` reads no colon in a name.
        format!("vip-{}", self.0).replace(':', "_")
    }

    fn key(self) -> Bytes {
        self.0.bytes()
    }

    fn value(backend: A) -> Bytes {
        backend.bytes()
    }

    fn to_only(self, backend: A) -> Rule {
        Rule::new().dnat(backend)
    }

    fn to_numbered(self, by: Choice, numbers: Range<u32>, map: &str) -> Rule {
        Rule::new().dnat_numbered::<A>(by, numbers, map)
    }
}

impl<A: Address> Balancers<A> {
    pub fn new(seed: usize) -> Self {
        Self { rings: Rings::default(), past: BTreeMap::new(), used_before: BTreeSet::new(), seed }
    }

    /// Puts the base chain and the map into a fresh table.
    pub fn prepare(table: &mut Table) {
        table.sets.insert(VIPS.to_owned(), Set::map(A::TYPE, DataType::VERDICT));
        let hook = Hook::new(ChainType::Nat, HookPoint::Output, PRIORITY_DSTNAT);
        let balance = Rule::new().destination_vmap::<A>(VIPS);
        let note = Rule::new().destination_in::<A>(BALANCED).add_destination_and_protocol::<A>(USED);
        table.chain("output", Chain::base(hook, vec![note, balance.clone(), balance]));
        table.sets.insert(BALANCED.to_owned(), Set::plain(A::TYPE));
        table.sets.insert(USED.to_owned(), Set { dynamic: Some(USED_SIZE), ..Set::plain(A::WITH_PROTOCOL) });
        let hook = Hook::new(ChainType::Filter, HookPoint::Output, 0);
        let refuse = Rule::new().destination_in::<A>(BALANCED).verdict(Verdict::Goto(REJECTED.to_owned()));
        table.chain("refuse", Chain::base(hook, vec![refuse]));
        table.chain(REJECTED, rejected());
    }

    /// Makes the balancers, and `table`, those of `wanted`.
    pub fn update(&mut self, table: &mut Table, wanted: &BTreeMap<A, &Ring<A>>) -> Changed<A> {
        let turned = self.rings.update(table, wanted.iter().map(|(vip, ring)| (Vip(*vip), *ring)), |_| self.seed);
        let balanced = elements(table, BALANCED);
        for Vip(vip) in turned.removed {
            balanced.remove(vip.bytes().as_slice());
        }
        for Vip(vip) in &turned.added {
            balanced.insert(vip.bytes(), Element::Present);
        }
        let changed = Changed {
            added: turned.added.into_iter().map(|Vip(vip)| vip).collect(),
            dropped: turned.dropped.into_iter().map(|(Vip(vip), backend)| (vip, backend)).collect(),
        };
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
    fn only_a_changed_service_changes() {
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
        assert_eq!(before.chains, table.chains);
        // Some places taken from the map, and put back with others.
        assert_eq!(crate::nft::difference(Some(&before), &table).messages(), 2);

        assert_eq!(update(&mut balancers, &mut table, &[(2, &[])]).dropped.len(), 4);
        assert!(!table.chains.contains_key("vip-10.0.1.2") && !table.chains.contains_key("vip-10.0.1.3"));
        assert!(table.sets[VIPS].elements.is_empty() && !table.sets.keys().any(|name| name.starts_with("places")));
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
