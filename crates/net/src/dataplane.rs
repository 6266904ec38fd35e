//! The host's swarm state in the kernel: takes a whole [`HostPlan`], compares it with what was applied last, sends the difference.
//!
//! Decides the order in which overlays, balancers and the mesh are changed. Must not know why a plan is what it is, nor
//! about bridge networks of this host.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnet::Ipv4Net;
use skep_model::plan::HostPlan;
use skep_model::{ContainerId, NetworkId};

use crate::link::Namespace;

/// Where a data plane lives.
#[derive(Clone, Debug)]
pub struct DataplaneConfig {
    /// Overlay namespaces are mounted at `<exec_root>/netns/ov-<short network id>`.
    pub exec_root: PathBuf,
    /// The daemon's four hex digits in kernel names.
    pub tag: String,
    /// The host's namespace: the one the daemon runs in.
    pub host: Namespace,
}

/// A container's place on an overlay.
#[derive(Clone, Debug)]
pub struct Attachment {
    pub container_id: ContainerId,
    pub network_id: NetworkId,
    /// The container's namespace.
    pub namespace: Namespace,
    pub address: Ipv4Addr,
    /// `eth0`, `eth1`, …: the name inside the container.
    pub ifname: String,
}

/// What [`Dataplane::connect`] made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    pub network_name: String,
    /// With the subnet's prefix length.
    pub address: Ipv4Net,
    pub mac: [u8; 6],
}

/// What [`Dataplane::apply`] did and could not do. Failures leave the rest of the plan applied and are tried again by the
/// next `apply`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApplyReport {
    /// Netlink messages and sysctl writes that changed something; 0 when the plan was already in place.
    pub changes: usize,
    /// What is not as the plan wants it, in words for the log.
    pub failures: Vec<String>,
}

/// Errors of connecting a container.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    #[error("network {0} not found")]
    NoSuchNetwork(NetworkId),
    #[error("failed to {action}")]
    Kernel { action: String, source: std::io::Error },
}

pub struct Dataplane {
    #[expect(dead_code, reason = "published before its body")]
    config: DataplaneConfig,
}

impl Dataplane {
    pub fn new(config: DataplaneConfig) -> Self {
        Self { config }
    }

    /// Makes the kernel look like `plan`. Idempotent; the first call after a start adopts what an earlier daemon left and
    /// is still wanted, and removes the rest.
    pub async fn apply(&self, _plan: &HostPlan) -> ApplyReport {
        unimplemented!()
    }

    /// Gives the container an interface on the overlay and the overlay's balancers. The network must be in the applied
    /// plan. Idempotent, so that sandboxes may be made again after a restart.
    pub async fn connect(&self, _attachment: &Attachment) -> Result<Attached, DataplaneError> {
        unimplemented!()
    }

    /// Takes the interface and the balancers away. Succeeds when there is nothing to take.
    pub async fn disconnect(&self, _container_id: &ContainerId, _network_id: &NetworkId) -> Result<(), DataplaneError> {
        unimplemented!()
    }

    /// The container's namespace is going: disconnects everything and closes the sockets that would pin it.
    pub async fn forget(&self, _container_id: &ContainerId) {
        unimplemented!()
    }
}
