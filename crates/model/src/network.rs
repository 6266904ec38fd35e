//! Swarm-scoped networks. (Bridge networks of one host are the business of `net` and are described in [`crate::sandbox`].)

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::sandbox::LocalNetworkSpec;
use crate::secret::SecretBytes;
use crate::{ContainerId, Labels, Meta, NetworkId, NodeId, Timestamp};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Network {
    pub id: NetworkId,
    pub meta: Meta,
    pub spec: NetworkSpec,
    /// VXLAN id, given by the allocator with the subnet: `None` until then.
    pub allocation: Option<NetworkAllocation>,
    /// What its frames are sealed with between the hosts; present exactly if `spec` asks for encryption.
    #[serde(default)]
    pub keys: Option<NetworkKeys>,
    /// Containers on it that are no tasks: `docker run --network` on any host.
    #[serde(default)]
    pub attachments: BTreeMap<ContainerId, Attachment>,
}

impl Network {
    /// As it is asked for: without a subnet, keys or containers.
    pub fn new(id: NetworkId, spec: NetworkSpec) -> Self {
        Self { id, meta: Meta::default(), spec, allocation: None, keys: None, attachments: BTreeMap::new() }
    }
}

/// The place of a container that is no task on an attachable network (swarmkit has a task of its own kind for it).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Where the container runs.
    pub node_id: NodeId,
    /// Given by the allocator; on a node-local network by its host, which says so once it runs.
    pub address: Option<Ipv4Addr>,
    /// What it answers to on the network, its own name first.
    pub names: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkSpec {
    pub name: String,
    pub labels: Labels,
    /// `overlay`, or one of [`NODE_LOCAL_DRIVERS`]; anything else is refused at creation.
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
    /// Addresses nobody is given, by the name of what has them outside Docker.
    pub auxiliary: BTreeMap<String, Ipv4Addr>,
    /// What the user asked of its IPv6 addresses; `None` with `ipv6` is a subnet chosen for it.
    pub pool6: Option<Ipv6Pool>,
    /// Of a node-local network: the configuration network of the hosts that options and addresses come from; empty for none.
    pub config_from: String,
}

/// The IPv6 subnet a user chose for a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv6Pool {
    pub subnet: Ipv6Net,
    pub gateway: Option<Ipv6Addr>,
    pub ip_range: Option<Ipv6Net>,
    /// Addresses nobody is given, by the name of what has them outside Docker.
    pub auxiliary: BTreeMap<String, Ipv6Addr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAllocation {
    pub vni: u32,
    pub subnet: Ipv4Net,
    pub gateway: Ipv4Addr,
    /// The IPv6 gateway with its subnet's prefix length, on a network that has IPv6.
    #[serde(default)]
    pub gateway6: Option<Ipv6Net>,
}

impl NetworkAllocation {
    /// How its IPv6 addresses follow, if it has any.
    pub fn dual_stack(&self) -> Option<DualStack> {
        self.gateway6.map(|gateway| DualStack { subnet: self.subnet, subnet6: gateway.trunc() })
    }
}

impl Network {
    /// Whether a task or a service may be given this address: it is in the subnet, and neither it nor the IPv6 address that
    /// goes with it is the gateway's or set aside.
    pub fn gives(&self, address: Ipv4Addr) -> bool {
        let Some(allocation) = &self.allocation else { return false };
        let set_aside = self.spec.auxiliary.values().any(|other| *other == address);
        if set_aside || allocation.gateway == address || !allocation.subnet.contains(&address) {
            return false;
        }
        let Some(six) = allocation.dual_stack().map(|dual| dual.six(address)) else { return true };
        let mut set_aside = self.spec.pool6.iter().flat_map(|pool| pool.auxiliary.values());
        allocation.gateway6.is_none_or(|gateway| gateway.addr() != six) && !set_aside.any(|other| *other == six)
    }
}

/// The two subnets of a network with IPv6. An endpoint has the same place in both: of 10.0.5.7 in 10.0.5.0/24 and fd00::/64
/// follows fd00::7, as its MAC follows. So there is nothing to allocate, to keep or to tell besides the subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DualStack {
    pub subnet: Ipv4Net,
    /// Of [`DualStack::LONGEST_PREFIX`] bits at most.
    pub subnet6: Ipv6Net,
}

impl DualStack {
    /// With a longer one there would not be room for the places of every IPv4 subnet.
    pub const LONGEST_PREFIX: u8 = 96;

    pub fn six(self, address: Ipv4Addr) -> Ipv6Addr {
        let place = u32::from(address) & u32::from(self.subnet.hostmask());
        Ipv6Addr::from(u128::from(self.subnet6.network()) | u128::from(place))
    }

    /// Whose IPv6 address it is.
    pub fn four(self, six: Ipv6Addr) -> Option<Ipv4Addr> {
        let place = u32::try_from(u128::from(six) ^ u128::from(self.subnet6.network())).ok()?;
        let address = Ipv4Addr::from(u32::from(self.subnet.network()) | place);
        (self.six(address) == six).then_some(address)
    }

    /// With the subnet's prefix length.
    pub fn with_prefix(self, address: Ipv4Addr) -> Ipv6Net {
        Ipv6Net::new_assert(self.six(address), self.subnet6.prefix_len())
    }
}

impl NetworkSpec {
    /// What carrying a packet of it between hosts adds to the packet, in bytes.
    pub fn overhead(&self) -> u32 {
        if self.is_encrypted() {
            OVERLAY_UNDERLAY_MTU - ENCRYPTED_OVERLAY_MTU
        } else {
            OVERLAY_UNDERLAY_MTU - OVERLAY_MTU
        }
    }

    /// The MTU of its containers: the one asked for, else what the narrowest of the hosts' links carries, and no more than is
    /// usual: what lies between the hosts is not known.
    pub fn mtu(&self, narrowest_link: Option<u32>) -> u32 {
        let asked = self.driver_options.get(MTU_OPTION).and_then(|text| text.parse().ok()).filter(|mtu| *mtu > 0);
        let link = narrowest_link.unwrap_or(OVERLAY_UNDERLAY_MTU).clamp(SMALLEST_LINK_MTU, OVERLAY_UNDERLAY_MTU);
        // Below its least, IPv6 would go from the interface; larger frames are cut on their way instead.
        let least = if self.ipv6 { IPV6_MTU } else { 0 };
        asked.unwrap_or((link - self.overhead()).max(least))
    }

    /// The VXLAN id asked for.
    ///
    /// # Errors
    ///
    /// The option is no list of such numbers.
    pub fn vxlan_id(&self) -> Result<Option<u32>, String> {
        let Some(list) = self.driver_options.get(VXLAN_ID_OPTION) else { return Ok(None) };
        let mut first = None;
        for word in list.split(',') {
            let id = word.parse().map_err(|_| format!("invalid vxlan id value {word:?} passed"))?;
            if !(VNI_START..=VNI_LAST).contains(&id) {
                return Err(format!("vxlan id {id} is not in the range from {VNI_START} to {VNI_LAST}"));
            }
            first = first.or(Some(id));
        }
        Ok(first)
    }

    /// Whether every host makes it for itself, with addresses of its own: the swarm has no subnet and no VIP there.
    pub fn is_node_local(&self) -> bool {
        NODE_LOCAL_DRIVERS.contains(&self.driver.as_str())
    }

    /// What a host makes a node-local network from.
    pub fn on_host(&self) -> LocalNetworkSpec {
        LocalNetworkSpec {
            name: self.name.clone(),
            driver: self.driver.clone(),
            labels: self.labels.clone(),
            internal: self.internal,
            attachable: self.attachable,
            ipv6: self.ipv6,
            config_from: self.config_from.clone(),
            of_swarm: true,
            ..LocalNetworkSpec::default()
        }
    }

    /// Whether frames between its hosts are sealed. The option counts by being there, whatever its value, as in Docker.
    pub fn is_encrypted(&self) -> bool {
        !self.is_node_local() && self.driver_options.contains_key(ENCRYPTED_OPTION)
    }
}

/// One of the keys of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkKey {
    /// Counts up; named in every datagram.
    pub generation: u32,
    /// [`NETWORK_KEY_BYTES`] of them.
    pub secret: SecretBytes,
}

/// The keys of an encrypted network: the one in use, the one before it and the one after it. A host accepts all three and
/// sends with the one in use, so hosts that hear of a rotation at different times understand each other meanwhile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkKeys {
    /// Ascending by generation.
    pub keys: Vec<NetworkKey>,
    /// Generation of the one in use.
    pub current: u32,
    pub rotated_at: Timestamp,
    /// So many rotations are to follow soon: a node was removed that knows keys still accepted.
    pub hurried: u8,
}

impl NetworkKeys {
    /// Of a new network: the key in use and the next one.
    pub fn new(current: SecretBytes, next: SecretBytes, now: Timestamp) -> Self {
        let key = |generation, secret| NetworkKey { generation, secret };
        Self { keys: vec![key(1, current), key(2, next)], current: 1, rotated_at: now, hurried: 0 }
    }

    /// The next key comes into use, `secret` is the next one from now on, and the one before is kept.
    pub fn rotate(&mut self, secret: SecretBytes, now: Timestamp) {
        let before = self.current;
        self.current = before.saturating_add(1);
        self.keys.retain(|key| key.generation >= before);
        self.keys.push(NetworkKey { generation: self.current.saturating_add(1), secret });
        self.rotated_at = now;
        self.hurried = self.hurried.saturating_sub(1);
    }

    /// As many rotations as it takes until none of the keys of now is accepted.
    pub fn hurry(&mut self) {
        self.hurried = 3;
    }
}

/// AES-256.
pub const NETWORK_KEY_BYTES: usize = 32;
/// Driver option of an overlay: seal frames between hosts.
pub const ENCRYPTED_OPTION: &str = "encrypted";
/// First VXLAN id handed out (swarmkit `vxlanIDStart`), and the last.
pub const VNI_START: u32 = 4096;
pub const VNI_LAST: u32 = (1 << 24) - 1;
/// Option of an overlay that says which VXLAN id it gets: a list, for as many subnets.
pub const VXLAN_ID_OPTION: &str = "com.docker.network.driver.overlay.vxlanid_list";
/// The name of the network the mesh runs over.
pub const INGRESS_NETWORK_NAME: &str = "ingress";
/// The bridge that gives tasks a way out, as tools expect to find it.
pub const GWBRIDGE_NETWORK_NAME: &str = "docker_gwbridge";
/// Networks that every host has for itself and that services can be on (swarmkit `PredefinedNetworks`).
pub const HOST_NETWORKS: [&str; 2] = [HOST, BRIDGE];
/// The host's own namespace, by the name of its network.
pub const HOST: &str = "host";
/// The network a container is on when it names none.
pub const BRIDGE: &str = "bridge";
/// Drivers of networks of the swarm that every host makes for itself.
pub const NODE_LOCAL_DRIVERS: [&str; 2] = ["bridge", "macvlan"];
/// Option of an overlay that sets its MTU.
pub const MTU_OPTION: &str = "com.docker.network.driver.mtu";
/// What hosts' links are taken to carry unless they say less.
pub const OVERLAY_UNDERLAY_MTU: u32 = 1500;
/// No link of a host is taken to carry less: IPv4 would barely work.
const SMALLEST_LINK_MTU: u32 = 576;
/// MTU of an overlay over a 1500-byte underlay: VXLAN takes 50 bytes.
pub const OVERLAY_MTU: u32 = 1450;
/// The same of an encrypted overlay: sealing takes 110 bytes.
pub const ENCRYPTED_OVERLAY_MTU: u32 = 1390;

/// The least MTU of a link that carries IPv6 (RFC 8200).
pub const IPV6_MTU: u32 = 1280;

/// The MAC of an endpoint, derived from its address as Docker does (`02:42:` + IPv4), so that a moved address keeps its MAC
/// and remote neighbour entries stay valid.
pub fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}

/// The IPv6 subnet of a network nobody chose one for: a /64 of the unique local addresses (RFC 4193), whose 40 random bits
/// follow from the network's id. So every host and every leader says the same, and no two networks share one.
pub fn unique_local_subnet(id: &NetworkId) -> Ipv6Net {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = id.as_str().bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    let [.., a, b, c, d, e] = hash.to_be_bytes();
    let group = |high, low| u16::from_be_bytes([high, low]);
    let address = Ipv6Addr::new(group(0xfd, a), group(b, c), group(d, e), 0, 0, 0, 0, 0);
    Ipv6Net::new_assert(address, 64)
}

/// The gateway of an IPv6 subnet nobody chose one for: the first address after the subnet's own.
pub fn first_host6(subnet: Ipv6Net) -> Ipv6Addr {
    let first = u128::from(subnet.network()).saturating_add(1);
    Ipv6Addr::from(first.min(u128::from(subnet.broadcast())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        let pool6 = Ipv6Pool {
            subnet: "fd00:a::/64".parse().unwrap(),
            gateway: None,
            ip_range: None,
            auxiliary: [("nas".to_owned(), "fd00:a::9".parse().unwrap())].into(),
        };
        let allocation = NetworkAllocation {
            vni: 4097,
            subnet: "10.0.4.0/23".parse().unwrap(),
            gateway: "10.0.4.1".parse().unwrap(),
            gateway6: Some("fd00:a::1fe/64".parse().unwrap()),
        };
        let spec = NetworkSpec { ipv6: true, pool6: Some(pool6), ..NetworkSpec::default() };
        Network { allocation: Some(allocation), ..Network::new("n".parse().unwrap(), spec) }
    }

    #[test]
    fn a_network_with_ipv6_is_wide_enough_for_it() {
        let spec = |ipv6| NetworkSpec { ipv6, ..NetworkSpec::default() };
        assert_eq!((spec(false).mtu(Some(1300)), spec(true).mtu(Some(1300))), (1250, 1280));
        assert_eq!(spec(true).mtu(None), 1450);
    }

    #[test]
    fn an_endpoint_has_the_same_place_in_both_subnets() {
        let dual = network().allocation.unwrap().dual_stack().unwrap();
        for (four, six) in [("10.0.4.0", "fd00:a::"), ("10.0.4.7", "fd00:a::7"), ("10.0.5.7", "fd00:a::107")] {
            assert_eq!(dual.six(four.parse().unwrap()).to_string(), six);
            assert_eq!(dual.four(six.parse().unwrap()), four.parse().ok());
        }
        for stranger in ["fd00:a::207", "fd00:a::1:0:0:7", "fd00:b::7", "fe80::7"] {
            assert_eq!(dual.four(stranger.parse().unwrap()), None, "{stranger}");
        }
    }

    #[test]
    fn what_is_set_aside_in_either_subnet_is_given_to_nobody() {
        let network = network();
        let given = |text: &str| network.gives(text.parse().unwrap());
        assert!(given("10.0.4.2") && given("10.0.5.9"));
        for (address, why) in [("10.0.4.1", "gateway"), ("10.0.5.254", "IPv6 gateway"), ("10.0.4.9", "IPv6 auxiliary")]
        {
            assert!(!given(address), "{why}");
        }
        assert!(!given("10.0.6.2"), "another subnet");
    }

    #[test]
    fn a_chosen_ipv6_subnet_is_unique_local_and_follows_from_the_id() {
        let of = |id: &str| unique_local_subnet(&id.parse().unwrap());
        assert_eq!(of("abc"), of("abc"));
        assert_ne!(of("abc"), of("abd"));
        assert!("fd00::/8".parse::<Ipv6Net>().unwrap().contains(&of("abc")) && of("abc").prefix_len() == 64);
        assert_eq!(first_host6("fd00::/64".parse().unwrap()).to_string(), "fd00::1");
    }
}
