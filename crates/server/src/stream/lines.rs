//! Answers that are one JSON value after another, for as long as they come.

use std::convert::Infallible;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

/// A 200 whose body is `stream`, cut off when the server stops.
pub(crate) fn streamed<S>(content_type: &'static str, stream: S, stop: &CancellationToken) -> Response
where
    S: Stream<Item = Bytes> + Send + 'static,
{
    let stream = stream.take_until(stop.clone().cancelled_owned()).map(Ok::<_, Infallible>);
    Response::builder()
        .status(StatusCode::OK)
        .header(header::CONTENT_TYPE, content_type)
        .body(Body::from_stream(stream))
        .expect("status and header are constants")
}

/// One value as a line. Docker's clients read values, not lines, but people read lines.
pub(crate) fn line<T: Serialize>(value: &T) -> Bytes {
    let mut text = serde_json::to_vec(value).unwrap_or_default();
    text.extend_from_slice(b"\r\n");
    text.into()
}
