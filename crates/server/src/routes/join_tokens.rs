//! Join tokens that end: not in Docker's API, hence a path of their own.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{delete, get};
use axum::{Json, Router};
use skep_api::join_token::{CreateRequest, Created, JoinToken};

use crate::error::Result;
use crate::extract::GoJson;
use crate::state::{ServerState, now};

pub(crate) fn routes() -> Router<ServerState> {
    Router::new().route("/skep/join-tokens", get(list).post(create)).route("/skep/join-tokens/{id}", delete(remove))
}

async fn list(State(state): State<ServerState>) -> Result<Json<Vec<JoinToken>>> {
    let at = now();
    Ok(Json(state.node().join_tokens()?.iter().map(|token| JoinToken::new(token, at)).collect()))
}

async fn create(
    State(state): State<ServerState>,
    GoJson(body): GoJson<CreateRequest>,
) -> Result<(StatusCode, Json<Created>)> {
    let role = skep_api::node::role(&body.role)?;
    let life = (body.ttl_seconds != 0).then(|| Duration::from_secs(body.ttl_seconds));
    let uses = (body.uses != 0).then_some(body.uses);
    let (token, text) = state.node().join_token_create(role, life, uses).await?;
    Ok((StatusCode::CREATED, Json(Created { id: token.id.to_string(), token: text })))
}

async fn remove(State(state): State<ServerState>, Path(id): Path<String>) -> Result<StatusCode> {
    state.node().join_token_remove(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}
