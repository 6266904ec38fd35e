//! What managers say to each other, as bytes: a version byte, then MessagePack with field names, so that a field can be
//! added without breaking the other side.

use std::sync::{Mutex, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};
use openraft::async_runtime::WatchReceiver;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::patience::Heard;
use crate::types::{Blob, Raft, Snapshot, SnapshotData, SnapshotMeta, Types, Vote};

const VERSION: u8 = 1;
/// A snapshot larger than this is refused instead of filling the memory.
const MAX_SNAPSHOT_BYTES: u64 = 1024 * 1024 * 1024;

/// A message and whom it is for: an address may have changed hands since the sender learned it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub(crate) struct Envelope {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) request: Request,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub(crate) enum Request {
    Append(AppendEntriesRequest<Types>),
    Vote(VoteRequest<Types>),
    PreVote(VoteRequest<Types>),
    Snapshot(SnapshotPart),
    TransferLeader(TransferLeaderRequest<Types>),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotPart {
    /// Tells apart two attempts of the same sender.
    pub(crate) transfer: u64,
    pub(crate) vote: Vote,
    pub(crate) meta: SnapshotMeta,
    pub(crate) offset: u64,
    pub(crate) data: Blob,
    pub(crate) last: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub(crate) enum Response {
    Append(AppendEntriesResponse<Types>),
    Vote(VoteResponse<Types>),
    PartTaken,
    Installed(SnapshotResponse<Types>),
    TransferLeader(TransferLeaderResponse<Types>),
    /// The receiver could not serve the request, and why.
    Failed(String),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("failed to encode a raft message: {0}")]
    Encode(#[from] rmp_serde::encode::Error),
    #[error("failed to decode a raft message: {0}")]
    Decode(#[from] rmp_serde::decode::Error),
    #[error("raft messages of version {0} are not understood, only of version {VERSION}")]
    Version(u8),
    #[error("empty raft message")]
    Empty,
}

pub(crate) fn encode<T: Serialize>(message: &T) -> Result<Bytes, WireError> {
    let mut out = BytesMut::with_capacity(256).writer();
    out.get_mut().put_u8(VERSION);
    message.serialize(&mut rmp_serde::Serializer::new(&mut out).with_struct_map())?;
    Ok(out.into_inner().freeze())
}

pub(crate) fn decode<T: DeserializeOwned>(message: &[u8]) -> Result<T, WireError> {
    match message.split_first() {
        None => Err(WireError::Empty),
        Some((&VERSION, body)) => Ok(rmp_serde::from_slice(body)?),
        Some((version, _)) => Err(WireError::Version(*version)),
    }
}

/// The snapshot being received, at most one, and when a leader last said something.
pub(crate) struct Incoming {
    assembly: Mutex<Option<Assembly>>,
    heard: Heard,
}

struct Assembly {
    from: u64,
    transfer: u64,
    store: Vec<u8>,
}

impl Incoming {
    pub(crate) fn new(heard: Heard) -> Self {
        Self { assembly: Mutex::default(), heard }
    }

    /// Adds a part. The whole store once it is complete.
    fn take(&self, from: u64, part: &SnapshotPart) -> Result<Option<Vec<u8>>, String> {
        let mut current = self.assembly.lock().unwrap_or_else(PoisonError::into_inner);
        if part.offset == 0 {
            *current = Some(Assembly { from, transfer: part.transfer, store: Vec::new() });
        }
        let Some(assembly) = current.as_mut().filter(|at| (at.from, at.transfer) == (from, part.transfer)) else {
            return Err("another snapshot transfer took over".to_owned());
        };
        let held = assembly.store.len() as u64;
        if held != part.offset || held + part.data.0.len() as u64 > MAX_SNAPSHOT_BYTES {
            *current = None;
            return Err(format!("snapshot part at {} does not follow {held} bytes", part.offset));
        }
        assembly.store.extend_from_slice(&part.data.0);
        Ok(part.last.then(|| current.take().map(|whole| whole.store)).flatten())
    }
}

/// Answers one message for the manager `raft_id`.
pub(crate) async fn answer(raft: &Raft, raft_id: u64, incoming: &Incoming, message: &[u8]) -> Bytes {
    let response = match decode::<Envelope>(message) {
        Err(error) => Response::Failed(error.to_string()),
        Ok(envelope) if envelope.to != raft_id => {
            Response::Failed(format!("this is raft member {raft_id}, not {}", envelope.to))
        }
        Ok(envelope) => serve(raft, incoming, envelope).await.unwrap_or_else(Response::Failed),
    };
    // Encoding to memory fails only for types serde cannot represent; an empty answer is an error to the peer.
    encode(&response).unwrap_or_default()
}

async fn serve(raft: &Raft, incoming: &Incoming, envelope: Envelope) -> Result<Response, String> {
    match &envelope.request {
        Request::Append(request) => incoming.heard.again(request.vote.leader_id.term),
        Request::Snapshot(part) => incoming.heard.again(part.vote.leader_id.term),
        Request::Vote(_) | Request::PreVote(_) | Request::TransferLeader(_) => {}
    }
    Ok(match envelope.request {
        Request::Append(request) => Response::Append(raft.append_entries(request).await.map_err(text)?),
        Request::Vote(request) => Response::Vote(raft.vote(request).await.map_err(text)?),
        Request::PreVote(request) => Response::Vote(raft.pre_vote(request).await.map_err(text)?),
        Request::TransferLeader(request) => {
            Response::TransferLeader(raft.handle_transfer_leader(request).await.map_err(text)?)
        }
        Request::Snapshot(part) => {
            // A deposed leader learns so with the first part.
            let known = raft.server_metrics().borrow_watched().vote;
            if known.leader_id.term > part.vote.leader_id.term {
                return Ok(Response::Installed(SnapshotResponse::new(known)));
            }
            match incoming.take(envelope.from, &part)? {
                None => Response::PartTaken,
                Some(store) => {
                    let snapshot = Snapshot { meta: part.meta, snapshot: SnapshotData(store.into()) };
                    Response::Installed(raft.install_full_snapshot(part.vote, snapshot).await.map_err(text)?)
                }
            }
        }
    })
}

fn text(error: impl ToString) -> String {
    error.to_string()
}
