//! Asking the servers upstream, from the host's namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use super::wire;

/// Queries under way for all containers (moby `maxConcurrent`).
const MAX_CONCURRENT: usize = 1024;
/// Servers asked (moby `maxExtDNS`), and how long one may take (moby `extIOTimeout`).
const MAX_SERVERS: usize = 3;
const TIMEOUT: Duration = Duration::from_secs(4);
/// The next server is asked when one has not answered within this; Docker waits for its timeout.
const STAGGER: Duration = Duration::from_millis(300);
const DNS_PORT: u16 = 53;

/// Shared by all resolvers of the host.
#[derive(Clone, Debug)]
pub(crate) struct Forwarder {
    slots: Arc<Semaphore>,
}

impl Forwarder {
    pub(crate) fn new() -> Self {
        Self { slots: Arc::new(Semaphore::new(MAX_CONCURRENT)) }
    }

    /// The first reply that settles the matter, else any reply; `None` when nobody answered or too much is under way.
    pub(super) async fn ask(&self, query: &[u8], id: u16, servers: &[IpAddr], over_tcp: bool) -> Option<Vec<u8>> {
        let _slot = self.slots.try_acquire().ok()?;
        let mut replies: FuturesUnordered<_> = servers
            .iter()
            .take(MAX_SERVERS)
            .zip(0u32..)
            .map(|(server, place)| async move {
                tokio::time::sleep(STAGGER * place).await;
                let server = SocketAddr::new(*server, DNS_PORT);
                let reply = if over_tcp { ask_tcp(query, server).await } else { ask_udp(query, id, server).await };
                reply.inspect_err(|error| tracing::debug!(%server, %error, "upstream resolver did not answer"))
            })
            .collect();
        let mut other = None;
        let first_final = async {
            while let Some(reply) = replies.next().await {
                match reply {
                    Ok(bytes) if wire::is_reply(&bytes, id) && wire::is_final(&bytes) => return Some(bytes),
                    Ok(bytes) if wire::is_reply(&bytes, id) => other = Some(bytes),
                    _ => {}
                }
            }
            None
        };
        match tokio::time::timeout(TIMEOUT, first_final).await {
            Ok(Some(bytes)) => Some(bytes),
            _ => other,
        }
    }
}

async fn ask_udp(query: &[u8], id: u16, server: SocketAddr) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A socket of its own, connected: a random port, and only this server's datagrams.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; 65535];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if wire::is_reply(&buffer[..length], id) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(query: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, query).await?;
    read_message(&mut stream).await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// A message with its length before it; `None` at the end of the stream.
pub(super) async fn read_message(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    Ok(Some(bytes))
}

pub(super) async fn write_message(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let length = u16::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(bytes);
    stream.write_all(&framed).await
}
