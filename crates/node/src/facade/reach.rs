//! Containers of tasks on other nodes: which node, and a connection to the API of its containers.

use std::sync::Arc;
use std::time::Duration;

use skep_model::NodeId;
use skep_model::node::NodeState;
use skep_model::task::{Task, TaskState};
use skep_store::{SlotKey, View};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;

use super::Node;
use crate::error::{NodeError, Result};
use crate::manager::{Ends, Manager};
use crate::transport::pack;
use crate::transport::proto::Envelope;
use crate::transport::splice::{DIRECT_HEADER, Direct, IN_FLIGHT, splice};

/// A node that has not answered by then does not.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const BUFFER: usize = 64 * 1024;

/// The container of a task, on another node than this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteContainer {
    pub node_id: NodeId,
    pub container_id: String,
}

impl Node {
    /// A task's container on another node, by its id (or the beginning of it), by its name `web.1.<task>`, or `web.1` for the
    /// one that runs there; `tasks` adds the ids of tasks. `None` on a node that is no manager, and for what is not known.
    pub fn remote_container(&self, reference: &str, tasks: bool) -> Result<Option<RemoteContainer>> {
        let Ok(manager) = self.inner.manager() else { return Ok(None) };
        let view = manager.view();
        let Some(task) = find(&view, reference, tasks)? else { return Ok(None) };
        let (Some(node_id), Some(container)) = (&task.node_id, &task.status.container) else { return Ok(None) };
        if Some(node_id) == self.info().node_id.as_ref() {
            return Ok(None);
        }
        Ok(Some(RemoteContainer { node_id: node_id.clone(), container_id: container.container_id.clone() }))
    }

    /// A connection on which that node answers HTTP about the containers of its tasks.
    pub async fn reach(&self, node_id: &NodeId) -> Result<DuplexStream> {
        let manager = self.inner.manager()?;
        let view = manager.view();
        let node = view.node(node_id);
        let name = node.map_or_else(|| node_id.to_string(), |n| format!("{} ({node_id})", n.description.hostname));
        let gone = |what: &str| NodeError::Unreachable(format!("node {name} {what}: its containers cannot be reached"));
        match node.map(|n| n.status.state) {
            None => return Err(gone("was removed")),
            Some(NodeState::Down) => return Err(gone("is down")),
            Some(NodeState::Ready | NodeState::Unknown | NodeState::Disconnected) => {}
        }
        // After a change of leaders nodes are without a session for a moment.
        let mut why = "does not answer";
        let connected = async {
            loop {
                match connect(&manager, node_id).await {
                    Some(connection) => return connection,
                    None => why = "is not connected to the leader",
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        let connected = tokio::time::timeout(PATIENCE, connected).await;
        connected.map_err(|_| gone(why))
    }
}

fn find<'v>(view: &'v View, reference: &str, tasks: bool) -> Result<Option<&'v Arc<Task>>> {
    if let Some((name, last)) = reference.rsplit_once('.') {
        let named = last.parse().ok().and_then(|id| view.task(&id)).filter(|task| task.name() == reference);
        if named.is_some() {
            return Ok(named);
        }
        let slot = last.parse().ok().map(SlotKey::Slot).zip(view.find_service(name).ok());
        let runs = |t: &&Arc<Task>| t.is_live() && t.status.state == TaskState::Running;
        return Ok(slot.and_then(|(slot, service)| {
            view.tasks_of_slot(&service.id, &slot).filter(runs).max_by_key(|t| t.meta.created_at)
        }));
    }
    if tasks && let Some(task) = reference.parse().ok().and_then(|id| view.task(&id)) {
        return Ok(Some(task));
    }
    if reference.is_empty() || !reference.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(None);
    }
    let has = |t: &&Arc<Task>| t.status.container.as_ref().is_some_and(|c| c.container_id.starts_with(reference));
    let mut found = view.tasks().filter(has);
    match (found.next(), found.next()) {
        (Some(_), Some(_)) => {
            Err(NodeError::BadRequest(format!("Multiple IDs found with provided prefix: {reference}")))
        }
        (found, _) => Ok(found),
    }
}

/// Asks over the leader, who has the node's session. `None` if it has not.
async fn connect(manager: &Manager, node_id: &NodeId) -> Option<DuplexStream> {
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    let (outgoing, to_node) = mpsc::channel::<Envelope>(IN_FLIGHT);
    let (from_node, mut incoming) = mpsc::channel(IN_FLIGHT);
    let ends = Ends { to_node, from_node, direct: None };
    if let Some(dispatcher) = manager.dispatcher() {
        if !dispatcher.reach(node_id.clone(), ends).await {
            return None;
        }
        incoming.recv().await?;
        tokio::spawn(splice(theirs, ReceiverStream::new(incoming), outgoing));
        return Some(ours);
    }
    let expected = manager.calls().expect(node_id.clone(), ends);
    let direct = Direct { address: manager.address().to_string(), ticket: expected.ticket };
    let (by_leader, pieces) = mpsc::channel::<Envelope>(IN_FLIGHT);
    by_leader.send(pack(node_id)).await.ok()?;
    let mut request = Request::new(ReceiverStream::new(pieces));
    request.metadata_mut().insert(DIRECT_HEADER, direct.to_string().parse().ok()?);
    let call = manager.leader_connection()?.control().reach(request).await;
    let mut from_leader = call.ok()?.into_inner();
    // The node calls here, or the leader if it cannot; not both.
    tokio::select! {
        Some(_) = incoming.recv() => drop(tokio::spawn(splice(theirs, ReceiverStream::new(incoming), outgoing))),
        Some(Ok(_)) = from_leader.next() => {
            drop(tokio::spawn(splice(theirs, from_leader.map_while(std::result::Result::ok), by_leader)));
        }
        else => return None,
    }
    Some(ours)
}
