//! Containers that are no tasks on networks of the swarm (`docker run --network`), on any node.
//!
//! Before such a container starts or is connected, the leader is asked for its address ([`Member::attach`]); the network
//! itself comes with the assignments, as for a task. From then on [`keep`] sees to it that what the swarm knows of this
//! host's containers is what they are: what is gone is detached, whatever this daemon lived through meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use skep_model::assignment::AssignmentSet;
use skep_model::network::Attachment;
use skep_model::{ContainerId, NetworkId, NodeId};
use tonic::Code;

use crate::agent_loop::LEADER_HEADER;
use crate::error::{Kind, NodeError, Result};
use crate::host::NetSandboxes;
use crate::member::Member;
use crate::transport::message::{AttachCall, AttachedAt, DetachCall};
use crate::transport::proto::Envelope;
use crate::transport::{Connection, pack, unpack};

/// How long a container waits for an answer of the swarm (moby's `swarmRequestTimeout`).
pub(crate) const ATTACH_DEADLINE: Duration = Duration::from_secs(20);
/// One manager that does not answer must not use all of it up.
const CALL_DEADLINE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// What could not be told to a leader is told again after this.
const RETRY: Duration = Duration::from_secs(5);

type Key = (NetworkId, ContainerId);

#[derive(Clone, Copy)]
enum Call {
    Attach,
    Detach,
}

impl Member {
    pub(crate) async fn attach(&self, call: &AttachCall) -> Result<AttachedAt> {
        let reply = self.ask_leader(Call::Attach, &pack(call)).await?;
        unpack(&reply).map_err(|status| NodeError::Internal(status.to_string()))
    }

    async fn detach(&self, network_id: NetworkId, container_id: ContainerId) -> Result<()> {
        self.ask_leader(Call::Detach, &pack(&DetachCall { network_id, container_id })).await.map(drop)
    }

    /// Whoever leads, found by asking the managers this node knows; until there is an answer, or time is up.
    async fn ask_leader(&self, call: Call, message: &Envelope) -> Result<Envelope> {
        let mut last = NodeError::NoLeader(String::new());
        let asked = async {
            let mut queue = self.manager_addresses();
            loop {
                let Some(address) = queue.pop() else {
                    tokio::time::sleep(LOOK_AGAIN).await;
                    queue = self.manager_addresses();
                    continue;
                };
                let connection = Connection::lazy(&address, self.tls())?;
                let mut request = tonic::Request::new(message.clone());
                request.set_timeout(CALL_DEADLINE);
                let mut dispatcher = connection.dispatcher();
                let reply = match call {
                    Call::Attach => dispatcher.attach(request).await,
                    Call::Detach => dispatcher.detach(request).await,
                };
                let status = match reply {
                    Ok(reply) => return Ok(reply.into_inner()),
                    Err(status) => status,
                };
                let refused = |code, kind| Err(NodeError::Refused { code, text: status.message().to_owned(), kind });
                match status.code() {
                    Code::NotFound => return refused("NotFound", Kind::NotFound),
                    Code::PermissionDenied => return refused("PermissionDenied", Kind::Forbidden),
                    Code::InvalidArgument => return refused("InvalidArgument", Kind::Invalid),
                    Code::ResourceExhausted => return refused("ResourceExhausted", Kind::Conflict),
                    _ => {}
                }
                if let Some(leader) = status.metadata().get(LEADER_HEADER) {
                    queue.extend(leader.to_str().ok().map(str::to_owned));
                }
                last = NodeError::Unreachable(status.message().to_owned());
            }
        };
        match tokio::time::timeout(ATTACH_DEADLINE, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(last),
        }
    }
}

/// Until the member stops.
pub(crate) async fn keep(sandboxes: NetSandboxes, member: Arc<Member>) {
    let mut orders = member.orders();
    let own = member.node_id();
    loop {
        // What is only remembered from an earlier run may be long out of date.
        let fresh = orders.borrow_and_update().clone().filter(|orders| orders.fresh);
        let told = match fresh {
            Some(orders) => settle(&sandboxes, &member, &known(&orders.set, &own)).await,
            None => true,
        };
        tokio::select! {
            changed = orders.changed() => if changed.is_err() { return },
            () = sandboxes.changed() => {}
            () = tokio::time::sleep(RETRY), if !told => {}
        }
    }
}

/// What the swarm knows of this node's containers.
fn known(set: &AssignmentSet, own: &NodeId) -> BTreeMap<Key, Attachment> {
    let mut known = BTreeMap::new();
    for (id, network) in &set.networks {
        for (container, attachment) in network.attachments.iter().filter(|(_, a)| a.node_id == *own) {
            known.insert((id.clone(), container.clone()), attachment.clone());
        }
    }
    known
}

/// Tells the swarm what it has wrong. False if that did not all go through.
async fn settle(sandboxes: &NetSandboxes, member: &Member, known: &BTreeMap<Key, Attachment>) -> bool {
    let mut all = true;
    let mut left = Vec::new();
    for (key @ (network_id, container_id), attachment) in known {
        // One that is being started has its address before it has its place.
        let Some(turn) = sandboxes.try_turn(container_id) else { continue };
        if sandboxes.attached().contains_key(key) {
            continue;
        }
        match member.detach(network_id.clone(), container_id.clone()).await {
            Ok(()) => left.push((turn, network_id, attachment.address)),
            Err(error) => {
                tracing::debug!(%error, container.id = %container_id, "a container that is gone is still on a network");
                all = false;
            }
        }
    }
    // One that starts again with the same address is not to be put on a network that the next plan takes away.
    let in_force = async {
        for (_turn, network_id, address) in left {
            if let Some(address) = address {
                sandboxes.net().without(network_id, address).await;
            }
        }
    };
    let _ = tokio::time::timeout(CALL_DEADLINE, in_force).await;
    for ((network_id, container_id), (address, names)) in sandboxes.attached() {
        let Some(_turn) = sandboxes.try_turn(&container_id) else { continue };
        let same = |there: &Attachment| there.address == Some(address) && there.names == names;
        if known.get(&(network_id.clone(), container_id.clone())).is_some_and(same) {
            continue;
        }
        let call = AttachCall {
            network: network_id.to_string(),
            container_id: container_id.clone(),
            names,
            address: Some(address),
            address6: None,
        };
        if let Err(error) = member.attach(&call).await {
            tracing::warn!(%error, container.id = %container_id, %address, "the swarm does not know a container's address");
            all = false;
        }
    }
    all
}
