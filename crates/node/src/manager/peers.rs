//! Connections to the other managers, one each, made when first needed; consensus speaks over them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use skep_consensus::{Peer, Transport, TransportError};
use tokio::sync::watch;
use tonic::{Code, Request};

use crate::error::Result;
use crate::transport::proto::Envelope;
use crate::transport::{Connection, LiveTls, TlsMaterial};

/// More managers than this have never made sense; those that left are not kept for ever.
const MAX_KEPT: usize = 64;

pub(crate) struct PeerPool {
    tls: LiveTls,
    kept: Mutex<Kept>,
}

struct Kept {
    connections: BTreeMap<String, Connection>,
    /// Connections made with a certificate that was replaced are given up before it runs out.
    certificate: watch::Receiver<Arc<TlsMaterial>>,
}

impl PeerPool {
    pub(crate) fn new(tls: LiveTls) -> Self {
        let kept = Kept { connections: BTreeMap::new(), certificate: tls.subscribe() };
        Self { tls, kept: Mutex::new(kept) }
    }

    pub(crate) fn connection(&self, address: &str) -> Result<Connection> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.certificate.has_changed().unwrap_or(false) {
            kept.certificate.mark_unchanged();
            kept.connections.clear();
        }
        let connections = &mut kept.connections;
        if let Some(connection) = connections.get(address) {
            return Ok(connection.clone());
        }
        if connections.len() >= MAX_KEPT {
            connections.clear();
        }
        let connection = Connection::lazy(address, &self.tls)?;
        connections.insert(address.to_owned(), connection.clone());
        Ok(connection)
    }

    /// Dials anew at the next call: what is behind the address may be another process now.
    pub(crate) fn forget(&self, address: &str) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).connections.remove(address);
    }
}

#[async_trait]
impl Transport for PeerPool {
    async fn call(&self, peer: &Peer, message: Bytes, timeout: Duration) -> Result<Bytes, TransportError> {
        let connection =
            self.connection(&peer.address).map_err(|error| TransportError::Unreachable(error.to_string()))?;
        let mut client = connection.raft();
        let call = client.call(Request::new(Envelope { body: message }));
        match tokio::time::timeout(timeout, call).await {
            Ok(Ok(reply)) => Ok(reply.into_inner().body),
            Ok(Err(status)) if status.code() == Code::Unavailable => {
                self.forget(&peer.address);
                Err(TransportError::Unreachable(status.message().to_owned()))
            }
            Ok(Err(status)) => Err(TransportError::Failed(status.to_string())),
            Err(_) => Err(TransportError::Failed(format!("no answer from {} within {timeout:?}", peer.address))),
        }
    }
}
