//! A task: one attempt to run one instance of a service on one node. Tasks are immutable but for their state; every change
//! of the template is a new task.
//!
//! The state is a Lamport clock (swarmkit `api/types.proto`): of two observations the greater is the true one. Managers
//! write `desired_state`; once a task is assigned, only its node's agent raises `status`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::generic::GenericResource;
use crate::service::{NetworkAttachmentConfig, PortConfig};
use crate::{ConfigId, Labels, Meta, NetworkId, NodeId, SecretId, ServiceId, TaskId, Timestamp};

/// In the order of life; the numbers are swarmkit's, with gaps for states to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TaskState {
    /// Created by an orchestrator; its network is not yet allocated.
    #[default]
    New = 0,
    /// Allocated; waits for a node.
    Pending = 64,
    /// A node was chosen.
    Assigned = 192,
    /// The node has taken it.
    Accepted = 256,
    /// The node pulls the image and makes the container.
    Preparing = 320,
    /// Made; waits until it may start.
    Ready = 384,
    Starting = 448,
    Running = 512,
    /// Exited by itself with code 0.
    Complete = 576,
    /// Stopped on request.
    Shutdown = 640,
    /// Exited with an error, or became unhealthy.
    Failed = 704,
    /// Could not be run on that node at all.
    Rejected = 768,
    /// As a desired state only: take it away and forget it.
    Remove = 800,
    /// Its node has been gone too long to hope for.
    Orphaned = 832,
}

impl TaskState {
    /// Past running: the task will never run again.
    pub fn is_terminal(self) -> bool {
        self > Self::Running
    }

    /// The lower-case word of Docker's API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Remove => "remove",
            Self::Orphaned => "orphaned",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    pub id: TaskId,
    pub meta: Meta,
    pub service_id: ServiceId,
    /// The service's name when the task was made: part of the task's own name.
    pub service_name: String,
    pub service_labels: Labels,
    /// Slot of a replicated service, from 1, or of a replicated job, from 0; `None` for global ones, which go by node.
    pub slot: Option<u64>,
    pub node_id: Option<NodeId>,
    /// Shared by tasks made together, and by all versions of one: it never changes.
    pub spec: Arc<TaskSpec>,
    /// The service's `spec_version` the template came from.
    pub spec_version: u64,
    pub desired_state: TaskState,
    pub status: TaskStatus,
    /// What the allocator gave it on each network, first the service's own networks, then ingress if it publishes.
    pub networks: Vec<NetworkAttachment>,
    /// The service's ports when the task was made (ingress ports are answered by the mesh, host ports by its container).
    pub ports: Vec<PortConfig>,
    /// Before this it must not be asked to start: the restart delay, kept here so that a leader change does not forget it.
    pub start_after: Option<Timestamp>,
    /// The task it replaces, which must have stopped first in stop-first order.
    pub replaces: Option<TaskId>,
    /// When it first ran; a healthcheck had passed by then.
    #[serde(default)]
    pub ran_since: Option<Timestamp>,
    /// Which run of its job it belongs to.
    pub job_iteration: Option<u64>,
    /// What it was given of its node's generic resources.
    #[serde(default)]
    pub generic: Vec<GenericResource>,
}

impl Task {
    /// `web.1.<id>`, or `web.<node>.<id>` for a global service: the name of its container, too.
    pub fn name(&self) -> String {
        format!("{}.{}", self.slot_name(), self.id)
    }

    /// `web.1`, or `web.<node>` for a global service and, as Docker takes slot 0 for none, the first slot of a job.
    pub fn slot_name(&self) -> String {
        match (self.slot, &self.node_id) {
            (None | Some(0), Some(node)) => format!("{}.{node}", self.service_name),
            (Some(slot), _) => format!("{}.{slot}", self.service_name),
            (None, None) => format!("{}.?", self.service_name),
        }
    }

    /// Not asked to stop; a job's task is wanted until it is complete.
    pub fn is_wanted(&self) -> bool {
        self.desired_state <= TaskState::Complete
    }

    /// How long it may run on after its host was last in touch with a manager. A label that cannot be read was refused when
    /// the service was made.
    pub fn stop_after(&self) -> Option<Duration> {
        crate::validate::stop_after(&self.service_labels).ok().flatten()
    }

    /// Whether it is on a network of the swarm, by an address it was given or, on a node-local one, by its template.
    pub fn joins(&self, network: &NetworkId) -> bool {
        let named = |n: &NetworkAttachmentConfig| n.target == network.as_str();
        self.networks.iter().any(|n| n.network_id == *network) || self.spec.networks.iter().any(named)
    }

    /// Wanted and not yet over: counts as one of its service's replicas.
    pub fn is_live(&self) -> bool {
        self.is_wanted() && !self.status.state.is_terminal()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskStatus {
    pub state: TaskState,
    /// When the state was entered, by the clock of who observed it.
    pub at: Timestamp,
    /// Short fixed words, as Docker shows: `started`, `preparing`, `pending task scheduling`…
    pub message: String,
    /// Why it failed or cannot be placed; one sentence for the user. Empty if all is well.
    pub error: String,
    pub container: Option<ContainerStatus>,
    /// Host-mode ports as really bound.
    pub host_ports: Vec<PortConfig>,
    /// What its host gave it on networks that the hosts make for themselves.
    pub addresses: BTreeMap<NetworkId, Ipv4Addr>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerStatus {
    pub container_id: String,
    pub pid: i64,
    pub exit_code: i64,
}

/// A task's place on one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAttachment {
    pub network_id: NetworkId,
    /// Its address with the network's prefix length.
    pub address: Ipv4Net,
    #[serde(default)]
    pub aliases: Vec<String>,
}

/// The template tasks are made from: Docker's `TaskTemplate`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskSpec {
    pub container: ContainerSpec,
    pub resources: Option<ResourceRequirements>,
    pub restart: Option<RestartPolicy>,
    pub placement: Option<Placement>,
    pub networks: Vec<NetworkAttachmentConfig>,
    pub log_driver: Option<LogDriver>,
    /// Counted up by `--force`; a different value makes new tasks.
    pub force_update: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSpec {
    pub image: String,
    pub labels: Labels,
    /// Replaces the image's entrypoint.
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub hostname: String,
    pub env: Vec<String>,
    pub dir: String,
    pub user: String,
    pub groups: Vec<String>,
    pub tty: bool,
    pub open_stdin: bool,
    pub read_only: bool,
    pub init: Option<bool>,
    pub mounts: Vec<Mount>,
    pub stop_signal: String,
    pub stop_grace_period: Option<Duration>,
    pub healthcheck: Option<crate::container::HealthConfig>,
    /// `IP hostname [aliases]` lines, as in /etc/hosts.
    pub hosts: Vec<String>,
    pub dns: Option<DnsConfig>,
    pub secrets: Vec<SecretReference>,
    pub configs: Vec<ConfigReference>,
    pub isolation: String,
    pub sysctls: BTreeMap<String, String>,
    pub capability_add: Vec<String>,
    pub capability_drop: Vec<String>,
    pub ulimits: Vec<crate::container::Ulimit>,
    pub oom_score_adj: i64,
    pub privileges: Option<Privileges>,
    /// `X-Registry-Auth` of the request that made the spec, for the nodes that pull; never shown.
    pub pull_auth: Option<crate::secret::SecretBytes>,
}

/// What a container may do beyond, or less than, any other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Privileges {
    pub credential_spec: Option<CredentialSpec>,
    pub selinux: Option<SelinuxContext>,
    pub seccomp: Option<Seccomp>,
    pub apparmor: Option<AppArmor>,
    pub no_new_privileges: bool,
}

/// Of a Windows account: kept for round trips, and no Linux host runs such a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CredentialSpec {
    Config(String),
    File(String),
    Registry(String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SelinuxContext {
    pub disable: bool,
    pub user: String,
    pub role: String,
    pub kind: String,
    pub level: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    Default,
    Unconfined,
    /// A profile in Docker's JSON.
    Custom(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppArmor {
    Default,
    Disabled,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsConfig {
    pub nameservers: Vec<String>,
    pub search: Vec<String>,
    pub options: Vec<String>,
}

/// How long a stopping task may take before it is killed, if the spec does not say (swarmkit `defaultStopGracePeriod`).
pub const DEFAULT_STOP_GRACE_PERIOD: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    Bind,
    #[default]
    Volume,
    Tmpfs,
}

/// A mount of a service's or container's spec (Docker's `Mount`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    pub kind: MountKind,
    /// Host path, or volume name; empty makes an anonymous volume.
    pub source: String,
    pub target: String,
    pub read_only: bool,
    pub consistency: String,
    pub bind: Option<BindOptions>,
    pub volume: Option<VolumeOptions>,
    pub tmpfs: Option<TmpfsOptions>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BindOptions {
    /// `rprivate` if empty.
    pub propagation: String,
    pub non_recursive: bool,
    pub create_mountpoint: bool,
    /// Read-only, but what is mounted below it stays as it is.
    pub read_only_non_recursive: bool,
    /// Rather no container than one where something below it can be written.
    pub read_only_force_recursive: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeOptions {
    pub no_copy: bool,
    pub labels: Labels,
    pub subpath: String,
    pub driver: Option<(String, BTreeMap<String, String>)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TmpfsOptions {
    pub size_bytes: i64,
    pub mode: u32,
    /// Each a word, or a word and its value.
    pub options: Vec<Vec<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretReference {
    pub secret_id: SecretId,
    pub secret_name: String,
    pub file: FileTarget,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigReference {
    pub config_id: ConfigId,
    pub config_name: String,
    pub file: FileTarget,
}

/// Where a secret or config appears in the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FileTarget {
    pub name: String,
    pub uid: String,
    pub gid: String,
    pub mode: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceRequirements {
    /// Enforced in the cgroup.
    pub limits: Option<Resources>,
    /// Counted by the scheduler.
    pub reservations: Option<Resources>,
    /// Generic resources among the reservations.
    pub generic: Vec<GenericResource>,
    /// Swap beside the limited memory, in bytes; -1 is as much as there is.
    pub swap_bytes: Option<i64>,
    pub memory_swappiness: Option<i64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Billionths of a CPU; 0 is none.
    pub nano_cpus: i64,
    pub memory_bytes: i64,
    pub pids: i64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartCondition {
    None,
    OnFailure,
    #[default]
    Any,
}

/// When a task that ended gets a successor. Absent fields have swarmkit's defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestartPolicy {
    pub condition: RestartCondition,
    pub delay: Option<Duration>,
    /// 0 is unlimited.
    pub max_attempts: u64,
    /// Over which `max_attempts` are counted; 0 is for ever.
    pub window: Duration,
}

/// swarmkit `defaultRestartDelay`.
pub const DEFAULT_RESTART_DELAY: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Placement {
    pub constraints: Vec<String>,
    /// Labels to spread over, outermost first (`node.labels.zone`).
    pub preferences: Vec<String>,
    /// 0 is unlimited.
    pub max_replicas: u64,
    pub platforms: Vec<Platform>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogDriver {
    pub name: String,
    pub options: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_ordered_as_life_goes() {
        assert!(TaskState::New < TaskState::Assigned && TaskState::Ready < TaskState::Running);
        assert!(TaskState::Complete.is_terminal() && !TaskState::Running.is_terminal());
        assert_eq!(TaskState::Running as u32, 512);
    }
}
