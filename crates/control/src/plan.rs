//! A decision in the making: changes are tried on a scratch copy of the store as they are decided, so that each step sees
//! what the step before it did, and a task that is made, allocated and assigned in one pass is one change in the log.

use std::collections::BTreeMap;

use skep_model::task::TaskState;
use skep_model::{MAX_BATCH_BYTES, MAX_CHANGES_PER_BATCH, TaskId, Timestamp};
use skep_store::{Batch, Change, Store, View};

pub(crate) struct Plan {
    scratch: Store,
    /// `None` where a change was moved or undone.
    changes: Vec<Option<Change>>,
    /// Where in `changes` a task of this plan is made.
    made: BTreeMap<TaskId, usize>,
    now: Timestamp,
    steady_since: Timestamp,
    wake_at: Option<Timestamp>,
}

impl Plan {
    pub(crate) fn new(view: &View, now: Timestamp, steady_since: Timestamp) -> Self {
        let (scratch, changes, made) = (Store::from(view.clone()), Vec::new(), BTreeMap::new());
        Self { scratch, changes, made, now, steady_since, wake_at: None }
    }

    /// The world as it will be once what is planned so far is applied.
    pub(crate) fn view(&self) -> &View {
        self.scratch.read()
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.now
    }

    /// When `moment` was at the latest, on this leader's clock, whoever wrote it.
    pub(crate) fn at_the_latest(&self, moment: Timestamp) -> Timestamp {
        if moment > self.now { self.steady_since } else { moment.max(self.steady_since) }
    }

    pub(crate) fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    pub(crate) fn wake_at(&self) -> Option<Timestamp> {
        self.wake_at
    }

    /// Plans a change. Whether it could be applied; one that could not is left out.
    pub(crate) fn push(&mut self, change: Change) -> bool {
        let batch = Batch::new(self.now, vec![change]);
        let index = self.scratch.read().index();
        // The same index: within a plan a version means nothing.
        match self.scratch.apply(index, 0, &batch) {
            Ok(events) if events.is_empty() => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
        if let Some(change) = batch.changes.into_iter().next() {
            self.record(change);
        }
        true
    }

    /// Plans what is decided last, each doing something, from the very view it will meet. Nobody asks what the world is after
    /// it, so it is not tried on the scratch store: that would cost what applying it costs.
    pub(crate) fn conclude(mut self, changes: Vec<Change>) -> Vec<Change> {
        debug_assert_eq!(
            self.scratch.clone().apply(self.view().index(), 0, &Batch::new(self.now, changes.clone())).err(),
            None
        );
        for change in changes {
            self.record(change);
        }
        self.changes.into_iter().flatten().collect()
    }

    /// Keeps a change, or folds it into the making of the task it is about.
    fn record(&mut self, change: Change) {
        match change {
            Change::CreateTask(task) => {
                self.made.insert(task.id.clone(), self.changes.len());
                self.changes.push(Some(Change::CreateTask(task)));
            }
            Change::AllocateTask { task_id, networks } => {
                // To the end: the addresses may have been freed by what was planned since the task was made.
                match self.made.get(&task_id).and_then(|at| self.changes.get_mut(*at)).and_then(Option::take) {
                    Some(Change::CreateTask(mut task)) => {
                        task.networks = networks;
                        task.state = TaskState::Pending;
                        task.message = "pending task scheduling".into();
                        self.record(Change::CreateTask(task));
                    }
                    Some(_) | None => self.changes.push(Some(Change::AllocateTask { task_id, networks })),
                }
            }
            Change::AssignTask { task_id, node_id, generic } => match self.made_here(&task_id) {
                Some(task) => {
                    task.node_id = Some(node_id);
                    task.generic = generic;
                    task.state = TaskState::Assigned;
                    task.message = "scheduler assigned task to node".into();
                }
                None => self.changes.push(Some(Change::AssignTask { task_id, node_id, generic })),
            },
            Change::SetTaskDesired { task_id, desired_state } => match self.made_here(&task_id) {
                Some(task) => task.desired_state = task.desired_state.max(desired_state),
                None => self.changes.push(Some(Change::SetTaskDesired { task_id, desired_state })),
            },
            Change::RemoveTask { task_id } => match self.made.remove(&task_id) {
                Some(at) => {
                    self.changes.get_mut(at).map(Option::take);
                }
                None => self.changes.push(Some(Change::RemoveTask { task_id })),
            },
            other => self.changes.push(Some(other)),
        }
    }

    fn made_here(&mut self, id: &TaskId) -> Option<&mut skep_store::NewTask> {
        match self.changes.get_mut(*self.made.get(id)?) {
            Some(Some(Change::CreateTask(task))) => Some(task),
            Some(_) | None => None,
        }
    }
}

/// Cuts a decision into batches that fit a log entry, in order; each is valid once those before it are applied.
pub fn split(changes: Vec<Change>, at: Timestamp, term: u64) -> Vec<Batch> {
    // Room for the envelope, and for what one change adds after it was counted.
    const BUDGET: usize = MAX_BATCH_BYTES * 3 / 4;
    let mut batches = Vec::new();
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for change in changes {
        let size = estimate(&change);
        if !batch.is_empty() && (batch.len() == MAX_CHANGES_PER_BATCH || bytes + size > BUDGET) {
            batches.push(Batch::new(at, std::mem::take(&mut batch)).in_term(term));
            bytes = 0;
        }
        bytes += size;
        batch.push(change);
    }
    if !batch.is_empty() {
        batches.push(Batch::new(at, batch).in_term(term));
    }
    batches
}

/// The encoded size of a change, not below it by much.
fn estimate(change: &Change) -> usize {
    match change {
        Change::CreateTask(task) => 512 + 160 * task.networks.len() + task.message.len(),
        Change::AssignTask { generic, .. } if generic.is_empty() => 160,
        Change::SetTaskStatus(reports) => {
            reports.iter().map(|r| 512 + r.status.error.len() + r.status.message.len()).sum()
        }
        other => Batch::new(Timestamp::ZERO, vec![other.clone()]).encode().map_or(MAX_BATCH_BYTES, |b| b.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_is_not_taken_for_smaller_than_it_is() {
        let id = "z".repeat(30);
        let (task_id, node_id) = (id.parse().unwrap(), id.parse().unwrap());
        let assign = Change::AssignTask { task_id, node_id, generic: Vec::new() };
        let bytes = |changes| Batch::new(Timestamp::ZERO, changes).encode().unwrap().len();
        let (one, two) = (bytes(vec![assign.clone()]), bytes(vec![assign.clone(), assign.clone()]));
        assert!(two - one <= estimate(&assign), "{one} {two}");
    }
}
