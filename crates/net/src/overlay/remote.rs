//! Endpoints of other hosts, as fixed entries of a VXLAN link: address to MAC, MAC to host.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use skep_model::network::mac_of;

use crate::link::{Entry, Links};

type Remote = BTreeMap<Ipv4Addr, Ipv4Addr>;

/// What a link that was adopted has already.
pub(super) fn read(links: &Links, link: u32) -> std::io::Result<Remote> {
    let mut neighbours = BTreeMap::new();
    let mut forwards = BTreeMap::new();
    for entry in links.entries(link)? {
        match entry {
            Entry::Neighbour { address, mac, .. } => _ = neighbours.insert(address, mac),
            Entry::Forward { mac, vtep, .. } => _ = forwards.insert(mac, vtep),
        }
    }
    Ok(neighbours.into_iter().filter_map(|(address, mac)| Some((address, *forwards.get(&mac)?))).collect())
}

fn entries(link: u32, address: Ipv4Addr, vtep: Ipv4Addr) -> [Entry; 2] {
    let mac = mac_of(address);
    [Entry::Forward { link, mac, vtep }, Entry::Neighbour { link, address, mac }]
}

pub(super) fn put(links: &Links, link: u32, applied: &mut Remote, wanted: &Remote) -> (usize, Vec<String>) {
    let missing: Vec<_> = wanted
        .iter()
        .filter(|(address, vtep)| applied.get(*address) != Some(vtep))
        .map(|(address, vtep)| (*address, *vtep))
        .collect();
    let mut list = Vec::with_capacity(missing.len() * 2);
    for (address, vtep) in &missing {
        list.extend(entries(link, *address, *vtep));
    }
    let failures = perform(&missing, list.len(), links.set_entries(&list), |address, vtep| {
        applied.insert(address, vtep);
    });
    (list.len(), failures)
}

pub(super) fn prune(links: &Links, link: u32, applied: &mut Remote, wanted: &Remote) -> (usize, Vec<String>) {
    let stale: Vec<_> = applied
        .iter()
        .filter(|(address, _)| !wanted.contains_key(*address))
        .map(|(address, vtep)| (*address, *vtep))
        .collect();
    let mut list = Vec::with_capacity(stale.len() * 2);
    for (address, vtep) in &stale {
        list.extend(entries(link, *address, *vtep));
    }
    let failures = perform(&stale, list.len(), links.delete_entries(&list), |address, _| {
        applied.remove(&address);
    });
    (list.len(), failures)
}

/// Notes the endpoints both of whose entries the kernel took; words for the others.
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
    for ((address, vtep), pair) in endpoints.iter().zip(answers.chunks(2)) {
        match pair.iter().find_map(|answer| answer.as_ref().err()) {
            None => done(*address, *vtep),
            Some(error) => failures.push(format!("failed to write the forwarding of {address} to {vtep}: {error}")),
        }
    }
    failures
}
