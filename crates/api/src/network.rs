//! Networks of the swarm and of this host, in the two shapes Docker gives them: as `/networks` lists them, and inside a
//! task's attachment.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};
use skep_model::Labels;
use skep_model::network as model;
use skep_model::sandbox::{LocalNetwork, LocalNetworkSpec};

use crate::service::VolumeDriver;
use crate::{ConvertError, GoTime, ObjectVersion, is_default};

/// One of `GET /networks`, and the whole of an inspection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NetworkResource {
    pub name: String,
    pub id: String,
    pub created: GoTime,
    pub scope: String,
    pub driver: String,
    #[serde(rename = "EnableIPv4")]
    pub enable_ipv4: bool,
    #[serde(rename = "EnableIPv6")]
    pub enable_ipv6: bool,
    #[serde(rename = "IPAM")]
    pub ipam: Ipam,
    pub internal: bool,
    pub attachable: bool,
    pub ingress: bool,
    pub config_from: ConfigFrom,
    pub config_only: bool,
    pub containers: BTreeMap<String, EndpointResource>,
    pub options: BTreeMap<String, String>,
    pub labels: Labels,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerInfo>,
    /// With `verbose=true`: who is on it, by service.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub services: BTreeMap<String, ServiceInfo>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Ipam {
    pub driver: String,
    pub options: Option<BTreeMap<String, String>>,
    pub config: Vec<IpamConfig>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpamConfig {
    #[serde(rename = "Subnet", skip_serializing_if = "String::is_empty")]
    pub subnet: String,
    #[serde(rename = "IPRange", alias = "Range", skip_serializing_if = "String::is_empty")]
    pub ip_range: String,
    #[serde(rename = "Gateway", skip_serializing_if = "String::is_empty")]
    pub gateway: String,
    #[serde(rename = "AuxiliaryAddresses", skip_serializing_if = "BTreeMap::is_empty")]
    pub auxiliary_addresses: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ConfigFrom {
    pub network: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointResource {
    #[serde(rename = "Name")]
    pub name: String,
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    #[serde(rename = "MacAddress")]
    pub mac_address: String,
    #[serde(rename = "IPv4Address")]
    pub ipv4_address: String,
    #[serde(rename = "IPv6Address")]
    pub ipv6_address: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerInfo {
    #[serde(rename = "Name")]
    pub name: String,
    #[serde(rename = "IP")]
    pub ip: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceInfo {
    #[serde(rename = "VIP")]
    pub vip: String,
    #[serde(rename = "Ports")]
    pub ports: Vec<String>,
    #[serde(rename = "LocalLBIndex")]
    pub local_lb_index: i64,
    #[serde(rename = "Tasks")]
    pub tasks: Vec<ServiceTask>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceTask {
    #[serde(rename = "Name")]
    pub name: String,
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    #[serde(rename = "EndpointIP")]
    pub endpoint_ip: String,
    #[serde(rename = "Info")]
    pub info: BTreeMap<String, String>,
}

/// `swarm.Network`, as task attachments hold it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct SwarmNetwork {
    #[serde(rename = "ID")]
    pub id: String,
    pub version: ObjectVersion,
    pub created_at: GoTime,
    pub updated_at: GoTime,
    pub spec: SwarmNetworkSpec,
    pub driver_state: VolumeDriver,
    #[serde(rename = "IPAMOptions", skip_serializing_if = "Option::is_none")]
    pub ipam_options: Option<IpamOptions>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct SwarmNetworkSpec {
    pub name: String,
    pub labels: Labels,
    pub driver_configuration: VolumeDriver,
    #[serde(rename = "IPv6Enabled", skip_serializing_if = "is_default")]
    pub ipv6_enabled: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub internal: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub attachable: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub ingress: bool,
    #[serde(rename = "IPAMOptions")]
    pub ipam_options: IpamOptions,
    #[serde(skip_serializing_if = "is_default")]
    pub config_from: ConfigFrom,
    pub scope: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct IpamOptions {
    pub driver: VolumeDriver,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub configs: Vec<IpamConfig>,
}

/// `POST /networks/create`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct CreateRequest {
    pub name: String,
    pub check_duplicate: bool,
    pub driver: String,
    pub scope: String,
    #[serde(rename = "EnableIPv4")]
    pub enable_ipv4: Option<bool>,
    #[serde(rename = "EnableIPv6")]
    pub enable_ipv6: Option<bool>,
    #[serde(rename = "IPAM")]
    pub ipam: Option<Ipam>,
    pub internal: bool,
    pub attachable: bool,
    pub ingress: bool,
    pub config_only: bool,
    pub config_from: Option<ConfigFrom>,
    pub options: BTreeMap<String, String>,
    pub labels: Labels,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct CreateResponse {
    pub id: String,
    pub warning: String,
}

/// `POST /networks/{id}/connect`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ConnectRequest {
    pub container: String,
    pub endpoint_config: Option<EndpointSettings>,
}

/// `POST /networks/{id}/disconnect`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DisconnectRequest {
    pub container: String,
    pub force: bool,
}

/// A container's place on a network: asked for at create and connect, told by inspect.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointSettings {
    #[serde(rename = "IPAMConfig")]
    pub ipam_config: Option<EndpointIpam>,
    #[serde(rename = "Links")]
    pub links: Option<Vec<String>>,
    #[serde(rename = "Aliases")]
    pub aliases: Option<Vec<String>>,
    #[serde(rename = "MacAddress")]
    pub mac_address: String,
    #[serde(rename = "DriverOpts")]
    pub driver_opts: Option<BTreeMap<String, String>>,
    #[serde(rename = "GwPriority")]
    pub gw_priority: i64,
    #[serde(rename = "NetworkID")]
    pub network_id: String,
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    #[serde(rename = "Gateway")]
    pub gateway: String,
    #[serde(rename = "IPAddress")]
    pub ip_address: String,
    #[serde(rename = "IPPrefixLen")]
    pub ip_prefix_len: u8,
    #[serde(rename = "IPv6Gateway")]
    pub ipv6_gateway: String,
    #[serde(rename = "GlobalIPv6Address")]
    pub global_ipv6_address: String,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    pub global_ipv6_prefix_len: u8,
    #[serde(rename = "DNSNames")]
    pub dns_names: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointIpam {
    #[serde(rename = "IPv4Address", skip_serializing_if = "String::is_empty")]
    pub ipv4_address: String,
    #[serde(rename = "IPv6Address", skip_serializing_if = "String::is_empty")]
    pub ipv6_address: String,
    #[serde(rename = "LinkLocalIPs", skip_serializing_if = "Vec::is_empty")]
    pub link_local_ips: Vec<String>,
}

impl EndpointSettings {
    /// What is asked for on `network`; refuses what a connection here cannot have.
    pub fn into_request(self, network: String) -> Result<skep_model::sandbox::EndpointRequest, ConvertError> {
        let ipam = self.ipam_config.unwrap_or_default();
        if !ipam.link_local_ips.is_empty() {
            return ConvertError::unserved("a link-local address of a container");
        }
        if self.links.is_some_and(|links| !links.is_empty()) {
            return ConvertError::unserved("linking containers");
        }
        let address = match ipam.ipv4_address.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| ConvertError::Invalid(format!("invalid IPv4 address: {text}")))?),
        };
        let address6 = match ipam.ipv6_address.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| ConvertError::Invalid(format!("invalid IPv6 address: {text}")))?),
        };
        let mac = if self.mac_address.is_empty() { None } else { Some(parse_mac(&self.mac_address)?) };
        Ok(skep_model::sandbox::EndpointRequest {
            network,
            aliases: self.aliases.unwrap_or_default(),
            address,
            address6,
            mac,
            driver_options: self.driver_opts.unwrap_or_default(),
            made_from: None,
        })
    }
}

/// `02:42:ac:11:00:02`.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

pub fn parse_mac(text: &str) -> Result<[u8; 6], ConvertError> {
    let bad = || ConvertError::Invalid(format!("invalid MAC address: {text}"));
    let bytes: Vec<u8> =
        text.split([':', '-']).map(|p| u8::from_str_radix(p, 16).map_err(|_| bad())).collect::<Result<_, _>>()?;
    bytes.try_into().map_err(|_| bad())
}

impl From<&model::Network> for NetworkResource {
    fn from(network: &model::Network) -> Self {
        let mut options = network.spec.driver_options.clone();
        if let Some(allocation) = &network.allocation {
            options.insert(model::VXLAN_ID_OPTION.into(), allocation.vni.to_string());
        }
        Self {
            name: network.spec.name.clone(),
            id: network.id.to_string(),
            created: network.meta.created_at.into(),
            scope: "swarm".into(),
            driver: network.spec.driver.clone(),
            enable_ipv4: true,
            enable_ipv6: network.spec.ipv6,
            ipam: Ipam { driver: ipam_driver(&network.spec), options: None, config: ipam_configs(network) },
            internal: network.spec.internal,
            attachable: network.spec.attachable,
            ingress: network.spec.ingress,
            config_from: ConfigFrom { network: network.spec.config_from.clone() },
            options,
            labels: shown_labels(network),
            ..Default::default()
        }
    }
}

/// The swarm has no addresses to give on networks that the nodes make for themselves.
fn ipam_driver(spec: &model::NetworkSpec) -> String {
    if spec.is_node_local() { String::new() } else { "default".into() }
}

/// swarmkit marks its own networks with a label that moby does not show.
fn shown_labels(network: &model::Network) -> Labels {
    network
        .spec
        .labels
        .iter()
        .filter(|(k, _)| *k != "com.docker.swarm.internal")
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

fn ipam_configs(network: &model::Network) -> Vec<IpamConfig> {
    match &network.allocation {
        Some(allocation) => {
            let four = IpamConfig {
                subnet: allocation.subnet.to_string(),
                gateway: allocation.gateway.to_string(),
                ip_range: network.spec.ip_range.map(|r| r.to_string()).unwrap_or_default(),
                auxiliary_addresses: texts(&network.spec.auxiliary),
            };
            let six = allocation.gateway6.map(|gateway| config6(gateway, network.spec.pool6.as_ref()));
            [four].into_iter().chain(six).collect()
        }
        None => asked_configs(&network.spec),
    }
}

fn asked_configs(spec: &model::NetworkSpec) -> Vec<IpamConfig> {
    let asked = spec.subnet.is_some() || spec.gateway.is_some() || spec.ip_range.is_some();
    let four = asked.then(|| IpamConfig {
        subnet: spec.subnet.map(|s| s.to_string()).unwrap_or_default(),
        gateway: spec.gateway.map(|g| g.to_string()).unwrap_or_default(),
        ip_range: spec.ip_range.map(|r| r.to_string()).unwrap_or_default(),
        auxiliary_addresses: texts(&spec.auxiliary),
    });
    let six = spec.pool6.as_ref().map(|pool| IpamConfig {
        subnet: pool.subnet.to_string(),
        gateway: pool.gateway.map(|g| g.to_string()).unwrap_or_default(),
        ip_range: pool.ip_range.map(|r| r.to_string()).unwrap_or_default(),
        auxiliary_addresses: texts(&pool.auxiliary),
    });
    four.into_iter().chain(six).collect()
}

/// The IPv6 half of an IPAM configuration, of the gateway with the subnet's prefix length.
fn config6(gateway: Ipv6Net, asked: Option<&model::Ipv6Pool>) -> IpamConfig {
    IpamConfig {
        subnet: gateway.trunc().to_string(),
        gateway: gateway.addr().to_string(),
        ip_range: asked.and_then(|pool| pool.ip_range).map(|range| range.to_string()).unwrap_or_default(),
        auxiliary_addresses: asked.map(|pool| texts(&pool.auxiliary)).unwrap_or_default(),
    }
}

fn texts(auxiliary: &BTreeMap<String, impl Display>) -> BTreeMap<String, String> {
    auxiliary.iter().map(|(name, address)| (name.clone(), address.to_string())).collect()
}

impl From<&model::Network> for SwarmNetwork {
    fn from(network: &model::Network) -> Self {
        let resource = NetworkResource::from(network);
        let default_ipam = VolumeDriver { name: "default".into(), ..Default::default() };
        Self {
            id: network.id.to_string(),
            version: ObjectVersion { index: network.meta.version },
            created_at: network.meta.created_at.into(),
            updated_at: network.meta.updated_at.into(),
            spec: SwarmNetworkSpec {
                name: network.spec.name.clone(),
                labels: shown_labels(network),
                driver_configuration: VolumeDriver {
                    name: network.spec.driver.clone(),
                    options: network.spec.driver_options.clone(),
                },
                ipv6_enabled: network.spec.ipv6,
                internal: network.spec.internal,
                attachable: network.spec.attachable,
                ingress: network.spec.ingress,
                ipam_options: IpamOptions { driver: default_ipam, configs: asked_configs(&network.spec) },
                config_from: resource.config_from,
                scope: "swarm".into(),
            },
            driver_state: VolumeDriver { name: resource.driver, options: resource.options },
            ipam_options: Some(IpamOptions {
                driver: VolumeDriver { name: resource.ipam.driver, ..Default::default() },
                configs: resource.ipam.config,
            }),
        }
    }
}

impl From<&LocalNetwork> for NetworkResource {
    fn from(network: &LocalNetwork) -> Self {
        // A configuration network has none of its own, and shows what it is for.
        let asked = &network.spec;
        let config = network.subnet.or(asked.subnet.filter(|_| asked.config_only)).map(|subnet| IpamConfig {
            subnet: subnet.to_string(),
            gateway: network.gateway.or(asked.gateway).map(|g| g.to_string()).unwrap_or_default(),
            ip_range: network.spec.ip_range.map(|r| r.to_string()).unwrap_or_default(),
            auxiliary_addresses: texts(&network.spec.auxiliary),
        });
        let config6 = network.gateway6.map(|gateway| config6(gateway, network.spec.pool6.as_ref()));
        Self {
            name: network.spec.name.clone(),
            id: network.id.to_string(),
            created: network.created_at.into(),
            scope: if network.spec.of_swarm { "swarm" } else { "local" }.into(),
            driver: network.spec.driver.clone(),
            enable_ipv4: true,
            enable_ipv6: network.spec.ipv6,
            ipam: Ipam { driver: "default".into(), options: None, config: config.into_iter().chain(config6).collect() },
            internal: network.spec.internal,
            attachable: network.spec.attachable,
            options: network.spec.options.clone(),
            labels: network.spec.labels.clone(),
            config_from: ConfigFrom { network: network.spec.config_from.clone() },
            config_only: network.spec.config_only,
            ..Default::default()
        }
    }
}

/// Which side a created network belongs to.
#[derive(Clone, Debug, PartialEq)]
pub enum CreateSpec {
    Swarm(model::NetworkSpec),
    Local(LocalNetworkSpec),
}

fn parsed<T: std::str::FromStr>(text: &str, what: &str) -> Result<Option<T>, ConvertError> {
    match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| ConvertError::Invalid(format!("invalid {what}: {text}"))),
    }
}

impl IpamConfig {
    /// By the first of its members that says.
    fn is_ipv6(&self) -> bool {
        let texts = [&self.subnet, &self.gateway, &self.ip_range];
        texts.into_iter().find(|text| !text.is_empty()).is_some_and(|text| text.contains(':'))
    }

    /// What it asks of a network's IPv6 addresses.
    fn into_pool6(self, ipv6: bool) -> Result<model::Ipv6Pool, ConvertError> {
        let refuse = |text: String| Err(ConvertError::Invalid(format!("invalid network config:\n{text}")));
        let Some(subnet) = parsed::<Ipv6Net>(&self.subnet, "subnet")? else {
            return refuse("an IPv6 gateway or ip-range needs an IPv6 subnet: add --subnet".to_owned());
        };
        if !ipv6 {
            return refuse(format!("IPv6 subnet {subnet} on a network without IPv6: add --ipv6"));
        }
        if subnet.trunc() != subnet {
            return refuse(format!("invalid subnet {subnet}: it should be {}", subnet.trunc()));
        }
        let gateway: Option<Ipv6Addr> = parsed(&self.gateway, "gateway address")?;
        if let Some(gateway) = gateway.filter(|gateway| !subnet.contains(gateway)) {
            return refuse(format!("invalid gateway {gateway}: parent subnet is {subnet}"));
        }
        let mut auxiliary = BTreeMap::new();
        for (name, text) in self.auxiliary_addresses {
            match parsed(&text, "auxiliary address")?.filter(|address| subnet.contains(address)) {
                Some(address) => _ = auxiliary.insert(name, address),
                None => return refuse(format!("invalid auxiliary address {name}: parent subnet is {subnet}")),
            }
        }
        Ok(model::Ipv6Pool { subnet, gateway, ip_range: parsed(&self.ip_range, "ip-range")?, auxiliary })
    }
}

impl CreateRequest {
    /// The configuration network it depends on, or none; in libnetwork's words where that does not go together with the rest.
    fn check_configuration(&self) -> Result<String, ConvertError> {
        let from = self.config_from.as_ref().map(|from| from.network.clone()).unwrap_or_default();
        if self.config_only && (self.ingress || self.internal || self.attachable || !self.scope.is_empty()) {
            return ConvertError::forbidden(
                "configuration network can only contain network specific fields. Network operator fields like [ ingress | \
                 internal | attachable | scope ] are not supported.",
            );
        }
        if from.is_empty() {
            return Ok(from);
        }
        if self.config_only {
            return ConvertError::forbidden("a configuration network cannot depend on another configuration network");
        }
        let ipam = self.ipam.as_ref();
        let addresses = ipam.is_some_and(|ipam| !ipam.config.is_empty() || ipam.options.iter().any(|o| !o.is_empty()));
        if addresses || self.enable_ipv6 == Some(true) || !self.labels.is_empty() {
            return ConvertError::forbidden(
                "user specified configurations are not supported if the network depends on a configuration network",
            );
        }
        if !self.options.is_empty() {
            return ConvertError::forbidden(
                "network driver options are not supported if the network depends on a configuration network",
            );
        }
        Ok(from)
    }

    pub fn into_spec(self) -> Result<CreateSpec, ConvertError> {
        if self.name.trim().is_empty() {
            return ConvertError::invalid("network name is required");
        }
        let config_from = self.check_configuration()?;
        if self.enable_ipv4 == Some(false) {
            return ConvertError::unserved("a network without IPv4");
        }
        let ipam = self.ipam.unwrap_or_default();
        if !matches!(ipam.driver.as_str(), "" | "default") {
            return ConvertError::unserved(format!("IPAM driver {:?}", ipam.driver));
        }
        if ipam.options.is_some_and(|o| !o.is_empty()) {
            return ConvertError::unserved("IPAM options");
        }
        let ipv6 = self.enable_ipv6 == Some(true);
        let asked_addresses = !ipam.config.is_empty();
        let (six, four): (Vec<_>, Vec<_>) = ipam.config.into_iter().partition(IpamConfig::is_ipv6);
        if four.len() > 1 || six.len() > 1 {
            return ConvertError::unserved("more than one subnet of an IP version on a network");
        }
        let pool6 = six.into_iter().next().map(|config| config.into_pool6(ipv6)).transpose()?;
        let config = four.into_iter().next().unwrap_or_default();
        let subnet: Option<ipnet::Ipv4Net> = parsed(&config.subnet, "subnet")?;
        if let Some(subnet) = subnet.filter(|s| s.trunc() != *s) {
            return ConvertError::invalid(format!(
                "invalid network config:\ninvalid subnet {subnet}: it should be {}",
                subnet.trunc()
            ));
        }
        let gateway: Option<Ipv4Addr> = parsed(&config.gateway, "gateway address")?;
        let ip_range: Option<ipnet::Ipv4Net> = parsed(&config.ip_range, "ip-range")?;
        if let (Some(subnet), Some(gateway)) = (subnet, gateway)
            && !subnet.contains(&gateway)
        {
            return ConvertError::invalid(format!(
                "invalid network config:\ninvalid gateway {gateway}: parent subnet is {subnet}"
            ));
        }
        let mut auxiliary = BTreeMap::new();
        for (name, text) in config.auxiliary_addresses {
            // The bridge driver's: it sets another gateway in the containers.
            if name == "DefaultGatewayIPv4" {
                return ConvertError::unserved("the auxiliary address DefaultGatewayIPv4");
            }
            let address: Option<Ipv4Addr> = parsed(&text, "auxiliary address")?;
            let Some(address) = address.filter(|a| subnet.is_none_or(|s| s.contains(a))) else {
                let subnet = config.subnet;
                return ConvertError::invalid(format!(
                    "invalid network config:\ninvalid auxiliary address {name}: parent subnet is {subnet}"
                ));
            };
            auxiliary.insert(name, address);
        }
        if !matches!(self.scope.as_str(), "" | "local" | "swarm") {
            return ConvertError::invalid(format!("invalid network scope {:?}: it is swarm or local", self.scope));
        }
        // Docker drops them on the way to the nodes.
        let has_own = !self.options.is_empty() || asked_addresses;
        match self.driver.as_str() {
            "overlay" if !config_from.is_empty() => ConvertError::unserved("an overlay with --config-from"),
            "overlay" if self.scope == "local" => {
                ConvertError::forbidden("cannot downgrade network scope for overlay networks")
            }
            "" | "bridge" | "macvlan" if self.ingress && !self.config_only => {
                ConvertError::forbidden("Ingress network can only be global scope network")
            }
            "" | "bridge" | "macvlan" if self.scope == "swarm" && has_own => ConvertError::invalid(format!(
                "a {} network of scope swarm has the options and addresses that each node gives it: create a network with \
                 --config-only on every node, and this one with its name as --config-from",
                self.driver
            )),
            "" | "bridge" | "macvlan" if self.scope == "swarm" && !self.config_only => {
                let driver = if self.driver.is_empty() { "bridge".to_owned() } else { self.driver };
                Ok(CreateSpec::Swarm(model::NetworkSpec {
                    name: self.name,
                    labels: self.labels,
                    driver,
                    attachable: self.attachable,
                    internal: self.internal,
                    ipv6,
                    config_from,
                    ..model::NetworkSpec::default()
                }))
            }
            "overlay" if !self.config_only => Ok(CreateSpec::Swarm(model::NetworkSpec {
                name: self.name,
                labels: self.labels,
                driver: self.driver,
                driver_options: self.options,
                attachable: self.attachable,
                internal: self.internal,
                ingress: self.ingress,
                ipv6,
                subnet,
                gateway,
                ip_range,
                auxiliary,
                pool6,
                config_from,
            })),
            driver if self.config_only || matches!(driver, "" | "bridge" | "macvlan") => {
                Ok(CreateSpec::Local(LocalNetworkSpec {
                    name: self.name,
                    driver: match driver {
                        _ if self.config_only => "null".into(),
                        "" => "bridge".into(),
                        driver => driver.to_owned(),
                    },
                    config_only: self.config_only,
                    config_from,
                    labels: self.labels,
                    options: self.options,
                    internal: self.internal,
                    attachable: self.attachable,
                    subnet,
                    gateway,
                    ip_range,
                    auxiliary,
                    ipv6,
                    pool6,
                    of_swarm: false,
                }))
            }
            "host" | "null" => {
                ConvertError::invalid(format!("only one instance of \"{}\" network is allowed", self.driver))
            }
            other => ConvertError::unserved(format!("network driver {other:?} (bridge, macvlan and overlay are)")),
        }
    }
}

/// `POST /networks/prune`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PruneReport {
    #[serde(rename = "NetworksDeleted")]
    pub networks_deleted: Option<Vec<String>>,
}

/// `EndpointsConfig` of a container's create request: by network, `null` for "as it comes".
pub type EndpointsConfig = BTreeMap<String, Option<EndpointSettings>>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::go_json;

    #[test]
    fn create_as_the_cli_sends_it() {
        let body = br#"{"Driver":"overlay","Scope":"","EnableIPv6":false,"IPAM":{"Driver":"default","Options":{},"Config":[{"Subnet":"10.9.0.0/24"}]},
            "Internal":false,"Attachable":true,"Ingress":false,"ConfigOnly":false,"ConfigFrom":null,"Options":{},"Labels":{"a":"b"},"Name":"mynet"}"#;
        let CreateSpec::Swarm(spec) = go_json::decode::<CreateRequest>(body).unwrap().into_spec().unwrap() else {
            panic!()
        };
        assert_eq!(spec.subnet, Some("10.9.0.0/24".parse().unwrap()));
        assert!(spec.attachable);
        let body = br#"{"Name":"s","EnableIPv6":true,"IPAM":{"Config":[{"Subnet":"fd00::/64","Gateway":"fd00::9"},{"Subnet":"10.1.0.0/24"}]}}"#;
        let CreateSpec::Local(spec) = go_json::decode::<CreateRequest>(body).unwrap().into_spec().unwrap() else {
            panic!()
        };
        let pool6 = spec.pool6.unwrap();
        assert_eq!((spec.ipv6, spec.subnet), (true, Some("10.1.0.0/24".parse().unwrap())));
        assert_eq!((pool6.subnet, pool6.gateway), ("fd00::/64".parse().unwrap(), Some("fd00::9".parse().unwrap())));
        let body = br#"{"Name":"b","Driver":"bridge","IPAM":{"Driver":"default","Config":[]}}"#;
        assert!(matches!(go_json::decode::<CreateRequest>(body).unwrap().into_spec(), Ok(CreateSpec::Local(_))));
    }

    #[test]
    fn refusals() {
        let refused = |body: &str| go_json::decode::<CreateRequest>(body.as_bytes()).unwrap().into_spec().unwrap_err();
        assert!(matches!(refused(r#"{"Name":"a","Driver":"ipvlan"}"#), ConvertError::Unserved(_)));
        assert!(matches!(refused(r#"{"Driver":"overlay"}"#), ConvertError::Invalid(_)));
        for (ipv6, config) in [
            (false, r#"{"Subnet":"fd00::/64"}"#),
            (true, r#"{"Subnet":"fd00::1/64"}"#),
            (true, r#"{"Subnet":"fd00::/64","Gateway":"fd01::1"}"#),
            (true, r#"{"Subnet":"fd00::/64","AuxiliaryAddresses":{"b":"fd01::1"}}"#),
            (true, r#"{"IPRange":"fd00::/80"}"#),
        ] {
            let body = format!(r#"{{"Name":"a","EnableIPv6":{ipv6},"IPAM":{{"Config":[{config}]}}}}"#);
            assert!(matches!(refused(&body), ConvertError::Invalid(_)), "{body}");
        }
        assert!(matches!(
            refused(r#"{"Name":"a","IPAM":{"Config":[{"Subnet":"10.0.0.0/24","Gateway":"10.1.0.1"}]}}"#),
            ConvertError::Invalid(_)
        ));
        let auxiliary =
            r#"{"Name":"a","IPAM":{"Config":[{"Subnet":"10.0.0.0/24","AuxiliaryAddresses":{"b":"10.1.0.1"}}]}}"#;
        assert!(matches!(refused(auxiliary), ConvertError::Invalid(_)));
    }

    #[test]
    fn macs() {
        assert_eq!(mac_text([2, 0x42, 0xac, 17, 0, 2]), "02:42:ac:11:00:02");
        assert_eq!(parse_mac("02:42:ac:11:00:02").unwrap(), [2, 0x42, 0xac, 17, 0, 2]);
        assert!(parse_mac("02:42").is_err());
    }
}
