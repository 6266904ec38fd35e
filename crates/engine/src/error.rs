//! What can go wrong in the engine, in the words Docker's tools read; [`EngineError::kind`] is what the HTTP status is
//! made of, in one place of the server.

use std::path::PathBuf;

/// The class of an error. The server maps it to a status: NotFound 404, Conflict 409, Invalid 400, NotModified 304,
/// Forbidden 403, Unavailable 503, NotImplemented 501, Internal 500.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    NotFound,
    Conflict,
    Invalid,
    NotModified,
    Forbidden,
    Unavailable,
    NotImplemented,
    Internal,
}

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("No such container: {0}")]
    NoSuchContainer(String),
    #[error("No such image: {0}")]
    NoSuchImage(String),
    #[error("No such exec instance: {0}")]
    NoSuchExec(String),
    #[error("multiple IDs found with provided prefix: {0}")]
    AmbiguousPrefix(String),
    #[error(
        "Conflict. The container name \"/{name}\" is already in use by container \"{id}\". You have to remove (or rename) \
         that container to be able to reuse that name."
    )]
    NameInUse { name: String, id: String },
    #[error("container {0} is not running")]
    NotRunning(String),
    #[error("{0}")]
    Conflict(String),
    /// Asked for what already is (start of a running container, stop of a stopped one): 304, without a body.
    #[error("{0}")]
    NotModified(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Forbidden(String),
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    NotImplemented(String),
    /// The container's process could not be started; `exit_code` is 126, 127 or 128 as Docker's CLI expects.
    #[error("{message}")]
    StartFailed { message: String, exit_code: i32 },
    #[error("{what} {path}: {source}")]
    File { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{0}")]
    Internal(String),
}

impl EngineError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSuchContainer(_) | Self::NoSuchImage(_) | Self::NoSuchExec(_) | Self::NotFound(_) => {
                ErrorKind::NotFound
            }
            Self::AmbiguousPrefix(_) | Self::Invalid(_) => ErrorKind::Invalid,
            Self::NameInUse { .. } | Self::NotRunning(_) | Self::Conflict(_) => ErrorKind::Conflict,
            Self::NotModified(_) => ErrorKind::NotModified,
            Self::Forbidden(_) => ErrorKind::Forbidden,
            Self::Unavailable(_) => ErrorKind::Unavailable,
            Self::NotImplemented(_) => ErrorKind::NotImplemented,
            // moby answers 400 for 126/127 (errdefs.InvalidParameter) and 500 for the rest.
            Self::StartFailed { exit_code: 126 | 127, .. } => ErrorKind::Invalid,
            Self::StartFailed { .. } | Self::File { .. } | Self::Internal(_) => ErrorKind::Internal,
        }
    }

    /// For `map_err` on file operations.
    pub fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }
}

pub type Result<T, E = EngineError> = std::result::Result<T, E>;
