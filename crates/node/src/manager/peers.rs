//! Connections to the other managers, one each, made when first needed; consensus speaks over them.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use skep_consensus::{Peer, Transport, TransportError};
use tonic::{Code, Request};

use crate::error::Result;
use crate::transport::proto::Envelope;
use crate::transport::{Connection, LiveTls};

/// More managers than this have never made sense; those that left are not kept for ever.
const MAX_KEPT: usize = 64;

pub(crate) struct PeerPool {
    tls: LiveTls,
    connections: Mutex<BTreeMap<String, Connection>>,
}

impl PeerPool {
    pub(crate) fn new(tls: LiveTls) -> Self {
        Self { tls, connections: Mutex::default() }
    }

    pub(crate) fn connection(&self, address: &str) -> Result<Connection> {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
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
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).remove(address);
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
