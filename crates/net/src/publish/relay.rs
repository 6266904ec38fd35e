//! Carries what comes to an IPv6 port of the host to a container's IPv4 address: what no rule can translate, from another IP
//! version or from `::1`. The container sees the host as the client, as behind Docker's userland proxy.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt::{set_ipv6_v6only, set_socket_reuseaddr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};
use skep_model::plan::Backend;
use skep_model::service::Protocol;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::datagrams;

const BACKLOG: i32 = 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failure to accept, such as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Ends with all its connections when dropped.
pub(super) type Relay = AbortOnDropHandle<()>;

/// Binds `address`, of IPv6 alone, and carries what comes there to `inside`.
pub(super) fn start(protocol: Protocol, address: Ipv6Addr, port: u16, inside: SocketAddrV4) -> io::Result<Relay> {
    let (kind, stream) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, true),
        Protocol::Udp => (SocketType::DGRAM, false),
        Protocol::Sctp => return Err(io::ErrorKind::Unsupported.into()),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = socket_with(AddressFamily::INET6, kind, flags, None)?;
    set_ipv6_v6only(&socket, true)?;
    if stream {
        set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &SocketAddr::from((address, port)))?;
    let task = if stream {
        listen(&socket, BACKLOG)?;
        let listener = TcpListener::from_std(socket.into())?;
        tokio::spawn(relay_streams(listener, inside.into()))
    } else {
        let socket = Arc::new(datagrams::prepare(socket)?);
        let (keep, ring) = watch::channel(vec![Backend { address: *inside.ip(), port: inside.port() }].into());
        tokio::spawn(async move {
            datagrams::relay(socket, ring, Arc::new(Semaphore::new(datagrams::MOST_CLIENTS))).await;
            drop(keep);
        })
    };
    Ok(AbortOnDropHandle::new(task))
}

async fn relay_streams(listener: TcpListener, inside: SocketAddr) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => _ = connections.spawn(relay_stream(client, inside)),
                Err(error) => {
                    tracing::debug!(%error, "a connection to a published port was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn relay_stream(mut client: TcpStream, inside: SocketAddr) {
    // Nobody there: the client's connection ends, too.
    let Ok(Ok(mut server)) = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(inside)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
}
