//! Connections to published TCP ports that the kernel cannot pass on: this daemon takes them, and copies. Those that are to
//! begin with a header, which says who opened them; and those of IPv6 clients, since the mesh is of IPv4.
//!
//! ```text
//!   client --> host:8080 (listener of the daemon) --> ing-<tag> --(ingress overlay)--> task:80
//! ```
//!
//! All TCP ports are listened on. What rules translate never gets as far as the listener.
//!
//! A port listens while somebody takes its connections, and else refuses them as every port does. Connections under way
//! follow no change but one: those of a backend that is dead are reset. They end with the daemon.
//!
//! Decides who gets a connection, and when one is given up. Must not know why a port is relayed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{Shutdown, sockopt};
use skep_model::plan::{Backend, MeshPort};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::proxy_protocol::header;
use crate::balance::order;
use crate::sorted::differences;

/// Connections that wait to be taken, a port; the kernel may allow fewer.
const BACKLOG: i32 = 4096;
/// Connections at once on all ports, each being two sockets; fewer where the daemon may have few files.
const MOST_CONNECTIONS: usize = 16_384;
/// Of a daemon's open files, one in so many is a relayed connection.
const FILES_EACH: usize = 4;
/// Each backend that is tried for a connection is given so long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// When the daemon has no file left for a connection.
const PAUSE: Duration = Duration::from_millis(100);
/// Each way of a connection, in bytes.
const BUFFER: usize = 16 * 1024;

/// The ports of this host that are relayed.
#[derive(Debug)]
pub(super) struct Relays {
    ports: BTreeMap<u16, Relay>,
    connections: Arc<Connections>,
    /// Ends what is under way with the mesh.
    _end: DropGuard,
}

#[derive(Debug)]
struct Relay {
    plan: MeshPort,
    /// Tells the plan to who accepts.
    port: watch::Sender<MeshPort>,
    /// The socket that also reserves the port.
    listener: Arc<TcpListener>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Back to a socket that is bound and refuses: closing this one would not do, as it is not the last.
        let _ = rustix::net::shutdown(&*self.listener, Shutdown::Both);
        let _ = sockopt::set_socket_reuseaddr(&*self.listener, false);
        self.task.abort();
    }
}

impl Relays {
    pub(super) fn new() -> Self {
        let end = CancellationToken::new();
        let connections = Connections {
            room: Arc::new(Semaphore::new(room())),
            next: AtomicUsize::new(0),
            open: Mutex::default(),
            end: end.clone(),
        };
        Self { ports: BTreeMap::new(), connections: Arc::new(connections), _end: end.drop_guard() }
    }

    /// Relays exactly these ports; `held` gives the bound socket of one. Returns how many were begun or ended, and words
    /// for those that could not be. Must be called within a runtime.
    pub(super) fn update<'p, 'h, F: AsFd + 'h>(
        &mut self,
        wanted: impl Iterator<Item = (u16, &'p MeshPort)>,
        held: impl Fn(u16) -> Option<&'h F>,
    ) -> (usize, Vec<String>) {
        let now = self.ports.iter().map(|(port, relay)| (*port, &relay.plan));
        let taken = wanted.filter(|(_, plan)| !plan.ring.backends.is_empty());
        let differences = differences(now, taken).into_iter();
        let differences: Vec<_> = differences.map(|(port, _, plan)| (port, plan.cloned())).collect();
        let (mut changes, mut failures) = (0, Vec::new());
        for (port, plan) in differences {
            match (plan, self.ports.get_mut(&port)) {
                (None, _) => {
                    self.ports.remove(&port);
                    changes += 1;
                }
                (Some(plan), Some(relay)) => {
                    relay.port.send_replace(plan.clone());
                    relay.plan = plan;
                }
                (Some(plan), None) => {
                    // What could not be reserved has been told already.
                    let Some(socket) = held(port) else { continue };
                    match self.listen(socket.as_fd(), plan) {
                        Ok(relay) => {
                            self.ports.insert(port, relay);
                            changes += 1;
                        }
                        Err(error) => {
                            failures.push(format!("published port {port}/tcp cannot be listened on: {error}"))
                        }
                    }
                }
            }
        }
        (changes, failures)
    }

    fn listen(&self, socket: impl AsFd, plan: MeshPort) -> io::Result<Relay> {
        // For the next time: connections of this time may still be open then. Only while it listens, since two sockets that
        // do not may have the same port so.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::net::listen(&socket, BACKLOG)?;
        let listener = std::net::TcpListener::from(socket.as_fd().try_clone_to_owned()?);
        listener.set_nonblocking(true)?;
        let listener = Arc::new(TcpListener::from_std(listener)?);
        let (port, ports) = watch::channel(plan.clone());
        let task = tokio::spawn(accept(Arc::clone(&listener), ports, Arc::clone(&self.connections)));
        Ok(Relay { plan, port, listener, task })
    }

    /// Resets the connections of backends that are dead.
    pub(super) fn cut(&self, dead: &BTreeSet<Ipv4Addr>) {
        let open = self.connections.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.values().filter(|(backend, _)| dead.contains(backend)).for_each(|(_, cut)| cut.cancel());
    }
}

/// How many connections there may be at once.
pub(super) fn room() -> usize {
    let files = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    usize::try_from(files.map_or(1024, |(soft, _)| soft))
        .unwrap_or(usize::MAX)
        .div_euclid(FILES_EACH)
        .min(MOST_CONNECTIONS)
}

/// What is under way, on all ports.
#[derive(Debug)]
struct Connections {
    room: Arc<Semaphore>,
    next: AtomicUsize,
    open: Mutex<BTreeMap<usize, (Ipv4Addr, CancellationToken)>>,
    end: CancellationToken,
}

async fn accept(listener: Arc<TcpListener>, port: watch::Receiver<MeshPort>, connections: Arc<Connections>) {
    let mut turn = 0_usize;
    let mut full = false;
    loop {
        let (client, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            Err(error) => {
                tracing::debug!(%error, "a connection to a published port was not taken");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(room) = Arc::clone(&connections.room).try_acquire_owned() else {
            if !std::mem::replace(&mut full, true) {
                tracing::warn!("too many connections are relayed; more are reset");
            }
            let _ = client.set_zero_linger();
            continue;
        };
        full = false;
        turn = turn.wrapping_add(1);
        let (backends, header) = {
            let port = port.borrow();
            (order(&port.ring, turn, from.ip().to_canonical()), port.proxy_protocol.then(|| header_of(&client, from)))
        };
        let connections = Arc::clone(&connections);
        tokio::spawn(async move {
            if let Err(error) = pass(client, &backends, &header.unwrap_or_default(), &connections).await {
                tracing::debug!(%error, client = %from, "a relayed connection was reset");
            }
            drop(room);
        });
    }
}

/// One connection from its beginning to its end. An error is passed on as a reset, both ways.
async fn pass(
    mut client: TcpStream,
    backends: &[Backend],
    header: &[u8],
    connections: &Arc<Connections>,
) -> io::Result<()> {
    let begun = begin(&client, backends, header, connections).await;
    let (mut server, entry) = begun.inspect_err(|_| _ = client.set_zero_linger())?;
    let passed = tokio::select! {
        passed = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER) => passed.map(drop),
        () = entry.cut.cancelled() => Err(io::Error::other("its backend is gone")),
    };
    passed.inspect_err(|_| _ = (client.set_zero_linger(), server.set_zero_linger()))
}

/// What tells a task whose connection it is; nothing, if the client is gone already.
fn header_of(client: &TcpStream, from: SocketAddr) -> Vec<u8> {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    client.local_addr().map(|to| header(canonical(from), canonical(to))).unwrap_or_default()
}

/// A connection to the first backend that takes one, which has been told whose it is.
async fn begin(
    client: &TcpStream,
    backends: &[Backend],
    header: &[u8],
    connections: &Arc<Connections>,
) -> io::Result<(TcpStream, Entry)> {
    let mut last = io::Error::other("nobody takes it");
    for backend in backends {
        let entry = Entry::new(connections, backend.address);
        let connecting = async {
            let mut server = TcpStream::connect((backend.address, backend.port)).await?;
            for stream in [client.as_fd(), server.as_fd()] {
                sockopt::set_tcp_nodelay(stream, true)?;
                sockopt::set_socket_keepalive(stream, true)?;
            }
            server.write_all(header).await?;
            Ok(server)
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(server)) => return Ok((server, entry)),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// A connection's place among those under way.
struct Entry {
    number: usize,
    cut: CancellationToken,
    connections: Arc<Connections>,
}

impl Entry {
    fn new(connections: &Arc<Connections>, backend: Ipv4Addr) -> Self {
        let number = connections.next.fetch_add(1, Ordering::Relaxed);
        let cut = connections.end.child_token();
        let mut open = connections.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert(number, (backend, cut.clone()));
        drop(open);
        Self { number, cut, connections: Arc::clone(connections) }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.connections.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    /// A server on an address of this machine that has what it was sent printed after its own name.
    async fn serve(last: u8) -> Backend {
        let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 0, last), 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut head = [0; 28];
                    stream.read_exact(&mut head).await.unwrap();
                    stream.write_all(&[&[last], &head[..]].concat()).await.unwrap();
                    let (mut reader, mut writer) = stream.split();
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                });
            }
        });
        Backend { address: Ipv4Addr::new(127, 0, 0, last), port }
    }

    /// Connects, and tells which server answered and who it says asked.
    async fn ask(port: u16) -> io::Result<(TcpStream, u8)> {
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        let mut answer = [0; 29];
        client.read_exact(&mut answer).await?;
        let told = header(client.local_addr()?, client.peer_addr()?);
        assert_eq!(answer[1..], told, "the client's address, and the one it came to");
        Ok((client, answer[0]))
    }

    #[tokio::test]
    async fn a_port_follows_its_backends_and_refuses_without_them() {
        // Bound by number, as published ports are: one that the kernel chose would be another one at the next `listen`.
        let port = std::net::TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port();
        let socket = {
            use rustix::net::{AddressFamily, SocketType, bind, socket};
            let socket = socket(AddressFamily::INET6, SocketType::STREAM, None).unwrap();
            bind(&socket, &SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port))).unwrap();
            socket
        };
        let (one, two) = (serve(2).await, serve(3).await);
        let mut relays = Relays::new();
        let tell = |relays: &mut Relays, backends: &[Backend]| {
            let plan = MeshPort { ring: backends.to_vec().into(), proxy_protocol: true, ..MeshPort::default() };
            let (changes, failures) = relays.update([(port, &plan)].into_iter(), |_| Some(&socket));
            assert_eq!(failures, Vec::<String>::new());
            changes
        };
        assert_eq!((tell(&mut relays, &[one, two]), tell(&mut relays, &[one, two])), (1, 0));
        let (mut kept, first) = ask(port).await.unwrap();
        assert_ne!(ask(port).await.unwrap().1, first, "the next one");
        let other = if first == 2 { two } else { one };

        tell(&mut relays, &[other]);
        for _ in 0..3 {
            assert_ne!(ask(port).await.unwrap().1, first);
        }
        for _ in 0..2 {
            assert_eq!(tell(&mut relays, &[]), 1);
            assert_eq!(ask(port).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
            assert_eq!(tell(&mut relays, &[Backend { port: 1, ..one }, other]), 1);
            assert_ne!(ask(port).await.unwrap().1, first, "where one does not answer, the next is tried");
            assert_ne!(ask(port).await.unwrap().1, first);
        }

        // What is under way goes on until its backend is dead.
        let mut byte = [0];
        kept.write_all(b"x").await.unwrap();
        kept.read_exact(&mut byte).await.unwrap();
        relays.cut(&[Ipv4Addr::new(127, 0, 0, first)].into());
        let told = tokio::time::timeout(Duration::from_secs(5), kept.read(&mut byte)).await.unwrap();
        assert_eq!(told.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(relays.connections.open.lock().unwrap().values().filter(|(b, _)| b.octets()[3] == first).count(), 0);
    }
}
