//! Who has been heard of, and when silence is long enough. The leader's own memory on purpose: a new leader starts every node
//! with a full timeout, so that no node is given up for a silence it was not heard in.

use std::collections::BTreeMap;
use std::time::Duration;

use skep_model::node::NodeState;
use skep_model::{NodeId, Timestamp};
use skep_store::{Change, View};

use crate::membership;

#[derive(Clone, Debug)]
pub struct Liveness {
    began: Timestamp,
    heard: BTreeMap<NodeId, Timestamp>,
    timeout: Duration,
    /// How long after the beginning of the term a node may take to find the new leader.
    grace: Duration,
}

impl Liveness {
    pub fn new(began: Timestamp, timeout: Duration, grace: Duration) -> Self {
        Self { began, heard: BTreeMap::new(), timeout, grace }
    }

    /// A heartbeat, a report, anything.
    pub fn heard(&mut self, node: &NodeId, now: Timestamp) {
        self.heard.insert(node.clone(), now);
    }

    /// Forget a node that was removed.
    pub fn forget(&mut self, node: &NodeId) {
        self.heard.remove(node);
    }

    fn deadline(&self, node: &NodeId) -> Timestamp {
        match self.heard.get(node) {
            Some(heard) => heard.plus(self.timeout),
            None => self.began.plus(self.timeout.max(self.grace)),
        }
    }

    /// Changes that mark down those silent too long, and when to ask again.
    pub fn expire(&self, view: &View, now: Timestamp) -> (Vec<Change>, Option<Timestamp>) {
        let (mut changes, mut next) = (Vec::new(), None::<Timestamp>);
        for node in view.nodes() {
            let waits_for = match node.status.state {
                NodeState::Down => continue,
                // It never had a session; nothing runs there.
                NodeState::Unknown
                    if !self.heard.contains_key(&node.id) && view.tasks_of_node(&node.id).next().is_none() =>
                {
                    continue;
                }
                NodeState::Unknown | NodeState::Ready | NodeState::Disconnected => self.deadline(&node.id),
            };
            if waits_for <= now {
                changes.extend(membership::down(view, &node.id, "heartbeat failure", now));
            } else {
                next = Some(next.map_or(waits_for, |n| n.min(waits_for)));
            }
        }
        (changes, next)
    }
}
