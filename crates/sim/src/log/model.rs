//! A replicated log by its promises alone: what a majority has is never lost, one leader a term, a leader without a quorum
//! steps down after its lease. It is what the control plane may rely on, at a tenth of the price of the real consensus.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use skep_store::{Batch, Refused, Store, View};

use super::{Crash, Disk, Failure, Log, LogEvent, Move, Ticket, host_of, raft_id};
use crate::HostId;
use crate::dice::Dice;
use crate::net::Net;

const STEP: Duration = Duration::from_millis(50);
const LEASE: Duration = Duration::from_millis(450);
const ELECTION: (u64, u64) = (600, 900);
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);

struct Member {
    up: bool,
    /// How many logs it had before this one.
    generation: u64,
    disk: Disk,
    store: Store,
    applied: u64,
    /// The term it believes to lead.
    leads: Option<u64>,
    /// Its leadership was told to the world.
    told: bool,
    known_leader: Option<HostId>,
    /// A follower heard its leader; a leader heard a quorum.
    heard: Duration,
    patience: Duration,
}

struct Pending {
    ticket: Ticket,
    host: HostId,
    term: u64,
    batch: Arc<Batch>,
    since: Duration,
    /// The proposer is gone; the entry may be on other disks all the same.
    orphan: bool,
}

/// An entry, and what came of it on everybody's disk.
struct Agreed {
    term: u64,
    batch: Arc<Batch>,
    refused: Option<Refused>,
}

enum Due {
    Step,
    Commit(Box<Pending>),
    Change { host: HostId, ticket: Ticket, change: Move, since: Duration },
    Apply { host: HostId, answer: Option<(Ticket, u64)> },
}

pub(crate) struct ModelLog {
    now: Duration,
    members: Vec<Member>,
    voters: BTreeSet<u64>,
    committed: Vec<Agreed>,
    /// All of it, applied.
    truth: Store,
    /// Of the last election won.
    term: u64,
    leader: Option<HostId>,
    due: BTreeMap<(Duration, u64), Due>,
    order: u64,
    tickets: Ticket,
    /// Outcomes that need no time.
    ready: Vec<LogEvent>,
    dice: Dice,
}

impl ModelLog {
    pub(crate) fn new(managers: usize, hosts: usize, mut dice: Dice, found: Batch) -> Self {
        let member = |dice: &mut Dice| Member {
            up: false,
            generation: 0,
            disk: Disk::Fine,
            store: Store::new(),
            applied: 0,
            leads: None,
            told: false,
            known_leader: None,
            heard: Duration::ZERO,
            patience: dice.millis(ELECTION.0, ELECTION.1),
        };
        let mut members: Vec<Member> = (0..hosts).map(|_| member(&mut dice)).collect();
        members.iter_mut().take(managers).for_each(|m| m.up = true);
        let voters = (0..managers).map(|number| raft_id(HostId(number), 0)).collect();
        let mut log = Self {
            now: Duration::ZERO,
            members,
            voters,
            committed: Vec::new(),
            truth: Store::new(),
            term: 0,
            leader: None,
            due: BTreeMap::new(),
            order: 0,
            tickets: 0,
            ready: Vec::new(),
            dice,
        };
        log.agree(0, Arc::new(found));
        log.plan(STEP, Due::Step);
        log
    }

    fn plan(&mut self, after: Duration, due: Due) {
        self.order += 1;
        self.due.insert((self.now + after, self.order), due);
    }

    fn writes(&self, host: HostId) -> bool {
        let member = &self.members[host.0];
        member.up && member.disk != Disk::Full && self.votes(host)
    }

    fn votes(&self, host: HostId) -> bool {
        self.voters.contains(&raft_id(host, self.members[host.0].generation))
    }

    fn has_quorum(&self, host: HostId, net: &Net) -> bool {
        let count = (0..self.members.len()).map(HostId).filter(|h| self.writes(*h) && net.reaches(host, *h)).count();
        count * 2 > self.voters.len() && self.writes(host)
    }

    fn step(&mut self, net: &Net, out: &mut Vec<LogEvent>) {
        self.plan(STEP, Due::Step);
        for host in (0..self.members.len()).map(HostId) {
            if !self.members[host.0].up {
                continue;
            }
            if self.members[host.0].leads.is_some() {
                self.keep_leading(host, net, out);
            } else {
                self.follow(host, net, out);
            }
        }
    }

    fn keep_leading(&mut self, host: HostId, net: &Net, out: &mut Vec<LogEvent>) {
        let current = self.leader == Some(host);
        let quorum = current && self.has_quorum(host, net);
        let own =
            |due: &Due| matches!(due, Due::Commit(p) if p.host == host && Some(p.term) == self.members[host.0].leads);
        let is_waiting = self.due.values().any(own);
        let now = self.now;
        let member = &mut self.members[host.0];
        let Some(term) = member.leads else { return };
        if quorum {
            member.heard = now;
            // What it had proposed before it lost touch is in its log.
            if !member.told && !is_waiting {
                self.apply(host, out);
                self.members[host.0].told = true;
                out.push(LogEvent::Leads { host, term, leads: true });
            }
        } else if now.saturating_sub(member.heard) > LEASE {
            if std::mem::take(&mut member.told) {
                out.push(LogEvent::Leads { host, term, leads: false });
            }
            // openraft's leader goes on believing while nobody else was elected.
            if !current {
                member.leads = None;
                member.known_leader = None;
            }
        }
    }

    fn follow(&mut self, host: HostId, net: &Net, out: &mut Vec<LogEvent>) {
        let leader =
            self.leader.filter(|l| *l != host && self.members[l.0].leads == Some(self.term) && self.members[l.0].up);
        if let Some(leader) = leader
            && net.is_open(leader, host)
        {
            self.members[host.0].heard = self.now;
            self.members[host.0].known_leader = Some(leader);
            if net.reaches(leader, host) && self.votes(host) && self.writes(host) {
                self.apply(host, out);
            }
            return;
        }
        let member = &mut self.members[host.0];
        if self.now.saturating_sub(member.heard) <= member.patience {
            return;
        }
        member.known_leader = None;
        member.heard = self.now;
        member.patience = self.dice.millis(ELECTION.0, ELECTION.1);
        // Pre-vote: no voter may have heard of a leader lately.
        let now = self.now;
        let willing = |h: &HostId| {
            let other = &self.members[h.0];
            *h == host || (other.leads.is_none() && now.saturating_sub(other.heard) > LEASE)
        };
        let votes = (0..self.members.len())
            .map(HostId)
            .filter(|h| self.writes(*h) && net.reaches(host, *h))
            .filter(willing)
            .count();
        if votes * 2 > self.voters.len() && self.writes(host) {
            self.term += 1;
            self.leader = Some(host);
            let member = &mut self.members[host.0];
            (member.leads, member.told, member.known_leader) = (Some(self.term), false, Some(host));
        }
    }

    /// Takes in all that is committed.
    fn apply(&mut self, host: HostId, out: &mut Vec<LogEvent>) {
        let member = &mut self.members[host.0];
        if !member.up {
            return;
        }
        let done = usize::try_from(member.applied).unwrap_or(usize::MAX);
        for agreed in self.committed.iter().skip(done) {
            member.applied += 1;
            if let Ok(events) = member.store.apply(member.applied, agreed.term, &agreed.batch)
                && !events.is_empty()
            {
                out.push(LogEvent::Applied { host, index: member.applied, events: events.into() });
            }
        }
    }

    fn commit(&mut self, mut pending: Box<Pending>, net: &Net, out: &mut Vec<LogEvent>) {
        let host = pending.host;
        let fail = |failure| LogEvent::Proposed { host, ticket: pending.ticket, outcome: Err(failure) };
        if !self.members[host.0].up && !pending.orphan {
            if self.dice.percent(50) {
                return;
            }
            pending.orphan = true;
        }
        if pending.orphan {
            // It is on other disks: the next leader has it, in a term of its own.
            if self.term == pending.term {
                self.agree(pending.term, pending.batch);
            }
            return;
        }
        if self.leader != Some(host) || self.term != pending.term {
            out.push(fail(Failure::Unknown("leadership changed")));
            return;
        }
        if !self.has_quorum(host, net) {
            if self.now.saturating_sub(pending.since) > PROPOSE_TIMEOUT {
                out.push(fail(Failure::Unknown("no quorum in time")));
            } else {
                self.plan(STEP, Due::Commit(pending));
            }
            return;
        }
        let index = self.agree(pending.term, pending.batch);
        for other in (0..self.members.len()).map(HostId) {
            let answer = (other == host).then_some((pending.ticket, index));
            if answer.is_some() || (net.reaches(host, other) && self.writes(other)) {
                let delay = self.dice.between(Duration::from_micros(100), Duration::from_millis(3));
                self.plan(delay, Due::Apply { host: other, answer });
            }
        }
    }

    fn change_due(
        &mut self,
        host: HostId,
        ticket: Ticket,
        change: Move,
        since: Duration,
        net: &Net,
        out: &mut Vec<LogEvent>,
    ) {
        let answer =
            |outcome: Result<(), &str>| LogEvent::Changed { host, ticket, outcome: outcome.map_err(str::to_owned) };
        let current = self.leader == Some(host) && self.members[host.0].leads == Some(self.term);
        if !current {
            return out.push(answer(Err("it does not lead")));
        }
        let ready = match change {
            Move::Join(joiner, _) => self.members[joiner.0].up && net.reaches(host, joiner),
            Move::Remove(_) | Move::HandOver(_) => true,
        };
        if !ready || !self.has_quorum(host, net) {
            if self.now.saturating_sub(since) > PROPOSE_TIMEOUT {
                return out.push(answer(Err("no quorum in time")));
            }
            return self.plan(STEP, Due::Change { host, ticket, change, since });
        }
        match change {
            Move::Join(_, id) => {
                self.voters.insert(id);
            }
            // One that is gone already is fine.
            Move::Remove(id) if self.voters.len() > 1 || !self.voters.contains(&id) => {
                self.voters.remove(&id);
            }
            Move::Remove(_) => return out.push(answer(Err("the last manager cannot be removed"))),
            Move::HandOver(id) => {
                let heir = host_of(id);
                if !self.writes(heir) || !net.reaches(host, heir) {
                    return out.push(answer(Err("it is not reached")));
                }
                self.term += 1;
                self.leader = Some(heir);
                let (now, term) = (self.now, self.term);
                let member = &mut self.members[heir.0];
                (member.leads, member.told, member.known_leader, member.heard) = (Some(term), false, Some(heir), now);
                let member = &mut self.members[host.0];
                (member.leads, member.known_leader, member.heard) = (None, Some(heir), now);
                if let Some(term) = std::mem::take(&mut member.told).then_some(term) {
                    out.push(LogEvent::Leads { host, term: term - 1, leads: false });
                }
            }
        }
        out.push(answer(Ok(())));
    }

    /// From now on it is everybody's.
    fn agree(&mut self, term: u64, batch: Arc<Batch>) -> u64 {
        let index = self.committed.len() as u64 + 1;
        let refused = self.truth.apply(index, term, &batch).err();
        self.committed.push(Agreed { term, batch, refused });
        index
    }
}

impl Log for ModelLog {
    fn view(&self, host: HostId) -> View {
        self.members[host.0].store.view()
    }

    fn leader(&self, host: HostId) -> Option<HostId> {
        self.members[host.0].known_leader
    }

    fn propose(&mut self, host: HostId, term: Option<u64>, batch: Batch) -> Ticket {
        self.tickets += 1;
        let ticket = self.tickets;
        let member = &self.members[host.0];
        let failure = match (member.leads, term) {
            (None, Some(_)) => Some(Failure::TermOver),
            (Some(leads), Some(wanted)) if leads != wanted => Some(Failure::TermOver),
            (None, None) => {
                Some(member.known_leader.map_or(Failure::NoLeader, |leader| Failure::NotLeader(Some(leader))))
            }
            (Some(_), _) => None,
        };
        if let Some(failure) = failure {
            self.ready.push(LogEvent::Proposed { host, ticket, outcome: Err(failure) });
            return ticket;
        }
        let term = member.leads.unwrap_or_default();
        let mut delay = self.dice.between(Duration::from_micros(500), Duration::from_millis(4));
        if let Disk::Slow(by) = member.disk {
            delay += by;
        }
        let pending = Pending { ticket, host, term, batch: Arc::new(batch), since: self.now, orphan: false };
        self.plan(delay, Due::Commit(Box::new(pending)));
        ticket
    }

    fn change(&mut self, host: HostId, change: Move) -> Ticket {
        self.tickets += 1;
        let (ticket, since) = (self.tickets, self.now);
        let delay = self.dice.between(Duration::from_millis(2), Duration::from_millis(20));
        self.plan(delay, Due::Change { host, ticket, change, since });
        ticket
    }

    fn members(&self, _: HostId) -> Vec<(u64, bool)> {
        self.voters.iter().map(|id| (*id, true)).collect()
    }

    fn raft_id(&self, host: HostId) -> u64 {
        raft_id(host, self.members[host.0].generation)
    }

    fn begin(&mut self, host: HostId) {
        self.end(host);
        let (now, patience) = (self.now, self.dice.millis(ELECTION.0, ELECTION.1));
        let member = &mut self.members[host.0];
        (member.up, member.heard, member.patience) = (true, now, patience);
        member.generation += 1;
    }

    fn end(&mut self, host: HostId) {
        self.crash(host, Crash::Process);
        let member = &mut self.members[host.0];
        (member.store, member.applied) = (Store::new(), 0);
    }

    fn advance(&mut self, until: Duration, net: &Net, out: &mut Vec<LogEvent>) -> Duration {
        out.append(&mut self.ready);
        while out.is_empty() {
            let Some(entry) = self.due.first_entry().filter(|e| e.key().0 <= until) else {
                self.now = until;
                break;
            };
            let ((at, _), due) = entry.remove_entry();
            self.now = at;
            match due {
                Due::Step => self.step(net, out),
                Due::Commit(pending) => self.commit(pending, net, out),
                Due::Change { host, ticket, change, since } => self.change_due(host, ticket, change, since, net, out),
                Due::Apply { host, answer } => {
                    self.apply(host, out);
                    if let Some((ticket, index)) = answer
                        && self.members[host.0].up
                    {
                        let agreed = &self.committed[index as usize - 1];
                        let outcome =
                            agreed.refused.clone().map_or(Ok(index), |refused| Err(Failure::Refused(refused)));
                        out.push(LogEvent::Proposed { host, ticket, outcome });
                    }
                }
            }
        }
        self.now
    }

    fn start(&mut self, host: HostId) {
        let (now, patience) = (self.now, self.dice.millis(ELECTION.0, ELECTION.1));
        let member = &mut self.members[host.0];
        (member.up, member.heard, member.patience) = (true, now, patience);
        let index = member.applied;
        self.ready.push(LogEvent::Resync { host, index });
    }

    /// What a member has applied it keeps: that its own disk has it, and that what was lost comes again from others, is the
    /// real consensus' business.
    fn crash(&mut self, host: HostId, _: Crash) {
        let member = &mut self.members[host.0];
        (member.up, member.leads, member.told, member.known_leader) = (false, None, false, None);
    }

    /// A manager whose disk refuses a write ends, as the real one does.
    fn disk(&mut self, host: HostId, disk: Disk) {
        self.members[host.0].disk = disk;
        if disk == Disk::Full && self.members[host.0].up {
            self.crash(host, Crash::Process);
            self.ready.push(LogEvent::Stopped { host, why: "the disk is full".into() });
        }
    }

    /// Its own clocks go on; what the daemon would do with the log waits in the world's queue.
    fn freeze(&mut self, _: HostId, _: Duration) {}
}
