//! One request to a daemon's API whose body or answer is a stream, over a socket, TCP, or TLS as `docker` is told to.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub(crate) struct Client {
    host: String,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Client {
    pub(crate) fn new(host: String) -> Self {
        Self { host }
    }

    /// The answer, or the daemon's own words as the error.
    pub(crate) async fn send(&self, request: Request<Body>) -> anyhow::Result<Response<Incoming>> {
        let stream = self.connect().await.with_context(|| {
            format!("cannot connect to the daemon at {}; is it running, and is --host or DOCKER_HOST right?", self.host)
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let response = sender.send_request(request).await.context("the daemon did not answer")?;
        if response.status().is_success() {
            return Ok(response);
        }
        let (status, body) = (response.status(), response.into_body().collect().await?.to_bytes());
        let said = serde_json::from_slice::<serde_json::Value>(&body).ok();
        match said.as_ref().and_then(|said| said["message"].as_str()) {
            // An older skep, or dockerd.
            Some("page not found") => bail!("the daemon at {} does not know this request", self.host),
            Some(message) => bail!("{message}"),
            None => bail!("the daemon answered {status}"),
        }
    }

    async fn connect(&self) -> anyhow::Result<Box<dyn Stream>> {
        match self.host.split_once("://") {
            Some(("unix", path)) => Ok(Box::new(UnixStream::connect(path).await?)),
            Some(("tcp", address)) => {
                let verify = std::env::var_os("DOCKER_TLS_VERIFY").is_some_and(|value| !value.is_empty());
                let port = if verify { 2376 } else { 2375 };
                let address = address.trim_end_matches('/');
                let address = if address.contains(':') { address.to_owned() } else { format!("{address}:{port}") };
                let stream = TcpStream::connect(&address).await?;
                if !verify {
                    return Ok(Box::new(stream));
                }
                let name = address.rsplit_once(':').map_or(address.as_str(), |(name, _)| name).to_owned();
                let connector = tokio_rustls::TlsConnector::from(Arc::new(tls(&certificates())?));
                Ok(Box::new(connector.connect(ServerName::try_from(name)?, stream).await?))
            }
            _ => bail!("unix:// and tcp:// are understood, not {:?}", self.host),
        }
    }
}

/// `DOCKER_CERT_PATH`, else where docker looks.
fn certificates() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".docker");
    std::env::var_os("DOCKER_CERT_PATH").map_or_else(home, PathBuf::from)
}

fn tls(directory: &Path) -> anyhow::Result<rustls::ClientConfig> {
    let path = |name: &str| directory.join(name);
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path("ca.pem")).context("cannot read ca.pem")? {
        roots.add(certificate?)?;
    }
    let chain = CertificateDer::pem_file_iter(path("cert.pem")).context("cannot read cert.pem")?;
    let chain = chain.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(path("key.pem")).context("cannot read key.pem")?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots).with_client_auth_cert(chain, key)?)
}
