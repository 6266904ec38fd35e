//! The agent's line to the leader (`agent_loop/session.rs`): finds it, says what runs here, hears what should.

use std::time::Duration;

use crate::HostId;
use crate::trace::Detail;
use crate::wire::{Down, Stream, Up};
use crate::world::{Event, World};

/// The same as in `agent_loop/session.rs`.
const OPEN_DEADLINE: Duration = Duration::from_millis(1_500);
const DISTRUST: Duration = Duration::from_secs(2);
const SILENCE: Duration = Duration::from_millis(1_500);
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_LAST: Duration = Duration::from_secs(1);
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Opening { stream: u64 },
    Open { stream: u64, have: Option<u64>, heard: Duration },
}

#[derive(Debug)]
pub(crate) struct Line {
    state: State,
    next: Option<HostId>,
    failed: Option<(HostId, Duration)>,
    turn: usize,
    backoff: Duration,
}

impl Line {
    pub(crate) fn new() -> Self {
        Self { state: State::Idle, next: None, failed: None, turn: 0, backoff: BACKOFF_FIRST }
    }

    fn stream(&self) -> Option<u64> {
        match self.state {
            State::Idle => None,
            State::Opening { stream } | State::Open { stream, .. } => Some(stream),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }
}

/// How a session ended.
enum Ended {
    Elsewhere(Option<HostId>),
    Broken,
    Refused,
}

impl World {
    fn line(&mut self, host: HostId) -> Option<&mut Line> {
        self.hosts[host.0].daemon.as_mut().map(|d| &mut d.agent.line)
    }

    /// Tries the next manager.
    pub(crate) fn connect(&mut self, host: HostId) {
        let managers = self.managers;
        let Some(line) = self.line(host).filter(|l| l.state == State::Idle) else { return };
        let manager = line.next.take().unwrap_or_else(|| {
            line.turn = line.turn.wrapping_add(1);
            HostId(line.turn % managers)
        });
        self.stream_ids += 1;
        let id = self.stream_ids;
        self.streams.insert(id, Stream::new(host, manager));
        if let Some(line) = self.line(host) {
            line.state = State::Opening { stream: id };
        }
        self.send_up(id, Up::Hello);
        let life = self.hosts[host.0].life;
        self.after(OPEN_DEADLINE, Event::OpenDeadline { host, life, stream: id });
    }

    pub(crate) fn open_deadline(&mut self, host: HostId, stream: u64) {
        if self.line(host).is_some_and(|l| l.state == State::Opening { stream }) {
            self.line_ended(host, Ended::Refused);
        }
    }

    fn line_ended(&mut self, host: HostId, how: Ended) {
        let now = self.now;
        let Some(line) = self.line(host) else { return };
        let stream = line.stream();
        line.state = State::Idle;
        let manager = stream.and_then(|id| self.streams.get(&id)).map(|s| s.manager);
        if let Some(id) = stream {
            self.agent_closes(id);
        }
        let Some(line) = self.line(host) else { return };
        match how {
            Ended::Elsewhere(Some(leader))
                if Some(leader) != manager
                    && !line.failed.is_some_and(|(dead, at)| dead == leader && now - at < DISTRUST) =>
            {
                line.next = Some(leader);
                self.connect(host);
                return;
            }
            Ended::Elsewhere(_) => line.backoff = BACKOFF_FIRST,
            Ended::Broken => {
                line.failed = manager.map(|m| (m, now));
                line.backoff = BACKOFF_FIRST;
            }
            Ended::Refused => line.failed = manager.map(|m| (m, now)),
        }
        let backoff = line.backoff;
        line.backoff = (backoff * 2).min(BACKOFF_LAST);
        let pause = self.dice.wire.between(backoff / 2, backoff);
        let life = self.hosts[host.0].life;
        self.after(pause, Event::Connect { host, life });
    }

    pub(crate) fn beat(&mut self, host: HostId, stream: u64) {
        let now = self.now;
        let Some(Line { state: State::Open { stream: open, heard, .. }, .. }) = self.line(host) else { return };
        if *open != stream {
            return;
        }
        if now.saturating_sub(*heard) > SILENCE {
            self.line_ended(host, Ended::Broken);
            return;
        }
        self.send_up(stream, Up::Heartbeat);
        let life = self.hosts[host.0].life;
        self.after(HEARTBEAT, Event::Beat { host, life, stream });
    }

    /// Sends what is unsaid, if there is a session.
    pub(crate) fn say(&mut self, host: HostId) {
        let Some(daemon) = &mut self.hosts[host.0].daemon else { return };
        let State::Open { stream, .. } = daemon.agent.line.state else { return };
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
        let Some(line) = self.line(host).filter(|l| l.stream() == Some(id)) else { return };
        if let State::Open { heard, .. } = &mut line.state {
            *heard = now;
        }
        match message {
            Down::Welcome => {
                line.state = State::Open { stream: id, have: None, heard: now };
                if let Some(daemon) = &mut self.hosts[host.0].daemon {
                    daemon.agent.say_all_again();
                }
                self.say(host);
                self.beat(host, id);
            }
            Down::Heartbeat => {}
            Down::Complete { results_in, set } => {
                if let State::Open { have, .. } = &mut line.state {
                    *have = Some(results_in);
                }
                self.hosts[host.0].saved = Some(*set);
                self.take_orders(host, true);
                self.send_up(id, Up::Applied(results_in));
            }
            Down::Incremental { applies_to, results_in, change } => {
                let State::Open { have, .. } = &mut line.state else { return };
                if *have != Some(applies_to) {
                    *have = None;
                    self.send_up(id, Up::Resync);
                    return;
                }
                *have = Some(results_in);
                if let Some(set) = &mut self.hosts[host.0].saved {
                    set.apply(*change);
                }
                self.take_orders(host, true);
                self.send_up(id, Up::Applied(results_in));
            }
            Down::Elsewhere(leader) => self.line_ended(host, Ended::Elsewhere(leader)),
            Down::Closed => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.manager_open = false;
                }
                let opening = self.line(host).is_some_and(|l| !l.is_open());
                if self.trace_on {
                    self.tell(Detail::Step, format!("{host}: the manager closed the session"));
                }
                self.line_ended(host, if opening { Ended::Refused } else { Ended::Broken });
            }
        }
    }
}
