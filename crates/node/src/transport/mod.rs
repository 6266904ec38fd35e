//! Cluster RPC: gRPC over mutual TLS, on sockets and certificates of our own.
//!
//! Messages are thin protobuf envelopes around MessagePack values (see `proto/cluster.proto`): protobuf would need every type
//! of the model written a second time, and the two would drift apart.
//!
//! Knows who speaks, by a certificate whose chain was checked; not what they may say (`manager/access.rs`).

mod client;
mod link;
pub(crate) mod message;
mod server;
pub(crate) mod splice;
mod tls;

pub(crate) use client::{Connection, fetch_root};
pub(crate) use server::{peer_of, serve};
pub(crate) use tls::{LiveTls, TlsMaterial};

#[allow(clippy::all, clippy::pedantic, unreachable_pub, missing_docs)]
pub(crate) mod proto {
    tonic::include_proto!("skep.cluster.v1");
}

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::Status;

use proto::Envelope;

/// The largest message taken: a batch of changes is at most 1.5 MiB, an assignment set of a large node some more.
pub(crate) const MAX_MESSAGE_BYTES: usize = 32 * 1024 * 1024;

pub(crate) fn pack<T: Serialize>(value: &T) -> Envelope {
    // Writing to memory cannot fail, and every message type has only string-keyed or array-like parts.
    let body = rmp_serde::to_vec_named(value).expect("a message of ours can be encoded");
    Envelope { body: Bytes::from(body) }
}

pub(crate) fn unpack<T: DeserializeOwned>(envelope: &Envelope) -> Result<T, Status> {
    rmp_serde::from_slice(&envelope.body)
        .map_err(|error| Status::invalid_argument(format!("malformed message: {error}")))
}
