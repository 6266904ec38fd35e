//! Secrets and configs.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use skep_api::Filters;
use skep_api::secret::{Blob, BlobSpec, Parts};
use skep_model::Labels;

use super::swarm::object_version;
use crate::error::{ApiError, Result};
use crate::extract::{GoJson, Params};
use crate::state::ServerState;

pub(crate) fn routes() -> Router<ServerState> {
    Router::new()
        .route("/secrets", get(list_secrets))
        .route("/secrets/create", post(create_secret))
        .route("/secrets/{id}", get(inspect_secret).delete(remove_secret))
        .route("/secrets/{id}/update", post(update_secret))
        .route("/configs", get(list_configs))
        .route("/configs/create", post(create_config))
        .route("/configs/{id}", get(inspect_config).delete(remove_config))
        .route("/configs/{id}/update", post(update_config))
}

fn passes(filters: &Filters, id: &str, name: &str, labels: &Labels) -> bool {
    filters.prefix("id", id)
        && filters.prefix("name", name)
        && filters.exact("names", name)
        && filters.labels("label", labels)
}

fn filters(query: &Params) -> Result<Filters> {
    let filters = query.filters()?;
    filters.validate(&["id", "label", "name", "names"])?;
    Ok(filters)
}

async fn list_secrets(State(state): State<ServerState>, query: Params) -> Result<Json<Vec<Blob>>> {
    let secrets = state.node().secret_list()?;
    let filters = filters(&query)?;
    Ok(Json(secrets.iter().filter(|s| passes(&filters, s.id.as_str(), &s.name, &s.labels)).map(Into::into).collect()))
}

async fn list_configs(State(state): State<ServerState>, query: Params) -> Result<Json<Vec<Blob>>> {
    let configs = state.node().config_list()?;
    let filters = filters(&query)?;
    Ok(Json(configs.iter().filter(|c| passes(&filters, c.id.as_str(), &c.name, &c.labels)).map(Into::into).collect()))
}

fn created(id: &impl ToString) -> (StatusCode, Json<serde_json::Value>) {
    (StatusCode::CREATED, Json(serde_json::json!({ "ID": id.to_string() })))
}

async fn create_secret(
    State(state): State<ServerState>,
    GoJson(body): GoJson<BlobSpec>,
) -> Result<(StatusCode, Json<serde_json::Value>)> {
    let Parts { name, labels, data, templating } = body.into_parts()?;
    let Some(data) = data else {
        return Err(ApiError::invalid(
            "rpc error: code = InvalidArgument desc = secret data must be larger than 0 and less than 512000 bytes",
        ));
    };
    Ok(created(&state.node().secret_create(name, labels, data, templating).await?))
}

async fn create_config(
    State(state): State<ServerState>,
    GoJson(body): GoJson<BlobSpec>,
) -> Result<(StatusCode, Json<serde_json::Value>)> {
    let Parts { name, labels, data, templating } = body.into_parts()?;
    let Some(data) = data else {
        return Err(ApiError::invalid(
            "rpc error: code = InvalidArgument desc = config data must be larger than 0 and less than 1024000 bytes",
        ));
    };
    Ok(created(&state.node().config_create(name, labels, data, templating).await?))
}

async fn inspect_secret(State(state): State<ServerState>, Path(id): Path<String>) -> Result<Json<Blob>> {
    Ok(Json((&state.node().secret_inspect(&id)?).into()))
}

async fn inspect_config(State(state): State<ServerState>, Path(id): Path<String>) -> Result<Json<Blob>> {
    Ok(Json((&state.node().config_inspect(&id)?).into()))
}

async fn update_secret(
    State(state): State<ServerState>,
    Path(id): Path<String>,
    query: Params,
    GoJson(body): GoJson<BlobSpec>,
) -> Result<StatusCode> {
    let version = object_version(&query, "secret")?;
    let Parts { name, labels, data, .. } = body.into_parts()?;
    state.node().secret_update(&id, version, name, labels, data).await?;
    Ok(StatusCode::OK)
}

async fn update_config(
    State(state): State<ServerState>,
    Path(id): Path<String>,
    query: Params,
    GoJson(body): GoJson<BlobSpec>,
) -> Result<StatusCode> {
    let version = object_version(&query, "config")?;
    let Parts { name, labels, data, .. } = body.into_parts()?;
    state.node().config_update(&id, version, name, labels, data).await?;
    Ok(StatusCode::OK)
}

async fn remove_secret(State(state): State<ServerState>, Path(id): Path<String>) -> Result<StatusCode> {
    state.node().secret_remove(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn remove_config(State(state): State<ServerState>, Path(id): Path<String>) -> Result<StatusCode> {
    state.node().config_remove(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}
