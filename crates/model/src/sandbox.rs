//! A container's network sandbox: what the engine asks of the network side, and what it gets back.
//!
//! The engine knows containers and no networks; `net` knows namespaces and no containers. These values are what passes
//! between them, through the node.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::network::Ipv6Pool;
use crate::service::Protocol;
use crate::{ContainerId, EndpointId, Labels, NetworkId, Timestamp};

/// Where a container's network comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkMode {
    /// Its own namespace with nothing but loopback.
    None,
    /// The host's namespace.
    Host,
    /// Another container's namespace.
    Container(ContainerId),
    /// Its own namespace with these connections.
    Private,
}

/// Asks for a sandbox; everything needed is in here, so that it can be made again after a restart of the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SandboxRequest {
    pub container_id: ContainerId,
    /// Without the leading slash.
    pub container_name: String,
    pub hostname: String,
    pub domainname: String,
    pub mode: NetworkMode,
    /// The container of a task: the allocator gave it its addresses.
    #[serde(default = "of_old")]
    pub is_task: bool,
    pub endpoints: Vec<EndpointRequest>,
    /// Host ports to publish on bridge networks (`docker run -p`, and host-mode ports of services).
    pub publish: Vec<PublishRequest>,
    pub dns: Vec<String>,
    pub dns_search: Vec<String>,
    pub dns_options: Vec<String>,
    /// `name:address` pairs; `host-gateway` as address is the bridge's gateway.
    pub extra_hosts: Vec<String>,
}

/// Before there was the field, nothing but tasks was on the swarm's networks.
fn of_old() -> bool {
    true
}

impl SandboxRequest {
    /// Names that lead to the container on a network, its own first.
    pub fn dns_names(&self, endpoint: &EndpointRequest) -> Vec<String> {
        let mut names = vec![self.container_name.clone()];
        let own = [self.container_id.short(), self.hostname.as_str()];
        for name in endpoint.aliases.iter().map(String::as_str).chain(own) {
            if !name.is_empty() && !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        names
    }
}

/// A connection to one network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EndpointRequest {
    /// Name or id of a bridge network of this host, or the id of an overlay network.
    pub network: String,
    /// Names the container answers to on that network, besides its own.
    pub aliases: Vec<String>,
    /// A fixed address; on overlays always given, by the allocator.
    pub address: Option<Ipv4Addr>,
    /// A fixed IPv6 address; on an overlay the one that goes with `address`.
    #[serde(default)]
    pub address6: Option<Ipv6Addr>,
    pub mac: Option<[u8; 6]>,
    pub driver_options: BTreeMap<String, String>,
    /// What `network`, a node-local network of the swarm named by its id, is made from where it is not there yet.
    #[serde(default)]
    pub made_from: Option<Box<LocalNetworkSpec>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishRequest {
    pub container_port: u16,
    pub protocol: Protocol,
    pub host_ip: Option<IpAddr>,
    /// First and last port that will do; `(0, 0)` is any free one.
    pub host_ports: (u16, u16),
}

/// What was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sandbox {
    /// The namespace to enter (a bind mount); `None` for host mode.
    pub netns: Option<PathBuf>,
    pub endpoints: Vec<EndpointInfo>,
    pub published: Vec<PublishedPort>,
    /// Whole contents of the container's `/etc/hosts` and `/etc/resolv.conf`.
    pub hosts_file: String,
    pub resolv_conf: String,
}

/// A container's place on one network, as `NetworkSettings.Networks` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointInfo {
    pub network_id: NetworkIdOrLocal,
    pub network_name: String,
    pub endpoint_id: EndpointId,
    pub address: Ipv4Net,
    pub gateway: Option<Ipv4Addr>,
    #[serde(default)]
    pub address6: Option<Ipv6Net>,
    #[serde(default)]
    pub gateway6: Option<Ipv6Addr>,
    pub mac: [u8; 6],
    pub aliases: Vec<String>,
    /// Names that resolve to it: container name, short id, aliases.
    pub dns_names: Vec<String>,
}

/// A swarm network's id, or the 64-digit id of a bridge network of this host.
pub type NetworkIdOrLocal = NetworkId;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    pub container_port: u16,
    pub protocol: Protocol,
    pub host_ip: IpAddr,
    pub host_port: u16,
}

/// A network of this host: bridge, macvlan, host or none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LocalNetwork {
    /// 64 hex digits, or the swarm's id of one that is the swarm's.
    pub id: NetworkId,
    pub created_at: Timestamp,
    pub spec: LocalNetworkSpec,
    /// Given when made; `None` for host and none.
    pub subnet: Option<Ipv4Net>,
    pub gateway: Option<Ipv4Addr>,
    /// The gateway with the subnet's prefix length; `None` for a network without IPv6.
    #[serde(default)]
    pub gateway6: Option<Ipv6Net>,
    /// Who is connected now.
    pub endpoints: BTreeMap<ContainerId, EndpointInfo>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LocalNetworkSpec {
    pub name: String,
    /// `bridge`, `macvlan`, `host` or `null`.
    pub driver: String,
    pub labels: Labels,
    pub options: BTreeMap<String, String>,
    pub internal: bool,
    pub attachable: bool,
    pub subnet: Option<Ipv4Net>,
    pub gateway: Option<Ipv4Addr>,
    pub ip_range: Option<Ipv4Net>,
    /// Addresses nobody is given, by the name of what has them outside Docker.
    pub auxiliary: BTreeMap<String, Ipv4Addr>,
    pub ipv6: bool,
    /// What the user asked of its IPv6 addresses; `None` with `ipv6` is a subnet chosen for it.
    pub pool6: Option<Ipv6Pool>,
    /// A configuration for other networks, and no network itself.
    pub config_only: bool,
    /// The name of the configuration network that labels, options and addresses come from; empty for none.
    pub config_from: String,
    /// This host's part of a node-local network of the swarm: there while something is on it.
    pub of_swarm: bool,
}
