//! `docker swarm …`.

use skep_model::NodeId;
use skep_model::cluster::{Cluster, ClusterSpec};

use skep_store::{Batch, Change, ObjectKey};

use super::Node;
use crate::ca::{RootRequest, new_tokens, next_root};
use crate::clock::now;
use crate::config::{InitRequest, JoinRequest};
use crate::error::{NodeError, Result};

/// Which join tokens `swarm update` is to replace.
#[derive(Clone, Copy, Debug, Default)]
pub struct RotateTokens {
    pub worker: bool,
    pub manager: bool,
}

impl Node {
    /// Makes this host the first manager of a new swarm.
    pub async fn swarm_init(&self, request: InitRequest) -> Result<NodeId> {
        // A long way, and too large a future for those it would become a part of.
        Box::pin(self.inner.init(request)).await
    }

    /// Joins the swarm the token is of, in the token's role.
    pub async fn swarm_join(&self, request: JoinRequest) -> Result<()> {
        Box::pin(self.inner.join(request)).await
    }

    pub async fn swarm_leave(&self, force: bool) -> Result<()> {
        self.inner.leave(force).await
    }

    /// The cluster object, join tokens included.
    pub fn swarm_inspect(&self) -> Result<Cluster> {
        self.view()?.cluster().map(|c| (**c).clone()).ok_or(NodeError::NoSwarm)
    }

    /// `root` is the signing root a user brings; a new one is made when `spec.force_rotate` moves.
    pub async fn swarm_update(
        &self,
        version: u64,
        spec: ClusterSpec,
        rotate: RotateTokens,
        root: RootRequest,
    ) -> Result<()> {
        let manager = self.inner.manager()?;
        let view = manager.view();
        let cluster = view.cluster().ok_or(NodeError::NoSwarm)?;
        check_spec(&spec)?;
        let root_ca = next_root(cluster, &spec, &root, now())?;
        manager.check_signers(&spec, &root_ca).await?;
        let mut changes = vec![Change::SetClusterSpec(Box::new(spec))];
        if root_ca != cluster.root_ca {
            changes.push(Change::SetRootCa { root_ca, at: now() });
        }
        if rotate.worker || rotate.manager {
            let fresh = new_tokens(&cluster.root_ca.digest)?;
            let mut tokens = cluster.join_tokens.clone();
            if rotate.worker {
                tokens.worker = fresh.worker;
            }
            if rotate.manager {
                tokens.manager = fresh.manager;
            }
            changes.push(Change::SetJoinTokens(tokens));
        }
        let batch = Batch::new(now(), changes).if_version(ObjectKey::Cluster, version);
        manager.propose(batch).await.map(drop)
    }

    /// Locked managers are not built yet.
    pub fn swarm_unlock_key(&self) -> Result<String> {
        self.inner.manager()?;
        Ok(String::new())
    }

    pub async fn swarm_unlock(&self, _key: &str) -> Result<()> {
        match self.local_state() {
            super::LocalState::Inactive => Err(NodeError::NotInSwarm),
            _ => Err(NodeError::Refused {
                code: "FailedPrecondition",
                text: "swarm is not locked".into(),
                kind: crate::error::Kind::Conflict,
            }),
        }
    }
}

pub(crate) fn check_spec(spec: &ClusterSpec) -> Result<()> {
    if spec.auto_lock_managers {
        return Err(NodeError::NotImplemented("locking managers (--autolock)"));
    }
    if spec.node_cert_expiry < std::time::Duration::from_secs(3600) {
        return Err(NodeError::Invalid("minimum certificate expiry time is: 1h0m0s".into()));
    }
    if spec.name != "default" {
        return Err(NodeError::Invalid("swarm spec must be named \"default\"".into()));
    }
    Ok(())
}
