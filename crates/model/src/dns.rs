//! Questions and answers of the container resolver at 127.0.0.11, free of wire format.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What a container asked. Names are lower case without the trailing dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    A(String),
    Aaaa(String),
    /// Reverse look-up of an address.
    Ptr(IpAddr),
    Srv(String),
    /// Any other type, for a name.
    Other(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    A(Vec<Ipv4Addr>),
    Aaaa(Vec<Ipv6Addr>),
    Ptr(Vec<String>),
    Srv(Vec<SrvRecord>),
    /// The name is ours but has no record of that type.
    NoData,
    /// Ours, and certainly not there (an internal network's stray name).
    NxDomain,
    /// Not ours: ask the upstream servers.
    Forward,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SrvRecord {
    pub port: u16,
    pub target: String,
    pub address: Ipv4Addr,
}

/// The names of one network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    /// The network's name: `web.<network>` means `web` on this network.
    pub network_name: String,
    /// No query may leave the host from a container that is on internal networks only.
    pub internal: bool,
    /// Name in lower case -> addresses. A service's VIP, or its tasks' addresses; `tasks.<service>`; containers; aliases.
    pub names: BTreeMap<String, Vec<Ipv4Addr>>,
    /// Address -> names, for PTR.
    pub addresses: BTreeMap<Ipv4Addr, Vec<String>>,
    /// IPv6 addresses by the IPv4 address of the same endpoint; empty on a network without them.
    pub six: BTreeMap<Ipv4Addr, Ipv6Addr>,
}

impl Zone {
    /// Takes in what another view of the same network knows.
    pub fn merge(&mut self, other: &Self) {
        fn add<K: Ord + Clone, V: PartialEq + Clone>(to: &mut BTreeMap<K, Vec<V>>, from: &BTreeMap<K, Vec<V>>) {
            for (key, values) in from {
                let known = to.entry(key.clone()).or_default();
                let new: Vec<V> = values.iter().filter(|value| !known.contains(value)).cloned().collect();
                known.extend(new);
            }
        }
        add(&mut self.names, &other.names);
        add(&mut self.addresses, &other.addresses);
        self.six.extend(&other.six);
    }
}
