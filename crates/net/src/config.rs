//! What the network side needs to be told.

use std::path::PathBuf;

use ipnet::Ipv4Net;
use skep_model::dns::{Answer, Question, Zone};

/// The pure answer function of the resolver (`agent::dns::answer`): zones in the order of the container's networks.
pub type AnswerFn = fn(&[&Zone], &Question) -> Answer;

/// Subnets of `size` bits, handed out from `base` (dockerd `--default-address-pool base=…,size=…`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressPool {
    pub base: Ipv4Net,
    pub size: u8,
}

#[derive(Clone, Debug)]
pub struct NetConfig {
    /// Networks of this host are kept in `<data_root>/network/local.json`.
    pub data_root: PathBuf,
    /// Namespaces are mounted at `<exec_root>/netns/<container id>`, sandboxes kept in `<exec_root>/net/`.
    pub exec_root: PathBuf,
    /// The daemon's four hex digits in kernel names.
    pub tag: String,
    /// Pools for networks that name no subnet; empty means Docker's own.
    pub default_address_pools: Vec<AddressPool>,
    /// Address and subnet of `docker0` (dockerd `--bip`).
    pub bip: Option<Ipv4Net>,
    /// MTU of `docker0` and of bridges that name none (dockerd `--mtu`).
    pub mtu: Option<u32>,
    pub answer: AnswerFn,
    /// The host's resolver configuration, `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// The host's `/etc/hosts`, for containers in the host's namespace.
    pub hosts: PathBuf,
}

impl NetConfig {
    pub fn new(
        data_root: impl Into<PathBuf>,
        exec_root: impl Into<PathBuf>,
        tag: impl Into<String>,
        answer: AnswerFn,
    ) -> Self {
        Self {
            data_root: data_root.into(),
            exec_root: exec_root.into(),
            tag: tag.into(),
            default_address_pools: Vec::new(),
            bip: None,
            mtu: None,
            answer,
            resolv_conf: "/etc/resolv.conf".into(),
            hosts: "/etc/hosts".into(),
        }
    }
}
