//! An address for a container that is no task, on an attachable network: given when it asks, not by the leader's loop.

use std::net::Ipv4Addr;

use skep_model::network::{Attachment, Network};
use skep_model::{ContainerId, NetworkId, NodeId};
use skep_store::{Change, LookupError, View};

use super::service;

/// What a container asks for.
#[derive(Clone, Debug)]
pub struct AttachmentRequest<'a> {
    /// Name, id or beginning of an id.
    pub network: &'a str,
    pub container_id: &'a ContainerId,
    pub node_id: &'a NodeId,
    /// What it is to answer to, its own name first.
    pub names: &'a [String],
    /// `--ip`, or the address it has; on a node-local network its host sees to it.
    pub address: Option<Ipv4Addr>,
}

/// Why it cannot be had, in swarmkit's words where it has some.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unattachable {
    #[error(transparent)]
    Unknown(#[from] LookupError),
    #[error("network {0} not manually attachable")]
    NotAttachable(String),
    /// The network was made a moment ago: its subnet is still to come.
    #[error("network {0} has no subnet yet")]
    Unallocated(String),
    #[error("{0}")]
    NoAddress(String),
}

/// Where the container is or will be, and what makes it so if something has to.
pub fn attach(
    view: &View,
    request: &AttachmentRequest<'_>,
) -> Result<(NetworkId, Option<Ipv4Addr>, Option<Change>), Unattachable> {
    let network = view.find_network(request.network)?;
    if !network.spec.attachable {
        return Err(Unattachable::NotAttachable(network.spec.name.clone()));
    }
    let there = network.attachments.get(request.container_id);
    let address = match (request.address, there.and_then(|there| there.address)) {
        (wanted, there) if network.spec.is_node_local() => wanted.or(there),
        (Some(wanted), _) => Some(wanted_address(view, network, request.container_id, wanted)?),
        (None, Some(there)) => Some(there),
        (None, None) if network.allocation.is_none() => {
            return Err(Unattachable::Unallocated(network.spec.name.clone()));
        }
        (None, None) => Some(service::fresh(view, network).map_err(Unattachable::NoAddress)?.addr()),
    };
    let attachment = Attachment { node_id: request.node_id.clone(), address, names: request.names.to_vec() };
    let change = (there != Some(&attachment)).then(|| Change::AttachContainer {
        network_id: network.id.clone(),
        container_id: request.container_id.clone(),
        attachment,
    });
    Ok((network.id.clone(), address, change))
}

fn wanted_address(
    view: &View,
    network: &Network,
    container: &ContainerId,
    wanted: Ipv4Addr,
) -> Result<Ipv4Addr, Unattachable> {
    let name = &network.spec.name;
    let allocation = network.allocation.as_ref().ok_or_else(|| Unattachable::Unallocated(name.clone()))?;
    let refused = |reason: &str| Err(Unattachable::NoAddress(format!("{wanted} on network {name} {reason}")));
    if !allocation.subnet.contains(&wanted) {
        return refused(&format!("is not in its subnet {}", allocation.subnet));
    }
    let ends = [allocation.subnet.network(), allocation.subnet.broadcast()];
    if !network.gives(wanted) || ends.contains(&wanted) {
        return refused("is not for containers");
    }
    let own = network.attachments.get(container).is_some_and(|there| there.address == Some(wanted));
    let taken = !own && view.addresses(&network.id).is_some_and(|held| held.owner(wanted).is_some());
    if taken { refused("is already in use") } else { Ok(wanted) }
}
