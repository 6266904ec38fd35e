//! Keeps this host's kernel as the assignments say, and the assignments on disk. What comes while one plan is applied is
//! applied as one.

use std::sync::Arc;
use std::time::Duration;

use skep_model::{NodeId, SessionId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::executor::Executor;
use super::session::Orders;
use crate::state::StateFiles;

/// Changes in a burst are written to disk once.
const SAVE_PAUSE: Duration = Duration::from_millis(500);

/// A plan that could not be put in force is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

/// The last assignments of a session that new connections here follow.
pub(crate) type InForce = Option<(SessionId, u64)>;

pub(crate) async fn run(
    node_id: NodeId,
    executor: Arc<dyn Executor>,
    files: StateFiles,
    mut orders: watch::Receiver<Option<Orders>>,
    in_force: watch::Sender<InForce>,
    cancel: CancellationToken,
) {
    let saver = save(files, orders.clone(), cancel.clone());
    let applier = async {
        let mut applied = None;
        loop {
            let current = orders.borrow_and_update().clone();
            if let Some(current) = current {
                let plan = skep_agent::dataplane::plan(&current.set, &node_id, current.facts.data_path_port);
                let plan = Arc::new(plan);
                if applied.as_ref() != Some(&plan) {
                    applied = executor.apply(&plan).await.then_some(plan);
                }
                if applied.is_some() {
                    in_force.send_replace(current.word);
                }
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = orders.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY), if applied.is_none() => {}
            }
        }
    };
    tokio::join!(saver, applier);
}

async fn save(files: StateFiles, mut orders: watch::Receiver<Option<Orders>>, cancel: CancellationToken) {
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = orders.changed() => if changed.is_err() { return },
        }
        tokio::select! { () = cancel.cancelled() => {}, () = tokio::time::sleep(SAVE_PAUSE) => {} }
        let Some(current) = orders.borrow_and_update().clone().filter(|o| o.fresh) else { continue };
        let files = files.clone();
        let saved =
            tokio::task::spawn_blocking(move || files.save_assignments(Some(&current.facts), &current.set)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(%error, "cannot save assignments");
        }
    }
}
