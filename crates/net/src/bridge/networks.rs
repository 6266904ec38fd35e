//! The list of this host's networks: as values, without the kernel. Kept as JSON in one file.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use skep_model::network::{GWBRIDGE_NETWORK_NAME, IPV6_MTU, first_host6, unique_local_subnet};
use skep_model::sandbox::{EndpointInfo, LocalNetwork, LocalNetworkSpec};
use skep_model::{ContainerId, NetworkId, Timestamp};

use super::rules::Bridge;
use super::rules6::Bridge6;
use super::{DEFAULT_BRIDGE, DEFAULT_NETWORK, macvlan, option, options, pool};
use crate::config::AddressPool;
use crate::error::{NetError, Result};
use crate::sandbox::INTERFACE_PREFIX;

/// A network and what only we need to know of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stored {
    pub(crate) network: LocalNetwork,
    /// The bridge, or a macvlan network's parent; empty for host and none.
    pub(crate) link: String,
    /// We made it, so it goes with the network.
    #[serde(default)]
    pub(crate) owns_link: bool,
}

impl Stored {
    pub(crate) fn name(&self) -> &str {
        &self.network.spec.name
    }

    pub(crate) fn is_bridge(&self) -> bool {
        self.network.spec.driver == "bridge"
    }

    /// This host's part of a node-local network of the swarm.
    pub(crate) fn is_of_swarm(&self) -> bool {
        self.network.spec.of_swarm
    }

    pub(crate) fn is_macvlan(&self) -> bool {
        self.network.spec.driver == "macvlan"
    }

    /// The network nobody named: without names between containers, with the host's resolver.
    pub(crate) fn is_default_bridge(&self) -> bool {
        self.name() == DEFAULT_NETWORK
    }

    /// Containers may talk to each other.
    pub(crate) fn icc(&self) -> bool {
        self.flag(option::ICC)
    }

    pub(crate) fn mtu(&self) -> Option<u32> {
        self.network.spec.options.get(option::MTU)?.parse().ok().filter(|mtu| *mtu > 0)
    }

    /// Where ports are published that name no host address.
    pub(crate) fn host_binding(&self) -> Ipv4Addr {
        let given = self.network.spec.options.get(option::HOST_BINDING);
        given.and_then(|text| text.parse().ok()).unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    pub(crate) fn gateway_net(&self) -> Option<Ipv4Net> {
        let (subnet, gateway) = (self.network.subnet?, self.network.gateway?);
        Ipv4Net::new(gateway, subnet.prefix_len()).ok()
    }

    pub(crate) fn rules(&self) -> Option<Bridge> {
        Some(Bridge {
            link: self.link.clone(),
            subnet: self.network.subnet.filter(|_| self.is_bridge())?,
            internal: self.network.spec.internal,
            masquerade: self.flag(option::MASQUERADE),
        })
    }

    pub(crate) fn rules6(&self) -> Option<Bridge6> {
        Some(Bridge6 {
            link: self.link.clone(),
            subnet: self.network.gateway6.filter(|_| self.is_bridge())?.trunc(),
            internal: self.network.spec.internal,
            masquerade: self.flag(option::MASQUERADE),
        })
    }

    /// True unless the option says otherwise, in any of Go's spellings.
    fn flag(&self, name: &str) -> bool {
        self.network.spec.options.get(name).and_then(|value| options::parse_flag(value)).unwrap_or(true)
    }

    /// The bridge itself has no IPv4 address: somebody else is the gateway.
    pub(crate) fn inhibits_ipv4(&self) -> bool {
        self.network.spec.options.contains_key(option::INHIBIT_IPV4) && self.flag(option::INHIBIT_IPV4)
    }

    /// What the names of its interfaces in containers begin with.
    pub(crate) fn interface_prefix(&self) -> &str {
        let asked = self.network.spec.options.get(option::INTERFACE_PREFIX).filter(|_| self.is_bridge());
        asked.map_or(INTERFACE_PREFIX, String::as_str)
    }
}

/// All networks of this host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Networks {
    pools: Vec<AddressPool>,
    by_id: BTreeMap<NetworkId, Stored>,
}

impl Networks {
    pub(crate) fn new(pools: &[AddressPool]) -> Self {
        let pools = if pools.is_empty() { pool::default_pools() } else { pools.to_vec() };
        Self { pools, by_id: BTreeMap::new() }
    }

    /// Reads the file; a missing one is an empty list.
    pub(crate) fn load(&mut self, path: &Path) -> io::Result<()> {
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let list: Vec<Stored> = serde_json::from_slice(&bytes)?;
        self.by_id = list.into_iter().map(|stored| (stored.network.id.clone(), stored)).collect();
        Ok(())
    }

    /// Writes the file, without endpoints: those belong to the sandboxes.
    pub(crate) fn save(&self, path: &Path) -> io::Result<()> {
        let list: Vec<Stored> = self
            .by_id
            .values()
            .cloned()
            .map(|mut stored| {
                stored.network.endpoints.clear();
                stored
            })
            .collect();
        write_atomically(path, &serde_json::to_vec_pretty(&list)?)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Stored> + Clone {
        self.by_id.values()
    }

    pub(crate) fn get(&self, id: &NetworkId) -> Option<&Stored> {
        self.by_id.get(id)
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Stored> {
        self.by_id.values().find(|stored| stored.name() == name)
    }

    /// By full name, full id, or the beginning of an id, in this order.
    pub(crate) fn find(&self, name_or_id: &str) -> Result<&Stored> {
        let name = if name_or_id == "default" { DEFAULT_NETWORK } else { name_or_id };
        if let Some(found) = self.named(name) {
            return Ok(found);
        }
        let matches: Vec<&Stored> = self
            .by_id
            .values()
            .filter(|stored| !name_or_id.is_empty() && stored.network.id.as_str().starts_with(name_or_id))
            .collect();
        match matches[..] {
            [] => Err(NetError::NoSuchNetwork(name_or_id.to_owned())),
            [only] => Ok(only),
            _ => match matches.iter().find(|stored| stored.network.id.as_str() == name_or_id) {
                Some(exact) => Ok(exact),
                None => Err(NetError::AmbiguousNetwork(name_or_id.to_owned(), matches.len())),
            },
        }
    }

    /// Decides id, subnet, gateway and link of a new network. `routed` is what the host itself routes.
    pub(crate) fn plan(
        &self,
        mut spec: LocalNetworkSpec,
        id: NetworkId,
        now: Timestamp,
        routed: &[Ipv4Net],
    ) -> Result<Stored> {
        if spec.name.is_empty() || spec.name.contains('/') {
            return Err(NetError::Invalid(format!("invalid network name: {:?}", spec.name)));
        }
        if self.named(&spec.name).is_some() {
            return Err(NetError::NetworkExists(spec.name));
        }
        if spec.driver.is_empty() || spec.driver == "default" {
            spec.driver = "bridge".to_owned();
        }
        if !spec.config_from.is_empty() {
            let name = &spec.config_from;
            let config = self.named(name).filter(|stored| stored.network.spec.config_only);
            let Some(config) = config.map(|stored| stored.network.spec.clone()) else {
                return Err(NetError::NoSuchConfiguration(name.clone()));
            };
            spec = LocalNetworkSpec {
                name: spec.name,
                driver: spec.driver,
                internal: spec.internal,
                attachable: spec.attachable,
                config_from: spec.config_from,
                config_only: false,
                of_swarm: spec.of_swarm,
                ..config
            };
        }
        match spec.driver.as_str() {
            "bridge" => options::check(&spec.options)?,
            "macvlan" => {}
            "host" | "null" => {
                let taken =
                    |stored: &Stored| stored.network.spec.driver == spec.driver && !stored.network.spec.config_only;
                if !spec.config_only && self.by_id.values().any(taken) {
                    let text = format!("only one instance of \"{}\" network is allowed", spec.driver);
                    return Err(NetError::Forbidden(text));
                }
                let network = LocalNetwork {
                    id,
                    created_at: now,
                    spec,
                    subnet: None,
                    gateway: None,
                    gateway6: None,
                    endpoints: BTreeMap::new(),
                };
                return Ok(Stored { network, link: String::new(), owns_link: false });
            }
            other => return Err(NetError::NoSuchDriver(other.to_owned())),
        }
        let mtu = spec.options.get(option::MTU).and_then(|mtu| mtu.parse::<u32>().ok());
        if let Some(mtu) = mtu.filter(|mtu| spec.ipv6 && *mtu < IPV6_MTU) {
            return Err(NetError::Invalid(format!("an MTU of {mtu} is too small for IPv6: it is {IPV6_MTU} at least")));
        }
        let gateway6 = if spec.ipv6 { Some(self.gateway6(&spec, &id)?) } else { None };
        let subnet = self.subnet(&spec, routed)?;
        if let Some(range) = spec.ip_range
            && !subnet.contains(&range)
        {
            return Err(NetError::Invalid(format!(
                "invalid network config:\ninvalid ip-range {range}: it should be within subnet {subnet}"
            )));
        }
        let gateway = match spec.gateway {
            Some(gateway) if !subnet.contains(&gateway) => {
                return Err(NetError::Invalid(format!("no matching subnet for gateway {gateway}")));
            }
            Some(gateway) => gateway,
            None => pool::first_host(subnet, &spec),
        };
        let link = match spec.options.get(option::LINK_NAME) {
            _ if spec.driver == "macvlan" => self.parent(&spec, &id)?,
            Some(name) if name.is_empty() || name.len() > 15 || name.contains(['/', ' ']) => {
                return Err(NetError::Invalid(format!("invalid bridge name {name:?}")));
            }
            Some(name) => name.clone(),
            None => format!("br-{}", id.short()),
        };
        if self.by_id.values().any(|stored| stored.is_bridge() && stored.link == link) {
            return Err(NetError::Forbidden(format!("networks have same bridge name {link}")));
        }
        let network = LocalNetwork {
            id,
            created_at: now,
            spec,
            subnet: Some(subnet),
            gateway: Some(gateway),
            gateway6,
            endpoints: BTreeMap::new(),
        };
        Ok(Stored { network, link, owns_link: false })
    }

    /// The interface whose wire the containers of a macvlan network share.
    fn parent(&self, spec: &LocalNetworkSpec, id: &NetworkId) -> Result<String> {
        macvlan::mode(spec)?;
        let parent = match spec.options.get(option::PARENT).map(String::as_str) {
            None | Some("") => macvlan::own_parent(id),
            Some("lo") => {
                let text = "loopback interface is not a valid macvlan parent link";
                return Err(NetError::Driver(text.to_owned()));
            }
            Some(name) => name.to_owned(),
        };
        match self.by_id.values().find(|stored| stored.is_macvlan() && stored.link == parent) {
            None => Ok(parent),
            Some(other) => Err(NetError::Driver(format!(
                "network {} is already using parent interface {parent}",
                macvlan::own_parent(&other.network.id)
            ))),
        }
    }

    fn subnet(&self, spec: &LocalNetworkSpec, routed: &[Ipv4Net]) -> Result<Ipv4Net> {
        let mut taken: Vec<Ipv4Net> = self.by_id.values().filter_map(|stored| stored.network.subnet).collect();
        if let Some(subnet) = spec.subnet {
            let overlaps = taken.iter().any(|other| pool::overlap(subnet, *other));
            return if overlaps { Err(NetError::PoolOverlaps) } else { Ok(subnet.trunc()) };
        }
        taken.extend_from_slice(routed);
        pool::choose(&self.pools, &taken)
    }

    /// The gateway of a new network's IPv6 subnet, with its prefix length.
    fn gateway6(&self, spec: &LocalNetworkSpec, id: &NetworkId) -> Result<Ipv6Net> {
        let pool = spec.pool6.as_ref();
        let subnet = pool.map_or_else(|| unique_local_subnet(id), |pool| pool.subnet.trunc());
        let mut taken = self.by_id.values().filter_map(|stored| stored.network.gateway6);
        if taken.any(|other| other.contains(&subnet) || subnet.contains(&other.trunc())) {
            return Err(NetError::PoolOverlaps);
        }
        if let Some(range) = pool.and_then(|pool| pool.ip_range).filter(|range| !subnet.contains(range)) {
            return Err(NetError::Invalid(format!(
                "invalid network config:\ninvalid ip-range {range}: it should be within subnet {subnet}"
            )));
        }
        let gateway = pool.and_then(|pool| pool.gateway).unwrap_or_else(|| first_host6(subnet));
        if !subnet.contains(&gateway) {
            return Err(NetError::Invalid(format!("no matching subnet for gateway {gateway}")));
        }
        Ok(Ipv6Net::new_assert(gateway, subnet.prefix_len()))
    }

    pub(crate) fn insert(&mut self, stored: Stored) {
        self.by_id.insert(stored.network.id.clone(), stored);
    }

    pub(crate) fn remove(&mut self, id: &NetworkId) -> Option<Stored> {
        self.by_id.remove(id)
    }

    /// Whether a network may be removed.
    pub(crate) fn check_removal(&self, stored: &Stored) -> Result<()> {
        let name = stored.name();
        if is_predefined(name) {
            return Err(NetError::PredefinedRemoval(name.to_owned()));
        }
        if stored.network.spec.config_only && self.all().any(|other| other.network.spec.config_from == name) {
            let text = format!("error while removing network: configuration network {name:?} is in use");
            return Err(NetError::Forbidden(text));
        }
        let endpoints: Vec<String> = stored
            .network
            .endpoints
            .values()
            .map(|endpoint| {
                let name = endpoint.dns_names.first().map_or("", String::as_str);
                format!("name:{name:?} id:{:?}", endpoint.endpoint_id.short())
            })
            .collect();
        if endpoints.is_empty() {
            return Ok(());
        }
        Err(NetError::ActiveEndpoints { network: name.to_owned(), endpoints: endpoints.join(", ") })
    }

    /// An address on the network for a container, not yet recorded.
    pub(crate) fn assign(&self, id: &NetworkId, asked: Option<Ipv4Addr>) -> Result<Ipv4Net> {
        let stored = self.get(id).ok_or_else(|| NetError::NoSuchNetwork(id.to_string()))?;
        pool::assign(&stored.network, asked)
    }

    /// The same of IPv6; `None` on a network without.
    pub(crate) fn assign6(&self, id: &NetworkId, asked: Option<Ipv6Addr>) -> Result<Option<Ipv6Net>> {
        let stored = self.get(id).ok_or_else(|| NetError::NoSuchNetwork(id.to_string()))?;
        pool::assign6(&stored.network, asked)
    }

    pub(crate) fn connect(&mut self, container: &ContainerId, endpoint: EndpointInfo) {
        if let Some(stored) = self.by_id.get_mut(&endpoint.network_id) {
            stored.network.endpoints.insert(container.clone(), endpoint);
        }
    }

    pub(crate) fn disconnect(&mut self, container: &ContainerId, network: &NetworkId) {
        if let Some(stored) = self.by_id.get_mut(network) {
            stored.network.endpoints.remove(container);
        }
    }
}

/// `bridge`, `host` and `none` cannot be made or removed by users.
pub(crate) fn is_predefined(name: &str) -> bool {
    matches!(name, DEFAULT_NETWORK | "host" | "none" | "default")
}

/// The spec of `docker0`'s network, with the options tools expect to see.
pub(crate) fn default_spec(bip: Option<Ipv4Net>, mtu: Option<u32>) -> LocalNetworkSpec {
    let options = [
        (option::DEFAULT_BRIDGE, "true".to_owned()),
        (option::ICC, "true".to_owned()),
        (option::MASQUERADE, "true".to_owned()),
        (option::HOST_BINDING, "0.0.0.0".to_owned()),
        (option::LINK_NAME, DEFAULT_BRIDGE.to_owned()),
        (option::MTU, mtu.unwrap_or(1500).to_string()),
    ];
    LocalNetworkSpec {
        name: DEFAULT_NETWORK.to_owned(),
        driver: "bridge".to_owned(),
        options: options.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        subnet: bip.map(|bip| bip.trunc()),
        gateway: bip.map(|bip| bip.addr()),
        ..LocalNetworkSpec::default()
    }
}

/// The spec of the network that gives tasks a way out; they do not see each other on it.
pub(crate) fn gwbridge_spec() -> LocalNetworkSpec {
    let options = [(option::ICC, "false"), (option::MASQUERADE, "true"), (option::LINK_NAME, GWBRIDGE_NETWORK_NAME)];
    LocalNetworkSpec {
        name: GWBRIDGE_NETWORK_NAME.to_owned(),
        driver: "bridge".to_owned(),
        options: options.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        ..LocalNetworkSpec::default()
    }
}

/// A reader sees the old file or the new one, also after a crash.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let draft = path.with_extension("tmp");
    std::fs::write(&draft, bytes)?;
    std::fs::rename(&draft, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> NetworkId {
        format!("{n:064x}").parse().unwrap()
    }

    fn spec(name: &str) -> LocalNetworkSpec {
        LocalNetworkSpec { name: name.to_owned(), ..LocalNetworkSpec::default() }
    }

    fn two() -> Networks {
        let mut networks = Networks::new(&[]);
        networks.insert(networks.plan(default_spec(None, None), id(1), Timestamp::ZERO, &[]).unwrap());
        networks.insert(networks.plan(spec("web"), id(2), Timestamp::ZERO, &[]).unwrap());
        networks
    }

    fn refusal(networks: &Networks, spec: LocalNetworkSpec) -> String {
        networks.plan(spec, id(9), Timestamp::ZERO, &[]).unwrap_err().to_string()
    }

    #[test]
    fn a_network_gets_subnet_gateway_and_link() {
        let networks = two();
        let bridge = networks.find("bridge").unwrap();
        assert_eq!((bridge.link.as_str(), bridge.gateway_net()), ("docker0", Some("172.17.0.1/16".parse().unwrap())));
        let web = networks.find("web").unwrap();
        assert_eq!((web.link.as_str(), web.gateway_net()), ("br-000000000000", Some("172.18.0.1/16".parse().unwrap())));
        assert!(web.icc() && web.is_bridge() && !web.is_default_bridge());
        let routed = ["172.19.4.0/24".parse().unwrap()];
        let third = networks.plan(spec("third"), id(3), Timestamp::ZERO, &routed);
        assert_eq!(third.unwrap_err().to_string(), "networks have same bridge name br-000000000000");
        let bip = default_spec(Some("10.9.8.7/24".parse().unwrap()), None);
        let bridge = Networks::new(&[]).plan(bip, id(1), Timestamp::ZERO, &[]).unwrap();
        assert_eq!(bridge.gateway_net(), Some("10.9.8.7/24".parse().unwrap()));
        assert_eq!(bridge.network.subnet, Some("10.9.8.0/24".parse().unwrap()));
    }

    #[test]
    fn refusals_are_dockers() {
        let networks = two();
        assert_eq!(refusal(&networks, spec("web")), "network with name web already exists");
        let overlapping = LocalNetworkSpec { subnet: Some("172.18.3.0/24".parse().unwrap()), ..spec("x") };
        let text = "invalid pool request: Pool overlaps with other one on this address space";
        assert_eq!(refusal(&networks, overlapping), text);
        let options = [(option::MTU.to_owned(), "1200".to_owned())].into();
        let narrow = LocalNetworkSpec { ipv6: true, options, ..spec("narrow") };
        assert_eq!(refusal(&networks, narrow), "an MTU of 1200 is too small for IPv6: it is 1280 at least");
        let host = LocalNetworkSpec { driver: "host".into(), ..spec("h") };
        assert!(networks.plan(host, id(9), Timestamp::ZERO, &[]).is_ok());
        assert_eq!(networks.find("nope").unwrap_err().to_string(), "network nope not found");
        assert_eq!(
            networks.find("0").unwrap_err().to_string(),
            "network 0 is ambiguous (2 matches found on ID prefix)"
        );
        assert_eq!(networks.find(id(2).as_str()).unwrap().name(), "web");
        let removal = networks.check_removal(networks.find("bridge").unwrap()).unwrap_err();
        assert_eq!(removal.to_string(), "bridge is a pre-defined network and cannot be removed");
    }

    #[test]
    fn a_network_in_use_says_by_whom() {
        let mut networks = two();
        let address = networks.assign(&id(2), None).unwrap();
        assert_eq!(address, "172.18.0.2/16".parse().unwrap());
        let container = ContainerId::from_bits([0, 7]);
        let endpoint = EndpointInfo {
            network_id: id(2),
            network_name: "web".into(),
            endpoint_id: skep_model::EndpointId::from_bits([0xab << 120, 1]),
            address,
            gateway: None,
            address6: None,
            gateway6: None,
            mac: [0; 6],
            aliases: vec![],
            dns_names: vec!["c1".into()],
        };
        networks.connect(&container, endpoint);
        let error = networks.check_removal(networks.get(&id(2)).unwrap()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "error while removing network: network web has active endpoints (name:\"c1\" id:\"ab0000000000\")"
        );
        assert_eq!(networks.assign(&id(2), None).unwrap(), "172.18.0.3/16".parse().unwrap());
        networks.disconnect(&container, &id(2));
        assert!(networks.check_removal(networks.get(&id(2)).unwrap()).is_ok());
    }
}
