//! Certificates: for whom, in which role, by whose key.

use std::sync::Arc;

use skep_control::membership::role_due;
use skep_model::NodeId;
use skep_model::cluster::{ClusterSpec, RootCa};
use skep_model::node::Role;

use super::Manager;
use crate::ca::{Signer, external_signers, one_is_reachable, sign_elsewhere};
use crate::error::{NodeError, Result};
use crate::transport::message::{IssueReply, ManagerLock};

impl Manager {
    /// Signs the key of a request with what the swarm signs with now.
    pub(super) async fn issue(&self, request_pem: &str, node_id: &NodeId, role: Role) -> Result<IssueReply> {
        let view = self.view();
        let cluster = view.cluster().ok_or_else(|| self.no_leader(false))?;
        let elsewhere = external_signers(&cluster.spec, &cluster.root_ca);
        let cert_pem = if elsewhere.is_empty() {
            let signer = Signer::of(&cluster.root_ca)?;
            signer.sign(request_pem, node_id, role, &cluster.id, cluster.spec.node_cert_expiry)?.cert_pem
        } else {
            let config = self.https_client(&cluster.root_ca)?;
            sign_elsewhere(&elsewhere, &config, cluster, request_pem, node_id, role).await?
        };
        Ok(IssueReply {
            node_id: node_id.clone(),
            cluster_id: cluster.id.clone(),
            role,
            cert_pem,
            root_pem: cluster.root_ca.cert_pem.clone(),
            lock: (role == Role::Manager)
                .then(|| ManagerLock { unlock_key: cluster.unlock_key.clone(), version: cluster.meta.version }),
        })
    }

    /// A root without a key here needs somebody who has it.
    pub(crate) async fn check_signers(&self, spec: &ClusterSpec, root: &RootCa) -> Result<()> {
        if !root.signing().1.is_empty() {
            return Ok(());
        }
        let signers = external_signers(spec, root);
        if one_is_reachable(&signers, &self.https_client(root)?).await {
            return Ok(());
        }
        let which = if root.rotation.is_some() { "desired" } else { "current" };
        Err(NodeError::Invalid(format!(
            "there must be at least one valid, reachable external CA corresponding to the {which} CA certificate"
        )))
    }

    fn https_client(&self, root: &RootCa) -> Result<Arc<rustls::ClientConfig>> {
        self.tls().current().https_client(&format!("{}{}", root.cert_pem, root.signing().0))
    }

    /// A manager has the key that signs: it need not ask, and when every manager's certificate has run out nobody could be.
    pub(crate) async fn issue_to_itself(&self, request_pem: &str) -> Result<IssueReply> {
        let view = self.view();
        let node = view.node(self.node_id()).ok_or_else(|| self.no_leader(false))?;
        self.issue(request_pem, &node.id, role_due(node)).await
    }
}
