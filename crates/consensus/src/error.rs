//! What can go wrong, in terms a caller can act on.

use std::path::PathBuf;

use crate::member::Peer;

/// Coarse class of an error, for the one place that maps errors to HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    NotFound,
    Conflict,
    Invalid,
    NoLeader,
    Unavailable,
    Internal,
}

/// Opening, membership and administration failures.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("failed to use the raft directory {path}")]
    Directory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is in use by another process")]
    InUse { path: PathBuf },
    #[error(
        "{path} cannot be decrypted: the storage key is not the one it was written with; unlock with the right key, or move the file away and join the cluster again"
    )]
    WrongKey { path: PathBuf },
    #[error(
        "{path} is damaged ({what}); move the raft directory away and join the cluster again, or restore it from a backup"
    )]
    Damaged { path: PathBuf, what: String },
    #[error("{path} belongs to raft id {found}, not {wanted}")]
    OtherMember { path: PathBuf, found: u64, wanted: u64 },
    #[error("failed to read or write {path}: {what}")]
    Storage { path: PathBuf, what: String },
    #[error("the cluster already has state")]
    AlreadyBootstrapped,
    #[error("not the leader")]
    NotLeader { leader: Option<Peer> },
    #[error("no leader is known: more than half of the managers are unreachable, or an election is running")]
    NoLeader,
    #[error("raft member {raft_id} does not exist")]
    NoSuchMember { raft_id: u64 },
    #[error("{0}")]
    Refused(String),
    #[error("another change of the membership is in progress")]
    MembershipChangeInProgress,
    #[error("timed out {0}")]
    Timeout(&'static str),
    #[error("consensus is not running: {0}")]
    Stopped(String),
}

impl Error {
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Directory { .. } | Self::Storage { .. } | Self::Damaged { .. } | Self::OtherMember { .. } => {
                ErrorKind::Internal
            }
            Self::InUse { .. } | Self::AlreadyBootstrapped | Self::MembershipChangeInProgress => ErrorKind::Conflict,
            Self::WrongKey { .. } | Self::Refused(_) => ErrorKind::Invalid,
            Self::NoSuchMember { .. } => ErrorKind::NotFound,
            Self::NotLeader { .. } | Self::NoLeader => ErrorKind::NoLeader,
            Self::Timeout(_) | Self::Stopped(_) => ErrorKind::Unavailable,
        }
    }
}

/// Why a proposal did not take effect, or may not have.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// Nothing happened; ask the leader, if one is known.
    #[error("not the leader")]
    NotLeader { leader: Option<Peer> },
    /// Nothing happened: committed, but the store would not have it (a version moved, a name is taken …).
    #[error(transparent)]
    Refused(skep_store::Refused),
    /// Nothing happened: no leader appeared in time.
    #[error("no leader is known: more than half of the managers are unreachable, or an election is running")]
    NoLeader,
    /// Nothing happened: the leader's term moved since the batch was decided.
    #[error("leadership of term {wanted} is over")]
    TermOver { wanted: u64 },
    /// Nothing happened: the encoded batch is larger than a log entry may be.
    #[error("the change is too large: {bytes} bytes, {limit} allowed")]
    TooLarge { bytes: usize, limit: usize },
    /// The outcome is unknown: no quorum answered in time.
    #[error("timed out waiting for a quorum of managers; the change may still take effect")]
    Timeout,
    /// The outcome is unknown: a write of this manager's log did not come back in time.
    #[error(
        "the disk under {path} has not finished a write for {stalled_ms} ms; the change may still take effect. Look for a failing or overloaded disk"
    )]
    DiskStalled { path: PathBuf, stalled_ms: u128 },
    /// The outcome is unknown: leadership changed while the entry was on its way.
    #[error("leadership changed before the change was committed; it may still take effect")]
    Interrupted { leader: Option<Peer> },
    /// The outcome is unknown and this manager takes no writes any more: its disk failed or it was shut down.
    #[error("this manager cannot write: {0}")]
    Unavailable(String),
}

impl ProposeError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotLeader { .. } | Self::NoLeader | Self::TermOver { .. } => ErrorKind::NoLeader,
            Self::Refused(_) => ErrorKind::Conflict,
            Self::TooLarge { .. } => ErrorKind::Invalid,
            Self::Timeout | Self::DiskStalled { .. } | Self::Interrupted { .. } | Self::Unavailable(_) => {
                ErrorKind::Unavailable
            }
        }
    }
}
