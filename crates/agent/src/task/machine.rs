//! The transitions.

use std::time::Duration;

use skep_model::Timestamp;
use skep_model::service::PortConfig;
use skep_model::task::{ContainerStatus, DEFAULT_STOP_GRACE_PERIOD, Task, TaskState, TaskStatus};

use super::{
    ContainerFacts, DRAIN, Effect, Exit, Health, KILL_MARGIN, LEAVE_TIMEOUT, Observation, RETRY_DELAY, Started,
    TaskEvent,
};

/// Where the container is, as far as this machine knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing is known yet: a look is under way, or waited for.
    Observing,
    Pulling,
    Creating,
    /// Made, not started.
    Ready,
    Starting,
    /// Started; with a health check perhaps not yet healthy.
    Up,
    /// To be stopped once no host gives it new connections.
    Leaving,
    Stopping,
    /// No process and never again; the container may still be there, for its logs.
    Ended,
    Removing,
    Gone,
}

/// One task on this host.
#[derive(Clone, Debug)]
pub struct TaskMachine {
    task: Task,
    phase: Phase,
    withdrawn: bool,
    /// It ran, where hosts could give it connections.
    served: bool,
    /// No host gives it new connections any more.
    left: bool,
    container_id: String,
    /// Found unhealthy: why it is being stopped.
    unhealthy: bool,
    wake_at: Option<Timestamp>,
}

impl TaskMachine {
    pub fn new(task: Task) -> Self {
        Self {
            task,
            phase: Phase::Observing,
            withdrawn: false,
            served: false,
            left: false,
            container_id: String::new(),
            unhealthy: false,
            wake_at: None,
        }
    }

    /// The task with the status as last reported from here.
    pub fn task(&self) -> &Task {
        &self.task
    }

    pub fn has_left(&self) -> bool {
        self.left
    }

    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    /// When [`TaskEvent::Due`] is wanted.
    pub fn wake_at(&self) -> Option<Timestamp> {
        self.wake_at
    }

    /// The first step: asks what is there. The caller sends it once, after `new`.
    pub fn begin(&mut self, out: &mut Vec<Effect>) {
        out.push(Effect::Observe);
    }

    pub fn handle(&mut self, event: TaskEvent, now: Timestamp, out: &mut Vec<Effect>) {
        match event {
            TaskEvent::Assigned(task) => self.reassigned(*task, now, out),
            TaskEvent::Withdrawn => {
                self.withdrawn = true;
                self.settle(now, out);
            }
            TaskEvent::Left => {
                self.left = true;
                self.settle(now, out);
            }
            TaskEvent::Observed(observation) => self.observed(observation, now, out),
            TaskEvent::Pulled(result) => self.pulled(result, now, out),
            TaskEvent::Created(result) => self.created(result, now, out),
            TaskEvent::Started(result) => self.started(result, now, out),
            TaskEvent::Exited(exit) => self.exited(&exit, now, out),
            TaskEvent::HealthChanged(health) => self.health(health, now, out),
            TaskEvent::StopFailed(_) if self.phase == Phase::Stopping => self.wake_at = Some(now.plus(RETRY_DELAY)),
            TaskEvent::StopFailed(_) => {}
            TaskEvent::Removed(result) => self.removed(result, now, out),
            TaskEvent::Due => self.due(now, out),
        }
    }

    /// Only the desired state may move; a task is immutable otherwise.
    fn reassigned(&mut self, task: Task, now: Timestamp, out: &mut Vec<Effect>) {
        self.withdrawn = false;
        self.task.desired_state = self.task.desired_state.max(task.desired_state);
        if task.status.state > self.task.status.state {
            self.task.status = task.status;
        }
        self.settle(now, out);
    }

    /// Whether an assignment of the task says anything not taken in: a higher desired state or status.
    pub fn needs(&self, task: &Task) -> bool {
        self.withdrawn || task.desired_state > self.task.desired_state || task.status.state > self.task.status.state
    }

    fn may_have_clients(&self) -> bool {
        self.served && !self.left && !self.withdrawn
    }

    fn must_stop(&self) -> bool {
        self.withdrawn || !self.task.is_wanted()
    }

    /// Takes the step that is due where we are, if any.
    fn settle(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        match self.phase {
            // The answer comes first.
            Phase::Observing | Phase::Pulling | Phase::Creating | Phase::Starting => {}
            Phase::Ready if self.must_stop() => self.end(TaskState::Shutdown, "shutdown", "", now, out),
            Phase::Ready if self.task.desired_state >= TaskState::Running => {
                self.phase = Phase::Starting;
                self.report(TaskState::Starting, "starting", "", now, out);
                out.push(Effect::Start);
            }
            Phase::Ready => {}
            Phase::Up if self.must_stop() && self.may_have_clients() => {
                self.phase = Phase::Leaving;
                self.wake_at = Some(now.plus(LEAVE_TIMEOUT));
            }
            Phase::Up if self.must_stop() => self.stop(now, out),
            Phase::Leaving if !self.may_have_clients() => self.stop(now, out),
            Phase::Up | Phase::Leaving | Phase::Stopping => {}
            Phase::Ended if self.withdrawn => {
                self.phase = Phase::Removing;
                out.push(Effect::Remove);
            }
            Phase::Ended | Phase::Removing | Phase::Gone => {}
        }
    }

    fn stop(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        let grace = self.grace();
        let drain = if self.served && !self.withdrawn && !self.unhealthy { DRAIN } else { Duration::ZERO };
        self.phase = Phase::Stopping;
        self.wake_at = Some(now.plus(drain).plus(grace).plus(KILL_MARGIN));
        out.push(Effect::Stop { drain, grace });
    }

    fn grace(&self) -> Duration {
        self.task.spec.container.stop_grace_period.unwrap_or(DEFAULT_STOP_GRACE_PERIOD)
    }

    fn observed(&mut self, observation: Observation, now: Timestamp, out: &mut Vec<Effect>) {
        if self.phase != Phase::Observing {
            return;
        }
        match observation {
            Observation::Unknown => self.wake_at = Some(now.plus(RETRY_DELAY)),
            Observation::Absent => self.absent(now, out),
            Observation::Known { container_id, state } => {
                self.container_id = container_id;
                match state {
                    // Whatever it was made for may be gone; started only once.
                    ContainerFacts::Created if self.task.status.state.is_terminal() => self.ended(now, out),
                    ContainerFacts::Created => self.ready(now, out),
                    ContainerFacts::Running { pid, health, host_ports, addresses } => {
                        out.push(Effect::Wait);
                        let checked = health.is_some_and(|h| h != Health::Healthy);
                        self.up(Started { pid, has_health_check: checked, host_ports, addresses }, now, out);
                    }
                    ContainerFacts::Exited(exit) => {
                        self.phase = Phase::Up;
                        self.exited(&exit, now, out);
                    }
                }
            }
        }
    }

    /// No container: make one, unless its time is over.
    fn absent(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        if self.task.status.state.is_terminal() {
            self.ended(now, out);
        } else if self.must_stop() {
            self.end(TaskState::Shutdown, "shutdown", "", now, out);
        } else if self.task.status.state >= TaskState::Starting {
            let error = format!("No such container: {}", self.task.name());
            let message = self.task.status.message.clone();
            self.end(TaskState::Failed, &message, &error, now, out);
        } else {
            self.report(TaskState::Accepted, "accepted", "", now, out);
            self.report(TaskState::Preparing, "preparing", "", now, out);
            self.phase = Phase::Pulling;
            out.push(Effect::Pull);
        }
    }

    fn pulled(&mut self, result: Result<(), String>, now: Timestamp, out: &mut Vec<Effect>) {
        if self.phase != Phase::Pulling {
            return;
        }
        match result {
            _ if self.must_stop() => self.end(TaskState::Shutdown, "shutdown", "", now, out),
            Ok(()) => {
                self.phase = Phase::Creating;
                out.push(Effect::Create);
            }
            Err(error) => self.end(TaskState::Rejected, "preparing", &error, now, out),
        }
    }

    fn created(&mut self, result: Result<String, String>, now: Timestamp, out: &mut Vec<Effect>) {
        if self.phase != Phase::Creating {
            return;
        }
        match result {
            Ok(container_id) => {
                self.container_id = container_id;
                self.ready(now, out);
            }
            Err(_) if self.must_stop() => self.end(TaskState::Shutdown, "shutdown", "", now, out),
            Err(error) => self.end(TaskState::Rejected, "preparing", &error, now, out),
        }
    }

    fn ready(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        self.phase = Phase::Ready;
        if !self.must_stop() {
            self.report(TaskState::Ready, "prepared", "", now, out);
        }
        self.settle(now, out);
    }

    fn started(&mut self, result: Result<Started, String>, now: Timestamp, out: &mut Vec<Effect>) {
        if self.phase != Phase::Starting {
            return;
        }
        match result {
            Ok(started) => self.up(started, now, out),
            Err(_) if self.must_stop() => self.end(TaskState::Shutdown, "shutdown", "", now, out),
            Err(error) => self.end(TaskState::Failed, "starting", &error, now, out),
        }
    }

    fn up(&mut self, started: Started, now: Timestamp, out: &mut Vec<Effect>) {
        self.phase = Phase::Up;
        self.task.status.container =
            Some(ContainerStatus { container_id: self.container_id.clone(), pid: started.pid, exit_code: 0 });
        self.task.status.host_ports = host_ports(started.host_ports);
        self.task.status.addresses = started.addresses;
        if started.has_health_check {
            self.report(TaskState::Starting, "starting", "", now, out);
        } else {
            self.runs(now, out);
        }
        self.settle(now, out);
    }

    fn runs(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        self.served = !self.task.networks.is_empty();
        self.report(TaskState::Running, "started", "", now, out);
    }

    fn health(&mut self, health: Health, now: Timestamp, out: &mut Vec<Effect>) {
        if self.phase != Phase::Up {
            return;
        }
        match health {
            Health::Starting => {}
            Health::Healthy => self.runs(now, out),
            Health::Unhealthy => {
                self.unhealthy = true;
                self.stop(now, out);
            }
        }
    }

    fn exited(&mut self, exit: &Exit, now: Timestamp, out: &mut Vec<Effect>) {
        match self.phase {
            // `Exited` may overtake `Started`.
            Phase::Starting | Phase::Up | Phase::Leaving | Phase::Stopping => {}
            Phase::Observing
            | Phase::Pulling
            | Phase::Creating
            | Phase::Ready
            | Phase::Ended
            | Phase::Removing
            | Phase::Gone => return,
        }
        let pid = self.task.status.container.as_ref().map_or(0, |c| c.pid);
        let container_id = self.container_id.clone();
        self.task.status.container = Some(ContainerStatus { container_id, pid, exit_code: exit.code });
        let message = "started";
        if self.must_stop() && !self.unhealthy {
            self.end(TaskState::Shutdown, "shutdown", "", now, out);
        } else if self.unhealthy {
            let error = format!("task: non-zero exit ({}): dockerexec: unhealthy container", exit.code);
            self.end(TaskState::Failed, message, &error, now, out);
        } else if exit.code == 0 && exit.cause.is_empty() {
            self.end(TaskState::Complete, "finished", "", now, out);
        } else {
            let cause = if exit.cause.is_empty() { String::new() } else { format!(": {}", exit.cause) };
            let error = format!("task: non-zero exit ({}){cause}", exit.code);
            self.end(TaskState::Failed, message, &error, now, out);
        }
    }

    fn end(&mut self, state: TaskState, message: &str, error: &str, now: Timestamp, out: &mut Vec<Effect>) {
        self.report(state, message, error, now, out);
        self.ended(now, out);
    }

    fn ended(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        self.phase = Phase::Ended;
        self.wake_at = None;
        self.settle(now, out);
    }

    fn removed(&mut self, result: Result<(), String>, now: Timestamp, out: &mut Vec<Effect>) {
        if self.phase != Phase::Removing {
            return;
        }
        match result {
            Ok(()) => {
                self.phase = Phase::Gone;
                self.wake_at = None;
                out.push(Effect::Forget);
            }
            Err(_) => self.wake_at = Some(now.plus(RETRY_DELAY)),
        }
    }

    fn due(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        if self.wake_at.is_none_or(|at| at > now) {
            return;
        }
        self.wake_at = None;
        match self.phase {
            Phase::Observing => out.push(Effect::Observe),
            Phase::Leaving => self.stop(now, out),
            Phase::Stopping => {
                self.wake_at = Some(now.plus(KILL_MARGIN));
                out.push(Effect::Kill);
            }
            Phase::Removing => out.push(Effect::Remove),
            Phase::Pulling
            | Phase::Creating
            | Phase::Ready
            | Phase::Starting
            | Phase::Up
            | Phase::Ended
            | Phase::Gone => {}
        }
    }

    /// A state only moves up, and an end is the end; what was already said is not said again.
    fn report(&mut self, state: TaskState, message: &str, error: &str, now: Timestamp, out: &mut Vec<Effect>) {
        if state <= self.task.status.state || self.task.status.state.is_terminal() {
            return;
        }
        let status = &mut self.task.status;
        *status = TaskStatus {
            state,
            at: now,
            message: message.into(),
            error: error.into(),
            container: status.container.take(),
            host_ports: std::mem::take(&mut status.host_ports),
            addresses: std::mem::take(&mut status.addresses),
        };
        out.push(Effect::Report(status.clone()));
    }
}

fn host_ports(mut ports: Vec<PortConfig>) -> Vec<PortConfig> {
    ports.sort();
    ports
}
