//! Endpoints of other hosts, as fixed entries of a VXLAN link: address to MAC, MAC to host. On a network with IPv6 the address
//! that goes with the other one has an entry, too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use skep_model::network::{DualStack, mac_of};

use crate::link::{Entry, Links};

type Remote = BTreeMap<Ipv4Addr, Ipv4Addr>;
/// Its address, and that of its host.
pub(super) type RemoteEndpoint = (Ipv4Addr, Ipv4Addr);

/// The link, and what of an address is written to it.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) links: &'a Links,
    pub(super) link: u32,
    pub(super) dual_stack: Option<DualStack>,
}

impl Place<'_> {
    /// What a link that was adopted has already, whole.
    pub(super) fn read(self) -> std::io::Result<Remote> {
        let mut neighbours = BTreeMap::new();
        let mut six = BTreeSet::new();
        let mut forwards = BTreeMap::new();
        for entry in self.links.entries(self.link)? {
            match entry {
                Entry::Neighbour { address: IpAddr::V4(address), mac, .. } => _ = neighbours.insert(address, mac),
                Entry::Neighbour { address: IpAddr::V6(address), mac, .. } => _ = six.insert((address, mac)),
                Entry::Forward { mac, vtep, .. } => _ = forwards.insert(mac, vtep),
            }
        }
        let whole = |address, mac| self.dual_stack.is_none_or(|dual| six.contains(&(dual.six(address), mac)));
        let found = neighbours.into_iter().filter(|(address, mac)| whole(*address, *mac));
        Ok(found.filter_map(|(address, mac)| Some((address, *forwards.get(&mac)?))).collect())
    }

    fn entries(self, address: Ipv4Addr, vtep: Ipv4Addr) -> impl Iterator<Item = Entry> {
        let (link, mac) = (self.link, mac_of(address));
        let six = self.dual_stack.map(|dual| IpAddr::from(dual.six(address)));
        let neighbours = [IpAddr::from(address)].into_iter().chain(six);
        let neighbours = neighbours.map(move |address| Entry::Neighbour { link, address, mac });
        [Entry::Forward { link, mac, vtep }].into_iter().chain(neighbours)
    }

    pub(super) fn put(self, missing: &[RemoteEndpoint]) -> Written {
        let list: Vec<Entry> = missing.iter().flat_map(|(address, vtep)| self.entries(*address, *vtep)).collect();
        written(missing, list.len(), self.links.set_entries(&list))
    }

    pub(super) fn prune(self, stale: &[RemoteEndpoint]) -> Written {
        let list: Vec<Entry> = stale.iter().flat_map(|(address, vtep)| self.entries(*address, *vtep)).collect();
        written(stale, list.len(), self.links.delete_entries(&list))
    }
}

/// How many entries there were, the endpoints all of whose entries the kernel took, and words for the others.
type Written = (usize, Vec<RemoteEndpoint>, Vec<String>);

fn written(endpoints: &[RemoteEndpoint], count: usize, answers: std::io::Result<Vec<std::io::Result<()>>>) -> Written {
    let (mut done, mut failures) = (Vec::new(), Vec::new());
    match answers {
        Err(error) if count > 0 => failures.push(format!("failed to write {count} forwarding entries: {error}")),
        Ok(answers) if count > 0 => {
            for ((address, vtep), of_it) in endpoints.iter().zip(answers.chunks(count / endpoints.len())) {
                match of_it.iter().find_map(|answer| answer.as_ref().err()) {
                    None => done.push((*address, *vtep)),
                    Some(error) => {
                        failures.push(format!("failed to write the forwarding of {address} to {vtep}: {error}"));
                    }
                }
            }
        }
        _ => {}
    }
    (count, done, failures)
}
