//! The next free address of a network.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use skep_model::network::Network;
use skep_store::View;

/// What is said on a task or service that got none (swarmkit's words).
pub(super) const EXHAUSTED: &str = "could not find an available IP";

/// Next-fit: the first free address after the one given last, around the range once.
pub(super) fn next(view: &View, network: &Network) -> Option<Ipv4Addr> {
    let allocation = network.allocation.as_ref()?;
    let range = network.spec.ip_range.filter(|r| allocation.subnet.contains(r)).unwrap_or(allocation.subnet);
    let (first, last) = hosts(range, allocation.subnet)?;
    let addresses = view.addresses(&network.id);
    let cursor = addresses.and_then(|a| a.cursor()).map_or(first - 1, u32::from);
    let start = if (first..last).contains(&cursor) { cursor + 1 } else { first };
    let free = |bits: &u32| {
        let address = Ipv4Addr::from(*bits);
        network.gives(address) && addresses.is_none_or(|a| a.owner(address).is_none())
    };
    (start..=last).chain(first..start).find(free).map(Ipv4Addr::from)
}

/// First and last usable address of a range: not the subnet's own name and broadcast.
fn hosts(range: Ipv4Net, subnet: Ipv4Net) -> Option<(u32, u32)> {
    let (low, high) = (u32::from(range.network()), u32::from(range.broadcast()));
    let first = low.max(u32::from(subnet.network()).checked_add(1)?);
    let last = high.min(u32::from(subnet.broadcast()).checked_sub(1)?);
    (first <= last && first > 0).then_some((first, last))
}
