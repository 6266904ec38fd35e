//! `docker node …`.

use skep_model::node::{Node as NodeObject, NodeSpec, NodeState, Role};
use skep_store::{Batch, Change, ObjectKey, View};

use super::Node;
use crate::clock::now;
use crate::error::{Kind, NodeError, Result};
use crate::manager::Manager;

fn precondition(text: String) -> NodeError {
    NodeError::Refused { code: "FailedPrecondition", text, kind: Kind::Invalid }
}

/// swarmkit's checks. Seen from this manager: the leader looks again before it takes the vote away.
fn may_demote(manager: &Manager, view: &View, node: &NodeObject) -> Result<()> {
    let Some(info) = &node.manager else { return Ok(()) };
    if !view.nodes().any(|n| n.id != node.id && n.spec.role == Role::Manager && n.manager.is_some()) {
        return Err(precondition("attempting to demote the last manager of the swarm".into()));
    }
    if !manager.roster().can_remove(info.raft_id) {
        return Err(precondition("can't remove member from the raft: this would result in a loss of quorum".into()));
    }
    Ok(())
}

impl Node {
    pub fn node_list(&self) -> Result<Vec<NodeObject>> {
        Ok(self.view()?.nodes().map(|n| (**n).clone()).collect())
    }

    /// By id, hostname, or an unambiguous beginning of the id; `self` is this node.
    pub fn node_inspect(&self, reference: &str) -> Result<NodeObject> {
        let view = self.view()?;
        let own;
        let reference = if reference == "self" {
            own = self.inner.manager()?.node_id().to_string();
            own.as_str()
        } else {
            reference
        };
        Ok((**view.find_node(reference)?).clone())
    }

    pub async fn node_update(&self, reference: &str, version: u64, spec: NodeSpec) -> Result<()> {
        let manager = self.inner.manager()?;
        let view = manager.view();
        let node = view.find_node(reference)?;
        if node.spec.role == Role::Manager && spec.role == Role::Worker {
            may_demote(&manager, &view, node)?;
        }
        skep_model::validate::node_labels(&spec.labels)?;
        let node_id = node.id.clone();
        let batch = Batch::new(now(), vec![Change::SetNodeSpec { node_id: node_id.clone(), spec }])
            .if_version(ObjectKey::Node(node_id), version);
        manager.propose(batch).await.map(drop)
    }

    pub async fn node_remove(&self, reference: &str, force: bool) -> Result<()> {
        let manager = self.inner.manager()?;
        let view = manager.view();
        let node = view.find_node(reference)?;
        // One that left by itself is in consensus no more, whatever its role; swarmkit asks for no demotion then, either.
        if node.manager.is_some() {
            return Err(precondition(format!(
                "node {} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal",
                node.id
            )));
        }
        if !force && node.status.state == NodeState::Ready {
            return Err(precondition(format!("node {} is not down and can't be removed", node.id)));
        }
        // It has known the key; with the new one in the same write, the swarm's version moves once.
        let key = Change::SetGossipKey(crate::gossip::new_key());
        let batch = Batch::new(now(), vec![Change::RemoveNode { node_id: node.id.clone() }, key]);
        manager.propose(batch).await.map(drop)
    }
}
