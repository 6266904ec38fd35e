//! No two services share a published port, in every prefix of the log: asked for or given, in the mesh's mode.

use std::collections::BTreeMap;

use skep_model::service::PublishMode;

use super::{Entry, Holds, Invariant};

pub(crate) struct Ports;

impl Invariant for Ports {
    fn entry(&mut self, entry: &Entry<'_>) -> Holds {
        let mut owners = BTreeMap::new();
        for service in entry.state.services.values() {
            let given = service.endpoint.iter().flat_map(|e| &e.ports);
            let asked = service.spec.endpoint.iter().flat_map(|e| &e.ports);
            for port in given.chain(asked).filter(|p| p.published_port != 0 && p.mode == PublishMode::Ingress) {
                let key = (port.protocol, port.published_port);
                let other = owners.insert(key, service);
                if let Some(other) = other.filter(|other| other.id != service.id) {
                    let (a, b) = (&other.spec.name, &service.spec.name);
                    return Err(format!("{a} and {b} both publish {} at entry {}", port.published_port, entry.index));
                }
            }
        }
        Ok(())
    }
}
