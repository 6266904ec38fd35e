//! An address of a network has at most one live owner, in every prefix of the log: a task that has not ended, a service's
//! VIP, or a node's leg.

use std::collections::BTreeMap;

use super::{Entry, Holds, Invariant};

pub(crate) struct Addresses;

impl Invariant for Addresses {
    fn entry(&mut self, entry: &Entry<'_>) -> Holds {
        let mut owners = BTreeMap::new();
        let tasks = entry.state.tasks.values().filter(|t| !t.status.state.is_terminal());
        let of_tasks = tasks.flat_map(|t| {
            t.networks.iter().map(move |n| (n.network_id.clone(), n.address.addr(), format!("task {}", t.name())))
        });
        let of_services = entry.state.services.values().flat_map(|s| {
            let vips = s.endpoint.iter().flat_map(|e| &e.virtual_ips);
            vips.map(move |v| (v.network_id.clone(), v.ip(), format!("service {}", s.spec.name)))
        });
        let of_nodes = entry.state.nodes.values().flat_map(|n| {
            let name = &n.description.hostname;
            n.attachments.iter().map(move |(network, address)| (network.clone(), *address, format!("node {name}")))
        });
        for (network, address, owner) in of_tasks.chain(of_services).chain(of_nodes) {
            if let Some(other) = owners.insert((network, address), owner.clone()) {
                return Err(format!("{other} and {owner} both have {address} at entry {}", entry.index));
            }
        }
        Ok(())
    }
}
