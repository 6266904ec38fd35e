//! The façade: every call from outside comes in here.

use std::sync::Arc;

use skep_model::plan::HostPlan;
use skep_model::sandbox::{EndpointInfo, EndpointRequest, LocalNetwork, LocalNetworkSpec, Sandbox, SandboxRequest};
use skep_model::{ContainerId, NetworkId};

use crate::config::NetConfig;
use crate::dataplane::ApplyReport;
use crate::error::Result;

/// The network side of one host. Cheap to clone.
#[derive(Clone)]
pub struct Net {
    _inner: Arc<()>,
}

impl Net {
    /// Reads what an earlier daemon left, makes the default networks, and brings back the sandboxes that are still there
    /// with their resolvers and published ports. Must be called in the host's network namespace.
    pub async fn open(_config: NetConfig) -> Result<Self> {
        unimplemented!()
    }

    /// Makes a container's sandbox, or gives back the one it has.
    pub async fn setup_sandbox(&self, _request: &SandboxRequest) -> Result<Sandbox> {
        unimplemented!()
    }

    /// Takes a sandbox away with everything in it. Succeeds when there is none.
    pub async fn teardown_sandbox(&self, _container: &ContainerId) -> Result<()> {
        unimplemented!()
    }

    /// Told once after a start which containers live on: all other sandboxes go.
    pub async fn retain_sandboxes(&self, _living: &[ContainerId]) -> Result<()> {
        unimplemented!()
    }

    /// A sandbox as it is now: `connect` and `disconnect` change its endpoints and files.
    pub fn sandbox(&self, _container: &ContainerId) -> Option<Sandbox> {
        unimplemented!()
    }

    /// Connects a running container to one more network.
    pub async fn connect(&self, _container: &ContainerId, _request: &EndpointRequest) -> Result<EndpointInfo> {
        unimplemented!()
    }

    /// Disconnects a container from a network, by the network's name or id. With `force`, a container that is not
    /// connected is no error.
    pub async fn disconnect(&self, _container: &ContainerId, _network: &str, _force: bool) -> Result<()> {
        unimplemented!()
    }

    /// Makes the host's swarm networking look like `plan`, and connects the sandboxes that waited for a network of it.
    /// A plan with any overlay makes `docker_gwbridge`.
    pub async fn apply(&self, _plan: &HostPlan) -> ApplyReport {
        unimplemented!()
    }

    /// Networks of this host alone, by name.
    pub fn networks(&self) -> Vec<LocalNetwork> {
        unimplemented!()
    }

    /// By full name, full id, or the beginning of an id, in this order.
    pub fn network(&self, _name_or_id: &str) -> Result<LocalNetwork> {
        unimplemented!()
    }

    pub async fn create_network(&self, _spec: LocalNetworkSpec) -> Result<LocalNetwork> {
        unimplemented!()
    }

    pub async fn remove_network(&self, _name_or_id: &str) -> Result<NetworkId> {
        unimplemented!()
    }

    /// Makes `docker_gwbridge` if it is not there: on `swarm init` and `swarm join`, as tools expect.
    pub async fn ensure_gwbridge(&self) -> Result<LocalNetwork> {
        unimplemented!()
    }

    /// Closes resolvers and held ports; containers and their namespaces stay.
    pub async fn close(&self) {
        unimplemented!()
    }
}
