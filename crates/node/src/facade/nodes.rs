//! `docker node …`.

use skep_model::node::{Node as NodeObject, NodeSpec, NodeState, Role};
use skep_store::{Batch, Change, ObjectKey};

use super::Node;
use crate::clock::now;
use crate::error::{Kind, NodeError, Result};

fn precondition(text: String) -> NodeError {
    NodeError::Refused { code: "FailedPrecondition", text, kind: Kind::Invalid }
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
        let managers = view.nodes().filter(|n| n.spec.role == Role::Manager).count();
        if node.spec.role == Role::Manager && spec.role == Role::Worker && managers == 1 {
            return Err(precondition("attempting to demote the last manager of the swarm".into()));
        }
        let node_id = node.id.clone();
        let batch = Batch::new(now(), vec![Change::SetNodeSpec { node_id: node_id.clone(), spec }])
            .if_version(ObjectKey::Node(node_id), version);
        manager.propose(batch).await.map(drop)
    }

    pub async fn node_remove(&self, reference: &str, force: bool) -> Result<()> {
        let manager = self.inner.manager()?;
        let view = manager.view();
        let node = view.find_node(reference)?;
        if node.spec.role == Role::Manager || node.manager.is_some() {
            return Err(precondition(format!(
                "node {} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal",
                node.id
            )));
        }
        if !force && node.status.state == NodeState::Ready {
            return Err(precondition(format!("node {} is not down and can't be removed", node.id)));
        }
        let batch = Batch::new(now(), vec![Change::RemoveNode { node_id: node.id.clone() }]);
        manager.propose(batch).await.map(drop)
    }
}
