//! Published ports are also bound by the daemon, so that no other process takes one and wonders why it never hears
//! anything. Connections never get as far as these sockets, but for those that no rule translates.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
use skep_model::service::Protocol;

use super::Ports;
use crate::link::Namespace;

type Port = (Protocol, u16);

/// Ports that are ours.
#[derive(Debug, Default)]
pub struct HeldPorts {
    held: BTreeMap<Port, OwnedFd>,
    /// Taken by somebody else; tried again every time.
    taken: BTreeSet<Port>,
    wanted: BTreeSet<Port>,
}

impl HeldPorts {
    /// Holds exactly these; returns how many were taken or let go, and words for those that could not be had.
    pub fn hold(&mut self, host: &Namespace, wanted: &Ports) -> (usize, Vec<String>) {
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
        let bound = host.run(|| missing.iter().map(|port| (*port, bind_port(*port))).collect::<Vec<_>>());
        match bound {
            Ok(bound) => {
                for (port, result) in bound {
                    match result {
                        Ok(Some(socket)) => {
                            self.held.insert(port, socket);
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
    /// The socket that holds a port.
    pub fn socket(&self, port: Port) -> Option<&OwnedFd> {
        self.held.get(&port)
    }
}

fn words((protocol, port): &Port, reason: &str) -> String {
    format!("published port {port}/{protocol} could not be reserved on this host: {reason}")
}

/// Binds without listening, on both IP versions where there are two. Protocols without sockets here are not held.
fn bind_port((protocol, port): Port) -> io::Result<Option<OwnedFd>> {
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
        Protocol::Sctp => return Ok(None),
    };
    let open = |family, address: SocketAddr| -> rustix::io::Result<OwnedFd> {
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        match bind(&socket, &address) {
            // Connections that an earlier daemon relayed, and that are ending, do not stand in the way; a listener does.
            Err(rustix::io::Errno::ADDRINUSE) if protocol == Protocol::Tcp => {
                sockopt::set_socket_reuseaddr(&socket, true)?;
                bind(&socket, &address)?;
            }
            other => other?,
        }
        Ok(socket)
    };
    match open(AddressFamily::INET6, (Ipv6Addr::UNSPECIFIED, port).into()) {
        Ok(socket) => Ok(Some(socket)),
        Err(rustix::io::Errno::ADDRINUSE) => Err(rustix::io::Errno::ADDRINUSE.into()),
        Err(_) => Ok(Some(open(AddressFamily::INET, (Ipv4Addr::UNSPECIFIED, port).into())?)),
    }
}
