//! All routes in one table each, and what is answered where there is none.

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::error::ApiError;
use crate::routes;
use crate::state::ServerState;

pub(crate) fn router(state: ServerState) -> Router {
    Router::new()
        .merge(routes::system::routes())
        .merge(routes::events::routes())
        .merge(routes::containers::routes())
        .merge(routes::lifecycle::routes())
        .merge(routes::streams::routes())
        .merge(routes::exec::routes())
        .merge(routes::archive::routes())
        .merge(routes::images::routes())
        .merge(routes::image_transfer::routes())
        .merge(routes::networks::routes())
        .merge(routes::doctor::routes())
        .merge(routes::volumes::routes())
        .merge(routes::swarm::routes())
        .merge(routes::join_tokens::routes())
        .merge(routes::backup::routes())
        .merge(routes::nodes::routes())
        .merge(routes::services::routes())
        .merge(routes::tasks::routes())
        .merge(routes::secrets::routes())
        .merge(routes::unserved::routes())
        .fallback(page_not_found)
        .method_not_allowed_fallback(page_not_found)
        .with_state(state)
}

/// moby answers a wrong method like a wrong path.
async fn page_not_found() -> Response {
    ApiError::new(StatusCode::NOT_FOUND, "page not found").into_response()
}
