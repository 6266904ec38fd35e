//! Subnets and VXLAN ids for networks; a leg on the ingress network and a number in the mesh for nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::{Ipv4Net, Ipv6Net};
use skep_model::cluster::{DEFAULT_POOL, DEFAULT_SUBNET_SIZE};
use skep_model::network::{
    DualStack, Network, NetworkAllocation, NetworkSpec, VNI_LAST, VNI_START, unique_local_subnet,
};
use skep_model::node::Node;
use skep_store::{Change, View};

use super::address;
use crate::dirty::Dirty;
use crate::plan::Plan;

pub(crate) fn networks_and_nodes(plan: &mut Plan, dirty: &Dirty) {
    if !(dirty.everything || dirty.world) {
        return;
    }
    let mut pending: Vec<_> =
        plan.view().networks().filter(|n| n.allocation.is_none() && !n.spec.is_node_local()).cloned().collect();
    // The mesh's network comes first, and so gets the first subnet, where tools look for it.
    pending.sort_by_key(|n| (!n.spec.ingress, n.meta.created_at, n.id.clone()));
    for network in pending {
        if let Ok(allocation) = allocate(plan.view(), &network) {
            plan.push(Change::AllocateNetwork { network_id: network.id.clone(), allocation });
        }
    }
    let nodes: Vec<_> = plan.view().nodes().cloned().collect();
    let mut indexes: BTreeSet<u16> = nodes.iter().filter_map(|n| n.mesh_index).collect();
    for node in nodes {
        give_leg(plan, &node, &mut indexes);
    }
}

/// The error says what is in its way.
fn allocate(view: &View, network: &Network) -> Result<NetworkAllocation, String> {
    let subnet = match network.spec.subnet.map(|asked| asked.trunc()) {
        Some(asked) => match taken(view, asked) {
            Some((other, name)) => return Err(format!("its subnet {asked} overlaps with {other} of network {name}")),
            None => asked,
        },
        None => free_subnet(view).ok_or("no subnet is free in the swarm's default address pool")?,
    };
    let has_use = |address: &Ipv4Addr| network.spec.auxiliary.values().any(|a| a == address);
    let gateway = network.spec.gateway.or_else(|| subnet.hosts().find(|address| !has_use(address)));
    let gateway = gateway.ok_or_else(|| format!("its subnet {subnet} has no address for a gateway"))?;
    let gateway6 = if network.spec.ipv6 { Some(gateway6(view, network, subnet, gateway)?) } else { None };
    Ok(NetworkAllocation { vni: vni(view, &network.spec)?, subnet, gateway, gateway6 })
}

/// Why nothing can be on a network that has no subnet, unless it gets one in a moment.
pub(super) fn obstacle(view: &View, network: &Network) -> Option<String> {
    let why = allocate(view, network).err()?;
    Some(format!("network {} cannot be used: {why}", network.spec.name))
}

/// With its subnet's prefix length: where the user says, else in the place that the gateway has in the other subnet.
fn gateway6(view: &View, network: &Network, subnet: Ipv4Net, gateway: Ipv4Addr) -> Result<Ipv6Net, String> {
    let pool = network.spec.pool6.as_ref();
    let subnet6 = pool.map_or_else(|| unique_local_subnet(&network.id), |pool| pool.subnet.trunc());
    let mut taken = allocated(view).filter_map(|(n, a)| Some((a.gateway6?, &n.spec.name)));
    if let Some((other, name)) = taken.find(|(other, _)| other.contains(&subnet6) || subnet6.contains(&other.trunc())) {
        return Err(format!("its subnet {subnet6} overlaps with {} of network {name}", other.trunc()));
    }
    let same_place = || DualStack { subnet, subnet6 }.six(gateway);
    let address = pool.and_then(|pool| pool.gateway).unwrap_or_else(same_place);
    Ipv6Net::new(address, subnet6.prefix_len()).map_err(|error| error.to_string())
}

/// The first of the list that the user gave, which is for as many subnets as a network may have; or the next free one.
fn vni(view: &View, spec: &NetworkSpec) -> Result<u32, String> {
    if let Some(asked) = spec.vxlan_id()? {
        return match allocated(view).find(|(_, a)| a.vni == asked) {
            Some((other, _)) => Err(format!("VXLAN id {asked} is that of network {}", other.spec.name)),
            None => Ok(asked),
        };
    }
    let used: BTreeSet<u32> = allocated(view).map(|(_, a)| a.vni).collect();
    (VNI_START..=VNI_LAST).find(|vni| !used.contains(vni)).ok_or_else(|| "no VXLAN id is free".to_owned())
}

fn allocated(view: &View) -> impl Iterator<Item = (&Network, &NetworkAllocation)> {
    view.networks().filter_map(|network| Some((&**network, network.allocation.as_ref()?)))
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

fn taken(view: &View, subnet: Ipv4Net) -> Option<(Ipv4Net, &str)> {
    let (other, allocation) = allocated(view).find(|(_, a)| overlap(a.subnet, subnet))?;
    Some((allocation.subnet, &other.spec.name))
}

/// The first subnet of the pools that no network has and no node lives in: an overlay over a host's own addresses would
/// cut the host off.
fn free_subnet(view: &View) -> Option<Ipv4Net> {
    // Before the first node has said where it is, nothing can be told.
    view.nodes().find(|n| n.status.address.is_some())?;
    let hosts: Vec<Ipv4Addr> = view.nodes().filter_map(|n| n.status.vtep()).collect();
    let default: Vec<Ipv4Net> = DEFAULT_POOL.parse().into_iter().collect();
    let (pools, size) = match view.cluster() {
        Some(cluster) if !cluster.default_address_pools.is_empty() => {
            (cluster.default_address_pools.clone(), cluster.subnet_size)
        }
        Some(_) | None => (default, DEFAULT_SUBNET_SIZE),
    };
    let used: Vec<Ipv4Net> = view.networks().filter_map(|n| n.allocation.as_ref()).map(|a| a.subnet).collect();
    let free = |subnet: &Ipv4Net| {
        !used.iter().any(|u| overlap(*u, *subnet)) && !hosts.iter().any(|host| subnet.contains(host))
    };
    pools.iter().find_map(|pool| pool.subnets(size.max(pool.prefix_len())).ok()?.find(free))
}

/// Every node has a leg on the ingress network, tasks or not: published ports are answered on all of them.
fn give_leg(plan: &mut Plan, node: &Node, indexes: &mut BTreeSet<u16>) {
    let ingress = plan.view().ingress_network().filter(|n| n.allocation.is_some()).cloned();
    let mut attachments = BTreeMap::new();
    if let Some(network) = ingress {
        let held = node.attachments.get(&network.id).copied();
        if let Some(address) = held.or_else(|| address::next(plan.view(), &network)) {
            attachments.insert(network.id.clone(), address);
        }
    }
    let mesh_index = node.mesh_index.or_else(|| (0..=u16::MAX).find(|index| !indexes.contains(index)));
    indexes.extend(mesh_index);
    if attachments != node.attachments || mesh_index != node.mesh_index {
        plan.push(Change::AllocateNode { node_id: node.id.clone(), attachments, mesh_index });
    }
}
