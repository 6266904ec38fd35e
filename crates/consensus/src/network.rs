//! Outgoing messages: openraft's calls become bytes on the caller's [`Transport`], each with a deadline.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{BasicNode, OptionalSend};

use crate::config::Timing;
use crate::member::Peer;
use crate::types::{Blob, Snapshot, SnapshotData, Types, Vote};
use crate::wire::{self, Envelope, Request, Response, SnapshotPart};

/// No message this crate hands to a transport is larger.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// Bytes of a snapshot in one message.
const PART_BYTES: usize = 1024 * 1024;
/// For a message that makes the peer write to its disk.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// For the last part of a snapshot: the peer installs it before it answers.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a message was not answered.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransportError {
    /// No connection to the peer: it is asked again after a pause.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// The call failed on the way; the peer may have seen it.
    #[error("{0}")]
    Failed(String),
}

/// Carries one message to a peer and its answer back, over authenticated connections between managers. Implementations
/// keep the deadline (a hung call here is a follower that looks dead) and answer `Unreachable` quickly where they can.
#[async_trait::async_trait]
pub trait Transport: Send + Sync + 'static {
    async fn call(&self, peer: &Peer, message: Bytes, timeout: Duration) -> Result<Bytes, TransportError>;
}

/// Makes a client for each peer and purpose; replication, heartbeats and snapshots do not wait for each other.
pub(crate) struct Network {
    from: u64,
    timing: Timing,
    transport: Arc<dyn Transport>,
    transfers: Arc<AtomicU64>,
}

impl Network {
    pub(crate) fn new(from: u64, timing: Timing, transport: Arc<dyn Transport>) -> Self {
        Self { from, timing, transport, transfers: Arc::default() }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Client {
        Client {
            from: self.from,
            peer: Peer { raft_id: target, address: node.addr.clone() },
            // Short enough that a lost heartbeat is repeated before the follower gives up on the leader.
            heartbeat_timeout: self.timing.lease() / 2,
            transport: self.transport.clone(),
            transfers: self.transfers.clone(),
        }
    }
}

pub(crate) struct Client {
    from: u64,
    peer: Peer,
    heartbeat_timeout: Duration,
    transport: Arc<dyn Transport>,
    transfers: Arc<AtomicU64>,
}

impl Client {
    async fn call(&self, request: Request, timeout: Duration) -> Result<Response, RPCError<Types>> {
        let envelope = Envelope { from: self.from, to: self.peer.raft_id, request };
        let message = wire::encode(&envelope).map_err(|error| failed(&error))?;
        let call = self.transport.call(&self.peer, message, timeout);
        let answer = match tokio::time::timeout(timeout, call).await {
            Err(_) => return Err(failed(&format!("no answer from {} within {timeout:?}", self.peer.address))),
            Ok(Err(TransportError::Unreachable(why))) => return Err(unreachable(&why)),
            Ok(Err(TransportError::Failed(why))) => return Err(failed(&why)),
            Ok(Ok(answer)) => answer,
        };
        match wire::decode(&answer) {
            // The peer is there and cannot serve: no use in asking at once again.
            Ok(Response::Failed(why)) => Err(unreachable(&why)),
            Ok(response) => Ok(response),
            Err(error) => Err(unreachable(&error)),
        }
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let transfer = self.transfers.fetch_add(1, Ordering::Relaxed);
        let SnapshotData(store) = snapshot.snapshot;
        let mut offset = 0;
        loop {
            let end = store.len().min(offset + PART_BYTES);
            let last = end == store.len();
            let part = SnapshotPart {
                transfer,
                vote,
                meta: snapshot.meta.clone(),
                offset: offset as u64,
                data: Blob(store.slice(offset..end)),
                last,
            };
            let timeout = if last { INSTALL_TIMEOUT } else { WRITE_TIMEOUT };
            match self.call(Request::Snapshot(part), timeout).await? {
                Response::Installed(installed) => return Ok(installed),
                Response::PartTaken if !last => offset = end,
                other => return Err(unexpected(&other).into()),
            }
        }
    }
}

impl RaftNetworkV2<Types> for Client {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let timeout = if request.entries.is_empty() { self.heartbeat_timeout } else { WRITE_TIMEOUT };
        match self.call(Request::Append(request), timeout).await? {
            Response::Append(response) => Ok(response),
            other => Err(unexpected(&other)),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        match self.call(Request::Vote(request), option.hard_ttl()).await? {
            Response::Vote(response) => Ok(response),
            other => Err(unexpected(&other)),
        }
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        match self.call(Request::PreVote(request), option.hard_ttl()).await? {
            Response::Vote(response) => Ok(response),
            other => Err(unexpected(&other)),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        tokio::select! {
            biased;
            closed = cancel => Err(closed.into()),
            sent = self.send_snapshot(vote, snapshot) => sent,
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        match self.call(Request::TransferLeader(request), option.hard_ttl()).await? {
            Response::TransferLeader(response) => Ok(response),
            other => Err(unexpected(&other)),
        }
    }
}

fn failed(why: &impl ToString) -> RPCError<Types> {
    RPCError::Network(NetworkError::from_string(why.to_string()))
}

fn unreachable(why: &impl ToString) -> RPCError<Types> {
    RPCError::Unreachable(Unreachable::from_string(why.to_string()))
}

fn unexpected(response: &Response) -> RPCError<Types> {
    unreachable(&format!("the peer answered another question: {response:?}"))
}
