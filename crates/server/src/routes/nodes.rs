//! Nodes of the swarm.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use skep_api::node::{Node, NodeSpec, role_word};

use super::swarm::object_version;
use crate::error::{ApiError, Result};
use crate::extract::{GoJson, Params};
use crate::state::ServerState;

pub(crate) fn routes() -> Router<ServerState> {
    Router::new()
        .route("/nodes", get(list))
        .route("/nodes/{id}", get(inspect).delete(remove))
        .route("/nodes/{id}/update", post(update))
}

async fn list(State(state): State<ServerState>, query: Params) -> Result<Json<Vec<Node>>> {
    let nodes = state.node().node_list()?;
    let filters = query.filters()?;
    filters.validate(&["id", "label", "membership", "name", "node.label", "role"])?;
    for (key, words) in [("membership", ["accepted", "pending"]), ("role", ["manager", "worker"])] {
        if let Some(word) = filters.get(key).find(|word| !words.contains(word)) {
            return Err(ApiError::invalid(format!("Invalid {key} filter: '{word}'")));
        }
    }
    let shown = nodes.iter().filter(|node| {
        let name = if node.spec.name.is_empty() { &node.description.hostname } else { &node.spec.name };
        filters.prefix("id", node.id.as_str())
            && filters.prefix("name", name)
            && filters.exact("role", role_word(node.spec.role))
            && filters.exact("membership", "accepted")
            && filters.labels("label", &node.description.engine_labels)
            && filters.labels("node.label", &node.spec.labels)
    });
    let managers = state.node().managers();
    Ok(Json(shown.map(|node| Node::from_model(node, managers.leader.as_ref(), managers.reachability(node))).collect()))
}

async fn inspect(State(state): State<ServerState>, Path(id): Path<String>) -> Result<Json<Node>> {
    let node = state.node().node_inspect(&id)?;
    let managers = state.node().managers();
    Ok(Json(Node::from_model(&node, managers.leader.as_ref(), managers.reachability(&node))))
}

async fn update(
    State(state): State<ServerState>,
    Path(id): Path<String>,
    query: Params,
    GoJson(body): GoJson<NodeSpec>,
) -> Result<StatusCode> {
    let version = object_version(&query, "node")?;
    state.node().node_update(&id, version, body.try_into()?).await?;
    Ok(StatusCode::OK)
}

async fn remove(State(state): State<ServerState>, Path(id): Path<String>, query: Params) -> Result<StatusCode> {
    state.node().node_remove(&id, query.flag("force")).await?;
    Ok(StatusCode::OK)
}
