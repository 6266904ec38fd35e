//! The one place where an error of any room becomes an HTTP status.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use skep_api::{ConvertError, ErrorResponse};
use skep_engine::image::ImageError;
use skep_engine::volume::VolumeError;
use skep_engine::{EngineError, ErrorKind};
use skep_node::{Kind, NodeError, net};

#[derive(Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
}

pub(crate) type Result<T, E = ApiError> = std::result::Result<T, E>;

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 501 with a sentence that says what is missing.
    pub(crate) fn unserved(what: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, format!("{what} is not served yet"))
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status == StatusCode::NOT_MODIFIED {
            return self.status.into_response();
        }
        (self.status, axum::Json(ErrorResponse { message: self.message })).into_response()
    }
}

/// An error and its sources in one line, each said once.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let part = cause.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        source = cause.source();
    }
    text
}

fn of_engine(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Conflict => StatusCode::CONFLICT,
        ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        ErrorKind::NotModified => StatusCode::NOT_MODIFIED,
        ErrorKind::Forbidden => StatusCode::FORBIDDEN,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::NotImplemented => StatusCode::NOT_IMPLEMENTED,
        ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        Self::new(of_engine(error.kind()), sentence(&error))
    }
}

impl From<ImageError> for ApiError {
    fn from(error: ImageError) -> Self {
        Self::new(of_engine(error.kind()), error.sentence())
    }
}

impl From<VolumeError> for ApiError {
    fn from(error: VolumeError) -> Self {
        Self::new(of_engine(error.kind()), sentence(&error))
    }
}

impl From<net::NetError> for ApiError {
    fn from(error: net::NetError) -> Self {
        let status = match error.kind() {
            net::ErrorKind::NotFound => StatusCode::NOT_FOUND,
            net::ErrorKind::Conflict => StatusCode::CONFLICT,
            net::ErrorKind::Invalid => StatusCode::BAD_REQUEST,
            net::ErrorKind::Forbidden => StatusCode::FORBIDDEN,
            net::ErrorKind::NotImplemented => StatusCode::NOT_IMPLEMENTED,
            net::ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, sentence(&error))
    }
}

impl From<NodeError> for ApiError {
    fn from(error: NodeError) -> Self {
        let status = match error.kind() {
            Kind::Invalid => StatusCode::BAD_REQUEST,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::Conflict => StatusCode::CONFLICT,
            Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Unauthorized => StatusCode::UNAUTHORIZED,
            Kind::Forbidden => StatusCode::FORBIDDEN,
            Kind::Gone => StatusCode::GONE,
            Kind::NotImplemented => StatusCode::NOT_IMPLEMENTED,
            Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, sentence(&error))
    }
}

impl From<ConvertError> for ApiError {
    fn from(error: ConvertError) -> Self {
        let status = match error {
            ConvertError::Invalid(_) => StatusCode::BAD_REQUEST,
            ConvertError::Forbidden(_) => StatusCode::FORBIDDEN,
            ConvertError::Unserved(_) => StatusCode::NOT_IMPLEMENTED,
        };
        Self::new(status, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_become_status() {
        let status = |e: ApiError| e.status.as_u16();
        assert_eq!(status(EngineError::NoSuchContainer("x".into()).into()), 404);
        assert_eq!(status(EngineError::NotModified(String::new()).into()), 304);
        assert_eq!(status(EngineError::NotRunning("x".into()).into()), 409);
        assert_eq!(status(NodeError::NotManager.into()), 503);
        assert_eq!(status(NodeError::OutOfSequence.into()), 500);
        assert_eq!(status(ConvertError::Unserved("x".into()).into()), 501);
        assert_eq!(ApiError::from(ConvertError::Unserved("job mode".into())).message, "job mode is not served yet");
    }
}
