//! Swarm-scoped networks. (Bridge networks of one host are the business of `net` and are described in [`crate::sandbox`].)

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::{Labels, Meta, NetworkId};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Network {
    pub id: NetworkId,
    pub meta: Meta,
    pub spec: NetworkSpec,
    /// VXLAN id, given by the allocator with the subnet: `None` until then.
    pub allocation: Option<NetworkAllocation>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkSpec {
    pub name: String,
    pub labels: Labels,
    /// `overlay`; anything else is refused at creation.
    pub driver: String,
    pub driver_options: BTreeMap<String, String>,
    pub attachable: bool,
    pub internal: bool,
    pub ingress: bool,
    pub ipv6: bool,
    /// What the user asked for; empty lets the allocator choose.
    pub subnet: Option<Ipv4Net>,
    pub gateway: Option<Ipv4Addr>,
    pub ip_range: Option<Ipv4Net>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAllocation {
    pub vni: u32,
    pub subnet: Ipv4Net,
    pub gateway: Ipv4Addr,
}

/// First VXLAN id handed out (swarmkit `vxlanIDStart`); the last is 2^24-1.
pub const VNI_START: u32 = 4096;
/// The name of the network the mesh runs over.
pub const INGRESS_NETWORK_NAME: &str = "ingress";
/// The bridge that gives tasks a way out, as tools expect to find it.
pub const GWBRIDGE_NETWORK_NAME: &str = "docker_gwbridge";
/// MTU of an overlay over a 1500-byte underlay: VXLAN takes 50 bytes.
pub const OVERLAY_MTU: u32 = 1450;

/// The MAC of an endpoint, derived from its address as Docker does (`02:42:` + IPv4), so that a moved address keeps its MAC
/// and remote neighbour entries stay valid.
pub fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}
