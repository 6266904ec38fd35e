//! An address for a container that is no task, on an attachable network: given when it asks, not by the leader's loop.

use std::net::{Ipv4Addr, Ipv6Addr};

use skep_model::network::{Attachment, Network};
use skep_model::{ContainerId, NetworkId, NodeId};
use skep_store::{Change, LookupError, View};

use super::{network, service};

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
    /// `--ip6`: asks for the IPv4 address that it goes with.
    pub address6: Option<Ipv6Addr>,
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
    /// No container of the network can ever have what is asked for.
    #[error("{0}")]
    Impossible(String),
}

/// Where the container will be, and what makes it so: also where it is there already, for it may be that a change that takes
/// it away is written and not in this view yet.
pub fn attach(
    view: &View,
    request: &AttachmentRequest<'_>,
) -> Result<(NetworkId, Option<Ipv4Addr>, Change), Unattachable> {
    let network = view.find_network(request.network)?;
    if !network.spec.attachable {
        return Err(Unattachable::NotAttachable(network.spec.name.clone()));
    }
    let there = network.attachments.get(request.container_id);
    let asked = match request.address6.filter(|_| !network.spec.is_node_local()) {
        Some(six) => Some((whose(view, network, six, request.address)?, six.to_string())),
        None => request.address.map(|address| (address, address.to_string())),
    };
    let address = match (asked, there.and_then(|there| there.address)) {
        (_, there) if network.spec.is_node_local() => request.address.or(there),
        (Some((wanted, text)), _) => Some(wanted_address(view, network, request.container_id, wanted, &text)?),
        (None, Some(there)) => Some(there),
        (None, None) if network.allocation.is_none() => {
            return Err(unallocated(view, network));
        }
        (None, None) => Some(service::fresh(view, network).map_err(Unattachable::NoAddress)?.addr()),
    };
    let attachment = Attachment { node_id: request.node_id.clone(), address, names: request.names.to_vec() };
    let change = Change::AttachContainer {
        network_id: network.id.clone(),
        container_id: request.container_id.clone(),
        attachment,
    };
    Ok((network.id.clone(), address, change))
}

fn unallocated(view: &View, network: &Network) -> Unattachable {
    match network::obstacle(view, network) {
        Some(text) => Unattachable::NoAddress(text),
        None => Unattachable::Unallocated(network.spec.name.clone()),
    }
}

/// Of which IPv4 address it is the IPv6 address; `four` is what is asked for besides.
fn whose(view: &View, network: &Network, six: Ipv6Addr, four: Option<Ipv4Addr>) -> Result<Ipv4Addr, Unattachable> {
    let name = &network.spec.name;
    let allocation = network.allocation.as_ref().ok_or_else(|| unallocated(view, network))?;
    let refused = |reason: String| Err(Unattachable::Impossible(format!("{six} on network {name} {reason}")));
    let Some(dual) = allocation.dual_stack() else { return refused("is not to be had: it has no IPv6".to_owned()) };
    if !dual.subnet6.contains(&six) {
        return refused(format!("is not in its subnet {}", dual.subnet6));
    }
    match (dual.four(six), four) {
        (None, _) => {
            let (first, last) = (dual.six(dual.subnet.network()), dual.six(dual.subnet.broadcast()));
            refused(format!("goes with no IPv4 address of {}: ask for one of {first} to {last}", dual.subnet))
        }
        (Some(own), Some(four)) if own != four => refused(format!("goes with {own}, not with {four}")),
        (Some(own), _) => Ok(own),
    }
}

/// `text` is how the user named it.
fn wanted_address(
    view: &View,
    network: &Network,
    container: &ContainerId,
    wanted: Ipv4Addr,
    text: &str,
) -> Result<Ipv4Addr, Unattachable> {
    let name = &network.spec.name;
    let allocation = network.allocation.as_ref().ok_or_else(|| unallocated(view, network))?;
    let refused = |reason: &str| Err(Unattachable::NoAddress(format!("{text} on network {name} {reason}")));
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
