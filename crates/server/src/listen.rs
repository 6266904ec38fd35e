//! Sockets the API is served on, and the connections they give.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::tls::{TlsError, TlsFiles};

/// A client that has not finished its TLS handshake by then is let go.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on {address}")]
    Bind { address: String, source: io::Error },
    #[error("invalid address {0:?}: unix:///path or tcp://host:port")]
    Address(String),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A bound socket.
pub enum Listener {
    Unix { listener: UnixListener, path: PathBuf },
    Tcp { listener: TcpListener, tls: Option<TlsAcceptor> },
}

impl Listener {
    /// Binds what `--host` names. A unix socket left by a daemon that died is replaced; `group` (or `docker` if there is
    /// such a group) may use it.
    pub async fn bind(host: &str, group: Option<&str>, tls: Option<&TlsFiles>) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Bind { address: host.to_owned(), source };
        if let Some(path) = host.strip_prefix("unix://") {
            return bind_unix(Path::new(path), group).map_err(failed);
        }
        let Some(address) = host.strip_prefix("tcp://") else { return Err(ListenError::Address(host.to_owned())) };
        let address = address.trim_end_matches('/');
        // dockerd: `tcp://:2375` is every address; without a port it is 2375, with TLS 2376.
        let address = if address.is_empty() || address.starts_with(':') {
            format!("0.0.0.0{address}")
        } else {
            address.to_owned()
        };
        let address = match address.rsplit_once(':') {
            Some((_, port)) if port.parse::<u16>().is_ok() => address,
            _ => format!("{address}:{}", if tls.is_some() { 2376 } else { 2375 }),
        };
        let listener = TcpListener::bind(&address).await.map_err(failed)?;
        let tls = tls.map(TlsFiles::load).transpose()?.map(TlsAcceptor::from);
        Ok(Self::Tcp { listener, tls })
    }

    /// Where a TCP listener ended up.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Unix { .. } => None,
            Self::Tcp { listener, .. } => listener.local_addr().ok(),
        }
    }

    /// The next connection, before any handshake.
    pub(crate) async fn accept(&self) -> io::Result<Incoming> {
        match self {
            Self::Unix { listener, .. } => Ok(Incoming::Unix(listener.accept().await?.0)),
            Self::Tcp { listener, tls } => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Incoming::Tcp(stream, tls.clone()))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix { path, .. } = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn bind_unix(path: &Path, group: Option<&str>) -> io::Result<Listener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            // A living daemon answers; taking its socket away would cut it off from its clients.
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another daemon answers on this socket"));
            }
            std::fs::remove_file(path)?;
        }
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file of another kind")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    match group_id(group.unwrap_or("docker")) {
        Some(gid) => std::os::unix::fs::chown(path, None, Some(gid))?,
        None if group.is_some_and(|g| !g.is_empty()) => {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("group {} not found", group.unwrap_or_default()),
            ));
        }
        None => {}
    }
    listener.set_nonblocking(true)?;
    Ok(Listener::Unix { listener: UnixListener::from_std(listener)?, path: path.to_owned() })
}

/// From /etc/group, since a static binary cannot ask nsswitch; a number stands for itself.
fn group_id(name: &str) -> Option<u32> {
    if let Ok(gid) = name.parse() {
        return Some(gid);
    }
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

/// A connection just accepted.
pub(crate) enum Incoming {
    Unix(UnixStream),
    Tcp(TcpStream, Option<TlsAcceptor>),
}

impl Incoming {
    pub(crate) async fn establish(self) -> io::Result<Connection> {
        match self {
            Self::Unix(stream) => Ok(Connection::Unix(stream)),
            Self::Tcp(stream, None) => Ok(Connection::Tcp(stream)),
            Self::Tcp(stream, Some(acceptor)) => {
                let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
                Ok(Connection::Tls(Box::new(stream)))
            }
        }
    }
}

fn common_name(der: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    certificate.subject().iter_common_name().next()?.as_str().ok().map(str::to_owned)
}

/// A connection of any kind.
pub(crate) enum Connection {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

macro_rules! each {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Connection::Unix(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
            Connection::Tcp(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
            Connection::Tls(stream) => {
                let $stream = Pin::new(stream.as_mut());
                $call
            }
        }
    };
}

impl Connection {
    /// Who is at the other end, in words for the audit log.
    pub(crate) fn requester(&self) -> String {
        let address = |stream: &TcpStream| stream.peer_addr().map(|a| a.to_string()).unwrap_or_default();
        match self {
            Self::Unix(stream) => match stream.peer_cred() {
                Ok(who) => format!("unix uid={} pid={}", who.uid(), who.pid().unwrap_or_default()),
                Err(_) => "unix".into(),
            },
            Self::Tcp(stream) => format!("tcp {}", address(stream)),
            Self::Tls(stream) => {
                let (tcp, tls) = stream.get_ref();
                let leaf = tls.peer_certificates().and_then(<[_]>::first);
                let name = leaf.and_then(|der| common_name(der)).map(|cn| format!("CN={cn} ")).unwrap_or_default();
                format!("tls {name}{}", address(tcp))
            }
        }
    }

    /// Whether the peer has closed both directions, as far as the kernel knows by now.
    fn peer_is_gone(&self) -> bool {
        let mut noop = Context::from_waker(Waker::noop());
        let ready = match self {
            Self::Unix(stream) => pin!(stream.ready(Interest::WRITABLE)).poll(&mut noop),
            Self::Tcp(stream) => pin!(stream.ready(Interest::WRITABLE)).poll(&mut noop),
            Self::Tls(stream) => pin!(stream.get_ref().0.ready(Interest::WRITABLE)).poll(&mut noop),
        };
        matches!(ready, Poll::Ready(Ok(ready)) if ready.is_write_closed())
    }
}

/// End of input from a peer that is wholly gone is an error, so that a reader can tell it from a half-closed connection.
impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let room = buf.remaining() > 0;
        let stream = self.as_mut();
        let result = each!(stream, s => s.poll_read(cx, buf));
        if room && matches!(result, Poll::Ready(Ok(()))) && buf.filled().len() == before && self.peer_is_gone() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        result
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, s => s.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, s => s.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, s => s.poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, s => s.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}
