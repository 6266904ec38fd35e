//! `docker swarm …`.

use skep_model::NodeId;
use skep_model::cluster::{Cluster, ClusterSpec};

use super::Node;
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
        self.inner.init(request).await
    }

    /// Joins the swarm the token is of, in the token's role.
    pub async fn swarm_join(&self, request: JoinRequest) -> Result<()> {
        self.inner.join(request).await
    }

    pub async fn swarm_leave(&self, force: bool) -> Result<()> {
        self.inner.leave(force).await
    }

    /// The cluster object, join tokens included.
    pub fn swarm_inspect(&self) -> Result<Cluster> {
        let _ = NodeError::NoSwarm;
        unimplemented!()
    }

    pub async fn swarm_update(&self, version: u64, spec: ClusterSpec, rotate: RotateTokens) -> Result<()> {
        let _ = (version, spec, rotate);
        unimplemented!()
    }
}
