//! One task on its host, from accepted to removed.
//!
//! ```text
//!  observe -> accepted -> preparing(pull, create) -> ready -> starting -> running -> complete | failed
//!                 \____________ rejected                 \________ failed
//!  desired shutdown: stop, kill after the grace period -> shutdown;  withdrawn: the same, then remove -> forget
//! ```
//!
//! Decides one step at a time; the caller performs the effects in order and feeds back what became of them. A machine is made
//! anew after a restart of the daemon and first asks what is there, so the path of adoption is the only path there is.

mod machine;
#[cfg(test)]
mod tests;

use std::time::Duration;

use skep_model::Timestamp;
use skep_model::service::PortConfig;
use skep_model::task::{Task, TaskStatus};

pub use machine::TaskMachine;

/// What a look at the host showed of a task's container. A look that failed is Unknown, never Absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    Absent,
    /// It could not be told; the machine asks again.
    Unknown,
    Known {
        container_id: String,
        state: ContainerFacts,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerFacts {
    Created,
    Running {
        pid: i64,
        /// `None` without a health check.
        health: Option<Health>,
        host_ports: Vec<PortConfig>,
    },
    Exited(Exit),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Starting,
    Healthy,
    Unhealthy,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    pub code: i64,
    /// What else is known of why (`OOM killed`), or empty.
    pub cause: String,
}

/// A container that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Started {
    pub pid: i64,
    /// It has a health check: it counts as running once that succeeds.
    pub has_health_check: bool,
    /// Host-mode ports as bound.
    pub host_ports: Vec<PortConfig>,
}

/// What happened. Errors are texts for the user, as Docker words them (`No such image: x:latest`).
#[derive(Clone, Debug, PartialEq)]
pub enum TaskEvent {
    /// The manager's word on the task: new, or with a raised desired state.
    Assigned(Box<Task>),
    /// It is not among the assignments any more: it must leave the host.
    Withdrawn,
    Observed(Observation),
    Pulled(Result<(), String>),
    /// The container's id.
    Created(Result<String, String>),
    Started(Result<Started, String>),
    Exited(Exit),
    HealthChanged(Health),
    /// A Stop or Kill returned without the container having ended; the exit itself is `Exited`.
    StopFailed(String),
    Removed(Result<(), String>),
    /// The moment asked for by [`TaskMachine::wake_at`] has come.
    Due,
}

/// What to do, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Look for the task's container (by its `com.docker.swarm.task.id` label); answer `Observed`.
    Observe,
    /// Fetch the image if it is not here; answer `Pulled`.
    Pull,
    /// Make the container as [`crate::spec`] says; answer `Created`.
    Create,
    /// Answer `Started`; and `Exited`, `HealthChanged` when they happen (this includes a watch).
    Start,
    /// Watch a container that was found running: `Exited` and `HealthChanged` when they happen, also if it already has.
    Wait,
    /// Send the stop signal, and SIGKILL after the grace period; the end shows as `Exited`.
    Stop { grace: Duration },
    /// SIGKILL.
    Kill,
    /// Remove the container and what belongs to it, running or not; none is fine too. Answer `Removed`.
    Remove,
    /// Tell the manager.
    Report(TaskStatus),
    /// Nothing of the task is left on this host; the machine may be dropped.
    Forget,
}

/// How long after a failed look or removal it is tried again.
pub(crate) const RETRY_DELAY: Duration = Duration::from_secs(1);
/// How long after the grace period a container that did not end is killed by us.
pub(crate) const KILL_MARGIN: Duration = Duration::from_secs(5);

/// The earlier of two moments, where none is never.
pub(crate) fn earlier(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
