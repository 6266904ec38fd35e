//! A CA elsewhere that signs for the swarm: CFSSL's `sign` endpoint over mutual TLS, as swarmkit asks it (`ca/external.go`).

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use skep_model::cluster::{Cluster, ClusterSpec, ExternalCa, RootCa};
use skep_model::node::Role;
use skep_model::{ClusterId, NodeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::certificate::ders;
use super::identity::{Identity, role_ou};
use super::root::names_of;
use crate::error::{NodeError, Result};

/// swarmkit's `externalRequestTimeout`.
const DEADLINE: Duration = Duration::from_secs(5);
const MAX_ANSWER_BYTES: u64 = 1 << 20;

fn failed(error: impl std::fmt::Display) -> NodeError {
    NodeError::Certificate(format!("external CA: {error}"))
}

/// Those that sign for the root that signs now.
pub(crate) fn external_signers<'a>(spec: &'a ClusterSpec, root: &RootCa) -> Vec<&'a ExternalCa> {
    let same = |a: &str, b: &str| a.split_whitespace().eq(b.split_whitespace());
    let of =
        |ca: &'a ExternalCa| if ca.ca_cert_pem.is_empty() { root.cert_pem.clone() } else { ca.ca_cert_pem.clone() };
    spec.external_cas.iter().filter(|ca| same(&of(ca), root.signing().0)).collect()
}

/// `host:port`, host and path of an https URL.
fn parts(url: &str) -> Result<(String, String, String)> {
    let rest = url.strip_prefix("https://").ok_or_else(|| failed(format!("{url} is not an https URL")))?;
    let (authority, path) = rest.split_once('/').map_or((rest, String::from("/")), |(a, p)| (a, format!("/{p}")));
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let address = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:443") };
    Ok((address, host.to_owned(), path))
}

async fn connect(url: &str, config: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>> {
    let (address, host, _) = parts(url)?;
    let name = ServerName::try_from(host).map_err(failed)?;
    let stream = TcpStream::connect(&address).await.map_err(failed)?;
    TlsConnector::from(config).connect(name, stream).await.map_err(failed)
}

/// That one of them answers, with a certificate of its own root.
pub(crate) async fn one_is_reachable(signers: &[&ExternalCa], config: &Arc<ClientConfig>) -> bool {
    for signer in signers {
        match tokio::time::timeout(DEADLINE, connect(&signer.url, config.clone())).await {
            Ok(Ok(_)) => return true,
            Ok(Err(error)) => tracing::warn!(url = signer.url, %error, "an external CA is unreachable or invalid"),
            Err(_) => tracing::warn!(url = signer.url, "an external CA does not answer"),
        }
    }
    false
}

/// A certificate from the first that gives one, with what links it to older roots.
pub(crate) async fn sign_elsewhere(
    signers: &[&ExternalCa],
    config: &Arc<ClientConfig>,
    cluster: &Cluster,
    request_pem: &str,
    node_id: &NodeId,
    role: Role,
) -> Result<String> {
    let body = json!({
        "hosts": names_of(node_id, role),
        "certificate_request": request_pem,
        "subject": { "CN": node_id.as_str(), "names": [{ "OU": role_ou(role), "O": cluster.id.as_str() }] },
    })
    .to_string();
    let mut last = failed("none is configured");
    for signer in signers {
        let signed = tokio::time::timeout(DEADLINE, post(&signer.url, config.clone(), &body)).await;
        match signed
            .unwrap_or_else(|_| Err(failed("no answer in time")))
            .and_then(|pem| checked(pem, node_id, role, &cluster.id))
        {
            Ok(pem) => return Ok(pem + cluster.root_ca.intermediates()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Nobody else decides who a node is: a certificate for another name or role is not used.
fn checked(pem: String, node_id: &NodeId, role: Role, cluster_id: &ClusterId) -> Result<String> {
    let leaf = ders(&pem)?.into_iter().next().ok_or_else(|| failed("the answer has no certificate"))?;
    let identity = Identity::from_der(&leaf)?;
    if identity.node_id != *node_id || identity.role != role || identity.cluster_id != *cluster_id {
        return Err(failed("it signed another subject than it was asked to"));
    }
    Ok(if pem.ends_with('\n') { pem } else { pem + "\n" })
}

async fn post(url: &str, config: Arc<ClientConfig>, body: &str) -> Result<String> {
    let (_, host, path) = parts(url)?;
    let mut stream = connect(url, config).await?;
    // HTTP/1.0: no chunks, and the other side closes when it is done.
    let request = format!(
        "POST {path} HTTP/1.0\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut answer = Vec::new();
    match stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await {
        // Many servers close without TLS's goodbye; whether all is there shows in the JSON.
        Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => return Err(failed(error)),
        Ok(_) | Err(_) => {}
    }
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| failed("the answer is not HTTP"))?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        return Err(failed(format!("unexpected status code in CSR response: {status}")));
    }
    let answer: Value = serde_json::from_str(body).map_err(failed)?;
    match answer["result"]["certificate"].as_str() {
        Some(pem) if answer["success"] == true => Ok(pem.to_owned()),
        Some(_) | None => Err(failed(format!("certificate signing request failed: {}", answer["errors"]))),
    }
}
