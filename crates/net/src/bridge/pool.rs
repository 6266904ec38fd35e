//! Which subnet a network gets, and which address a container on it.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use skep_model::sandbox::{LocalNetwork, LocalNetworkSpec};

use crate::config::AddressPool;
use crate::error::{NetError, Result};

/// Docker's pools for networks of one host (libnetwork `ipamutils.localScopeDefaultNetworks`).
pub(super) fn default_pools() -> Vec<AddressPool> {
    let pool = |a, b, bits, size| AddressPool { base: Ipv4Net::new_assert(Ipv4Addr::new(a, b, 0, 0), bits), size };
    vec![
        pool(172, 17, 16, 16),
        pool(172, 18, 16, 16),
        pool(172, 19, 16, 16),
        pool(172, 20, 14, 16),
        pool(172, 24, 14, 16),
        pool(172, 28, 14, 16),
        pool(192, 168, 16, 20),
    ]
}

/// Whether two subnets have an address in common.
pub(crate) fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// The first subnet of the pools that overlaps none of `taken`: other networks, and what the host itself routes.
pub(super) fn choose(pools: &[AddressPool], taken: &[Ipv4Net]) -> Result<Ipv4Net> {
    pools
        .iter()
        .filter_map(|pool| pool.base.subnets(pool.size).ok())
        .flatten()
        .find(|subnet| !taken.iter().any(|other| overlap(*subnet, *other)))
        .ok_or(NetError::NoFreePool)
}

/// An address for a container: the one asked for, or the lowest free one.
pub(super) fn assign(network: &LocalNetwork, asked: Option<Ipv4Addr>) -> Result<Ipv4Net> {
    let subnet = network.subnet.ok_or_else(|| NetError::NoSuchNetwork(network.spec.name.clone()))?;
    let used: BTreeSet<Ipv4Addr> = network.endpoints.values().map(|endpoint| endpoint.address.addr()).collect();
    let has_use = |address: &Ipv4Addr| network.spec.auxiliary.values().any(|a| a == address);
    let free = |address: &Ipv4Addr| !used.contains(address) && network.gateway != Some(*address) && !has_use(address);
    let with_prefix = |address| Ipv4Net::new_assert(address, subnet.prefix_len());
    if let Some(address) = asked {
        if !subnet.contains(&address) {
            return Err(NetError::Invalid(format!(
                "invalid endpoint settings:\nno configured subnet contains IP address {address}"
            )));
        }
        return if free(&address) { Ok(with_prefix(address)) } else { Err(NetError::AddressInUse) };
    }
    let range = network.spec.ip_range.unwrap_or(subnet);
    let edge = |address: &Ipv4Addr| *address == subnet.network() || *address == subnet.broadcast();
    addresses(range)
        .filter(|address| subnet.prefix_len() >= 31 || !edge(address))
        .find(free)
        .map(with_prefix)
        .ok_or_else(|| NetError::NoFreeAddress { name: network.spec.name.clone(), id: network.id.to_string() })
}

/// The same of IPv6; `None` on a network without.
pub(super) fn assign6(network: &LocalNetwork, asked: Option<Ipv6Addr>) -> Result<Option<Ipv6Net>> {
    let outside = |address| {
        NetError::Invalid(format!("invalid endpoint settings:\nno configured subnet contains IP address {address}"))
    };
    let Some(gateway) = network.gateway6 else { return asked.map_or(Ok(None), |address| Err(outside(address))) };
    let subnet = gateway.trunc();
    let pool = network.spec.pool6.as_ref();
    let endpoints = network.endpoints.values().filter_map(|endpoint| endpoint.address6);
    let mut used: BTreeSet<Ipv6Addr> = endpoints.map(|address| address.addr()).collect();
    // The subnet's own address is every router's (RFC 4291, 2.6.1).
    used.extend([subnet.network(), gateway.addr()]);
    used.extend(pool.iter().flat_map(|pool| pool.auxiliary.values()));
    let with_prefix = |address| Some(Ipv6Net::new_assert(address, subnet.prefix_len()));
    if let Some(address) = asked {
        return match address {
            address if !subnet.contains(&address) => Err(outside(address)),
            address if used.contains(&address) => Err(NetError::AddressInUse),
            address => Ok(with_prefix(address)),
        };
    }
    let range = pool.and_then(|pool| pool.ip_range).unwrap_or(subnet);
    // One more than are in use is enough to find one that is not.
    let candidates = (u128::from(range.network())..=u128::from(range.broadcast())).take(used.len() + 1);
    let free = candidates.map(Ipv6Addr::from).find(|address| !used.contains(address));
    let none = || NetError::NoFreeAddress { name: network.spec.name.clone(), id: network.id.to_string() };
    free.map(with_prefix).ok_or_else(none)
}

/// All addresses of a range, its first and last too: only those of the whole subnet are special.
fn addresses(range: Ipv4Net) -> impl Iterator<Item = Ipv4Addr> {
    (u32::from(range.network())..=u32::from(range.broadcast())).map(Ipv4Addr::from)
}

/// The gateway of a network nobody chose one for: the first usable address of its subnet.
pub(super) fn first_host(subnet: Ipv4Net, spec: &LocalNetworkSpec) -> Ipv4Addr {
    let has_use = |address: &Ipv4Addr| spec.auxiliary.values().any(|a| a == address);
    subnet.hosts().find(|address| !has_use(address)).unwrap_or_else(|| subnet.network())
}

#[cfg(test)]
mod tests {
    use skep_model::sandbox::EndpointInfo;

    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn subnets_come_in_dockers_order_and_avoid_what_is_taken() {
        let pools = default_pools();
        let mut taken = Vec::new();
        for expected in ["172.17.0.0/16", "172.18.0.0/16", "172.19.0.0/16", "172.20.0.0/16", "172.21.0.0/16"] {
            let subnet = choose(&pools, &taken).unwrap();
            assert_eq!(subnet, net(expected));
            taken.push(subnet);
        }
        assert_eq!(choose(&pools, &[net("172.16.0.0/12")]).unwrap(), net("192.168.0.0/20"));
        assert_eq!(choose(&pools, &[net("172.16.0.0/12"), net("192.168.3.0/24")]).unwrap(), net("192.168.16.0/20"));
        assert!(matches!(choose(&pools, &[net("0.0.0.0/0")]), Err(NetError::NoFreePool)));
    }

    #[test]
    fn the_lowest_free_address_is_given_within_the_range() {
        let spec = LocalNetworkSpec { name: "n".into(), ..LocalNetworkSpec::default() };
        let mut network = LocalNetwork {
            id: "abc".parse().unwrap(),
            created_at: skep_model::Timestamp::ZERO,
            spec,
            subnet: Some(net("10.1.0.0/29")),
            gateway: Some([10, 1, 0, 1].into()),
            gateway6: None,
            endpoints: Default::default(),
        };
        let mut given = Vec::new();
        for n in 0.. {
            let Ok(address) = assign(&network, None) else { break };
            given.push(address.addr().octets()[3]);
            let endpoint = EndpointInfo {
                network_id: network.id.clone(),
                network_name: "n".into(),
                endpoint_id: skep_model::EndpointId::from_bits([0, n]),
                address,
                gateway: None,
                address6: None,
                gateway6: None,
                mac: [0; 6],
                aliases: Vec::new(),
                dns_names: Vec::new(),
            };
            network.endpoints.insert(skep_model::ContainerId::from_bits([0, n]), endpoint);
        }
        assert_eq!(given, [2, 3, 4, 5, 6]);
        assert!(matches!(assign(&network, Some([10, 1, 0, 1].into())), Err(NetError::AddressInUse)));
        assert!(matches!(assign(&network, Some([10, 1, 0, 2].into())), Err(NetError::AddressInUse)));
        assert!(matches!(assign(&network, Some([10, 2, 0, 2].into())), Err(NetError::Invalid(_))));
        network.spec.ip_range = Some(net("10.1.0.4/31"));
        network.endpoints.clear();
        assert_eq!(assign(&network, None).unwrap().addr(), Ipv4Addr::new(10, 1, 0, 4));
    }

    #[test]
    fn an_ipv6_address_is_the_lowest_that_nobody_has() {
        let pool6 = skep_model::network::Ipv6Pool {
            subnet: "fd00::/64".parse().unwrap(),
            gateway: None,
            ip_range: None,
            auxiliary: [("nas".to_owned(), "fd00::2".parse().unwrap())].into(),
        };
        let mut network = LocalNetwork {
            id: "abc".parse().unwrap(),
            created_at: skep_model::Timestamp::ZERO,
            spec: LocalNetworkSpec { pool6: Some(pool6), ..LocalNetworkSpec::default() },
            subnet: None,
            gateway: None,
            gateway6: Some("fd00::1/64".parse().unwrap()),
            endpoints: Default::default(),
        };
        let next = |network: &LocalNetwork| assign6(network, None).map(|address| address.unwrap().to_string());
        assert_eq!(next(&network).unwrap(), "fd00::3/64");
        for taken in ["fd00::", "fd00::1", "fd00::2"] {
            assert!(matches!(assign6(&network, Some(taken.parse().unwrap())), Err(NetError::AddressInUse)), "{taken}");
        }
        assert!(matches!(assign6(&network, Some("fd01::5".parse().unwrap())), Err(NetError::Invalid(_))));
        assert_eq!(assign6(&network, Some("fd00::5".parse().unwrap())).unwrap(), "fd00::5/64".parse().ok());
        network.spec.pool6.as_mut().unwrap().ip_range = Some("fd00::1/128".parse().unwrap());
        assert!(matches!(next(&network), Err(NetError::NoFreeAddress { .. })));
        network.gateway6 = None;
        assert!(matches!(assign6(&network, None), Ok(None)));
        assert!(matches!(assign6(&network, Some("fd00::5".parse().unwrap())), Err(NetError::Invalid(_))));
    }
}
