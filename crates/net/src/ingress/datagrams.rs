//! Published UDP ports for IPv6 clients, whose datagrams the daemon carries ([`crate::datagrams`]): the mesh is of IPv4.
//!
//! A port is served while somebody takes its datagrams, and refused else as it would be without a socket ([`super::hold`]).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use skep_model::plan::{Backend, MeshPort, Ring};
use tokio::net::UdpSocket;
use tokio::sync::{Semaphore, watch};
use tokio_util::task::AbortOnDropHandle;

use super::{hold, relay};
use crate::datagrams::{self, MOST_CLIENTS};

/// The UDP ports of this host that are relayed.
#[derive(Debug)]
pub(super) struct Relays {
    ports: BTreeMap<u16, Relay>,
    /// Of clients, on all ports.
    room: Arc<Semaphore>,
    leg: Arc<str>,
}

#[derive(Debug)]
struct Relay {
    ring: watch::Sender<Ring<Backend>>,
    /// The socket that also reserves the port.
    socket: Arc<UdpSocket>,
    leg: Arc<str>,
    _task: AbortOnDropHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        hold::refuse(&*self.socket, &self.leg);
    }
}

impl Relays {
    pub(super) fn new(leg: String) -> Self {
        let room = Arc::new(Semaphore::new(relay::room().min(MOST_CLIENTS)));
        Self { ports: BTreeMap::new(), room, leg: leg.into() }
    }

    /// Relays exactly these ports; `held` gives the bound socket of one. Returns how many were begun or ended, and words
    /// for those that could not be. Must be called within a runtime.
    pub(super) fn update<'p, 'h>(
        &mut self,
        wanted: impl Iterator<Item = (u16, &'p MeshPort)>,
        held: impl Fn(u16) -> Option<&'h OwnedFd>,
    ) -> (usize, Vec<String>) {
        let wanted = wanted.map(|(port, plan)| (port, &plan.ring)).filter(|(_, ring)| !ring.backends.is_empty());
        let wanted: BTreeMap<u16, &Ring<Backend>> = wanted.collect();
        let before = self.ports.len();
        self.ports.retain(|port, _| wanted.contains_key(port));
        let (mut changes, mut failures) = (before - self.ports.len(), Vec::new());
        for (port, ring) in wanted {
            if let Some(relay) = self.ports.get(&port) {
                relay.ring.send_if_modified(|now| {
                    let modified = now != ring;
                    now.clone_from(ring);
                    modified
                });
                continue;
            }
            // Without IPv6 there is none; what could not be reserved has been told already.
            let Some(socket) = held(port) else { continue };
            match self.begin(socket.as_fd(), ring.clone()) {
                Ok(relay) => {
                    self.ports.insert(port, relay);
                    changes += 1;
                }
                Err(error) => failures.push(format!("published port {port}/udp cannot be served by IPv6: {error}")),
            }
        }
        (changes, failures)
    }

    fn begin(&self, socket: BorrowedFd<'_>, ring: Ring<Backend>) -> io::Result<Relay> {
        hold::accept(&socket)?;
        let socket = Arc::new(datagrams::prepare(socket.try_clone_to_owned()?)?);
        let (ring, rings) = watch::channel(ring);
        let task = tokio::spawn(datagrams::relay(Arc::clone(&socket), rings, Arc::clone(&self.room)));
        Ok(Relay { ring, socket, leg: Arc::clone(&self.leg), _task: AbortOnDropHandle::new(task) })
    }
}
