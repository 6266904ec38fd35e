//! Going on alone: a manager that lost its quorum for good makes a swarm of one with the state it has
//! (`swarm init --force-new-cluster`).
//!
//! `state.json` says first what is to be done ([`SavedState::alone_from`]), then the log is rewritten, then the swarm is told;
//! a crash in between is made good at the next start.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use skep_control::membership;
use skep_model::NodeId;
use skep_model::node::{Availability, ManagerInfo, Role};
use skep_store::{Batch, Change};

use super::{Inner, Membership, new_raft_id};
use crate::address;
use crate::ca::new_unlock_key;
use crate::clock::now;
use crate::config::InitRequest;
use crate::error::{NodeError, Result};
use crate::manager::{Manager, ManagerConfig};
use crate::state::SavedState;

/// Alone, an election takes one timeout; the rest is replaying the log.
const LEAD_DEADLINE: Duration = Duration::from_secs(20);

impl Inner {
    /// The caller holds the transition lock.
    pub(super) async fn force_new_cluster(self: &Arc<Self>, request: &InitRequest) -> Result<NodeId> {
        let member = match self.get() {
            Membership::Outside | Membership::Joining => return Err(NodeError::AlreadyInSwarm),
            Membership::Inside(member) => Some(member),
            Membership::Locked(_) => return Err(NodeError::Locked),
            Membership::Broken(_) => None,
        };
        let (state_files, certificates) = self.files();
        let before = state_files.load()?.ok_or(NodeError::NoSwarm)?;
        let old_id = before.raft_id.ok_or(NodeError::NotManager)?;
        // What can be refused is refused while nothing has stopped yet.
        crate::facade::check_spec(&request.spec)?;
        let mut state = SavedState { raft_id: Some(new_raft_id()), alone_from: Some(old_id), ..before.clone() };
        state.listen = address::listen(&request.listen_addr)?;
        state.advertise = self.advertise_alone(request, &before, state.listen)?;
        if let Some(data_path) = address::data_path(&request.data_path_addr)? {
            state.data_path = Some(data_path);
        }

        self.set(Membership::Joining);
        if let Some(member) = member {
            member.stop().await;
        }
        let rewritten = async {
            state_files.save(&state)?;
            let tls = self.tls_of(&certificates)?;
            let raft_id = state.raft_id.unwrap_or(old_id);
            rewrite_log(&state, &self.manager_config(&state, raft_id, &tls, &certificates)?).await
        };
        if let Err(error) = rewritten.await {
            // The log is as it was: so is the rest.
            state_files.save(&before)?;
            self.take_up().await;
            return Err(error);
        }
        self.take_up().await;
        let Membership::Inside(member) = self.get() else {
            return Err(NodeError::Internal(self.info().error));
        };
        let node_id = member.node_id();
        let manager = self.manager()?;
        let view = manager.view();
        let cluster = view.cluster().ok_or(NodeError::NoSwarm)?;
        let mut changes = Vec::new();
        if cluster.spec != request.spec {
            changes.push(Change::SetClusterSpec(Box::new(request.spec.clone())));
        }
        if request.spec.auto_lock_managers != cluster.unlock_key.is_some() {
            changes.push(Change::SetUnlockKey(request.spec.auto_lock_managers.then(new_unlock_key)));
        }
        if !changes.is_empty() {
            manager.propose(Batch::new(now(), changes)).await?;
        }
        member.wait_connected(Duration::from_secs(5)).await;
        Ok(node_id)
    }

    /// Without a wish, the address it had, as long as that is this host's or was given on purpose.
    fn advertise_alone(&self, request: &InitRequest, before: &SavedState, listen: SocketAddr) -> Result<SocketAddr> {
        let kept = |ip: IpAddr| before.advertise_given || address::is_own(ip);
        if request.advertise_addr.is_empty() && kept(before.advertise.ip()) {
            return Ok(SocketAddr::new(before.advertise.ip(), listen.port()));
        }
        address::advertise(&request.advertise_addr, self.config.default_advertise.as_deref(), listen)
    }
}

/// Makes the log this manager's alone, if that is still to be done.
pub(super) async fn rewrite_log(state: &SavedState, config: &ManagerConfig) -> Result<()> {
    let Some(before) = state.alone_from else { return Ok(()) };
    skep_consensus::force_new_cluster(&config.log(), before)
        .await
        .map_err(|error| NodeError::Internal(error.to_string()))
}

/// Tells the swarm that this manager is its only one.
pub(super) async fn take_over(manager: &Manager, address: SocketAddr, hostname: &str) -> Result<()> {
    let mut leadership = manager.consensus().leadership();
    let led = leadership.wait_for(|now| now.is_leader);
    let led = tokio::time::timeout(LEAD_DEADLINE, led).await.map(|led| led.is_ok());
    if led != Ok(true) {
        return Err(NodeError::Internal("this manager does not lead, though it is the only one".into()));
    }
    let info = ManagerInfo { raft_id: manager.consensus().raft_id(), address };
    let (view, node_id) = (manager.view(), manager.node_id());
    let mut changes = Vec::new();
    // A state from a backup may not know this node.
    if let Some(made) = membership::admit(&view, node_id, Role::Manager, Availability::Active, hostname, now()) {
        changes.extend([made, Change::SetNodeManager { node_id: node_id.clone(), manager: Some(info.clone()) }]);
    }
    changes.extend(membership::alone(&view, node_id, info, now()));
    manager.propose(Batch::new(now(), changes)).await.map(drop)
}
