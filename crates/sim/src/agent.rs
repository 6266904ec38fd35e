//! The agent's loop: orders in, effects out, results back (`agent_loop/worker.rs`, `board.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use skep_agent::task::{Effect, TaskEvent};
use skep_agent::worker::{Effects, Worker};
use skep_model::TaskId;
use skep_model::assignment::TaskReport;
use skep_model::task::TaskStatus;

use crate::HostId;
use crate::session::Line;
use crate::trace::Detail;
use crate::world::{Event, World};

/// All of it is lost with the daemon.
pub(crate) struct Agent {
    worker: Worker,
    statuses: BTreeMap<TaskId, TaskStatus>,
    /// What no manager was told yet.
    pub(crate) unsaid: BTreeSet<TaskId>,
    strays_removed: bool,
    wakes_at: Option<Duration>,
    pub(crate) line: Line,
}

impl Agent {
    pub(crate) fn new() -> Self {
        Self {
            worker: Worker::new(),
            statuses: BTreeMap::new(),
            unsaid: BTreeSet::new(),
            strays_removed: false,
            wakes_at: None,
            line: Line::new(),
        }
    }

    /// A new manager has heard nothing.
    pub(crate) fn say_all_again(&mut self) {
        self.unsaid = self.statuses.keys().cloned().collect();
    }

    pub(crate) fn reports(&mut self) -> Vec<TaskReport> {
        let unsaid = std::mem::take(&mut self.unsaid);
        let report = |task_id: TaskId| {
            let status = self.statuses.get(&task_id)?.clone();
            Some(TaskReport { task_id, status })
        };
        unsaid.into_iter().filter_map(report).collect()
    }
}

impl World {
    /// What the disk or a manager says is to be run here.
    pub(crate) fn take_orders(&mut self, host: HostId, fresh: bool) {
        let now = self.hosts[host.0].clock(self.now);
        let there = &mut self.hosts[host.0];
        let (Some(daemon), Some(set)) = (&mut there.daemon, &there.saved) else { return };
        let mut effects = Effects::new();
        daemon.agent.worker.assign(set, now, &mut effects);
        let mut strays = Vec::new();
        if fresh && !std::mem::replace(&mut daemon.agent.strays_removed, true) {
            strays = there.engine.containers.keys().filter(|id| !set.tasks.contains_key(*id)).cloned().collect();
        }
        for task in strays {
            self.remove_container(host, &task);
        }
        self.perform(host, effects);
    }

    pub(crate) fn task_event(&mut self, host: HostId, task: &TaskId, event: TaskEvent) {
        let now = self.hosts[host.0].clock(self.now);
        let Some(daemon) = &mut self.hosts[host.0].daemon else { return };
        let mut effects = Effects::new();
        daemon.agent.worker.handle(task, event, now, &mut effects);
        self.perform(host, effects);
    }

    pub(crate) fn worker_due(&mut self, host: HostId) {
        let now = self.hosts[host.0].clock(self.now);
        let Some(daemon) = &mut self.hosts[host.0].daemon else { return };
        if daemon.agent.wakes_at.is_some_and(|at| at <= self.now) {
            daemon.agent.wakes_at = None;
        }
        let mut effects = Effects::new();
        daemon.agent.worker.due(now, &mut effects);
        self.perform(host, effects);
    }

    fn perform(&mut self, host: HostId, effects: Effects) {
        let mut said = false;
        for (task, effect) in effects {
            let Some(daemon) = &mut self.hosts[host.0].daemon else { return };
            match effect {
                Effect::Report(status) => {
                    if self.trace_on {
                        let (name, state) = (self.names.task(&task), status.state.as_str());
                        self.trace.write(
                            self.now,
                            Detail::Step,
                            &format!("{host}: {name} is {state} {}", status.error),
                        );
                    }
                    daemon.agent.statuses.insert(task.clone(), status);
                    daemon.agent.unsaid.insert(task);
                    said = true;
                }
                Effect::Forget => {
                    daemon.agent.statuses.remove(&task);
                    daemon.agent.unsaid.remove(&task);
                }
                effect => {
                    let image = daemon.agent.worker.task(&task).map(|t| t.spec.container.image.clone());
                    self.engine_begins(host, task, &image.unwrap_or_default(), effect);
                }
            }
        }
        self.wake_worker(host);
        if said {
            self.say(host);
        }
    }

    fn wake_worker(&mut self, host: HostId) {
        let there = &mut self.hosts[host.0];
        let life = there.life;
        let Some(at) = there.daemon.as_ref().and_then(|d| d.agent.worker.wake_at()) else { return };
        // Never quite now: a clock that was set back would ask again and again.
        let due = self.now + there.until(at, self.now).max(Duration::from_millis(1));
        let Some(daemon) = &mut there.daemon else { return };
        if daemon.agent.wakes_at.is_none_or(|already| due < already) {
            daemon.agent.wakes_at = Some(due);
            self.at(due, Event::Worker { host, life });
        }
    }
}
