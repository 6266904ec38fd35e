//! Carries out demotions: consensus first, the object after, so that a former manager never counts for the quorum.
//!
//! Promotion needs no hand here: the node is told its new role, gets a certificate for it and asks to join consensus.

use std::time::Duration;

use skep_consensus::Consensus;
use skep_model::NodeId;
use skep_model::node::Role;
use skep_store::{Batch, Change, View};
use tokio_util::sync::CancellationToken;

use crate::clock::now;

/// swarmkit's role manager tries again after this.
const RETRY: Duration = Duration::from_secs(1);

pub(super) async fn run(consensus: Consensus, term: u64, cancel: CancellationToken) {
    let mut events = consensus.events();
    loop {
        for (node_id, raft_id) in to_demote(&consensus.view()) {
            let demote = demote(&consensus, term, &node_id, raft_id);
            let outcome = tokio::select! { () = cancel.cancelled() => return, outcome = demote => outcome };
            if let Err(error) = outcome {
                tracing::warn!(node.id = %node_id, %error, "cannot demote yet");
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
            notice = events.next() => if notice.is_none() { return },
        }
    }
}

fn to_demote(view: &View) -> Vec<(NodeId, u64)> {
    view.nodes()
        .filter(|node| node.spec.role == Role::Worker)
        .filter_map(|node| Some((node.id.clone(), node.manager.as_ref()?.raft_id)))
        .collect()
}

async fn demote(
    consensus: &Consensus,
    term: u64,
    node_id: &NodeId,
    raft_id: u64,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    if raft_id == consensus.raft_id() {
        // The leader itself: another one will carry it out.
        let other = consensus.members().into_iter().find(|m| m.peer.raft_id != raft_id);
        let Some(other) = other else { return Ok(()) };
        consensus.transfer_leader(other.peer.raft_id).await?;
        return Ok(());
    }
    consensus.remove(raft_id).await?;
    let changes = vec![
        Change::SetNodeManager { node_id: node_id.clone(), manager: None },
        Change::SetNodeRole { node_id: node_id.clone(), role: Role::Worker },
    ];
    consensus.propose_as_leader(term, Batch::new(now(), changes).in_term(term)).await?;
    tracing::info!(node.id = %node_id, "demoted");
    Ok(())
}
