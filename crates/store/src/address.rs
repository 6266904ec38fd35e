//! Who holds which address on which network: an index over tasks, services, nodes and attached containers, kept so that apply can refuse to give
//! one address to two, and a cursor per network so that a freed address is not the next one given.

use std::net::Ipv4Addr;

use imbl::OrdMap;
use serde::{Deserialize, Serialize};
use skep_model::{ContainerId, NodeId, ServiceId, TaskId};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum AddressOwner {
    /// A VIP.
    Service(ServiceId),
    Task(TaskId),
    /// A node's own leg (ingress).
    Node(NodeId),
    /// A container that is no task.
    Container(ContainerId),
}

/// The addresses of one network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Addresses {
    pub(crate) held: OrdMap<Ipv4Addr, AddressOwner>,
    pub(crate) cursor: Option<Ipv4Addr>,
}

impl Addresses {
    pub fn owner(&self, address: Ipv4Addr) -> Option<&AddressOwner> {
        self.held.get(&address)
    }

    pub fn iter(&self) -> impl Iterator<Item = (Ipv4Addr, &AddressOwner)> {
        self.held.iter().map(|(a, o)| (*a, o))
    }

    pub fn len(&self) -> usize {
        self.held.len()
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The address given last; the next is looked for after it.
    pub fn cursor(&self) -> Option<Ipv4Addr> {
        self.cursor
    }
}
