//! Published ports: those asked for are the service's already (`store.apply` saw to it); the others are chosen here.

use std::collections::BTreeSet;

use skep_model::service::{AUTO_PORT_FIRST, AUTO_PORT_LAST, PortConfig, Protocol, PublishMode, Service};
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
    others.chain(own).filter(|p| p.published_port != 0).map(|p| (p.protocol, p.published_port)).collect()
}
