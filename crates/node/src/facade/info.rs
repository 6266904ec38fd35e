//! What `docker info` says about the swarm; answered on every host, member or not.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use skep_model::NodeId;
use skep_model::cluster::Cluster;
use skep_model::node::{Node as NodeObject, Reachability, Role};

use super::Node;

/// Docker's `LocalNodeState`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LocalState {
    #[default]
    Inactive,
    /// Joining, or joined and not yet spoken to a manager.
    Pending,
    Active,
    Error,
    Locked,
}

impl LocalState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Error => "error",
            Self::Locked => "locked",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteManager {
    pub node_id: NodeId,
    /// `address:port` of its cluster RPC.
    pub addr: String,
}

#[derive(Clone, Debug, Default)]
pub struct SwarmInfo {
    pub node_id: Option<NodeId>,
    /// The advertised address, without port.
    pub node_addr: String,
    pub state: LocalState,
    pub role: Role,
    /// This node is a manager and can answer.
    pub control_available: bool,
    pub error: String,
    pub remote_managers: Vec<RemoteManager>,
    /// Only on managers.
    pub nodes: Option<usize>,
    pub managers: Option<usize>,
    pub cluster: Option<Cluster>,
}

impl Node {
    /// For `docker info` and the `Swarm` header of `/_ping`.
    pub fn info(&self) -> SwarmInfo {
        self.inner.info()
    }

    pub fn local_state(&self) -> LocalState {
        self.inner.local_state()
    }

    /// Who leads and who is reached, as seen from this manager; nothing is known elsewhere.
    pub fn managers(&self) -> Managers {
        let Ok(manager) = self.inner.manager() else { return Managers::default() };
        let known = manager.view();
        let known = known.nodes().filter_map(|node| Some((node.id.clone(), node.manager.as_ref()?.raft_id)));
        Managers {
            leader: manager.leader_node().map(|node| node.id.clone()),
            reached: known.map(|(id, raft_id)| (id, manager.roster().reachability(raft_id))).collect(),
        }
    }
}

/// See [`Node::managers`].
#[derive(Clone, Debug, Default)]
pub struct Managers {
    pub leader: Option<NodeId>,
    reached: BTreeMap<NodeId, Reachability>,
}

impl Managers {
    /// Of a node as a manager; unknown for one that is none.
    pub fn reachability(&self, node: &NodeObject) -> Reachability {
        self.reached.get(&node.id).copied().unwrap_or_default()
    }
}
