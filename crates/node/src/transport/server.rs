//! The listening side: accepts, does the handshake, and tells every call who is calling.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, Router};
use tonic::{Request, Status};

use super::LiveTls;
use super::link::tune;
use crate::ca::Identity;

/// A handshake not done by then is dropped, so that silent connections cannot pile up.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Connections in handshake at once; more wait in the kernel's queue.
const MAX_HANDSHAKES: usize = 256;

/// Who is at the other end.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// Absent for a host that has no certificate yet.
    pub(crate) identity: Option<Identity>,
}

struct PeerStream {
    stream: TlsStream<TcpStream>,
    peer: Peer,
}

impl Connected for PeerStream {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

async fn handshake(stream: TcpStream, address: SocketAddr, tls: LiveTls) -> Option<PeerStream> {
    tune(&stream);
    let accept = TlsAcceptor::from(tls.current().server.clone()).accept(stream);
    let stream = match tokio::time::timeout(HANDSHAKE_DEADLINE, accept).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(peer = %address, %error, "tls handshake failed");
            return None;
        }
        Err(_) => return None,
    };
    let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let identity = match leaf.map(|der| Identity::from_der(der)).transpose() {
        Ok(identity) => identity,
        Err(error) => {
            tracing::debug!(peer = %address, %error, "peer certificate refused");
            return None;
        }
    };
    Some(PeerStream { stream, peer: Peer { address, identity } })
}

/// Serves until cancelled, then lets running calls end.
pub(crate) async fn serve(listener: TcpListener, tls: LiveTls, router: Router, cancel: CancellationToken) {
    let (ready, incoming) = mpsc::channel::<std::io::Result<PeerStream>>(16);
    let accepting = cancel.clone();
    let accept = async move {
        let mut handshakes = JoinSet::new();
        loop {
            tokio::select! {
                () = accepting.cancelled() => return,
                Some(done) = handshakes.join_next(), if !handshakes.is_empty() => {
                    if let Ok(Some(stream)) = done && ready.send(Ok(stream)).await.is_err() {
                        return;
                    }
                }
                accepted = listener.accept(), if handshakes.len() < MAX_HANDSHAKES => match accepted {
                    Ok((stream, address)) => { handshakes.spawn(handshake(stream, address, tls.clone())); }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a cluster connection");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
            }
        }
    };
    let serve = router.serve_with_incoming_shutdown(ReceiverStream::new(incoming), cancel.cancelled_owned());
    let (served, ()) = tokio::join!(serve, accept);
    if let Err(error) = served {
        tracing::warn!(%error, "cluster rpc ended");
    }
}

pub(crate) fn peer_of<T>(request: &Request<T>) -> Result<Peer, Status> {
    request.extensions().get::<Peer>().cloned().ok_or_else(|| Status::internal("connection without a peer"))
}
