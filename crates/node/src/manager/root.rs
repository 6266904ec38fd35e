//! Ends a rotation of the root: once every node has a certificate of the new one, it takes the old one's place.
//!
//! Nodes are told by the dispatcher; a node that is down is waited for, until it comes back or is removed.

use std::time::Duration;

use skep_consensus::Consensus;
use skep_store::{Batch, Change, ObjectKey, View};
use tokio_util::sync::CancellationToken;

use crate::ca::{finish, issuer_of};
use crate::clock::now;
use crate::error::Result;

/// swarmkit's reconciler looks again after three.
const PERIOD: Duration = Duration::from_secs(1);

pub(super) async fn run(consensus: Consensus, term: u64, cancel: CancellationToken) {
    let mut events = consensus.events();
    loop {
        match due(&consensus.view()) {
            Ok(None) => {}
            Ok(Some(batch)) => match consensus.propose_as_leader(term, batch).await {
                Ok(_) => tracing::info!("the swarm's root certificate was rotated"),
                // Something moved meanwhile: looked at again.
                Err(error) => tracing::debug!(%error, "cannot end the rotation of the root yet"),
            },
            Err(error) => tracing::error!(%error, "cannot end the rotation of the root"),
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
            notice = events.next() => if notice.is_none() { return },
        }
    }
}

fn due(view: &View) -> Result<Option<Batch>> {
    let Some(cluster) = view.cluster() else { return Ok(None) };
    let Some(next) = &cluster.root_ca.rotation else { return Ok(None) };
    let issuer = issuer_of(&next.cert_pem)?;
    if view.nodes().any(|node| node.description.tls_issuer_key != issuer.key) {
        return Ok(None);
    }
    let Some((root_ca, tokens)) = finish(&cluster.root_ca)? else { return Ok(None) };
    let at = now();
    let changes = vec![Change::SetRootCa { root_ca, at }, Change::SetJoinTokens(tokens)];
    Ok(Some(Batch::new(at, changes).if_version(ObjectKey::Cluster, cluster.meta.version)))
}
