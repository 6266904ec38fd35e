//! What nodes are asked for on behalf of somebody who waits: the logs of their tasks, and connections to their engines. A node
//! is told a number and comes back with it on a stream of its own.

use std::collections::BTreeMap;

use skep_model::{NodeId, TaskId};
use skep_store::View;
use tokio::sync::mpsc;
use tonic::metadata::{Ascii, MetadataValue};

use super::session::Session;
use crate::facade::LogRequest;
use crate::transport::message::{Down, LogPart, LogSubscription};
use crate::transport::proto::Envelope;

/// Where the lines of a log subscription go.
pub(crate) type LogSink = mpsc::Sender<LogPart>;

/// This end of a connection to a node: what goes to it, and where what it says goes.
pub(crate) struct Ends {
    pub(crate) to_node: mpsc::Receiver<Envelope>,
    pub(crate) from_node: mpsc::Sender<Envelope>,
    /// The node may call another manager instead: the header that tells it whom.
    pub(crate) direct: Option<MetadataValue<Ascii>>,
}

/// What a node that comes with its number is told.
pub(crate) enum Reached {
    Here(Ends),
    /// To call there; it may come back.
    Elsewhere(MetadataValue<Ascii>),
}

#[derive(Default)]
pub(super) struct Errands {
    next: u64,
    subscriptions: BTreeMap<u64, (NodeId, LogSink)>,
    connections: BTreeMap<u64, (NodeId, Ends)>,
}

impl Errands {
    fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// Forgets what nobody waits for any more, and what was asked of a node that is gone.
    pub(super) fn retain(&mut self, sessions: &BTreeMap<NodeId, Session>) {
        self.connections.retain(|_, (node, ends)| !ends.from_node.is_closed() && sessions.contains_key(node));
        self.subscriptions.retain(|_, (node, sink)| !sink.is_closed() && sessions.contains_key(node));
    }

    /// Asks the tasks' nodes for their lines; of a node without a session the sink is told at once.
    pub(super) fn subscribe(
        &mut self,
        view: &View,
        sessions: &BTreeMap<NodeId, Session>,
        tasks: &[TaskId],
        request: &LogRequest,
        sink: &LogSink,
    ) {
        let mut by_node: BTreeMap<NodeId, Vec<TaskId>> = BTreeMap::new();
        for task in tasks.iter().filter_map(|id| view.task(id)) {
            if let Some(node_id) = &task.node_id {
                by_node.entry(node_id.clone()).or_default().push(task.id.clone());
            }
        }
        for (node_id, tasks) in by_node {
            let id = self.number();
            let subscription = LogSubscription { id, tasks: tasks.clone(), request: request.clone() };
            if sessions.get(&node_id).is_some_and(|s| s.send(&Down::Subscribe(subscription))) {
                self.subscriptions.insert(id, (node_id, sink.clone()));
                continue;
            }
            for task_id in tasks {
                let error = Some(format!("node {node_id} is not available"));
                let _ = sink.try_send(LogPart::Ended { task_id, error });
            }
        }
    }

    /// The sink of a subscription that was sent to this node.
    pub(super) fn sink(&mut self, id: u64, node_id: &NodeId) -> Option<LogSink> {
        taken(&mut self.subscriptions, id, node_id)
    }

    /// Whether the node could be asked for a connection.
    pub(super) fn reach(&mut self, sessions: &BTreeMap<NodeId, Session>, node_id: NodeId, ends: Ends) -> bool {
        let id = self.number();
        let told = sessions.get(&node_id).is_some_and(|s| s.send(&Down::Reach(id)));
        if told {
            self.connections.insert(id, (node_id, ends));
        }
        told
    }

    /// What the connection this node was asked for is connected with; it may prefer to call who wants it.
    pub(super) fn connection(&mut self, id: u64, node_id: &NodeId, directly: bool) -> Option<Reached> {
        let errand = self.connections.get(&id).filter(|(asked, _)| directly && asked == node_id);
        if let Some(direct) = errand.and_then(|(_, ends)| ends.direct.clone()) {
            return Some(Reached::Elsewhere(direct));
        }
        taken(&mut self.connections, id, node_id).map(Reached::Here)
    }
}

/// Only the node that was asked may come with the number.
fn taken<T>(errands: &mut BTreeMap<u64, (NodeId, T)>, id: u64, node_id: &NodeId) -> Option<T> {
    let its_own = errands.get(&id).is_some_and(|(asked, _)| asked == node_id);
    its_own.then(|| errands.remove(&id)).flatten().map(|(_, errand)| errand)
}
