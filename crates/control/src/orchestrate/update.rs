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
use skep_model::validate::{DEFAULT_UPDATE_DEADLINE, update_deadline};
use skep_store::{Change, SlotKey, View};

use super::global::takes_new;
use super::slot::{Slot, ended_by_itself, slots};
use super::{Desk, How, may_keep};

/// Where a slot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Runs an old template, or nothing new yet.
    Dirty,
    /// Its new task has neither run nor ended yet, and is given until then.
    Underway(Timestamp),
    /// Its new task runs since then, or was given up then.
    Done(Timestamp),
}

impl Desk<'_> {
    pub(super) fn update(&mut self, service: &Service) {
        let slots = slots(self.plan.view(), &service.id);
        let live: Vec<&Slot> = slots.values().filter(|slot| slot.live().next().is_some()).collect();
        self.retire_old(service, &live);
        let slots: Vec<&Slot> = live.into_iter().filter(|slot| !self.is_paused(slot)).collect();
        let now = self.plan.now();
        let dirty: Vec<&Slot> =
            slots.iter().filter(|s| progress(self.plan.view(), service, s, now) == Progress::Dirty).copied().collect();
        let state = service.update_status.as_ref().map(|s| s.state);
        match state {
            Some(UpdateState::Paused | UpdateState::RollbackPaused) => return,
            Some(UpdateState::Updating | UpdateState::RollbackStarted) => {}
            None | Some(UpdateState::Completed | UpdateState::RollbackCompleted) => {
                if dirty.is_empty() {
                    return;
                }
                self.set_status(service, status(UpdateState::Updating, now, "update in progress"));
            }
        }
        let Some(service) = self.plan.view().service(&service.id).cloned() else { return };
        let Some(update) = service.update_status.clone() else { return };
        let config = config(&service, update.state);
        let mut busy = 0;
        let mut last_done = update.started_at;
        for slot in &slots {
            match progress(self.plan.view(), &service, slot, now) {
                Progress::Dirty => {}
                Progress::Underway(until) => {
                    busy += 1;
                    self.plan.wake(until);
                }
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
        if dirty.is_empty()
            && slots.iter().all(|s| matches!(progress(self.plan.view(), &service, s, now), Progress::Done(_)))
        {
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

    /// Where a new task runs, the others of its slot have done their duty. Where none does yet, those before the newest that
    /// runs have: an update that started it first was followed by another before it could stop them.
    fn retire_old(&mut self, service: &Service, slots: &[&Slot]) {
        for slot in slots {
            // What runs on a node that is drained does its duty until another can.
            let stays = |t: &Task| t.node_id.as_ref().is_some_and(|id| may_keep(self.plan.view().node(id)));
            let live: Vec<&Arc<Task>> = slot.live().collect();
            let runs = |t: &Task| t.status.state == TaskState::Running && stays(t);
            let is_new = |t: &Task| t.spec_version == service.spec_version;
            let new = live.iter().rposition(|t| is_new(t) && runs(t));
            let Some(kept) = new.or_else(|| live.iter().rposition(|t| runs(t))) else { continue };
            let until = if new.is_some() { live.len() } else { kept };
            let others = live[..until].iter().filter(|t| t.id != live[kept].id);
            let others: Vec<_> = others.map(|t| t.id.clone()).collect();
            others.iter().for_each(|id| self.desire(id, TaskState::Shutdown));
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
        let now = self.plan.now();
        let all = slots(self.plan.view(), &service.id);
        // What is left to do, and what was done in this update.
        let concerned = all.values().filter(|s| {
            progress(self.plan.view(), service, s, now) == Progress::Dirty || attempts(service, s).next().is_some()
        });
        let failures: Vec<(&Arc<Task>, String)> =
            all.values().filter_map(|slot| failure(service, slot, monitor, now)).collect();
        let Some((_, what)) = failures.first() else { return };
        if failures.len() as f32 / concerned.count().max(1) as f32 <= config.max_failure_ratio {
            return;
        }
        // Never a rollback of a rollback. And one rollback only: there is nothing to go back to after it.
        let back = config.failure_action == FailureAction::Rollback && !rolling_back && service.previous_spec.is_some();
        if back {
            let status = UpdateStatus {
                state: UpdateState::RollbackStarted,
                message: format!("update rolled back due to {what}"),
                ..update.clone()
            };
            let service_id = service.id.clone();
            if self.plan.push(Change::RollbackService { service_id, status, automatic: true }) {
                return;
            }
        }
        match config.failure_action {
            FailureAction::Continue => {}
            FailureAction::Pause | FailureAction::Rollback => {
                let state = if rolling_back { UpdateState::RollbackPaused } else { UpdateState::Paused };
                // swarmkit's words tell apart what was asked for, not what was under way.
                let word = match config.failure_action {
                    FailureAction::Rollback if rolling_back => "rollback",
                    FailureAction::Rollback | FailureAction::Pause | FailureAction::Continue => "update",
                };
                // A network, a secret or a port was given up meanwhile.
                let gone = if back { "; what the previous spec needs is not there any more" } else { "" };
                let message = format!("{word} paused due to {what}{gone}");
                self.set_status(service, UpdateStatus { state, message, completed_at: None, ..update.clone() });
            }
        }
    }

    /// After the last slot it is watched for a while before it is called done.
    fn complete(&mut self, service: &Service, update: &UpdateStatus, config: &UpdateConfig, last_done: Timestamp) {
        let monitor = config.monitor.unwrap_or(DEFAULT_UPDATE_MONITOR);
        // swarmkit watches on for longer than a worker rests.
        let watched =
            last_done.plus(if config.delay >= monitor { config.delay + Duration::from_secs(1) } else { monitor });
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

fn progress(view: &View, service: &Service, slot: &Slot, now: Timestamp) -> Progress {
    let current = slot.live().filter(|t| t.spec_version == service.spec_version).max_by_key(|t| t.status.state);
    if let Some(task) = current.filter(|t| t.status.state == TaskState::Running) {
        return Progress::Done(task.status.at);
    }
    // One attempt a slot: if it ended, what follows is the restart policy's.
    if let Some(ended) = attempts(service, slot).find(|t| ended_by_itself(t.status.state)) {
        return Progress::Done(first_restart(view, service, slot).unwrap_or(Timestamp(i64::MAX)).min(ended.status.at));
    }
    match current.map(|t| due(service, t)) {
        None => Progress::Dirty,
        Some(due) if due <= now => Progress::Done(due),
        Some(due) => Progress::Underway(due),
    }
}

/// When the slot's first attempt of this update was followed by another: the first itself may be forgotten by now.
fn first_restart(view: &View, service: &Service, slot: &Slot) -> Option<Timestamp> {
    let started_at = service.update_status.as_ref()?.started_at;
    let record = view.restarts(&service.id, &slot.key).filter(|r| r.spec_version == service.spec_version)?;
    record.recent.iter().find(|at| **at >= started_at).copied()
}

/// Tasks of the new template made in this update, oldest first.
fn attempts<'a>(service: &'a Service, slot: &'a Slot) -> impl Iterator<Item = &'a Arc<Task>> {
    let started_at = service.update_status.as_ref().map_or(Timestamp(i64::MAX), |s| s.started_at);
    slot.tasks.iter().filter(move |t| t.spec_version == service.spec_version && t.meta.created_at >= started_at)
}

/// When a task that does not run yet is given up: an update must not wait for ever for a node, or an image.
fn due(service: &Service, task: &Task) -> Timestamp {
    let patience = update_deadline(&service.spec.labels).ok().flatten().unwrap_or(DEFAULT_UPDATE_DEADLINE);
    task.start_after.unwrap_or(task.meta.created_at).plus(patience)
}

/// The slot's task that ended by itself before it had run for the monitored time, or did not run in time; and the words.
fn failure<'a>(
    service: &'a Service,
    slot: &'a Slot,
    monitor: Duration,
    now: Timestamp,
) -> Option<(&'a Arc<Task>, String)> {
    let early = |t: &Task| t.ran_since.is_none_or(|since| t.status.at.since(since) <= monitor);
    attempts(service, slot).find_map(|task| {
        if ended_by_itself(task.status.state) && early(task) {
            Some((task, format!("failure or early termination of task {}", task.id)))
        } else if task.is_live() && task.status.state < TaskState::Running && due(service, task) <= now {
            Some((task, format!("task {} not running in time", task.id)))
        } else {
            None
        }
    })
}
