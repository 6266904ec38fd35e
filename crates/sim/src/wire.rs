//! What goes over a session, and how: an ordered stream each way, as TCP gives it. A message on a wire that is cut waits and
//! is sent again; it is lost only with its stream.

use std::collections::VecDeque;
use std::time::Duration;

use skep_model::assignment::{AssignmentChange, AssignmentSet, TaskReport};
use skep_model::node::Role;

use crate::HostId;
use crate::world::{Event, World};

/// How soon TCP sends again what was not acknowledged.
const RESEND: Duration = Duration::from_millis(200);

/// Agent to leader.
#[derive(Clone, Debug)]
pub(crate) enum Up {
    /// With the role its certificate has.
    Hello(Role),
    /// When it was sent, by the clock of the host's boot.
    Heartbeat {
        sent: Duration,
    },
    Reports(Vec<TaskReport>),
    /// Balancers are as this message said.
    Applied(u64),
    Resync,
    Closed,
}

/// Leader to agent.
#[derive(Clone, Debug)]
pub(crate) enum Down {
    Welcome(Vec<HostId>),
    /// When the heartbeat it answers was sent.
    Heartbeat {
        sent: Duration,
    },
    Managers(Vec<HostId>),
    /// The role it should have.
    Role(Role),
    Complete {
        results_in: u64,
        set: Box<AssignmentSet>,
    },
    Incremental {
        applies_to: u64,
        results_in: u64,
        change: Box<AssignmentChange>,
    },
    /// It does not lead, but perhaps knows who does.
    Elsewhere(Option<HostId>),
    Closed,
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Up,
    Down,
}

#[derive(Clone, Debug)]
pub(crate) enum Message {
    Up(Up),
    Down(Down),
}

/// One way of a stream.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    queue: VecDeque<(Duration, Message)>,
    scheduled: bool,
}

/// One session's stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) agent: HostId,
    pub(crate) manager: HostId,
    up: Pipe,
    down: Pipe,
    /// Whose process still holds it.
    pub(crate) agent_open: bool,
    pub(crate) manager_open: bool,
}

impl Stream {
    pub(crate) fn new(agent: HostId, manager: HostId) -> Self {
        let (up, down) = (Pipe::default(), Pipe::default());
        Self { agent, manager, up, down, agent_open: true, manager_open: true }
    }

    fn pipe(&mut self, way: Way) -> &mut Pipe {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }

    fn ends(&self, way: Way) -> (HostId, HostId) {
        match way {
            Way::Up => (self.agent, self.manager),
            Way::Down => (self.manager, self.agent),
        }
    }
}

impl World {
    pub(crate) fn send_up(&mut self, stream: u64, message: Up) {
        self.push(stream, Way::Up, Message::Up(message));
    }

    pub(crate) fn send_down(&mut self, stream: u64, message: Down) {
        self.push(stream, Way::Down, Message::Down(message));
    }

    fn push(&mut self, id: u64, way: Way, message: Message) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let (from, to) = stream.ends(way);
        let delay = self.net.delay(from, to, &mut self.dice.wire);
        let pipe = stream.pipe(way);
        let ready = self.now + delay;
        pipe.queue.push_back((ready, message));
        if !std::mem::replace(&mut pipe.scheduled, true) {
            self.at(ready, Event::Stream { id, way });
        }
    }

    /// The first message of a pipe is there, or its wire is cut.
    pub(crate) fn stream_due(&mut self, id: u64, way: Way) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let (from, to) = stream.ends(way);
        let lost = self.net.loses(from, to, &mut self.dice.wire);
        if lost
            || !self.net.is_open(from, to)
            || !self.hosts[to.0].has_power
            || self.hosts[to.0].frozen_until > self.now
        {
            // What a frozen process does not read waits in its kernel.
            let thaws = self.hosts[to.0].frozen_until.saturating_sub(self.now);
            self.at(self.now + RESEND.max(thaws), Event::Stream { id, way });
            return;
        }
        let pipe = stream.pipe(way);
        let Some((_, message)) = pipe.queue.pop_front() else { return };
        match pipe.queue.front() {
            Some((ready, _)) => {
                let ready = (*ready).max(self.now);
                self.at(ready, Event::Stream { id, way });
            }
            None => pipe.scheduled = false,
        }
        match message {
            Message::Up(message) => self.manager_hears(id, message),
            Message::Down(message) => self.agent_hears(id, message),
        }
    }

    /// The agent's process, or its session, lets go of a stream.
    pub(crate) fn agent_closes(&mut self, id: u64) {
        // A connection that was never made leaves nothing on its way.
        let unmade = |s: &Stream| {
            let hello = s.up.queue.front().is_some_and(|(_, m)| matches!(m, Message::Up(Up::Hello(_))));
            hello && !self.net.is_open(s.agent, s.manager)
        };
        if self.streams.get(&id).is_some_and(unmade) {
            self.streams.remove(&id);
            return;
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.agent_open = false;
            if stream.manager_open {
                self.send_up(id, Up::Closed);
            } else {
                self.streams.remove(&id);
            }
        }
    }

    pub(crate) fn manager_closes(&mut self, id: u64) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.manager_open = false;
            if stream.agent_open {
                self.send_down(id, Down::Closed);
            } else {
                self.streams.remove(&id);
            }
        }
    }
}
