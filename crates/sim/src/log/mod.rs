//! What the world needs of a replicated log, and what can be done to it. Two kinds: [`model`], a few rules in memory, and
//! the real consensus over a simulated disk and transport.

pub(crate) mod model;
pub(crate) mod raft;

use std::sync::Arc;
use std::time::Duration;

use skep_store::{Batch, Event, Refused, View};

use crate::HostId;
use crate::net::Net;

/// Names one proposal.
pub(crate) type Ticket = u64;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Failure {
    Refused(Refused),
    NotLeader(Option<HostId>),
    NoLeader,
    /// It may have taken effect or may yet.
    Unknown(&'static str),
    /// The term it was proposed in is over.
    TermOver,
}

#[derive(Clone, Debug)]
pub(crate) enum LogEvent {
    /// In order on each manager, without the entries that changed nothing.
    Applied {
        host: HostId,
        index: u64,
        events: Arc<[Event]>,
    },
    /// Entries up to `index` were taken in some other way.
    Resync {
        host: HostId,
        index: u64,
    },
    Leads {
        host: HostId,
        term: u64,
        leads: bool,
    },
    Proposed {
        host: HostId,
        ticket: Ticket,
        outcome: Result<u64, Failure>,
    },
    /// What became of [`Log::change`].
    Changed {
        host: HostId,
        ticket: Ticket,
        outcome: Result<(), String>,
    },
    /// Its disk failed: this manager takes no part any more until it is started again.
    Stopped {
        host: HostId,
        why: String,
    },
}

/// How a manager ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    /// The process: what the kernel was given is kept.
    Process,
    /// The power: writes that were not flushed may be lost, or torn.
    Power,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    Fine,
    /// Every flush takes so long.
    Slow(Duration),
    Full,
}

/// A change of who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    /// First as a learner, until it holds the log.
    Join(HostId, u64),
    Remove(u64),
    HandOver(u64),
}

/// Raft ids are never given twice: each life of a log has its own.
const GENERATION: u64 = 64;

fn raft_id(host: HostId, generation: u64) -> u64 {
    host.0 as u64 + 1 + generation * GENERATION
}

fn host_of(raft_id: u64) -> HostId {
    HostId(usize::try_from(raft_id.saturating_sub(1) % GENERATION).unwrap_or(usize::MAX))
}

pub(crate) trait Log {
    /// The latest state applied on this manager; empty while it is down.
    fn view(&self, host: HostId) -> View;
    /// Whom this manager takes for the leader.
    fn leader(&self, host: HostId) -> Option<HostId>;
    /// With a term: as its leader. Answered by [`LogEvent::Proposed`], unless the manager ends before.
    fn propose(&mut self, host: HostId, term: Option<u64>, batch: Batch) -> Ticket;
    /// Lets time pass until `until`, or until something happened. The time it is then.
    fn advance(&mut self, until: Duration, net: &Net, out: &mut Vec<LogEvent>) -> Duration;
    /// Asks a leader to change who takes part. Answered by [`LogEvent::Changed`], unless it ends before.
    fn change(&mut self, host: HostId, change: Move) -> Ticket;
    /// Raft ids of who takes part, as this manager knows it, and whether it votes.
    fn members(&self, host: HostId) -> Vec<(u64, bool)>;
    /// Whether this manager knows itself to count.
    fn votes(&self, host: HostId) -> bool {
        self.members(host).contains(&(self.raft_id(host), true))
    }
    /// Of the log this host has, or had last.
    fn raft_id(&self, host: HostId) -> u64;
    /// With an empty log and a new raft id.
    fn begin(&mut self, host: HostId);
    /// Ends it, and deletes its log.
    fn end(&mut self, host: HostId);
    fn start(&mut self, host: HostId);
    fn crash(&mut self, host: HostId, how: Crash);
    fn disk(&mut self, host: HostId, disk: Disk);
    /// Its process does not run until then.
    fn freeze(&mut self, host: HostId, until: Duration);
}
