//! The agent's line to the leader (`agent_loop/session.rs`): says what runs here, hears what should. Whom it asks and when it
//! gives a leader up is `skep_agent::line`.

use std::collections::BTreeMap;
use std::time::Duration;

use skep_agent::line::{HEARTBEAT, Hearing, OPEN_DEADLINE, Search, Unopened};

use crate::HostId;
use crate::trace::Detail;
use crate::wire::{Down, Stream, Up};
use crate::world::{Event, World};

#[derive(Debug)]
pub(crate) struct Line {
    /// While there is no session.
    search: Option<Search<HostId>>,
    /// Streams on which an answer is awaited.
    asking: BTreeMap<u64, HostId>,
    open: Option<Open>,
    /// Who had the last session, and whether it was lost.
    last: Option<(HostId, bool)>,
    hearing: Hearing<HostId>,
}

#[derive(Debug)]
struct Open {
    stream: u64,
    manager: HostId,
    have: Option<u64>,
}

impl Line {
    pub(crate) fn new(now: Duration) -> Self {
        let hearing = Hearing::new(now);
        Self { search: None, asking: BTreeMap::new(), open: None, last: None, hearing }
    }

    pub(crate) fn open_stream(&self) -> Option<u64> {
        self.open.as_ref().map(|o| o.stream)
    }
}

impl World {
    fn line(&mut self, host: HostId) -> Option<&mut Line> {
        self.hosts[host.0].daemon.as_mut().map(|d| &mut d.agent.line)
    }

    /// Asks whoever is due for a session.
    pub(crate) fn seek(&mut self, host: HostId) {
        let (now, known) = (self.now, self.hosts[host.0].known_managers.clone());
        let Some(daemon) = &mut self.hosts[host.0].daemon else { return };
        let line = &mut daemon.agent.line;
        if line.open.is_some() {
            return;
        }
        let last = line.last;
        let search = line.search.get_or_insert_with(|| Search::new(last, now));
        search.know(known, now, &mut || self.dice.wire.number() as u32);
        let (due, next) = (search.due(now), search.next(now));
        let life = self.hosts[host.0].life;
        for manager in due {
            self.stream_ids += 1;
            let id = self.stream_ids;
            self.streams.insert(id, Stream::new(host, manager));
            if let Some(line) = self.line(host) {
                line.asking.insert(id, manager);
            }
            let role = self.hosts[host.0].role;
            self.send_up(id, Up::Hello(role));
            self.after(OPEN_DEADLINE, Event::OpenDeadline { host, life, stream: id });
        }
        self.at(next.max(now + Duration::from_millis(1)), Event::Seek { host, life });
    }

    pub(crate) fn open_deadline(&mut self, host: HostId, stream: u64) {
        self.unopened(host, stream, Unopened::Failed);
    }

    /// A manager opened no session.
    fn unopened(&mut self, host: HostId, stream: u64, why: Unopened<HostId>) {
        let now = self.now;
        let Some(daemon) = &mut self.hosts[host.0].daemon else { return };
        let line = &mut daemon.agent.line;
        let Some(manager) = line.asking.remove(&stream) else { return };
        if let Some(search) = &mut line.search {
            search.answered(manager, why, now, &mut || self.dice.wire.number() as u32);
        }
        self.agent_closes(stream);
        self.seek(host);
    }

    fn opened(&mut self, host: HostId, stream: u64) {
        let now = self.now;
        let Some(line) = self.line(host) else { return };
        let Some(manager) = line.asking.remove(&stream) else { return };
        line.search = None;
        line.open = Some(Open { stream, manager, have: None });
        line.hearing.begin(manager, now);
        for other in std::mem::take(&mut line.asking).into_keys() {
            self.agent_closes(other);
        }
        if let Some(daemon) = &mut self.hosts[host.0].daemon {
            daemon.agent.say_all_again();
        }
        self.say(host);
        self.beat(host, stream);
    }

    /// The session is over; whether it was lost.
    pub(crate) fn line_ended(&mut self, host: HostId, lost: bool) {
        let Some(open) = self.line(host).and_then(|line| line.open.take()) else { return };
        self.agent_closes(open.stream);
        if let Some(line) = self.line(host) {
            line.last = Some((open.manager, lost));
        }
        self.seek(host);
    }

    pub(crate) fn beat(&mut self, host: HostId, stream: u64) {
        let now = self.now;
        let Some(line) = self.line(host).filter(|l| l.open_stream() == Some(stream)) else { return };
        if line.hearing.is_silent(HEARTBEAT, now) {
            return self.line_ended(host, true);
        }
        let sent = self.hosts[host.0].since_boot(now);
        self.send_up(stream, Up::Heartbeat { sent });
        let life = self.hosts[host.0].life;
        self.after(HEARTBEAT, Event::Beat { host, life, stream });
    }

    /// Sends what is unsaid, if there is a session.
    pub(crate) fn say(&mut self, host: HostId) {
        let Some(daemon) = &mut self.hosts[host.0].daemon else { return };
        let Some(stream) = daemon.agent.line.open_stream() else { return };
        let reports = daemon.agent.reports();
        if !reports.is_empty() {
            self.send_up(stream, Up::Reports(reports));
        }
    }

    pub(crate) fn agent_hears(&mut self, id: u64, message: Down) {
        let now = self.now;
        let Some(host) = self.streams.get(&id).filter(|s| s.agent_open).map(|s| s.agent) else {
            if matches!(message, Down::Closed) {
                self.streams.remove(&id);
            }
            return;
        };
        if matches!(message, Down::Closed)
            && let Some(stream) = self.streams.get_mut(&id)
        {
            stream.manager_open = false;
        }
        let Some(line) = self.line(host) else { return };
        if line.asking.contains_key(&id) {
            return match message {
                Down::Welcome(managers) => {
                    self.told_managers(host, managers);
                    self.opened(host, id);
                }
                Down::Elsewhere(leader) => self.unopened(host, id, Unopened::Elsewhere(leader)),
                _ => self.unopened(host, id, Unopened::Failed),
            };
        }
        let Some(open) = line.open.as_mut().filter(|o| o.stream == id) else { return };
        line.hearing.heard(now);
        match message {
            Down::Heartbeat { sent } => self.answered_heartbeat(host, sent),
            Down::Managers(managers) => self.told_managers(host, managers),
            Down::Role(role) => self.told_role(host, role),
            Down::Complete { results_in, set } => {
                open.have = Some(results_in);
                self.hosts[host.0].saved = Some(*set);
                self.take_orders(host, true);
                self.send_up(id, Up::Applied(results_in));
            }
            Down::Incremental { applies_to, results_in, change } => {
                if open.have != Some(applies_to) {
                    open.have = None;
                    self.send_up(id, Up::Resync);
                    return;
                }
                open.have = Some(results_in);
                if let Some(set) = &mut self.hosts[host.0].saved {
                    set.apply(*change);
                }
                self.take_orders(host, true);
                self.send_up(id, Up::Applied(results_in));
            }
            Down::Closed => {
                if self.trace_on {
                    self.tell(Detail::Step, format!("{host}: the manager closed the session"));
                }
                self.line_ended(host, true);
            }
            Down::Welcome(_) | Down::Elsewhere(_) => {}
        }
    }
}
