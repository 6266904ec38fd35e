//! The changes by which a swarm begins and nodes come, answer, fall silent and change roles.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use skep_model::cluster::Cluster;
use skep_model::network::{INGRESS_NETWORK_NAME, Network, NetworkSpec};
use skep_model::node::{Availability, ManagerInfo, Node, NodeDescription, NodeSpec, NodeState, NodeStatus, Role};
use skep_model::{Labels, Meta, NetworkId, NodeId, Timestamp};
use skep_store::{Change, View};

use crate::ctx::IdSource;

/// The first batch of a new swarm: the cluster and its ingress network. The first node follows with [`admit`].
pub fn found(cluster: Cluster, ids: &mut dyn IdSource) -> Vec<Change> {
    vec![Change::CreateCluster(Box::new(cluster)), Change::CreateNetwork(Box::new(ingress(ids)))]
}

fn ingress(ids: &mut dyn IdSource) -> Network {
    let spec = NetworkSpec {
        name: INGRESS_NETWORK_NAME.into(),
        driver: "overlay".into(),
        ingress: true,
        labels: Labels::from([("com.docker.swarm.internal".into(), "true".into())]),
        ..NetworkSpec::default()
    };
    Network::new(NetworkId::from_bits(ids.next_id()), spec)
}

/// A certificate was issued to a node that did not have one: what makes the node. `None` if it exists (a renewal).
pub fn admit(
    view: &View,
    node_id: &NodeId,
    role: Role,
    availability: Availability,
    hostname: &str,
    now: Timestamp,
) -> Option<Change> {
    if view.node(node_id).is_some() {
        return None;
    }
    Some(Change::CreateNode(Box::new(Node {
        id: node_id.clone(),
        meta: Meta::default(),
        spec: NodeSpec { name: String::new(), labels: Labels::new(), role, availability },
        role,
        description: NodeDescription { hostname: hostname.to_owned(), ..NodeDescription::default() },
        status: NodeStatus { state: NodeState::Unknown, since: now, ..NodeStatus::default() },
        manager: None,
        attachments: BTreeMap::new(),
        mesh_index: None,
    })))
}

/// A session began: the node is ready. Empty if nothing moved.
pub fn ready(
    view: &View,
    node_id: &NodeId,
    description: &NodeDescription,
    address: Option<IpAddr>,
    now: Timestamp,
) -> Vec<Change> {
    let Some(node) = view.node(node_id) else { return Vec::new() };
    let mut changes = Vec::new();
    if node.description != *description {
        changes
            .push(Change::SetNodeDescription { node_id: node_id.clone(), description: Box::new(description.clone()) });
    }
    if node.status.state != NodeState::Ready || node.status.address != address {
        let status = NodeStatus { state: NodeState::Ready, message: String::new(), address, since: now };
        changes.push(Change::SetNodeStatus { node_id: node_id.clone(), status });
    }
    changes
}

/// The node fell silent (`heartbeat failure`) or left.
pub fn down(view: &View, node_id: &NodeId, message: &str, now: Timestamp) -> Option<Change> {
    let node = view.node(node_id)?;
    (node.status.state != NodeState::Down).then(|| Change::SetNodeStatus {
        node_id: node_id.clone(),
        status: NodeStatus {
            state: NodeState::Down,
            message: message.to_owned(),
            address: node.status.address,
            since: now,
        },
    })
}

/// A new leader has heard of nobody yet (swarmkit `markNodesUnknown`). Nodes that are down stay so.
pub fn unknown(view: &View, now: Timestamp) -> Vec<Change> {
    let heard_of_before = |n: &&std::sync::Arc<Node>| !matches!(n.status.state, NodeState::Down | NodeState::Unknown);
    view.nodes()
        .filter(heard_of_before)
        .map(|node| Change::SetNodeStatus {
            node_id: node.id.clone(),
            status: NodeStatus {
                state: NodeState::Unknown,
                message: "Node moved to \"unknown\" state due to leadership change in cluster".into(),
                address: node.status.address,
                since: now,
            },
        })
        .collect()
}

/// Its session broke and no other began: it looks for a manager, or is gone. Which, silence will tell.
pub fn disconnected(view: &View, node_id: &NodeId, now: Timestamp) -> Option<Change> {
    let node = view.node(node_id).filter(|n| n.status.state == NodeState::Ready)?;
    Some(Change::SetNodeStatus {
        node_id: node_id.clone(),
        status: NodeStatus {
            state: NodeState::Disconnected,
            message: "node is currently trying to find new manager".into(),
            address: node.status.address,
            since: now,
        },
    })
}

/// The node carries a certificate of this role now; a worker is no manager any more.
pub fn carries_role(view: &View, node_id: &NodeId, role: Role) -> Vec<Change> {
    let Some(node) = view.node(node_id) else { return Vec::new() };
    // Said also where it seems known: what a session before this one said may be on its way still.
    let mut changes = vec![Change::SetNodeRole { node_id: node_id.clone(), role }];
    // A session that a worker asked for may be heard of only after it was promoted and let in.
    if role == Role::Worker && node.spec.role == Role::Worker && node.manager.is_some() {
        changes.push(Change::SetNodeManager { node_id: node_id.clone(), manager: None });
    }
    changes
}

/// The node takes part in consensus.
pub fn manages(view: &View, node_id: &NodeId, manager: ManagerInfo) -> Option<Change> {
    let node = view.node(node_id)?;
    (node.manager.as_ref() != Some(&manager))
        .then(|| Change::SetNodeManager { node_id: node_id.clone(), manager: Some(manager) })
}

/// This node goes on alone with the state there is, after the other managers were lost (`--force-new-cluster`) or the state
/// came from a backup. They stay listed: as workers, so that one that comes back gives up its old log, and as down, so that
/// their tasks are replaced without waiting for a silence.
pub fn alone(view: &View, node_id: &NodeId, manager: ManagerInfo, now: Timestamp) -> Vec<Change> {
    let mut changes: Vec<Change> = manages(view, node_id, manager).into_iter().collect();
    for node in view.nodes() {
        let others = node.id != *node_id;
        let role = if others { Role::Worker } else { Role::Manager };
        let managed = node.spec.role == Role::Manager || node.manager.is_some();
        if node.spec.role != role {
            let spec = NodeSpec { role, ..node.spec.clone() };
            changes.push(Change::SetNodeSpec { node_id: node.id.clone(), spec });
        }
        if others && managed {
            changes.push(Change::SetNodeManager { node_id: node.id.clone(), manager: None });
            changes.extend(down(view, &node.id, "a manager of the swarm before it was started anew", now));
        }
    }
    changes
}

/// The role a node's certificate should carry: a demoted manager keeps its own until it is out of consensus.
pub fn role_due(node: &Node) -> Role {
    match (node.spec.role, &node.manager) {
        (Role::Worker, None) => Role::Worker,
        (Role::Worker, Some(_)) | (Role::Manager, _) => Role::Manager,
    }
}

/// Nodes that should be workers and still take part in consensus, with their raft ids.
pub fn to_demote(view: &View) -> Vec<(NodeId, u64)> {
    view.nodes()
        .filter(|node| node.spec.role == Role::Worker)
        .filter_map(|node| Some((node.id.clone(), node.manager.as_ref()?.raft_id)))
        .collect()
}

/// The node is out of consensus: its object follows.
pub fn demoted(node_id: &NodeId) -> Vec<Change> {
    vec![
        Change::SetNodeManager { node_id: node_id.clone(), manager: None },
        Change::SetNodeRole { node_id: node_id.clone(), role: Role::Worker },
    ]
}

/// The node is in consensus: its object follows.
pub fn joined(node: &Node, manager: ManagerInfo) -> Vec<Change> {
    let mut changes = vec![Change::SetNodeManager { node_id: node.id.clone(), manager: Some(manager) }];
    if node.role != Role::Manager {
        changes.push(Change::SetNodeRole { node_id: node.id.clone(), role: Role::Manager });
    }
    changes
}

/// Whether a member of consensus is some node's manager. One that is not was left half-way in or out.
pub fn is_known(view: &View, raft_id: u64) -> bool {
    view.nodes().any(|node| node.manager.as_ref().is_some_and(|m| m.raft_id == raft_id))
}

/// Nodes said to manage that are no members of consensus.
pub fn unseated<'a>(view: &'a View, members: &'a BTreeSet<u64>) -> impl Iterator<Item = &'a Node> {
    let gone = |n: &&std::sync::Arc<Node>| n.manager.as_ref().is_some_and(|m| !members.contains(&m.raft_id));
    view.nodes().filter(gone).map(|node| &**node)
}

/// Raft ids are never given twice: one above the highest any node has or had.
pub fn next_raft_id(view: &View) -> u64 {
    view.highest_raft_id() + 1
}
