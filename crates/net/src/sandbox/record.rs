//! What is known of a sandbox, as it is kept on disk.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use skep_model::network::INGRESS_NETWORK_NAME;
use skep_model::sandbox::{EndpointInfo, PublishedPort, SandboxRequest};
use skep_model::{ContainerId, NetworkId};

use crate::bridge::{DEFAULT_NETWORK, write_atomically};

/// What interfaces of containers are called where the network does not say otherwise.
pub(crate) const INTERFACE_PREFIX: &str = "eth";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) request: SandboxRequest,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) published: Vec<PublishedPort>,
    /// The network the default route and published ports lead through.
    pub(crate) gateway: Option<NetworkId>,
    /// The network the IPv6 default route leads through.
    #[serde(default)]
    pub(crate) gateway6: Option<NetworkId>,
    /// Number of the next `eth`.
    pub(crate) next_interface: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Endpoint {
    pub(crate) info: EndpointInfo,
    /// `eth0`, `eth1`, …
    pub(crate) name: String,
    pub(crate) kind: EndpointKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum EndpointKind {
    /// On a bridge of this host, by the host's end of this name.
    Bridge { host_end: String, internal: bool },
    /// On the wire of the host's interface; its link is in the container alone.
    Macvlan { internal: bool },
    /// The way out of a container that has none by its own networks; not shown to users.
    WayOut { host_end: String },
    /// On an overlay of the plan; its link is the data plane's.
    Overlay { internal: bool },
}

impl Endpoint {
    pub(crate) fn host_end(&self) -> Option<&str> {
        match &self.kind {
            EndpointKind::Bridge { host_end, .. } | EndpointKind::WayOut { host_end } => Some(host_end),
            EndpointKind::Overlay { .. } | EndpointKind::Macvlan { .. } => None,
        }
    }

    pub(crate) fn is_overlay(&self) -> bool {
        matches!(self.kind, EndpointKind::Overlay { .. })
    }

    /// Leads out of the host.
    pub(crate) fn is_way_out(&self) -> bool {
        matches!(
            self.kind,
            EndpointKind::Bridge { internal: false, .. }
                | EndpointKind::Macvlan { internal: false }
                | EndpointKind::WayOut { .. }
        )
    }

    /// Ports of the host lead to it where they are published: a macvlan's container has all ports of an address of its own.
    pub(crate) fn takes_ports(&self) -> bool {
        !matches!(self.kind, EndpointKind::Macvlan { .. })
    }

    fn is_shown(&self) -> bool {
        !matches!(self.kind, EndpointKind::WayOut { .. })
    }
}

impl Record {
    pub(crate) fn new(request: SandboxRequest) -> Self {
        Self { request, endpoints: Vec::new(), published: Vec::new(), gateway: None, gateway6: None, next_interface: 0 }
    }

    pub(crate) fn container(&self) -> &ContainerId {
        &self.request.container_id
    }

    pub(crate) fn take_name(&mut self, prefix: &str) -> String {
        if prefix == INTERFACE_PREFIX {
            self.next_interface += 1;
            return format!("{prefix}{}", self.next_interface - 1);
        }
        let is_free = |name: &String| self.endpoints.iter().all(|endpoint| endpoint.name != *name);
        (0..).map(|number: u32| format!("{prefix}{number}")).find(is_free).unwrap_or_default()
    }

    /// Endpoints as users see them.
    pub(crate) fn shown(&self) -> Vec<EndpointInfo> {
        self.endpoints.iter().filter(|endpoint| endpoint.is_shown()).map(|endpoint| endpoint.info.clone()).collect()
    }

    /// The endpoint that ought to carry the default route: the present one as long as it is there.
    pub(crate) fn choose_gateway(&self) -> Option<&Endpoint> {
        let present = self.endpoints.iter().find(|endpoint| Some(&endpoint.info.network_id) == self.gateway.as_ref());
        present.or_else(|| self.endpoints.iter().find(|endpoint| endpoint.is_way_out()))
    }

    /// The endpoint that ought to carry the IPv6 default route: where the other one leads, if IPv6 does too.
    pub(crate) fn choose_gateway6(&self) -> Option<&Endpoint> {
        let leads_out = |endpoint: &&Endpoint| endpoint.info.gateway6.is_some();
        let first = self.choose_gateway().filter(leads_out);
        first.or_else(|| self.endpoints.iter().find(leads_out))
    }

    /// Has a network that leads out, but only through overlays: needs `docker_gwbridge`.
    pub(crate) fn needs_way_out(&self) -> bool {
        self.is_on_open_overlay() && !self.endpoints.iter().any(Endpoint::is_way_out)
    }

    /// Without one, `docker_gwbridge` would lead a container out that is on internal networks alone.
    pub(crate) fn is_on_open_overlay(&self) -> bool {
        self.endpoints.iter().any(|endpoint| matches!(endpoint.kind, EndpointKind::Overlay { internal: false }))
    }

    /// Containers on the default bridge alone, or on no network, have no names to resolve.
    pub(crate) fn needs_resolver(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.is_shown() && endpoint.info.network_name != DEFAULT_NETWORK)
    }

    /// The networks whose names are looked up, in order; the mesh's comes last.
    pub(crate) fn name_networks(&self) -> Vec<NetworkId> {
        let mut endpoints: Vec<&Endpoint> = self.endpoints.iter().filter(|endpoint| endpoint.is_shown()).collect();
        endpoints.sort_by_key(|endpoint| endpoint.info.network_name == INGRESS_NETWORK_NAME);
        endpoints.into_iter().map(|endpoint| endpoint.info.network_id.clone()).collect()
    }

    pub(crate) fn save(&self, directory: &Path) -> io::Result<()> {
        write_atomically(&path(directory, self.container()), &serde_json::to_vec(self)?)
    }

    pub(crate) fn delete(directory: &Path, container: &ContainerId) -> io::Result<()> {
        match std::fs::remove_file(path(directory, container)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// All records of a directory; one that cannot be read is as good as none, and is taken away.
    pub(crate) fn load_all(directory: &Path) -> Vec<Self> {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let path = entry.path();
                let record = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
                if record.is_none() {
                    tracing::warn!(path = %path.display(), "unreadable record of a sandbox is removed");
                    let _ = std::fs::remove_file(&path);
                }
                record
            })
            .collect()
    }
}

fn path(directory: &Path, container: &ContainerId) -> PathBuf {
    directory.join(format!("{container}.json"))
}
