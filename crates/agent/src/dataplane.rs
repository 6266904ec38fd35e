//! From assignments to the host's kernel state: overlays, balancers, names, the mesh.
//!
//! Decides who is reachable under which name and who takes new connections. Must not know what a link or a rule looks like.
//! The same set gives the same plan on every host but for what is the host's own: its addresses, and where in the ring of
//! backends it begins, so that hosts do not all begin with the same one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use skep_model::assignment::{AssignmentSet, EndpointRecord, ServiceRecord};
use skep_model::dns::Zone;
use skep_model::network::{BRIDGE, Network, mac_of};
use skep_model::plan::{Backend, Guard, HostPlan, IngressPlan, MeshPort, OverlayPlan, Ring};
use skep_model::service::PublishMode;
use skep_model::{NetworkId, NodeId, ServiceId, TaskId};

mod ring;

use ring::{Candidate, fnv};

/// What this host's kernel should hold.
pub fn plan(set: &AssignmentSet, self_node: &NodeId, vxlan_port: u16) -> HostPlan {
    let own = set.nodes.get(self_node);
    let members: BTreeSet<Ipv4Addr> =
        set.nodes.iter().filter(|(id, _)| *id != self_node).map(|(_, node)| node.vtep).collect();
    let overlays = set
        .networks
        .values()
        .filter(|network| network.allocation.is_some())
        .map(|network| (network.id.clone(), overlay(set, self_node, network)))
        .collect();
    HostPlan {
        vtep: own.map(|node| node.vtep),
        vxlan_port,
        members: members.into_iter().collect(),
        overlays,
        ingress: set.networks.values().find(|n| n.spec.ingress).and_then(|n| ingress(set, self_node, n)),
        zones: set
            .networks
            .values()
            .filter(|network| network.spec.is_node_local())
            .map(|network| (network.id.clone(), zone(set, network, self_node)))
            .collect(),
    }
}

fn endpoints<'a>(
    set: &'a AssignmentSet,
    network: &'a NetworkId,
) -> impl Iterator<Item = (&'a TaskId, &'a EndpointRecord)> {
    let from = set.endpoints.iter().filter(move |((on, _), _)| on == network);
    from.map(|((_, task), endpoint)| (task, endpoint))
}

fn overlay(set: &AssignmentSet, self_node: &NodeId, network: &Network) -> OverlayPlan {
    let id = &network.id;
    let allocation = network.allocation.as_ref();
    let (mut local, mut remote) = (BTreeSet::new(), BTreeMap::new());
    let tasks = endpoints(set, id).map(|(_, endpoint)| (&endpoint.node_id, Some(endpoint.address)));
    let others = network.attachments.values().map(|attachment| (&attachment.node_id, attachment.address));
    for (node_id, address) in tasks.chain(others) {
        let Some(address) = address else { continue };
        if node_id == self_node {
            local.insert(address);
        } else if let Some(node) = set.nodes.get(node_id) {
            remote.insert(address, node.vtep);
        }
    }
    if network.spec.ingress {
        let legs = set.nodes.iter().filter(|(node, _)| *node != self_node);
        remote.extend(legs.filter_map(|(_, node)| Some((node.ingress_address?, node.vtep))));
    }
    let serving = serving(set, id);
    let mut balancers = BTreeMap::new();
    for (service, record) in &set.services {
        if let Some(vip) = record.virtual_ips.get(id) {
            let backends = serving.get(service).map(Vec::as_slice).unwrap_or_default();
            balancers.insert(*vip, ring_of(backends, record, (self_node, service), |address| address));
        }
    }
    let encrypted = network.spec.is_encrypted();
    let narrowest_link = set.nodes.values().filter_map(|node| node.link_mtu).min();
    OverlayPlan {
        name: network.spec.name.clone(),
        vni: allocation.map_or(0, |a| a.vni),
        subnet: allocation.map(|a| a.subnet),
        gateway: allocation.map(|a| a.gateway),
        dual_stack: allocation.and_then(|a| a.dual_stack()),
        mtu: network.spec.mtu(narrowest_link),
        internal: network.spec.internal,
        local,
        remote,
        balancers,
        guards: guards(set, network),
        zone: zone(set, network, self_node),
        // Keys that are not here, as after a restart without a manager, are no reason to do without.
        keys: encrypted.then(|| network.keys.clone().unwrap_or_default()),
    }
}

/// The services on a network that say who may ask them. Everything with an address counts, whatever its state: a client
/// that begins to run needs its servers before it serves. A name that no service has is nobody's.
///
/// The mesh's own network is guarded, too: tasks of other services have an address there, and what is published is asked for
/// from outside or through a host.
fn guards(set: &AssignmentSet, network: &Network) -> Vec<Guard> {
    let restricted = set.services.iter().filter_map(|(id, record)| Some((id, record.traffic.allow_from.as_ref()?)));
    let mut guards = Vec::new();
    for (id, names) in restricted {
        let mut guard = Guard { outside: network.spec.ingress, ..Guard::default() };
        for (_, endpoint) in endpoints(set, &network.id) {
            if endpoint.service_id == *id {
                guard.tasks.insert(endpoint.address);
            }
            if set.services.get(&endpoint.service_id).is_some_and(|client| names.contains(&client.name)) {
                guard.clients.insert(endpoint.address);
            }
        }
        if network.spec.ingress {
            guard.clients.extend(set.nodes.values().filter_map(|node| node.ingress_address));
        }
        if !guard.tasks.is_empty() {
            guards.push(guard);
        }
    }
    guards
}

/// An endpoint that may be given new connections.
struct Serving<'a> {
    address: Ipv4Addr,
    task: &'a TaskId,
    node: &'a NodeId,
    weight: u8,
}

/// Those that may be given new connections, by service and address.
fn serving<'a>(set: &'a AssignmentSet, network: &'a NetworkId) -> BTreeMap<ServiceId, Vec<Serving<'a>>> {
    let mut out: BTreeMap<ServiceId, Vec<Serving<'a>>> = BTreeMap::new();
    for (task, endpoint) in endpoints(set, network).filter(|(_, e)| e.serving) {
        let node = &endpoint.node_id;
        let weight = set.nodes.get(node).map_or(1, |node| node.weight);
        let one = Serving { address: endpoint.address, task, node, weight };
        out.entry(endpoint.service_id.clone()).or_default().push(one);
    }
    out.values_mut().for_each(|backends| backends.sort_unstable_by_key(|backend| backend.address));
    out
}

fn ring_of<'a, T: Clone>(
    backends: impl IntoIterator<Item = &'a Serving<'a>>,
    record: &ServiceRecord,
    (node, service): (&NodeId, &ServiceId),
    make: impl Fn(Ipv4Addr) -> T,
) -> Ring<T> {
    let candidates: Vec<_> = backends
        .into_iter()
        .map(|one| Candidate { backend: make(one.address), weight: one.weight, key: one.task.as_str() })
        .collect();
    let place = fnv(node.as_str().bytes().chain(service.as_str().bytes()));
    ring::ring(&candidates, record.traffic.by_client, place)
}

/// Who answers to which name on a network. The mesh's own network has no names: Docker hides it from resolvers too.
fn zone(set: &AssignmentSet, network: &Network, self_node: &NodeId) -> Zone {
    let mut zone = Zone { network_name: network.spec.name.clone(), internal: network.spec.internal, ..Zone::default() };
    if network.spec.ingress {
        return zone;
    }
    let reached = |node: &NodeId| network.spec.driver != BRIDGE || node == self_node;
    let endpoints: Vec<_> = endpoints(set, &network.id).filter(|(_, endpoint)| reached(&endpoint.node_id)).collect();
    for (id, record) in &set.services {
        let own: Vec<_> = endpoints.iter().filter(|(_, e)| e.service_id == *id).map(|(_, e)| *e).collect();
        if !own.is_empty() || record.virtual_ips.contains_key(&network.id) {
            service_names(&own, network, record, &mut zone);
        }
    }
    for (task, endpoint) in endpoints {
        // A stopping task is still found by its own name: others may be finishing with it.
        zone.add(&endpoint.task_name, endpoint.address);
        zone.add_reverse(endpoint.address, &endpoint.task_name);
        zone.add(task.as_str(), endpoint.address);
    }
    for attachment in network.attachments.values().filter(|attachment| reached(&attachment.node_id)) {
        let Some(address) = attachment.address else { continue };
        attachment.names.iter().for_each(|name| zone.add(name, address));
        if let Some(name) = attachment.names.first() {
            zone.add_reverse(address, name);
        }
    }
    zone.names.values_mut().for_each(|addresses| {
        addresses.sort_unstable();
        addresses.dedup();
    });
    if let Some(dual) = network.allocation.as_ref().and_then(|a| a.dual_stack()) {
        zone.six = zone.names.values().flatten().map(|address| (*address, dual.six(*address))).collect();
    }
    zone
}

fn service_names(own: &[&EndpointRecord], network: &Network, record: &ServiceRecord, zone: &mut Zone) {
    let serving: Vec<Ipv4Addr> = own.iter().filter(|e| e.serving).map(|e| e.address).collect();
    let aliases: BTreeSet<&String> = own.iter().flat_map(|e| &e.aliases).collect();
    let vip = record.virtual_ips.get(&network.id);
    for name in std::iter::once(&record.name).chain(aliases) {
        match vip {
            Some(vip) => zone.add(name, *vip),
            // Known, even while nothing serves: the answer is empty, not a question to the outside.
            None => zone.add_all(name, &serving),
        }
        zone.add_all(&format!("tasks.{name}"), &serving);
    }
    if let Some(vip) = vip {
        zone.add_reverse(*vip, &record.name);
    }
}

/// Filling a zone; names fold to lower case.
trait Names {
    fn add(&mut self, name: &str, address: Ipv4Addr);
    fn add_all(&mut self, name: &str, addresses: &[Ipv4Addr]);
    fn add_reverse(&mut self, address: Ipv4Addr, name: &str);
}

impl Names for Zone {
    fn add(&mut self, name: &str, address: Ipv4Addr) {
        self.add_all(name, &[address]);
    }

    fn add_all(&mut self, name: &str, addresses: &[Ipv4Addr]) {
        self.names.entry(name.to_lowercase()).or_default().extend_from_slice(addresses);
    }

    fn add_reverse(&mut self, address: Ipv4Addr, name: &str) {
        self.addresses.entry(address).or_default().push(name.to_owned());
    }
}

fn ingress(set: &AssignmentSet, self_node: &NodeId, network: &Network) -> Option<IngressPlan> {
    let own = set.nodes.get(self_node)?;
    let subnet = network.allocation.as_ref()?.subnet;
    let address = own.ingress_address.and_then(|a| Ipv4Net::new(a, subnet.prefix_len()).ok());
    let node_macs = set.nodes.values().filter_map(|n| Some((n.mesh_index?, mac_of(n.ingress_address?)))).collect();
    let serving = serving(set, &network.id);
    let mut ports = BTreeMap::new();
    for (id, record) in &set.services {
        let backends = serving.get(id).map(Vec::as_slice).unwrap_or_default();
        let backends = || backends.iter().filter(|one| !record.traffic.local || one.node == self_node);
        for port in record.ports.iter().filter(|p| p.mode == PublishMode::Ingress && p.published_port != 0) {
            let backend = |address| Backend { address, port: port.target_port };
            let ring = ring_of(backends(), record, (self_node, id), backend);
            let traffic = &record.traffic;
            let published = MeshPort { ring, masquerade: traffic.masquerade, proxy_protocol: traffic.proxy_protocol };
            ports.insert((port.protocol, port.published_port), published);
        }
    }
    Some(IngressPlan {
        network_id: Some(network.id.clone()),
        address,
        mesh_index: own.mesh_index.unwrap_or(0),
        node_macs,
        ports,
    })
}

#[cfg(test)]
mod tests;
