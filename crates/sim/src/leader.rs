//! What leading is (`manager/leader.rs`): one value, made on election and dropped with leadership. One loop writes: first what
//! the agents said, then what `control` makes of it, each as one batch of the log, one at a time.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use skep_control::dispatch::{Affected, Balancers, LiveClock, Liveness, Patience};
use skep_control::{Agenda, Ctx, membership, split, tick};
use skep_model::assignment::TaskReport;
use skep_model::{NodeId, Timestamp};
use skep_store::{Batch, Change, Event as StoreEvent, Object};

use crate::HostId;
use crate::dispatch::Session;
use crate::log::{Failure, Ticket};
use crate::roles::Roster;
use crate::trace::Detail;
use crate::world::{Asker, Event, World};

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
    agenda: Agenda,
    /// When it began, on its own clock.
    began: Timestamp,
    inbox: VecDeque<Input>,
    writes: VecDeque<Write>,
    in_flight: Option<(Ticket, bool)>,
    paused_until: Duration,
    /// The log says this term is over; the rest of the node will hear soon.
    over: bool,
    timer_at: Option<Duration>,
    pub(crate) sessions: BTreeMap<NodeId, Session>,
    pub(crate) liveness: Liveness,
    pub(crate) clock: LiveClock,
    pub(crate) roster: Roster,
    pub(crate) knocks: BTreeMap<NodeId, Timestamp>,
    /// Whose session ended, and when: they should be back soon.
    pub(crate) closed: BTreeMap<NodeId, Timestamp>,
    pub(crate) affected: Affected,
    pub(crate) balancers: Balancers,
    /// Somebody's session needs everything, or something was affected.
    pub(crate) has_news: bool,
}

impl Leader {
    fn new(term: u64, reign: u64, began: Timestamp, now: Duration) -> Self {
        let mut clock = LiveClock::default();
        let live = clock.now(now);
        Self {
            term,
            reign,
            agenda: Agenda::new(),
            began,
            inbox: VecDeque::new(),
            writes: VecDeque::new(),
            in_flight: None,
            paused_until: Duration::ZERO,
            over: false,
            timer_at: None,
            sessions: BTreeMap::new(),
            liveness: Liveness::with(live, Patience::default()),
            clock,
            roster: Roster::default(),
            knocks: BTreeMap::new(),
            closed: BTreeMap::new(),
            affected: Affected::Everybody,
            balancers: Balancers::default(),
            has_news: true,
        }
    }
}

fn moves_roles(events: &[StoreEvent]) -> bool {
    events.iter().any(|event| match &event.object {
        Object::Node(Some(old), Some(new)) => old.spec.role != new.spec.role || old.manager != new.manager,
        object => matches!(object, Object::Node(..)),
    })
}

impl World {
    pub(crate) fn leader(&mut self, host: HostId) -> Option<&mut Leader> {
        self.hosts[host.0].daemon.as_mut().and_then(|d| d.leader.as_mut())
    }

    /// The clock by which a leader judges silence.
    pub(crate) fn live(&mut self, host: HostId) -> Timestamp {
        let now = self.now;
        self.leader(host).map(|l| l.clock.now(now)).unwrap_or_default()
    }

    pub(crate) fn leadership(&mut self, host: HostId, term: u64, leads: bool) {
        self.reigns += 1;
        let (now, reign) = (self.now, self.reigns);
        let began = self.hosts[host.0].clock(now);
        let Some(daemon) = &mut self.hosts[host.0].daemon else { return };
        let old = daemon.leader.take();
        if leads {
            daemon.leader = Some(Leader::new(term, reign, began, now));
            self.tell(Detail::Story, format!("{host} leads term {term}"));
        } else {
            self.tell(Detail::Story, format!("{host} no longer leads"));
        }
        for session in old.into_iter().flat_map(|l| l.sessions.into_values()) {
            self.manager_closes(session.stream);
        }
        if leads {
            let unknown = membership::unknown(&self.log.view(host), began);
            self.input(host, Input::Changes(unknown));
            self.pulse(host, reign);
            self.round(host, reign);
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
                leader.agenda.mark(events);
                events.iter().for_each(|event| leader.affected.note(event));
            }
            None => {
                leader.agenda.mark_all();
                leader.affected = Affected::Everybody;
            }
        }
        leader.has_news = true;
        let (reign, roles) = (leader.reign, events.is_none_or(moves_roles));
        if roles {
            self.round(host, reign);
        }
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
            if !self.decide(host) {
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
        let Some(dirty) = leader.agenda.take(clock) else { return false };
        let decision = tick(&view, &dirty, &mut Ctx { now: clock, steady_since: leader.began, ids });
        leader.agenda.decided(&decision);
        let term = leader.term;
        let batches = split(decision.changes, clock, term).into_iter();
        leader.writes.extend(batches.map(|batch| Write { batch, decision: true }));
        !leader.writes.is_empty()
    }

    fn sleep(&mut self, host: HostId) {
        let now = self.now;
        let clock = self.hosts[host.0].clock(now);
        let Some(rest) = self.leader(host).map(|l| l.agenda.rest(clock)) else { return };
        let at = now + rest.max(Duration::from_millis(1));
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
            leader.agenda.mark_all();
        }
        self.lead(host);
    }

    pub(crate) fn leader_wrote(&mut self, host: HostId, term: u64, ticket: Ticket, outcome: &Result<u64, Failure>) {
        let now = self.now;
        let Some(leader) = self.leader(host).filter(|l| l.term == term) else { return };
        let Some((_, decision)) = leader.in_flight.take_if(|(asked, _)| *asked == ticket) else { return };
        match outcome {
            Ok(_) if decision => leader.agenda.accepted(),
            Ok(_) => {}
            Err(Failure::Refused(_) | Failure::Unknown(_)) if decision => {
                // What was decided is lost; the view is newer now.
                leader.writes.retain(|write| !write.decision);
                leader.paused_until = now + leader.agenda.refused();
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
