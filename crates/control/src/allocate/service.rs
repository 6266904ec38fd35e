//! A service's endpoint: its VIPs and published ports.

use std::sync::Arc;

use ipnet::Ipv4Net;
use skep_model::ServiceId;
use skep_model::network::{HOST_NETWORKS, Network};
use skep_model::service::{Endpoint, EndpointSpec, ResolutionMode, Service, ServiceSpec, VirtualIp};
use skep_store::{Change, View};

use super::{address, network, port};
use crate::dirty::Dirty;
use crate::plan::Plan;

pub(crate) fn services(plan: &mut Plan, dirty: &Dirty) {
    let all = dirty.everything || dirty.world;
    let wanted = |s: &&Arc<Service>| all || dirty.services.contains(&s.id);
    let pending: Vec<ServiceId> =
        plan.view().services().filter(wanted).filter(|s| !is_settled(plan.view(), s)).map(|s| s.id.clone()).collect();
    for id in pending {
        let Some(service) = plan.view().service(&id).cloned() else { continue };
        if let Ok(endpoint) = endpoint(plan.view(), &service) {
            plan.push(Change::SetEndpoint { service_id: id, endpoint });
        }
    }
}

/// The overlays a service's tasks join, in the spec's order. Networks of a host itself (`host`, `bridge`) and those every host
/// makes for itself have no part in it, and no VIP (swarmkit); one that is gone or has no subnet yet is an error for the user.
pub(super) fn networks(view: &View, spec: &ServiceSpec) -> Result<Vec<Arc<Network>>, String> {
    let mut out: Vec<Arc<Network>> = Vec::new();
    for attachment in spec.networks() {
        if HOST_NETWORKS.contains(&attachment.target.as_str()) {
            continue;
        }
        let network = view.find_network(&attachment.target).map_err(|error| error.to_string())?;
        if !network.spec.is_node_local() && out.iter().all(|known| known.id != network.id) {
            out.push(ready(view, network)?);
        }
    }
    Ok(out)
}

/// The mesh's network, if the service publishes through it.
pub(super) fn ingress(view: &View, spec: &ServiceSpec) -> Result<Option<Arc<Network>>, String> {
    if spec.ingress_ports().next().is_none() {
        return Ok(None);
    }
    let network = view.ingress_network().ok_or("no ingress network is present")?;
    ready(view, network).map(Some)
}

fn ready(view: &View, network: &Arc<Network>) -> Result<Arc<Network>, String> {
    if network.allocation.is_some() {
        Ok(network.clone())
    } else {
        let soon = || format!("network {} has no subnet yet", network.spec.name);
        Err(network::obstacle(view, network).unwrap_or_else(soon))
    }
}

/// Networks on which the service has a VIP.
fn vip_networks(view: &View, spec: &ServiceSpec) -> Result<Vec<Arc<Network>>, String> {
    if spec.resolution_mode() == ResolutionMode::DnsRoundRobin {
        return Ok(Vec::new());
    }
    let mut out = networks(view, spec)?;
    out.extend(ingress(view, spec)?);
    Ok(out)
}

/// Whether nothing is left to give: also true of a service that needs nothing.
pub(super) fn is_settled(view: &View, service: &Service) -> bool {
    let asked = service.spec.endpoint.clone().unwrap_or_default();
    let Ok(networks) = vip_networks(view, &service.spec) else { return false };
    match &service.endpoint {
        None => asked == EndpointSpec::default() && networks.is_empty(),
        Some(endpoint) => {
            endpoint.spec == asked
                && endpoint.virtual_ips.len() == networks.len()
                && endpoint.virtual_ips.iter().zip(&networks).all(|(vip, network)| vip.network_id == network.id)
        }
    }
}

fn endpoint(view: &View, service: &Service) -> Result<Endpoint, String> {
    let ports = port::fill(view, service).ok_or("no free port in 30000-32767")?;
    let mut virtual_ips = Vec::new();
    for network in vip_networks(view, &service.spec)? {
        let held = service.endpoint.iter().flat_map(|e| &e.virtual_ips).find(|v| v.network_id == network.id);
        virtual_ips.push(match held {
            Some(vip) => vip.clone(),
            None => VirtualIp { network_id: network.id.clone(), address: fresh(view, &network)? },
        });
    }
    Ok(Endpoint { spec: service.spec.endpoint.clone().unwrap_or_default(), ports, virtual_ips })
}

/// A free address with its network's prefix length.
pub(super) fn fresh(view: &View, network: &Network) -> Result<Ipv4Net, String> {
    let exhausted = || format!("{} on network {}", address::EXHAUSTED, network.spec.name);
    let address = address::next(view, network).ok_or_else(exhausted)?;
    let prefix = network.allocation.as_ref().map_or(32, |a| a.subnet.prefix_len());
    Ipv4Net::new(address, prefix).map_err(|error| error.to_string())
}

/// Why a service has no endpoint yet, for its tasks to show; empty if it has.
pub(super) fn obstacle(view: &View, service: &Service) -> String {
    if is_settled(view, service) {
        return String::new();
    }
    endpoint(view, service).err().unwrap_or_default()
}
