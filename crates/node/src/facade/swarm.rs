//! `docker swarm …`.

use skep_model::NodeId;
use skep_model::cluster::{Cluster, ClusterSpec};

use skep_store::{Batch, Change, ObjectKey};

use super::Node;
use crate::backup::BackupKey;
use crate::ca::{RootRequest, new_tokens, new_unlock_key, next_root};
use crate::clock::now;
use crate::config::{InitRequest, JoinRequest, RestoreRequest};
use crate::error::{NodeError, Result};

/// What `swarm update` is to replace.
#[derive(Clone, Copy, Debug, Default)]
pub struct RotateTokens {
    pub worker: bool,
    pub manager: bool,
    /// The unlock key; without locked managers there is none, and nothing happens.
    pub unlock_key: bool,
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
        // swarmkit `UpdateCluster`: a key exists exactly while managers are locked.
        let unlock_key = match &cluster.unlock_key {
            _ if !spec.auto_lock_managers => None,
            Some(current) if !rotate.unlock_key => Some(current.clone()),
            Some(_) | None => Some(new_unlock_key()),
        };
        let mut changes = vec![Change::SetClusterSpec(Box::new(spec)), Change::SetUnlockKey(unlock_key)];
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
        manager.propose(batch).await?;
        // Answered is as good as done, for this host; what fails is tried again in the background, as on the other managers.
        manager.lock_keys().await;
        Ok(())
    }

    /// The parts of a backup of the whole state, with everything in it that was acknowledged before the call.
    pub async fn swarm_backup(&self, key: BackupKey) -> Result<impl Iterator<Item = Vec<u8>> + Send + use<>> {
        self.inner.backup(key).await
    }

    /// Makes this host the only manager of the swarm in a backup. Refused, nothing changes.
    pub async fn swarm_restore(&self, request: RestoreRequest, file: Vec<u8>) -> Result<NodeId> {
        self.inner.restore(request, file).await
    }

    /// `SWMKEY-1-…`, or nothing while managers are not locked.
    pub fn swarm_unlock_key(&self) -> Result<String> {
        Ok(self.swarm_inspect()?.unlock_key.map(|key| key.0).unwrap_or_default())
    }

    /// Opens this locked manager's keys and takes part in the swarm again. With a wrong key nothing changes.
    pub async fn swarm_unlock(&self, key: &str) -> Result<()> {
        self.inner.unlock(key).await
    }
}

pub(crate) fn check_spec(spec: &ClusterSpec) -> Result<()> {
    if spec.node_cert_expiry < std::time::Duration::from_secs(3600) {
        return Err(NodeError::Invalid("minimum certificate expiry time is: 1h0m0s".into()));
    }
    if spec.name != "default" {
        return Err(NodeError::Invalid("swarm spec must be named \"default\"".into()));
    }
    Ok(())
}
