//! `docker cp`, `export`, `diff`: a container's files from outside.

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;

use crate::error::{ApiError, Result};
use crate::state::ServerState;

pub(crate) fn routes() -> Router<ServerState> {
    Router::new()
        .route("/containers/{id}/archive", get(archive).put(archive))
        .route("/containers/{id}/export", get(export))
        .route("/containers/{id}/changes", get(changes))
}

async fn archive(State(state): State<ServerState>, Path(id): Path<String>) -> Result<()> {
    state.engine().inspect(&id)?;
    Err(ApiError::unserved("copying files into and out of a container (docker cp)"))
}

async fn export(State(state): State<ServerState>, Path(id): Path<String>) -> Result<()> {
    state.engine().inspect(&id)?;
    Err(ApiError::unserved("exporting a container's file system (docker export)"))
}

async fn changes(State(state): State<ServerState>, Path(id): Path<String>) -> Result<()> {
    state.engine().inspect(&id)?;
    Err(ApiError::unserved("listing a container's changed files (docker diff)"))
}
