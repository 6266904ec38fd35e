//! A task's status only moves up, and not from one end to another, and what is desired of it only moves up; and no task comes
//! back that was forgotten.

use std::collections::BTreeMap;

use skep_model::TaskId;
use skep_model::task::TaskState;
use skep_store::Object;

use super::{Entry, Holds, Invariant};

#[derive(Default)]
pub(crate) struct StatusUp {
    /// Status and desired state; `None` once forgotten.
    highest: BTreeMap<TaskId, Option<(TaskState, TaskState)>>,
}

impl Invariant for StatusUp {
    fn entry(&mut self, entry: &Entry<'_>) -> Holds {
        for event in entry.events {
            let Object::Task(old, new) = &event.object else { continue };
            let Some(task) = new else {
                if let Some(old) = old {
                    self.highest.insert(old.id.clone(), None);
                }
                continue;
            };
            let now = (task.status.state, task.desired_state);
            match self.highest.insert(task.id.clone(), Some(now)) {
                Some(None) => return Err(format!("task {} is back at entry {}", task.name(), entry.index)),
                Some(Some((status, desired)))
                    if now.0 < status || (now.0 > status && status.is_terminal()) || now.1 < desired =>
                {
                    let (was, is) = (status.as_str(), now.0.as_str());
                    return Err(format!("task {} went from {was} to {is} at entry {}", task.name(), entry.index));
                }
                Some(Some(_)) | None => {}
            }
        }
        Ok(())
    }
}
