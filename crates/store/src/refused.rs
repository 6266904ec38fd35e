//! Why a batch was not applied, in the words Docker's clients look for.

use serde::{Deserialize, Serialize};

/// What sort of refusal; the server maps it to an HTTP status in one place (moby maps the gRPC code the same way).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// 404
    NotFound,
    /// 409
    Conflict,
    /// 400
    Invalid,
    /// 412
    Precondition,
    /// 500, as moby answers `update out of sequence`.
    Sequence,
    /// Not for users: the leader that proposed is no longer one, or planned on an old view. It looks again.
    Stale,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Refused {
    #[error("rpc error: code = Unknown desc = update out of sequence")]
    OutOfSequence,
    #[error("leadership moved from term {proposed} to {current}")]
    TermMoved { proposed: u64, current: u64 },
    /// `kind` is `service`, `node`, `network`, `secret`, `config`, `task` or `cluster`.
    #[error("{kind} {id} not found")]
    NotFound { kind: String, id: String },
    /// The text depends on the kind, as in Docker.
    #[error("{0}")]
    NameConflict(String),
    #[error("{0}")]
    InUse(String),
    #[error("rpc error: code = InvalidArgument desc = {0}")]
    PortInUse(String),
    #[error("rpc error: code = FailedPrecondition desc = {0}")]
    Precondition(String),
    #[error("rpc error: code = InvalidArgument desc = {0}")]
    Invalid(String),
    /// Not a refusal to users: the same proposal took effect at `index` already.
    #[error("already took effect at index {index}")]
    Repeated { index: u64 },
    /// A proposal so old that whether it took effect is no longer remembered.
    #[error(
        "rpc error: code = Unavailable desc = the change was proposed too long ago to tell whether it took effect: look, and ask again"
    )]
    Forgotten,
    /// A leader's decision that no longer fits; it decides again on a newer view.
    #[error("decided on an old view: {0}")]
    Stale(String),
}

impl Refused {
    pub fn kind(&self) -> Kind {
        match self {
            Self::OutOfSequence => Kind::Sequence,
            Self::TermMoved { .. } | Self::Stale(_) | Self::Repeated { .. } | Self::Forgotten => Kind::Stale,
            Self::NotFound { .. } => Kind::NotFound,
            Self::NameConflict(_) => Kind::Conflict,
            Self::InUse(text) if text.contains("FailedPrecondition") => Kind::Precondition,
            Self::Precondition(_) => Kind::Precondition,
            Self::InUse(_) | Self::PortInUse(_) | Self::Invalid(_) => Kind::Invalid,
        }
    }

    pub(crate) fn not_found(kind: &str, id: &impl ToString) -> Self {
        Self::NotFound { kind: kind.into(), id: id.to_string() }
    }
}
