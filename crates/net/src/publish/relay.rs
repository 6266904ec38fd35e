//! Carries what comes to an IPv6 port of the host to a container's IPv4 address: what no rule can translate, from another IP
//! version or from `::1`. The container sees the host as the client, as behind Docker's userland proxy.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt::{set_ipv6_v6only, set_socket_reuseaddr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};
use skep_model::service::Protocol;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

const BACKLOG: i32 = 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failure to accept, such as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a client of a datagram port is remembered after its last datagram (Docker's proxy).
const UDP_IDLE: Duration = Duration::from_secs(90);
/// Clients of a datagram port that are remembered at one time, and datagrams of each that wait.
const UDP_CLIENTS: usize = 4096;
const UDP_QUEUE: usize = 64;
const DATAGRAM: usize = 65_536;

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
    let inside = SocketAddr::from(inside);
    let task = if stream {
        listen(&socket, BACKLOG)?;
        let listener = TcpListener::from_std(socket.into())?;
        tokio::spawn(relay_streams(listener, inside))
    } else {
        let socket = UdpSocket::from_std(socket.into())?;
        tokio::spawn(relay_datagrams(Arc::new(socket), inside))
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

async fn relay_datagrams(socket: Arc<UdpSocket>, inside: SocketAddr) {
    let mut clients: BTreeMap<SocketAddr, mpsc::Sender<Vec<u8>>> = BTreeMap::new();
    let mut sessions = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        tokio::select! {
            received = socket.recv_from(&mut buffer) => {
                // An error is about a datagram sent earlier.
                let Ok((length, client)) = received else { continue };
                if !clients.contains_key(&client) && clients.len() >= UDP_CLIENTS {
                    continue;
                }
                let queue = clients.entry(client).or_insert_with(|| {
                    let (sender, queue) = mpsc::channel(UDP_QUEUE);
                    sessions.spawn(relay_session(Arc::clone(&socket), client, inside, queue));
                    sender
                });
                // Datagrams may be lost where too many come.
                let _ = queue.try_send(buffer[..length].to_vec());
            }
            Some(ended) = sessions.join_next() => {
                if let Ok(client) = ended {
                    clients.remove(&client);
                }
            }
        }
    }
}

/// One client's datagrams, until none has come or gone for a while; returns the client.
async fn relay_session(
    socket: Arc<UdpSocket>,
    client: SocketAddr,
    inside: SocketAddr,
    mut queue: mpsc::Receiver<Vec<u8>>,
) -> SocketAddr {
    let Ok(own) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await else { return client };
    if own.connect(inside).await.is_err() {
        return client;
    }
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let step = async {
            tokio::select! {
                Some(datagram) = queue.recv() => { let _ = own.send(&datagram).await; }
                Ok(length) = own.recv(&mut buffer) => { let _ = socket.send_to(&buffer[..length], client).await; }
                // The container refuses: the next datagram may find somebody.
                else => {}
            }
        };
        if tokio::time::timeout(UDP_IDLE, step).await.is_err() {
            return client;
        }
    }
}
