//! Turns openraft's metrics into [`Leadership`]: a leader may decide only when a quorum confirmed it and everything in its
//! log is applied, and may not when no quorum answers any more (openraft itself would let it go on believing).

use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::{Instant as _, ReadPolicy};
use tokio::sync::watch;
use tokio::time::Instant;
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
    let (mut confirmed_term, mut reign) = (None, 0);
    let mut elected_at = Instant::now();
    let mut tick = tokio::time::interval(timing.heartbeat);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let known = {
            let now = metrics.borrow_watched();
            let leader = now.current_leader.and_then(|id| {
                let node = now.membership_config.membership().get_node(&id)?;
                Some(Peer { raft_id: id, address: node.addr.clone() })
            });
            Leadership { term: now.vote.leader_id.term, leader, is_leader: false, reign }
        };
        let elected = known.leader.as_ref().is_some_and(|leader| leader.raft_id == raft_id);
        if !elected || confirmed_term != Some(known.term) {
            confirmed_term = None;
        }
        if !elected {
            elected_at = Instant::now();
        }
        let silence = quorum_silence(raft_id, &raft).unwrap_or_else(|| elected_at.elapsed());
        let shows_itself = !elected || shows_itself(silence, &timing);
        raft.runtime_config().heartbeat(shows_itself);
        // No follower stands for election sooner after what it answered last.
        if silence + timing.heartbeat >= timing.election_min {
            confirmed_term = None;
        }
        let is_leader = confirmed_term.is_some();
        // A view of all that was ever proposed here, confirmed by a quorum, is what makes a leader fit to decide: also when it
        // had lost touch with the quorum, and what it decided then is in its log but not in its view.
        let confirm = async {
            // The question is a heartbeat, too.
            if !elected || !shows_itself || confirmed_term.is_some() {
                return std::future::pending().await;
            }
            loop {
                if raft.ensure_linearizable(ReadPolicy::ReadIndex).await.is_ok() {
                    let last = raft.data_metrics().borrow_watched().last_log.map(|id| id.index);
                    if raft.wait(None).applied_index_at_least(last, "all that was proposed here").await.is_ok() {
                        return;
                    }
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
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
            () = confirm => (confirmed_term, reign) = (Some(known.term), reign + 1),
            _ = tick.tick(), if elected => {}
        }
    }
    sender.send_modify(|current| current.is_leader = false);
}

/// For how long no quorum has answered; `None` before the first answer. Alone, one is a quorum.
fn quorum_silence(raft_id: u64, raft: &Raft) -> Option<Duration> {
    let alone = {
        let metrics = raft.server_metrics();
        let now = metrics.borrow_watched();
        now.membership_config.membership().voter_ids().eq([raft_id])
    };
    if alone {
        return Some(Duration::ZERO);
    }
    let metrics = raft.data_metrics();
    let acked = metrics.borrow_watched().last_quorum_acked;
    acked.map(|at| at.elapsed())
}

/// Whether a leader no quorum has answered for so long goes on sending heartbeats. Followers may hear one who does not hear
/// them, and would wait for it for ever: it falls silent for long enough that they elect another, and tries again later.
/// (openraft's own `quorum_loss_probe_interval` does so after half a second, which a lossy link takes now and then.)
fn shows_itself(silence: Duration, timing: &Timing) -> bool {
    let period = timing.election_max * 2;
    let periods = silence.as_nanos() / period.as_nanos().max(1);
    periods.is_multiple_of(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_that_is_not_answered_is_silent_every_other_period() {
        let timing = Timing::default();
        let shown = [0, 1_700, 1_900, 3_500, 3_700, 5_500].map(|ms| shows_itself(Duration::from_millis(ms), &timing));
        assert_eq!(shown, [true, true, false, false, true, false]);
    }
}
