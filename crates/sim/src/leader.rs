//! What leading is (`manager/leader.rs`): one value, made on election and dropped with leadership. One loop writes: first what
//! the agents said, then what `control` makes of it, each as one batch of the log, one at a time.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use skep_control::dispatch::{Affected, Balancers, Liveness, Patience};
use skep_control::{Ctx, Dirty, membership, split, tick};
use skep_model::assignment::TaskReport;
use skep_model::{NodeId, Timestamp};
use skep_store::{Batch, Change, Event as StoreEvent};

use crate::HostId;
use crate::dispatch::Session;
use crate::log::{Failure, Ticket};
use crate::trace::Detail;
use crate::world::{Asker, Event, World};

/// The same as in `manager/leader.rs` and `node::config::Timing`.
const PERIOD: Duration = Duration::from_secs(5);
const REFUSED_PAUSE: Duration = Duration::from_millis(20);
const PATIENCE: Patience = Patience {
    dead: Duration::from_millis(700),
    alone: Duration::from_millis(1_000),
    late: Duration::from_millis(3_000),
    slow: Duration::from_secs(10),
    grace: Duration::from_secs(5),
};

/// What sessions bring for the log.
pub(crate) enum Input {
    Changes(Vec<Change>),
    Reports(Vec<TaskReport>),
}

struct Write {
    batch: Batch,
    decision: bool,
}

pub(crate) struct Leader {
    pub(crate) term: u64,
    /// Counts leaderships of all managers: one may lose and regain a term.
    pub(crate) reign: u64,
    dirty: Dirty,
    wake_at: Option<Timestamp>,
    refused: u32,
    inbox: VecDeque<Input>,
    writes: VecDeque<Write>,
    in_flight: Option<(Ticket, bool)>,
    paused_until: Duration,
    /// The log says this term is over; the rest of the node will hear soon.
    over: bool,
    timer_at: Option<Duration>,
    pub(crate) sessions: BTreeMap<NodeId, Session>,
    pub(crate) liveness: Liveness,
    pub(crate) knocks: BTreeMap<NodeId, Duration>,
    /// Whose session ended, and when: they should be back soon.
    pub(crate) closed: BTreeMap<NodeId, Duration>,
    pub(crate) affected: Affected,
    pub(crate) balancers: Balancers,
    /// Somebody's session needs everything, or something was affected.
    pub(crate) has_news: bool,
}

impl Leader {
    pub(crate) fn new(term: u64, reign: u64, now: Duration) -> Self {
        Self {
            term,
            reign,
            dirty: Dirty::all(),
            wake_at: None,
            refused: 0,
            inbox: VecDeque::new(),
            writes: VecDeque::new(),
            in_flight: None,
            paused_until: Duration::ZERO,
            over: false,
            timer_at: None,
            sessions: BTreeMap::new(),
            liveness: Liveness::with(steady(now), PATIENCE),
            knocks: BTreeMap::new(),
            closed: BTreeMap::new(),
            affected: Affected::Everybody,
            balancers: Balancers::default(),
            has_news: true,
        }
    }
}

/// A clock that never jumps, for liveness.
pub(crate) fn steady(now: Duration) -> Timestamp {
    Timestamp(i64::try_from(now.as_nanos()).unwrap_or(i64::MAX))
}

impl World {
    pub(crate) fn leader(&mut self, host: HostId) -> Option<&mut Leader> {
        self.hosts[host.0].daemon.as_mut().and_then(|d| d.leader.as_mut())
    }

    pub(crate) fn leadership(&mut self, host: HostId, term: u64, leads: bool) {
        self.reigns += 1;
        let (now, reign) = (self.now, self.reigns);
        let Some(daemon) = &mut self.hosts[host.0].daemon else { return };
        let old = daemon.leader.take();
        if leads {
            daemon.leader = Some(Leader::new(term, reign, now));
            self.tell(Detail::Story, format!("{host} leads term {term}"));
        } else {
            self.tell(Detail::Story, format!("{host} no longer leads"));
        }
        for session in old.into_iter().flat_map(|l| l.sessions.into_values()) {
            self.manager_closes(session.stream);
        }
        if leads {
            let unknown = membership::unknown(&self.log.view(host), self.hosts[host.0].clock(now));
            self.input(host, Input::Changes(unknown));
            self.pulse(host, reign);
        }
    }

    pub(crate) fn input(&mut self, host: HostId, input: Input) {
        if let Some(leader) = self.leader(host) {
            leader.inbox.push_back(input);
        }
        self.lead(host);
    }

    /// Something was applied on a manager; if it leads, its marks move.
    pub(crate) fn leader_sees(&mut self, host: HostId, events: Option<&[StoreEvent]>) {
        let Some(leader) = self.leader(host) else { return };
        match events {
            Some(events) => {
                for event in events {
                    leader.dirty.mark(event);
                    leader.affected.note(event);
                }
            }
            None => {
                leader.dirty.mark_all();
                leader.affected = Affected::Everybody;
            }
        }
        leader.has_news = true;
        self.dispatch(host);
        self.lead(host);
    }

    /// Goes on until a batch is under way or nothing is left to do.
    pub(crate) fn lead(&mut self, host: HostId) {
        loop {
            let (now, clock) = (self.now, self.hosts[host.0].clock(self.now));
            let Some(leader) = self.leader(host) else { return };
            if leader.over || leader.in_flight.is_some() || leader.paused_until > now {
                return;
            }
            if let Some(write) = leader.writes.pop_front() {
                let term = leader.term;
                let ticket = self.log.propose(host, Some(term), write.batch);
                self.asked.insert(ticket, Asker::Leader { host, term });
                if let Some(leader) = self.leader(host) {
                    leader.in_flight = Some((ticket, write.decision));
                }
                return;
            }
            if !leader.inbox.is_empty() {
                leader.gather(clock);
                continue;
            }
            if leader.wake_at.is_some_and(|at| at <= clock) {
                leader.dirty.mark_all();
            }
            if leader.dirty.is_empty() || !self.decide(host) {
                self.sleep(host);
                return;
            }
        }
    }

    /// Whether there is anything to write.
    fn decide(&mut self, host: HostId) -> bool {
        let clock = self.hosts[host.0].clock(self.now);
        let view = self.log.view(host);
        let ids = &mut self.dice.ids;
        let Some(leader) = self.hosts[host.0].daemon.as_mut().and_then(|d| d.leader.as_mut()) else { return false };
        let all = leader.dirty == Dirty::all();
        let dirty = leader.dirty.take();
        let decision = tick(&view, &dirty, &mut Ctx { now: clock, ids });
        leader.wake_at = match (leader.wake_at, decision.wake_at) {
            (Some(old), Some(new)) if !all => Some(old.min(new)),
            (old, None) if !all => old,
            (_, new) => new,
        };
        let term = leader.term;
        let batches = split(decision.changes, clock, term).into_iter();
        leader.writes.extend(batches.map(|batch| Write { batch, decision: true }));
        !leader.writes.is_empty()
    }

    fn sleep(&mut self, host: HostId) {
        let now = self.now;
        let Some(wake_at) = self.leader(host).map(|l| l.wake_at) else { return };
        let due = wake_at.map_or(PERIOD, |at| self.hosts[host.0].until(at, now).min(PERIOD));
        let at = now + due.max(Duration::from_millis(1));
        let Some(leader) = self.leader(host) else { return };
        if leader.timer_at.is_none_or(|already| at < already || already <= now) {
            leader.timer_at = Some(at);
            let reign = leader.reign;
            self.at(at, Event::Leader { host, reign });
        }
    }

    /// It is time to look, whatever happened.
    pub(crate) fn leader_due(&mut self, host: HostId, reign: u64) {
        let now = self.now;
        let Some(leader) = self.leader(host).filter(|l| l.reign == reign) else { return };
        if leader.timer_at.is_some_and(|at| at <= now) {
            leader.timer_at = None;
            leader.dirty.mark_all();
        }
        self.lead(host);
    }

    pub(crate) fn leader_wrote(&mut self, host: HostId, term: u64, ticket: Ticket, outcome: &Result<u64, Failure>) {
        let now = self.now;
        let Some(leader) = self.leader(host).filter(|l| l.term == term) else { return };
        let Some((_, decision)) = leader.in_flight.take_if(|(asked, _)| *asked == ticket) else { return };
        match outcome {
            Ok(_) => leader.refused = 0,
            Err(Failure::Refused(_) | Failure::Unknown(_)) if decision => {
                // What was decided is lost; the view is newer now.
                leader.writes.retain(|write| !write.decision);
                leader.dirty.mark_all();
                leader.refused = (leader.refused + 1).min(50);
                leader.paused_until = now + REFUSED_PAUSE * (leader.refused - 1);
                let (at, reign) = (leader.paused_until, leader.reign);
                self.at(at, Event::Leader { host, reign });
            }
            Err(Failure::Refused(_) | Failure::Unknown(_)) => {}
            Err(Failure::NotLeader(_) | Failure::NoLeader | Failure::TermOver) => leader.over = true,
        }
        if let Err(failure) = outcome {
            self.tell(Detail::Step, format!("{host}: the log did not take it: {failure:?}"));
        }
        self.lead(host);
    }
}

impl Leader {
    /// Sessions speak of nodes that may have been removed meanwhile: one refused change must not take others along.
    fn gather(&mut self, at: Timestamp) {
        let mut reports = Vec::new();
        for input in self.inbox.drain(..) {
            match input {
                Input::Changes(changes) => {
                    for change in changes {
                        let batch = Batch::new(at, vec![change]).in_term(self.term);
                        self.writes.push_back(Write { batch, decision: false });
                    }
                }
                Input::Reports(more) => reports.extend(more),
            }
        }
        if !reports.is_empty() {
            let batch = Batch::new(at, vec![Change::SetTaskStatus(reports)]).in_term(self.term);
            self.writes.push_back(Write { batch, decision: false });
        }
    }
}
