//! The swarm: init, join, leave, inspect, update.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use ipnet::Ipv4Net;
use skep_api::swarm::{InitRequest, JoinRequest, Swarm, SwarmSpec, UnlockKey};
use skep_model::cluster::ClusterSpec;
use skep_node::{RootRequest, RotateTokens};

use crate::error::{ApiError, Result};
use crate::extract::{GoJson, Params};
use crate::state::ServerState;

pub(crate) fn routes() -> Router<ServerState> {
    Router::new()
        .route("/swarm", get(inspect))
        .route("/swarm/init", post(init))
        .route("/swarm/join", post(join))
        .route("/swarm/leave", post(leave))
        .route("/swarm/update", post(update))
        .route("/swarm/unlockkey", get(unlock_key))
        .route("/swarm/unlock", post(unlock))
}

/// Answers with the node's id, a bare JSON string.
async fn init(State(state): State<ServerState>, GoJson(mut body): GoJson<InitRequest>) -> Result<Json<String>> {
    body.spec.encryption_config.auto_lock_managers |= body.auto_lock_managers;
    let bad_port = || {
        ApiError::invalid(format!(
            "invalid data path port number {}: must be between 1024 and 49151",
            body.data_path_port
        ))
    };
    let data_path_port = u16::try_from(body.data_path_port).map_err(|_| bad_port())?;
    if data_path_port != 0 && !(1024..=49151).contains(&data_path_port) {
        return Err(bad_port());
    }
    let subnet_size = u8::try_from(body.subnet_size).ok().filter(|n| *n <= 29).ok_or_else(|| {
        ApiError::invalid("rpc error: code = InvalidArgument desc = subnet size must be between 1 and 29")
    })?;
    let pools = body
        .default_addr_pool
        .iter()
        .map(|text| {
            text.parse::<Ipv4Net>().map_err(|_| ApiError::invalid(format!("invalid default address pool: {text}")))
        })
        .collect::<Result<Vec<_>>>()?;
    if !body.spec.ca_config.signing_ca_cert.is_empty() || !body.spec.ca_config.signing_ca_key.is_empty() {
        return Err(ApiError::unserved(
            "bringing a root certificate to swarm init; `docker swarm ca --rotate` takes one",
        ));
    }
    let request = skep_node::InitRequest {
        listen_addr: body.listen_addr,
        advertise_addr: body.advertise_addr,
        data_path_addr: body.data_path_addr,
        data_path_port,
        force_new_cluster: body.force_new_cluster,
        default_address_pools: pools,
        subnet_size,
        spec: init_spec(&state, body.force_new_cluster, body.spec)?,
        availability: skep_api::node::availability(&body.availability)?,
    };
    Ok(Json(state.node().swarm_init(request).await?.to_string()))
}

/// A swarm that is made anew from its own state keeps what the request does not say (moby `MergeSwarmSpecToGRPC`).
fn init_spec(state: &ServerState, force_new_cluster: bool, mut spec: SwarmSpec) -> Result<ClusterSpec> {
    let Some(current) = force_new_cluster.then(|| state.node().swarm_inspect().ok()).flatten() else {
        return Ok(spec.into_model(&ClusterSpec::default())?);
    };
    if spec.labels.is_empty() {
        spec.labels.clone_from(&current.spec.labels);
    }
    spec.encryption_config.auto_lock_managers |= current.spec.auto_lock_managers;
    Ok(spec.into_model(&current.spec)?)
}

async fn join(State(state): State<ServerState>, GoJson(body): GoJson<JoinRequest>) -> Result<StatusCode> {
    let request = skep_node::JoinRequest {
        listen_addr: body.listen_addr,
        advertise_addr: body.advertise_addr,
        data_path_addr: body.data_path_addr,
        remote_addrs: body.remote_addrs,
        join_token: body.join_token,
        availability: skep_api::node::availability(&body.availability)?,
    };
    state.node().swarm_join(request).await?;
    Ok(StatusCode::OK)
}

async fn leave(State(state): State<ServerState>, query: Params) -> Result<StatusCode> {
    state.node().swarm_leave(query.flag("force")).await?;
    Ok(StatusCode::OK)
}

async fn inspect(State(state): State<ServerState>) -> Result<Json<Swarm>> {
    Ok(Json(Swarm::with_tokens(&state.node().swarm_inspect()?)))
}

async fn update(
    State(state): State<ServerState>,
    query: Params,
    GoJson(body): GoJson<SwarmSpec>,
) -> Result<StatusCode> {
    let version = object_version(&query, "swarm")?;
    let current = state.node().swarm_inspect()?.spec;
    let rotate = RotateTokens {
        worker: query.flag("rotateWorkerToken"),
        manager: query.flag("rotateManagerToken"),
        unlock_key: query.flag("rotateManagerUnlockKey"),
    };
    let root = RootRequest {
        cert_pem: body.ca_config.signing_ca_cert.clone(),
        key_pem: body.ca_config.signing_ca_key.clone(),
    };
    state.node().swarm_update(version, body.into_model(&current)?, rotate, root).await?;
    Ok(StatusCode::OK)
}

/// Empty while managers are not locked, as in moby.
async fn unlock_key(State(state): State<ServerState>) -> Result<Json<UnlockKey>> {
    Ok(Json(UnlockKey { unlock_key: state.node().swarm_unlock_key()? }))
}

async fn unlock(State(state): State<ServerState>, GoJson(body): GoJson<UnlockKey>) -> Result<StatusCode> {
    state.node().swarm_unlock(&body.unlock_key).await?;
    Ok(StatusCode::OK)
}

/// The `version` an update must carry.
pub(crate) fn object_version(query: &Params, object: &str) -> Result<u64> {
    let text = query.text("version");
    text.parse().map_err(|_| {
        ApiError::invalid(format!(
            "invalid {object} version '{text}': strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })
}
