//! Lines on their way to a log that somebody else keeps.
//!
//! They wait in memory. As long as more than a limit wait, the container's output is not read (`mode=blocking`, the
//! default), or new lines are dropped (`non-blocking`). Who cannot be reached is dialled again with every line, and the line
//! is lost if that fails: so it is with Docker, and the log kept beside this one has it.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::net::RecvFlags;
use skep_model::Timestamp;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UdpSocket, UnixDatagram, UnixStream};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::journald::{self, Journald};
use super::syslog::Syslog;
use crate::container::StdStream;

const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// For what still waits when the daemon ends.
const LAST: Duration = Duration::from_secs(1);
/// Where a host's own syslog listens.
const SYSLOG_SOCKETS: [&str; 3] = ["/dev/log", "/var/run/syslog", "/var/run/log"];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// This host's syslog.
    Syslog,
    Journal,
    /// `host:port`.
    Tcp(String),
    Udp(String),
    Unix(PathBuf),
    Unixgram(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Syslog(Syslog),
    Journald(Journald),
}

/// Where lines go, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(super) address: Address,
    pub(super) format: Format,
    /// How much may wait.
    pub(super) limit_bytes: usize,
    /// What is more is dropped, and the container never waits.
    pub(super) drops: bool,
}

impl Target {
    /// # Errors
    ///
    /// As Docker says it.
    pub(crate) async fn dial(&self) -> Result<Wire, String> {
        self.address.dial().await
    }
}

#[derive(Debug)]
pub(crate) enum Wire {
    Tcp(TcpStream),
    Udp(UdpSocket),
    Unix(UnixStream),
    Unixgram(UnixDatagram),
}

/// What waits.
#[derive(Debug)]
pub(crate) struct Backlog {
    bytes: AtomicUsize,
    limit: usize,
    less: Notify,
}

#[derive(Debug)]
pub(crate) struct Remote {
    format: Format,
    drops: bool,
    lines: mpsc::UnboundedSender<Vec<u8>>,
    backlog: Arc<Backlog>,
}

impl Remote {
    /// Goes on until this value is dropped and everything is sent. Without a `wire` it is dialled for the first line.
    pub(crate) fn start(target: Target, wire: Option<Wire>, tasks: &TaskTracker, closing: CancellationToken) -> Self {
        let (lines, receiver) = mpsc::unbounded_channel();
        let backlog = Arc::new(Backlog { bytes: AtomicUsize::new(0), limit: target.limit_bytes, less: Notify::new() });
        tasks.spawn(forward(target.address, wire, receiver, Arc::clone(&backlog), closing));
        Self { format: target.format, drops: target.drops, lines, backlog }
    }

    /// A line with its newline, or a piece of one without.
    pub(super) fn say(&self, stream: StdStream, line: &[u8], now: Timestamp) {
        let (text, partial) = line.strip_suffix(b"\n").map_or((line, true), |text| (text, false));
        let message = match &self.format {
            // As moby: syslog has no empty messages.
            Format::Syslog(_) if text.is_empty() => return,
            Format::Syslog(syslog) => {
                let offset = crate::sys::clock::local_offset_secs(now);
                syslog.message(stream, text, Timestamp(now.0 + i64::from(offset) * 1_000_000_000), offset)
            }
            Format::Journald(journald) => journald.entry(stream, text, partial),
        };
        let waiting = self.backlog.bytes.load(Ordering::Acquire);
        if self.drops && waiting + message.len() > self.backlog.limit {
            return;
        }
        self.backlog.bytes.fetch_add(message.len(), Ordering::AcqRel);
        let _ = self.lines.send(message);
    }

    /// What output is to wait for, if it is to wait.
    pub(super) fn backlog(&self) -> Option<Arc<Backlog>> {
        (!self.drops).then(|| Arc::clone(&self.backlog))
    }
}

impl Backlog {
    /// Until there is room.
    pub(crate) async fn room(&self) {
        self.at_most(self.limit).await;
    }

    async fn at_most(&self, bytes: usize) {
        loop {
            let mut less = std::pin::pin!(self.less.notified());
            less.as_mut().enable();
            if self.bytes.load(Ordering::Acquire) <= bytes {
                return;
            }
            less.await;
        }
    }
}

async fn forward(
    address: Address,
    mut wire: Option<Wire>,
    mut lines: mpsc::UnboundedReceiver<Vec<u8>>,
    backlog: Arc<Backlog>,
    closing: CancellationToken,
) {
    let mut lost = 0_usize;
    let run = async {
        while let Some(line) = lines.recv().await {
            match deliver(&address, &mut wire, &line).await {
                Ok(()) if lost > 0 => {
                    tracing::info!(?address, lost, "log lines are taken again");
                    lost = 0;
                }
                Ok(()) => {}
                Err(error) => {
                    if lost == 0 {
                        tracing::warn!(?address, %error, "log lines are lost: nobody takes them");
                    }
                    lost += 1;
                }
            }
            backlog.bytes.fetch_sub(line.len(), Ordering::AcqRel);
            backlog.less.notify_waiters();
        }
    };
    let end = async {
        closing.cancelled().await;
        let _ = tokio::time::timeout(LAST, backlog.at_most(0)).await;
    };
    tokio::select! {
        () = run => {}
        () = end => {}
    }
}

async fn deliver(address: &Address, wire: &mut Option<Wire>, line: &[u8]) -> Result<(), String> {
    if let Some(open) = wire
        && open.send(line).await.is_ok()
    {
        return Ok(());
    }
    // A half written line on a stream is lost with the stream.
    *wire = None;
    let mut fresh = address.dial().await?;
    fresh.send(line).await.map_err(|e| words(&e))?;
    *wire = Some(fresh);
    Ok(())
}

impl Address {
    /// # Errors
    ///
    /// In the words of Go's `net.Dial`.
    pub(crate) async fn dial(&self) -> Result<Wire, String> {
        match self {
            Self::Syslog => {
                for path in SYSLOG_SOCKETS {
                    if let Ok(wire) = unixgram(path) {
                        return Ok(wire);
                    }
                }
                for path in SYSLOG_SOCKETS {
                    if let Ok(stream) = UnixStream::connect(path).await {
                        return Ok(Wire::Unix(stream));
                    }
                }
                Err("Unix syslog delivery error".to_owned())
            }
            Self::Journal => unixgram(journald::SOCKET).map_err(|_| "journald is not enabled on this host".to_owned()),
            Self::Unixgram(path) => {
                unixgram(path).map_err(|e| format!("dial unixgram {}: connect: {}", path.display(), words(&e)))
            }
            Self::Unix(path) => UnixStream::connect(path)
                .await
                .map(Wire::Unix)
                .map_err(|e| format!("dial unix {}: connect: {}", path.display(), words(&e))),
            Self::Tcp(address) => {
                network("tcp", address, |at| async move { TcpStream::connect(at).await.map(Wire::Tcp) }).await
            }
            Self::Udp(address) => {
                network("udp", address, |at| async move {
                    let any = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                    let socket = UdpSocket::bind(any).await?;
                    socket.connect(at).await?;
                    Ok(Wire::Udp(socket))
                })
                .await
            }
        }
    }
}

fn unixgram(path: impl AsRef<std::path::Path>) -> std::io::Result<Wire> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    Ok(Wire::Unixgram(socket))
}

async fn network<F: Future<Output = std::io::Result<Wire>>>(
    kind: &str,
    address: &str,
    connect: impl FnOnce(std::net::SocketAddr) -> F,
) -> Result<Wire, String> {
    let found = tokio::net::lookup_host(address).await.map(|mut all| all.next());
    let at = match found {
        Ok(Some(at)) => at,
        Ok(None) => return Err(format!("dial {kind}: lookup {address}: no such host")),
        Err(error) => return Err(format!("dial {kind}: lookup {address}: {}", words(&error))),
    };
    match tokio::time::timeout(DIAL_TIMEOUT, connect(at)).await {
        Ok(dialled) => dialled.map_err(|e| format!("dial {kind} {at}: connect: {}", words(&e))),
        Err(_) => Err(format!("dial {kind} {at}: i/o timeout")),
    }
}

impl Wire {
    async fn send(&mut self, line: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                still_there(&stream)?;
                stream.write_all(line).await
            }
            Self::Unix(stream) => {
                still_there(&stream)?;
                stream.write_all(line).await
            }
            Self::Udp(socket) => socket.send(line).await.map(drop),
            Self::Unixgram(socket) => socket.send(line).await.map(drop),
        }
    }
}

/// A peer that has gone is noticed before the line, which the kernel would take.
fn still_there(stream: impl AsFd) -> std::io::Result<()> {
    let mut nothing = [0_u8; 1];
    match rustix::net::recv(stream, &mut nothing[..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((0, _)) => Err(std::io::ErrorKind::BrokenPipe.into()),
        Err(error) if error != rustix::io::Errno::AGAIN => Err(error.into()),
        _ => Ok(()),
    }
}

/// The kernel's words as Go has them.
pub(super) fn words(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::syslog::Style;

    fn target(address: Address, drops: bool) -> Target {
        let syslog = Syslog { facility: 3, style: Style::Unix, tag: "t".into(), hostname: "h".into() };
        Target { address, format: Format::Syslog(syslog), limit_bytes: 500, drops }
    }

    fn start(target: Target) -> Remote {
        Remote::start(target, None, &TaskTracker::new(), CancellationToken::new())
    }

    // One thread: nothing is sent while the test does not wait.
    #[tokio::test]
    async fn when_too_much_waits_output_is_held_up_or_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let socket = UnixDatagram::bind(&path).unwrap();
        let mut buffer = [0; 1000];
        for drops in [false, true] {
            let remote = start(target(Address::Unixgram(path.clone()), drops));
            for _ in 0..10 {
                remote.say(StdStream::Stdout, &[b'x'; 100], Timestamp::ZERO);
            }
            assert_eq!(remote.backlog().is_none(), drops);
            if let Some(backlog) = remote.backlog() {
                assert!(futures_util::poll!(std::pin::pin!(backlog.room())).is_pending());
                backlog.room().await;
            }
            let waiting = Arc::clone(&remote.backlog);
            drop(remote);
            waiting.at_most(0).await;
            let came = std::iter::from_fn(|| socket.try_recv(&mut buffer).ok()).count();
            assert_eq!(came, if drops { 3 } else { 10 });
        }
    }

    #[tokio::test]
    async fn a_stream_that_ends_is_opened_anew() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let remote = start(target(Address::Tcp(address), false));
        for text in ["one", "two"] {
            remote.say(StdStream::Stdout, text.as_bytes(), Timestamp::ZERO);
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1000];
            let got = tokio::io::AsyncReadExt::read(&mut stream, &mut buffer).await.unwrap();
            assert!(buffer[..got].ends_with(format!("{text}\n").as_bytes()));
        }
    }
}
