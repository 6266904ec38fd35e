//! What the engine is told at start, and the one thing it asks of the outside: network sandboxes.

use std::path::PathBuf;

use async_trait::async_trait;
use skep_model::ContainerId;
use skep_model::sandbox::{EndpointInfo, EndpointRequest, Sandbox, SandboxRequest};

use crate::error::Result;

/// dockerd's default `max-size` is unlimited; so is ours unless the daemon says otherwise.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Images, layers, containers, volumes: survives a reboot.
    pub data_root: PathBuf,
    /// Supervisor socket, exit codes, runtime state: does not.
    pub exec_root: PathBuf,
    /// Four hex digits that keep the names of several daemons on one kernel apart.
    pub instance: String,
    /// The cgroup all containers' cgroups are under (`--cgroup-parent`); absolute. `/skep-<instance>` unless told otherwise.
    pub cgroup_parent: String,
    /// The supervisor is started as `supervisor_exe supervisor_args… --exec-root <exec_root>`; normally
    /// `/proc/self/exe` and `["supervisor"]`.
    pub supervisor_exe: PathBuf,
    pub supervisor_args: Vec<String>,
    /// Bound to `/sbin/docker-init` in containers with `init: true`, run as `docker-init init -- command…`.
    pub init_exe: PathBuf,
    /// Registries (`host:port`, `host` or CIDR) that may be spoken to over plain HTTP; loopback always may.
    pub insecure_registries: Vec<String>,
    pub registry_mirrors: Vec<String>,
    /// Log driver and options of containers that name none.
    pub log_driver: String,
    pub log_options: std::collections::BTreeMap<String, String>,
}

impl EngineConfig {
    /// Everything at its default under the two roots.
    pub fn new(data_root: impl Into<PathBuf>, exec_root: impl Into<PathBuf>, instance: impl Into<String>) -> Self {
        let instance = instance.into();
        Self {
            data_root: data_root.into(),
            exec_root: exec_root.into(),
            cgroup_parent: format!("/skep-{instance}"),
            instance,
            supervisor_exe: "/proc/self/exe".into(),
            supervisor_args: vec!["supervisor".to_owned()],
            init_exe: "/proc/self/exe".into(),
            insecure_registries: Vec::new(),
            registry_mirrors: Vec::new(),
            log_driver: "json-file".to_owned(),
            log_options: std::collections::BTreeMap::new(),
        }
    }
}

/// Gives containers their network namespace. The node implements it over `net`; tests hand in a loopback-only one.
///
/// Every call may be repeated: `setup` of an existing sandbox gives back what is there, `teardown` of none is fine.
#[async_trait]
pub trait SandboxDriver: Send + Sync + 'static {
    async fn setup(&self, request: &SandboxRequest) -> Result<Sandbox>;
    async fn teardown(&self, id: &ContainerId) -> Result<()>;
    /// Connects a running container to one more network.
    async fn connect(&self, id: &ContainerId, request: &EndpointRequest) -> Result<EndpointInfo>;
    async fn disconnect(&self, id: &ContainerId, network: &str, force: bool) -> Result<()>;
    /// Told once at start, with the containers that live on: everything else of ours is stale and may go.
    async fn retain(&self, living: &[ContainerId]) -> Result<()> {
        let _ = living;
        Ok(())
    }
}
