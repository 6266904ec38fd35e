//! What happens to containers, images, volumes and networks, as `docker events` tells it.
//!
//! A broadcast for those who listen and a bounded ring for those who ask `since`. A slow listener loses the oldest events
//! and is told how many; nothing ever waits for a listener.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use skep_model::Timestamp;
use tokio::sync::broadcast;

/// Past events kept for `since` (moby `eventsLimit` is 256; swarms are chattier).
const RING: usize = 1024;

/// `Type` of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    Container,
    Image,
    Volume,
    Network,
    Daemon,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineEvent {
    pub kind: EventKind,
    /// `create`, `start`, `die`, `exec_start: sh`, `health_status: healthy`, `pull`, …
    pub action: String,
    pub actor_id: String,
    /// For containers: `name`, `image`, every label, and what the action adds (`exitCode`, `signal`, `execID`, …).
    pub attributes: BTreeMap<String, String>,
    pub time: Timestamp,
}

#[derive(Debug)]
pub struct EventBus {
    sender: broadcast::Sender<EngineEvent>,
    ring: Mutex<VecDeque<EngineEvent>>,
}

impl Default for EventBus {
    fn default() -> Self {
        Self { sender: broadcast::channel(RING).0, ring: Mutex::new(VecDeque::with_capacity(64)) }
    }
}

impl EventBus {
    pub fn emit(
        &self,
        kind: EventKind,
        action: impl Into<String>,
        actor_id: impl Into<String>,
        attributes: BTreeMap<String, String>,
    ) {
        let event = EngineEvent {
            kind,
            action: action.into(),
            actor_id: actor_id.into(),
            attributes,
            time: crate::sys::clock::now(),
        };
        self.publish(event);
    }

    pub fn publish(&self, event: EngineEvent) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.len() == RING {
            ring.pop_front();
        }
        ring.push_back(event.clone());
        // Sent under the lock, so that a subscriber sees each event in the ring or on the channel, and not in both.
        let _ = self.sender.send(event);
    }

    /// Past events not older than `since` (none if `None`), and the channel on which the next ones come.
    pub fn subscribe(&self, since: Option<Timestamp>) -> (Vec<EngineEvent>, broadcast::Receiver<EngineEvent>) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let past = since.map(|since| ring.iter().filter(|e| e.time >= since).cloned().collect()).unwrap_or_default();
        (past, self.sender.subscribe())
    }
}
