//! What this node has to say about its tasks: the latest status of each, and which of them no manager has heard yet.
//!
//! Nothing is queued: a task that moves twice before a report goes out is reported once, and after a reconnect everything is
//! simply said again (statuses only move up, so saying twice does no harm).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use skep_model::TaskId;
use skep_model::assignment::TaskReport;
use skep_model::task::TaskStatus;
use tokio::sync::Notify;

#[derive(Default)]
pub(crate) struct StatusBoard {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    statuses: BTreeMap<TaskId, TaskStatus>,
    unsaid: BTreeSet<TaskId>,
}

impl StatusBoard {
    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn post(&self, task_id: TaskId, status: TaskStatus) {
        self.with(|inner| {
            inner.statuses.insert(task_id.clone(), status);
            inner.unsaid.insert(task_id);
        });
        self.changed.notify_one();
    }

    /// The task is gone from the assignments: nobody wants to hear of it.
    pub(crate) fn forget(&self, task_id: &TaskId) {
        self.with(|inner| {
            inner.statuses.remove(task_id);
            inner.unsaid.remove(task_id);
        });
    }

    /// A new manager has heard nothing.
    pub(crate) fn say_all_again(&self) {
        self.with(|inner| inner.unsaid = inner.statuses.keys().cloned().collect());
        self.changed.notify_one();
    }

    /// At most `limit` reports; the rest stays for the next call.
    pub(crate) fn take(&self, limit: usize) -> Vec<TaskReport> {
        self.with(|inner| {
            let mut reports = Vec::new();
            while reports.len() < limit
                && let Some(task_id) = inner.unsaid.pop_first()
            {
                if let Some(status) = inner.statuses.get(&task_id) {
                    reports.push(TaskReport { task_id, status: status.clone() });
                }
            }
            reports
        })
    }

    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}
