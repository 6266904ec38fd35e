//! What can go wrong with volumes, in moby's words.

use std::io;
use std::path::PathBuf;

use crate::error::ErrorKind;

#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("get {0}: no such volume")]
    NoSuchVolume(String),
    /// Names the containers by id.
    #[error("remove {name}: volume is in use - [{}]", containers.join(", "))]
    InUse { name: String, containers: Vec<String> },
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    NotFound(String),
    #[error("error while mounting volume '{path}': {reason}", path = path.display())]
    Mount { path: PathBuf, reason: String },
    #[error("failed to {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{0}")]
    Internal(String),
}

impl VolumeError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSuchVolume(_) | Self::NotFound(_) => ErrorKind::NotFound,
            Self::InUse { .. } | Self::Conflict(_) => ErrorKind::Conflict,
            Self::Invalid(_) => ErrorKind::Invalid,
            Self::Mount { .. } | Self::Io { .. } | Self::Internal(_) => ErrorKind::Internal,
        }
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
