//! What can go wrong with images, in Docker's words where tools read them.

use std::io;
use std::path::PathBuf;

use crate::error::ErrorKind;

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("No such image: {0}")]
    NoSuchImage(String),
    #[error("{0}")]
    InvalidReference(#[from] skep_model::reference::InvalidReference),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Conflict(String),
    /// A registry said no such thing; the text is Docker's whole sentence.
    #[error("{0}")]
    NotFound(String),
    /// A registry refused the credentials.
    #[error("{0}")]
    Unauthorized(String),
    /// A registry could not be reached or answered nonsense.
    #[error("{0}")]
    Registry(String),
    /// Bytes that are not what their digest says.
    #[error("filesystem layer verification failed for digest {expected}: the data has digest {actual}")]
    DigestMismatch { expected: String, actual: String },
    #[error("layer does not match its diff id: the image says {expected}, the data is {actual}")]
    DiffIdMismatch { expected: String, actual: String },
    #[error("failed to register layer: {0}")]
    Layer(String),
    #[error("failed to {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{0}")]
    Internal(String),
    /// The caller went away.
    #[error("context canceled")]
    Canceled,
}

impl ImageError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSuchImage(_) | Self::NotFound(_) => ErrorKind::NotFound,
            Self::InvalidReference(_) | Self::Invalid(_) => ErrorKind::Invalid,
            Self::Conflict(_) => ErrorKind::Conflict,
            Self::Unauthorized(_) => ErrorKind::Forbidden,
            Self::Registry(_)
            | Self::DigestMismatch { .. }
            | Self::DiffIdMismatch { .. }
            | Self::Layer(_)
            | Self::Io { .. }
            | Self::Internal(_)
            | Self::Canceled => ErrorKind::Internal,
        }
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// The whole chain in one line, for a client that sees only text.
    pub fn sentence(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            // The transparent variants show their source already.
            let part = error.to_string();
            if !text.ends_with(&part) {
                text.push_str(": ");
                text.push_str(&part);
            }
            source = error.source();
        }
        text
    }
}
