//! Who manages: carries out joins, leaves and demotions, on the leader alone.
//!
//! A node's object says what should be, consensus counts who votes; this keeps the two together. Consensus moves first and
//! the object after, so that a former manager never counts for the quorum, and whatever was interrupted between the two is
//! finished by whoever leads next. Promotion needs no hand here: the node is told its new role, gets a certificate for it
//! and asks to join.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use skep_consensus::{Consensus, Error, EventStream, MemberRole, Notice, Peer, ProposeError};
use skep_control::membership;
use skep_model::NodeId;
use skep_model::node::{ManagerInfo, Reachability, Role};
use skep_store::{Batch, Change, Object, ObjectKey};
use tokio_util::sync::CancellationToken;

use super::peers::PeerPool;
use crate::clock::now;

/// swarmkit's role manager tries again after this.
const RETRY: Duration = Duration::from_secs(1);
/// For one try of handing leadership over; the consensus of two healthy managers needs a tenth of it.
const HAND_OVER_DEADLINE: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub(crate) enum RoleError {
    #[error("this manager does not lead")]
    NotLeading,
    #[error("this node is not to be a manager")]
    Unwanted,
    /// swarmkit's `ErrCannotRemoveMember`.
    #[error("can't remove member from the raft: this would result in a loss of quorum")]
    LosesQuorum,
    #[error("leadership could not be handed over")]
    NoSuccessor,
    #[error(transparent)]
    Consensus(#[from] Error),
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

/// The managers as consensus has them, and how they change.
pub(crate) struct Roster {
    consensus: Consensus,
    peers: Arc<PeerPool>,
    /// On their way in: members already, and not on any node's object yet.
    joining: Mutex<BTreeSet<u64>>,
}

/// Takes a raft id off the list of those on their way in.
struct Entering<'a>(&'a Roster, u64);

impl Drop for Entering<'_> {
    fn drop(&mut self) {
        self.0.joining.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

impl Roster {
    pub(super) fn new(consensus: Consensus, peers: Arc<PeerPool>) -> Self {
        Self { consensus, peers, joining: Mutex::default() }
    }

    /// Takes a manager into consensus, as a learner until it holds the log. Asked again it moves the manager's address, and
    /// a node that comes with another raft id has lost its log: the old id counts no more.
    pub(super) async fn join(&self, node_id: &NodeId, peer: ManagerInfo) -> Result<(), RoleError> {
        let leadership = self.consensus.leadership().borrow().clone();
        if !leadership.is_leader {
            return Err(RoleError::NotLeading);
        }
        let view = self.consensus.view();
        let node = view.node(node_id).filter(|n| n.spec.role == Role::Manager).ok_or(RoleError::Unwanted)?;
        self.joining.lock().unwrap_or_else(PoisonError::into_inner).insert(peer.raft_id);
        let _entering = Entering(self, peer.raft_id);
        if let Some(old) = node.manager.as_ref().map(|m| m.raft_id).filter(|id| *id != peer.raft_id) {
            self.consensus.remove(old).await?;
        }
        self.consensus.add_learner(Peer { raft_id: peer.raft_id, address: peer.address.to_string() }).await?;
        self.consensus.promote(peer.raft_id).await?;
        self.write(leadership.term, membership::joined(node, peer)).await?;
        tracing::info!(node.id = %node_id, "manager joined");
        Ok(())
    }

    /// Takes a manager that says goodbye out of consensus. Its object keeps the role, as in Docker.
    pub(super) async fn leave(&self, node_id: &NodeId) -> Result<(), RoleError> {
        let leadership = self.consensus.leadership().borrow().clone();
        if !leadership.is_leader {
            return Err(RoleError::NotLeading);
        }
        let raft_id = self.consensus.view().node(node_id).and_then(|n| n.manager.as_ref().map(|m| m.raft_id));
        if let Some(raft_id) = raft_id {
            self.consensus.remove(raft_id).await?;
            self.write(leadership.term, vec![Change::SetNodeManager { node_id: node_id.clone(), manager: None }])
                .await?;
        }
        Ok(())
    }

    /// Whether the managers that would be left are a quorum among themselves (swarmkit's `CanRemoveMember`).
    pub(crate) fn can_remove(&self, raft_id: u64) -> bool {
        let voters = self.voters();
        if !voters.contains(&raft_id) {
            return true;
        }
        let left = voters.iter().filter(|id| **id != raft_id);
        // One that has only just come is not known yet, and is given the benefit of the doubt.
        let reached = left.filter(|id| self.reachability(**id) != Reachability::Unreachable).count();
        reached > (voters.len() - 1) / 2
    }

    fn voters(&self) -> Vec<u64> {
        let voters = self.consensus.members().into_iter().filter(|m| m.role == MemberRole::Voter);
        voters.map(|m| m.peer.raft_id).collect()
    }

    /// As seen from this manager.
    pub(crate) fn reachability(&self, raft_id: u64) -> Reachability {
        if raft_id == self.consensus.raft_id() { Reachability::Reachable } else { self.peers.reachability(raft_id) }
    }

    /// Makes the voter that is best prepared the leader. Nothing to do if this manager does not lead.
    pub(crate) async fn hand_over(&self) -> Result<(), RoleError> {
        if !self.consensus.leadership().borrow().is_leader {
            return Ok(());
        }
        let own = self.consensus.raft_id();
        let mut heirs = self.consensus.members();
        heirs.retain(|m| {
            m.role == MemberRole::Voter
                && m.peer.raft_id != own
                && self.peers.reachability(m.peer.raft_id) != Reachability::Unreachable
        });
        heirs.sort_by_key(|m| (std::cmp::Reverse(m.matched_index), m.heard_ms_ago));
        for heir in heirs {
            let handed = self.consensus.transfer_leader(heir.peer.raft_id);
            match tokio::time::timeout(HAND_OVER_DEADLINE, handed).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => tracing::debug!(%error, "leadership was not handed over"),
                Err(_) => {}
            }
            if !self.consensus.leadership().borrow().is_leader {
                return Ok(());
            }
        }
        Err(RoleError::NoSuccessor)
    }

    async fn demote(&self, term: u64, node_id: &NodeId, raft_id: u64) -> Result<(), RoleError> {
        if !self.can_remove(raft_id) {
            return Err(RoleError::LosesQuorum);
        }
        if raft_id == self.consensus.raft_id() {
            // The leader itself: its successor will carry it out.
            return self.hand_over().await;
        }
        self.consensus.remove(raft_id).await?;
        self.write(term, membership::demoted(node_id)).await?;
        tracing::info!(node.id = %node_id, "demoted");
        Ok(())
    }

    /// Finishes what a leader that died or a manager that crashed while it joined left half done.
    async fn tidy(&self, term: u64) -> Result<(), RoleError> {
        let entering = |id: u64| self.joining.lock().unwrap_or_else(PoisonError::into_inner).contains(&id);
        for member in self.consensus.members() {
            let raft_id = member.peer.raft_id;
            // In this order: who has just come in is on its node's object before it leaves the list.
            if raft_id == self.consensus.raft_id()
                || entering(raft_id)
                || membership::is_known(&self.consensus.view(), raft_id)
            {
                continue;
            }
            tracing::warn!(raft_id, "removing a member of consensus that no node is");
            self.consensus.remove(raft_id).await?;
        }
        let view = self.consensus.view();
        let members: BTreeSet<u64> = self.consensus.members().into_iter().map(|m| m.peer.raft_id).collect();
        for node in membership::unseated(&view, &members) {
            let gone = Change::SetNodeManager { node_id: node.id.clone(), manager: None };
            let unless_it_joins =
                Batch::new(now(), vec![gone]).if_version(ObjectKey::Node(node.id.clone()), node.meta.version);
            self.consensus.propose_as_leader(term, unless_it_joins).await?;
        }
        Ok(())
    }

    async fn write(&self, term: u64, changes: Vec<Change>) -> Result<(), ProposeError> {
        self.consensus.propose_as_leader(term, Batch::new(now(), changes)).await.map(drop)
    }
}

/// Runs while this manager leads `term`.
pub(super) async fn run(roster: Arc<Roster>, term: u64, cancel: CancellationToken) {
    let mut events = roster.consensus.events();
    loop {
        let round = async {
            for (node_id, raft_id) in membership::to_demote(&roster.consensus.view()) {
                if let Err(error) = roster.demote(term, &node_id, raft_id).await {
                    tracing::warn!(node.id = %node_id, %error, "cannot demote yet");
                }
            }
            if let Err(error) = roster.tidy(term).await {
                tracing::debug!(%error, "cannot tidy the managers yet");
            }
            tokio::time::timeout(RETRY, role_news(&mut events)).await.unwrap_or(true)
        };
        let goes_on = tokio::select! { () = cancel.cancelled() => false, goes_on = round => goes_on };
        if !goes_on {
            return;
        }
    }
}

/// Until a node's role moved; false if nothing will move any more.
async fn role_news(events: &mut EventStream) -> bool {
    while let Some(notice) = events.next().await {
        let Notice::Applied { events, .. } = notice else { return true };
        let moved = events.iter().any(|event| match &event.object {
            Object::Node(Some(old), Some(new)) => old.spec.role != new.spec.role || old.manager != new.manager,
            Object::Node(..) => true,
            Object::Cluster(..)
            | Object::Service(..)
            | Object::Task(..)
            | Object::Network(..)
            | Object::Secret(..)
            | Object::Config(..) => false,
        });
        if moved {
            return true;
        }
    }
    false
}
