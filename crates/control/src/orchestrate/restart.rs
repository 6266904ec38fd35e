//! Tasks that ended, or whose node is gone or drained: whether, where and when another takes their place.
//!
//! Counts and delays are in the store (`RestartRecord`, `Task::start_after`): a new leader goes on counting and waiting.

use std::time::Duration;

use skep_model::Timestamp;
use skep_model::service::{Service, UpdateOrder};
use skep_model::task::{DEFAULT_RESTART_DELAY, RestartCondition, RestartPolicy, Task, TaskState};
use skep_store::SlotKey;

use super::slot::{Slot, slots};
use super::{Desk, How, fence, goal, is_over, may_keep, on_lost_node};
use crate::plan::Plan;

/// How long a task waits for the one it replaces to stop (swarmkit `defaultOldTaskTimeout`).
const OLD_TASK_TIMEOUT: Duration = Duration::from_secs(60);

impl Desk<'_> {
    /// Sees to every wanted task that does not run any more or must not run where it is.
    pub(super) fn restart(&mut self, service: &Service) {
        let slots = slots(self.plan.view(), &service.id);
        for slot in slots.values() {
            let out = |t: &&std::sync::Arc<Task>| {
                let node = t.node_id.as_ref();
                t.status.state.is_terminal() || node.is_some_and(|id| !may_keep(self.plan.view().node(id)))
            };
            let gone: Vec<_> = slot.wanted().filter(|t| !has_done_its_job(service, t)).filter(out).cloned().collect();
            // The newest first: what took the place of one needs no other.
            for task in gone.into_iter().rev() {
                match task.start_after {
                    // Rejected before its delay was over: the next try is not before that.
                    Some(at) if at > self.plan.now() && task.status.state.is_terminal() => self.plan.wake(at),
                    Some(_) | None => self.replace(service, slot, &task),
                }
            }
        }
    }

    fn replace(&mut self, service: &Service, slot: &Slot, old: &Task) {
        let starts_first = self.starts_first(service, slot, old);
        if !starts_first {
            self.desire(&old.id, TaskState::Shutdown);
        }
        // A global service's place is its node: without the node there is no place.
        let has_place = match &slot.key {
            SlotKey::Slot(_) => true,
            SlotKey::Node(id) => may_keep(self.plan.view().node(id)),
        };
        let view = self.plan.view();
        // A new task that is displaced before the one it was started beside has gone is not replaced by that.
        let is_new = |t: &Task| t.spec_version == service.spec_version;
        let outdated = |t: &Task| is_new(old) && !old.status.state.is_terminal() && !is_new(t);
        let taken = view
            .tasks_of_slot(&service.id, &slot.key)
            .filter(|t| t.id != old.id && t.is_live() && !outdated(t))
            .any(|t| t.node_id.as_ref().is_none_or(|id| may_keep(view.node(id))));
        // Of a job, the one that was given up with its node may have been complete, and be heard of only now.
        let complete = service.spec.mode.is_job()
            && slot
                .tasks
                .iter()
                .any(|t| t.status.state == TaskState::Complete && t.job_iteration == service.job_iteration());
        if !has_place || taken || complete || !self.should_restart(service, slot, old) {
            return;
        }
        let policy = policy(service);
        let how = if old.status.state.is_terminal() {
            let delay = policy.delay.unwrap_or(DEFAULT_RESTART_DELAY);
            // The first of its template takes a place, whatever ended there before: that is no restart.
            let restart = old.spec_version == service.spec_version;
            if delay.is_zero() {
                How { restart, ..How::at_once() }
            } else {
                let start_after = self.plan.now().plus(delay);
                How { restart, start_after: Some(start_after), ..How::after(&old.id) }
            }
        } else if starts_first || on_lost_node(self.plan.view(), old) {
            How::at_once()
        } else {
            How::after(&old.id)
        };
        self.create(service, &slot.key, how);
    }

    /// Of a node that is being drained: a task goes on until another runs in its place, if that is how its service is
    /// updated. (Then the update's `retire_old` stops it.) One that must not run twice has to stop first all the same.
    fn starts_first(&self, service: &Service, slot: &Slot, old: &Task) -> bool {
        service.spec.update.is_some_and(|u| u.order == UpdateOrder::StartFirst)
            && matches!(slot.key, SlotKey::Slot(_))
            && old.status.state == TaskState::Running
            && !on_lost_node(self.plan.view(), old)
            && !self.fenced
    }

    fn should_restart(&self, service: &Service, slot: &Slot, old: &Task) -> bool {
        let policy = policy(service);
        // Lost or displaced is not ended. And another template: the old one's end says nothing about the new one.
        if !old.status.state.is_terminal() || old.spec_version != service.spec_version {
            return true;
        }
        let wanted = match policy.condition {
            RestartCondition::Any if !service.spec.mode.is_job() => true,
            RestartCondition::Any | RestartCondition::OnFailure => old.status.state != TaskState::Complete,
            RestartCondition::None => false,
        };
        wanted && self.has_attempts(service, slot, old, &policy)
    }

    /// Its last task ended by itself and the restart policy leaves it at that: it keeps its place until the template changes. A
    /// task that was given up with its node, and ended unseen, leaves its place free.
    pub(super) fn is_finished(&self, service: &Service, slot: &Slot) -> bool {
        slot.ended(service.spec_version).is_some_and(|last| !self.should_restart(service, slot, last))
    }

    fn has_attempts(&self, service: &Service, slot: &Slot, old: &Task, policy: &RestartPolicy) -> bool {
        if policy.max_attempts == 0 {
            return true;
        }
        let record = match self.plan.view().restarts(&service.id, &slot.key) {
            Some(record) if record.spec_version == service.spec_version => record,
            Some(_) | None => return true,
        };
        if policy.window.is_zero() {
            return record.total < policy.max_attempts;
        }
        // Counted back from its end, not from now: whoever asks later gets the same answer.
        let since = Timestamp(old.status.at.0.saturating_sub(Timestamp::ZERO.plus(policy.window).0));
        let recent = record.recent.iter().filter(|at| **at >= since).count();
        u64::try_from(recent).unwrap_or(u64::MAX) < policy.max_attempts
    }

    /// Starts tasks made ready before: their delay is over, and the one before them is out of the way.
    pub(super) fn start_due(&mut self, service: &Service) {
        let tasks: Vec<_> = self.plan.view().tasks_of_service(&service.id).cloned().collect();
        for task in tasks.iter().filter(|t| t.desired_state == TaskState::Ready && t.is_live()) {
            // One it did not replace itself may still run: what waited for that before may have been displaced.
            let key = SlotKey::of(task).filter(|_| self.fenced);
            let lingers = key.and_then(|key| fence::lingering(self.plan, &service.id, &key)).map(|(at, _)| at);
            match waits_until(self.plan, task).max(lingers) {
                Some(at) if at > self.plan.now() => self.plan.wake(at),
                Some(_) | None => self.desire(&task.id, goal(service)),
            }
        }
    }
}

/// Complete, or of a run before this one: nothing more is wanted of it.
fn has_done_its_job(service: &Service, task: &Task) -> bool {
    service.spec.mode.is_job()
        && (task.status.state == TaskState::Complete || task.job_iteration != service.job_iteration())
}

fn policy(service: &Service) -> RestartPolicy {
    service.spec.task.restart.unwrap_or_default()
}

/// Until when a task that is made ready must wait; `None` if for nothing.
fn waits_until(plan: &Plan, task: &Task) -> Option<Timestamp> {
    let view = plan.view();
    let old = task.replaces.as_ref().and_then(|id| view.task(id));
    if let Some(over) = old.and_then(|old| fence::over_at(plan, old)) {
        return Some(over).max(task.start_after);
    }
    let stopping = old.filter(|old| !is_over(view, old)).map(|_| task.meta.created_at.plus(OLD_TASK_TIMEOUT));
    stopping.max(task.start_after)
}
