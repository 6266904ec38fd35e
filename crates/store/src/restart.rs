//! How often the tasks of a slot were restarted, and where a service's tasks failed: stored, because a leader change must
//! reset neither a restart policy nor what was learned about a node.

use serde::{Deserialize, Serialize};
use skep_model::task::Task;
use skep_model::{NodeId, ServiceId, Timestamp};

/// A replicated service's slot, or a global service's node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SlotKey {
    Slot(u64),
    Node(NodeId),
}

impl SlotKey {
    /// `None` for a global task without a node, which cannot be.
    pub fn of(task: &Task) -> Option<Self> {
        match (task.slot, &task.node_id) {
            (Some(slot), _) => Some(Self::Slot(slot)),
            (None, Some(node)) => Some(Self::Node(node.clone())),
            (None, None) => None,
        }
    }
}

/// Restarts of one slot since its template last changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestartRecord {
    /// Another version starts a new count.
    pub spec_version: u64,
    pub total: u64,
    /// The most recent, oldest first; at most a hundred.
    pub recent: Vec<Timestamp>,
}

/// A window longer than so many restarts counts no further back.
pub(crate) const RECENT_LIMIT: usize = 100;

impl RestartRecord {
    pub(crate) fn count(&mut self, spec_version: u64, at: Timestamp) {
        if self.spec_version != spec_version {
            *self = Self { spec_version, ..Self::default() };
        }
        self.total += 1;
        self.recent.push(at);
        if self.recent.len() > RECENT_LIMIT {
            self.recent.remove(0);
        }
    }
}

/// Where tasks of a service failed of late: a node they fail on is tried last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FailureRecord {
    /// Another version starts a new count.
    pub spec_version: u64,
    /// The most recent, oldest first; at most a hundred.
    pub recent: Vec<(NodeId, Timestamp)>,
}

impl FailureRecord {
    pub(crate) fn count(&mut self, spec_version: u64, node: &NodeId, at: Timestamp) {
        if self.spec_version != spec_version {
            *self = Self { spec_version, ..Self::default() };
        }
        self.recent.push((node.clone(), at));
        if self.recent.len() > RECENT_LIMIT {
            self.recent.remove(0);
        }
    }
}

pub(crate) type RestartKey = (ServiceId, SlotKey);
