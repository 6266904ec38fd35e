//! A container's output: logs, attach, stats.

use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use bytes::Bytes;
use futures_util::StreamExt;
use skep_api::ApiVersion;
use skep_api::time::parse_moment;
use skep_engine::EventKind;
use skep_engine::container::{AttachRequest, LogsRequest};

use crate::convert;
use crate::error::{ApiError, Result};
use crate::extract::Params;
use crate::state::{ServerState, now};
use crate::stream::detach::DetachKeys;
use crate::stream::hijack::Hijack;
use crate::stream::lines::{line, streamed};
use crate::stream::logs::LogStyle;
use crate::stream::stdcopy::Framing;

pub(crate) fn routes() -> Router<ServerState> {
    Router::new()
        .route("/containers/{id}/logs", get(logs))
        .route("/containers/{id}/attach", post(attach))
        .route("/containers/{id}/stats", get(stats))
}

/// `tail`: `all`, nothing or a negative number is everything.
pub(crate) fn tail(query: &Params) -> Option<usize> {
    query.text("tail").parse().ok()
}

async fn logs(
    State(state): State<ServerState>,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    query: Params,
) -> Result<Response> {
    let request = LogsRequest {
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        follow: query.flag("follow"),
        tail: tail(&query),
        since: parse_moment(query.text("since"), now())?,
        until: parse_moment(query.text("until"), now())?,
    };
    if !request.stdout && !request.stderr {
        return Err(ApiError::invalid("Bad parameters: you must choose at least one stream"));
    }
    let record = state.engine().inspect(&id)?;
    let framing = Framing::of_tty(record.tty());
    let style = LogStyle { framing, timestamps: query.flag("timestamps"), details: query.flag("details") };
    let stream = state.engine().logs(&id, request).await?;
    let body = stream.map(move |item| match item {
        Ok(record) => style.render(record.stream, record.time, &record.attributes, &record.data),
        Err(error) => stream_error(framing, &error),
    });
    Ok(streamed(framing.content_type(version), body, state.stop()))
}

/// moby writes a failure in the middle of a log into the log.
fn stream_error(framing: Framing, error: &dyn std::fmt::Display) -> Bytes {
    let text = Bytes::from(format!("Error grabbing logs: {error}\n"));
    framing.wrap(skep_engine::container::StdStream::Stderr, text)
}

async fn attach(
    State(state): State<ServerState>,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    query: Params,
    request: Request,
) -> Result<Response> {
    let wanted = AttachRequest {
        stdin: query.flag("stdin"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        logs: query.flag("logs"),
        stream: query.flag("stream"),
    };
    let record = state.engine().inspect(&id)?;
    let keys = DetachKeys::parse(query.text("detachKeys"))?;
    let attached = state.engine().attach(&id, wanted).await?;
    let keys = (attached.tty && attached.stdin.is_some()).then_some(keys);
    let engine = state.engine().clone();
    let detached = move || {
        let mut attributes = record.config.labels.clone();
        attributes.insert("name".into(), record.name.clone());
        attributes.insert("image".into(), record.config.image.clone());
        engine.events().emit(EventKind::Container, "detach", record.id.as_str(), attributes);
    };
    Ok(Hijack::prepare(request).connect(attached, keys, version, &state, detached))
}

async fn stats(State(state): State<ServerState>, Path(id): Path<String>, query: Params) -> Result<Response> {
    if !query.flag_or("stream", true) {
        let reading = state.engine().stats(&id, query.flag("one-shot")).await?;
        return Ok(Json(convert::stats::stats(&reading)).into_response());
    }
    let stream = state.engine().stats_stream(&id).await?;
    Ok(streamed("application/json", stream.map(|reading| line(&convert::stats::stats(&reading))), state.stop()))
}
