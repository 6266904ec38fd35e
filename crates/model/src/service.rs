//! A service: what a user wants to run, and how.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::task::TaskSpec;
use crate::{Labels, Meta, NetworkId, ServiceId, Timestamp};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    pub id: ServiceId,
    pub meta: Meta,
    /// Version index at which the task template last changed; a task made from an older one is not up to date.
    pub spec_version: u64,
    pub spec: ServiceSpec,
    /// One level back, for `rollback`.
    pub previous_spec: Option<Box<ServiceSpec>>,
    pub previous_spec_version: Option<u64>,
    pub update_status: Option<UpdateStatus>,
    /// What the allocator gave: VIPs and published ports. Absent until it has.
    pub endpoint: Option<Endpoint>,
    /// Present on jobs.
    #[serde(default)]
    pub job_status: Option<JobStatus>,
}

impl Service {
    /// What is proposed for a new service; the rest is filled in when it is applied.
    pub fn new(id: ServiceId, spec: ServiceSpec) -> Self {
        Self {
            id,
            meta: Meta::default(),
            spec_version: 0,
            spec,
            previous_spec: None,
            previous_spec_version: None,
            update_status: None,
            endpoint: None,
            job_status: None,
        }
    }

    /// Which run of a job its tasks belong to; `None` if it is none.
    pub fn job_iteration(&self) -> Option<u64> {
        self.job_status.map(|s| s.iteration)
    }
}

/// How often a job was asked to run: every update of it is another run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Counted from 0.
    pub iteration: u64,
    pub last_execution: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[derive(Default)]
pub struct ServiceSpec {
    pub name: String,
    pub labels: Labels,
    pub mode: Mode,
    pub task: TaskSpec,
    pub update: Option<UpdateConfig>,
    pub rollback: Option<UpdateConfig>,
    pub endpoint: Option<EndpointSpec>,
    /// The deprecated place for networks (`Networks` beside `TaskTemplate`); kept for round trips, read when the task has none.
    pub networks: Vec<NetworkAttachmentConfig>,
}

impl ServiceSpec {
    /// The networks its tasks join: the template's, else the deprecated list.
    pub fn networks(&self) -> &[NetworkAttachmentConfig] {
        if self.task.networks.is_empty() { &self.networks } else { &self.task.networks }
    }

    pub fn resolution_mode(&self) -> ResolutionMode {
        self.endpoint.as_ref().map(|e| e.mode).unwrap_or_default()
    }

    /// Ports published in ingress mode: those the mesh answers on every host.
    pub fn ingress_ports(&self) -> impl Iterator<Item = &PortConfig> {
        self.endpoint.iter().flat_map(|e| &e.ports).filter(|p| p.mode == PublishMode::Ingress)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    Replicated { replicas: u64 },
    Global,
    ReplicatedJob { max_concurrent: u64, total_completions: u64 },
    GlobalJob,
}

impl Mode {
    /// Runs to completion, once, rather than on and on.
    pub fn is_job(self) -> bool {
        matches!(self, Self::ReplicatedJob { .. } | Self::GlobalJob)
    }
}

impl Default for Mode {
    fn default() -> Self {
        Self::Replicated { replicas: 1 }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateOrder {
    #[default]
    StopFirst,
    StartFirst,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureAction {
    #[default]
    Pause,
    Continue,
    Rollback,
}

/// How an update or rollback walks through the slots. `monitor` absent means swarmkit's five seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateConfig {
    /// Slots at a time; 0 is all at once.
    pub parallelism: u64,
    pub delay: Duration,
    pub failure_action: FailureAction,
    pub monitor: Option<Duration>,
    pub max_failure_ratio: f32,
    pub order: UpdateOrder,
}

impl Default for UpdateConfig {
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay: Duration::ZERO,
            failure_action: FailureAction::Pause,
            monitor: None,
            max_failure_ratio: 0.0,
            order: UpdateOrder::StopFirst,
        }
    }
}

/// swarmkit `defaultMonitor`.
pub const DEFAULT_UPDATE_MONITOR: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateState {
    Updating,
    Paused,
    Completed,
    RollbackStarted,
    RollbackPaused,
    RollbackCompleted,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    pub state: UpdateState,
    pub started_at: Timestamp,
    pub completed_at: Option<Timestamp>,
    pub message: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResolutionMode {
    #[default]
    Vip,
    DnsRoundRobin,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointSpec {
    pub mode: ResolutionMode,
    pub ports: Vec<PortConfig>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PublishMode {
    #[default]
    Ingress,
    Host,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct PortConfig {
    pub name: String,
    pub protocol: Protocol,
    pub target_port: u16,
    /// 0 lets the allocator choose from [`AUTO_PORT_FIRST`]..=[`AUTO_PORT_LAST`].
    pub published_port: u16,
    pub mode: PublishMode,
}

/// Ports chosen for services that publish without naming one (swarmkit `dynamicPortStart/End`).
pub const AUTO_PORT_FIRST: u16 = 30_000;
pub const AUTO_PORT_LAST: u16 = 32_767;

/// What the allocator gave a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Endpoint {
    /// The spec the ports were given for.
    pub spec: EndpointSpec,
    /// The spec's ports with every published port filled in.
    pub ports: Vec<PortConfig>,
    /// One per network in VIP mode; address with the subnet's prefix length.
    pub virtual_ips: Vec<VirtualIp>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualIp {
    pub network_id: NetworkId,
    /// The address with its network's prefix length, as Docker prints it (`10.0.1.2/24`).
    pub address: Ipv4Net,
}

impl VirtualIp {
    pub fn ip(&self) -> Ipv4Addr {
        self.address.addr()
    }
}

/// A network a service's tasks join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAttachmentConfig {
    /// Network id; the server resolves names before a spec is stored, as moby does.
    pub target: String,
    #[serde(default)]
    pub aliases: Vec<String>,
    #[serde(default)]
    pub driver_options: std::collections::BTreeMap<String, String>,
}
