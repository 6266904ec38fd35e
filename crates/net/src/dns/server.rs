//! One container's resolver: its sockets and the task that serves them.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::forward::{read_message, write_message};
use super::{Forwarder, Names, RESOLVER_ADDRESS, rules, wire};
use crate::link::Namespace;
use crate::nft::{Family, NftSocket};

/// A client may keep a TCP connection open without asking for this long.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// TCP connections of one container.
const MAX_TCP: usize = 64;
const DATAGRAM: usize = 4096;

/// Bound in a container's namespace, with the rules that lead to them.
pub(crate) struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Sockets {
    /// Blocks. Replaces the rules of an earlier daemon.
    pub(crate) fn open(namespace: &Namespace) -> io::Result<Self> {
        let sockets = namespace.run(|| -> io::Result<Self> {
            let udp = UdpSocket::bind((RESOLVER_ADDRESS, 0))?;
            let tcp = TcpListener::bind((RESOLVER_ADDRESS, 0))?;
            udp.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            Ok(Self { udp, tcp })
        })??;
        sockets.ports()?.lead(&mut NftSocket::open(namespace.fd()).map_err(io::Error::other)?)?;
        Ok(sockets)
    }

    fn ports(&self) -> io::Result<Ports> {
        Ok(Ports { udp: self.udp.local_addr()?.port(), tcp: self.tcp.local_addr()?.port() })
    }
}

/// Where a container's queries have to be led.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    udp: u16,
    tcp: u16,
}

impl Ports {
    /// Blocks. True if somebody else has changed or removed the rules: they are made anew.
    pub(crate) fn lead_again(self, namespace: &Namespace) -> io::Result<bool> {
        let mut nft = NftSocket::open(namespace.fd()).map_err(io::Error::other)?;
        if nft.has(&rules::table(self.udp, self.tcp)).map_err(io::Error::other)? {
            return Ok(false);
        }
        self.lead(&mut nft).map(|()| true)
    }

    fn lead(self, nft: &mut NftSocket) -> io::Result<()> {
        let table = rules::table(self.udp, self.tcp);
        let there = nft.tables(Family::Ip, &table.name).map_err(io::Error::other)?.contains(&table.name);
        let old = there.then(rules::whatever_is_there);
        nft.apply(old.as_ref(), &table).map(drop).map_err(io::Error::other)
    }
}

/// A running resolver. It ends, and lets go of the namespace, when stopped or dropped.
pub(crate) struct Resolver {
    ports: Ports,
    cancel: CancellationToken,
    tracker: TaskTracker,
}

impl Resolver {
    /// Must be called within the runtime.
    pub(crate) fn start(sockets: Sockets, names: Arc<dyn Names>, forwarder: Forwarder) -> io::Result<Self> {
        let ports = sockets.ports()?;
        let cancel = CancellationToken::new();
        let tracker = TaskTracker::new();
        let service = Service {
            udp: Arc::new(tokio::net::UdpSocket::from_std(sockets.udp)?),
            names,
            forwarder,
            turn: Arc::new(AtomicUsize::new(0)),
            cancel: cancel.clone(),
            tracker: tracker.clone(),
        };
        let tcp = tokio::net::TcpListener::from_std(sockets.tcp)?;
        tracker.spawn({
            let service = service.clone();
            async move { service.serve_udp().await }
        });
        tracker.spawn(async move { service.serve_tcp(tcp).await });
        tracker.close();
        Ok(Self { ports, cancel, tracker })
    }

    pub(crate) fn ports(&self) -> Ports {
        self.ports
    }

    /// Returns when every socket is closed.
    pub(crate) async fn stop(self) {
        self.cancel.cancel();
        self.tracker.wait().await;
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

#[derive(Clone)]
struct Service {
    udp: Arc<tokio::net::UdpSocket>,
    names: Arc<dyn Names>,
    forwarder: Forwarder,
    turn: Arc<AtomicUsize>,
    cancel: CancellationToken,
    tracker: TaskTracker,
}

/// What to do about a query.
enum Step {
    Reply(Vec<u8>),
    Forward(Box<wire::Asked>),
    Ignore,
}

impl Service {
    async fn serve_udp(self) {
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let received = tokio::select! {
                () = self.cancel.cancelled() => return,
                received = self.udp.recv_from(&mut buffer) => received,
            };
            let Ok((length, client)) = received else {
                // An ICMP error of an earlier reply; the socket itself is fine.
                tokio::task::yield_now().await;
                continue;
            };
            match self.step(&buffer[..length], false) {
                Step::Reply(bytes) => self.send(&bytes, client).await,
                Step::Forward(asked) => {
                    let (service, query) = (self.clone(), buffer[..length].to_vec());
                    self.tracker.spawn(async move {
                        let reply = service.forward(&query, &asked, false).await;
                        if let Some(reply) = reply {
                            service.send(&reply, client).await;
                        }
                    });
                }
                Step::Ignore => {}
            }
        }
    }

    async fn serve_tcp(self, listener: tokio::net::TcpListener) {
        let slots = Arc::new(Semaphore::new(MAX_TCP));
        loop {
            let accepted = tokio::select! {
                () = self.cancel.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (Ok((stream, _)), Ok(slot)) = (accepted, Arc::clone(&slots).try_acquire_owned()) else {
                tokio::task::yield_now().await;
                continue;
            };
            let service = self.clone();
            self.tracker.spawn(async move {
                let _slot = slot;
                tokio::select! {
                    () = service.cancel.cancelled() => {}
                    _ = service.converse(stream) => {}
                }
            });
        }
    }

    async fn converse(&self, mut stream: tokio::net::TcpStream) -> io::Result<()> {
        loop {
            let Ok(read) = tokio::time::timeout(TCP_IDLE, read_message(&mut stream)).await else { return Ok(()) };
            let Some(query) = read? else { return Ok(()) };
            let reply = match self.step(&query, true) {
                Step::Reply(bytes) => Some(bytes),
                Step::Forward(asked) => self.forward(&query, &asked, true).await,
                Step::Ignore => None,
            };
            let Some(reply) = reply else { return Ok(()) };
            write_message(&mut stream, &reply).await?;
        }
    }

    fn step(&self, query: &[u8], over_tcp: bool) -> Step {
        let asked = match wire::parse(query) {
            Ok(asked) => asked,
            Err(Some(reply)) => return Step::Reply(reply),
            Err(None) => return Step::Ignore,
        };
        let answer = self.names.answer(&asked.question());
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        match asked.reply(&answer, turn, over_tcp) {
            Some(reply) => Step::Reply(reply),
            None => Step::Forward(Box::new(asked)),
        }
    }

    /// `None` when the resolver is stopped meanwhile.
    async fn forward(&self, query: &[u8], asked: &wire::Asked, over_tcp: bool) -> Option<Vec<u8>> {
        let servers = self.names.upstreams();
        tokio::select! {
            () = self.cancel.cancelled() => None,
            reply = self.forwarder.ask(query, asked.id(), &servers, over_tcp) => {
                Some(reply.unwrap_or_else(|| asked.failure()))
            }
        }
    }

    async fn send(&self, reply: &[u8], client: SocketAddr) {
        if let Err(error) = self.udp.send_to(reply, client).await {
            tracing::debug!(%error, "reply to a container's query was not sent");
        }
    }
}
