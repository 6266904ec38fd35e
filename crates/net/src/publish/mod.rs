//! Host ports of containers: chosen, held by a bound socket, given back.
//!
//! The socket answers nobody: [`crate::bridge::rules`] sends packets on before they reach it. It is there so that no other
//! program takes the port, and so that a port another program has is refused here. Must not know about rules.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};

use skep_model::sandbox::{PublishRequest, PublishedPort};
use skep_model::service::Protocol;
use skep_model::{ContainerId, EndpointId};

use crate::bridge::rules::Published;
use crate::error::{NetError, Result};

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
}

#[derive(Debug)]
struct Held {
    container: ContainerId,
    published: Published,
    _socket: Holder,
}

type Key = (Protocol, u16, Ipv4Addr);

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
    /// Host address for requests that name none.
    pub(crate) binding: Ipv4Addr,
}

impl Ports {
    pub(crate) fn new() -> Self {
        let ephemeral = ephemeral_range().unwrap_or(DEFAULT_RANGE);
        Self { held: BTreeMap::new(), ephemeral, next: ephemeral.0 }
    }

    /// Takes every port asked for, or none.
    pub(crate) fn publish(&mut self, target: &Target<'_>, requests: &[PublishRequest]) -> Result<Vec<PublishedPort>> {
        let mut taken = Vec::new();
        for request in requests {
            match self.publish_one(target, request) {
                Ok(key) => taken.push(key),
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
                host_ip: IpAddr::V4(held.published.host_ip),
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

    fn publish_one(&mut self, target: &Target<'_>, request: &PublishRequest) -> Result<Key> {
        let host_ip = match request.host_ip {
            None => target.binding,
            Some(IpAddr::V4(address)) => address,
            Some(IpAddr::V6(address)) => {
                let text = format!("ports cannot be published on {address}: IPv6 publishing is not supported");
                return Err(NetError::NotImplemented(text));
            }
        };
        if request.protocol == Protocol::Sctp {
            let text = "ports cannot be published with SCTP: use tcp or udp".to_owned();
            return Err(NetError::NotImplemented(text));
        }
        let (first, last) = request.host_ports;
        let mut refusal = format!("Bind for {host_ip}:0 failed: all ports are allocated");
        let candidates: Vec<u16> = if first == 0 { self.ephemeral_candidates() } else { (first..=last).collect() };
        for port in candidates {
            match self.hold(target, request, host_ip, port) {
                Ok(key) => {
                    if first == 0 {
                        self.next = port.checked_add(1).unwrap_or(self.ephemeral.0);
                    }
                    return Ok(key);
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

    fn hold(
        &mut self,
        target: &Target<'_>,
        request: &PublishRequest,
        host_ip: Ipv4Addr,
        port: u16,
    ) -> std::result::Result<Key, String> {
        let of_port = (request.protocol, port, Ipv4Addr::UNSPECIFIED)..=(request.protocol, port, Ipv4Addr::BROADCAST);
        let clash = |other: &Ipv4Addr| *other == host_ip || other.is_unspecified() || host_ip.is_unspecified();
        if self.held.range(of_port).any(|((_, _, other), _)| clash(other)) {
            return Err(format!("Bind for {host_ip}:{port} failed: port is already allocated"));
        }
        let socket = bind(request.protocol, SocketAddrV4::new(host_ip, port)).map_err(|error| {
            let protocol = request.protocol.as_str();
            let (address, inside) = (target.address, request.container_port);
            format!("failed to bind host port for {host_ip}:{port}:{address}:{inside}/{protocol}: {}", reason(&error))
        })?;
        let published = Published {
            protocol: request.protocol,
            host_ip,
            host_port: port,
            address: target.address,
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
