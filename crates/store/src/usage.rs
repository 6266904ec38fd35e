//! Who uses what: why a network, secret or config cannot go, and why a published port cannot be had.

use std::collections::BTreeSet;

use skep_model::network::HOST_NETWORKS;
use skep_model::service::{PortConfig, Protocol, PublishMode, Service, ServiceSpec};
use skep_model::task::TaskState;
use skep_model::{ConfigId, NetworkId, SecretId, ServiceId};

use crate::refused::Refused;
use crate::view::View;

/// Whether the spec names the network, by id or by name.
fn names_network(spec: &ServiceSpec, id: &NetworkId, name: &str) -> bool {
    spec.networks().iter().any(|n| n.target == id.as_str() || n.target == name)
}

fn in_use(kind: &str, name: &str, services: &[&str]) -> Result<(), Refused> {
    if services.is_empty() {
        return Ok(());
    }
    let word = if services.len() == 1 { "service" } else { "services" };
    Err(Refused::InUse(format!(
        "rpc error: code = InvalidArgument desc = {kind} '{name}' is in use by the following {word}: {}",
        services.join(", ")
    )))
}

impl View {
    pub(crate) fn network_unused(&self, id: &NetworkId, name: &str) -> Result<(), Refused> {
        let refuse = |what: &str, by: &dyn std::fmt::Display| {
            Err(Refused::InUse(format!(
                "rpc error: code = FailedPrecondition desc = network {id} is in use by {what} {by}"
            )))
        };
        if let Some(service) = self.services().find(|s| names_network(&s.spec, id, name)) {
            return refuse("service", &service.id);
        }
        if let Some(attached) = self.network(id).and_then(|n| n.attachments.values().next()) {
            let name = attached.names.first().map(String::as_str).unwrap_or_default();
            return refuse("container", &format_args!("{name} on node {}", attached.node_id));
        }
        let attached =
            self.tasks().find(|task| task.is_wanted() && task.status.state <= TaskState::Running && task.joins(id));
        match attached {
            Some(task) => refuse("task", &task.id),
            None => Ok(()),
        }
    }

    pub(crate) fn secret_unused(&self, id: &SecretId, name: &str) -> Result<(), Refused> {
        let uses = |s: &&std::sync::Arc<Service>| s.spec.task.container.secrets.iter().any(|r| r.secret_id == *id);
        let services: Vec<_> = self.services().filter(uses).map(|s| s.spec.name.as_str()).collect();
        in_use("secret", name, &services)
    }

    pub(crate) fn config_unused(&self, id: &ConfigId, name: &str) -> Result<(), Refused> {
        let uses = |s: &&std::sync::Arc<Service>| s.spec.task.container.configs.iter().any(|r| r.config_id == *id);
        let services: Vec<_> = self.services().filter(uses).map(|s| s.spec.name.as_str()).collect();
        in_use("config", name, &services)
    }

    /// swarmkit `checkSecretExistence`, `checkConfigExistence`, and the same for networks: any may have been removed since the
    /// spec was looked at.
    pub(crate) fn all_exist(&self, spec: &ServiceSpec) -> Result<(), Refused> {
        let container = &spec.task.container;
        let is_lost = |target: &str| !HOST_NETWORKS.contains(&target) && self.find_network(target).is_err();
        if let Some(lost) = spec.networks().iter().find(|n| is_lost(&n.target)) {
            return Err(Refused::not_found("network", &lost.target));
        }
        let secrets =
            container.secrets.iter().filter(|r| self.secret(&r.secret_id).is_none_or(|s| s.name != r.secret_name));
        not_found("secret", secrets.map(|r| r.secret_name.as_str()).collect())?;
        let configs =
            container.configs.iter().filter(|r| self.config(&r.config_id).is_none_or(|c| c.name != r.config_name));
        not_found("config", configs.map(|r| r.config_name.as_str()).collect())
    }

    /// swarmkit `checkPortConflicts`: an ingress port is held on every host, so it is unique in the swarm; host ports may
    /// be shared by services, which the scheduler then keeps apart.
    pub(crate) fn ports_free(&self, own: &ServiceId, wanted: &[PortConfig]) -> Result<(), Refused> {
        let key = |p: &PortConfig| (p.protocol, p.published_port);
        let of = |mode| wanted.iter().filter(move |p| p.mode == mode && p.published_port != 0).map(key);
        let ingress: BTreeSet<(Protocol, u16)> = of(PublishMode::Ingress).collect();
        let host: BTreeSet<(Protocol, u16)> = of(PublishMode::Host).collect();
        if ingress.is_empty() && host.is_empty() {
            return Ok(());
        }
        for service in self.services().filter(|s| s.id != *own) {
            let spec = service.spec.endpoint.iter().flat_map(|e| &e.ports);
            let given = service.endpoint.iter().flat_map(|e| &e.ports);
            for port in spec.chain(given).filter(|p| p.published_port != 0) {
                let what = match port.mode {
                    PublishMode::Host if ingress.contains(&key(port)) => "a host-published port",
                    PublishMode::Ingress if ingress.contains(&key(port)) || host.contains(&key(port)) => {
                        "an ingress port"
                    }
                    PublishMode::Host | PublishMode::Ingress => continue,
                };
                return Err(Refused::PortInUse(format!(
                    "port '{}' is already in use by service '{}' ({}) as {what}",
                    port.published_port, service.spec.name, service.id
                )));
            }
        }
        Ok(())
    }
}

fn not_found(kind: &str, names: Vec<&str>) -> Result<(), Refused> {
    match names.len() {
        0 => Ok(()),
        1 => Err(Refused::Invalid(format!("{kind} not found: {}", names[0]))),
        _ => Err(Refused::Invalid(format!("{kind}s not found: {}", names.join(", ")))),
    }
}
