//! The calling side: one HTTP/2 connection to one manager.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

use super::link::tune;
use super::proto::ca_client::CaClient;
use super::proto::control_client::ControlClient;
use super::proto::dispatcher_client::DispatcherClient;
use super::proto::raft_client::RaftClient;
use super::tls::{joiner_config, stranger_config};
use super::{LiveTls, MAX_MESSAGE_BYTES, message, pack, unpack};
use crate::error::{NodeError, Result};

/// A manager that does not answer by then is as good as gone; another is tried.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// Every certificate of a manager is valid for this name.
const MANAGER_NAME: &str = "swarm-manager";

#[derive(Clone)]
pub(crate) struct Connection {
    channel: Channel,
}

impl Connection {
    /// To a manager, as a member.
    pub(crate) fn lazy(address: &str, tls: &LiveTls) -> Result<Self> {
        let tls = tls.clone();
        Self::build(address, move || tls.current().client.clone())
    }

    /// To a manager, knowing the swarm's root and having no certificate.
    pub(crate) fn joining(address: &str, root_pem: &str) -> Result<Self> {
        let config = joiner_config(root_pem)?;
        Self::build(address, move || config.clone())
    }

    fn build(address: &str, config: impl Fn() -> Arc<ClientConfig> + Send + Sync + 'static) -> Result<Self> {
        let address: Arc<str> = address.into();
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|e| NodeError::BadRequest(format!("invalid manager address {address}: {e}")))?
            .connect_timeout(CONNECT_DEADLINE)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(2))
            .keep_alive_timeout(Duration::from_secs(4))
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20);
        let config = Arc::new(config);
        let connector = tower::service_fn(move |_: Uri| {
            let (address, config) = (address.clone(), config());
            async move {
                let connect = async {
                    let stream = TcpStream::connect(&*address).await?;
                    tune(&stream);
                    let name = ServerName::try_from(MANAGER_NAME).map_err(io::Error::other)?;
                    TlsConnector::from(config).connect(name, stream).await
                };
                let stream = tokio::time::timeout(CONNECT_DEADLINE, connect).await.map_err(|_| {
                    io::Error::new(io::ErrorKind::TimedOut, format!("dial tcp {address}: i/o timeout"))
                })??;
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        });
        Ok(Self { channel: endpoint.connect_with_connector_lazy(connector) })
    }

    pub(crate) fn ca(&self) -> CaClient<Channel> {
        CaClient::new(self.channel.clone())
    }

    pub(crate) fn raft(&self) -> RaftClient<Channel> {
        RaftClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(crate) fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(crate) fn dispatcher(&self) -> DispatcherClient<Channel> {
        DispatcherClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }
}

/// The root certificate a manager shows. Not to be trusted until compared with a token's digest.
pub(crate) async fn fetch_root(address: &str) -> Result<String> {
    let config = stranger_config()?;
    let connection = Connection::build(address, move || config.clone())?;
    let call = async { connection.ca().get_root(pack(&())).await };
    let reply = tokio::time::timeout(CONNECT_DEADLINE + Duration::from_secs(1), call)
        .await
        .map_err(|_| NodeError::Unreachable(unreachable_text(address, "i/o timeout")))?
        .map_err(|status| match status.code() {
            Code::Unavailable | Code::Unknown => {
                NodeError::Unreachable(unreachable_text(address, &root_cause(&status)))
            }
            _ => NodeError::Internal(status.message().to_owned()),
        })?;
    let root: message::Root =
        unpack(reply.get_ref()).map_err(|status| NodeError::Internal(status.message().to_owned()))?;
    Ok(root.cert_pem)
}

fn root_cause(status: &Status) -> String {
    let mut error: &dyn std::error::Error = status;
    while let Some(source) = error.source() {
        error = source;
    }
    let Some(io) = error.downcast_ref::<io::Error>() else { return error.to_string() };
    // Go's words.
    match io.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".into(),
        io::ErrorKind::HostUnreachable => "connect: no route to host".into(),
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".into(),
        io::ErrorKind::TimedOut => "i/o timeout".into(),
        _ => io.to_string(),
    }
}

/// Go's gRPC words for a manager that cannot be dialled; tools look for them.
fn unreachable_text(address: &str, cause: &str) -> String {
    format!("connection error: desc = \"transport: Error while dialing: dial tcp {address}: {cause}\"")
}
