//! Changing who is in the cluster: learners first, one change at a time, always through the leader.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers, Instant as _};
use tokio::time::Instant;

use crate::error::Error;
use crate::handle::{Consensus, peer_of};
use crate::member::{Member, MemberRole, Peer};
use crate::types::Types;

/// A membership change repeats what a passing state (an election, a change in progress) refused, this often.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

impl Consensus {
    /// Adds a manager that receives the log without counting for the quorum, and returns once that is committed. The same
    /// member again, with the same or another address, is fine.
    pub async fn add_learner(&self, peer: Peer) -> Result<(), Error> {
        let node = BTreeMap::from([(peer.raft_id, BasicNode::new(&peer.address))]);
        let known = self.members().into_iter().any(|member| member.peer.raft_id == peer.raft_id);
        let change = if known { ChangeMembers::SetNodes(node) } else { ChangeMembers::AddNodes(node) };
        self.change(change).await
    }

    /// Makes a learner a voter, once it holds (nearly) all of the log: a voter that lags would stop commits.
    pub async fn promote(&self, raft_id: u64) -> Result<(), Error> {
        self.wait_caught_up(raft_id).await?;
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([raft_id]))).await
    }

    /// Removes a voter or learner for good. A member that is gone already is fine. The removed manager is not told; its
    /// raft id is never used again.
    pub async fn remove(&self, raft_id: u64) -> Result<(), Error> {
        let members = self.members();
        let Some(member) = members.iter().find(|member| member.peer.raft_id == raft_id) else { return Ok(()) };
        let voters = members.iter().filter(|member| member.role == MemberRole::Voter).count();
        match member.role {
            MemberRole::Voter if voters == 1 => Err(Error::Refused("the last manager cannot be removed".to_owned())),
            MemberRole::Voter => self.change(ChangeMembers::RemoveVoters(BTreeSet::from([raft_id]))).await,
            MemberRole::Learner => self.change(ChangeMembers::RemoveNodes(BTreeSet::from([raft_id]))).await,
        }
    }

    /// The members as the newest known membership has them, by raft id.
    pub fn members(&self) -> Vec<Member> {
        let metrics = self.inner.raft.metrics();
        let now = metrics.borrow_watched();
        let membership = now.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let matched = |id: &u64| {
            if *id == now.id {
                return now.last_log_index;
            }
            now.replication.as_ref()?.get(id)?.as_ref().map(|log_id| log_id.index)
        };
        let heard = |id: &u64| {
            let heard = now.heartbeat.as_ref()?.get(id)?.as_ref()?;
            u64::try_from(heard.elapsed().as_millis()).ok()
        };
        let member = |(id, node): (&u64, &BasicNode)| Member {
            peer: Peer { raft_id: *id, address: node.addr.clone() },
            role: if voters.contains(id) { MemberRole::Voter } else { MemberRole::Learner },
            is_leader: now.current_leader == Some(*id),
            matched_index: matched(id),
            heard_ms_ago: heard(id),
        };
        membership.nodes().map(member).collect()
    }

    /// Waits until there are other members, or at other addresses, than this one and `known`.
    pub async fn members_beside(&self, known: &[Peer]) {
        let mut metrics = self.inner.raft.server_metrics();
        loop {
            let same = {
                let now = metrics.borrow_watched();
                let others = now.membership_config.membership().nodes().filter(|(id, _)| **id != now.id);
                others
                    .map(|(id, node)| (*id, node.addr.as_str()))
                    .eq(known.iter().map(|peer| (peer.raft_id, peer.address.as_str())))
            };
            if !same {
                return;
            }
            if metrics.changed().await.is_err() {
                // It has stopped: no member comes any more.
                return std::future::pending().await;
            }
        }
    }

    /// Hands leadership to another voter and waits until it leads. A leader calls this before it shuts down.
    pub async fn transfer_leader(&self, to: u64) -> Result<(), Error> {
        match self.members().iter().find(|member| member.peer.raft_id == to) {
            None => return Err(Error::NoSuchMember { raft_id: to }),
            Some(member) if member.role == MemberRole::Learner => {
                return Err(Error::Refused(format!("raft member {to} is a learner and cannot lead")));
            }
            Some(_) => {}
        }
        if !self.leadership().borrow().is_leader {
            return Err(self.not_leader());
        }
        self.inner.raft.trigger().transfer_leader(to).await.map_err(|fatal| self.stopped(&fatal))?;
        let mut leadership = self.leadership();
        let handed_over = leadership.wait_for(|now| now.leader.as_ref().is_some_and(|leader| leader.raft_id == to));
        match tokio::time::timeout(self.inner.config.timing.leader_wait, handed_over).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Error::Stopped("it is shut down".to_owned())),
            Err(_) => Err(Error::Timeout("handing over leadership")),
        }
    }

    async fn wait_caught_up(&self, raft_id: u64) -> Result<(), Error> {
        // What the leader's log held when asked; what comes later reaches a member this close in normal operation.
        let goal = self.inner.raft.metrics().borrow_watched().last_log_index.unwrap_or(0);
        let deadline = Instant::now() + self.inner.config.timing.propose_timeout;
        let mut metrics = self.inner.raft.data_metrics();
        loop {
            match self.members().into_iter().find(|member| member.peer.raft_id == raft_id) {
                None => return Err(Error::NoSuchMember { raft_id }),
                Some(member) if member.role == MemberRole::Voter => return Ok(()),
                Some(member) if member.matched_index.is_some_and(|index| index >= goal) => return Ok(()),
                Some(_) if !self.inner.raft.is_leader() => return Err(self.not_leader()),
                Some(_) => {}
            }
            match tokio::time::timeout_at(deadline, metrics.changed()).await {
                Err(_) => return Err(Error::Timeout("waiting for the new manager to receive the log")),
                Ok(Err(_)) => return Err(Error::Stopped("it is shut down".to_owned())),
                Ok(Ok(())) => {}
            }
        }
    }

    async fn change(&self, change: ChangeMembers<u64, BasicNode>) -> Result<(), Error> {
        let timing = &self.inner.config.timing;
        let deadline = Instant::now() + timing.propose_timeout;
        let patience = Instant::now() + timing.leader_wait;
        loop {
            let attempt = tokio::time::timeout_at(deadline, self.inner.raft.change_membership(change.clone(), false));
            let error = match attempt.await {
                Err(_) => return Err(Error::Timeout("waiting for a quorum of managers to agree on the membership")),
                Ok(Ok(changed)) => return self.wait_shown(changed.log_id.index, deadline).await,
                Ok(Err(RaftError::Fatal(fatal))) => return Err(self.stopped(&fatal)),
                Ok(Err(RaftError::APIError(error))) => self.explain_change(error),
            };
            let passing = matches!(error, Error::NoLeader | Error::MembershipChangeInProgress);
            if !passing || Instant::now() >= patience {
                return Err(error);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Until [`members`](Self::members) shows the membership of entry `index`.
    async fn wait_shown(&self, index: u64, deadline: Instant) -> Result<(), Error> {
        let mut metrics = self.inner.raft.metrics();
        loop {
            let shown = metrics.borrow_and_update().membership_config.log_id().is_some_and(|id| id.index >= index);
            if shown {
                return Ok(());
            }
            match tokio::time::timeout_at(deadline, metrics.changed()).await {
                Err(_) => return Err(Error::Timeout("waiting for the new membership")),
                Ok(Err(_)) => return Err(Error::Stopped("it is shut down".to_owned())),
                Ok(Ok(())) => {}
            }
        }
    }

    fn explain_change(&self, error: ClientWriteError<Types>) -> Error {
        match error {
            ClientWriteError::ForwardToLeader(forward) => match peer_of(&forward) {
                Some(leader) => Error::NotLeader { leader: Some(leader) },
                None => Error::NoLeader,
            },
            ClientWriteError::LogEntryDiscarded(_) => Error::NoLeader,
            ClientWriteError::ChangeMembershipError(
                ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_),
            ) => Error::MembershipChangeInProgress,
            ClientWriteError::ChangeMembershipError(ChangeMembershipError::LearnerNotFound(missing)) => {
                Error::NoSuchMember { raft_id: missing.node_id }
            }
            other => Error::Refused(other.to_string()),
        }
    }

    fn not_leader(&self) -> Error {
        let leader = self.leadership().borrow().leader.clone();
        match leader {
            Some(leader) if leader.raft_id != self.raft_id() => Error::NotLeader { leader: Some(leader) },
            _ => Error::NoLeader,
        }
    }
}
