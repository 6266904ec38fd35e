//! One task on its host, from accepted to removed.
//!
//! ```text
//!  observe -> accepted -> preparing(pull, create) -> ready -> starting -> running -> complete | failed
//!                 \____________ rejected                 \________ failed
//!  desired shutdown: wait until no host gives it new connections, stop, kill after the grace period -> shutdown;  withdrawn: the same, then remove -> forget
//! ```
//!
//! Decides one step at a time; the caller performs the effects in order and feeds back what became of them. A machine is made
//! anew after a restart of the daemon and first asks what is there, so the path of adoption is the only path there is.

mod machine;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use skep_model::service::{PortConfig, Protocol, PublishMode};
use skep_model::task::{Task, TaskStatus};
use skep_model::{NetworkId, Timestamp};

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
        addresses: BTreeMap<NetworkId, Ipv4Addr>,
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
    /// On networks that this host made for itself.
    pub addresses: BTreeMap<NetworkId, Ipv4Addr>,
}

/// What happened. Errors are texts for the user, as Docker words them (`No such image: x:latest`).
#[derive(Clone, Debug, PartialEq)]
pub enum TaskEvent {
    /// The manager's word on the task: new, or with a raised desired state.
    Assigned(Box<Task>),
    /// It is not among the assignments any more: it must leave the host.
    Withdrawn,
    /// No host gives it new connections any more.
    Left,
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
    /// Answer `Started`, once it listens on one of [`ports_awaited`] or after [`LISTEN_TIMEOUT`]; and `Exited`, `HealthChanged` when they happen (this includes a watch).
    Start,
    /// Watch a container that was found running: `Exited` and `HealthChanged` when they happen, also if it already has.
    Wait,
    /// Let connections under way end, for no longer than `drain`; then send the stop signal, and SIGKILL after the grace
    /// period. The end shows as `Exited`.
    Stop { drain: Duration, grace: Duration },
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
/// How long a task waits for all hosts to say that they give it no new connections. As long as a silent host may be thought
/// merely slow: by then one that has not answered has been called down, and is not waited for; also if the leader changed
/// meanwhile.
pub(crate) const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long connections under way have to end before the stop signal, which not every program answers by finishing them.
/// Idle ones that are kept open do not end: what the program does with those is its own affair.
pub(crate) const DRAIN: Duration = Duration::from_secs(1);
/// Without a health check a task that publishes ports runs when it listens on one of them, or after this: connections it is
/// given before would be refused.
pub const LISTEN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long after the grace period a container that did not end is killed by us.
pub(crate) const KILL_MARGIN: Duration = Duration::from_secs(5);

/// The TCP ports that connections from the mesh come to; datagrams cannot be seen to be waited for.
pub fn ports_awaited(task: &Task) -> Vec<u16> {
    let awaited = |p: &&PortConfig| p.mode == PublishMode::Ingress && p.protocol == Protocol::Tcp;
    task.ports.iter().filter(awaited).map(|p| p.target_port).collect()
}

/// The earlier of two moments, where none is never.
pub(crate) fn earlier(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
