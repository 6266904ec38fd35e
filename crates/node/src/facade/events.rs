//! Docker's swarm events, made from what the store reports.

use std::collections::BTreeMap;

use skep_model::Timestamp;
use skep_store::{Action, ObjectKind};
use tokio::sync::broadcast;

use super::Node;

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

/// One line of `docker events --filter scope=swarm`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwarmEvent {
    pub kind: EventKind,
    pub action: EventAction,
    pub id: String,
    /// `name`, and what changed: `replicas.old`, `replicas.new`, `state.new`, …
    pub attributes: BTreeMap<String, String>,
    pub at: Timestamp,
}

impl SwarmEvent {
    /// `None` for what Docker does not tell of.
    pub(crate) fn from_store(event: &skep_store::Event) -> Option<Self> {
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
        Some(Self { kind, action, id: event.id(), attributes: event.attributes(), at: event.at })
    }
}

impl Node {
    /// Events from now on. Silent while this node is not a manager, and goes on through leaving and joining.
    pub fn subscribe(&self) -> broadcast::Receiver<SwarmEvent> {
        self.inner.events.subscribe()
    }
}
