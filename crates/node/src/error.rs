//! What can go wrong in the node, in the words clients read.

use std::io;
use std::path::PathBuf;

/// What class of failure it is; `server` maps it to an HTTP status in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request itself is wrong (400).
    Invalid,
    /// No such object (404).
    NotFound,
    /// The name is taken, or the object is in use (409).
    Conflict,
    /// This node is not (or already) in a swarm, not a manager, or there is no leader (503).
    Unavailable,
    /// The wrong unlock key (401).
    Unauthorized,
    /// Wrong credentials (403).
    Forbidden,
    /// Not built yet (501).
    NotImplemented,
    /// Our own failure (500).
    Internal,
    /// It was there and is no more (410).
    Gone,
}

#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(
        "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again."
    )]
    NoSwarm,
    #[error(
        "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this command on a manager node or promote the current node to a manager."
    )]
    NotManager,
    #[error(
        "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm unlock\" to unlock it."
    )]
    Locked,
    #[error("Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore this message.")]
    LeaveLocked,
    #[error("swarm is not locked")]
    NotLocked,
    #[error("swarm could not be unlocked: invalid key provided")]
    InvalidUnlockKey,
    #[error("This node is not part of a swarm")]
    NotInSwarm,
    #[error(
        "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one."
    )]
    AlreadyInSwarm,
    #[error(
        "Timeout was reached before node joined. The attempt to join the swarm will continue in the background. Use the \"docker info\" command to see the current swarm status of your node."
    )]
    JoinTimeout,
    #[error("invalid join token")]
    InvalidToken,
    #[error("rpc error: code = Unavailable desc = {0}")]
    Unreachable(String),
    #[error(
        "rpc error: code = Unknown desc = The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half of the managers are online.{0}"
    )]
    /// With which managers are missing and what to do, where that is known.
    NoLeader(String),
    #[error("rpc error: code = InvalidArgument desc = {0}")]
    Invalid(String),
    /// A bad request that swarmkit does not see: moby answers it in its own words.
    #[error("{0}")]
    BadRequest(String),
    #[error("rpc error: code = Unknown desc = update out of sequence")]
    OutOfSequence,
    /// `service web not found`, `node x not found`, …
    #[error("{object} {name} not found")]
    NotFound { object: &'static str, name: String },
    #[error("{object} {name} is ambiguous ({count} matches found)")]
    Ambiguous { object: &'static str, name: String, count: usize },
    /// `rpc error: code = InvalidArgument desc = secret 'x' is in use by the following service: web` and its like.
    #[error("rpc error: code = {code} desc = {text}")]
    Refused { code: &'static str, text: String, kind: Kind },
    /// The store would not have it, in Docker's words.
    #[error(transparent)]
    Store(skep_store::Refused),
    /// Leaving would break the swarm; the text says how and what to do.
    #[error("{0}")]
    LeaveRefused(String),
    #[error("{0} is not implemented yet")]
    NotImplemented(&'static str),
    #[error("{0}")]
    Forbidden(String),
    #[error("{0}")]
    Gone(String),
    #[error("cannot {operation} {path}")]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("certificate: {0}")]
    Certificate(String),
    #[error("{0}")]
    Internal(String),
}

impl NodeError {
    pub fn kind(&self) -> Kind {
        match self {
            Self::NoSwarm
            | Self::NotManager
            | Self::Locked
            | Self::LeaveLocked
            | Self::NotInSwarm
            | Self::AlreadyInSwarm
            | Self::JoinTimeout
            | Self::NoLeader(_)
            | Self::LeaveRefused(_)
            | Self::Unreachable(_) => Kind::Unavailable,
            // moby answers 400 for a token that is no token.
            Self::InvalidToken | Self::Invalid(_) | Self::BadRequest(_) | Self::Ambiguous { .. } => Kind::Invalid,
            // moby gives 500 for "update out of sequence"; clients match the text.
            Self::OutOfSequence | Self::Internal(_) | Self::File { .. } | Self::Certificate(_) => Kind::Internal,
            Self::NotFound { .. } => Kind::NotFound,
            Self::Refused { kind, .. } => *kind,
            Self::Store(refused) => match refused.kind() {
                skep_store::Kind::NotFound => Kind::NotFound,
                skep_store::Kind::Conflict => Kind::Conflict,
                skep_store::Kind::Invalid | skep_store::Kind::Precondition => Kind::Invalid,
                skep_store::Kind::Sequence => Kind::Internal,
                skep_store::Kind::Stale => Kind::Unavailable,
            },
            Self::NotLocked => Kind::Conflict,
            Self::InvalidUnlockKey => Kind::Unauthorized,
            Self::NotImplemented(_) => Kind::NotImplemented,
            Self::Forbidden(_) => Kind::Forbidden,
            Self::Gone(_) => Kind::Gone,
        }
    }

    pub(crate) fn file(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { operation, path, source }
    }
}

impl From<skep_model::validate::Invalid> for NodeError {
    fn from(invalid: skep_model::validate::Invalid) -> Self {
        Self::Invalid(invalid.0)
    }
}

impl From<skep_store::LookupError> for NodeError {
    fn from(error: skep_store::LookupError) -> Self {
        match error {
            skep_store::LookupError::NotFound { kind, reference } => Self::NotFound { object: kind, name: reference },
            skep_store::LookupError::Ambiguous { kind, reference, matches } => {
                Self::Ambiguous { object: kind, name: reference, count: matches }
            }
        }
    }
}

pub(crate) type Result<T, E = NodeError> = std::result::Result<T, E>;
