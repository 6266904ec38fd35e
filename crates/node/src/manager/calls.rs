//! Connections to nodes that are asked for here while another manager leads. The leader only passes the request on: the node
//! calls this manager itself, so that what is said does not end with the leader.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use skep_model::NodeId;

use super::dispatcher::Ends;

#[derive(Default)]
pub(crate) struct Calls(Mutex<BTreeMap<u64, (NodeId, Ends)>>);

/// While it lives, the node may call.
pub(crate) struct Expected<'c> {
    calls: &'c Calls,
    /// Not to be guessed, nor one of an earlier life of this daemon.
    pub(crate) ticket: u64,
}

impl Calls {
    pub(crate) fn expect(&self, node_id: NodeId, ends: Ends) -> Expected<'_> {
        let ticket = rand::random();
        self.waiting().insert(ticket, (node_id, ends));
        Expected { calls: self, ticket }
    }

    /// What the call of this node is connected with.
    pub(super) fn answered(&self, ticket: u64, node_id: &NodeId) -> Option<Ends> {
        let mut waiting = self.waiting();
        let its_own = waiting.get(&ticket).is_some_and(|(asked, _)| asked == node_id);
        its_own.then(|| waiting.remove(&ticket)).flatten().map(|(_, ends)| ends)
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<u64, (NodeId, Ends)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.calls.waiting().remove(&self.ticket);
    }
}
