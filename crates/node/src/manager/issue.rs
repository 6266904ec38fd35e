//! Certificates: for whom, in which role, by whose key.

use skep_model::NodeId;
use skep_model::node::Role;

use super::{Manager, role_due};
use crate::ca::Signer;
use crate::error::{NodeError, Result};
use crate::transport::message::IssueReply;

impl Manager {
    /// Signs the key of a request with what the swarm signs with now.
    pub(super) async fn issue(&self, request_pem: &str, node_id: &NodeId, role: Role) -> Result<IssueReply> {
        let view = self.view();
        let cluster = view.cluster().ok_or(NodeError::NoLeader)?;
        let signed = Signer::of(&cluster.root_ca)?.sign(
            request_pem,
            node_id,
            role,
            &cluster.id,
            cluster.spec.node_cert_expiry,
        )?;
        Ok(IssueReply {
            node_id: node_id.clone(),
            cluster_id: cluster.id.clone(),
            role,
            cert_pem: signed.cert_pem,
            root_pem: cluster.root_ca.cert_pem.clone(),
        })
    }

    /// A manager has the key that signs: it need not ask, and when every manager's certificate has run out nobody could be.
    pub(crate) async fn issue_to_itself(&self, request_pem: &str) -> Result<IssueReply> {
        let view = self.view();
        let node = view.node(self.node_id()).ok_or(NodeError::NoLeader)?;
        self.issue(request_pem, &node.id, role_due(node)).await
    }
}
