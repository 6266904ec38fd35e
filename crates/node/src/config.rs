//! What the binary tells the node; every default has its Docker counterpart.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;
use skep_control::dispatch::Patience;
use skep_model::Labels;
pub use skep_model::cluster::DEFAULT_DATA_PATH_PORT;

/// swarmkit's port of cluster RPC.
pub const DEFAULT_LISTEN_PORT: u16 = 2377;

#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// `swarm/` below it holds certificates, the raft log and what this node was told last.
    pub data_root: PathBuf,
    pub exec_root: PathBuf,
    pub hostname: String,
    /// `--swarm-default-advertise-addr`: an address or an interface's name.
    pub default_advertise: Option<String>,
    /// `--label` of the daemon: `engine.labels` in constraints.
    pub labels: Labels,
    /// `--node-generic-resource` of the daemon.
    pub generic_resources: Vec<skep_model::generic::GenericResource>,
    /// As `docker node ls` shows it.
    pub engine_version: String,
    pub timing: Timing,
}

impl NodeConfig {
    pub fn new(data_root: impl Into<PathBuf>, exec_root: impl Into<PathBuf>, hostname: impl Into<String>) -> Self {
        Self {
            data_root: data_root.into(),
            exec_root: exec_root.into(),
            hostname: hostname.into(),
            default_advertise: None,
            labels: Labels::new(),
            generic_resources: Vec::new(),
            engine_version: env!("CARGO_PKG_VERSION").to_owned(),
            timing: Timing::default(),
        }
    }

    pub(crate) fn swarm_dir(&self) -> PathBuf {
        self.data_root.join("swarm")
    }
}

/// How soon silence is taken for death. The defaults are [`Patience`]'s.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub heartbeat_period: Duration,
    /// A node unheard of for so long is down if its peers do not reach it and its kernel does not answer either.
    pub node_dead: Duration,
    /// The same where gossip has nothing to say; raised for a node whose heartbeats were seen to come late.
    pub node_timeout: Duration,
    /// The most that lateness may raise it to; and for a host that answers but runs no daemon.
    pub node_timeout_max: Duration,
    /// The same for a node that a peer reaches, or whose kernel answers: slow or paused, and its containers run.
    pub node_slow: Duration,
    /// How long a new leader waits for nodes it has not heard of yet.
    pub leader_grace: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let Patience { dead, alone, late, slow, grace } = Patience::default();
        Self {
            heartbeat_period: skep_agent::line::HEARTBEAT,
            node_dead: dead,
            node_timeout: alone,
            node_timeout_max: late,
            node_slow: slow,
            leader_grace: grace,
        }
    }
}

/// `POST /swarm/init`.
#[derive(Clone, Debug)]
pub struct InitRequest {
    /// `0.0.0.0:2377` if empty.
    pub listen_addr: String,
    /// Address, `address:port`, or an interface's name; empty picks as Docker does.
    pub advertise_addr: String,
    pub data_path_addr: String,
    /// 0 is 4789.
    pub data_path_port: u16,
    pub force_new_cluster: bool,
    pub default_address_pools: Vec<Ipv4Net>,
    pub subnet_size: u8,
    pub spec: skep_model::cluster::ClusterSpec,
    pub availability: skep_model::node::Availability,
}

impl Default for InitRequest {
    fn default() -> Self {
        Self {
            listen_addr: String::new(),
            advertise_addr: String::new(),
            data_path_addr: String::new(),
            data_path_port: 0,
            force_new_cluster: false,
            default_address_pools: Vec::new(),
            subnet_size: 0,
            spec: skep_model::cluster::ClusterSpec::default(),
            availability: skep_model::node::Availability::Active,
        }
    }
}

/// `POST /swarm/join`.
#[derive(Clone, Default)]
pub struct JoinRequest {
    pub listen_addr: String,
    pub advertise_addr: String,
    pub data_path_addr: String,
    pub remote_addrs: Vec<String>,
    pub join_token: String,
    pub availability: skep_model::node::Availability,
}

impl std::fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinRequest").field("remote_addrs", &self.remote_addrs).finish_non_exhaustive()
    }
}

/// `skep swarm restore`.
#[derive(Clone, Debug, Default)]
pub struct RestoreRequest {
    pub listen_addr: String,
    pub advertise_addr: String,
    pub data_path_addr: String,
    /// In place of the swarm this host is the only manager of.
    pub force: bool,
    pub key: crate::BackupKey,
}

pub(crate) fn any_v4(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
}
