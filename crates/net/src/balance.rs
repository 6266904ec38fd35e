//! The rules that balance a service's virtual address (VIP) over its tasks, inside the client container's own namespace.
//!
//! ```text
//! chain output { type nat hook output priority -100; ip daddr vmap @vips }
//! map vips { 10.0.1.2 : goto vip-10.0.1.2, … }
//! chain vip-10.0.1.2 { dnat to numgen inc mod 2 map { 0 : 10.0.1.12, 1 : 10.0.1.21 }; dnat to 10.0.1.21 }
//! ```
//!
//! One chain, hence one counter, per VIP: a counter shared by two services would give alternating clients always the same
//! tasks. The second rule makes a swap hitless: the kernel switches a chain's rules and a map's elements to a new
//! generation one after the other, so that a packet in the old rules may miss every element of the old map, and conntrack
//! would pin that connection to the VIP itself, where nobody answers.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::nft::expr::RejectWith;
use crate::nft::{Chain, ChainType, DataType, Element, Hook, HookPoint, Rule, Set, Table, Verdict};

const VIPS: &str = "vips";
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
    }

    /// Makes the balancers, and `table`, those of `wanted`. Returns per VIP the backends that are no longer in use.
    pub fn update(
        &mut self,
        table: &mut Table,
        wanted: &BTreeMap<Ipv4Addr, &Vec<Ipv4Addr>>,
    ) -> Vec<(Ipv4Addr, Vec<Ipv4Addr>)> {
        let mut dropped = Vec::new();
        let vips = table.sets.get_mut(VIPS).expect("the table was prepared");
        self.entries.retain(|vip, entry| {
            let keep = wanted.contains_key(vip);
            if !keep {
                vips.elements.remove(vip.octets().as_slice());
                table.chains.remove(&chain_name(*vip));
                dropped.push((*vip, std::mem::take(&mut entry.backends)));
            }
            keep
        });
        for (vip, backends) in wanted {
            let rotation = match self.entries.get(vip) {
                Some(entry) if entry.backends == **backends => continue,
                Some(entry) => {
                    let gone: Vec<_> = entry.backends.iter().filter(|old| !backends.contains(old)).copied().collect();
                    if !gone.is_empty() {
                        dropped.push((*vip, gone));
                    }
                    entry.rotation + 1
                }
                None => self.seed,
            };
            let name = chain_name(*vip);
            vips.elements.insert(vip.octets().to_vec(), Element::Verdict(Verdict::Goto(name.clone())));
            table.chains.insert(name, Arc::new(Chain::regular(rules(backends, rotation))));
            self.entries.insert(*vip, Entry { backends: (*backends).clone(), rotation });
        }
        dropped
    }
}

fn chain_name(vip: Ipv4Addr) -> String {
    format!("vip-{vip}")
}

/// Rules of a VIP's chain.
fn rules(backends: &[Ipv4Addr], rotation: usize) -> Vec<Rule> {
    match backends {
        [] => refuse(),
        [only] => vec![Rule::new().dnat(*only)],
        several => {
            let mut order = several.to_vec();
            order.rotate_left(rotation % several.len());
            vec![Rule::new().dnat_round_robin(&order), Rule::new().dnat(order[1])]
        }
    }
}

/// Nobody there: TCP is reset, everything else told that the port is unreachable, so that clients fail at once.
pub(crate) fn refuse() -> Vec<Rule> {
    vec![
        Rule::new().l4proto(TCP).reject(RejectWith::TcpReset),
        Rule::new().reject(RejectWith::IcmpPortUnreachable),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::{Family, Ownership};

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 1, last)
    }

    fn update(balancers: &mut Balancers, table: &mut Table, wanted: &[(u8, &[u8])]) -> Vec<(Ipv4Addr, Vec<Ipv4Addr>)> {
        let wanted: BTreeMap<_, Vec<_>> =
            wanted.iter().map(|(vip, list)| (address(*vip), list.iter().map(|b| address(*b)).collect())).collect();
        balancers.update(table, &wanted.iter().map(|(vip, list)| (*vip, list)).collect())
    }

    #[test]
    fn only_a_changed_service_changes_its_chain_and_its_order_is_rotated() {
        let mut table = Table::new(Family::Ip, "t", Ownership::Shared);
        Balancers::prepare(&mut table);
        let mut balancers = Balancers::new(0);
        assert!(update(&mut balancers, &mut table, &[(2, &[11, 12]), (3, &[21])]).is_empty());
        let before = table.clone();
        assert!(update(&mut balancers, &mut table, &[(2, &[11, 12]), (3, &[21])]).is_empty());
        assert_eq!(crate::nft::difference(Some(&before), &table).messages(), 0);

        let dropped = update(&mut balancers, &mut table, &[(2, &[11, 13, 14]), (3, &[21])]);
        assert_eq!(dropped, [(address(2), vec![address(12)])]);
        assert!(Arc::ptr_eq(&before.chains["vip-10.0.1.3"], &table.chains["vip-10.0.1.3"]));
        assert_eq!(
            table.chains["vip-10.0.1.2"].rules,
            vec![
                Rule::new().dnat_round_robin(&[address(13), address(14), address(11)]),
                Rule::new().dnat(address(14))
            ]
        );

        assert_eq!(update(&mut balancers, &mut table, &[(2, &[])]).len(), 2);
        assert_eq!(table.chains["vip-10.0.1.2"].rules, refuse());
        assert!(!table.chains.contains_key("vip-10.0.1.3"));
        assert_eq!(table.sets[VIPS].elements.len(), 1);
    }
}
