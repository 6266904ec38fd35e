//! The rules that balance a service's virtual address (VIP) over its tasks, inside the client container's own namespace.
//!
//! ```text
//! chain output { type nat hook output priority -100; ip daddr vmap @vips }
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
//! What still has a VIP as destination after translation has no backend and is refused. (`reject` does nothing in a nat
//! chain; and before translation it would cut the connections of backends that drain.)

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::nft::expr::RejectWith;
use crate::nft::{Chain, ChainType, DataType, Element, Hook, HookPoint, Rule, Set, Table, Verdict};

const VIPS: &str = "vips";
const BALANCED: &str = "balanced";
/// The chain that refuses.
pub(crate) const REJECTED: &str = "rejected";
const TCP: u8 = 6;
/// Where destination NAT happens.
const PRIORITY_DSTNAT: i32 = -100;

/// The balancers of one container, and the nf_tables table that says the same.
#[derive(Clone, Debug)]
pub struct Balancers {
    entries: BTreeMap<Ipv4Addr, Entry>,
    /// So that containers that start together do not all send their first connection to the same task.
    seed: usize,
}

#[derive(Clone, Debug)]
struct Entry {
    backends: Vec<Ipv4Addr>,
    /// The kernel's counter starts again at 0 with every change; the order is rotated on so that the first backend is not
    /// favoured while a service scales.
    rotation: usize,
}

impl Balancers {
    pub fn new(seed: usize) -> Self {
        Self { entries: BTreeMap::new(), seed }
    }

    /// Puts the base chain and the map into a fresh table.
    pub fn prepare(table: &mut Table) {
        table.sets.insert(VIPS.to_owned(), Set::map(DataType::IPV4, DataType::VERDICT));
        let hook = Hook::new(ChainType::Nat, HookPoint::Output, PRIORITY_DSTNAT);
        table.chain("output", Chain::base(hook, vec![Rule::new().destination_vmap(VIPS)]));
        table.sets.insert(BALANCED.to_owned(), Set::set(DataType::IPV4));
        let hook = Hook::new(ChainType::Filter, HookPoint::Output, 0);
        let refuse = Rule::new().destination_in(BALANCED).verdict(Verdict::Goto(REJECTED.to_owned()));
        table.chain("refuse", Chain::base(hook, vec![refuse]));
        table.chain(REJECTED, rejected());
    }

    /// Makes the balancers, and `table`, those of `wanted`.
    pub fn update(&mut self, table: &mut Table, wanted: &BTreeMap<Ipv4Addr, &Vec<Ipv4Addr>>) -> Changed {
        let mut changed = Changed::default();
        self.entries.retain(|vip, entry| {
            let keep = wanted.contains_key(vip);
            if !keep {
                elements(table, BALANCED).remove(vip.octets().as_slice());
                put(table, *vip, &[], 0);
                changed.dropped.extend(std::mem::take(&mut entry.backends));
            }
            keep
        });
        for (vip, backends) in wanted {
            let rotation = match self.entries.get(vip) {
                Some(entry) if entry.backends == **backends => continue,
                Some(entry) => {
                    changed.dropped.extend(entry.backends.iter().filter(|old| !backends.contains(old)));
                    entry.rotation + 1
                }
                None => {
                    changed.added.insert(*vip);
                    elements(table, BALANCED).insert(vip.octets().to_vec(), Element::Present);
                    self.seed
                }
            };
            put(table, *vip, backends, rotation);
            self.entries.insert(*vip, Entry { backends: (*backends).clone(), rotation });
        }
        changed
    }
}

/// What an update did that tracked connections should hear of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// VIPs that were no VIPs before.
    pub added: BTreeSet<Ipv4Addr>,
    /// Backends that take no more connections of some VIP.
    pub dropped: BTreeSet<Ipv4Addr>,
}

fn elements<'t>(table: &'t mut Table, set: &str) -> &'t mut BTreeMap<Vec<u8>, Element> {
    &mut table.sets.get_mut(set).expect("the table was prepared").elements
}

fn put(table: &mut Table, vip: Ipv4Addr, backends: &[Ipv4Addr], rotation: usize) {
    let name = chain_name(vip);
    let key = vip.octets().to_vec();
    if backends.is_empty() {
        elements(table, VIPS).remove(&key);
        table.chains.remove(&name);
    } else {
        elements(table, VIPS).insert(key, Element::Verdict(Verdict::Goto(name.clone())));
        table.chains.insert(name, Arc::new(Chain::regular(rules(backends, rotation))));
    }
}

fn chain_name(vip: Ipv4Addr) -> String {
    format!("vip-{vip}")
}

/// Rules of a VIP's chain.
fn rules(backends: &[Ipv4Addr], rotation: usize) -> Vec<Rule> {
    match backends {
        [] => Vec::new(),
        [only] => vec![Rule::new().dnat(*only)],
        several => {
            let mut order = several.to_vec();
            order.rotate_left(rotation % several.len());
            vec![Rule::new().dnat_round_robin(&order), Rule::new().dnat(order[1])]
        }
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
    use super::*;
    use crate::nft::{Family, Ownership};

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 1, last)
    }

    fn update(balancers: &mut Balancers, table: &mut Table, wanted: &[(u8, &[u8])]) -> Changed {
        let wanted: BTreeMap<_, Vec<_>> =
            wanted.iter().map(|(vip, list)| (address(*vip), list.iter().map(|b| address(*b)).collect())).collect();
        balancers.update(table, &wanted.iter().map(|(vip, list)| (*vip, list)).collect())
    }

    #[test]
    fn only_a_changed_service_changes_its_chain_and_its_order_is_rotated() {
        let mut table = Table::new(Family::Ip, "t", Ownership::Shared);
        Balancers::prepare(&mut table);
        let mut balancers = Balancers::new(0);
        let changed = update(&mut balancers, &mut table, &[(2, &[11, 12]), (3, &[21])]);
        assert_eq!(changed, Changed { added: [address(2), address(3)].into(), dropped: [].into() });
        let before = table.clone();
        assert_eq!(update(&mut balancers, &mut table, &[(2, &[11, 12]), (3, &[21])]), Changed::default());
        assert_eq!(crate::nft::difference(Some(&before), &table).messages(), 0);

        let changed = update(&mut balancers, &mut table, &[(2, &[11, 13, 14]), (3, &[21])]);
        assert_eq!(changed, Changed { added: [].into(), dropped: [address(12)].into() });
        assert!(Arc::ptr_eq(&before.chains["vip-10.0.1.3"], &table.chains["vip-10.0.1.3"]));
        assert_eq!(
            table.chains["vip-10.0.1.2"].rules,
            vec![
                Rule::new().dnat_round_robin(&[address(13), address(14), address(11)]),
                Rule::new().dnat(address(14))
            ]
        );

        assert_eq!(update(&mut balancers, &mut table, &[(2, &[])]).dropped.len(), 4);
        assert!(!table.chains.contains_key("vip-10.0.1.2") && !table.chains.contains_key("vip-10.0.1.3"));
        assert!(table.sets[VIPS].elements.is_empty());
        assert_eq!(table.sets[BALANCED].elements.len(), 1);
    }
}
