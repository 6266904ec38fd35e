//! Containers that are no tasks and want to be on a network of the swarm: answered when it is committed.

use std::net::Ipv4Addr;
use std::time::Duration;

use skep_control::{AttachmentRequest, Unattachable};
use skep_model::network::NetworkSpec;
use skep_model::{NetworkId, NodeId};
use skep_store::{Batch, Change, LookupError, Refused, Request, View};
use tonic::Status;

use super::Manager;
use crate::clock::now;
use crate::error::NodeError;
use crate::transport::message::{AttachCall, AttachedAt, DetachCall};

const LOOK_AGAIN: Duration = Duration::from_millis(20);

impl Manager {
    /// For the leader. Asked again, it says the same.
    pub(crate) async fn attach(&self, node_id: &NodeId, call: &AttachCall) -> Result<AttachedAt, Status> {
        loop {
            let term = self.consensus.leadership().borrow().term;
            let view =
                self.consensus.linearizable_view().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let request = AttachmentRequest {
                network: &call.network,
                container_id: &call.container_id,
                node_id,
                names: &call.names,
                address: call.address,
                address6: call.address6,
            };
            let outcome = match skep_control::attach(&view, &request) {
                Err(error) => return Err(refusal(&error)),
                Ok((network_id, address, change)) => match self.settle(batch(&view, term, change)).await {
                    Ok(_) => Some(attached_at(&view, network_id, address)),
                    // Somebody else was given the address meanwhile, or leads.
                    Err(NodeError::Store(Refused::Stale(_) | Refused::TermMoved { .. })) => None,
                    Err(error) => return Err(Status::unavailable(error.to_string())),
                },
            };
            match outcome {
                Some(attached) => return Ok(attached),
                None => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// For the leader. What is not attached is none of the node's to detach.
    pub(super) async fn detach(&self, node_id: &NodeId, call: &DetachCall) -> Result<(), Status> {
        let term = self.consensus.leadership().borrow().term;
        let view = self.consensus.linearizable_view().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let there = view.network(&call.network_id).and_then(|network| network.attachments.get(&call.container_id));
        if there.is_none_or(|attachment| attachment.node_id != *node_id) {
            return Ok(());
        }
        let DetachCall { network_id, container_id } = call.clone();
        let change = Change::DetachContainer { network_id, container_id };
        self.settle(batch(&view, term, change)).await.map(drop).map_err(|error| Status::unavailable(error.to_string()))
    }
}

fn attached_at(view: &View, network_id: NetworkId, address: Option<Ipv4Addr>) -> AttachedAt {
    let spec = view.network(&network_id).map(|network| &network.spec);
    let made_from = spec.filter(|spec| spec.is_node_local()).map(NetworkSpec::on_host);
    AttachedAt { network_id, address, made_from }
}

/// Takes effect once, however often it is sent, and in no later term: by then the node has asked another leader, and may have
/// been told something else. Not put on record: nobody changed the swarm, a container came or went.
fn batch(view: &View, term: u64, change: Change) -> Batch {
    Batch::new(now(), vec![change]).in_term(term).named(Request { id: rand::random(), since: view.index() })
}

fn refusal(error: &Unattachable) -> Status {
    let text = error.to_string();
    match error {
        Unattachable::Unknown(LookupError::NotFound { .. }) => Status::not_found(text),
        Unattachable::Unknown(LookupError::Ambiguous { .. }) => Status::invalid_argument(text),
        Unattachable::Impossible(_) => Status::invalid_argument(text),
        Unattachable::NotAttachable(_) => Status::permission_denied(text),
        Unattachable::NoAddress(_) => Status::resource_exhausted(text),
        // Asked again, in a moment it may have one.
        Unattachable::Unallocated(_) => Status::unavailable(text),
    }
}
