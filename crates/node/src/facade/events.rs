//! Docker's swarm events, made from what the store reports.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use skep_model::Timestamp;
use skep_store::{Action, ObjectKind};
use tokio::sync::broadcast;

use super::Node;
use crate::error::{NodeError, Result};

/// Events a client may be behind when it takes up again, or a listener while it reads.
const KEPT: usize = 4096;

/// Docker's event `Type`s of scope `swarm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    Service,
    Node,
    Network,
    Secret,
    Config,
}

impl EventKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Node => "node",
            Self::Network => "network",
            Self::Secret => "secret",
            Self::Config => "config",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventAction {
    Create,
    Update,
    Remove,
}

impl EventAction {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Remove => "remove",
        }
    }
}

/// Where in the log an event is: the same on every manager, so that a client can take up at any of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventCursor {
    /// Of the log entry.
    pub index: u64,
    /// Which of its events.
    pub nth: u32,
}

impl fmt::Display for EventCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.nth)
    }
}

impl FromStr for EventCursor {
    type Err = NodeError;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once('.').and_then(|(index, nth)| Some((index.parse().ok()?, nth.parse().ok()?)));
        let (index, nth) = parts.ok_or_else(|| NodeError::BadRequest(format!("invalid cursor: {text:?}")))?;
        Ok(Self { index, nth })
    }
}

/// One line of `docker events --filter scope=swarm`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwarmEvent {
    pub kind: EventKind,
    pub action: EventAction,
    pub id: String,
    /// `name`, and what changed: `replicas.old`, `replicas.new`, `state.new`, …
    pub attributes: BTreeMap<String, String>,
    pub at: Timestamp,
    /// Of what only this manager sees, who leads and who is reached, that of the event before.
    pub cursor: EventCursor,
}

impl SwarmEvent {
    /// `None` for what Docker does not tell of.
    fn from_store(event: &skep_store::Event, cursor: EventCursor) -> Option<Self> {
        if !event.is_public() {
            return None;
        }
        let kind = match event.kind() {
            ObjectKind::Node => EventKind::Node,
            ObjectKind::Service => EventKind::Service,
            ObjectKind::Network => EventKind::Network,
            ObjectKind::Secret => EventKind::Secret,
            ObjectKind::Config => EventKind::Config,
            ObjectKind::Cluster | ObjectKind::Task => return None,
        };
        let action = match event.action() {
            Action::Create => EventAction::Create,
            Action::Update => EventAction::Update,
            Action::Remove => EventAction::Remove,
        };
        Some(Self { kind, action, id: event.id(), attributes: event.attributes(), at: event.at, cursor })
    }
}

/// What a listener hears; `None` where some were missed, which is told once and ends what has a cursor.
pub type EventFeed = broadcast::Receiver<Option<SwarmEvent>>;

/// The last events of the swarm as this manager applied them.
pub(crate) struct EventLog {
    kept: Mutex<Kept>,
    sender: broadcast::Sender<Option<SwarmEvent>>,
}

#[derive(Default)]
struct Kept {
    events: VecDeque<SwarmEvent>,
    /// Every event after this one is kept or still to come.
    complete_after: EventCursor,
    last: EventCursor,
}

impl EventLog {
    pub(crate) fn new() -> Self {
        Self { kept: Mutex::default(), sender: broadcast::channel(KEPT).0 }
    }

    /// Nothing is known of what was before `index`, or of events up to it.
    pub(crate) fn begin_after(&self, index: u64) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let cursor = EventCursor { index, nth: u32::MAX };
        *kept = Kept { events: VecDeque::new(), complete_after: cursor, last: cursor };
        let _ = self.sender.send(None);
    }

    pub(crate) fn applied(&self, index: u64, events: &[skep_store::Event]) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for (nth, event) in (0..).zip(events) {
            let cursor = EventCursor { index, nth };
            let Some(event) = SwarmEvent::from_store(event, cursor) else { continue };
            kept.last = cursor;
            self.put(&mut kept, event);
        }
    }

    /// What is not in the log: who leads, who is reached.
    pub(crate) fn seen(&self, mut event: SwarmEvent) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        event.cursor = kept.last;
        self.put(&mut kept, event);
    }

    fn put(&self, kept: &mut Kept, event: SwarmEvent) {
        if kept.events.len() >= KEPT
            && let Some(oldest) = kept.events.pop_front()
        {
            kept.complete_after = kept.complete_after.max(oldest.cursor);
        }
        kept.events.push_back(event.clone());
        // Nobody listening is fine.
        let _ = self.sender.send(Some(event));
    }

    /// Past events as asked for, and those to come; none is in both, none in neither.
    fn subscribe(&self, from: EventsFrom) -> Result<(Vec<SwarmEvent>, EventFeed)> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let past = match from {
            EventsFrom::Now => Vec::new(),
            EventsFrom::Time(since) => kept.events.iter().filter(|e| e.at >= since).cloned().collect(),
            EventsFrom::Cursor(after) if after < kept.complete_after => {
                return Err(NodeError::Gone(format!(
                    "events after {after} are not all known to this manager, only those after {}: ask another manager, or list the objects and begin anew",
                    kept.complete_after
                )));
            }
            EventsFrom::Cursor(after) => kept.events.iter().filter(|e| e.cursor > after).cloned().collect(),
        };
        Ok((past, self.sender.subscribe()))
    }
}

/// Where a listener begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventsFrom {
    Now,
    /// The past too, as far as it is kept.
    Time(Timestamp),
    /// After this event, and an error if any may be missing.
    Cursor(EventCursor),
}

impl Node {
    /// The swarm's events. Silent while this node is not a manager, and goes on through leaving and joining.
    pub fn events(&self, from: EventsFrom) -> Result<(Vec<SwarmEvent>, EventFeed)> {
        self.inner.events.subscribe(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(name: &str) -> SwarmEvent {
        SwarmEvent {
            kind: EventKind::Node,
            action: EventAction::Update,
            id: name.into(),
            attributes: BTreeMap::new(),
            at: Timestamp::from_secs(1),
            cursor: EventCursor::default(),
        }
    }

    fn names(log: &EventLog, from: EventsFrom) -> Vec<String> {
        log.subscribe(from).unwrap().0.into_iter().map(|e| e.id).collect()
    }

    #[test]
    fn a_cursor_takes_up_where_it_was_and_says_if_it_cannot() {
        let log = EventLog::new();
        log.begin_after(10);
        let put = |index, nth, name: &str| {
            let mut kept = log.kept.lock().unwrap();
            kept.last = EventCursor { index, nth };
            log.put(&mut kept, SwarmEvent { cursor: EventCursor { index, nth }, ..seen(name) });
        };
        put(11, 0, "a");
        put(11, 2, "b");
        log.seen(seen("led"));
        put(14, 0, "c");
        let after = |text: &str| EventsFrom::Cursor(text.parse().unwrap());
        assert_eq!(names(&log, after("11.0")), ["b", "led", "c"]);
        assert_eq!(names(&log, after("11.2")), ["c"]);
        assert_eq!(names(&log, after("12.0")), ["c"]);
        assert_eq!(names(&log, EventsFrom::Now), [""; 0]);
        assert_eq!(names(&log, EventsFrom::Time(Timestamp::from_secs(1))).len(), 4);
        assert!(log.subscribe(after("9.0")).is_err());
        for n in 0..u32::try_from(KEPT).unwrap() {
            put(20, n, "many");
        }
        assert!(log.subscribe(after("11.2")).is_err(), "c is forgotten");
        assert_eq!(names(&log, after("14.0")).len(), KEPT);
        assert!("x".parse::<EventCursor>().is_err());
    }
}
