//! The error body of every answer, and what conversions refuse.

use serde::{Deserialize, Serialize};

/// `{"message": "…"}`: the body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorResponse {
    pub message: String,
}

/// Why a request's body cannot become a value of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// The request is wrong: 400.
    #[error("{0}")]
    Invalid(String),
    /// The request asks for what is not allowed together: 403.
    #[error("{0}")]
    Forbidden(String),
    /// The request is right by Docker's rules, and not served here: 501.
    #[error("{0} is not served yet")]
    Unserved(String),
}

impl ConvertError {
    pub fn invalid<T>(text: impl Into<String>) -> Result<T, Self> {
        Err(Self::Invalid(text.into()))
    }

    pub fn forbidden<T>(text: impl Into<String>) -> Result<T, Self> {
        Err(Self::Forbidden(text.into()))
    }

    pub fn unserved<T>(what: impl Into<String>) -> Result<T, Self> {
        Err(Self::Unserved(what.into()))
    }
}

impl From<skep_model::validate::Invalid> for ConvertError {
    fn from(error: skep_model::validate::Invalid) -> Self {
        Self::Invalid(error.0)
    }
}
