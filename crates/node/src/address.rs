//! Which address this host is reached at: what `--listen-addr`, `--advertise-addr` and `--data-path-addr` mean.
//!
//! As moby's `daemon/cluster/listen_addr.go`, except that a host with several addresses first tries the one its default
//! route leaves by before it gives up.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use crate::config::{DEFAULT_LISTEN_PORT, any_v4};
use crate::error::{NodeError, Result};

struct Address {
    interface: String,
    ip: Ipv4Addr,
}

/// The host's own IPv4 addresses on interfaces that are up; not loopback, not bridges made by an engine.
fn host_addresses() -> Result<Vec<Address>> {
    let all = getifaddrs().map_err(|e| NodeError::Internal(format!("cannot list interfaces: {e}")))?;
    Ok(all
        .filter(|a| a.flags.contains(InterfaceFlags::IFF_UP))
        .filter_map(|a| {
            let ip = a.address.as_ref()?.as_sockaddr_in()?.ip();
            Some(Address { interface: a.interface_name, ip })
        })
        .collect())
}

fn is_candidate(address: &Address) -> bool {
    let made_by_engine = ["docker", "br-", "veth", "skep"].iter().any(|p| address.interface.starts_with(p));
    !address.ip.is_loopback() && !made_by_engine
}

/// Whether the address is one of this host's; unknown counts as no.
pub(crate) fn is_own(ip: IpAddr) -> bool {
    host_addresses().is_ok_and(|all| all.iter().any(|address| IpAddr::V4(address.ip) == ip))
}

/// The interface of the default route, from the kernel's own table.
fn default_interface() -> Option<String> {
    let table =
        fs::read_to_string("/proc/thread-self/net/route").or_else(|_| fs::read_to_string("/proc/net/route")).ok()?;
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (interface, destination) = (fields.next()?, fields.next()?);
        let mask = fields.nth(5)?;
        (destination == "00000000" && mask == "00000000").then(|| interface.to_owned())
    })
}

fn system_address() -> Result<Ipv4Addr> {
    let candidates: Vec<Address> = host_addresses()?.into_iter().filter(is_candidate).collect();
    if let Some(interface) = default_interface()
        && let Some(address) = candidates.iter().find(|a| a.interface == interface)
    {
        return Ok(address.ip);
    }
    choose(&candidates)
}

fn choose(candidates: &[Address]) -> Result<Ipv4Addr> {
    const HINT: &str = "specify one with --advertise-addr";
    match candidates {
        [] => Err(NodeError::BadRequest(format!("could not find the system's IP address - {HINT}"))),
        [one] => Ok(one.ip),
        [a, b, ..] if a.interface == b.interface => Err(NodeError::BadRequest(format!(
            "could not choose an IP address to advertise since this system has multiple addresses on interface {} ({} and {}) - {HINT}",
            a.interface, a.ip, b.ip
        ))),
        [a, b, ..] => Err(NodeError::BadRequest(format!(
            "could not choose an IP address to advertise since this system has multiple addresses on different interfaces ({} on {} and {} on {}) - {HINT}",
            a.ip, a.interface, b.ip, b.interface
        ))),
    }
}

/// An address, or the only one of the interface of that name.
fn resolve_host(text: &str) -> Result<IpAddr> {
    if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse() {
        return Ok(ip);
    }
    let of_interface: Vec<Ipv4Addr> =
        host_addresses()?.into_iter().filter(|a| a.interface == text).map(|a| a.ip).collect();
    match of_interface[..] {
        [one] => Ok(IpAddr::V4(one)),
        [] => Err(NodeError::BadRequest(format!("interface {text} not found or has no usable IPv4 address"))),
        [a, b, ..] => {
            Err(NodeError::BadRequest(format!("interface {text} has more than one IPv4 address ({a} and {b})")))
        }
    }
}

/// `host`, `host:port` or `:port`.
fn split(text: &str) -> Result<(&str, Option<u16>)> {
    if text.parse::<IpAddr>().is_ok() {
        return Ok((text, None));
    }
    match text.rsplit_once(':') {
        None => Ok((text, None)),
        Some((host, port)) => {
            let port = port.parse().map_err(|_| NodeError::BadRequest(format!("invalid port in address {text}")))?;
            Ok((host, Some(port)))
        }
    }
}

pub(crate) fn listen(text: &str) -> Result<SocketAddr> {
    if text.is_empty() {
        return Ok(any_v4(DEFAULT_LISTEN_PORT));
    }
    let (host, port) = split(text)?;
    let port = port.unwrap_or(DEFAULT_LISTEN_PORT);
    if host.is_empty() {
        return Ok(any_v4(port));
    }
    Ok(SocketAddr::new(resolve_host(host)?, port))
}

/// `given` from the request, else the daemon's default, else the listen address, else what the system has.
pub(crate) fn advertise(given: &str, daemon_default: Option<&str>, listen: SocketAddr) -> Result<SocketAddr> {
    let wanted = if given.is_empty() { daemon_default.unwrap_or_default() } else { given };
    if !wanted.is_empty() {
        let (host, port) = split(wanted)?;
        return Ok(SocketAddr::new(resolve_host(host)?, port.unwrap_or(listen.port())));
    }
    if !listen.ip().is_unspecified() {
        return Ok(listen);
    }
    Ok(SocketAddr::new(IpAddr::V4(system_address()?), listen.port()))
}

/// The address of this host that a packet to `peer` (`address:port`) leaves with; `None` if none can. Sends nothing.
pub(crate) async fn toward(peer: &str) -> Option<IpAddr> {
    let any: SocketAddr = match peer.starts_with('[') {
        true => (Ipv6Addr::UNSPECIFIED, 0).into(),
        false => (Ipv4Addr::UNSPECIFIED, 0).into(),
    };
    let socket = tokio::net::UdpSocket::bind(any).await.ok()?;
    socket.connect(peer).await.ok()?;
    socket.local_addr().ok().map(|own| own.ip())
}

pub(crate) fn data_path(given: &str) -> Result<Option<IpAddr>> {
    if given.is_empty() { Ok(None) } else { resolve_host(split(given)?.0).map(Some) }
}

/// A manager's address as a joiner types it.
pub(crate) fn remote(text: &str) -> Result<String> {
    let (host, port) = split(text.trim())?;
    if host.is_empty() {
        return Err(NodeError::BadRequest(format!("invalid remote address {text:?}")));
    }
    Ok(format!("{host}:{}", port.unwrap_or(DEFAULT_LISTEN_PORT)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_docker_reads_them() {
        assert_eq!(listen("").unwrap().to_string(), "0.0.0.0:2377");
        assert_eq!(listen("127.0.0.1").unwrap().to_string(), "127.0.0.1:2377");
        assert_eq!(listen("127.0.0.1:99").unwrap().to_string(), "127.0.0.1:99");
        assert_eq!(listen("lo:99").unwrap().to_string(), "127.0.0.1:99");
        assert!(listen("127.0.0.1:x").is_err());
        let any = any_v4(2377);
        assert_eq!(advertise("10.0.0.1", None, any).unwrap().to_string(), "10.0.0.1:2377");
        assert_eq!(advertise("", Some("10.0.0.2:5"), any).unwrap().to_string(), "10.0.0.2:5");
        assert_eq!(advertise("", None, "10.1.1.1:7".parse().unwrap()).unwrap().to_string(), "10.1.1.1:7");
        assert_eq!(remote("10.0.0.1").unwrap(), "10.0.0.1:2377");
    }

    #[tokio::test]
    async fn the_address_towards_a_peer_is_the_one_packets_leave_with() {
        assert_eq!(toward("127.0.0.1:2377").await, Some("127.0.0.1".parse().unwrap()));
        assert_eq!(toward("[::1]:2377").await, Some("::1".parse().unwrap()));
        assert_eq!(toward("no address").await, None);
    }

    #[test]
    fn several_addresses_are_not_guessed_among() {
        let at = |interface: &str, ip: &str| Address { interface: interface.into(), ip: ip.parse().unwrap() };
        let same = choose(&[at("eth0", "10.0.0.1"), at("eth0", "10.0.0.2")]).unwrap_err().to_string();
        assert!(same.starts_with("could not choose an IP address to advertise since this system has multiple addresses on interface eth0 (10.0.0.1 and 10.0.0.2)"), "{same}");
        assert!(choose(&[at("eth0", "10.0.0.1"), at("eth1", "10.0.0.2")]).is_err());
    }
}
