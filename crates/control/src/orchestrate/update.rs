//! The rolling update: slots made from an old template are made anew, a few at a time.
//!
//! Everything about its progress is in the store: which slots are done (`Task::spec_version`), since when (their status), how
//! it stands (`Service::update_status`). So it goes on under another leader as if nothing had been.

use std::sync::Arc;
use std::time::Duration;

use skep_model::Timestamp;
use skep_model::service::{
    DEFAULT_UPDATE_MONITOR, FailureAction, Service, UpdateConfig, UpdateOrder, UpdateState, UpdateStatus,
};
use skep_model::task::{Task, TaskState};
use skep_store::{Change, SlotKey};

use super::global::takes_new;
use super::slot::{Slot, ended_by_itself, slots};
use super::{Desk, How, may_keep};

/// Where a slot stands.
enum Progress {
    /// Runs an old template, or nothing new yet.
    Dirty,
    /// Its new task has not run yet.
    Underway,
    /// Its new task runs since then.
    Done(Timestamp),
}

impl Desk<'_> {
    pub(super) fn update(&mut self, service: &Service) {
        let slots = slots(self.plan.view(), &service.id);
        let slots: Vec<&Slot> =
            slots.values().filter(|slot| slot.live().next().is_some() && !self.is_paused(slot)).collect();
        self.retire_old(service, &slots);
        let dirty: Vec<&Slot> =
            slots.iter().filter(|s| matches!(progress(service, s), Progress::Dirty)).copied().collect();
        let state = service.update_status.as_ref().map(|s| s.state);
        match state {
            Some(UpdateState::Paused | UpdateState::RollbackPaused) => return,
            Some(UpdateState::Updating | UpdateState::RollbackStarted) => {}
            None | Some(UpdateState::Completed | UpdateState::RollbackCompleted) => {
                if dirty.is_empty() {
                    return;
                }
                self.set_status(service, status(UpdateState::Updating, self.plan.now(), "update in progress"));
            }
        }
        let Some(service) = self.plan.view().service(&service.id).cloned() else { return };
        let Some(update) = service.update_status.clone() else { return };
        let config = config(&service, update.state);
        let now = self.plan.now();
        let mut busy = 0;
        let mut last_done = update.started_at;
        for slot in &slots {
            match progress(&service, slot) {
                Progress::Dirty => {}
                Progress::Underway => busy += 1,
                Progress::Done(since) => {
                    last_done = last_done.max(since);
                    // A worker of the updater rests after each slot; slots done before this update began are nobody's.
                    let rested = since.plus(config.delay);
                    if since >= update.started_at && rested > now {
                        busy += 1;
                        self.plan.wake(rested);
                    }
                }
            }
        }
        let width = if config.parallelism == 0 {
            usize::MAX
        } else {
            usize::try_from(config.parallelism).unwrap_or(usize::MAX)
        };
        for slot in dirty.iter().take(width.saturating_sub(busy)) {
            self.renew(&service, slot, config.order);
        }
        if dirty.is_empty() && slots.iter().all(|s| matches!(progress(&service, s), Progress::Done(_))) {
            self.complete(&service, &update, &config, last_done);
        }
    }

    /// A global service's place on a node that takes no new tasks: it keeps what it has, as in swarmkit.
    fn is_paused(&self, slot: &Slot) -> bool {
        match &slot.key {
            SlotKey::Slot(_) => false,
            SlotKey::Node(id) => !self.plan.view().node(id).is_some_and(takes_new),
        }
    }

    fn set_status(&mut self, service: &Service, status: UpdateStatus) {
        self.plan.push(Change::SetUpdateStatus { service_id: service.id.clone(), status: Some(status) });
    }

    /// Where a new task runs, the others of its slot have done their duty.
    fn retire_old(&mut self, service: &Service, slots: &[&Slot]) {
        for slot in slots {
            // What runs on a node that is drained does its duty until another can.
            let stays = |t: &Task| t.node_id.as_ref().is_some_and(|id| may_keep(self.plan.view().node(id)));
            let runs = |t: &&Arc<Task>| {
                t.spec_version == service.spec_version && t.status.state == TaskState::Running && stays(t)
            };
            if let Some(kept) = slot.live().filter(runs).last() {
                let others: Vec<_> = slot.live().filter(|t| t.id != kept.id).map(|t| t.id.clone()).collect();
                others.iter().for_each(|id| self.desire(id, TaskState::Shutdown));
            }
        }
    }

    fn renew(&mut self, service: &Service, slot: &Slot, order: UpdateOrder) {
        let old: Vec<_> = slot.live().map(|t| (t.id.clone(), t.status.state)).collect();
        match order {
            UpdateOrder::StartFirst => {
                self.create(service, &slot.key, How::at_once());
            }
            UpdateOrder::StopFirst => {
                let runs = old.iter().max_by_key(|(_, state)| *state);
                let how = runs.map_or_else(How::at_once, |(id, _)| How::after(id));
                self.create(service, &slot.key, how);
                old.iter().for_each(|(id, _)| self.desire(id, TaskState::Shutdown));
            }
        }
    }

    /// If too many slots failed with the new template, does about it what the spec asks for.
    pub(super) fn check_update(&mut self, service: &Service) {
        let Some(update) = &service.update_status else { return };
        let rolling_back = match update.state {
            UpdateState::Updating => false,
            UpdateState::RollbackStarted => true,
            UpdateState::Paused
            | UpdateState::Completed
            | UpdateState::RollbackPaused
            | UpdateState::RollbackCompleted => return,
        };
        let config = config(service, update.state);
        let monitor = config.monitor.unwrap_or(DEFAULT_UPDATE_MONITOR);
        let all = slots(self.plan.view(), &service.id);
        let failures: Vec<&Arc<Task>> = all
            .values()
            .filter_map(|slot| slot.tasks.iter().find(|t| is_failure(service, update, t, monitor)))
            .collect();
        let Some(first) = failures.first() else { return };
        if failures.len() as f32 / all.len().max(1) as f32 <= config.max_failure_ratio {
            return;
        }
        let what = format!("due to failure or early termination of task {}", first.id);
        match config.failure_action {
            FailureAction::Continue => {}
            // Never a rollback of a rollback.
            FailureAction::Rollback if !rolling_back && service.previous_spec.is_some() => {
                let message = format!("update rolled back {what}");
                let status = status(UpdateState::RollbackStarted, self.plan.now(), &message);
                self.plan.push(Change::RollbackService { service_id: service.id.clone(), status });
            }
            FailureAction::Pause | FailureAction::Rollback => {
                let (state, word) = if rolling_back {
                    (UpdateState::RollbackPaused, "rollback")
                } else {
                    (UpdateState::Paused, "update")
                };
                let message = format!("{word} paused {what}");
                self.set_status(service, UpdateStatus { state, message, completed_at: None, ..update.clone() });
            }
        }
    }

    /// After the last slot it is watched for a while before it is called done.
    fn complete(&mut self, service: &Service, update: &UpdateStatus, config: &UpdateConfig, last_done: Timestamp) {
        let monitor = config.monitor.unwrap_or(DEFAULT_UPDATE_MONITOR);
        let watched = last_done.plus(monitor);
        if watched > self.plan.now() {
            self.plan.wake(watched);
            return;
        }
        let (state, message) = match update.state {
            UpdateState::RollbackStarted => (UpdateState::RollbackCompleted, "rollback completed"),
            UpdateState::Updating
            | UpdateState::Paused
            | UpdateState::Completed
            | UpdateState::RollbackPaused
            | UpdateState::RollbackCompleted => (UpdateState::Completed, "update completed"),
        };
        let completed_at = Some(self.plan.now());
        self.set_status(service, UpdateStatus { state, completed_at, message: message.into(), ..update.clone() });
    }
}

fn status(state: UpdateState, started_at: Timestamp, message: &str) -> UpdateStatus {
    UpdateStatus { state, started_at, completed_at: None, message: message.into() }
}

fn config(service: &Service, state: UpdateState) -> UpdateConfig {
    let spec = &service.spec;
    match state {
        UpdateState::RollbackStarted | UpdateState::RollbackPaused | UpdateState::RollbackCompleted => spec.rollback,
        UpdateState::Updating | UpdateState::Paused | UpdateState::Completed => spec.update,
    }
    .unwrap_or_default()
}

fn progress(service: &Service, slot: &Slot) -> Progress {
    let current = slot.live().filter(|t| t.spec_version == service.spec_version);
    match current.max_by_key(|t| t.status.state) {
        None => Progress::Dirty,
        Some(task) if task.status.state == TaskState::Running => Progress::Done(task.status.at),
        Some(_) => Progress::Underway,
    }
}

/// A task of the new template that ended by itself, during this update, before it had run for the monitored time.
fn is_failure(service: &Service, update: &UpdateStatus, task: &Task, monitor: Duration) -> bool {
    task.spec_version == service.spec_version
        && task.meta.created_at >= update.started_at
        && ended_by_itself(task.status.state)
        && task.status.at.since(task.start_after.unwrap_or(task.meta.created_at)) <= monitor.max(MONITOR_FLOOR)
}

/// From its making to its end includes pulling the image; a failure is taken for one if it came within this in any case.
const MONITOR_FLOOR: Duration = Duration::from_secs(60);
