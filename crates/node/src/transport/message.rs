//! What travels inside the envelopes. Named fields, so that a field can be added without breaking an older peer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use skep_model::assignment::{AssignmentChange, AssignmentSet, TaskReport};
use skep_model::cluster::{GossipKey, UnlockKey};
use skep_model::node::{Availability, NodeDescription, Role};
use skep_model::sandbox::LocalNetworkSpec;
use skep_model::{ClusterId, ContainerId, NetworkId, NodeId, SessionId, TaskId};

use crate::facade::{LogRequest, RemoteManager, TaskLog};

#[derive(Serialize, Deserialize)]
pub(crate) struct Root {
    pub(crate) cert_pem: String,
}

/// Asks for a certificate. Without a token it is a renewal, and the connection's certificate says whose.
#[derive(Serialize, Deserialize)]
pub(crate) struct IssueRequest {
    pub(crate) request_pem: String,
    pub(crate) token: Option<String>,
    pub(crate) availability: Availability,
    pub(crate) hostname: String,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct IssueReply {
    pub(crate) node_id: NodeId,
    pub(crate) cluster_id: ClusterId,
    pub(crate) role: Role,
    pub(crate) cert_pem: String,
    pub(crate) root_pem: String,
    /// For managers.
    #[serde(default)]
    pub(crate) lock: Option<ManagerLock>,
}

/// How managers lock their keys.
#[derive(Serialize, Deserialize)]
pub(crate) struct ManagerLock {
    /// Absent while they do not.
    pub(crate) unlock_key: Option<UnlockKey>,
    /// Of the cluster object.
    pub(crate) version: u64,
}

/// A manager's answer to another one's ping.
#[derive(Serialize, Deserialize)]
pub(crate) struct Pong {
    pub(crate) raft_id: u64,
    /// It leads, and a quorum answers it.
    pub(crate) leads: bool,
}

/// From a manager that is to take part in consensus.
#[derive(Serialize, Deserialize)]
pub(crate) struct JoinRaft {
    pub(crate) raft_id: u64,
    pub(crate) address: SocketAddr,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Propose {
    /// An encoded `skep_store::Batch`.
    pub(crate) batch: ByteBuf,
}

/// What became of a forwarded proposal.
#[derive(Serialize, Deserialize)]
pub(crate) enum Proposed {
    Applied {
        index: u64,
    },
    Refused(skep_store::Refused),
    TooLarge {
        bytes: usize,
        limit: usize,
    },
    NotLeader,
    /// The outcome is unknown: to be asked again under the same name.
    Unknown(String),
}

/// Agent to leader.
#[derive(Serialize, Deserialize)]
pub(crate) enum Up {
    Hello(Box<Hello>),
    /// When it was sent, in milliseconds on the node's own clock; the leader says it back.
    Heartbeat {
        sent_ms: u64,
    },
    Reports(Vec<TaskReport>),
    /// The balancers here are as the assignments of that number said.
    Applied {
        sequence: u64,
    },
    /// A change did not fit what the agent has: send everything again.
    Resync,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) description: NodeDescription,
    /// Where others reach this node; absent, the address it connects from.
    pub(crate) address: Option<IpAddr>,
}

/// Leader to agent.
#[derive(Serialize, Deserialize)]
pub(crate) enum Down {
    Welcome(Welcome),
    /// The answer to the one sent then.
    Heartbeat {
        sent_ms: u64,
    },
    Complete {
        results_in: u64,
        facts: Facts,
        set: Box<AssignmentSet>,
    },
    Incremental {
        applies_to: u64,
        results_in: u64,
        facts: Facts,
        change: Box<AssignmentChange>,
    },
    Managers(Vec<RemoteManager>),
    /// The node should ask for a certificate of this role.
    Role(Role),
    /// The node should trust this, and have a certificate of it.
    Trust(Trust),
    Subscribe(LogSubscription),
    Unsubscribe(u64),
    /// Somebody at a manager wants to speak to the containers here: to be answered with `Reached`.
    Reach(u64),
    /// What to seal gossip with. Never on a disk.
    Gossip(GossipKey),
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Welcome {
    pub(crate) session_id: SessionId,
    pub(crate) heartbeat_ms: u64,
    pub(crate) managers: Vec<RemoteManager>,
}

/// From a node: a container of its own that is no task wants to be on a network.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AttachCall {
    /// Name, id or beginning of an id.
    pub(crate) network: String,
    pub(crate) container_id: ContainerId,
    /// What it is to answer to, its own name first.
    pub(crate) names: Vec<String>,
    pub(crate) address: Option<Ipv4Addr>,
    #[serde(default)]
    pub(crate) address6: Option<Ipv6Addr>,
}

/// Where it is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AttachedAt {
    pub(crate) network_id: NetworkId,
    pub(crate) address: Option<Ipv4Addr>,
    /// What the host makes the network from, if it is one that the hosts make for themselves.
    #[serde(default)]
    pub(crate) made_from: Option<LocalNetworkSpec>,
}

/// From a node: the container is on the network no more.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DetachCall {
    pub(crate) network_id: NetworkId,
    pub(crate) container_id: ContainerId,
}

/// Which root is trusted, and what signs for it: another key than the root's while the root is replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trust {
    pub(crate) root_pem: String,
    /// DER of the public key.
    #[serde(with = "serde_bytes")]
    pub(crate) issuer_key: Vec<u8>,
}

/// What a worker must know of the cluster besides its assignments.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub(crate) data_path_port: u16,
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct LogSubscription {
    pub(crate) id: u64,
    pub(crate) tasks: Vec<TaskId>,
    pub(crate) request: LogRequest,
}

/// The stream a node answers a log subscription with.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum LogPart {
    /// First of all: which subscription this answers.
    Begin(u64),
    Line(TaskLog),
    /// One task's log cannot be read; the others go on.
    Failed(String),
    /// There will be no more of this task: all was read, or why not.
    Ended {
        task_id: TaskId,
        error: Option<String>,
    },
}

/// A follower asking the leader for logs: the leader has the sessions.
#[derive(Serialize, Deserialize)]
pub(crate) struct LogsCall {
    pub(crate) tasks: Vec<TaskId>,
    pub(crate) request: LogRequest,
}
