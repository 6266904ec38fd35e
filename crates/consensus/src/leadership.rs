//! Turns openraft's metrics into [`Leadership`]: a leader may decide only when a quorum confirmed it and everything of
//! earlier terms is applied, and may not when no quorum answers any more (openraft itself would let it go on believing).

use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::{Instant, ReadPolicy};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Timing;
use crate::member::{Leadership, Peer};
use crate::types::Raft;

/// Runs until cancelled or until consensus has stopped.
pub(crate) async fn watch(
    raft_id: u64,
    timing: Timing,
    raft: Raft,
    sender: watch::Sender<Leadership>,
    cancel: CancellationToken,
) {
    let mut metrics = raft.server_metrics();
    let mut confirmed_term = None;
    let mut tick = tokio::time::interval(timing.heartbeat);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let known = {
            let now = metrics.borrow_watched();
            let leader = now.current_leader.and_then(|id| {
                let node = now.membership_config.membership().get_node(&id)?;
                Some(Peer { raft_id: id, address: node.addr.clone() })
            });
            Leadership { term: now.vote.leader_id.term, leader, is_leader: false }
        };
        let elected = known.leader.as_ref().is_some_and(|leader| leader.raft_id == raft_id);
        if !elected || confirmed_term != Some(known.term) {
            confirmed_term = None;
        }
        // A view of one's own term's start, confirmed by a quorum, is what makes a leader fit to decide.
        let confirm = async {
            if !elected || confirmed_term.is_some() {
                return std::future::pending().await;
            }
            loop {
                if raft.ensure_linearizable(ReadPolicy::ReadIndex).await.is_ok() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let is_leader = confirmed_term.is_some() && has_quorum(raft_id, &raft, &timing);
        let shown = Leadership { is_leader, ..known.clone() };
        sender.send_if_modified(|current| {
            let changed = *current != shown;
            if changed {
                tracing::info!(term = shown.term, leader = ?shown.leader.as_ref().map(|peer| peer.raft_id), is_leader, "leadership");
                *current = shown;
            }
            changed
        });
        tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            changed = metrics.changed() => if changed.is_err() { break },
            () = confirm => confirmed_term = Some(known.term),
            _ = tick.tick(), if confirmed_term.is_some() => {}
        }
    }
    sender.send_modify(|current| current.is_leader = false);
}

/// Whether a quorum has answered within the lease, so that nobody else can have been elected; alone, one is a quorum.
fn has_quorum(raft_id: u64, raft: &Raft, timing: &Timing) -> bool {
    let alone = {
        let metrics = raft.server_metrics();
        let now = metrics.borrow_watched();
        now.membership_config.membership().voter_ids().eq([raft_id])
    };
    if alone {
        return true;
    }
    let metrics = raft.data_metrics();
    let acked = metrics.borrow_watched().last_quorum_acked;
    acked.is_some_and(|at| at.elapsed() < timing.lease())
}
