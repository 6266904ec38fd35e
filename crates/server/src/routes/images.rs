//! Images as objects: list, inspect, history, tag, remove, prune; what a registry has.
//!
//! A reference may hold slashes, so what follows `/images/` is taken apart here rather than by the router.

use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use skep_api::image::{PruneReport, Summary};
use skep_api::{ApiVersion, ConvertError, Filters};
use skep_engine::container::ListOptions;
use skep_engine::image::{ContainerUse, Filters as ImageFilters, ImageId, RemoveOptions};

use super::image_transfer;
use crate::convert;
use crate::error::{ApiError, Result};
use crate::extract::{Params, registry_auth};
use crate::state::ServerState;

pub(crate) fn routes() -> Router<ServerState> {
    Router::new()
        .route("/images/json", get(list))
        .route("/images/prune", post(prune))
        .route("/images/{*rest}", get(read).post(act).delete(remove))
        .route("/distribution/{*rest}", get(distribution))
}

/// The engine's form of the filters.
pub(crate) fn plain(filters: &Filters) -> ImageFilters {
    filters.entries().map(|(key, values)| (key.to_owned(), values.map(str::to_owned).collect())).collect()
}

async fn list(
    State(state): State<ServerState>,
    Extension(version): Extension<ApiVersion>,
    query: Params,
) -> Result<Json<Vec<Summary>>> {
    let filters = query.filters()?;
    filters.validate(&["dangling", "label", "label!", "before", "since", "reference", "until"])?;
    filters.flag("dangling")?;
    let mut filters = plain(&filters);
    // Before API 1.25 the reference had a parameter of its own.
    if !query.text("filter").is_empty() {
        filters.entry("reference".into()).or_default().push(query.text("filter").to_owned());
    }
    let images = state.images().list(&filters, query.flag("all"))?;
    Ok(Json(images.iter().map(|image| convert::image::summary(image, -1, version)).collect()))
}

pub(crate) fn summaries(state: &ServerState, version: ApiVersion) -> Result<Vec<Summary>> {
    let containers = state.engine().list(ListOptions { all: true });
    let images = state.images().list(&ImageFilters::new(), false)?;
    Ok(images
        .iter()
        .map(|image| {
            let users = containers.iter().filter(|c| c.image_id == image.id.as_str()).count();
            convert::image::summary(image, i64::try_from(users).unwrap_or(i64::MAX), version)
        })
        .collect())
}

/// `GET /images/{name}/json|history|get`.
async fn read(
    State(state): State<ServerState>,
    Extension(version): Extension<ApiVersion>,
    Path(rest): Path<String>,
) -> Result<Response> {
    if let Some(name) = rest.strip_suffix("/json") {
        return Ok(Json(convert::image::inspect(&state.images().inspect(name)?, version)).into_response());
    }
    if let Some(name) = rest.strip_suffix("/history") {
        let items = state.images().history(name)?;
        return Ok(Json(items.iter().map(convert::image::history).collect::<Vec<_>>()).into_response());
    }
    if let Some(name) = rest.strip_suffix("/get") {
        return image_transfer::save(&state, &[name.to_owned()]).await;
    }
    Err(ApiError::not_found("page not found"))
}

/// `POST /images/{name}/tag|push`.
async fn act(
    State(state): State<ServerState>,
    Path(rest): Path<String>,
    query: Params,
    request: Request,
) -> Result<Response> {
    if let Some(name) = rest.strip_suffix("/tag") {
        let repo = query.text("repo");
        if repo.is_empty() {
            return Err(ApiError::invalid("invalid reference format"));
        }
        let target = match query.text("tag") {
            "" => repo.to_owned(),
            tag => format!("{repo}:{tag}"),
        };
        state.images().tag(name, &target).await?;
        return Ok(StatusCode::CREATED.into_response());
    }
    if let Some(name) = rest.strip_suffix("/push") {
        return image_transfer::push(&state, name, &query, request.headers()).await;
    }
    Err(ApiError::not_found("page not found"))
}

/// Who runs from an image, for the rules of removal.
fn users(state: &ServerState) -> impl Fn(&ImageId) -> Vec<ContainerUse> + Send + use<> {
    let engine = state.engine().clone();
    move |image| engine.containers_of_image(image.as_str())
}

async fn remove(State(state): State<ServerState>, Path(name): Path<String>, query: Params) -> Result<Response> {
    let options = RemoveOptions { force: query.flag("force"), no_prune: query.flag("noprune") };
    let items = state.images().remove(&name, options, users(&state)).await?;
    Ok(Json(items.iter().map(convert::image::removed).collect::<Vec<_>>()).into_response())
}

async fn prune(State(state): State<ServerState>, query: Params) -> Result<Json<PruneReport>> {
    let filters = query.filters()?;
    filters.validate(&["dangling", "label", "label!", "until"])?;
    filters.flag("dangling")?;
    let report = state.images().prune(&plain(&filters), users(&state)).await?;
    let items: Vec<_> = report.items.iter().map(convert::image::removed).collect();
    Ok(Json(PruneReport {
        images_deleted: Some(items).filter(|i| !i.is_empty()),
        space_reclaimed: report.reclaimed_bytes,
    }))
}

async fn distribution(
    State(state): State<ServerState>,
    Path(rest): Path<String>,
    headers: HeaderMap,
) -> Result<Response> {
    let Some(name) = rest.strip_suffix("/json") else { return Err(ApiError::not_found("page not found")) };
    let reference: skep_model::reference::Reference =
        name.parse().map_err(|e: skep_model::reference::InvalidReference| ConvertError::Invalid(e.to_string()))?;
    let found = state.images().distribution_inspect(&reference.to_string(), registry_auth(&headers)?).await?;
    Ok(Json(convert::image::distribution(&found)).into_response())
}
