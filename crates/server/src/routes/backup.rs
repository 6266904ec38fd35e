//! The whole state of a swarm out and in, for `skep swarm backup` and `restore`. Not Docker's, hence under `/skep`.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use http_body_util::{BodyExt, Limited};
use skep_api::go_json;
use skep_node::{BackupKey, RestoreRequest};

use crate::error::{ApiError, Result};
use crate::extract::Params;
use crate::state::ServerState;

/// What the backup is sealed with, as base64url of JSON (like `X-Registry-Auth`, and for the same reason: it must not be in
/// the request's line).
const KEY_HEADER: &str = "x-skep-key";
/// A snapshot larger than this would not reach another manager, either.
const MAX_BACKUP_BYTES: usize = 1 << 30;

pub(crate) fn routes() -> Router<ServerState> {
    Router::new().route("/skep/backup", get(backup)).route("/skep/restore", post(restore))
}

fn key_of(headers: &HeaderMap) -> Result<BackupKey> {
    let Some(value) = headers.get(KEY_HEADER) else { return Ok(BackupKey::default()) };
    let json = URL_SAFE.decode(value).map_err(|_| ApiError::invalid("X-Skep-Key is not base64url"))?;
    go_json::decode(&json)
        .map_err(|_| ApiError::invalid("X-Skep-Key does not hold {\"Passphrase\": …} or {\"UnlockKey\": …}"))
}

async fn backup(State(state): State<ServerState>, headers: HeaderMap) -> Result<Response> {
    let parts = state.node().swarm_backup(key_of(&headers)?).await?;
    let body = Body::from_stream(futures_util::stream::iter(parts.map(Ok::<_, Infallible>)));
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response())
}

/// Answers with the node's id, a bare JSON string, as init does.
async fn restore(State(state): State<ServerState>, query: Params, request: Request) -> Result<Json<String>> {
    let (parts, body) = request.into_parts();
    let wanted = RestoreRequest {
        listen_addr: query.text("listenAddr").to_owned(),
        advertise_addr: query.text("advertiseAddr").to_owned(),
        data_path_addr: query.text("dataPathAddr").to_owned(),
        force: query.flag("force"),
        key: key_of(&parts.headers)?,
    };
    let file = Limited::new(body, MAX_BACKUP_BYTES).collect().await;
    let file = file.map_err(|error| ApiError::invalid(format!("cannot read the backup: {error}")))?.to_bytes();
    Ok(Json(state.node().swarm_restore(wanted, file.into()).await?.to_string()))
}
