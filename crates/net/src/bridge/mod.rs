//! Networks of this host alone: which there are, their subnets, and the Linux bridges that carry them.
//!
//! [`Networks`] is the list and its rules (names, pools, addresses, who is connected), as a value; [`driver`] makes it so
//! in the kernel; [`rules`] and [`rules6`] are the firewall that goes with it. Must not know about overlays or containers' files.

pub(crate) mod driver;
pub(crate) mod macvlan;
mod networks;
mod options;
mod pool;
pub(crate) mod rules;
pub(crate) mod rules6;

pub(crate) use networks::{Networks, Stored, default_spec, gwbridge_spec, is_predefined, write_atomically};

/// Docker's names and options.
pub(crate) const DEFAULT_NETWORK: &str = "bridge";
pub(crate) const DEFAULT_BRIDGE: &str = "docker0";
pub(crate) mod option {
    pub(crate) const LINK_NAME: &str = "com.docker.network.bridge.name";
    pub(crate) const ICC: &str = "com.docker.network.bridge.enable_icc";
    pub(crate) const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
    pub(crate) const HOST_BINDING: &str = "com.docker.network.bridge.host_binding_ipv4";
    pub(crate) const PARENT: &str = "parent";
    pub(crate) const MACVLAN_MODE: &str = "macvlan_mode";
    pub(crate) const MTU: &str = "com.docker.network.driver.mtu";
    pub(crate) const DEFAULT_BRIDGE: &str = "com.docker.network.bridge.default_bridge";
    pub(crate) const INHIBIT_IPV4: &str = "com.docker.network.bridge.inhibit_ipv4";
    pub(crate) const INTERFACE_PREFIX: &str = "com.docker.network.container_iface_prefix";
    pub(crate) const GATEWAY_MODES: [&str; 2] =
        ["com.docker.network.bridge.gateway_mode_ipv4", "com.docker.network.bridge.gateway_mode_ipv6"];
}
