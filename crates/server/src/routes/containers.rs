//! Containers as objects: create, list, inspect, rename, update, remove, prune.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use skep_api::container::{CreateBody, CreateResponse, Inspect, PruneReport, Summary, UpdateBody};
use skep_api::{ApiVersion, Filters};
use skep_engine::container::{ContainerRecord, CreateRequest, ListOptions, RemoveOptions, Status, UpdateRequest};
use skep_model::Timestamp;
use skep_model::sandbox::EndpointRequest;

use crate::convert;
use crate::error::{ApiError, Result};
use crate::extract::{Params, RawJson};
use crate::state::{ServerState, now};

pub(crate) fn routes() -> Router<ServerState> {
    Router::new()
        .route("/containers/json", get(list))
        .route("/containers/create", post(create))
        .route("/containers/prune", post(prune))
        .route("/containers/{id}/json", get(inspect))
        .route("/containers/{id}/rename", post(rename))
        .route("/containers/{id}/update", post(update))
        .route("/containers/{id}", delete(remove))
}

async fn create(
    State(state): State<ServerState>,
    axum::Extension(version): axum::Extension<ApiVersion>,
    query: Params,
    RawJson(body): RawJson,
) -> Result<(StatusCode, Json<CreateResponse>)> {
    let mut body = CreateBody::decode(&body)?;
    if body.config.image.is_empty() {
        return Err(ApiError::invalid("config cannot be empty in order to create a container"));
    }
    refuse_unserved(&body)?;
    // The CLI sends -1 for "as the kernel does".
    if body.host_config.memory_swappiness == Some(-1) {
        body.host_config.memory_swappiness = None;
    }
    if body.host_config.pids_limit.is_some_and(|n| n <= 0) {
        body.host_config.pids_limit = None;
    }
    // Before API 1.40 a volume's mount point was made for bind mounts of --mount too; the flag came later.
    let _ = version;
    let mode = body.host_config.network_mode.clone();
    let endpoints = body
        .endpoints
        .into_iter()
        .map(|(network, settings)| {
            let network = resolve_network(network, &mode);
            Ok(settings.unwrap_or_default().into_request(network)?)
        })
        .collect::<Result<Vec<EndpointRequest>>>()?;
    let name = query.text("name").trim_start_matches('/');
    let request = CreateRequest {
        name: (!name.is_empty()).then(|| name.to_owned()),
        config: body.config,
        host_config: body.host_config,
        endpoints,
        task: None,
        platform: query.text("platform").to_owned(),
    };
    let created = state.engine().create(request).await?;
    Ok((StatusCode::CREATED, Json(CreateResponse { id: created.id.to_string(), warnings: created.warnings })))
}

/// `default` stands for whatever network the mode names; a swarm network's name is known only to the swarm.
fn resolve_network(network: String, mode: &str) -> String {
    match network.as_str() {
        "default" if !matches!(mode, "" | "default") => mode.to_owned(),
        "default" => "bridge".into(),
        _ => network,
    }
}

/// Options that a client believes in and that would be silently without effect.
fn refuse_unserved(body: &CreateBody) -> Result<()> {
    let host = &body.host_config;
    let refusals = [
        (!host.links.is_empty(), "linking containers (--link)"),
        (!host.storage_opt.is_empty(), "HostConfig.StorageOpt"),
        (!matches!(host.userns_mode.as_str(), "" | "host"), "a user namespace (--userns)"),
        (!matches!(host.volume_driver.as_str(), "" | "local"), "a volume driver other than local"),
        (!matches!(host.isolation.as_str(), "" | "default"), "an isolation technology"),
        (!matches!(host.runtime.as_str(), "" | "runc" | "skep"), "another runtime (--runtime)"),
    ];
    match refusals.into_iter().find(|(asked, _)| *asked) {
        Some((_, what)) => Err(ApiError::unserved(what)),
        None => Ok(()),
    }
}

async fn inspect(State(state): State<ServerState>, Path(id): Path<String>, query: Params) -> Result<Json<Inspect>> {
    let record = state.engine().inspect(&id)?;
    let sizes = if query.flag("size") { Some(state.engine().sizes(&id).await?) } else { None };
    Ok(Json(convert::container::inspect(&record, sizes)))
}

async fn rename(State(state): State<ServerState>, Path(id): Path<String>, query: Params) -> Result<StatusCode> {
    let name = query.text("name").trim_start_matches('/');
    if name.is_empty() {
        return Err(ApiError::invalid("Neither old nor new names may be empty"));
    }
    state.engine().rename(&id, name).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn update(
    State(state): State<ServerState>,
    Path(id): Path<String>,
    RawJson(body): RawJson,
) -> Result<Json<serde_json::Value>> {
    let body = UpdateBody::decode(&body)?;
    let request = UpdateRequest { host_config: body.resources, restart_policy: body.restart_policy };
    let warnings = state.engine().update(&id, request).await?;
    Ok(Json(serde_json::json!({ "Warnings": warnings })))
}

async fn remove(State(state): State<ServerState>, Path(id): Path<String>, query: Params) -> Result<StatusCode> {
    if query.flag("link") {
        return Err(ApiError::unserved("linking containers (rm --link)"));
    }
    let options = RemoveOptions { force: query.flag("force"), volumes: query.flag("v") };
    state.engine().remove(&id, options).await?;
    Ok(StatusCode::NO_CONTENT)
}

const LIST_FILTERS: [&str; 16] = [
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "label!",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
];

async fn list(State(state): State<ServerState>, query: Params) -> Result<Json<Vec<Summary>>> {
    let filters = query.filters()?;
    filters.validate(&LIST_FILTERS)?;
    let limit: Option<i64> = query.number("limit")?;
    let limit = limit.filter(|n| *n > 0).map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    // Asking for states, or for the last few, asks for stopped ones too.
    let all = query.flag("all") || limit.is_some() || filters.contains("status") || filters.contains("exited");
    let selection = Selection::new(&state, &filters)?;
    let mut rows = Vec::new();
    for record in state.engine().list(ListOptions { all }) {
        if limit.is_some_and(|n| rows.len() >= n) {
            break;
        }
        if !selection.has(&record) {
            continue;
        }
        let sizes = if query.flag("size") { state.engine().sizes(record.id.as_str()).await.ok() } else { None };
        rows.push(convert::container::summary(&record, shown_image(&state, &record), now(), sizes));
    }
    Ok(Json(rows))
}

/// The image as the user named it, or its id once that name means another image.
fn shown_image(state: &ServerState, record: &ContainerRecord) -> String {
    match state.images().resolve(&record.config.image) {
        Ok(id) if id.as_str() != record.image_id => record.image_id.clone(),
        Ok(_) | Err(_) => record.config.image.clone(),
    }
}

pub(crate) fn summaries(state: &ServerState, sizes: &[(String, (u64, u64))]) -> Vec<Summary> {
    state
        .engine()
        .list(ListOptions { all: true })
        .iter()
        .map(|record| {
            let size = sizes.iter().find(|(id, _)| id == record.id.as_str()).map(|(_, s)| *s);
            convert::container::summary(record, shown_image(state, record), now(), size)
        })
        .collect()
}

/// What the filters of `docker ps` ask for, with names resolved once.
struct Selection<'a> {
    filters: &'a Filters,
    before: Option<Timestamp>,
    since: Option<Timestamp>,
    ancestors: Option<BTreeSet<String>>,
    networks: BTreeSet<String>,
    exited: Vec<i32>,
}

impl<'a> Selection<'a> {
    fn new(state: &ServerState, filters: &'a Filters) -> Result<Self> {
        for word in filters.get("status") {
            let known = ["created", "running", "paused", "restarting", "removing", "exited", "dead"];
            if !known.contains(&word) {
                return Err(ApiError::invalid(format!("invalid filter 'status={word}'")));
            }
        }
        let created = |key: &str| -> Result<Option<Timestamp>> {
            filters.get(key).next().map(|id| Ok(state.engine().inspect(id)?.created_at)).transpose()
        };
        let ancestors = filters.contains("ancestor").then(|| {
            filters
                .get("ancestor")
                .filter_map(|name| state.images().resolve(name).ok())
                .map(|id| id.to_string())
                .collect()
        });
        let networks = filters
            .get("network")
            .flat_map(|n| [Some(n.to_owned()), super::networks::id_of(state, n)])
            .flatten()
            .collect();
        let exited = filters
            .get("exited")
            .map(|code| code.parse().map_err(|_| ApiError::invalid(format!("invalid filter 'exited={code}'"))))
            .collect::<Result<_>>()?;
        Ok(Self { filters, before: created("before")?, since: created("since")?, ancestors, networks, exited })
    }

    fn has(&self, record: &Arc<ContainerRecord>) -> bool {
        let f = self.filters;
        let state = &record.state;
        let names = !f.contains("name")
            || f.get("name")
                .any(|n| format!("/{}", record.name).contains(n.trim_start_matches('^').trim_end_matches('$')));
        let health = state.health.as_ref().map_or("none", |h| h.status.as_str());
        let is_task = record.task.is_some();
        let unlabelled = f.get("label!").all(|l| match l.split_once('=') {
            Some((k, v)) => record.config.labels.get(k).is_none_or(|have| have != v),
            None => !record.config.labels.contains_key(l),
        });
        f.prefix("id", record.id.as_str())
            && names
            && f.labels("label", &record.config.labels)
            && unlabelled
            && f.exact("status", state.status.as_str())
            && f.exact("health", health)
            && f.flag("is-task").ok().flatten().is_none_or(|wanted| wanted == is_task)
            && self.before.is_none_or(|t| record.created_at < t)
            && self.since.is_none_or(|t| record.created_at > t)
            && self.ancestors.as_ref().is_none_or(|ids| ids.contains(&record.image_id))
            && (self.exited.is_empty() || state.status == Status::Exited && self.exited.contains(&state.exit_code))
            && self.on_network(record)
            && self.has_volume(record)
            && self.has_port(record)
    }

    fn on_network(&self, record: &ContainerRecord) -> bool {
        self.networks.is_empty()
            || record.endpoints.iter().any(|e| self.networks.contains(&e.network))
            || self.networks.contains(&record.host_config.network_mode)
            || record
                .sandbox
                .iter()
                .flat_map(|s| &s.endpoints)
                .any(|e| self.networks.contains(&e.network_name) || self.networks.contains(e.network_id.as_str()))
    }

    fn has_volume(&self, record: &ContainerRecord) -> bool {
        !self.filters.contains("volume")
            || record.mounts.iter().any(|m| self.filters.get("volume").any(|v| m.name == v || m.destination == v))
    }

    fn has_port(&self, record: &ContainerRecord) -> bool {
        let ports = convert::container::row_ports(record);
        let wanted = |key: &str, number: fn(&skep_api::container::Port) -> u16| {
            !self.filters.contains(key)
                || self.filters.get(key).any(|text| {
                    let (range, kind) = text.split_once('/').unwrap_or((text, "tcp"));
                    let (low, high) = range.split_once('-').unwrap_or((range, range));
                    let (Ok(low), Ok(high)) = (low.parse::<u16>(), high.parse::<u16>()) else { return false };
                    ports.iter().any(|p| p.kind == kind && (low..=high).contains(&number(p)))
                })
        };
        wanted("publish", |p| p.public_port) && wanted("expose", |p| p.private_port)
    }
}

async fn prune(State(state): State<ServerState>, query: Params) -> Result<Json<PruneReport>> {
    let filters = query.filters()?;
    filters.validate(&["label", "label!", "until"])?;
    let until = match filters.get("until").next() {
        Some(text) => skep_api::time::parse_moment(text, now())?,
        None => None,
    };
    let selection = Selection::new(&state, &filters)?;
    let mut report = PruneReport::default();
    for record in state.engine().list(ListOptions { all: true }) {
        let ended = matches!(record.state.status, Status::Exited | Status::Created | Status::Dead);
        if !ended || !selection.has(&record) || until.is_some_and(|t| record.created_at > t) {
            continue;
        }
        let size = state.engine().sizes(record.id.as_str()).await.map_or(0, |s| s.0);
        if state.engine().remove(record.id.as_str(), RemoveOptions::default()).await.is_ok() {
            report.containers_deleted.get_or_insert_default().push(record.id.to_string());
            report.space_reclaimed += size;
        }
    }
    Ok(Json(report))
}
