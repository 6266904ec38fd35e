//! A host in the swarm: what users want of it (spec), what it says of itself (description), what managers see (status).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::generic::GenericResource;
use crate::{Labels, Meta, NetworkId, NodeId, Timestamp};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    pub meta: Meta,
    pub spec: NodeSpec,
    /// The role its certificate carries; follows `spec.role` once the change has been carried out.
    pub role: Role,
    pub description: NodeDescription,
    pub status: NodeStatus,
    /// Present on managers.
    pub manager: Option<ManagerInfo>,
    /// This node's own address on overlay networks that need one on every node: the ingress network's balancer leg.
    pub attachments: BTreeMap<NetworkId, Ipv4Addr>,
    /// The node's number in the mesh, unique among living nodes: picks its range of source ports. See `plan::IngressPlan`.
    pub mesh_index: Option<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    pub name: String,
    pub labels: Labels,
    pub role: Role,
    pub availability: Availability,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    #[default]
    Worker,
    Manager,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Availability {
    #[default]
    Active,
    Pause,
    Drain,
}

/// What a node's agent reports about its host at the start of every session.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeDescription {
    pub hostname: String,
    pub os: String,
    pub architecture: String,
    pub nano_cpus: i64,
    pub memory_bytes: i64,
    /// `--node-generic-resource` of its daemon.
    pub generic: Vec<GenericResource>,
    pub engine_version: String,
    pub engine_labels: Labels,
    /// (type, name) as `docker node inspect` lists them: `("Network", "overlay")`, `("Volume", "local")`, `("Log", "json-file")`.
    pub plugins: Vec<(String, String)>,
    /// PEM of the root the node trusts.
    pub tls_trust_root_pem: String,
    /// DER of the subject and of the public key of what signed its certificate.
    #[serde(with = "serde_bytes")]
    pub tls_issuer_subject: Vec<u8>,
    #[serde(with = "serde_bytes")]
    pub tls_issuer_key: Vec<u8>,
    /// SHA-256 in hex of the certificate it last opened a session with.
    pub tls_certificate: String,
    /// MTU of the interface that holds the node's address.
    pub link_mtu: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeState {
    #[default]
    Unknown,
    Down,
    Ready,
    Disconnected,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    pub state: NodeState,
    pub message: String,
    /// The address other nodes reach this one at: shown as `Status.Addr`, and the VXLAN endpoint.
    pub address: Option<IpAddr>,
    /// When the state last changed; tasks of a node long down are given up by it.
    pub since: Timestamp,
}

impl NodeStatus {
    /// The VXLAN endpoint (underlay address), if it is IPv4.
    pub fn vtep(&self) -> Option<Ipv4Addr> {
        match self.address {
            Some(IpAddr::V4(a)) => Some(a),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reachability {
    #[default]
    Unknown,
    Unreachable,
    Reachable,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerInfo {
    /// Raft id: never reused, so a node demoted and promoted again gets another.
    pub raft_id: u64,
    /// Where its cluster RPC listens.
    pub address: SocketAddr,
}
