//! Host ports of containers: chosen, held by a bound socket, given back.
//!
//! An IPv4 socket answers nobody: [`crate::bridge::rules`] sends packets on before they reach it. It is there so that no other
//! program takes the port, and so that a port another program has is refused here. An IPv6 one is there for those who do come
//! that far, and [`relay`] serves them. Must not know about rules.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};

use skep_model::sandbox::{PublishRequest, PublishedPort};
use skep_model::service::Protocol;
use skep_model::{ContainerId, EndpointId};

use crate::bridge::rules::Published;
use crate::error::{NetError, Result};

mod relay;
#[cfg(test)]
mod tests;

/// Docker's range when the kernel does not name one.
const DEFAULT_RANGE: (u16, u16) = (49153, 65535);

/// A bound socket; closing it gives the port back.
#[derive(Debug)]
#[expect(dead_code, reason = "held, never used")]
enum Holder {
    Tcp(TcpListener),
    Udp(UdpSocket),
    Relay(relay::Relay),
}

#[derive(Debug)]
struct Held {
    container: ContainerId,
    published: Published,
    _socket: Holder,
}

type Key = (Protocol, u16, IpAddr);

/// All published ports of the host.
#[derive(Debug)]
pub(crate) struct Ports {
    held: BTreeMap<Key, Held>,
    ephemeral: (u16, u16),
    next: u16,
}

/// For whom ports are published.
pub(crate) struct Target<'a> {
    pub(crate) container: &'a ContainerId,
    pub(crate) name: &'a str,
    pub(crate) endpoint_id: &'a EndpointId,
    pub(crate) address: Ipv4Addr,
    pub(crate) address6: Option<Ipv6Addr>,
    /// Host address for requests that name none.
    pub(crate) binding: Ipv4Addr,
}

impl Ports {
    pub(crate) fn new() -> Self {
        let ephemeral = ephemeral_range().unwrap_or(DEFAULT_RANGE);
        Self { held: BTreeMap::new(), ephemeral, next: ephemeral.0 }
    }

    /// Takes every port asked for, or none. One without a host address is published on those of both IP versions, as Docker
    /// does. Must be called in a runtime, which serves the IPv6 ones.
    pub(crate) fn publish(&mut self, target: &Target<'_>, requests: &[PublishRequest]) -> Result<Vec<PublishedPort>> {
        let mut taken = Vec::new();
        for request in requests {
            match self.publish_one(target, request) {
                Ok(keys) => taken.extend(keys),
                Err(error) => {
                    for key in taken {
                        self.held.remove(&key);
                    }
                    return Err(error);
                }
            }
        }
        Ok(taken
            .iter()
            .filter_map(|key| self.held.get(key))
            .map(|held| PublishedPort {
                container_port: held.published.port,
                protocol: held.published.protocol,
                host_ip: held.published.host_ip,
                host_port: held.published.host_port,
            })
            .collect())
    }

    /// Gives a container's ports back; what was published is returned, so that its connections can be forgotten.
    pub(crate) fn release(&mut self, container: &ContainerId) -> Vec<Published> {
        let mut released = Vec::new();
        self.held.retain(|_, held| {
            let keep = held.container != *container;
            if !keep {
                released.push(held.published);
            }
            keep
        });
        released
    }

    pub(crate) fn published(&self) -> impl Iterator<Item = Published> {
        self.held.values().map(|held| held.published)
    }

    fn publish_one(&mut self, target: &Target<'_>, request: &PublishRequest) -> Result<Vec<Key>> {
        let host_ip = request.host_ip.unwrap_or(target.binding.into());
        let both = request.host_ip.is_none() && host_ip.is_unspecified();
        if request.protocol == Protocol::Sctp {
            let text = "ports cannot be published with SCTP: use tcp or udp".to_owned();
            return Err(NetError::NotImplemented(text));
        }
        let (first, last) = request.host_ports;
        let mut refusal = format!("Bind for {host_ip}:0 failed: all ports are allocated");
        let candidates: Vec<u16> = if first == 0 { self.ephemeral_candidates() } else { (first..=last).collect() };
        for port in candidates {
            match self.hold_all(target, request, host_ip, both, port) {
                Ok(keys) => {
                    if first == 0 {
                        self.next = port.checked_add(1).unwrap_or(self.ephemeral.0);
                    }
                    return Ok(keys);
                }
                Err(reason) => refusal = reason,
            }
        }
        Err(NetError::Publish {
            endpoint: target.name.to_owned(),
            endpoint_id: target.endpoint_id.to_string(),
            reason: refusal,
        })
    }

    fn hold_all(
        &mut self,
        target: &Target<'_>,
        request: &PublishRequest,
        host_ip: IpAddr,
        both: bool,
        port: u16,
    ) -> std::result::Result<Vec<Key>, String> {
        let mut keys = vec![self.hold(target, request, host_ip, port)?];
        if both && has_ipv6() {
            match self.hold(target, request, Ipv6Addr::UNSPECIFIED.into(), port) {
                Ok(key) => keys.push(key),
                Err(reason) => {
                    self.held.remove(&keys[0]);
                    return Err(reason);
                }
            }
        }
        Ok(keys)
    }

    fn hold(
        &mut self,
        target: &Target<'_>,
        request: &PublishRequest,
        host_ip: IpAddr,
        port: u16,
    ) -> std::result::Result<Key, String> {
        let (least, most) = (Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::from(u128::MAX).into());
        let of_port = (request.protocol, port, least)..=(request.protocol, port, most);
        let clash = |other: &IpAddr| {
            other.is_ipv4() == host_ip.is_ipv4()
                && (*other == host_ip || other.is_unspecified() || host_ip.is_unspecified())
        };
        if self.held.range(of_port).any(|((_, _, other), _)| clash(other)) {
            return Err(format!("Bind for {} failed: port is already allocated", SocketAddr::new(host_ip, port)));
        }
        let inside = SocketAddrV4::new(target.address, request.container_port);
        let bound = match host_ip {
            IpAddr::V4(address) => bind(request.protocol, SocketAddrV4::new(address, port)),
            IpAddr::V6(address) => relay::start(request.protocol, address, port, inside).map(Holder::Relay),
        };
        let socket = bound.map_err(|error| {
            let host = SocketAddr::new(host_ip, port);
            let protocol = request.protocol.as_str();
            format!("failed to bind host port for {host}:{inside}/{protocol}: {}", reason(&error))
        })?;
        let published = Published {
            protocol: request.protocol,
            host_ip,
            host_port: port,
            address: target.address,
            address6: target.address6,
            port: request.container_port,
        };
        let key = (request.protocol, port, host_ip);
        self.held.insert(key, Held { container: target.container.clone(), published, _socket: socket });
        Ok(key)
    }

    /// All ports of the range once, going on where the last one was found: a port just given back is not given out again
    /// while clients may still remember who was there.
    fn ephemeral_candidates(&self) -> Vec<u16> {
        let (first, last) = self.ephemeral;
        let start = self.next.clamp(first, last);
        (start..=last).chain(first..start).collect()
    }
}

/// A kernel may have been told to have none.
fn has_ipv6() -> bool {
    UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok()
}

fn bind(protocol: Protocol, address: SocketAddrV4) -> io::Result<Holder> {
    match protocol {
        // Listening too: a program that binds with SO_REUSEADDR, as servers do, is only refused by a listening socket.
        Protocol::Tcp => TcpListener::bind(address).map(Holder::Tcp),
        Protocol::Udp => UdpSocket::bind(address).map(Holder::Udp),
        Protocol::Sctp => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// The kernel's reason as Go writes it.
fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => nix::Error::from_raw(code).desc().to_lowercase(),
        None => error.to_string(),
    }
}

fn ephemeral_range() -> Option<(u16, u16)> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next()?, numbers.next()?) {
        (Ok(first), Ok(last)) if 0 < first && first <= last => Some((first, last)),
        _ => None,
    }
}
