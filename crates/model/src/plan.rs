//! What a host's kernel should look like, as a value: `agent::dataplane` makes it, `net` makes it so.
//!
//! Applying a plan is idempotent; what is on the host and not in the plan (under our name prefix) is taken away.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::NetworkId;
use crate::dns::Zone;
use crate::network::{DualStack, NetworkKeys};
use crate::service::Protocol;

/// All of the swarm's kernel state on one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPlan {
    /// This host's underlay address: source of its VXLAN traffic.
    pub vtep: Option<Ipv4Addr>,
    /// UDP port of VXLAN.
    pub vxlan_port: u16,
    /// Underlay addresses of the other members.
    pub members: Vec<Ipv4Addr>,
    pub overlays: BTreeMap<NetworkId, OverlayPlan>,
    pub ingress: Option<IngressPlan>,
    /// Names on networks that the hosts make for themselves, as far as this host reaches who answers to them.
    pub zones: BTreeMap<NetworkId, Zone>,
}

/// One overlay network on this host: a bridge, and a VXLAN link or a sealed tunnel, in a namespace of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OverlayPlan {
    pub name: String,
    pub vni: u32,
    pub subnet: Option<Ipv4Net>,
    pub gateway: Option<Ipv4Addr>,
    /// On a network with IPv6: which addresses go with the IPv4 ones that the rest of the plan is made of.
    pub dual_stack: Option<DualStack>,
    pub mtu: u32,
    pub internal: bool,
    /// Addresses of this host's containers, that is of those that may be connected.
    pub local: BTreeSet<Ipv4Addr>,
    /// Endpoints on other hosts: address -> the host's VTEP. The MAC follows from the address (`network::mac_of`).
    pub remote: BTreeMap<Ipv4Addr, Ipv4Addr>,
    /// VIP -> the addresses that take its connections now. Programmed in the namespace of every local
    /// container on this network.
    pub balancers: BTreeMap<Ipv4Addr, Ring<Ipv4Addr>>,
    /// Services of which not everybody may ask something.
    pub guards: Vec<Guard>,
    pub zone: Zone,
    /// Of an encrypted network: what to seal with. Frames leave the host sealed or not at all; without a key, not at all.
    pub keys: Option<NetworkKeys>,
}

/// Who may open connections to the tasks of one service, on one overlay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    pub tasks: BTreeSet<Ipv4Addr>,
    pub clients: BTreeSet<Ipv4Addr>,
    /// Whatever is not on the overlay may, too: the mesh's clients.
    pub outside: bool,
}

/// The mesh on this host: published ports, and the leg of the host's namespace on the ingress network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IngressPlan {
    pub network_id: Option<NetworkId>,
    /// The host's own address on the ingress network, with prefix length.
    pub address: Option<Ipv4Net>,
    /// This host's number in the mesh.
    pub mesh_index: u16,
    /// mesh index -> MAC of that host's leg, for replies to go back the way they came.
    pub node_macs: BTreeMap<u16, [u8; 6]>,
    /// Held on every host, tasks or not; with no backend a connection is refused at once.
    pub ports: BTreeMap<(Protocol, u16), MeshPort>,
}

/// Who takes the connections of one port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeshPort {
    pub ring: Ring<Backend>,
    /// Tasks see this host's address on the ingress network as the client's.
    pub masquerade: bool,
    /// Connections (TCP only) begin with a header of the PROXY protocol, version 2.
    pub proxy_protocol: bool,
}

/// Who takes the new connections of an address, in balancing order: one after the other or, with `by_client`, by a hash of
/// the client's address, which names a place in it. A backend may be there more than once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring<T> {
    pub backends: Vec<T>,
    pub by_client: bool,
}

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Vec::new().into()
    }
}

/// One after the other.
impl<T> From<Vec<T>> for Ring<T> {
    fn from(backends: Vec<T>) -> Self {
        Self { backends, by_client: false }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    pub address: Ipv4Addr,
    pub port: u16,
}
