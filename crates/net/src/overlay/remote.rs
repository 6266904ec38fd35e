//! Endpoints of other hosts, as fixed entries of a VXLAN link: address to MAC, MAC to host. On a network with IPv6 the address
//! that goes with the other one has an entry, too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use skep_model::network::{DualStack, mac_of};

use crate::link::{Entry, Links};

type Remote = BTreeMap<Ipv4Addr, Ipv4Addr>;

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

    pub(super) fn put(self, applied: &mut Remote, wanted: &Remote) -> (usize, Vec<String>) {
        let missing: Vec<_> = wanted
            .iter()
            .filter(|(address, vtep)| applied.get(*address) != Some(vtep))
            .map(|(address, vtep)| (*address, *vtep))
            .collect();
        let list: Vec<Entry> = missing.iter().flat_map(|(address, vtep)| self.entries(*address, *vtep)).collect();
        let failures = perform(&missing, list.len(), self.links.set_entries(&list), |address, vtep| {
            applied.insert(address, vtep);
        });
        (list.len(), failures)
    }

    pub(super) fn prune(self, applied: &mut Remote, wanted: &Remote) -> (usize, Vec<String>) {
        let stale: Vec<_> = applied
            .iter()
            .filter(|(address, _)| !wanted.contains_key(*address))
            .map(|(address, vtep)| (*address, *vtep))
            .collect();
        let list: Vec<Entry> = stale.iter().flat_map(|(address, vtep)| self.entries(*address, *vtep)).collect();
        let failures = perform(&stale, list.len(), self.links.delete_entries(&list), |address, _| {
            applied.remove(&address);
        });
        (list.len(), failures)
    }
}

/// Notes the endpoints all of whose entries the kernel took; words for the others.
fn perform(
    endpoints: &[(Ipv4Addr, Ipv4Addr)],
    count: usize,
    answers: std::io::Result<Vec<std::io::Result<()>>>,
    mut done: impl FnMut(Ipv4Addr, Ipv4Addr),
) -> Vec<String> {
    if count == 0 {
        return Vec::new();
    }
    let answers = match answers {
        Ok(answers) => answers,
        Err(error) => return vec![format!("failed to write {count} forwarding entries: {error}")],
    };
    let mut failures = Vec::new();
    for ((address, vtep), of_it) in endpoints.iter().zip(answers.chunks(count / endpoints.len())) {
        match of_it.iter().find_map(|answer| answer.as_ref().err()) {
            None => done(*address, *vtep),
            Some(error) => failures.push(format!("failed to write the forwarding of {address} to {vtep}: {error}")),
        }
    }
    failures
}
