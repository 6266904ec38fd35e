//! Published ports are also bound by the daemon, so that no other process takes one and wonders why it never hears
//! anything. Connections never get as far as these sockets, but for those that no rule translates.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::BindToDevice;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
use skep_model::service::Protocol;

use super::Ports;
use crate::link::Namespace;

type Port = (Protocol, u16);

/// Ports that are ours.
#[derive(Debug, Default)]
pub struct HeldPorts {
    held: BTreeMap<Port, Held>,
    /// Taken by somebody else; tried again every time.
    taken: BTreeSet<Port>,
    wanted: BTreeSet<Port>,
}

#[derive(Debug)]
struct Held {
    /// Of both IP versions; of datagrams of IPv6 alone, and none without it.
    relayed: Option<OwnedFd>,
    /// Datagrams of IPv4.
    _four: Option<OwnedFd>,
}

impl HeldPorts {
    /// Holds exactly these; returns how many were taken or let go, and words for those that could not be had.
    pub fn hold(&mut self, host: &Namespace, leg: &str, wanted: &Ports) -> (usize, Vec<String>) {
        let mut failures = Vec::new();
        if self.wanted.iter().eq(wanted.keys()) && self.taken.is_empty() {
            return (0, failures);
        }
        let before = self.held.len();
        self.held.retain(|port, _| wanted.contains_key(port));
        let mut changes = before - self.held.len();
        let missing: Vec<Port> = wanted.keys().filter(|port| !self.held.contains_key(*port)).copied().collect();
        self.taken.clear();
        // All in one visit: a visit costs a thread.
        let bound = host.run(|| missing.iter().map(|port| (*port, bind_port(*port, leg))).collect::<Vec<_>>());
        match bound {
            Ok(bound) => {
                for (port, result) in bound {
                    match result {
                        Ok(Some(held)) => {
                            self.held.insert(port, held);
                            changes += 1;
                        }
                        Ok(None) => {}
                        Err(error) => {
                            self.taken.insert(port);
                            failures.push(words(&port, &error.to_string()));
                        }
                    }
                }
                self.wanted = wanted.keys().copied().collect();
            }
            Err(error) => failures.push(format!("failed to hold the published ports: {error}")),
        }
        (changes, failures)
    }
}

impl HeldPorts {
    /// The socket that takes what no rule translates.
    pub fn socket(&self, port: Port) -> Option<&OwnedFd> {
        self.held.get(&port)?.relayed.as_ref()
    }
}

fn words((protocol, port): &Port, reason: &str) -> String {
    format!("published port {port}/{protocol} could not be reserved on this host: {reason}")
}

/// Has the kernel refuse datagrams to a bound socket of IPv6, at once and as if there were none, while it keeps the port: it
/// takes those of the mesh's leg, which has no IPv6.
pub(super) fn refuse(socket: &impl AsFd, leg: &str) {
    if let Err(error) = setsockopt(socket, BindToDevice, &leg.into()) {
        tracing::debug!(%error, "datagrams by IPv6 to a port without a task are lost, not refused");
    }
}

/// After [`refuse`].
pub(super) fn accept(socket: &impl AsFd) -> io::Result<()> {
    Ok(setsockopt(socket, BindToDevice, &OsString::new())?)
}

/// Binds without listening, on both IP versions where there are two. Protocols without sockets here are not held.
fn bind_port((protocol, port): Port, leg: &str) -> io::Result<Option<Held>> {
    let (six, four) =
        (SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)));
    // An IP version may be missing; a port that is taken is another matter.
    let there = |bound: rustix::io::Result<OwnedFd>| match bound {
        Err(rustix::io::Errno::ADDRINUSE) => Err(rustix::io::Errno::ADDRINUSE),
        bound => Ok(bound.ok()),
    };
    match protocol {
        Protocol::Tcp => {
            let both = there(bind_stream(six))?;
            let socket = both.map_or_else(|| bind_stream(four), Ok)?;
            Ok(Some(Held { relayed: Some(socket), _four: None }))
        }
        // By themselves, since one of both versions cannot refuse what is of one.
        Protocol::Udp => {
            let _four = Some(bind_datagrams(four)?);
            let relayed = there(bind_datagrams(six))?;
            relayed.iter().for_each(|socket| refuse(socket, leg));
            Ok(Some(Held { relayed, _four }))
        }
        Protocol::Sctp => Ok(None),
    }
}

fn bind_stream(address: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let socket = socket_with(family(address), SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    match bind(&socket, &address) {
        // Connections that an earlier daemon relayed, and that are ending, do not stand in the way; a listener does.
        Err(rustix::io::Errno::ADDRINUSE) => {
            sockopt::set_socket_reuseaddr(&socket, true)?;
            bind(&socket, &address)?;
        }
        other => other?,
    }
    Ok(socket)
}

fn bind_datagrams(address: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let socket = socket_with(family(address), SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    bind(&socket, &address)?;
    Ok(socket)
}

fn family(address: SocketAddr) -> AddressFamily {
    if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET }
}
