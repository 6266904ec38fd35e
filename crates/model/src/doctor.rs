//! What `skep network doctor` has hosts try, and what it makes of it. Not Docker's, so the names in the JSON are our own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// What one host is asked to try while all others are asked the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProbeRequest {
    /// Tells the packets of this look from those of another.
    pub token: u64,
    /// The asked host's place in `hosts`.
    pub own: u16,
    pub hosts: Vec<Ipv4Addr>,
    /// What must accept a connection, with the place of the host it belongs to.
    pub tcp: Vec<(u16, SocketAddr)>,
    /// Ports at which every host must get datagrams.
    pub udp: Vec<u16>,
    /// Sizes of whole packets that are sent to the first of these ports and may not be fragmented.
    pub sizes: Vec<u16>,
}

/// What came of it, as one host sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProbeReport {
    /// This host's clock when it was asked.
    pub at: Timestamp,
    /// Of the interface that holds this host's address.
    pub link: String,
    pub link_mtu: Option<u32>,
    pub kernel: String,
    /// 1 or 2.
    pub cgroup: u8,
    pub lacks: BTreeSet<Feature>,
    /// Why a connection was not made; those that are not named were.
    pub refused: BTreeMap<SocketAddr, String>,
    /// (place of the sender, port, size of the packet).
    pub heard: BTreeSet<(u16, u16, u16)>,
    /// What this host could not look at, in words.
    pub blind: Option<String>,
}

/// What a host's kernel has to be able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feature {
    /// VXLAN links: overlay networks.
    Vxlan,
    /// nf_tables with translation and maps: balancing and published ports.
    Nftables,
    /// Rules on what leaves a link: the mesh keeps clients' addresses.
    WayBack,
    /// TAP devices: encrypted networks.
    Tap,
    /// Containers' file systems.
    Overlayfs,
}

/// What `GET /skep/network/doctor` answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Diagnosis {
    /// Nothing is wrong.
    pub healthy: bool,
    pub hosts: Vec<HostChecks>,
    pub pairs: Vec<PairChecks>,
    pub findings: Vec<Ailment>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct HostChecks {
    pub host: String,
    pub address: String,
    /// It could be asked.
    pub answered: bool,
    /// Ahead of the asked manager's clock.
    pub clock_ms: i64,
    pub link: String,
    pub link_mtu: Option<u32>,
    pub kernel: String,
    pub cgroup: u8,
    pub lacks: BTreeSet<Feature>,
}

/// What gets from one host to another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PairChecks {
    pub from: String,
    pub to: String,
    /// `4789/udp` -> empty if it gets there, else why not.
    pub ports: BTreeMap<String, String>,
    /// The largest packet that was tried and got there whole.
    pub packet_bytes: Option<u16>,
    /// What the largest of the overlay networks needs.
    pub needed_bytes: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Ailment {
    /// Something does not work; otherwise it is merely worth knowing.
    pub wrong: bool,
    pub says: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub advice: String,
}
