//! A service's tasks by slot: the place one replica has, and those that had it before.

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_model::ServiceId;
use skep_model::task::{Task, TaskState};
use skep_store::{SlotKey, View};

/// Tasks of one slot, oldest first.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) key: SlotKey,
    pub(super) tasks: Vec<Arc<Task>>,
}

impl Slot {
    /// Those that are wanted, whatever has become of them.
    pub(super) fn wanted(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.iter().filter(|t| t.is_wanted())
    }

    pub(super) fn live(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.iter().filter(|t| t.is_live())
    }

    pub(super) fn newest(&self) -> Option<&Arc<Task>> {
        self.tasks.last()
    }

    pub(super) fn runs(&self) -> bool {
        self.live().any(|t| t.status.state == TaskState::Running)
    }

    /// The last task, if it ended by itself with this template and none is live.
    pub(super) fn ended(&self, spec_version: u64) -> Option<&Arc<Task>> {
        let last = self.newest().filter(|_| self.live().next().is_none())?;
        let ended = last.spec_version == spec_version
            && last.desired_state == TaskState::Shutdown
            && ended_by_itself(last.status.state);
        ended.then_some(last)
    }
}

/// Not stopped on request, and not lost with its node.
pub(super) fn ended_by_itself(state: TaskState) -> bool {
    matches!(state, TaskState::Complete | TaskState::Failed | TaskState::Rejected)
}

/// All slots that have or had a task, in order. Tasks that are being removed have no slot any more.
pub(super) fn slots(view: &View, service: &ServiceId) -> BTreeMap<SlotKey, Slot> {
    let mut out: BTreeMap<SlotKey, Slot> = BTreeMap::new();
    for task in view.tasks_of_service(service).filter(|t| t.desired_state < TaskState::Remove) {
        if let Some(key) = SlotKey::of(task) {
            out.entry(key.clone()).or_insert_with(|| Slot { key, tasks: Vec::new() }).tasks.push(task.clone());
        }
    }
    for slot in out.values_mut() {
        // Of two made at the same instant the one still wanted is the later.
        slot.tasks.sort_by_key(|t| (t.meta.created_at, t.is_wanted(), t.id.clone()));
    }
    out
}
