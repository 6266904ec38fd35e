//! The agent's loop: orders in, effects out, results back (`agent_loop/worker.rs`, `board.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use skep_agent::fence::{may_run_until, until_told_again};
use skep_agent::task::{Effect, TaskEvent};
use skep_agent::worker::{Effects, Worker};
use skep_model::TaskId;
use skep_model::assignment::TaskReport;
use skep_model::task::{Task, TaskStatus};
use skep_store::SlotKey;

use crate::HostId;
use crate::engine::Place;
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
    /// When the last heartbeat that a leader answered was sent.
    answered: Option<Duration>,
    /// What may not start before one was.
    waiting: Vec<(TaskId, String)>,
    pub(crate) line: Line,
}

impl Agent {
    pub(crate) fn new(now: Duration) -> Self {
        Self {
            worker: Worker::new(),
            statuses: BTreeMap::new(),
            unsaid: BTreeSet::new(),
            strays_removed: false,
            wakes_at: None,
            answered: None,
            waiting: Vec::new(),
            line: Line::new(now),
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

fn place(task: &Task) -> Option<Place> {
    Some((task.service_id.clone(), SlotKey::of(task)?))
}

impl World {
    /// What the disk or a manager says is to be run here.
    pub(crate) fn take_orders(&mut self, host: HostId, fresh: bool) {
        let now = self.hosts[host.0].clock(self.now);
        let there = &mut self.hosts[host.0];
        let (Some(daemon), Some(set)) = (&mut there.daemon, &there.saved) else { return };
        let mut effects = Effects::new();
        match fresh {
            true => daemon.agent.worker.assign(set, now, &mut effects),
            false => daemon.agent.worker.assign(&until_told_again(set.clone()), now, &mut effects),
        }
        let mut strays = Vec::new();
        if fresh && !std::mem::replace(&mut daemon.agent.strays_removed, true) {
            strays = there.engine.containers.keys().filter(|id| !set.tasks.contains_key(*id)).cloned().collect();
        }
        for task in strays {
            self.remove_container(host, &task);
        }
        self.perform(host, effects);
        if fresh {
            self.orders_came(host);
        }
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
                    let image = image.unwrap_or_default();
                    match effect {
                        Effect::Start => self.begin_start(host, task, image),
                        effect => self.engine_begins(host, task, &image, effect),
                    }
                }
            }
        }
        self.wake_worker(host);
        if said {
            self.say(host);
        }
    }

    /// A leader heard this host: tasks that may not run without one may go on, or begin.
    pub(crate) fn answered_heartbeat(&mut self, host: HostId, sent: Duration) {
        let Some(daemon) = &mut self.hosts[host.0].daemon else { return };
        daemon.agent.answered = Some(sent);
        let worker = &daemon.agent.worker;
        let going_on = worker.tasks().filter(|t| !t.status.state.is_terminal() && worker.container_id(&t.id).is_some());
        let lease = |t: &Task| Some((t.id.clone(), place(t)?, may_run_until(t, sent)?));
        let leases: Vec<_> = going_on.filter_map(lease).collect();
        for (task, place, until) in leases {
            self.lease(host, task, place, until);
        }
        let Some(daemon) = &mut self.hosts[host.0].daemon else { return };
        for (task, image) in std::mem::take(&mut daemon.agent.waiting) {
            self.begin_start(host, task, image);
        }
    }

    /// What may not run without a leader has its lease before it starts.
    fn begin_start(&mut self, host: HostId, task: TaskId, image: String) {
        let Some(daemon) = &mut self.hosts[host.0].daemon else { return };
        let Some(limited) = daemon.agent.worker.task(&task).filter(|t| t.stop_after().is_some()) else {
            return self.engine_begins(host, task, &image, Effect::Start);
        };
        let limit = |sent| Some((place(limited)?, may_run_until(limited, sent)?));
        let Some((place, until)) = daemon.agent.answered.and_then(limit) else {
            return daemon.agent.waiting.push((task, image));
        };
        self.lease(host, task.clone(), place, until);
        self.engine_begins(host, task, &image, Effect::Start);
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
