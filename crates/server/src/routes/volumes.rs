//! Volumes of this host.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use skep_api::ApiVersion;
use skep_api::volume::{CreateRequest, ListResponse, PruneReport, UsageData, Volume};
use skep_engine::volume::VolumeSpec;

use super::images::plain;
use crate::convert;
use crate::error::{ApiError, Result};
use crate::extract::{GoJson, Params};
use crate::state::ServerState;

pub(crate) fn routes() -> Router<ServerState> {
    Router::new()
        .route("/volumes", get(list))
        .route("/volumes/create", post(create))
        .route("/volumes/prune", post(prune))
        .route("/volumes/{name}", get(inspect).delete(remove).put(update))
}

async fn list(State(state): State<ServerState>, query: Params) -> Result<Json<ListResponse>> {
    let filters = query.filters()?;
    filters.validate(&["dangling", "name", "driver", "label"])?;
    filters.flag("dangling")?;
    let volumes = state.volumes().list(&plain(&filters))?;
    Ok(Json(ListResponse { volumes: volumes.iter().map(convert::volume::volume).collect(), warnings: None }))
}

async fn create(
    State(state): State<ServerState>,
    GoJson(body): GoJson<CreateRequest>,
) -> Result<(StatusCode, Json<Volume>)> {
    body.check()?;
    let spec = VolumeSpec { name: body.name, driver: body.driver, options: body.driver_opts, labels: body.labels };
    let volume = state.volumes().create(spec).await?;
    Ok((StatusCode::CREATED, Json(convert::volume::volume(&volume))))
}

async fn inspect(State(state): State<ServerState>, Path(name): Path<String>) -> Result<Json<Volume>> {
    Ok(Json(convert::volume::volume(&state.volumes().inspect(&name)?)))
}

async fn remove(State(state): State<ServerState>, Path(name): Path<String>, query: Params) -> Result<StatusCode> {
    state.volumes().remove(&name, query.flag("force")).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn update(State(state): State<ServerState>, Path(name): Path<String>) -> Result<StatusCode> {
    state.volumes().inspect(&name)?;
    Err(ApiError::unserved("updating a cluster (CSI) volume"))
}

async fn prune(
    State(state): State<ServerState>,
    axum::Extension(version): axum::Extension<ApiVersion>,
    query: Params,
) -> Result<Json<PruneReport>> {
    let filters = query.filters()?;
    filters.validate(&["all", "label", "label!"])?;
    let mut filters = plain(&filters);
    // Before API 1.42 named volumes went too.
    if version < ApiVersion::new(1, 42) {
        filters.insert("all".into(), vec!["true".into()]);
    }
    let report = state.volumes().prune(&filters).await?;
    Ok(Json(PruneReport {
        volumes_deleted: Some(report.deleted).filter(|d| !d.is_empty()),
        space_reclaimed: report.reclaimed_bytes,
    }))
}

/// For `docker system df`: every volume with its size.
pub(crate) async fn measured(state: &ServerState) -> Result<Vec<Volume>> {
    let mut all = Vec::new();
    for volume in state.volumes().list(&skep_engine::image::Filters::new())? {
        let mut shown = convert::volume::volume(&volume);
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let usage = state.volumes().usage(&volume.name).await;
        shown.usage_data = Some(match usage {
            Ok(usage) => UsageData { ref_count: signed(usage.references), size: signed(usage.size_bytes) },
            Err(_) => UsageData { ref_count: -1, size: -1 },
        });
        all.push(shown);
    }
    Ok(all)
}
