//! Every manager locks its own keys as the swarm has it (`--autolock`): the cluster object says with which unlock key.

use std::time::Duration;

use skep_consensus::{Consensus, Notice};
use skep_store::Object;
use tokio_util::sync::CancellationToken;

use crate::ca::CertificateFiles;

/// After a failed write; the disk may have room again.
const RETRY: Duration = Duration::from_secs(5);

/// Locks this manager's keys as the swarm has it by now. False if it failed, which is in the log.
pub(super) async fn lock(consensus: &Consensus, certificates: &CertificateFiles) -> bool {
    let cluster = consensus.view().cluster().cloned();
    let files = certificates.clone();
    let locked = tokio::task::spawn_blocking(move || match cluster {
        Some(cluster) => files.follow(cluster.unlock_key.as_ref(), cluster.meta.version),
        None => Ok(()),
    });
    match locked.await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::warn!(%error, "cannot lock this manager's keys as the swarm has it");
            false
        }
        Err(_) => false,
    }
}

/// Does so after every change of the swarm's.
pub(super) async fn follow(consensus: Consensus, certificates: CertificateFiles, cancel: CancellationToken) {
    let mut events = consensus.events();
    loop {
        let failed = !lock(&consensus, &certificates).await;
        let retry = async { if failed { tokio::time::sleep(RETRY).await } else { std::future::pending().await } };
        let mut moved = std::pin::pin!(async {
            loop {
                match events.next().await {
                    None => return false,
                    Some(Notice::Resync { .. }) => return true,
                    Some(Notice::Applied { events, .. }) => {
                        if events.iter().any(|event| matches!(event.object, Object::Cluster(..))) {
                            return true;
                        }
                    }
                }
            }
        });
        tokio::select! {
            () = cancel.cancelled() => return,
            () = retry => {}
            moved = moved.as_mut() => if !moved { return },
        }
    }
}
