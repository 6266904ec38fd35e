//! An address of a network has at most one live owner, in every prefix of the log: a task that has not ended, a service's
//! VIP, a node's leg, or a container that is no task.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use skep_model::NetworkId;
use skep_model::network::Network;
use skep_model::node::Node;
use skep_model::service::Service;
use skep_model::task::Task;

use super::{Entry, Holds, Invariant, State};

pub(crate) struct Addresses;

/// Every address that is held, and by whom.
pub(super) fn holders<'a>(
    tasks: impl Iterator<Item = &'a Task>,
    services: impl Iterator<Item = &'a Service>,
    nodes: impl Iterator<Item = &'a Node>,
    networks: impl Iterator<Item = &'a Network>,
) -> impl Iterator<Item = (NetworkId, Ipv4Addr, String)> {
    let of_tasks = tasks.filter(|t| !t.status.state.is_terminal()).flat_map(|t| {
        t.networks.iter().map(move |n| (n.network_id.clone(), n.address.addr(), format!("task {}", t.name())))
    });
    let of_services = services.flat_map(|s| {
        let vips = s.endpoint.iter().flat_map(|e| &e.virtual_ips);
        vips.map(move |v| (v.network_id.clone(), v.ip(), format!("service {}", s.spec.name)))
    });
    let of_nodes = nodes.flat_map(|n| {
        let name = &n.description.hostname;
        n.attachments.iter().map(move |(network, address)| (network.clone(), *address, format!("node {name}")))
    });
    let of_containers = networks.flat_map(|n| {
        let attached = n.attachments.iter();
        attached.filter_map(|(id, a)| Some((n.id.clone(), a.address?, format!("container {}", id.short()))))
    });
    of_tasks.chain(of_services).chain(of_nodes).chain(of_containers)
}

impl Invariant for Addresses {
    fn entry(&mut self, entry: &Entry<'_>) -> Holds {
        let mut owners = BTreeMap::new();
        let State { tasks, services, nodes, networks } = entry.state;
        let (tasks, networks) = (tasks.values().map(|t| &**t), networks.values().map(|n| &**n));
        for (network, address, owner) in
            holders(tasks, services.values().map(|s| &**s), nodes.values().map(|n| &**n), networks)
        {
            if let Some(other) = owners.insert((network, address), owner.clone()) {
                return Err(format!("{other} and {owner} both have {address} at entry {}", entry.index));
            }
        }
        Ok(())
    }
}
