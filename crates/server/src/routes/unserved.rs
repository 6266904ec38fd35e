//! Routes of Docker's that are known and not served: each says so, instead of looking like a path mistyped.

use axum::extract::Path;
use axum::routing::{any, get, post};
use axum::{Json, Router};

use crate::error::{ApiError, Result};
use crate::state::ServerState;

pub(crate) fn routes() -> Router<ServerState> {
    Router::new()
        .route("/build", post(|| refuse("building images (docker build)")))
        .route("/build/prune", post(prune_builds))
        .route("/build/cancel", post(|| refuse("building images (docker build)")))
        .route("/session", post(|| refuse("building images (BuildKit's session)")))
        .route("/grpc", post(|| refuse("building images (BuildKit's gRPC)")))
        .route("/images/search", get(|| refuse("searching Docker Hub (docker search)")))
        .route("/plugins", get(no_plugins))
        .route("/plugins/{*rest}", get(no_plugin).fallback(|| refuse("managing plugins (docker plugin)")))
        .route("/containers/{id}/attach/ws", get(|| refuse("attaching over a WebSocket")))
        .route("/containers/{id}/checkpoints", any(|| refuse("checkpoints")))
        .route("/containers/{id}/checkpoints/{*rest}", any(|| refuse("checkpoints")))
}

async fn refuse(what: &'static str) -> Result<()> {
    Err(ApiError::unserved(what))
}

/// `docker plugin ls` and `docker info` ask; there are none.
async fn no_plugins() -> Json<[(); 0]> {
    Json([])
}

/// `docker inspect NAME` tries a plugin of that name among others.
async fn no_plugin(Path(rest): Path<String>) -> ApiError {
    let name = rest.strip_suffix("/json").unwrap_or(&rest);
    ApiError::not_found(format!("plugin {name:?} not found"))
}

/// `docker system prune` prunes builds too; there is no cache to prune.
async fn prune_builds() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "CachesDeleted": null, "SpaceReclaimed": 0 }))
}
