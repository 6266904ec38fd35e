//! What the container resolver answers: a question and the zones of the container's networks in, an answer out.
//!
//! Decides which network's name wins and what may leave the host. Must not know wire format, sockets, or how zones came
//! about. The order of several addresses is the caller's: it takes turns.
//!
//! The rules are libnetwork's (`sandbox.ResolveName`): the whole name on each network in the container's order first, then
//! `name.network` with the split at every dot, so that names with dots in them are found too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use skep_model::dns::{Answer, Question, Zone};

#[cfg(test)]
mod tests;

/// Answers from the zones, in the order of the container's networks; the first network that knows the name wins.
pub fn answer(zones: &[&Zone], question: &Question) -> Answer {
    match question {
        Question::A(name) => match find(zones, name) {
            Some((_, addresses)) if !addresses.is_empty() => Answer::A(addresses.to_vec()),
            // A service without a running task: its name is ours, and must not be looked for elsewhere.
            Some(_) => Answer::NoData,
            None => elsewhere(zones),
        },
        Question::Aaaa(name) => match find(zones, name) {
            Some((zone, addresses)) => match six(zone, addresses) {
                // On a network without IPv6. The name must not go upstream, or a client that asks for both gets a
                // stranger's address.
                list if list.is_empty() => Answer::NoData,
                list => Answer::Aaaa(list),
            },
            None => elsewhere(zones),
        },
        Question::Other(name) => known(zones, find(zones, name).is_some()),
        Question::Srv(name) => {
            let service = service_of(name);
            known(zones, find(zones, name).or_else(|| service.and_then(|service| find(zones, service))).is_some())
        }
        Question::Ptr(address) => match find_address(zones, *address) {
            Some(names) => Answer::Ptr(names),
            None => elsewhere(zones),
        },
    }
}

fn known(zones: &[&Zone], found: bool) -> Answer {
    if found { Answer::NoData } else { elsewhere(zones) }
}

/// A name that is nobody's here. From internal networks no query leaves the host (CVE-2024-29018).
fn elsewhere(zones: &[&Zone]) -> Answer {
    let sealed = !zones.is_empty() && zones.iter().all(|zone| zone.internal);
    if sealed { Answer::NxDomain } else { Answer::Forward }
}

fn six(zone: &Zone, addresses: &[Ipv4Addr]) -> Vec<Ipv6Addr> {
    addresses.iter().filter_map(|address| zone.six.get(address)).copied().collect()
}

fn find<'a>(zones: &[&'a Zone], name: &str) -> Option<(&'a Zone, &'a [Ipv4Addr])> {
    let name = name.to_ascii_lowercase();
    let of = |zone: &&'a Zone, name: &str| Some((*zone, zone.names.get(name)?.as_slice()));
    if let Some(found) = zones.iter().find_map(|zone| of(zone, &name)) {
        return Some(found);
    }
    name.match_indices('.').find_map(|(dot, _)| {
        let (host, network) = (&name[..dot], &name[dot + 1..]);
        zones.iter().filter(|zone| zone.network_name.eq_ignore_ascii_case(network)).find_map(|zone| of(zone, host))
    })
}

/// `_http._tcp.web` asks about `web`.
fn service_of(name: &str) -> Option<&str> {
    let mut parts = name.splitn(3, '.');
    let (port, protocol, service) = (parts.next()?, parts.next()?, parts.next()?);
    (port.starts_with('_') && protocol.starts_with('_')).then_some(service)
}

/// Names come back as `name.network`, which is how they can be asked for again.
fn find_address(zones: &[&Zone], address: IpAddr) -> Option<Vec<String>> {
    zones.iter().find_map(|zone| {
        let address = match address {
            IpAddr::V4(address) => address,
            IpAddr::V6(address) => *zone.six.iter().find(|(_, six)| **six == address)?.0,
        };
        let names = zone.addresses.get(&address).filter(|names| !names.is_empty())?;
        Some(names.iter().map(|name| format!("{name}.{}", zone.network_name)).collect())
    })
}
