//! What can happen to the state. Narrow on purpose: a change says what moves, not the whole object, so that log entries stay
//! small and two writers of different fields do not collide.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use skep_model::assignment::TaskReport;
use skep_model::cluster::{Cluster, ClusterSpec, GossipKey, JoinTokens, LimitedToken, RootCa, UnlockKey};
use skep_model::generic::GenericResource;
use skep_model::network::{Attachment, Network, NetworkAllocation};
use skep_model::node::{ManagerInfo, Node, NodeDescription, NodeSpec, NodeStatus, Role};
use skep_model::secret::{Config, Secret, SecretBytes};
use skep_model::service::{Endpoint, Service, ServiceSpec, UpdateStatus};
use skep_model::task::{NetworkAttachment, TaskState, TaskStatus};
use skep_model::{
    ConfigId, ContainerId, JoinTokenId, Labels, NetworkId, NodeId, SecretId, ServiceId, TaskId, Timestamp,
};

/// Names one object of any kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ObjectKey {
    Cluster,
    Node(NodeId),
    Service(ServiceId),
    Task(TaskId),
    Network(NetworkId),
    Secret(SecretId),
    Config(ConfigId),
}

/// What must still hold when a batch is applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Guard {
    /// A leader's own decisions carry its term: refused once another leads.
    pub term: Option<u64>,
    /// `Meta::version` of the objects the decision rests on.
    pub versions: Vec<(ObjectKey, u64)>,
}

/// Names one proposal, so that it can be sent again when its answer was lost and still takes effect once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Drawn at random by the proposer.
    pub id: u128,
    /// Index of the proposer's view when it first asked: what the state does not remember any more is older than this,
    /// or else the proposal is refused rather than applied a second time.
    pub since: u64,
}

/// Changes applied together or not at all: one log entry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Batch {
    pub changes: Vec<Change>,
    /// The proposer's clock: `created_at` and `updated_at` of what changes.
    pub at: Timestamp,
    pub guard: Guard,
    /// Absent on a leader's own decisions: its term guards those.
    pub request: Option<Request>,
}

impl Batch {
    pub fn new(at: Timestamp, changes: Vec<Change>) -> Self {
        Self { changes, at, guard: Guard::default(), request: None }
    }

    /// May be proposed again: takes effect once.
    #[must_use]
    pub fn named(mut self, request: Request) -> Self {
        self.request = Some(request);
        self
    }

    /// Refused if the leader's term moved.
    #[must_use]
    pub fn in_term(mut self, term: u64) -> Self {
        self.guard.term = Some(term);
        self
    }

    /// Refused if the object's version moved (Docker's `update out of sequence`).
    #[must_use]
    pub fn if_version(mut self, key: ObjectKey, version: u64) -> Self {
        self.guard.versions.push((key, version));
        self
    }
}

/// A task to make. Template, names, labels and ports are copied from the service when applied, so they are not in the log
/// once more for every task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewTask {
    pub id: TaskId,
    pub service_id: ServiceId,
    /// Must be the service's `spec_version` when applied: a task is never made from a template its maker did not see.
    pub spec_version: u64,
    pub slot: Option<u64>,
    /// The node of a global service's task from the start; for others with `state` Assigned.
    pub node_id: Option<NodeId>,
    pub desired_state: TaskState,
    /// New, Pending (allocated) or Assigned.
    pub state: TaskState,
    pub message: String,
    pub networks: Vec<NetworkAttachment>,
    pub start_after: Option<Timestamp>,
    pub replaces: Option<TaskId>,
    /// It follows one that ended by itself: counted against the restart policy.
    pub restart: bool,
    /// What it is given of its node's generic resources; with `state` Assigned.
    #[serde(default)]
    pub generic: Vec<GenericResource>,
}

/// One thing that happens. Applying any of them twice is either refused or changes nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Change {
    /// There may be one only.
    CreateCluster(Box<Cluster>),
    SetClusterSpec(Box<ClusterSpec>),
    SetJoinTokens(JoinTokens),
    SetUnlockKey(Option<UnlockKey>),
    /// A join token that ends.
    CreateJoinToken(LimitedToken),
    /// Somebody joins with it: in one batch with what makes the node, so that it is counted exactly once or refused.
    SpendJoinToken(JoinTokenId),
    RemoveJoinToken(JoinTokenId),
    /// Another root ends the tokens that pin the old one.
    SetRootCa {
        root_ca: RootCa,
        at: Timestamp,
    },

    /// Refused while there is one: a key goes only with a node that was removed.
    SetGossipKey(GossipKey),

    /// A certificate was issued: the node exists from now on. See `control::membership`.
    CreateNode(Box<Node>),
    SetNodeSpec {
        node_id: NodeId,
        spec: NodeSpec,
    },
    SetNodeDescription {
        node_id: NodeId,
        description: Box<NodeDescription>,
    },
    SetNodeStatus {
        node_id: NodeId,
        status: NodeStatus,
    },
    /// The role its certificate carries.
    SetNodeRole {
        node_id: NodeId,
        role: Role,
    },
    SetNodeManager {
        node_id: NodeId,
        manager: Option<ManagerInfo>,
    },
    /// The allocator's: what the node holds on overlays, and its number in the mesh.
    AllocateNode {
        node_id: NodeId,
        attachments: BTreeMap<NetworkId, Ipv4Addr>,
        mesh_index: Option<u16>,
    },
    RemoveNode {
        node_id: NodeId,
    },

    /// `spec_version`, `meta` and the like are filled in when applied; only `id` and `spec` are read.
    CreateService(Box<Service>),
    /// Keeps the spec before it as `previous_spec`, clears `update_status`, raises `spec_version` if tasks must be made anew.
    SetServiceSpec {
        service_id: ServiceId,
        spec: Box<ServiceSpec>,
    },
    /// Back to `previous_spec`, one level.
    RollbackService {
        service_id: ServiceId,
        status: UpdateStatus,
        /// On failure, rather than asked for: the spec that failed is forgotten, as in swarmkit.
        #[serde(default)]
        automatic: bool,
    },
    SetUpdateStatus {
        service_id: ServiceId,
        status: Option<UpdateStatus>,
    },
    SetEndpoint {
        service_id: ServiceId,
        endpoint: Endpoint,
    },
    RemoveService {
        service_id: ServiceId,
    },

    CreateTask(Box<NewTask>),
    /// Addresses were found: New becomes Pending.
    AllocateTask {
        task_id: TaskId,
        networks: Vec<NetworkAttachment>,
    },
    /// A node was chosen: Pending becomes Assigned.
    AssignTask {
        task_id: TaskId,
        node_id: NodeId,
        /// What it is given of the node's generic resources.
        #[serde(default)]
        generic: Vec<GenericResource>,
    },
    /// The manager's remark on a task that waits: why it has no address or no node. The state stays.
    SetTaskRemark {
        task_id: TaskId,
        message: String,
        error: String,
    },
    /// Only ever raised, except from Ready to Running and the like, which raise too.
    SetTaskDesired {
        task_id: TaskId,
        desired_state: TaskState,
    },
    /// From agents; each only moves its task up. Unknown tasks are passed over.
    SetTaskStatus(Vec<TaskReport>),
    /// The leader's word on a task whose node cannot speak any more (Orphaned, or ended without ever being assigned).
    SetTaskState {
        task_id: TaskId,
        status: TaskStatus,
    },
    RemoveTask {
        task_id: TaskId,
    },

    CreateNetwork(Box<Network>),
    AllocateNetwork {
        network_id: NetworkId,
        allocation: NetworkAllocation,
    },
    /// Puts the next key of an encrypted network into use, and `next` in its place.
    RotateNetworkKeys {
        network_id: NetworkId,
        /// Generation of the key in use, as who decided saw it: one rotation is not done twice.
        from: u32,
        next: SecretBytes,
    },
    RemoveNetwork {
        network_id: NetworkId,
    },
    /// A container that is no task is on an attachable network from now on, or there under other names.
    AttachContainer {
        network_id: NetworkId,
        container_id: ContainerId,
        attachment: Attachment,
    },
    /// It is not any more, if it was.
    DetachContainer {
        network_id: NetworkId,
        container_id: ContainerId,
    },

    CreateSecret(Box<Secret>),
    SetSecretLabels {
        secret_id: SecretId,
        labels: Labels,
    },
    RemoveSecret {
        secret_id: SecretId,
    },
    CreateConfig(Box<Config>),
    SetConfigLabels {
        config_id: ConfigId,
        labels: Labels,
    },
    RemoveConfig {
        config_id: ConfigId,
    },
}
