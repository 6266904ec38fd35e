//! Published ports: those asked for are the service's already (`store.apply` saw to it); the others are chosen here.

use std::collections::BTreeSet;

use skep_model::cluster::{DEFAULT_DATA_PATH_PORT, GOSSIP_PORT};
use skep_model::service::{AUTO_PORT_FIRST, AUTO_PORT_LAST, PortConfig, Protocol, PublishMode, Service, ServiceSpec};
use skep_store::View;

/// The spec's ports with every published ingress port filled in; those given before are kept. `None` if none is free.
pub(super) fn fill(view: &View, service: &Service) -> Option<Vec<PortConfig>> {
    let mut given: Vec<PortConfig> = service.endpoint.iter().flat_map(|e| e.ports.iter().cloned()).collect();
    let mut used: Option<BTreeSet<(Protocol, u16)>> = None;
    let mut out = Vec::new();
    for port in service.spec.endpoint.iter().flat_map(|e| &e.ports) {
        let mut port = port.clone();
        if port.published_port == 0 && port.mode == PublishMode::Ingress {
            let same = |p: &PortConfig| {
                let auto = (AUTO_PORT_FIRST..=AUTO_PORT_LAST).contains(&p.published_port);
                auto && (p.protocol, p.target_port, p.mode) == (port.protocol, port.target_port, port.mode)
            };
            let used = used.get_or_insert_with(|| in_use(view, service));
            let kept = given.iter().position(same).map(|at| given.remove(at).published_port);
            let kept = kept.filter(|number| !used.contains(&(port.protocol, *number)));
            let free = || (AUTO_PORT_FIRST..=AUTO_PORT_LAST).find(|n| !used.contains(&(port.protocol, *n)));
            port.published_port = kept.or_else(free)?;
            used.insert((port.protocol, port.published_port));
        }
        out.push(port);
    }
    Some(out)
}

/// Held by others, or asked for by this service itself.
fn in_use(view: &View, service: &Service) -> BTreeSet<(Protocol, u16)> {
    let others = view.services().filter(|s| s.id != service.id).flat_map(|s| {
        let given = s.endpoint.iter().flat_map(|e| &e.ports);
        let asked = s.spec.endpoint.iter().flat_map(|e| &e.ports);
        given.chain(asked)
    });
    let own = service.spec.endpoint.iter().flat_map(|e| &e.ports);
    let published = others.chain(own).filter(|p| p.published_port != 0).map(|p| (p.protocol, p.published_port));
    published.chain(swarms_own(view)).collect()
}

/// Where the hosts of the swarm reach one another.
fn swarms_own(view: &View) -> BTreeSet<(Protocol, u16)> {
    let vxlan = view.cluster().map_or(DEFAULT_DATA_PATH_PORT, |cluster| cluster.data_path_port);
    let fixed = [
        (Protocol::Tcp, GOSSIP_PORT),
        (Protocol::Udp, GOSSIP_PORT),
        (Protocol::Udp, vxlan),
        (Protocol::Udp, vxlan.saturating_add(1)),
    ];
    let managers = view.nodes().filter_map(|node| node.manager.as_ref());
    managers.map(|manager| (Protocol::Tcp, manager.address.port())).chain(fixed).collect()
}

/// Why a service may not publish what it asks for. A port in the mesh takes whatever comes to it on any host: with one of the
/// swarm's own no host would hear of another again, not even that the service is gone.
pub fn reserved_port(view: &View, spec: &ServiceSpec) -> Option<String> {
    let own = swarms_own(view);
    let port = spec.ingress_ports().find(|port| own.contains(&(port.protocol, port.published_port)))?;
    Some(format!(
        "port '{}/{}' is one of the swarm's own: hosts reach one another by it, so it cannot be published on all of them; \
         publish another one",
        port.published_port, port.protocol
    ))
}
