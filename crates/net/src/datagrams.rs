//! Carries the datagrams that come to an IPv6 port of the host to IPv4 addresses: what no rule can translate. Whoever takes
//! them sees the host as the client, as behind Docker's userland proxy; the client sees the address that it wrote to.
//!
//! A client stays with its backend while datagrams come or go and the backend is one of the port's.
//!
//! Decides whose a client's datagrams are, and for how long. Must not know why a port is relayed.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, sendmsg, setsockopt, sockopt,
};
use skep_model::plan::{Backend, Ring};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::balance::order;

/// Clients that are remembered at one time, each with a socket.
pub(crate) const MOST_CLIENTS: usize = 4096;
/// How long a client is remembered after its last datagram (Docker's proxy).
const IDLE: Duration = Duration::from_secs(90);
/// Datagrams of each client that wait.
const QUEUE: usize = 64;
const DATAGRAM: usize = 65_536;

/// Who writes to which of the host's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    client: SocketAddrV6,
    host: Ipv6Addr,
    /// The interface by which it came, where addresses mean nothing without.
    link: u32,
}

/// What waits to be sent for a client, and to whom.
struct Session {
    backend: Backend,
    queue: mpsc::Sender<Vec<u8>>,
}

/// A bound socket of IPv6 as [`relay`] wants it. Must be called within a runtime.
pub(crate) fn prepare(socket: OwnedFd) -> io::Result<UdpSocket> {
    setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    let socket = std::net::UdpSocket::from(socket);
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// Until nobody has the other side of `ring`. A client takes a place in `room`; without one its datagrams are lost.
pub(crate) async fn relay(socket: Arc<UdpSocket>, mut ring: watch::Receiver<Ring<Backend>>, room: Arc<Semaphore>) {
    let mut clients: BTreeMap<Way, Session> = BTreeMap::new();
    let mut sessions = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM];
    let (mut turn, mut full) = (0_usize, false);
    loop {
        tokio::select! {
            // First of all, so that no datagram goes to whom it is no longer for.
            biased;
            changed = ring.changed() => {
                if changed.is_err() {
                    return;
                }
                let ring = ring.borrow_and_update();
                clients.retain(|_, session| ring.backends.contains(&session.backend));
            }
            Some(ended) = sessions.join_next() => {
                if let Ok(way) = ended && clients.get(&way).is_some_and(|session| session.queue.is_closed()) {
                    clients.remove(&way);
                }
            }
            received = receive(&socket, &mut buffer) => {
                // An error is about a datagram sent earlier.
                let Ok((length, way)) = received else { continue };
                let datagram = buffer[..length].to_vec();
                if let Some(session) = clients.get(&way).filter(|session| !session.queue.is_closed()) {
                    // Datagrams may be lost where too many come.
                    let _ = session.queue.try_send(datagram);
                    continue;
                }
                let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
                    if !std::mem::replace(&mut full, true) {
                        tracing::warn!("too many clients send datagrams to be relayed; those of more are lost");
                    }
                    continue;
                };
                full = false;
                turn = turn.wrapping_add(1);
                let first = order(&ring.borrow(), turn, way.client.ip().to_canonical()).first().copied();
                let Some(backend) = first else { continue };
                let (queue, queued) = mpsc::channel(QUEUE);
                let _ = queue.try_send(datagram);
                clients.insert(way, Session { backend, queue });
                let socket = Arc::clone(&socket);
                sessions.spawn(async move {
                    if let Err(error) = serve(&socket, way, backend, queued).await {
                        tracing::debug!(%error, client = %way.client, "datagrams of a client were not relayed");
                    }
                    drop(place);
                    way
                });
            }
        }
    }
}

/// One client's datagrams, until none has come or gone for a while, or the backend takes none: the next may go elsewhere.
async fn serve(socket: &UdpSocket, way: Way, backend: Backend, mut queued: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    let own = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    own.connect((backend.address, backend.port)).await?;
    let mut buffer = Vec::with_capacity(DATAGRAM);
    loop {
        buffer.clear();
        let step = async {
            tokio::select! {
                datagram = queued.recv() => match datagram {
                    Some(datagram) => own.send(&datagram).await.map(|_| true),
                    None => Ok(false),
                },
                received = own.recv_buf(&mut buffer) => {
                    received?;
                    // What the kernel does not take now is lost, as on any wire.
                    let _ = answer(socket, &way, &buffer);
                    Ok(true)
                }
            }
        };
        match tokio::time::timeout(IDLE, step).await {
            Ok(Ok(true)) => {}
            Ok(Err(error)) => return Err(error),
            Ok(Ok(false)) | Err(_) => return Ok(()),
        }
    }
}

async fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, Way)> {
    socket
        .async_io(Interest::READABLE, || {
            let mut control = nix::cmsg_space!(libc::in6_pktinfo);
            let mut parts = [IoSliceMut::new(buffer)];
            let (fd, flags) = (socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
            let message = recvmsg::<SockaddrIn6>(fd, &mut parts, Some(&mut control), flags)?;
            let to = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::Ipv6PacketInfo(info) => Some(info),
                _ => None,
            });
            let (Some(client), Some(to)) = (message.address, to) else { return Err(io::ErrorKind::InvalidData.into()) };
            let host = Ipv6Addr::from(to.ipi6_addr.s6_addr);
            let link = if host.is_unicast_link_local() { to.ipi6_ifindex } else { 0 };
            Ok((message.bytes, Way { client: client.into(), host, link }))
        })
        .await
}

/// From the address that the client wrote to: it may take answers from no other.
fn answer(socket: &UdpSocket, way: &Way, datagram: &[u8]) -> io::Result<()> {
    let from = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: way.host.octets() }, ipi6_ifindex: way.link };
    let (parts, control) = ([IoSlice::new(datagram)], [ControlMessage::Ipv6PacketInfo(&from)]);
    let (fd, to) = (socket.as_raw_fd(), SockaddrIn6::from(way.client));
    sendmsg(fd, &parts, &control, MsgFlags::MSG_DONTWAIT, Some(&to))?;
    Ok(())
}
