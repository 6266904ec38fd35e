//! The world: hosts, wires, the log, users, and one queue of what happens next. Everything moves because an event is due, and
//! events that are due at the same moment come in the order in which they were planned.

use std::collections::BTreeMap;
use std::time::Duration;

use skep_agent::task::Effect;
use skep_control::membership;
use skep_model::cluster::Cluster;
use skep_model::node::{Availability, Role};
use skep_model::{ClusterId, NodeId, TaskId, Timestamp};
use skep_store::{Batch, Change, Store};

use crate::HostId;
use crate::agent::Agent;
use crate::client::Client;
use crate::dice::Dice;
use crate::host::{Daemon, Host};
use crate::invariants::Watch;
use crate::log::model::ModelLog;
use crate::log::raft::RaftLog;
use crate::log::{Crash, Failure, Log, LogEvent, Ticket};
use crate::net::Net;
use crate::places::{Calls, Due, Keeper};
use crate::roles::{JOIN_AGAIN, manager_info};
use crate::trace::{Detail, Trace};
use crate::wire::{Stream, Way};

pub(crate) enum Event {
    Stream { id: u64, way: Way },
    Seek { host: HostId, life: u64 },
    OpenDeadline { host: HostId, life: u64, stream: u64 },
    Beat { host: HostId, life: u64, stream: u64 },
    Worker { host: HostId, life: u64 },
    Engine { host: HostId, life: u64, task: TaskId, image: String, effect: Effect },
    ContainerEnds { host: HostId, task: TaskId, code: i64 },
    Leader { host: HostId, reign: u64 },
    Pulse { host: HostId, reign: u64 },
    Round { host: HostId, reign: u64 },
    Certificate { host: HostId, life: u64, role: Role },
    AskToJoin { host: HostId, life: u64 },
    BeginAgain { host: HostId, life: u64 },
    LeaseEnds { host: HostId, task: TaskId },
    Ask { number: u64, host: HostId, hops: u32 },
    TryAgain { number: u64, attempt: u32 },
    Start { host: HostId },
    Place { host: HostId, life: u64, what: Due },
}

/// Who proposed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asker {
    Leader { host: HostId, term: u64 },
    Client { number: u64, hops: u32 },
    Roster { host: HostId },
}

/// Dice for each part of the world.
pub(crate) struct Fates {
    pub(crate) wire: Dice,
    pub(crate) engine: Dice,
    pub(crate) ids: Dice,
    pub(crate) client: Dice,
    pub(crate) faults: Dice,
}

pub(crate) struct World {
    pub(crate) now: Duration,
    queue: BTreeMap<(Duration, u64), Event>,
    planned: u64,
    pub(crate) dice: Fates,
    pub(crate) trace: Trace,
    pub(crate) trace_on: bool,
    pub(crate) hosts: Vec<Host>,
    pub(crate) net: Net,
    pub(crate) log: Box<dyn Log>,
    pub(crate) streams: BTreeMap<u64, Stream>,
    pub(crate) stream_ids: u64,
    pub(crate) reigns: u64,
    pub(crate) asked: BTreeMap<Ticket, Asker>,
    pub(crate) client: Client,
    pub(crate) calls: Calls,
    pub(crate) watch: Watch,
    pub(crate) names: crate::trace::Names,
    /// Of a hundred things the engine does, how many fail.
    pub(crate) engine_trouble: u32,
    /// Faults are over: nothing fails by itself any more.
    pub(crate) calm: bool,
    /// The first thing that must never happen and did.
    pub(crate) violation: Option<String>,
}

/// Which log the managers have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogKind {
    /// Its promises alone: fast.
    Model,
    /// The real one.
    Consensus,
}

/// How a world begins.
pub(crate) struct Setup {
    pub(crate) seed: u64,
    pub(crate) managers: usize,
    pub(crate) agents: usize,
    pub(crate) trace: Option<Detail>,
    pub(crate) log: LogKind,
}

impl World {
    pub(crate) fn new(setup: &Setup) -> Self {
        let mut dice = Dice::new(setup.seed);
        let fates = Fates {
            wire: dice.fork(),
            engine: dice.fork(),
            ids: dice.fork(),
            client: dice.fork(),
            faults: dice.fork(),
        };
        let count = setup.managers + setup.agents;
        let (first, fate, mut quartz) = (found(setup.managers, count), dice.fork(), dice.fork());
        let hosts: Vec<Host> = (0..count)
            .map(HostId)
            .map(|host| Host::new(host, node_id(host), setup.managers, quartz.below(RATES_PPM) as u32))
            .collect();
        let mut violation = None;
        let mut log: Box<dyn Log> = Box::new(ModelLog::new(setup.managers, count, fate.clone(), first.clone()));
        if setup.log == LogKind::Consensus {
            match RaftLog::new(setup.managers, count, fate, first) {
                Ok(real) => log = Box::new(real),
                Err(why) => violation = Some(format!("the managers do not come together: {why}")),
            }
        }
        let mut world = Self {
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            planned: 0,
            dice: fates,
            trace: Trace::new(setup.trace),
            trace_on: true,
            hosts,
            net: Net::default(),
            log,
            streams: BTreeMap::new(),
            stream_ids: 0,
            reigns: 0,
            asked: BTreeMap::new(),
            client: Client::default(),
            calls: Calls::default(),
            watch: Watch::new(),
            names: crate::trace::Names::default(),
            engine_trouble: 0,
            calm: true,
            violation,
        };
        for number in 0..world.hosts.len() {
            world.boot(HostId(number));
        }
        world
    }

    pub(crate) fn tell(&mut self, detail: Detail, text: String) {
        self.trace.write(self.now, detail, &text);
    }

    pub(crate) fn at(&mut self, at: Duration, event: Event) {
        self.planned += 1;
        self.queue.insert((at.max(self.now), self.planned), event);
    }

    pub(crate) fn after(&mut self, delay: Duration, event: Event) {
        self.at(self.now + delay, event);
    }

    pub(crate) fn all_hosts(&self) -> Vec<HostId> {
        (0..self.hosts.len()).map(HostId).collect()
    }

    pub(crate) fn all_managers(&self) -> Vec<HostId> {
        self.all_hosts().into_iter().filter(|h| self.hosts[h.0].has_log).collect()
    }

    /// Lets time pass, until then or until something must never happen and did.
    pub(crate) fn run_until(&mut self, end: Duration) {
        let mut happened = Vec::new();
        while self.violation.is_none() {
            let next = self.queue.first_key_value().map_or(end, |((at, _), _)| (*at).min(end));
            self.now = self.log.advance(next, &self.net, &mut happened);
            if !happened.is_empty() {
                for event in happened.drain(..) {
                    self.log_event(event);
                }
                continue;
            }
            // Woken by news that had been taken already: nothing is due yet.
            if self.now < next {
                continue;
            }
            match self.queue.first_entry() {
                Some(entry) if entry.key().0 <= end => {
                    let event = entry.remove();
                    self.event(event);
                }
                _ => return,
            }
        }
    }

    pub(crate) fn run_for(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    fn lives(&self, host: HostId, life: u64) -> bool {
        self.hosts[host.0].life == life && self.hosts[host.0].daemon.is_some()
    }

    /// Puts off what a frozen daemon would do.
    fn is_frozen(&self, event: &Event) -> Option<Duration> {
        let host = match event {
            Event::Seek { host, .. }
            | Event::OpenDeadline { host, .. }
            | Event::Beat { host, .. }
            | Event::Worker { host, .. }
            | Event::Engine { host, .. }
            | Event::Leader { host, .. }
            | Event::Round { host, .. }
            | Event::Certificate { host, .. }
            | Event::AskToJoin { host, .. }
            | Event::BeginAgain { host, .. }
            | Event::Place { host, .. }
            | Event::Pulse { host, .. } => *host,
            // The supervisor is another process.
            Event::LeaseEnds { .. }
            | Event::Stream { .. }
            | Event::ContainerEnds { .. }
            | Event::Ask { .. }
            | Event::TryAgain { .. }
            | Event::Start { .. } => {
                return None;
            }
        };
        let until = self.hosts[host.0].frozen_until;
        (until > self.now).then_some(until)
    }

    fn event(&mut self, event: Event) {
        if let Some(until) = self.is_frozen(&event) {
            return self.at(until, event);
        }
        match event {
            Event::Stream { id, way } => self.stream_due(id, way),
            Event::Seek { host, life } if self.lives(host, life) => self.seek(host),
            Event::OpenDeadline { host, life, stream } if self.lives(host, life) => self.open_deadline(host, stream),
            Event::Beat { host, life, stream } if self.lives(host, life) => self.beat(host, stream),
            Event::Worker { host, life } if self.lives(host, life) => self.worker_due(host),
            Event::Engine { host, life, task, image, effect } => self.engine_did(host, life, task, image, effect),
            Event::ContainerEnds { host, task, code } => self.container_due(host, &task, code),
            Event::Leader { host, reign } => self.leader_due(host, reign),
            Event::Pulse { host, reign } => self.pulse(host, reign),
            Event::Round { host, reign } => self.round(host, reign),
            Event::Certificate { host, life, role } if self.lives(host, life) => self.has_certificate(host, role),
            Event::AskToJoin { host, life } if self.lives(host, life) => self.ask_to_join_again(host),
            Event::BeginAgain { host, life } if self.lives(host, life) => self.begin_again(host),
            Event::Place { host, life, what } if self.lives(host, life) => self.place_due(host, what),
            Event::LeaseEnds { host, task } => self.lease_ends(host, &task),
            Event::Ask { number, host, hops } => self.ask(number, host, hops),
            Event::TryAgain { number, attempt } => self.try_again(number, attempt),
            Event::Start { host } => self.boot(host),
            Event::Seek { .. }
            | Event::OpenDeadline { .. }
            | Event::Beat { .. }
            | Event::Worker { .. }
            | Event::Certificate { .. }
            | Event::AskToJoin { .. }
            | Event::Place { .. }
            | Event::BeginAgain { .. } => {}
        }
    }

    fn log_event(&mut self, event: LogEvent) {
        match event {
            LogEvent::Applied { host, index, events } => {
                let view = self.log.view(host);
                if !self.watch.has(index) {
                    for (detail, line) in self.names.read(&events) {
                        self.tell(detail, line);
                    }
                }
                if let Err(violation) = self.watch.applied(host, index, &events, &view) {
                    self.violated(violation);
                }
                self.leader_sees(host, Some(&events));
            }
            LogEvent::Resync { host, index } => {
                let view = self.log.view(host);
                self.watch.resync(host, index, &view);
                self.leader_sees(host, None);
            }
            LogEvent::Leads { host, term, leads } => {
                if leads && let Err(violation) = self.watch.leads(host, term) {
                    self.violated(violation);
                }
                self.leadership(host, term, leads);
            }
            LogEvent::Proposed { host, ticket, outcome } => self.proposed(host, ticket, &outcome),
            LogEvent::Changed { host, ticket, outcome } => self.members_changed(host, ticket, &outcome),
            LogEvent::Stopped { host, why } => {
                self.tell(Detail::Story, format!("{host} takes no part in consensus any more: {why}"));
                if why.contains("damaged") {
                    self.violated(format!("{host} cannot read what it wrote: {why}"));
                }
                let term = self.leader(host).map(|l| l.term);
                if let Some(daemon) = &mut self.hosts[host.0].daemon {
                    daemon.log_stopped = true;
                }
                if let Some(term) = term {
                    self.leadership(host, term, false);
                }
                let life = self.hosts[host.0].life;
                self.after(BEGIN_AGAIN, Event::BeginAgain { host, life });
            }
        }
    }

    pub(crate) fn violated(&mut self, violation: String) {
        self.tell(Detail::Story, format!("VIOLATED {violation}"));
        let host = self.all_managers().first().copied().unwrap_or(HostId(0));
        for line in self.names.state(&self.log.view(host)) {
            self.tell(Detail::Step, line);
        }
        self.violation.get_or_insert(violation);
    }

    fn proposed(&mut self, host: HostId, ticket: Ticket, outcome: &Result<u64, Failure>) {
        match self.asked.remove(&ticket) {
            Some(Asker::Leader { host: asker, term }) => self.leader_wrote(asker, term, ticket, outcome),
            Some(Asker::Roster { host: asker }) => self.roster_wrote(asker, ticket, outcome),
            Some(Asker::Client { number, hops }) => self.answered(number, host, hops, outcome.clone()),
            None => {}
        }
    }

    /// The daemon starts.
    pub(crate) fn boot(&mut self, host: HostId) {
        let there = &mut self.hosts[host.0];
        if there.daemon.is_some() {
            return;
        }
        there.has_power = true;
        there.life += 1;
        there.daemon = Some(Daemon {
            agent: Agent::new(self.now),
            keeper: Keeper::default(),
            leader: None,
            log_stopped: false,
            asks_to_join: false,
        });
        if there.life > 1 {
            if there.has_log {
                self.log.start(host);
            }
            self.tell(Detail::Story, format!("{host} starts"));
        }
        self.take_orders(host, false);
        self.seek(host);
        self.follow_role(host);
        // Once its log is open.
        let life = self.hosts[host.0].life;
        self.after(JOIN_AGAIN, Event::AskToJoin { host, life });
    }

    pub(crate) fn crash(&mut self, host: HostId, how: Crash) {
        let there = &mut self.hosts[host.0];
        let Some(_) = there.daemon.take() else { return };
        there.frozen_until = Duration::ZERO;
        self.log.freeze(host, Duration::ZERO);
        self.log.crash(host, how);
        match how {
            Crash::Process => {
                self.tell(Detail::Story, format!("{host}: the daemon is killed"));
                let held: Vec<(u64, bool)> = self
                    .streams
                    .iter()
                    .filter(|(_, s)| s.agent == host || s.manager == host)
                    .map(|(id, s)| (*id, s.agent == host))
                    .collect();
                // The kernel closes what the process held.
                for (id, as_agent) in held {
                    if as_agent {
                        self.agent_closes(id);
                    }
                    if self.streams.get(&id).is_some_and(|s| s.manager == host && s.manager_open) {
                        self.manager_closes(id);
                    }
                }
            }
            Crash::Power => {
                self.hosts[host.0].has_power = false;
                let watch = &mut self.watch;
                self.hosts[host.0].engine.power_off(|task| watch.ended(task));
                std::mem::take(&mut self.hosts[host.0].placed).into_keys().for_each(|key| watch.left(&key));
                self.tell(Detail::Story, format!("{host}: the power fails"));
                // Nobody is told; the other ends find out.
                for stream in self.streams.values_mut() {
                    stream.agent_open &= stream.agent != host;
                    stream.manager_open &= stream.manager != host;
                }
                self.streams.retain(|_, s| s.agent_open || s.manager_open);
            }
        }
    }
}

/// After its consensus ended on its disk, a manager begins again this often (`member.rs`).
pub(crate) const BEGIN_AGAIN: Duration = Duration::from_secs(5);

/// Two clocks of the time since boot differ by less than this.
const RATES_PPM: usize = 5_000;

pub(crate) fn host_of(id: &NodeId) -> HostId {
    (0..64).map(HostId).find(|host| node_id(*host) == *id).unwrap_or(HostId(usize::MAX))
}

pub(crate) fn node_id(host: HostId) -> NodeId {
    NodeId::from_bits(host.0 as u128 + 1)
}

/// What `swarm init` and the joins after it wrote.
fn found(managers: usize, hosts: usize) -> Batch {
    let mut changes = membership::found(Cluster::new(ClusterId::from_bits(1)), &mut Dice::new(1));
    let empty = Store::new();
    for host in (0..hosts).map(HostId) {
        let role = if host.0 < managers { Role::Manager } else { Role::Worker };
        let id = node_id(host);
        let name = host.to_string();
        changes.extend(membership::admit(empty.read(), &id, role, Availability::Active, &name, Timestamp::ZERO));
        if role == Role::Manager {
            let manager = Some(manager_info(host, host.0 as u64 + 1));
            changes.push(Change::SetNodeManager { node_id: id, manager });
        }
    }
    Batch::new(Timestamp::ZERO, changes)
}
