//! The shapes openraft is instantiated with. Nothing here leaves the crate.

use std::fmt;

use bytes::Bytes;
use openraft::impls::leader_id_std;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use skep_store::Refused;

openraft::declare_raft_types!(
    /// Standard Raft: one leader a term, so that (term, index) names an entry.
    pub(crate) Types:
        D = Blob,
        R = Outcome,
        NodeId = u64,
        Node = openraft::BasicNode,
        LeaderId = leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = crate::runtime::Runtime,
);

pub(crate) type Raft = openraft::Raft<Types, crate::machine::Machine>;
pub(crate) type Entry = openraft::alias::EntryOf<Types>;
pub(crate) type LogId = openraft::alias::LogIdOf<Types>;
/// The term of an entry, as openraft types it.
pub(crate) type EntryTerm = openraft::alias::CommittedLeaderIdOf<Types>;
pub(crate) type Vote = openraft::alias::VoteOf<Types>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<Types>;
pub(crate) type Snapshot = openraft::alias::SnapshotOf<Types, SnapshotData>;

/// Bytes the store encoded: a batch in an entry (encoded once by the proposer, decoded once by each manager that applies
/// it; log, network and cache pass the same bytes on), or a part of a snapshot.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Blob(pub(crate) Bytes);

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // They may carry secrets: only its size is shown.
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Octets;
        impl<'de> Visitor<'de> for Octets {
            type Value = Blob;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: serde::de::Error>(self, octets: &[u8]) -> Result<Blob, E> {
                Ok(Blob(Bytes::copy_from_slice(octets)))
            }
            fn visit_byte_buf<E: serde::de::Error>(self, octets: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(octets.into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Blob, A::Error> {
                Err(A::Error::custom("bytes expected, not a sequence"))
            }
        }
        deserializer.deserialize_byte_buf(Octets)
    }
}

/// What applying an entry answered. It never leaves the process: the serde impls only satisfy openraft's bounds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    #[serde(skip)]
    pub(crate) refused: Option<Refused>,
}

/// A whole store as the store encoded it.
#[derive(Clone)]
pub(crate) struct SnapshotData(pub(crate) Bytes);

impl fmt::Debug for SnapshotData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "snapshot of {} bytes", self.0.len())
    }
}
